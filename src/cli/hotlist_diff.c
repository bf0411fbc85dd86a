/* `faultline hotlist diff`: how two lists differ, as sets of pages and in their order. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/hotlist.h"
#include "cli/hotlist_print.h"
#include "cli/options.h"
#include "hotlist/hotlist.h"
#include "hotlist/order.h"

/* As diff(1) and cmp(1) have it. */
enum { DIFF_SAME = 0, DIFF_DIFFERENT = 1, DIFF_TROUBLE = 2 };

struct side {
	const char *path;
	struct hotlist *list;
	uint32_t runs;	  /* 0: the list does not say */
	double mean_seen; /* of them; 0: the list does not say */
};

static void count_seen(struct side *side)
{
	const struct hotlist *list = side->list;
	double sum = 0;

	side->runs = list->origin ? list->origin->runs : 0;
	for (size_t i = 0; list->touches && i < list->count; i++)
		sum += list->touches[i].seen;
	side->mean_seen = list->count ? sum / (double)list->count : 0;
}

static void side_json(char name, const struct side *side)
{
	printf(",\"entries_%c\":%zu", name, side->list->count);
	if (side->runs)
		printf(",\"runs_%c\":%" PRIu32, name, side->runs);
	if (side->mean_seen > 0)
		printf(",\"mean_seen_%c\":%.3f", name, side->mean_seen);
}

static void diff_json(const struct side sides[2], const struct hotlist_comparison *comparison, double correlation,
		      size_t limit)
{
	bool same = !comparison->only_a->count && !comparison->only_b->count;

	fputs("{\"a\":", stdout);
	print_json_string(sides[0].path);
	fputs(",\"b\":", stdout);
	print_json_string(sides[1].path);
	printf(",\"same\":%s", same ? "true" : "false");
	side_json('a', &sides[0]);
	side_json('b', &sides[1]);
	printf(",\"both\":%zu,\"only_a\":%zu,\"only_b\":%zu,\"jaccard\":%.6f", comparison->both,
	       comparison->only_a->count, comparison->only_b->count, hotlist_jaccard(comparison));
	if (comparison->both > 1)
		printf(",\"rank_correlation\":%.6f", correlation);
	else
		fputs(",\"rank_correlation\":null", stdout);
	print_json_pages("pages_only_a", comparison->only_a, limit);
	print_json_pages("pages_only_b", comparison->only_b, limit);
	puts("}");
}

static void print_only(const char *name, const struct hotlist *only, size_t limit)
{
	if (!only->count || !limit)
		return;
	printf("\nOnly in %s:\n", name);
	print_pages(only, limit);
}

static const char *plural(uint64_t n)
{
	return n == 1 ? "" : "s";
}

static void print_seen(const char *name, const struct side *side)
{
	if (side->mean_seen <= 0)
		return;
	printf("Seen %s   a page was touched in %.2f", name, side->mean_seen);
	if (side->runs)
		printf(" of %" PRIu32, side->runs);
	puts(side->runs == 1 ? " run, in the mean" : " runs, in the mean");
}

static void diff_text(const struct side sides[2], const struct hotlist_comparison *comparison, double correlation,
		      size_t limit)
{
	printf("A        %s\nB        %s\n", sides[0].path, sides[1].path);
	printf("Only A   %zu page%s\n", comparison->only_a->count, plural(comparison->only_a->count));
	printf("Only B   %zu page%s\n", comparison->only_b->count, plural(comparison->only_b->count));
	printf("Both     %zu page%s\n", comparison->both, plural(comparison->both));
	printf("Jaccard  %.4f\n", hotlist_jaccard(comparison));
	if (comparison->both > 1)
		printf("Order    %.4f rank correlation of the pages in both (1 the same, 0 unrelated, -1 reversed)\n",
		       correlation);
	print_seen("A", &sides[0]);
	print_seen("B", &sides[1]);
	print_only("A", comparison->only_a, limit);
	print_only("B", comparison->only_b, limit);
}

static int trouble(const struct cli_args *args, const struct error *err)
{
	cli_fail(args->json, err);
	return DIFF_TROUBLE;
}

static int diff(const struct cli_args *args, struct side sides[2], size_t limit)
{
	struct hotlist_comparison comparison;
	struct error err;
	size_t common;

	for (int i = 0; i < 2; i++) {
		if (hotlist_cli_load(args, sides[i].path, &sides[i].list, &err) < 0)
			return trouble(args, &err);
		count_seen(&sides[i]);
	}
	if (hotlist_compare(sides[0].list, sides[1].list, &comparison) < 0) {
		error_set(&err, -ENOMEM, "no_memory", "out of memory: the lists have %zu and %zu pages",
			  sides[0].list->count, sides[1].list->count);
		return trouble(args, &err);
	}
	double correlation = order_rank_correlation(sides[0].list, sides[1].list, &common);
	if (args->json)
		diff_json(sides, &comparison, correlation, limit);
	else
		diff_text(sides, &comparison, correlation, limit);
	bool same = !comparison.only_a->count && !comparison.only_b->count;
	hotlist_comparison_clear(&comparison);
	if (cli_finish_output() != EXIT_OK)
		return DIFF_TROUBLE;
	return same ? DIFF_SAME : DIFF_DIFFERENT;
}

int hotlist_cli_diff(const struct cli_args *args)
{
	struct side sides[2] = { { .path = args->arguments[0] }, { .path = args->arguments[1] } };
	size_t limit;

	if (print_parse_limit(args, args->json ? SIZE_MAX : SHOWN_PAGES, &limit) != EXIT_OK)
		return DIFF_TROUBLE;
	if (!strcmp(sides[0].path, "-") && !strcmp(sides[1].path, "-"))
		return cli_usage_error(args, "only one of the lists can come from standard input");
	int exit_code = diff(args, sides, limit);
	hotlist_free(sides[0].list);
	hotlist_free(sides[1].list);
	return exit_code;
}
