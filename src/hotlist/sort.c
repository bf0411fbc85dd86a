/* Pages in the order of addresses, and each only once. */
#include "hotlist/hotlist.h"

#include <errno.h>
#include <stdlib.h>

#include "hotlist/page_set.h"

static int compare_pages(const void *a, const void *b)
{
	const struct hot_page *x = a, *y = b;

	if (x->region != y->region)
		return x->region < y->region ? -1 : 1;
	if (x->offset != y->offset)
		return x->offset < y->offset ? -1 : 1;
	return 0;
}

bool hotlist_is_sorted(const struct hotlist *list)
{
	for (size_t i = 1; i < list->count; i++)
		if (compare_pages(&list->pages[i - 1], &list->pages[i]) >= 0)
			return false;
	return true;
}

/* Without touches one of two equal pages is as good as the other, and nothing has to be allocated. */
static void sort_pages(struct hotlist *list)
{
	qsort(list->pages, list->count, sizeof *list->pages, compare_pages);
	size_t kept = 1;
	for (size_t i = 1; i < list->count; i++)
		if (compare_pages(&list->pages[kept - 1], &list->pages[i]) != 0)
			list->pages[kept++] = list->pages[i];
	list->count = kept;
}

/* A page, and where it stood before anything was moved. */
struct placed {
	struct hot_page page;
	size_t index;
};

static int compare_placed(const void *a, const void *b)
{
	const struct placed *x = a, *y = b;
	int way = compare_pages(&x->page, &y->page);

	return way ? way : (x->index > y->index) - (x->index < y->index);
}

/* The distinct pages of LIST, each where it came first, sorted. NULL: out of memory. */
static struct placed *distinct_pages(const struct hotlist *list, size_t *ret_count)
{
	struct placed *places = reallocarray(NULL, list->count ?: 1, sizeof *places);
	size_t kept = 0;

	if (!places)
		return NULL;
	for (size_t i = 0; i < list->count; i++)
		places[i] = (struct placed){ .page = list->pages[i], .index = i };
	qsort(places, list->count, sizeof *places, compare_placed);
	for (size_t i = 0; i < list->count; i++)
		if (kept == 0 || compare_pages(&places[kept - 1].page, &places[i].page) != 0)
			places[kept++] = places[i];
	*ret_count = kept;
	return places;
}

int hotlist_sort(struct hotlist *list)
{
	_cleanup_free_ struct placed *places = NULL;
	size_t count;

	if (hotlist_is_sorted(list))
		return 0;
	if (!list->touches) {
		sort_pages(list);
		return 0;
	}

	struct hot_touch *touches = reallocarray(NULL, list->capacity, sizeof *touches);
	if (!touches)
		return -ENOMEM;
	places = distinct_pages(list, &count);
	if (!places) {
		free(touches);
		return -ENOMEM;
	}
	for (size_t i = 0; i < count; i++) {
		list->pages[i] = places[i].page;
		touches[i] = list->touches[places[i].index];
	}
	free(list->touches);
	list->touches = touches;
	list->count = count;
	return 0;
}

int hotlist_count_distinct(const struct hotlist *list, size_t *ret)
{
	_cleanup_page_set_ struct page_set *set = page_set_new(list->count);
	size_t count = 0;

	if (!set)
		return -ENOMEM;
	for (size_t i = 0; i < list->count; i++)
		count += page_set_add(set, list->pages, i) == i;
	*ret = count;
	return 0;
}

int hotlist_dedupe(struct hotlist *list)
{
	_cleanup_page_set_ struct page_set *set = page_set_new(list->count);
	size_t kept = 0;

	if (!set)
		return -ENOMEM;
	/* What has moved to the front is at KEPT - 1 or before: the set finds it there. */
	for (size_t i = 0; i < list->count; i++) {
		list->pages[kept] = list->pages[i];
		if (page_set_add(set, list->pages, kept) != kept)
			continue;
		if (list->touches)
			list->touches[kept] = list->touches[i];
		kept++;
	}
	list->count = kept;
	return 0;
}
