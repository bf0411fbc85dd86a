/* `faultline hotlist show`: what is in a list, and where it comes from. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/hotlist.h"
#include "cli/hotlist_print.h"
#include "cli/options.h"
#include "hotlist/hotlist.h"
#include "hotlist/json.h"
#include "hotlist/words.h"

static double mean_run(const struct hotlist_summary *summary)
{
	return summary->runs ? (double)summary->pages / (double)summary->runs : 0;
}

static void show_json(const char *path, const struct hotlist *list, const struct hotlist_summary *summary,
		      uint64_t page_size, size_t limit)
{
	fputs("{\"file\":", stdout);
	print_json_string(path);
	printf(",\"format\":\"%s\",\"count\":%zu,\"duplicates\":%zu,\"sorted\":%s,\"touches\":%s",
	       hotlist_format_name(list->format), summary->pages, summary->duplicates,
	       summary->sorted ? "true" : "false", hotlist_has_touches(list) ? "true" : "false");
	printf(",\"page_size\":%" PRIu64 ",\"bytes\":%" PRIu64, page_size, summary->pages * page_size);
	printf(",\"runs\":%zu,\"mean_run\":%.3f,\"longest_run\":%zu,\"regions\":[", summary->runs, mean_run(summary),
	       summary->longest_run);
	for (size_t i = 0; i < summary->region_count; i++) {
		const struct hotlist_region_summary *region = &summary->regions[i];
		printf("%s{\"region\":%" PRIu64 ",\"pages\":%zu,\"runs\":%zu,\"lowest\":%" PRIu64
		       ",\"highest\":%" PRIu64 "}",
		       i ? "," : "", region->region, region->pages, region->runs, region->lowest, region->highest);
	}
	fputs("],\"origin\":", stdout);
	if (list->origin)
		json_origin_write(stdout, list->origin);
	else
		fputs("null", stdout);
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

static const char *window_end_text(uint32_t end)
{
	static const char *const texts[] = {
		[HOT_WINDOW_UNKNOWN] = "",
		[HOT_WINDOW_READY] = ", until the guest was ready",
		[HOT_WINDOW_SETTLED] = ", until faults became rare",
		[HOT_WINDOW_TIMEOUT] = ", until its time was over",
		[HOT_WINDOW_GONE] = ", until the VMM ended",
	};

	return end < sizeof texts / sizeof *texts ? texts[end] : "";
}

/* Rank correlations are kept in millionths, plus a million; 0 is not known. */
static double correlation(uint32_t agreement)
{
	return ((double)agreement - HOT_AGREEMENT_MAX / 2.0) / 1e6;
}

/* A single run agrees with nobody: what stands in that place is what it shows by itself. */
static void show_evidence(const struct hotlist_origin *origin)
{
	if (!origin->agreement_raw || !origin->agreement_corrected)
		return;
	double raw = correlation(origin->agreement_raw), corrected = correlation(origin->agreement_corrected);

	if (origin->runs == 1)
		printf("; while one vCPU stood still, the others touched on at %.2f of their pace", corrected);
	else
		printf("; the runs agree to %.4f by raw times, to %.4f by corrected ones", raw, corrected);
}

static void show_recording(const struct hotlist_origin *origin)
{
	const char *clock = hot_clock_word(origin->clock);

	printf("Made    of %" PRIu32 " run%s", origin->runs, origin->runs == 1 ? "" : "s");
	if (origin->tier[0])
		printf(", observed by %s", origin->tier);
	if (origin->events_lost)
		printf(", with %" PRIu64 " event%s lost: pages may be missing", origin->events_lost,
		       origin->events_lost == 1 ? "" : "s");
	putchar('\n');
	if (origin->window_ns)
		printf("Window  %.3f s%s\n", (double)origin->window_ns / 1e9, window_end_text(origin->window_end));
	if (clock) {
		printf("Clock   %s", clock);
		show_evidence(origin);
		putchar('\n');
	}
}

static void show_image(const struct hotlist_origin *origin)
{
	char size[32];

	if (origin->template_size) {
		cli_format_size(origin->template_size, size, sizeof size);
		printf("Image   %s", size);
		if (hotlist_origin_is_bound(origin)) {
			fputs(", identity ", stdout);
			for (size_t i = 0; i < 8; i++)
				printf("%02x", origin->template_digest[i]);
			fputs("…", stdout);
		}
		putchar('\n');
	}
	if (!origin->region_count)
		return;
	printf("Memory  %zu region%s:", origin->region_count, origin->region_count == 1 ? "" : "s");
	for (size_t i = 0; i < origin->region_count; i++) {
		const struct hotlist_region_size *region = &origin->regions[i];
		cli_format_size(region->size, size, sizeof size);
		printf("%s %s at offset %" PRIu64, i ? "," : "", size, region->offset);
		if (region->page_size && region->page_size != HOTLIST_PAGE_SIZE) {
			cli_format_size(region->page_size, size, sizeof size);
			printf(" in pages of %s", size);
		}
	}
	putchar('\n');
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
	if (list->origin) {
		show_recording(list->origin);
		show_image(list->origin);
	}
	if (!list->count)
		return;
	printf("Runs    %zu of neighbouring pages: mean %.1f, longest %zu\n", summary->runs, mean_run(summary),
	       summary->longest_run);
	printf("Order   %s\n", summary->sorted ? "by region and offset" : "its own, not by offset");
	show_regions(summary, page_size);

	if (!limit)
		return;
	putchar('\n');
	print_pages(list, limit);
}

int hotlist_cli_show(const struct cli_args *args)
{
	_cleanup_hotlist_ struct hotlist *list = NULL;
	struct hotlist_summary summary;
	uint64_t page_size = HOTLIST_PAGE_SIZE;
	const char *path = args->arguments[0], *text = cli_value(args, "page-size");
	struct error err;
	size_t limit;

	int exit_code = print_parse_limit(args, args->json ? SIZE_MAX : SHOWN_PAGES, &limit);
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
