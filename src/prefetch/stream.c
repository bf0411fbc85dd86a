#include "prefetch/stream.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"

#define NONE UINT32_MAX

/* Pages that one take looks at: whoever takes turns waits for it. */
#define LOOKS_MAX 4096

struct stream {
	const struct region *regions;
	size_t region_count;
	uint64_t *pages; /* by place */
	uint32_t count;

	/* From page to place: places, at most half full; NONE is free. The factor is random, as guests decide what is in a list. */
	uint32_t *slots;
	unsigned slot_bits;
	uint64_t factor;

	/* A bit for each place: what is dealt with; and what a worker has taken, which those who take turns own. */
	_Atomic uint64_t *settled;
	uint64_t *taken;

	uint32_t place, lowest; /* of those who take turns; below LOWEST nothing is free */
	_Atomic uint32_t asked; /* just past the place of the last demand fault; 0: there was none since it was looked at */
	_Atomic uint32_t guest;	      /* the same, kept */
	_Atomic uint32_t shown_place; /* for whoever looks */
	_Atomic uint64_t moves;
	_Atomic uint64_t prefetched, late, late_supplied, present, removed, skipped, unreadable;
};

static void add(_Atomic uint64_t *counter, uint64_t n)
{
	if (n > 0)
		atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static size_t words(const struct stream *s)
{
	return ((size_t)s->count + 63) / 64;
}

/* ---- the list ---- */

static const struct region *region_of(const struct stream *s, uint64_t page)
{
	return regions_of_page(s->regions, s->region_count, page);
}

static size_t slot_of(const struct stream *s, uint64_t page)
{
	return (size_t)(page * s->factor >> (64 - s->slot_bits));
}

/* The slot that PAGE is in, or would be. */
static uint32_t *find(const struct stream *s, uint64_t page)
{
	size_t mask = ((size_t)1 << s->slot_bits) - 1, at = slot_of(s, page);

	while (s->slots[at] != NONE && s->pages[s->slots[at]] != page)
		at = (at + 1) & mask;
	return &s->slots[at];
}

static void fill(struct stream *s, const struct hotlist *list)
{
	for (size_t i = 0; i < list->count; i++) {
		const struct region *region = &s->regions[list->pages[i].region];
		uint64_t page = region->first_page + list->pages[i].offset / region->page_size;
		uint32_t *slot = find(s, page);

		if (*slot != NONE)
			continue;
		*slot = s->count;
		s->pages[s->count++] = page;
	}
}

/* Room for COUNT places; how many there are is known when duplicates have been dropped. */
static int allocate(struct stream *s, size_t count)
{
	s->slot_bits = 4;
	while (count > ((size_t)1 << s->slot_bits) / 2)
		s->slot_bits++;
	if (getrandom(&s->factor, sizeof s->factor, GRND_NONBLOCK) != sizeof s->factor)
		s->factor = now_ns() * 0x9e3779b97f4a7c15ull;
	s->factor |= 1;

	s->pages = calloc(count ?: 1, sizeof *s->pages);
	s->slots = malloc(sizeof *s->slots << s->slot_bits);
	if (!s->pages || !s->slots)
		return -ENOMEM;
	memset(s->slots, 0xff, sizeof *s->slots << s->slot_bits);
	return 0;
}

static int allocate_bits(struct stream *s)
{
	s->settled = calloc(words(s) ?: 1, sizeof *s->settled);
	s->taken = calloc(words(s) ?: 1, sizeof *s->taken);
	if (!s->settled || !s->taken)
		return -ENOMEM;
	/* Behind the last place nothing is free. */
	if (s->count % 64 != 0)
		s->settled[words(s) - 1] = ~0ull << s->count % 64;
	return 0;
}

int stream_new(const struct hotlist *list, const struct region *regions, size_t region_count, struct stream **ret,
	       struct error *err)
{
	int r = plan_check(list, regions, region_count, err);
	if (r < 0)
		return r;
	if (list->count > STREAM_PAGES_MAX)
		return error_set(err, -E2BIG, "bad_hot_list",
				 "the list has %zu pages, more than the %u that can be streamed", list->count,
				 STREAM_PAGES_MAX);

	_cleanup_stream_ struct stream *s = calloc(1, sizeof *s);
	if (!s)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	s->regions = regions;
	s->region_count = region_count;
	if (allocate(s, list->count) < 0)
		return error_set(err, -ENOMEM, "io_error", "out of memory for a list of %zu pages", list->count);
	fill(s, list);
	if (allocate_bits(s) < 0)
		return error_set(err, -ENOMEM, "io_error", "out of memory for a list of %zu pages", list->count);
	*ret = TAKE_PTR(s);
	return 0;
}

void stream_free(struct stream *s)
{
	if (!s)
		return;
	free(s->pages);
	free(s->slots);
	free(s->settled);
	free(s->taken);
	free(s);
}

size_t stream_count(const struct stream *s)
{
	return s->count;
}

bool stream_is_small(const struct stream *s)
{
	for (size_t i = 0; i < s->region_count; i++)
		if (s->regions[i].page_size != HOTLIST_PAGE_SIZE)
			return false;
	return true;
}

uint64_t *stream_image_pages(const struct stream *s)
{
	uint64_t *pages = calloc(s->count ?: 1, sizeof *pages);
	for (size_t i = 0; pages && i < s->count; i++)
		pages[i] = region_image_offset(region_of(s, s->pages[i]), s->pages[i]) / HOTLIST_PAGE_SIZE;
	return pages;
}

/* ---- what becomes of pages ---- */

static bool is_settled(const struct stream *s, uint32_t place)
{
	return atomic_load_explicit(&s->settled[place / 64], memory_order_relaxed) >> place % 64 & 1;
}

/* True: it was not before. */
static bool settle(struct stream *s, uint32_t place)
{
	uint64_t bit = 1ull << place % 64;

	return !(atomic_fetch_or_explicit(&s->settled[place / 64], bit, memory_order_relaxed) & bit);
}

void stream_begin(struct stream *s, const struct page_states *states)
{
	for (uint32_t place = 0; place < s->count; place++) {
		enum page_state state = page_states_get(states, s->pages[place]);

		if ((state == PAGE_THERE || state == PAGE_COMING) && settle(s, place))
			add(&s->late, 1);
	}
}

bool stream_ask(struct stream *s, uint64_t page)
{
	uint32_t place = *find(s, page);

	if (place == NONE)
		return false;
	if (settle(s, place))
		add(&s->late, 1);
	atomic_store_explicit(&s->guest, place + 1, memory_order_relaxed);
	atomic_store_explicit(&s->asked, place + 1, memory_order_relaxed);
	return true;
}

void stream_note_brought(struct stream *s, uint64_t page)
{
	uint32_t place = *find(s, page);

	if (place != NONE && settle(s, place))
		add(&s->prefetched, 1);
}

/* Takes as much of *FROM as there is of *N off both. */
static uint64_t deduct(uint64_t *n, uint64_t *from)
{
	uint64_t both = *n < *from ? *n : *from;

	*n -= both;
	*from -= both;
	return both;
}

void stream_settle(struct stream *s, const struct stream_window *window, unsigned from,
		   const struct stream_outcome *outcome)
{
	struct stream_outcome rest = *outcome;
	uint64_t pages = rest.copied + rest.present + rest.removed + rest.skipped + rest.unreadable, late = 0;

	for (unsigned i = from; i < from + pages; i++)
		late += !settle(s, window->places[i]);

	/* Those that were asked for on their way are counted already. A page that was found there had come to a pager first. */
	deduct(&late, &rest.present);
	add(&s->late_supplied, deduct(&late, &rest.copied));
	deduct(&late, &rest.removed);
	deduct(&late, &rest.skipped);
	deduct(&late, &rest.unreadable);
	add(&s->prefetched, rest.copied);
	add(&s->present, rest.present);
	add(&s->removed, rest.removed);
	add(&s->skipped, rest.skipped);
	add(&s->unreadable, rest.unreadable);
}

/* ---- what comes next ---- */

static uint64_t free_in_word(const struct stream *s, size_t word)
{
	return ~(atomic_load_explicit(&s->settled[word], memory_order_relaxed) | s->taken[word]);
}

/* The first place from FROM on, below TO, that is neither taken nor dealt with; or TO. */
static uint32_t next_free(const struct stream *s, uint32_t from, uint32_t to)
{
	while (from < to) {
		uint64_t rest = free_in_word(s, from / 64) >> from % 64;

		if (rest) {
			uint32_t at = from + (uint32_t)__builtin_ctzll(rest);
			return at < to ? at : to;
		}
		from = (from / 64 + 1) * 64;
	}
	return to;
}

/* To where the guest has asked last, if that is somewhere else. */
static void follow_guest(struct stream *s)
{
	uint32_t asked = atomic_exchange_explicit(&s->asked, 0, memory_order_relaxed);

	if (asked == 0)
		return;
	if (next_free(s, asked, s->count) != next_free(s, s->place, s->count))
		add(&s->moves, 1);
	s->place = asked;
}

/* Whether the page at PLACE is still wanted; if not, it is counted. */
static bool is_wanted(struct stream *s, const struct page_states *states, uint32_t place)
{
	enum page_state state = page_states_get(states, s->pages[place]);

	if (state == PAGE_ABSENT)
		return true;
	if (settle(s, place))
		add(state == PAGE_REMOVED ? &s->removed : &s->late, 1);
	return false;
}

struct candidate {
	uint64_t page;
	uint32_t place;
};

static int compare_pages(const void *a, const void *b)
{
	const struct candidate *x = a, *y = b;

	return x->page < y->page ? -1 : x->page > y->page;
}

/* Wanted pages from the stream's place on, in list order, and where to go on after them. */
static unsigned collect(struct stream *s, const struct page_states *states, struct candidate *ret, uint32_t *ret_next)
{
	uint64_t bytes = 0;
	uint32_t at = s->place;
	unsigned n = 0, looks = 0;

	while (n < STREAM_WINDOW && (at = next_free(s, at, s->count)) < s->count && looks++ < LOOKS_MAX) {
		if (is_wanted(s, states, at)) {
			bytes += region_of(s, s->pages[at])->page_size;
			if (n > 0 && bytes > STREAM_WINDOW_BYTES)
				break;
			ret[n++] = (struct candidate){ .page = s->pages[at], .place = at };
		}
		at++;
	}
	*ret_next = at;
	return n;
}

/* Whether B lies right behind A. */
static bool are_neighbours(const struct stream *s, uint64_t a, uint64_t b)
{
	return b == a + 1 && region_of(s, a) == region_of(s, b);
}

/* Of COUNT sorted pages, those that lie beside the one at FIRST in the list. Their number, and the first of them. */
static unsigned keep_neighbours(const struct stream *s, const struct candidate *pages, unsigned count, uint32_t first,
				unsigned *ret_from)
{
	unsigned from = 0, to;

	while (pages[from].place != first)
		from++;
	to = from + 1;
	while (from > 0 && are_neighbours(s, pages[from - 1].page, pages[from].page))
		from--;
	while (to < count && are_neighbours(s, pages[to - 1].page, pages[to].page))
		to++;
	*ret_from = from;
	return to - from;
}

static void mark_taken(struct stream *s, const struct candidate *pages, unsigned count, struct stream_window *ret)
{
	ret->count = count;
	ret->run_count = 0;
	for (unsigned i = 0; i < count; i++) {
		s->taken[pages[i].place / 64] |= 1ull << pages[i].place % 64;
		ret->places[i] = pages[i].place;
		if (i > 0 && are_neighbours(s, pages[i - 1].page, pages[i].page))
			ret->runs[ret->run_count - 1].count++;
		else
			ret->runs[ret->run_count++] = (struct plan_run){ .page = pages[i].page, .count = 1 };
	}
}

bool stream_take(struct stream *s, const struct page_states *states, bool whole, struct stream_window *ret)
{
	struct candidate pages[STREAM_WINDOW];
	uint32_t next;

	follow_guest(s);
	unsigned from = 0, count = collect(s, states, pages, &next);
	if (count == 0 && next == s->count) {
		/* The list's end: back to what was passed over. */
		s->lowest = s->place = next_free(s, s->lowest, s->count);
		count = collect(s, states, pages, &next);
	}
	if (count > 0) {
		uint32_t first = pages[0].place;
		qsort(pages, count, sizeof pages[0], compare_pages);
		if (!whole) {
			count = keep_neighbours(s, pages, count, first, &from);
			next = first + 1;
		}
	}
	s->place = next;
	atomic_store_explicit(&s->shown_place, next, memory_order_relaxed);
	mark_taken(s, pages + from, count, ret);
	ret->moves = atomic_load_explicit(&s->moves, memory_order_relaxed);
	return count > 0 || next < s->count;
}

void stream_give_back(struct stream *s, const struct stream_window *window, unsigned from)
{
	uint32_t first = s->count;

	for (unsigned i = from; i < window->count; i++) {
		uint32_t place = window->places[i];
		s->taken[place / 64] &= ~(1ull << place % 64);
		first = place < first ? place : first;
	}
	s->lowest = first < s->lowest ? first : s->lowest;
	/* Unless the guest has gone elsewhere since. */
	if (window->moves == atomic_load_explicit(&s->moves, memory_order_relaxed) && first < s->place)
		s->place = first;
}

/* ---- figures ---- */

static uint64_t count_pending(const struct stream *s)
{
	uint64_t pending = 0;

	for (size_t i = 0; i < words(s); i++)
		pending += (uint64_t)__builtin_popcountll(~atomic_load_explicit(&s->settled[i], memory_order_relaxed));
	return pending;
}

static uint64_t count_lead(const struct stream *s)
{
	uint32_t guest = atomic_load_explicit(&s->guest, memory_order_relaxed), at = guest;

	while (at < s->count && is_settled(s, at))
		at++;
	return at - guest;
}

void stream_get_figures(const struct stream *s, struct stream_figures *ret)
{
	*ret = (struct stream_figures){
		.planned = s->count,
		.prefetched = atomic_load_explicit(&s->prefetched, memory_order_relaxed),
		.late = atomic_load_explicit(&s->late, memory_order_relaxed),
		.late_supplied = atomic_load_explicit(&s->late_supplied, memory_order_relaxed),
		.present = atomic_load_explicit(&s->present, memory_order_relaxed),
		.removed = atomic_load_explicit(&s->removed, memory_order_relaxed),
		.skipped = atomic_load_explicit(&s->skipped, memory_order_relaxed),
		.unreadable = atomic_load_explicit(&s->unreadable, memory_order_relaxed),
		.pending = count_pending(s),
		.place = atomic_load_explicit(&s->shown_place, memory_order_relaxed),
		.lead = count_lead(s),
		.moves = atomic_load_explicit(&s->moves, memory_order_relaxed),
	};
}
