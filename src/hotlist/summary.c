/* What a person wants to know of a list, and of two. */
#include "hotlist/hotlist.h"

#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "hotlist/format.h"

/* NULL: out of memory. */
static struct hotlist *sorted_copy(const struct hotlist *list, bool touches)
{
	_cleanup_hotlist_ struct hotlist *copy = touches ? hotlist_copy(list) : hotlist_copy_pages(list);

	if (!copy || hotlist_sort(copy) < 0)
		return NULL;
	return TAKE_PTR(copy);
}

static struct hotlist_region_summary *add_region(struct hotlist_summary *summary, size_t *capacity)
{
	if (summary->region_count == *capacity) {
		size_t more = *capacity ? *capacity * 2 : 8;
		struct hotlist_region_summary *grown = reallocarray(summary->regions, more, sizeof *grown);
		if (!grown)
			return NULL;
		summary->regions = grown;
		*capacity = more;
	}
	return &summary->regions[summary->region_count++];
}

static bool follows(const struct hot_page *page, const struct hot_page *before, uint64_t page_size)
{
	return page->region == before->region && page->offset - before->offset == page_size;
}

int hotlist_summarize(const struct hotlist *list, uint64_t page_size, struct hotlist_summary *ret)
{
	struct hotlist_summary summary = { .sorted = hotlist_is_sorted(list) };
	size_t capacity = 0, run = 0;

	_cleanup_hotlist_ struct hotlist *sorted = sorted_copy(list, false);
	if (!sorted)
		return -ENOMEM;
	summary.pages = sorted->count;
	summary.duplicates = list->count - sorted->count;

	struct hotlist_region_summary *region = NULL;
	for (size_t i = 0; i < sorted->count; i++) {
		const struct hot_page *page = &sorted->pages[i];

		if (!region || region->region != page->region) {
			region = add_region(&summary, &capacity);
			if (!region) {
				hotlist_summary_clear(&summary);
				return -ENOMEM;
			}
			*region = (struct hotlist_region_summary){ .region = page->region, .lowest = page->offset };
		}
		region->pages++;
		region->highest = page->offset;

		if (i > 0 && follows(page, page - 1, page_size)) {
			run++;
		} else {
			run = 1;
			region->runs++;
			summary.runs++;
		}
		if (run > summary.longest_run)
			summary.longest_run = run;
	}
	*ret = summary;
	return 0;
}

void hotlist_summary_clear(struct hotlist_summary *summary)
{
	free(summary->regions);
	*summary = (struct hotlist_summary){ .regions = NULL };
}

/* Below, equal or above 0, as the order of X and Y. */
static int order(const struct hot_page *x, const struct hot_page *y)
{
	if (x->region != y->region)
		return x->region < y->region ? -1 : 1;
	return (x->offset > y->offset) - (x->offset < y->offset);
}

static int add_page(struct hotlist *list, const struct hotlist *from, size_t i)
{
	const struct hot_page *page = &from->pages[i];

	return from->touches ? hotlist_add_touch(list, page->region, page->offset, &from->touches[i])
			     : hotlist_add(list, page->region, page->offset);
}

/* A and B are sorted and without duplicates. */
static int merge(const struct hotlist *a, const struct hotlist *b, struct hotlist_comparison *comparison)
{
	size_t i = 0, j = 0;
	int r = 0;

	while (r == 0 && (i < a->count || j < b->count)) {
		int way = i == a->count ? 1 : j == b->count ? -1 : order(&a->pages[i], &b->pages[j]);
		if (way < 0) {
			r = add_page(comparison->only_a, a, i++);
		} else if (way > 0) {
			r = add_page(comparison->only_b, b, j++);
		} else {
			comparison->both++;
			i++;
			j++;
		}
	}
	return r;
}

int hotlist_compare(const struct hotlist *a, const struct hotlist *b, struct hotlist_comparison *ret)
{
	struct hotlist_comparison comparison = { .only_a = hotlist_new(), .only_b = hotlist_new() };
	_cleanup_hotlist_ struct hotlist *sorted_a = sorted_copy(a, true), *sorted_b = sorted_copy(b, true);

	if (!comparison.only_a || !comparison.only_b || !sorted_a || !sorted_b ||
	    merge(sorted_a, sorted_b, &comparison) < 0) {
		hotlist_comparison_clear(&comparison);
		return -ENOMEM;
	}
	*ret = comparison;
	return 0;
}

void hotlist_comparison_clear(struct hotlist_comparison *comparison)
{
	hotlist_free(comparison->only_a);
	hotlist_free(comparison->only_b);
	*comparison = (struct hotlist_comparison){ .both = 0 };
}

double hotlist_jaccard(const struct hotlist_comparison *comparison)
{
	size_t either = comparison->both + comparison->only_a->count + comparison->only_b->count;

	return either ? (double)comparison->both / (double)either : 1.0;
}
