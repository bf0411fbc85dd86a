/* What comes with a page that its fork's list does not have: its neighbours, as the guest is likely to want some of them soon. */
#include "serve/pager_internal.h"

/*
 * Small pages, and their alignment. A fault costs a guest as much as five more pages in one call or so; on the project's traces a third to half of
 * the pages brought so are touched, and of those missing from a list nine in ten lie together with another. See docs/benchmarks.md.
 */
#define NEIGHBOURS 8

/*
 * Of a page that the image has as zeros, the other zeros of so many come with it: they are mapped, which costs next to nothing and takes no memory
 * before they are written to. Guests take free pages in rows.
 */
#define ZERO_NEIGHBOURS 64

struct neighbours {
	const struct demand *demand;
	const struct block *block; /* has been read; NULL: nothing has */
	uint64_t page_size;
};

/* Bytes of COUNT pages from PAGE on, if they can be had without waiting. MAPPED: in the image's own mapping. */
static const void *find_bytes(const struct neighbours *n, uint64_t page, uint64_t count, uint64_t offset, bool *mapped)
{
	*mapped = false;
	if (n->block)
		return n->block->count > 1 ? n->block->bytes + (page - n->block->first) * n->page_size : NULL;

	struct pager *pager = n->demand->pager;
	struct source *source = n->demand->session->template->source;
	const void *bytes = source_peek(source, count * n->page_size, offset, n->demand->read_ns);

	*mapped = bytes != NULL;
	if (bytes)
		return bytes;
	return source_read_now(source, pager->buffer, count * n->page_size, offset) == 0 ? pager->buffer : NULL;
}

/* Whether so much more may come unasked; then it has been taken off what may. */
static bool take_spare(const struct neighbours *n, uint64_t count)
{
	_Atomic int64_t *spare = &n->demand->session->spare;
	int64_t bytes = (int64_t)(count * n->page_size);

	if (atomic_fetch_sub_explicit(spare, bytes, memory_order_relaxed) >= bytes)
		return true;
	atomic_fetch_add_explicit(spare, bytes, memory_order_relaxed);
	return false;
}

/* Pages that have come unasked. */
static void note_brought(struct session *s, uint64_t page, uint64_t count)
{
	struct stream *stream = atomic_load_explicit(&s->stream, memory_order_acquire);

	atomic_fetch_add_explicit(&s->neighbours, count, memory_order_relaxed);
	for (uint64_t i = 0; i < count; i++)
		stream_note_brought(stream, page + i);
}

static bool supply_zeros(const struct neighbours *n, uint64_t page, uint64_t count)
{
	if (!take_spare(n, count))
		return false;
	struct supply supply = guest_memory_zero(n->demand->session->memory, page, count, WAKE_NOW);

	note_brought(n->demand->session, page, supply.copied);
	return supply.outcome == SUPPLY_DONE;
}

/* False: no more of them. */
static bool supply_run(const struct neighbours *n, uint64_t page, uint64_t count)
{
	struct session *s = n->demand->session;
	struct guest_memory *memory = s->memory;
	const struct region *region = regions_of_page(memory->regions, memory->region_count, page);
	uint64_t offset = region_image_offset(region, page);
	struct supply supply;
	bool mapped;
	const void *bytes = find_bytes(n, page, count, offset, &mapped);

	if (!bytes || !take_spare(n, count))
		return false;
	if (!mapped)
		supply = guest_memory_supply(memory, page, count, bytes, WAKE_NOW);
	else if (supply_mapped(n->demand, page, count, bytes, count * n->page_size, offset, WAKE_NOW, &supply) < 0)
		return false;
	note_brought(s, page, supply.copied);
	return supply.outcome == SUPPLY_DONE;
}

/* A recording that lacks pages which the guest would have asked for is worth less than the time. */
static bool are_wanted(const struct demand *d, const struct region *region)
{
	return d->unlisted && region->page_size == d->pager->host_page_size && !session_ended(d->session) &&
	       !atomic_load_explicit(&d->session->recording, memory_order_relaxed);
}

/* Of REGION, the aligned block of SIZE pages that PAGE is in. */
static void find_block(const struct region *region, uint64_t page, uint64_t size, uint64_t *ret_first, uint64_t *ret_end)
{
	uint64_t region_end = region->first_page + region->size / region->page_size;

	*ret_first = page - (page - region->first_page) % size;
	*ret_end = region_end - *ret_first < size ? region_end : *ret_first + size;
}

static const struct region *region_of(const struct demand *d)
{
	return regions_of_page(d->session->memory->regions, d->session->memory->region_count, d->page);
}

void find_neighbours(const struct demand *d, uint64_t *ret_first, uint64_t *ret_count)
{
	uint64_t end = d->page + 1;

	*ret_first = d->page;
	if (are_wanted(d, region_of(d)))
		find_block(region_of(d), d->page, NEIGHBOURS, ret_first, &end);
	*ret_count = end - *ret_first;
}

/* What is absent of the pages from FIRST to END; only those that the image has as zeros, or all that can be had at once. */
static void bring(const struct neighbours *n, uint64_t first, uint64_t end, bool only_zeros)
{
	const struct guest_memory *memory = n->demand->session->memory;
	const struct source *source = n->demand->session->template->source;
	const struct region *region = region_of(n->demand);

	for (uint64_t page = first; page < end;) {
		uint64_t run = page_states_run(memory->states, page, end - page, PAGE_ABSENT);
		uint64_t offset = region_image_offset(region, page);
		bool zero = source_is_zero(source, n->page_size, offset);

		if (run > 1)
			run = source_count_alike(source, run, n->page_size, offset);
		if (run > 0 && !guest_memory_piece(memory, page))
			return;
		if (run > 0 && zero && !supply_zeros(n, page, run))
			return;
		/* Where some can't be had at once, neither can the others, but for zeros. */
		if (run > 0 && !zero && !only_zeros)
			only_zeros = !supply_run(n, page, run);
		page += run ?: 1;
	}
}

void bring_neighbours(const struct demand *d, const struct block *block)
{
	const struct region *region = region_of(d);
	const struct neighbours n = { .demand = d, .block = block, .page_size = region->page_size };
	uint64_t first, end;

	if (!are_wanted(d, region))
		return;
	find_block(region, d->page, NEIGHBOURS, &first, &end);
	bring(&n, first, end, false);
	if (source_is_zero(d->session->template->source, region->page_size, region_image_offset(region, d->page))) {
		find_block(region, d->page, ZERO_NEIGHBOURS, &first, &end);
		bring(&n, first, end, true);
	}
}
