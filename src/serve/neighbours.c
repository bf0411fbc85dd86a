/* What comes with a page that its fork's list does not have: its neighbours, as the guest is likely to want some of them soon. */
#include "serve/pager_internal.h"

/*
 * Small pages, and their alignment. A fault costs a guest as much as five more pages in one call or so; on the project's traces a third to half of
 * the pages brought so are touched, and of those missing from a list nine in ten lie together with another. See docs/benchmarks.md.
 */
#define NEIGHBOURS 8

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

	if (!bytes)
		return false;
	if (!mapped)
		supply = guest_memory_supply(memory, page, count, bytes, WAKE_NOW);
	else if (supply_mapped(n->demand, page, count, bytes, count * n->page_size, offset, WAKE_NOW, &supply) < 0)
		return false;
	atomic_fetch_add_explicit(&s->neighbours, supply.copied, memory_order_relaxed);
	for (uint64_t i = 0; i < supply.copied; i++)
		stream_note_brought(atomic_load_explicit(&s->stream, memory_order_acquire), page + i);
	return supply.outcome == SUPPLY_DONE;
}

/* A recording that lacks pages which the guest would have asked for is worth less than the time. */
static bool are_wanted(const struct demand *d, const struct region *region)
{
	return d->unlisted && region->page_size == d->pager->host_page_size && !session_ended(d->session) &&
	       !atomic_load_explicit(&d->session->recording, memory_order_relaxed);
}

void find_neighbours(const struct demand *d, uint64_t *ret_first, uint64_t *ret_count)
{
	const struct guest_memory *memory = d->session->memory;
	const struct region *region = regions_of_page(memory->regions, memory->region_count, d->page);
	uint64_t region_end = region->first_page + region->size / region->page_size;

	*ret_first = d->page;
	*ret_count = 1;
	if (!are_wanted(d, region))
		return;
	*ret_first = d->page - (d->page - region->first_page) % NEIGHBOURS;
	*ret_count = region_end - *ret_first < NEIGHBOURS ? region_end - *ret_first : NEIGHBOURS;
}

void bring_neighbours(const struct demand *d, const struct block *block)
{
	const struct guest_memory *memory = d->session->memory;
	const struct region *region = regions_of_page(memory->regions, memory->region_count, d->page);
	const struct neighbours n = { .demand = d, .block = block, .page_size = region->page_size };
	uint64_t first, count;

	find_neighbours(d, &first, &count);
	if (count == 1)
		return;
	for (uint64_t page = first, end = first + count; page < end;) {
		uint64_t run = page_states_run(memory->states, page, end - page, PAGE_ABSENT);

		if (run > 0 && (!guest_memory_piece(memory, page) || !supply_run(&n, page, run)))
			return;
		page += run ?: 1;
	}
}
