/* faultline doctor: what this machine can do, line by line, and what to change. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "cli/api_client.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "doctor/doctor.h"

/* Of the JSON; members may be added without a new one. */
#define JSON_VERSION 1

/* Lines are broken at a terminal's edge, but not so early that nothing but the margin is left. */
#define WIDTH_MIN 60

/* ---- text ---- */

struct layout {
	bool colour;
	int width;	 /* of the terminal; 0: lines are not broken */
	int title_width; /* of the longest title */
};

static struct layout find_layout(const struct doctor_report *report)
{
	const char *no_colour = getenv("NO_COLOR"), *terminal = getenv("TERM");
	struct layout layout = { 0 };
	struct winsize size;

	if (isatty(STDOUT_FILENO)) {
		layout.colour = !(no_colour && *no_colour) && !(terminal && !strcmp(terminal, "dumb"));
		if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= WIDTH_MIN)
			layout.width = size.ws_col;
	}
	for (size_t i = 0; i < report->count; i++) {
		int length = (int)strlen(report->results[i].title);
		if (length > layout.title_width)
			layout.title_width = length;
	}
	return layout;
}

static const char *colour_of(enum doctor_status status)
{
	static const char *const colours[] = { "\033[32m", "\033[33m", "\033[31m" };

	return colours[status];
}

static void print_status(const struct layout *layout, enum doctor_status status, int width)
{
	if (layout->colour)
		printf("%s%-*s\033[0m", colour_of(status), width, doctor_status_name(status));
	else
		printf("%-*s", width, doctor_status_name(status));
}

/* TEXT from column INDENT on, where the cursor stands; broken between words where the terminal ends. */
static void print_text(const struct layout *layout, int indent, const char *text)
{
	int column = indent;

	for (const char *word = text; *word;) {
		int length = (int)strcspn(word, " ");
		bool first = word == text;

		if (!first && layout->width && column + 1 + length > layout->width) {
			printf("\n%*s", indent, "");
			column = indent;
		} else if (!first) {
			putchar(' ');
			column++;
		}
		printf("%.*s", length, word);
		column += length;
		word += length;
		word += *word == ' ';
	}
	putchar('\n');
}

/* Where one thing stands in the way of many, it is said once. */
static void print_note(const struct layout *layout, const char *label, const char *text, const char *before)
{
	const int indent = 12, label_width = 8;

	if (!*text)
		return;
	printf("%*s%-*s", indent, "", label_width, label);
	print_text(layout, indent + label_width, strcmp(text, before) ? text : "as above");
}

static void print_result(const struct layout *layout, const struct doctor_result *result,
			 const struct doctor_result *before)
{
	const int status_width = 10;

	printf("  ");
	print_status(layout, result->status, status_width);
	printf("%-*s  ", layout->title_width, result->title);
	print_text(layout, 2 + status_width + layout->title_width + 2, result->found);
	print_note(layout, "costs:", result->cost, before ? before->cost : "");
	print_note(layout, "change:", result->remedy, before ? before->remedy : "");
}

static void print_verdict(const struct layout *layout, const char *what, enum doctor_status status, const char *why)
{
	const int label_width = 14;

	printf("%-*s", label_width, what);
	if (status == DOCTOR_OK) {
		print_status(layout, status, 0);
		putchar('\n');
		return;
	}
	print_status(layout, status, 0);
	printf(": ");
	print_text(layout, label_width + (int)strlen(doctor_status_name(status)) + 2, why);
}

static void print_tier(const struct doctor_summary *summary)
{
	bool none = !strcmp(summary->tier, "none");

	if (none)
		printf("%-14snone: no tier works\n", "observation");
	else
		printf("%-14stier %s%s\n", "observation", summary->tier,
		       summary->tier_pins ? "" : "; no pins for bpftool");
}

static void print_report(const struct doctor_report *report)
{
	const struct doctor_summary *summary = &report->summary;
	struct layout layout = find_layout(report);
	const char *group = "";

	for (size_t i = 0; i < report->count; i++) {
		const struct doctor_result *result = &report->results[i];

		if (strcmp(result->group, group) != 0)
			printf("%s%s\n", i ? "\n" : "", result->group);
		group = result->group;
		print_result(&layout, result, i ? result - 1 : NULL);
	}
	putchar('\n');
	print_verdict(&layout, "serving", summary->serving, summary->serving_why);
	print_verdict(&layout, "prefetch", summary->prefetch, summary->prefetch_why);
	print_tier(summary);
	printf("%-14s%s\n", "huge pages", summary->huge_pages);
	printf("%-14s%s\n", "KVM", summary->kvm);
}

/* ---- JSON ---- */

/* A path may hold bytes that are not UTF-8, and JSON may not. */
static json_t *encode_text(const char *text)
{
	char plain[DOCTOR_TEXT_MAX];
	json_t *value = json_string(text);

	if (value)
		return value;
	snprintf(plain, sizeof plain, "%s", text);
	for (char *p = plain; *p; p++)
		if ((unsigned char)*p >= 0x80)
			*p = '?';
	return json_string(plain);
}

static json_t *encode_optional(const char *text)
{
	return *text ? encode_text(text) : json_null();
}

static json_t *encode_uses(unsigned uses)
{
	json_t *array = json_array();

	for (unsigned i = 0; i < DOCTOR_USES; i++)
		if (uses & 1u << i)
			json_array_append_new(array, json_string(doctor_use_name((enum doctor_use)(1u << i))));
	return array;
}

static json_t *encode_result(const struct doctor_result *result)
{
	const char *name = result->error ? strerrorname_np(-result->error) : NULL;

	return json_pack("{s:s,s:s,s:s,s:s,s:o,s:o,s:s?,s:o,s:o}", "name", result->name, "group", result->group,
			 "title", result->title, "status", doctor_status_name(result->status), "for",
			 encode_uses(result->uses), "found", encode_text(result->found), "errno", name, "cost",
			 encode_optional(result->cost), "remedy", encode_optional(result->remedy));
}

static json_t *encode_summary(const struct doctor_summary *summary)
{
	return json_pack("{s:{s:s,s:o},s:{s:s,s:o},s:{s:s,s:b,s:o},s:o,s:o}", "serving", "status",
			 doctor_status_name(summary->serving), "why", encode_optional(summary->serving_why), "prefetch",
			 "status", doctor_status_name(summary->prefetch), "why", encode_optional(summary->prefetch_why),
			 "observation", "tier", summary->tier, "pins", summary->tier_pins, "why",
			 encode_optional(summary->tier_why), "huge_pages", encode_text(summary->huge_pages), "kvm",
			 encode_text(summary->kvm));
}

static int print_json(const struct doctor_report *report)
{
	json_t *checks = json_array();

	for (size_t i = 0; i < report->count; i++)
		json_array_append_new(checks, encode_result(&report->results[i]));
	json_t *value = json_pack("{s:i,s:s,s:o,s:o}", "version", JSON_VERSION, "faultline", FAULTLINE_VERSION,
				  "summary", encode_summary(&report->summary), "checks", checks);
	if (!value) {
		cli_error("out of memory");
		return EXIT_FAILED;
	}
	int exit_code = cli_print_json(value);
	json_decref(value);
	return exit_code;
}

/* ---- command ---- */

static int run(const struct cli_args *args)
{
	const char *run_dir = cli_value(args, "run-dir") ?: getenv("FAULTLINE_RUN_DIR");
	struct doctor_report *report;
	struct error err;

	if (doctor_run(run_dir && *run_dir ? run_dir : API_DEFAULT_RUN_DIR, &report, &err) < 0)
		return cli_fail(args->json, &err);

	bool serves = report->summary.serving != DOCTOR_MISSING;
	int exit_code = EXIT_OK;

	if (args->json)
		exit_code = print_json(report);
	else
		print_report(report);
	doctor_report_free(report);
	exit_code = exit_code == EXIT_OK ? cli_finish_output() : exit_code;
	return exit_code == EXIT_OK && !serves ? EXIT_FAILED : exit_code;
}

static const struct cli_option options[] = {
	{ .name = "run-dir",
	  .value = "DIR",
	  .help = "the run directory to look at (default: $FAULTLINE_RUN_DIR, or else /run/faultline)" },
	{ .name = "json",
	  .help = "print the report as JSON: one object",
	  .manual = "Its shape is described in docs/cli.md and stays as it is; members may be added." },
	{ 0 },
};

static const struct cli_action actions[] = {
	{ .name = "", .arguments = "", .summary = "", .options = options, .run = run },
	{ 0 },
};

const struct cli_command doctor_command = {
	.name = "doctor",
	.summary = "Says what this machine can do for faultline, line by line, and what to change.",
	.details =
		"Each line is ok, degraded or missing, with what that costs and how to change it. Everything is tried for real: a\n"
		"page fault is served, a ring reads a file, BPF programs are loaded and attached. It needs no server and no\n"
		"root, leaves nothing behind, and says what holds for the user, limits and namespaces that it runs with: run it\n"
		"as the server will be run.\n\n"
		"Exit code: 0 where forks can be served, if not as well as could be; 1 where they can't at all.",
	.actions = actions,
	.brief = "what this machine can do, and what to change",
	.manual =
		"The last lines sum up: whether forks can be served and pages prefetched, which tier of observation the "
		"kernel allows, whether there are huge pages, and whether KVM works.\n\n"
		"What is risky happens in child processes, so that a seccomp filter that kills is a line of the report.",
	.examples =
		"What a service with few rights could do:\n\n"
		"    setpriv --reuid nobody --regid nogroup --clear-groups faultline doctor --run-dir /tmp/faultline\n\n"
		"Everything that isn't ok:\n\n"
		"    faultline doctor --json | jq '.checks[] | select(.status != \"ok\")'",
	.exit_status = "0 where forks can be served, 1 where they can't at all.",
	.see_also = "userfaultfd(2), bpf(2), io_uring(7), capabilities(7)",
};
