/* Numbers pages 0, 1, 2, … in the order in which they are first named, and finds a page's number again: a hash table. Not thread-safe. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "hotlist/hotlist.h"

#define PAGE_INDEX_NONE UINT32_MAX

struct page_index {
	struct hot_page *pages; /* by number */
	size_t count, capacity;
	uint32_t *slots; /* number + 1; 0: free */
	size_t slot_count;
	uint64_t seed; /* a guest chooses its pages: it must not be able to choose those that collide */
};

/* The page's number, a new one where it has none yet: then *RET is the COUNT from before. 0, or -ENOMEM with the index as it was. */
int page_index_add(struct page_index *index, uint64_t region, uint64_t offset, uint32_t *ret);
/* PAGE_INDEX_NONE: it has none. */
uint32_t page_index_find(const struct page_index *index, uint64_t region, uint64_t offset);
void page_index_clear(struct page_index *index);

/* All pages of a list; a page's number is its place among them, the first where it is listed twice. 0 or -ENOMEM. */
int page_index_add_list(struct page_index *index, const struct hotlist *list);

#define _cleanup_page_index_ _cleanup_(page_index_clear)
