/* Which pages of a list have come already. Internal to this folder. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "hotlist/hotlist.h"

struct page_set;

/* For up to COUNT pages. NULL: out of memory, or more pages than any list has. */
struct page_set *page_set_new(size_t count);
void page_set_free(struct page_set *set);
DEFINE_CLEANUP(struct page_set, page_set_free)
#define _cleanup_page_set_ _cleanup_(cleanup_page_set_free)

/* Has the cache bring in what page_set_add of PAGE will look at: that takes longer than all the rest, unless many are under way at once. */
void page_set_prefetch(const struct page_set *set, const struct hot_page *page);

/* Adds PAGES[INDEX] and returns INDEX; or the index of the same page that was added before. PAGES is the same array in every call. */
size_t page_set_add(struct page_set *set, const struct hot_page *pages, size_t index);
