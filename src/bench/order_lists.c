/* Lists made of recordings: by a clock, by address, appended, merged. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench/order.h"
#include "hotlist/merge.h"
#include "hotlist/order.h"
#include "hotlist/words.h"

struct placed {
	uint64_t key;
	size_t place;
};

static int compare_placed(const void *a, const void *b)
{
	const struct placed *x = a, *y = b;

	if (x->key != y->key)
		return x->key < y->key ? -1 : 1;
	return x->place < y->place ? -1 : x->place > y->place;
}

static uint64_t time_of(const struct hotlist *list, size_t i, enum hot_clock clock)
{
	if (!list->touches)
		return i;
	return clock == HOT_CLOCK_CORRECTED ? list->touches[i].corrected_ns : list->touches[i].raw_ns;
}

struct hotlist *order_by_clock(const struct hotlist *list, enum hot_clock clock)
{
	_cleanup_hotlist_ struct hotlist *ordered = hotlist_new();
	_cleanup_free_ struct placed *placed = calloc(list->count + 1, sizeof *placed);
	int r = ordered && placed ? hotlist_set_origin(ordered, list->origin) : -ENOMEM;

	if (r < 0)
		return NULL;
	for (size_t i = 0; i < list->count; i++)
		placed[i] = (struct placed){ time_of(list, i, clock), i };
	qsort(placed, list->count, sizeof *placed, compare_placed);
	for (size_t i = 0; r >= 0 && i < list->count; i++) {
		const struct hot_page *page = &list->pages[placed[i].place];

		r = list->touches
			    ? hotlist_add_touch(ordered, page->region, page->offset, &list->touches[placed[i].place])
			    : hotlist_add(ordered, page->region, page->offset);
	}
	return r < 0 ? NULL : TAKE_PTR(ordered);
}

struct hotlist *order_by_address(const struct hotlist *list)
{
	_cleanup_hotlist_ struct hotlist *sorted = hotlist_new();

	if (!sorted)
		return NULL;
	for (size_t i = 0; i < list->count; i++)
		if (hotlist_add(sorted, list->pages[i].region, list->pages[i].offset) < 0)
			return NULL;
	return hotlist_sort(sorted) < 0 ? NULL : TAKE_PTR(sorted);
}

struct hotlist *order_append(const struct hotlist *first, const struct hotlist *more)
{
	_cleanup_hotlist_ struct hotlist *list = hotlist_new();
	const struct hotlist *parts[] = { first, more };

	if (!list)
		return NULL;
	for (unsigned p = 0; p < 2; p++)
		for (size_t i = 0; i < parts[p]->count; i++)
			if (hotlist_add(list, parts[p]->pages[i].region, parts[p]->pages[i].offset) < 0)
				return NULL;
	return hotlist_dedupe(list) < 0 ? NULL : TAKE_PTR(list);
}

int order_merge(struct hotlist *const *lists, size_t count, struct hotlist **ret, char ret_vote[static 120],
		struct error *err)
{
	static const char *const reasons[] = {
		[MERGE_ONE_CLOCK] = "both clocks make the same order",
		[MERGE_AGREEMENT] = "the runs agree more under it",
		[MERGE_EVIDENCE] = "by what the runs show themselves",
		[MERGE_TIED] = "a tie",
	};
	const char *names[ORDER_RUNS_MANY];
	struct merge_result result = { 0 };

	for (size_t i = 0; i < count; i++)
		names[i] = "a recording";
	int r = merge_lists((const struct hotlist *const *)lists, names, count, &result, err);
	if (r < 0)
		return r;
	snprintf(ret_vote, 120, "%s, %s (raw %.4f, corrected %.4f)", hot_clock_word(result.vote.clock) ?: "unknown",
		 reasons[result.vote.reason], result.vote.agreement_raw, result.vote.agreement_corrected);
	*ret = result.list;
	return 0;
}

size_t order_count_common(const struct hotlist *a, const struct hotlist *b)
{
	size_t common = 0;

	order_rank_correlation(a, b, &common);
	return common;
}

size_t order_count_present(const struct hotlist *list)
{
	size_t count = 0;

	for (size_t i = 0; list && list->touches && i < list->count; i++)
		count += list->touches[i].flags & HOT_WAS_PRESENT;
	return count;
}
