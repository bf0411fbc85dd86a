/*
 * Hot lists, in every format. Bytes that are a list stay that list when it is written and read again, in their own format and in each
 * other; bytes that are none are refused with the place where they go wrong. What is said about a list (its check against regions, its
 * summary, its comparison) holds when it is counted again.
 */
#include <inttypes.h>

#include "fuzz/fuzz.h"
#include "hotlist/hotlist.h"

static const enum hotlist_format formats[] = { HOTLIST_HPL1, HOTLIST_JSON, HOTLIST_CSV };

static int compare_pages(const void *a, const void *b)
{
	const struct hot_page *x = a, *y = b;

	if (x->region != y->region)
		return x->region < y->region ? -1 : 1;
	return (x->offset > y->offset) - (x->offset < y->offset);
}

static void check_same(const struct hotlist *a, const struct hotlist *b, const char *how)
{
	PROMISE(a->count == b->count, "%s: %zu pages became %zu", how, a->count, b->count);
	for (size_t i = 0; i < a->count; i++)
		PROMISE(compare_pages(&a->pages[i], &b->pages[i]) == 0, "%s: page %zu differs", how, i);
}

static void check_round_trip(const struct hotlist *list, const struct hotlist *sorted, enum hotlist_format format)
{
	_cleanup_hotlist_ struct hotlist *again = NULL;
	_cleanup_free_ void *data = NULL, *data_again = NULL;
	const char *name = hotlist_format_name(format);
	struct error err = { .message = "" };
	size_t size, size_again;

	PROMISE(hotlist_encode(list, format, &data, &size, &err) == 0, "%s: %s", name, err.message);
	PROMISE(hotlist_decode(data, size, &again, &err) == 0, "%s: %s", name, err.message);
	PROMISE(again->format == format, "%s was taken for %s", name, hotlist_format_name(again->format));
	check_same(format == HOTLIST_HPL1 ? sorted : list, again, name);

	PROMISE(hotlist_encode(again, format, &data_again, &size_again, &err) == 0, "%s: %s", name, err.message);
	PROMISE(size == size_again && !memcmp(data, data_again, size), "%s is not written the same way twice", name);
}

/* DATA, in its own format, has at least this many bytes a page. */
static size_t bytes_of_page(enum hotlist_format format)
{
	return format == HOTLIST_HPL1 ? 2 : format == HOTLIST_CSV ? 3 : strlen("{\"region\":0,\"offset\":0}");
}

static void check_summary(const struct hotlist *list, const struct hotlist *sorted, uint64_t page_size)
{
	struct hotlist_summary summary;
	size_t pages = 0, runs = 0;

	PROMISE(hotlist_summarize(list, page_size, &summary) == 0, "no memory");
	PROMISE(summary.pages == sorted->count, "%zu pages of %zu", summary.pages, sorted->count);
	PROMISE(summary.pages + summary.duplicates == list->count, "%zu duplicates", summary.duplicates);
	PROMISE(summary.sorted == hotlist_is_sorted(list), "sorted: %d", summary.sorted);
	PROMISE(summary.longest_run <= summary.pages && summary.runs <= summary.pages, "%zu runs", summary.runs);
	PROMISE(!summary.pages == !summary.longest_run, "longest run %zu", summary.longest_run);
	for (size_t i = 0; i < summary.region_count; i++) {
		const struct hotlist_region_summary *region = &summary.regions[i];

		PROMISE(i == 0 || region->region > summary.regions[i - 1].region, "region %" PRIu64, region->region);
		PROMISE(region->lowest == sorted->pages[pages].offset, "region %" PRIu64, region->region);
		pages += region->pages;
		runs += region->runs;
		PROMISE(pages <= sorted->count && region->highest == sorted->pages[pages - 1].offset, "region %" PRIu64,
			region->region);
	}
	PROMISE(pages == summary.pages && runs == summary.runs, "%zu pages, %zu runs", pages, runs);
	hotlist_summary_clear(&summary);
}

/* The list against its own second half. */
static void check_comparison(const struct hotlist *list, const struct hotlist *sorted)
{
	_cleanup_hotlist_ struct hotlist *half = hotlist_new();
	struct hotlist_comparison comparison;

	PROMISE(half, "no memory");
	for (size_t i = sorted->count / 2; i < sorted->count; i++)
		PROMISE(hotlist_add(half, sorted->pages[i].region, sorted->pages[i].offset) == 0, "no memory");
	PROMISE(hotlist_compare(list, half, &comparison) == 0, "no memory");
	PROMISE(comparison.only_a->count == sorted->count / 2 && comparison.only_b->count == 0,
		"only A %zu, only B %zu", comparison.only_a->count, comparison.only_b->count);
	PROMISE(comparison.both == half->count, "both %zu", comparison.both);
	hotlist_comparison_clear(&comparison);
}

static void check_against_regions(const struct hotlist *list)
{
	const struct hotlist_region regions[] = { { 1 << 20, 4096 }, { 4 << 20, 2 << 20 }, { UINT64_MAX, 4096 } };
	const size_t count = sizeof regions / sizeof *regions;
	struct error err = { .code = "" };
	int r = hotlist_check(list, regions, count, &err);
	bool good = true;

	for (size_t i = 0; i < list->count && good; i++) {
		const struct hot_page *page = &list->pages[i];
		good = page->region < count && page->offset < regions[page->region].size &&
		       page->offset % HOTLIST_PAGE_SIZE == 0;
	}
	PROMISE((r == 0) == good, "check says %d: %s", r, err.message);
	PROMISE(good || !strcmp(err.code, "bad_region") || !strcmp(err.code, "bad_offset"), "%s", err.code);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_hotlist_ struct hotlist *list = NULL, *sorted = NULL;
	_cleanup_free_ void *copy = fuzz_exact_copy(data, size);
	struct error err = { .code = "" };
	int r = hotlist_decode(copy, size, &list, &err);

	if (r < 0) {
		PROMISE(!list && !strcmp(err.code, "bad_hot_list"), "%s: %s", err.code, err.message);
		PROMISE(strstr(err.message, "byte ") || strstr(err.message, "line "), "no place in: %s", err.message);
		return 0;
	}
	PROMISE(list->count <= size / bytes_of_page(list->format), "%zu pages in %zu bytes", list->count, size);
	PROMISE(list->capacity * sizeof *list->pages <= 1024 + 8 * size, "room for %zu pages for %zu bytes",
		list->capacity, size);

	sorted = hotlist_copy(list);
	PROMISE(sorted, "no memory");
	hotlist_sort(sorted);
	PROMISE(hotlist_is_sorted(sorted), "sorting leaves disorder");
	for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
		check_round_trip(list, sorted, formats[i]);
	check_summary(list, sorted, size & 1 ? 4096 : 2 << 20);
	check_comparison(list, sorted);
	check_against_regions(list);
	return 0;
}
