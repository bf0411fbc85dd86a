/*
 * A hot list on its way into a fork whose guest runs: which of its pages come next, what became of each, and where the guest is.
 *
 * A page's place is where the list first names it. Pages are taken by windows in the order of their places, from the stream's own place on;
 * inside a window they are sorted by address, so that neighbours go in together. A demand fault for a page of the list moves the place to just
 * past that page's, forward or back: so a stream that has fallen behind the guest does not trail it, and one that a single odd fault has led
 * astray is called back by the next. What was passed over is taken when the list's end has been reached. In the end each page
 * has been counted once: prefetched, late, present, removed, skipped or unreadable.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "hotlist/hotlist.h"
#include "prefetch/plan.h"
#include "uffd/page_state.h"
#include "uffd/regions.h"

/* Small enough that a window is there in a tenth of a millisecond or so, large enough to have neighbours in it. */
#define STREAM_WINDOW	    64u
#define STREAM_WINDOW_BYTES (256u << 10) /* or one page, if that is larger */

/* Places are numbers of 32 bits. */
#define STREAM_PAGES_MAX (UINT32_MAX - 1)

struct stream;

/* Pages that have been taken, and are to be dealt with in this order; runs of neighbours are in one region. */
struct stream_window {
	struct plan_run runs[STREAM_WINDOW];
	uint32_t places[STREAM_WINDOW]; /* of the runs' pages */
	unsigned run_count, count;
	uint64_t moves; /* of the place, when it was taken */
};

/* What became of some pages. */
struct stream_outcome {
	uint64_t copied, present, removed, skipped, unreadable;
};

struct stream_figures {
	uint64_t planned;	/* pages in the list, each counted once */
	uint64_t prefetched;	/* supplied before the guest asked for them */
	uint64_t late;		/* asked for before they were there */
	uint64_t late_supplied; /* of these, so many were under way, and came by the stream all the same */
	uint64_t present;	/* there without the server having been asked */
	uint64_t removed, skipped, unreadable;
	uint64_t pending; /* none of the above yet */
	uint64_t place;	  /* the next page to be taken, from 0 to PLANNED */
	uint64_t lead;	/* from the guest's last known place on, so many pages follow each other that are dealt with */
	uint64_t moves; /* how often a demand fault has moved the place */
};

/*
 * REGIONS are the stream's until it is freed; LIST is not. Checks the whole list first: codes "bad_region" and "bad_offset". A huge page is in
 * the list once, where the list first names a part of it.
 */
int stream_new(const struct hotlist *list, const struct region *regions, size_t region_count, struct stream **ret,
	       struct error *err);
void stream_free(struct stream *stream);
DEFINE_CLEANUP(struct stream, stream_free)
#define _cleanup_stream_ _cleanup_(cleanup_stream_free)

/* Pages in the list, each counted once. */
size_t stream_count(const struct stream *stream);
/* No region has huge pages. */
bool stream_is_small(const struct stream *stream);
/* Of such a one, the pages' numbers in the image in the list's order: the caller's to free. NULL: out of memory. */
uint64_t *stream_image_pages(const struct stream *stream);

/* Once, when stream_ask is called already or about to be: pages that are there or coming were asked for before. */
void stream_begin(struct stream *stream, const struct page_states *states);

/* PAGE, which is absent, was demanded. Any thread. False: it is not in the list. */
bool stream_ask(struct stream *stream, uint64_t page);
/* PAGE was supplied before the guest had asked for it, and not by way of a window. Any thread. */
void stream_note_brought(struct stream *stream, uint64_t page);

/*
 * The next window; WHOLE: all of it, else its first page alone and those that lie beside it. Pages that need nothing any more are counted and
 * passed over; RET may be empty for that. False: there are none left to be taken. Callers of this and of stream_give_back take turns.
 */
bool stream_take(struct stream *stream, const struct page_states *states, bool whole, struct stream_window *ret);
/* Those of WINDOW from its page FROM on shall be taken again. */
void stream_give_back(struct stream *stream, const struct stream_window *window, unsigned from);
/* What became of as many pages of WINDOW from FROM on as OUTCOME has in it. Any thread. */
void stream_settle(struct stream *stream, const struct stream_window *window, unsigned from,
		   const struct stream_outcome *outcome);

/* Any thread; of a stream under way, the figures are from slightly different moments. */
void stream_get_figures(const struct stream *stream, struct stream_figures *ret);
