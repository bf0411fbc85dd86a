/* `faultline hotlist`: looks at lists and turns them into other formats. Needs no server but to verify against a template. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/hotlist.h"
#include "cli/options.h"
#include "hotlist/hotlist.h"

#define SHOWN_PAGES 20 /* a screenful, where nobody asked for another number */

/* As diff(1) and cmp(1) have it. */
enum { DIFF_SAME = 0, DIFF_DIFFERENT = 1, DIFF_TROUBLE = 2 };

/* ---- what the actions share ---- */

static bool is_pipe(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode);
}

int hotlist_cli_load(const struct cli_args *args, const char *path, struct hotlist **ret, struct error *err)
{
	if (!strcmp(path, "-"))
		return hotlist_load_fd(STDIN_FILENO, "standard input", ret, err);
	if (is_pipe(path)) {
		/* <(command) of a shell. */
		_cleanup_close_ int fd = open(path, O_RDONLY | O_NOCTTY | O_CLOEXEC);
		if (fd < 0)
			return error_set(err, -errno, "bad_hot_list", "cannot read the hot list %s: %s", path,
					 strerror(errno));
		return hotlist_load_fd(fd, path, ret, err);
	}

	int r = hotlist_load(path, ret, err);
	/* As the server sees it; but here it may be a slip of the keyboard. */
	if (r == 0 && !args->json && access(path, F_OK) < 0)
		cli_error("note: %s does not exist, which counts as an empty list", path);
	return r;
}

/* --limit: how many pages to print, SIZE_MAX for all. Returns EXIT_OK or EXIT_USAGE. */
static int parse_limit(const struct cli_args *args, size_t otherwise, size_t *ret)
{
	const char *text = cli_value(args, "limit");
	char *end;

	if (!text) {
		*ret = otherwise;
		return EXIT_OK;
	}
	if (!strcmp(text, "all")) {
		*ret = SIZE_MAX;
		return EXIT_OK;
	}
	errno = 0;
	unsigned long long n = strtoull(text, &end, 10);
	if (errno || *text < '0' || *text > '9' || *end)
		return cli_usage_error(args, "--limit takes a number of pages, or 'all', not '%s'", text);
	*ret = (size_t)n;
	return EXIT_OK;
}

static size_t smaller(size_t a, size_t b)
{
	return a < b ? a : b;
}

static const char *plural(uint64_t n)
{
	return n == 1 ? "" : "s";
}

/* TEXT as a JSON string; a file's name that is not UTF-8 becomes null. */
static void print_json_string(const char *text)
{
	json_t *value = json_string(text);

	if (value)
		json_dumpf(value, stdout, JSON_ENCODE_ANY);
	else
		fputs("null", stdout);
	json_decref(value);
}

/* Written out here and not through jansson, which holds no offsets over 2^63 and takes 440 bytes a page. */
static void print_json_pages(const char *key, const struct hotlist *list, size_t limit)
{
	printf(",\"%s\":[", key);
	for (size_t i = 0; i < smaller(list->count, limit); i++)
		printf("%s{\"region\":%" PRIu64 ",\"offset\":%" PRIu64 "}", i ? "," : "", list->pages[i].region,
		       list->pages[i].offset);
	putchar(']');
}

static void print_rest(size_t count, size_t limit)
{
	if (count > limit)
		printf("… and %zu more; '--limit all' prints them all\n", count - limit);
}

/* ---- show ---- */

static double mean_run(const struct hotlist_summary *summary)
{
	return summary->runs ? (double)summary->pages / (double)summary->runs : 0;
}

static void show_json(const char *path, const struct hotlist *list, const struct hotlist_summary *summary,
		      uint64_t page_size, size_t limit)
{
	fputs("{\"file\":", stdout);
	print_json_string(path);
	printf(",\"format\":\"%s\",\"count\":%zu,\"duplicates\":%zu,\"sorted\":%s", hotlist_format_name(list->format),
	       summary->pages, summary->duplicates, summary->sorted ? "true" : "false");
	printf(",\"page_size\":%" PRIu64 ",\"bytes\":%" PRIu64, page_size, summary->pages * page_size);
	printf(",\"runs\":%zu,\"mean_run\":%.3f,\"longest_run\":%zu,\"regions\":[", summary->runs, mean_run(summary),
	       summary->longest_run);
	for (size_t i = 0; i < summary->region_count; i++) {
		const struct hotlist_region_summary *region = &summary->regions[i];
		printf("%s{\"region\":%" PRIu64 ",\"pages\":%zu,\"runs\":%zu,\"lowest\":%" PRIu64
		       ",\"highest\":%" PRIu64 "}",
		       i ? "," : "", region->region, region->pages, region->runs, region->lowest, region->highest);
	}
	putchar(']');
	print_json_pages("pages", list, limit);
	puts("}");
}

static void show_regions(const struct hotlist_summary *summary, uint64_t page_size)
{
	static const char *const headings[] = { ">REGION", ">PAGES", ">SIZE", ">RUNS", ">FIRST PAGE", ">LAST PAGE" };
	struct cli_table *table = cli_table_new(headings, 6);

	if (!table)
		return;
	for (size_t i = 0; i < summary->region_count; i++) {
		const struct hotlist_region_summary *region = &summary->regions[i];
		char size[32];

		cli_format_size(region->pages * page_size, size, sizeof size);
		cli_table_cell(table, "%" PRIu64, region->region);
		cli_table_cell(table, "%zu", region->pages);
		cli_table_cell(table, "%s", size);
		cli_table_cell(table, "%zu", region->runs);
		cli_table_cell(table, "%" PRIu64, region->lowest);
		cli_table_cell(table, "%" PRIu64, region->highest);
	}
	putchar('\n');
	cli_table_print(table);
}

static void show_text(const char *path, const struct hotlist *list, const struct hotlist_summary *summary,
		      uint64_t page_size, size_t limit)
{
	char bytes[32], each[32];

	cli_format_size(summary->pages * page_size, bytes, sizeof bytes);
	cli_format_size(page_size, each, sizeof each);
	printf("List    %s\n", path);
	printf("Format  %s\n", hotlist_format_name(list->format));
	printf("Pages   %zu, %s at %s each\n", summary->pages, bytes, each);
	if (summary->duplicates)
		printf("        %zu more entr%s of pages listed before\n", summary->duplicates,
		       summary->duplicates == 1 ? "y" : "ies");
	if (!list->count)
		return;
	printf("Runs    %zu of neighbouring pages: mean %.1f, longest %zu\n", summary->runs, mean_run(summary),
	       summary->longest_run);
	printf("Order   %s\n", summary->sorted ? "by region and offset" : "its own, not by offset");
	show_regions(summary, page_size);

	if (!limit)
		return;
	printf("\n%8s  %16s\n", "REGION", "OFFSET");
	for (size_t i = 0; i < smaller(list->count, limit); i++)
		printf("%8" PRIu64 "  %16" PRIu64 "\n", list->pages[i].region, list->pages[i].offset);
	print_rest(list->count, limit);
}

static int run_show(const struct cli_args *args)
{
	_cleanup_hotlist_ struct hotlist *list = NULL;
	struct hotlist_summary summary;
	uint64_t page_size = HOTLIST_PAGE_SIZE;
	const char *path = args->arguments[0], *text = cli_value(args, "page-size");
	struct error err;
	size_t limit;

	int exit_code = parse_limit(args, args->json ? SIZE_MAX : SHOWN_PAGES, &limit);
	if (exit_code != EXIT_OK)
		return exit_code;
	if (text && (!hotlist_cli_parse_size(text, &page_size) || !hotlist_cli_page_size_ok(page_size)))
		return cli_usage_error(args, "--page-size takes a power of two of 4096 bytes or more, not '%s'", text);

	if (hotlist_cli_load(args, path, &list, &err) < 0)
		return cli_fail(args->json, &err);
	if (hotlist_summarize(list, page_size, &summary) < 0) {
		error_set(&err, -ENOMEM, "no_memory", "out of memory: %s has %zu pages", path, list->count);
		return cli_fail(args->json, &err);
	}
	if (args->json)
		show_json(path, list, &summary, page_size, limit);
	else
		show_text(path, list, &summary, page_size, limit);
	hotlist_summary_clear(&summary);
	return cli_finish_output();
}

/* ---- convert ---- */

static int write_stdout(const struct hotlist *list, enum hotlist_format format, struct error *err)
{
	_cleanup_free_ void *data = NULL;
	size_t size;

	if (format == HOTLIST_HPL1 && isatty(STDOUT_FILENO))
		return error_set(err, -EINVAL, "usage",
				 "hpl1 is binary and standard output is a terminal: name a file, or use --to csv");
	int r = hotlist_encode(list, format, &data, &size, err);
	if (r < 0)
		return r;
	if (cli_print_bytes(data, size) != EXIT_OK)
		return error_set(err, -EIO, "io_error", "the list was not written whole");
	return 0;
}

static int run_convert(const struct cli_args *args)
{
	_cleanup_hotlist_ struct hotlist *list = NULL;
	const char *in = args->arguments[0], *out = args->arguments[1], *to = cli_value(args, "to");
	enum hotlist_format format;
	struct error err;

	if (hotlist_format_parse(to, &format, &err) < 0)
		return cli_usage_error(args, "%s", err.message);

	if (hotlist_cli_load(args, in, &list, &err) < 0)
		return cli_fail(args->json, &err);
	/* Losing the order is what HPL1 is like, but who converts a list of touches may not expect it. */
	if (format == HOTLIST_HPL1 && !hotlist_is_sorted(list))
		cli_error("note: hpl1 keeps the set of pages, not the order of %s", in);

	bool to_stdout = !strcmp(out, "-");
	if ((to_stdout ? write_stdout(list, format, &err) : hotlist_save(list, format, out, &err)) < 0)
		return cli_fail(args->json, &err);
	return EXIT_OK;
}

/* ---- diff ---- */

static void diff_json(const char *const paths[2], const struct hotlist *const lists[2],
		      const struct hotlist_comparison *comparison, size_t limit)
{
	bool same = !comparison->only_a->count && !comparison->only_b->count;

	fputs("{\"a\":", stdout);
	print_json_string(paths[0]);
	fputs(",\"b\":", stdout);
	print_json_string(paths[1]);
	printf(",\"same\":%s,\"entries_a\":%zu,\"entries_b\":%zu,\"both\":%zu,\"only_a\":%zu,\"only_b\":%zu,\"jaccard\":%.6f",
	       same ? "true" : "false", lists[0]->count, lists[1]->count, comparison->both, comparison->only_a->count,
	       comparison->only_b->count, hotlist_jaccard(comparison));
	print_json_pages("pages_only_a", comparison->only_a, limit);
	print_json_pages("pages_only_b", comparison->only_b, limit);
	puts("}");
}

static void diff_side(const char *name, const struct hotlist *only, size_t limit)
{
	if (!only->count || !limit)
		return;
	printf("\nOnly in %s:\n%8s  %16s\n", name, "REGION", "OFFSET");
	for (size_t i = 0; i < smaller(only->count, limit); i++)
		printf("%8" PRIu64 "  %16" PRIu64 "\n", only->pages[i].region, only->pages[i].offset);
	print_rest(only->count, limit);
}

static void diff_text(const char *const paths[2], const struct hotlist_comparison *comparison, size_t limit)
{
	printf("A        %s\nB        %s\n", paths[0], paths[1]);
	printf("Only A   %zu page%s\n", comparison->only_a->count, plural(comparison->only_a->count));
	printf("Only B   %zu page%s\n", comparison->only_b->count, plural(comparison->only_b->count));
	printf("Both     %zu page%s\n", comparison->both, plural(comparison->both));
	printf("Jaccard  %.4f\n", hotlist_jaccard(comparison));
	diff_side("A", comparison->only_a, limit);
	diff_side("B", comparison->only_b, limit);
}

static int diff_trouble(const struct cli_args *args, const struct error *err)
{
	cli_fail(args->json, err);
	return DIFF_TROUBLE;
}

static int run_diff(const struct cli_args *args)
{
	_cleanup_hotlist_ struct hotlist *a = NULL, *b = NULL;
	const char *const paths[2] = { args->arguments[0], args->arguments[1] };
	struct hotlist_comparison comparison;
	struct error err;
	size_t limit;

	if (parse_limit(args, args->json ? SIZE_MAX : SHOWN_PAGES, &limit) != EXIT_OK)
		return DIFF_TROUBLE;
	if (!strcmp(paths[0], "-") && !strcmp(paths[1], "-"))
		return cli_usage_error(args, "only one of the lists can come from standard input");
	if (hotlist_cli_load(args, paths[0], &a, &err) < 0 || hotlist_cli_load(args, paths[1], &b, &err) < 0)
		return diff_trouble(args, &err);
	if (hotlist_compare(a, b, &comparison) < 0) {
		error_set(&err, -ENOMEM, "no_memory", "out of memory: the lists have %zu and %zu pages", a->count,
			  b->count);
		return diff_trouble(args, &err);
	}

	const struct hotlist *const lists[2] = { a, b };
	if (args->json)
		diff_json(paths, lists, &comparison, limit);
	else
		diff_text(paths, &comparison, limit);
	bool same = !comparison.only_a->count && !comparison.only_b->count;
	hotlist_comparison_clear(&comparison);
	if (cli_finish_output() != EXIT_OK)
		return DIFF_TROUBLE;
	return same ? DIFF_SAME : DIFF_DIFFERENT;
}

/* ---- the table ---- */

#define LIMIT_OPTION                                                                                              \
	{                                                                                                         \
		.name = "limit", .value = "N", .help = "pages to print, or 'all' (default: 20; with --json all)", \
		.complete = "all"                                                                                 \
	}
#define JSON_OPTION                                                                \
	{                                                                          \
		.name = "json", .help = "print JSON, and errors as JSON on stderr" \
	}

static const struct cli_option show_options[] = {
	LIMIT_OPTION,
	{ .name = "page-size",
	  .value = "SIZE",
	  .help = "size of a page, for sums and neighbours (default: 4096; '2M' on hugetlbfs)",
	  .complete = "4096 2M" },
	JSON_OPTION,
	{ 0 },
};

static const struct cli_option convert_options[] = {
	{ .name = "to",
	  .letter = 't',
	  .value = "FORMAT",
	  .help = "hpl1, json or csv",
	  .words = "hpl1 json csv",
	  .required = true },
	{ 0 },
};

static const struct cli_option diff_options[] = { LIMIT_OPTION, JSON_OPTION, { 0 } };

static const struct cli_option verify_options[] = {
	{ .name = "template",
	  .value = "NAME|IMAGE",
	  .help = "a template of the server, or the path of a memory image",
	  .complete = "@template @file",
	  .required = true },
	{ .name = "regions",
	  .value = "SPEC",
	  .help = "the VMM's memory regions, as above (default: one that covers the whole image)" },
	{ 0 },
};

static const struct cli_action actions[] = {
	{
		.name = "show",
		.arguments = "FILE",
		.summary = "what is in a list: size, regions, runs of neighbours, pages",
		.options = show_options,
		.run = run_show,
	},
	{
		.name = "convert",
		.arguments = "IN OUT",
		.summary = "write a list in another format",
		.details = "OUT is replaced whole or not at all; '-' is standard output. hpl1 is sorted by region and offset and has\n"
			   "no duplicates; json and csv keep the list's order.",
		.options = convert_options,
		.run = run_convert,
	},
	{
		.name = "diff",
		.arguments = "A B",
		.summary = "which pages only one of two lists has",
		.details = "Lists are compared as sets: order, duplicates and format make no difference. Jaccard is pages in both over\n"
			   "pages in either.\n\n"
			   "Exit code, as of diff(1): 0 the same pages, 1 different, 2 trouble.",
		.options = diff_options,
		.run = run_diff,
	},
	{
		.name = "verify",
		.arguments = "FILE",
		.summary = "whether every page of a list lies in a template or image",
		.details =
			"What holds a slash or names a file here is an image, anything else a template that the server is asked\n"
			"for.\n\n"
			"Without --regions the list must be of region 0 only, which is the whole image. SPEC names several:\n"
			"SIZE[:OFFSET[:PAGE_SIZE]],… with OFFSET in the image (default: the end of the region before) and\n"
			"PAGE_SIZE (default: 4096). Numbers may end in K, M, G or T. Example: --regions 3G,1G\n\n"
			"Exit code: 0 it fits, 1 it doesn't or could not be read, 3 no server, 4 no such template.",
		.options = verify_options,
		.run = hotlist_cli_verify,
		.client = true,
	},
	{ 0 },
};

const struct cli_command hotlist_command = {
	.name = "hotlist",
	.summary = "Looks at hot lists, and converts, compares and verifies them.",
	.details =
		"A list is a file in any format (hpl1, json, csv; it is seen from the content), or '-' for standard input.\n"
		"A file that does not exist is an empty list.",
	.actions = actions,
	.brief = "files of hot pages",
	.manual = "A hot list names the pages that forks of a template touch, so that the next fork can have them before it asks. "
		  "Only verify with the name of a template asks a server.",
	.examples = "    faultline hotlist show base.hpl1 --limit 5\n\n"
		    "    faultline hotlist convert base.hpl1 - --to csv | head\n\n"
		    "    faultline hotlist verify base.hpl1 --template /images/base.mem --regions 3G,1G",
	.exit_status = "The action diff has the statuses of diff(1): 0 the same pages, 1 different ones, 2 trouble.",
	.see_also = "diff(1)",
};
