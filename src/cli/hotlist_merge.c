/* `faultline hotlist merge`: lists of several runs become one; says which clock won, and what became of the pages. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/hotlist.h"
#include "cli/options.h"
#include "hotlist/hotlist.h"
#include "hotlist/merge.h"
#include "hotlist/words.h"

struct inputs {
	struct hotlist *lists[CLI_ARGUMENTS_MAX + 1];
	const char *names[CLI_ARGUMENTS_MAX + 1];
	size_t count;
};

static void free_inputs(struct inputs *inputs)
{
	for (size_t i = 0; i < inputs->count; i++)
		hotlist_free(inputs->lists[i]);
}

static int load_one(const struct cli_args *args, const char *path, struct inputs *inputs, struct error *err)
{
	int r = hotlist_cli_load(args, path, &inputs->lists[inputs->count], err);

	if (r >= 0)
		inputs->names[inputs->count++] = path;
	return r;
}

/* With --refresh, the first of them is OLD. */
static int load_all(const struct cli_args *args, struct inputs *inputs, struct error *err)
{
	const char *old = cli_value(args, "refresh");
	int r = old ? load_one(args, old, inputs, err) : 0;

	for (int i = 0; r >= 0 && i < args->argument_count; i++)
		r = load_one(args, args->arguments[i], inputs, err);
	return r;
}

/* The runs one after the other, as they came. The last one's figures are those of the list. */
static int refresh(const struct inputs *inputs, enum merge_saw saw, struct merge_result *ret, struct error *err)
{
	_cleanup_hotlist_ struct hotlist *old = NULL;
	struct merge_result result = { .list = NULL };
	size_t dropped = 0;

	for (size_t i = 1; i < inputs->count; i++) {
		const char *const names[2] = { inputs->names[0], inputs->names[i] };
		int r = merge_refresh(old ?: inputs->lists[0], inputs->lists[i], saw, names, &result, err);

		if (r < 0)
			return r;
		dropped += result.dropped;
		hotlist_free(old);
		old = result.list;
	}
	*ret = result;
	ret->list = TAKE_PTR(old);
	ret->dropped = dropped;
	return 0;
}

static int save(const struct hotlist *list, enum hotlist_format format, const char *out, struct error *err)
{
	_cleanup_free_ void *data = NULL;
	size_t size;

	if (strcmp(out, "-") != 0)
		return hotlist_save(list, format, out, err);
	int r = hotlist_encode(list, format, &data, &size, err);
	if (r < 0)
		return r;
	if (cli_print_bytes(data, size) != EXIT_OK)
		return error_set(err, -EIO, "io_error", "the list was not written whole");
	return 0;
}

/* ---- what came of it ---- */

static const char *const reason_words[] = {
	[MERGE_ONE_CLOCK] = "one_clock",
	[MERGE_AGREEMENT] = "agreement",
	[MERGE_EVIDENCE] = "evidence",
	[MERGE_TIED] = "tied",
};

static void print_clock(FILE *file, const struct merge_vote *vote)
{
	const char *name = hot_clock_word(vote->clock) ?: "unknown";

	switch (vote->reason) {
	case MERGE_ONE_CLOCK:
		fprintf(file, vote->clock == HOT_CLOCK_UNKNOWN ? "Clock   none: the lists know no times\n"
							       : "Clock   raw: the order is the same by either\n");
		return;
	case MERGE_AGREEMENT:
		fprintf(file, "Clock   %s: the runs agree more by it\n", name);
		break;
	case MERGE_EVIDENCE:
		fprintf(file, "Clock   %s: vCPUs %s while others stood still%s\n", name,
			vote->clock == HOT_CLOCK_RAW ? "waited" : "touched on",
			vote->pairs ? ", and the runs agree about as much by either" : "");
		break;
	case MERGE_TIED:
		fprintf(file, "Clock   raw: nothing speaks for either\n");
		break;
	}
	if (vote->pairs)
		fprintf(file,
			"        agreement of the runs (1: the same order) %.6f by raw times, %.6f by corrected ones\n",
			vote->agreement_raw, vote->agreement_corrected);
}

static void print_text(FILE *file, const struct cli_args *args, const struct merge_result *result, const char *out,
		       enum hotlist_format format)
{
	const char *old = cli_value(args, "refresh");
	int count = args->argument_count;

	fprintf(file, "List    %s (%s)\n", strcmp(out, "-") != 0 ? out : "standard output", hotlist_format_name(format));
	if (old)
		fprintf(file, "Runs    %u: %s and %d new list%s; %s\n", result->runs, old, count, count == 1 ? "" : "s",
			result->complete ? "pages that the last one did not touch have sunk"
					 : "pages that the last one lacks have not sunk, as it saw demand faults alone");
	else
		fprintf(file, "Runs    %u, in %d list%s\n", result->runs, count, count == 1 ? "" : "s");
	print_clock(file, &result->vote);
	fprintf(file, "Pages   %zu: %zu in their places", result->list->count, result->placed);
	if (result->tail)
		fprintf(file, ", %zu at the end, as few runs touched them", result->tail);
	if (result->dropped)
		fprintf(file, "; %zu left out", result->dropped);
	fputc('\n', file);
}

/* NULL: a path is not UTF-8. */
static json_t *pack(const struct cli_args *args, const struct merge_result *result, const char *out,
		    enum hotlist_format format)
{
	const struct merge_vote *vote = &result->vote;
	json_t *value = json_pack("{s:s,s:s,s:i,s:I,s:s,s:s,s:I,s:I,s:I,s:I,s:I}", "out", out, "format",
				  hotlist_format_name(format), "inputs", args->argument_count, "runs",
				  (json_int_t)result->runs, "clock", hot_clock_word(vote->clock) ?: "unknown", "reason",
				  reason_words[vote->reason], "pairs", (json_int_t)vote->pairs, "pages",
				  (json_int_t)result->list->count, "placed", (json_int_t)result->placed, "tail",
				  (json_int_t)result->tail, "dropped", (json_int_t)result->dropped);

	if (!value)
		return NULL;
	/* json_null() and the like: what isn't known. */
	json_object_set_new(value, "agreement_raw", vote->pairs ? json_real(vote->agreement_raw) : json_null());
	json_object_set_new(value, "agreement_corrected",
			    vote->pairs ? json_real(vote->agreement_corrected) : json_null());
	json_object_set_new(value, "independence",
			    vote->independence >= 0 ? json_real(vote->independence) : json_null());
	if (cli_value(args, "refresh"))
		json_object_set_new(value, "complete", json_boolean(result->complete));
	return value;
}

static int report(const struct cli_args *args, const struct merge_result *result, const char *out,
		  enum hotlist_format format)
{
	if (args->json) {
		json_t *value = pack(args, result, out, format);
		struct error err;

		if (!value) {
			error_set(&err, -EILSEQ, "bad_path", "%s is not UTF-8, which JSON needs: leave out --json", out);
			return cli_fail(true, &err);
		}
		int exit_code = cli_print_json(value);
		json_decref(value);
		return exit_code;
	}
	/* Behind a list on standard output nothing else may stand. */
	print_text(strcmp(out, "-") != 0 ? stdout : stderr, args, result, out, format);
	return cli_finish_output();
}

static int merge(const struct cli_args *args, enum hotlist_format format, enum merge_saw saw)
{
	_cleanup_(free_inputs) struct inputs inputs = { .count = 0 };
	const char *out = cli_value(args, "output");
	struct merge_result result;
	struct error err;

	if (load_all(args, &inputs, &err) < 0)
		return cli_fail(args->json, &err);
	if (!args->json && cli_value(args, "refresh") && inputs.lists[0]->count == 0)
		cli_error("note: %s is empty, so the runs make a new list", inputs.names[0]);

	int r = cli_value(args, "refresh") ? refresh(&inputs, saw, &result, &err)
					   : merge_lists((const struct hotlist *const *)inputs.lists, inputs.names,
							 inputs.count, &result, &err);
	if (r < 0)
		return cli_fail(args->json, &err);
	if (format == HOTLIST_HPL1 && !args->json)
		cli_error("note: hpl1 keeps the set of pages alone, no order, times or runs");
	r = save(result.list, format, out, &err);
	int exit_code = r < 0 ? cli_fail(args->json, &err) : report(args, &result, out, format);
	hotlist_free(result.list);
	return exit_code;
}

int hotlist_cli_merge(const struct cli_args *args)
{
	const char *format_name = cli_value(args, "format"), *saw_name = cli_value(args, "saw");
	enum hotlist_format format = HOTLIST_HPL2;
	enum merge_saw saw = MERGE_SAW_AUTO;
	struct error err;

	if (format_name && hotlist_format_parse(format_name, &format, &err) < 0)
		return cli_usage_error(args, "%s", err.message);
	if (saw_name && !cli_value(args, "refresh"))
		return cli_usage_error(args, "--saw is about the runs of --refresh, which isn't there");
	if (saw_name)
		saw = !strcmp(saw_name, "all")	    ? MERGE_SAW_ALL
		      : !strcmp(saw_name, "demand") ? MERGE_SAW_DEMAND
						    : MERGE_SAW_AUTO;
	if (args->json && !strcmp(cli_value(args, "output"), "-"))
		return cli_usage_error(args, "--json and the list can't both go to standard output: name a file");
	return merge(args, format, saw);
}

const struct cli_option hotlist_merge_options[] = {
	{ .name = "output",
	  .letter = 'o',
	  .value = "OUT",
	  .help = "the merged list; '-' is standard output",
	  .complete = "@file",
	  .required = true },
	{ .name = "format",
	  .letter = 'f',
	  .value = "FORMAT",
	  .help = "of OUT: hpl2 (default), hpl1, json or csv",
	  .words = "hpl2 hpl1 json csv",
	  .manual = "hpl1 keeps the set of pages alone." },
	{ .name = "refresh",
	  .value = "OLD",
	  .help = "a list in use, which the IN… are to keep fresh: runs of forks that had it prefetched",
	  .complete = "@file",
	  .manual =
		  "The runs are taken one after the other. Each counts for three eighths of the list, so that what is older fades. Pages that runs do not "
		  "touch sink to the end, and leave with the fifth at the latest; what a run touched enters in its place." },
	{ .name = "saw",
	  .value = "WHAT",
	  .help = "with --refresh: what the runs saw: all touches, demand faults alone, or auto (default)",
	  .words = "auto all demand",
	  .manual =
		  "That a run lacks a page says that the page was not touched only if the run saw touches of prefetched pages. 'auto' takes it to have done so in "
		  "each region of which it names one, but for pages around one that was read, which the kernel maps with it; or everywhere, if it names none, but at "
		  "least half of OLD's pages. Under KVM it is 'all'." },
	{ .name = "json", .help = "print JSON, and errors as JSON on stderr" },
	{ 0 },
};
