#include "hotlist/page_index.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

#define SLOTS_MIN 64

static size_t slot_of(const struct page_index *index, uint64_t region, uint64_t offset)
{
	/* The finisher of splitmix64, which leaves no pattern of neighbouring pages. */
	uint64_t z = (offset ^ index->seed) + region * 0x9e3779b97f4a7c15;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return (size_t)(z ^ (z >> 31)) & (index->slot_count - 1);
}

/* The page's slot, or the free one where it belongs. */
static uint32_t *find_slot(const struct page_index *index, uint64_t region, uint64_t offset)
{
	size_t i = slot_of(index, region, offset);

	for (;; i = (i + 1) & (index->slot_count - 1)) {
		const struct hot_page *page;

		if (!index->slots[i])
			return &index->slots[i];
		page = &index->pages[index->slots[i] - 1];
		if (page->offset == offset && page->region == region)
			return &index->slots[i];
	}
}

static int grow_slots(struct page_index *index)
{
	struct page_index grown = *index;

	grown.slot_count = index->slot_count ? 2 * index->slot_count : SLOTS_MIN;
	grown.slots = calloc(grown.slot_count, sizeof *grown.slots);
	if (!grown.slots)
		return -ENOMEM;
	/* Without randomness it is a table as any other. */
	if (!index->slot_count && getrandom(&grown.seed, sizeof grown.seed, GRND_NONBLOCK) < 0)
		grown.seed = 0;
	for (size_t i = 0; i < grown.count; i++)
		*find_slot(&grown, grown.pages[i].region, grown.pages[i].offset) = (uint32_t)i + 1;
	free(index->slots);
	*index = grown;
	return 0;
}

static int grow_pages(struct page_index *index)
{
	size_t capacity = index->capacity ? 2 * index->capacity : SLOTS_MIN / 2;
	struct hot_page *pages = reallocarray(index->pages, capacity, sizeof *pages);

	if (!pages)
		return -ENOMEM;
	index->pages = pages;
	index->capacity = capacity;
	return 0;
}

int page_index_add(struct page_index *index, uint64_t region, uint64_t offset, uint32_t *ret)
{
	uint32_t *slot;

	/* At most half full: a search ends after two steps or so. */
	if (2 * (index->count + 1) > index->slot_count && grow_slots(index) < 0)
		return -ENOMEM;
	slot = find_slot(index, region, offset);
	if (!*slot) {
		if (index->count >= PAGE_INDEX_NONE - 1 || (index->count == index->capacity && grow_pages(index) < 0))
			return -ENOMEM;
		index->pages[index->count++] = (struct hot_page){ .region = region, .offset = offset };
		*slot = (uint32_t)index->count;
	}
	*ret = *slot - 1;
	return 0;
}

uint32_t page_index_find(const struct page_index *index, uint64_t region, uint64_t offset)
{
	/* A free slot holds 0, which becomes PAGE_INDEX_NONE. */
	return index->slot_count ? *find_slot(index, region, offset) - 1 : PAGE_INDEX_NONE;
}

int page_index_add_list(struct page_index *index, const struct hotlist *list)
{
	uint32_t number;
	int r = 0;

	for (size_t i = 0; r >= 0 && i < list->count; i++)
		r = page_index_add(index, list->pages[i].region, list->pages[i].offset, &number);
	return r;
}

void page_index_clear(struct page_index *index)
{
	free(index->pages);
	free(index->slots);
	*index = (struct page_index){ .pages = NULL };
}
