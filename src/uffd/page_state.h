/*
 * What the server knows of each page of a fork: two bits a page, in chunks that exist only once a page of theirs has changed, so that
 * an idle fork costs a pointer per 32 MiB. Any thread may call any function at any time; changes are atomic.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum page_state {
	PAGE_ABSENT = 0, /* never supplied */
	PAGE_COMING,	 /* a demand fault waits for the device to bring it */
	PAGE_THERE,	 /* supplied, or found present */
	PAGE_REMOVED,	 /* the guest gave it back: a zero page from now on, whether present or not */
};

struct page_states;

/* NULL: out of memory. PAGES may be any number; all are absent. */
struct page_states *page_states_new(uint64_t pages);
void page_states_free(struct page_states *states);

enum page_state page_states_get(const struct page_states *states, uint64_t page);

/* FROM to TO: 1 done, 0 the page was not in FROM, -ENOMEM. */
int page_states_change(struct page_states *states, uint64_t page, enum page_state from, enum page_state to);

/* Sets COUNT pages from FIRST on, whatever they were; ret_changed: how many were not in TO before. 0 or -ENOMEM (some may be set). */
int page_states_set(struct page_states *states, uint64_t first, uint64_t count, enum page_state to,
		    uint64_t *ret_changed);

/* How many pages from FIRST on, at most MAX, are in STATE without a gap. */
uint64_t page_states_run(const struct page_states *states, uint64_t first, uint64_t max, enum page_state state);
