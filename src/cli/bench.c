/* faultline bench: measures a server of its own against floors. The report's text form is in bench_print.c. */
#include "bench/bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/api_client.h"
#include "cli/bench_print.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/options.h"

/* ---- the API, for src/bench ---- */

static int open_api(const char *run_dir, void **ret, struct error *err)
{
	struct api_client *client;
	int r = api_client_new(run_dir, &client, err);

	if (r == 0)
		*ret = client;
	return r;
}

static int call_api(void *client, const char *method, const char *path, const json_t *body, unsigned timeout_s,
		    json_t **ret, struct error *err)
{
	_cleanup_(api_reply_clear) struct api_reply reply = { 0 };
	int r = api_call(client, method, path, body, timeout_s, &reply, err);

	if (r == 0 && ret)
		*ret = json_incref(reply.json);
	return r;
}

static int fetch_api(void *client, const char *path, unsigned timeout_s, void **ret_data, size_t *ret_size,
		     struct error *err)
{
	_cleanup_(api_reply_clear) struct api_reply reply = { 0 };
	int r = api_call(client, "GET", path, NULL, timeout_s, &reply, err);

	if (r == 0) {
		*ret_size = reply.size;
		*ret_data = TAKE_PTR(reply.body);
	}
	return r;
}

static void close_api(void *client)
{
	api_client_free(client);
}

static const struct bench_api api = { open_api, call_api, fetch_api, close_api };

/* ---- the command line ---- */

/* On a terminal: one line that is written over. */
static void show_progress(void *data __attribute__((unused)), const char *text)
{
	fprintf(stderr, "\r\033[K%.78s", text ?: "");
	fflush(stderr);
}

static bool parse_count(const char *text, unsigned most, unsigned *ret)
{
	char *end;

	errno = 0;
	unsigned long value = strtoul(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno || value < 1 || value > most)
		return false;
	*ret = (unsigned)value;
	return true;
}

static bool choose_group(struct bench_options *options, const char *name)
{
	bool all = !strcmp(name, "all"), known = all;

	for (int group = 0; group < BENCH_GROUPS; group++) {
		if (!all && strcmp(name, bench_group_name((enum bench_group)group)))
			continue;
		options->groups[group] = known = true;
	}
	return known;
}

static int choose_groups(const struct cli_args *args, struct bench_options *options)
{
	/* What takes many minutes is to be asked for. */
	for (int group = 0; group < BENCH_GROUPS && args->argument_count == 0; group++)
		options->groups[group] = group != BENCH_ORDER && group != BENCH_READY;
	for (int i = 0; i < args->argument_count; i++)
		if (!choose_group(options, args->arguments[i]))
			return cli_usage_error(args,
					       "what is measured is 'fault', 'prefetch', 'idle', 'fairness', 'observe', 'order', "
					       "'ready' or 'all', not '%s'",
					       args->arguments[i]);
	return EXIT_OK;
}

static bool choose_one(struct bench_options *options, const char *text, size_t length)
{
	bool known = false;

	for (int kind = 0; kind < BENCH_KINDS; kind++) {
		const char *name;

		for (unsigned i = 0; (name = bench_name((enum bench_kind)kind, i)); i++)
			if (strlen(name) == length && !strncmp(name, text, length)) {
				options->only[kind] |= UINT32_C(1) << i;
				known = true;
			}
	}
	return known;
}

static void list_names(char *buffer, size_t size)
{
	const char *name;

	*buffer = '\0';
	for (int kind = 0; kind < BENCH_KINDS; kind++)
		for (unsigned i = 0; (name = bench_name((enum bench_kind)kind, i)); i++)
			snprintf(buffer + strlen(buffer), size - strlen(buffer), "%s%s", *buffer ? ", " : "", name);
}

/* Names of situations and workloads, with commas between them. */
static int choose_only(const struct cli_args *args, struct bench_options *options)
{
	const char *list = cli_value(args, "only");

	while (list && *list) {
		size_t length = strcspn(list, ",");

		if (!choose_one(options, list, length)) {
			char names[512];

			list_names(names, sizeof names);
			return cli_usage_error(args, "--only: '%.*s' is none of %s", (int)length, list, names);
		}
		list += length + (list[length] == ',');
	}
	return EXIT_OK;
}

static int read_options(const struct cli_args *args, struct bench_options *options)
{
	const char *rounds = cli_value(args, "rounds"), *forks = cli_value(args, "forks"), *dir = cli_value(args, "dir");

	options->quick = cli_value(args, "quick") != NULL;
	options->rounds = options->quick ? BENCH_ROUNDS_QUICK : BENCH_ROUNDS_DEFAULT;
	if (rounds && !parse_count(rounds, BENCH_ROUNDS_MAX, &options->rounds))
		return cli_usage_error(args, "--rounds is a number from 1 to %d, not '%s'", BENCH_ROUNDS_MAX, rounds);
	options->streams = rounds ? options->rounds : 0;
	options->traces = cli_value(args, "traces") ?: "traces";
	options->tiny_vmm = cli_value(args, "tiny-vmm") ?: getenv("FAULTLINE_TINY_VMM");
	if (options->tiny_vmm && !*options->tiny_vmm)
		options->tiny_vmm = NULL;
	if (args->json && cli_value(args, "markdown"))
		return cli_usage_error(args, "--json and --markdown exclude each other");
	if (forks && !parse_count(forks, BENCH_FORKS_MAX, &options->idle_forks))
		return cli_usage_error(args, "--forks is a number from 1 to %d, not '%s'", BENCH_FORKS_MAX, forks);
	if (dir && !*dir)
		return cli_usage_error(args, "--dir is empty: name a directory");
	int exit_code = choose_only(args, options);
	return exit_code == EXIT_OK ? choose_groups(args, options) : exit_code;
}

/* This very program. Where its file is gone by now (it was built anew), the kernel's link to it still works. */
static const char *own_binary(char *buffer, size_t size)
{
	ssize_t n = readlink("/proc/self/exe", buffer, size - 1);

	if (n <= 0)
		return "/proc/self/exe";
	buffer[n] = '\0';
	return access(buffer, X_OK) == 0 ? buffer : "/proc/self/exe";
}

static int run(const struct cli_args *args)
{
	char binary[4096];
	const char *temporary = getenv("TMPDIR");
	_cleanup_free_ char *dir = NULL;
	struct bench_options options = {
		.binary = own_binary(binary, sizeof binary),
		.version = FAULTLINE_VERSION,
		.api = &api,
		.progress = isatty(STDERR_FILENO) ? show_progress : NULL,
	};
	struct error err = { 0 };
	json_t *report;
	int exit_code = read_options(args, &options);

	if (exit_code != EXIT_OK)
		return exit_code;
	if (api_absolute_path(cli_value(args, "dir") ?: temporary && *temporary ? temporary : "/tmp", &dir, &err) < 0)
		return cli_fail(args->json, &err);
	options.dir = dir;
	if (bench_run(&options, &report, &err) < 0)
		return cli_fail(args->json, &err);
	if (args->json) {
		exit_code = cli_print_json(report);
	} else {
		if (cli_value(args, "markdown"))
			bench_print_markdown(report);
		else
			bench_print(report);
		exit_code = cli_finish_output();
	}
	json_decref(report);
	return exit_code;
}

static const struct cli_option options[] = {
	{ .name = "rounds",
	  .value = "N",
	  .help = "how often each side is measured (default: 9; with --quick 3; lists of 'order' are streamed 3 times, or once)",
	  .complete = "",
	  .manual =
		  "In each round all sides take their turn, in another order each time. Fewer than 9 are for a first look." },
	{ .name = "quick", .help = "less of everything: a first look in less than 20 seconds" },
	{ .name = "forks",
	  .value = "N",
	  .help = "how many forks are idle in the group 'idle' (default: 1000; with --quick 100)",
	  .complete = "" },
	{ .name = "dir",
	  .value = "DIR",
	  .help = "where the temporary directory is made (default: $TMPDIR, or /tmp)",
	  .manual = "It takes memory images of up to 300 MiB, which the page cache should be able to keep." },
	{ .name = "traces",
	  .value = "DIR",
	  .help = "where the traces are that the groups 'order' and 'ready' replay (default: traces)",
	  .complete = "@file" },
	{ .name = "tiny-vmm",
	  .value = "PATH",
	  .help = "the faultline-tiny-vmm that runs guests under KVM for the group 'order' (default: $FAULTLINE_TINY_VMM, or the one beside this program)",
	  .complete = "@file" },
	{ .name = "only",
	  .value = "LIST",
	  .help = "of the groups 'order' and 'ready', these situations and workloads, like spin_uneven,redis-get",
	  .complete = "" },
	{ .name = "json", .help = "print the report as JSON, and errors as JSON on stderr" },
	{ .name = "markdown", .help = "print it as tables for a document" },
	{ 0 },
};

static const struct cli_action actions[] = {
	{ .name = "",
	  .arguments = "[GROUP...]",
	  .summary = "",
	  .options = options,
	  .run = run,
	  .complete = "fault prefetch idle fairness observe order ready all" },
	{ 0 },
};

const struct cli_command bench_command = {
	.name = "bench",
	.summary =
		"Measures a server of its own against floors, the least that could do the same work, in the same run.",
	.details =
		"Groups (by default all but order and ready, which take ten minutes each):\n"
		"  fault       what a demand fault costs, beside bare loops of poll, read and copy\n"
		"  prefetch    how soon a list of pages is there, beside bare calls and plain mmap\n"
		"  idle        what connected forks cost that do nothing\n"
		"  fairness    many forks that fault at once\n"
		"  observe     what watching the kernel costs, beside a server that does not\n"
		"  order       lists of the fault loop and of the kernel, against the order in which guests touched pages\n"
		"  ready       how soon a fork is ready: each way to get its pages, warm, cold and from a slow source\n"
		"\n"
		"Every page that a client reads is compared with its image. The figures decide nothing: the exit status\n"
		"is 0 unless a byte is wrong or something could not run. Needs userfaultfd, as 'faultline serve' does.",
	.actions = actions,
	.brief = "measure a server against floors",
	.manual =
		"The sides of a comparison take turns, round by round; what is printed are medians, their quartiles, and ratios of "
		"medians with the quartiles of the ratios round by round. A floor takes part twice under two names. Where its "
		"two medians, or its ratios to itself, stray so far that a ratio could as well lie on the other side of its target, "
		"the report says that the machine is too noisy to tell; and so it does where other processes used more than 10 % of "
		"the CPUs' time, or the hypervisor took more than 2 %.\n\n"
		"The run starts servers and clients as processes of its own and leaves none of them, nor any file, also when it is "
		"interrupted. It uses the CPUs that it may run on: taskset(1) chooses them.",
	.examples = "A first look:\n\n"
		    "    faultline bench --quick\n\n"
		    "Demand faults alone, more rounds, for a program to read:\n\n"
		    "    faultline bench fault --rounds 25 --json\n\n"
		    "What order is worth, in the project's directory:\n\n"
		    "    faultline bench order --only one,spin_uneven,redis-get",
	.see_also = "taskset(1), userfaultfd(2)",
};
