#include "prefetch/plan.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

int plan_check(const struct hotlist *list, const struct region *regions, size_t count, struct error *err)
{
	_cleanup_free_ struct hotlist_region *sizes = calloc(count, sizeof *sizes);
	if (!sizes)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	for (size_t i = 0; i < count; i++)
		sizes[i] = (struct hotlist_region){ .size = regions[i].size, .page_size = regions[i].page_size };
	int r = hotlist_check_layout(list, sizes, count, err);
	return r < 0 ? r : hotlist_check(list, sizes, count, err);
}

/* Appends a page: to the last run where it follows that in the same region. */
static void append(struct plan *plan, const struct region *region, uint64_t page)
{
	struct plan_run *run = plan->count ? &plan->runs[plan->count - 1] : NULL;

	if (run && run->page >= region->first_page && page == run->page + run->count)
		run->count++;
	else
		plan->runs[plan->count++] = (struct plan_run){ .page = page, .count = 1 };
	plan->pages++;
}

static bool is_huge(const struct region *region)
{
	return region->page_size > HOTLIST_PAGE_SIZE;
}

static uint64_t page_of(const struct region *region, const struct hot_page *hot)
{
	return region->first_page + hot->offset / region->page_size;
}

/* LIST is sorted and has no duplicates. */
static void plan_small(struct plan *plan, const struct hotlist *list, const struct region *regions)
{
	for (size_t i = 0; i < list->count; i++) {
		const struct region *region = &regions[list->pages[i].region];

		if (!is_huge(region))
			append(plan, region, page_of(region, &list->pages[i]));
	}
}

/* A list that was recorded on small pages names many parts of each huge one. FIRST[i]: the number of region i's first huge page. */
static int plan_huge(struct plan *plan, const struct hotlist *list, const struct region *regions, const uint64_t *first,
		     uint64_t huge_pages)
{
	_cleanup_free_ uint64_t *seen = calloc(huge_pages / 64 + 1, sizeof *seen);
	if (!seen)
		return -ENOMEM;

	for (size_t i = 0; i < list->count; i++) {
		const struct hot_page *hot = &list->pages[i];
		const struct region *region = &regions[hot->region];
		uint64_t index = first[hot->region] + hot->offset / region->page_size;

		if (!is_huge(region) || seen[index / 64] & 1ull << index % 64)
			continue;
		seen[index / 64] |= 1ull << index % 64;
		append(plan, region, page_of(region, hot));
	}
	return 0;
}

static int fill(struct plan *plan, struct hotlist *list, const struct region *regions, size_t region_count)
{
	struct plan huge = { 0 };
	uint64_t huge_pages = 0;
	_cleanup_free_ uint64_t *first = calloc(region_count, sizeof *first);
	_cleanup_free_ struct plan_run *huge_runs = NULL;
	if (!first)
		return -ENOMEM;

	for (size_t i = 0; i < region_count; i++) {
		first[i] = huge_pages;
		if (is_huge(&regions[i]))
			huge_pages += regions[i].size / regions[i].page_size;
	}
	/* Before the list is sorted, which loses its order. */
	if (huge_pages > 0) {
		huge_runs = calloc((huge_pages < list->count ? huge_pages : list->count) ?: 1, sizeof *huge_runs);
		if (!huge_runs)
			return -ENOMEM;
		huge.runs = huge_runs;
		int r = plan_huge(&huge, list, regions, first, huge_pages);
		if (r < 0)
			return r;
	}
	if (hotlist_sort(list) < 0)
		return -ENOMEM;
	plan_small(plan, list, regions);
	if (huge.count > 0)
		memcpy(&plan->runs[plan->count], huge.runs, huge.count * sizeof huge.runs[0]);
	plan->count += huge.count;
	plan->pages += huge.pages;
	return 0;
}

int plan_new(struct hotlist *list, const struct region *regions, size_t region_count, struct plan **ret,
	     struct error *err)
{
	int r = plan_check(list, regions, region_count, err);
	if (r < 0)
		return r;

	_cleanup_plan_ struct plan *plan = calloc(1, sizeof *plan);
	if (!plan)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	plan->runs = calloc(list->count ?: 1, sizeof plan->runs[0]);
	if (!plan->runs || fill(plan, list, regions, region_count) < 0)
		return error_set(err, -ENOMEM, "io_error", "out of memory for a list of %zu pages", list->count);
	*ret = TAKE_PTR(plan);
	return 0;
}

void plan_free(struct plan *plan)
{
	if (!plan)
		return;
	free(plan->runs);
	free(plan);
}
