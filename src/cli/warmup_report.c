/* What `faultline warmup` says when it is done: a line a run, and how far the runs agree. */
#include <stdio.h>

#include "cli/cli.h"
#include "cli/warmup.h"
#include "hotlist/words.h"

static const char *const end_names[] = {
	[HOT_WINDOW_UNKNOWN] = "unknown", [HOT_WINDOW_READY] = "ready", [HOT_WINDOW_SETTLED] = "settled",
	[HOT_WINDOW_TIMEOUT] = "timeout", [HOT_WINDOW_GONE] = "gone",
};
static const char *const end_words[] = {
	[HOT_WINDOW_UNKNOWN] = "ended",	  [HOT_WINDOW_READY] = "ready",	 [HOT_WINDOW_SETTLED] = "settled",
	[HOT_WINDOW_TIMEOUT] = "cut off", [HOT_WINDOW_GONE] = "VM gone",
};
/* Pages that all runs touched. */
static size_t count_in_all(const struct hotlist *list, unsigned runs)
{
	size_t count = 0;

	for (size_t i = 0; i < list->count; i++)
		count += !list->touches || list->touches[i].seen >= runs;
	return count;
}

/* ---- JSON ---- */

static json_t *encode_agreement(const struct merge_vote *vote, double value)
{
	return vote->pairs ? json_real(value) : json_null();
}

static const char *reason_name(enum merge_reason reason)
{
	static const char *const names[] = {
		[MERGE_ONE_CLOCK] = "one_clock", [MERGE_AGREEMENT] = "agreement", [MERGE_EVIDENCE] = "evidence", [MERGE_TIED] = "tied"
	};

	return names[reason];
}

static json_t *encode_run(const struct warmup_run *run)
{
	const struct hotlist_origin *origin = run->list->origin;

	return json_pack("{s:I,s:s,s:f,s:b,s:o,s:s?,s:o}", "pages", (json_int_t)run->list->count, "window_end",
			 end_names[run->end], "window_ms", run->window_s * 1e3, "cold", run->cold, "left_in_cache",
			 run->cold ? json_real(run->left_permille / 1e3) : json_null(), "tier",
			 origin && origin->tier[0] ? origin->tier : NULL, "events_lost",
			 origin ? json_integer((json_int_t)origin->events_lost) : json_null());
}

static int print_json(const struct warmup_job *job, const struct merge_result *merged)
{
	const struct hotlist *list = merged->list;
	const struct merge_vote *vote = &merged->vote;
	json_t *runs = json_array();

	for (unsigned i = 0; i < job->runs; i++)
		json_array_append_new(runs, encode_run(&job->done[i]));
	json_t *value =
		json_pack("{s:s,s:s,s:s,s:I,s:I,s:I,s:I,s:s,s:s,s:o,s:o,s:o}", "template", job->template, "list",
			  job->list_path, "format", hotlist_format_name(job->format), "pages", (json_int_t)list->count,
			  "pages_in_all_runs", (json_int_t)count_in_all(list, job->runs), "rare_pages",
			  (json_int_t)merged->tail, "dropped_pages", (json_int_t)merged->dropped, "clock",
			  hot_clock_word(vote->clock) ?: "unknown", "clock_reason", reason_name(vote->reason),
			  "agreement_raw", encode_agreement(vote, vote->agreement_raw), "agreement_corrected",
			  encode_agreement(vote, vote->agreement_corrected), "runs", runs);
	if (!value) {
		cli_error("out of memory, or a name that is not UTF-8");
		return EXIT_FAILED;
	}
	int exit_code = cli_print_json(value);
	json_decref(value);
	return exit_code;
}

/* ---- text ---- */

static void print_runs(FILE *out, const struct warmup_job *job)
{
	for (unsigned i = 0; i < job->runs; i++) {
		const struct warmup_run *run = &job->done[i];
		const struct hotlist_origin *origin = run->list->origin;
		char window[32];

		cli_format_ms(run->window_s * 1e3, window, sizeof window);
		fprintf(out, "run %-3u %7zu pages, %s after %s", i + 1, run->list->count, end_words[run->end], window);
		if (origin && origin->tier[0])
			fprintf(out, ", seen by %s", origin->tier);
		if (run->cold && run->left_permille)
			fprintf(out, ", cold but for %.1f %% of the image, which stayed in memory",
				run->left_permille / 10.0);
		else if (job->vary_cache)
			fputs(run->cold ? ", cold" : ", warm", out);
		fputc('\n', out);
		if (origin && origin->events_lost)
			fprintf(out, "          %llu events lost: this run's order has gaps; a larger ring helps\n",
				(unsigned long long)origin->events_lost);
	}
}

static void print_clock(FILE *out, const struct merge_vote *vote)
{
	static const char *const reasons[] = {
		[MERGE_ONE_CLOCK] = "no run knows of another order",
		[MERGE_AGREEMENT] = "the runs agree more by it",
		[MERGE_EVIDENCE] = "what a run itself shows decided",
		[MERGE_TIED] = "nothing speaks for the other one",
	};

	fprintf(out, "  order   by the %s clock: %s\n", hot_clock_word(vote->clock) ?: "unknown", reasons[vote->reason]);
	if (vote->pairs)
		fprintf(out, "  agree   %.4f by the raw clock, %.4f by the corrected one (1: all runs the same order)\n",
			vote->agreement_raw, vote->agreement_corrected);
}

static void print_list(FILE *out, const struct warmup_job *job, const struct merge_result *merged)
{
	const struct hotlist *list = merged->list;
	char size[32];

	cli_format_size(list->count * HOTLIST_PAGE_SIZE, size, sizeof size);
	fprintf(out, "%s\n  pages   %zu, %s; %zu of them in %s\n", job->list_path, list->count, size,
		count_in_all(list, job->runs), job->runs == 1 ? "the one run" : "all runs");
	if (merged->tail || merged->dropped)
		fprintf(out, "  rare    %zu at the list's end, %zu left out\n", merged->tail, merged->dropped);
	print_clock(out, &merged->vote);
	fprintf(out, "  format  %s%s\n", hotlist_format_name(job->format),
		job->format == HOTLIST_HPL1 ? ", which keeps no order" : "");
	if (job->list_path == job->own_list)
		fprintf(out, "  used    by forks of %s from now on\n", job->template);
}

int warmup_report(const struct warmup_job *job, const struct merge_result *merged)
{
	/* The list itself may have gone to stdout. */
	bool list_on_stdout = job->list_path[0] == '-' && !job->list_path[1];
	FILE *out = list_on_stdout ? stderr : stdout;

	if (job->args->json && !list_on_stdout)
		return print_json(job, merged);
	print_runs(out, job);
	print_list(out, job, merged);
	return cli_finish_output();
}
