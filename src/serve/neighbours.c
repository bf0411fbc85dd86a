/* What comes with a page that its fork's list does not have: its neighbours, as the guest is likely to want some of them soon. */
#include "prefetch/from_image.h"
#include "serve/pager_internal.h"

/*
 * Small pages, and their alignment. A fault costs a guest as much as five more pages in one call or so; on the project's traces a third to half of
 * the pages brought so are touched, and of those missing from a list nine in ten lie together with another. See docs/benchmarks.md.
 */
#define NEIGHBOURS 8

struct neighbours {
	const struct demand *demand;
	uint64_t page_size;
};

/* Bytes of COUNT pages from PAGE on, if they can be had without waiting. MAPPED: in the image's own mapping. */
static const void *find_bytes(const struct neighbours *n, uint64_t count, uint64_t offset, bool *mapped)
{
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
	const void *bytes = find_bytes(n, count, offset, &mapped);

	if (!bytes)
		return false;
	if (!mapped) {
		supply = guest_memory_supply(memory, page, count, bytes, WAKE_NOW);
	} else if (supply_from_image(memory, s->template->source, &n->demand->pager->leasing, page, count, bytes,
				     count * n->page_size, offset, WAKE_NOW, &supply) < 0) {
		session_stop_vmm(s, "can't read a page of its template's image '%s': it was cut short there meanwhile",
				 s->template->memory);
		session_end(s);
		return false;
	}
	atomic_fetch_add_explicit(&s->neighbours, supply.copied, memory_order_relaxed);
	for (uint64_t i = 0; i < supply.copied; i++)
		stream_note_brought(atomic_load_explicit(&s->stream, memory_order_acquire), page + i);
	return supply.outcome == SUPPLY_DONE;
}

void bring_neighbours(const struct demand *d)
{
	struct session *s = d->session;
	const struct guest_memory *memory = s->memory;
	const struct region *region = regions_of_page(memory->regions, memory->region_count, d->page);
	const struct neighbours n = { .demand = d, .page_size = region->page_size };

	/* A recording that lacks pages which the guest would have asked for is worth less than the time. */
	if (!d->unlisted || region->page_size != d->pager->host_page_size || session_ended(s) ||
	    atomic_load_explicit(&s->recording, memory_order_relaxed))
		return;
	uint64_t first = d->page - (d->page - region->first_page) % NEIGHBOURS, end = first + NEIGHBOURS;
	uint64_t region_end = region->first_page + region->size / region->page_size;

	for (uint64_t page = first; page < end && page < region_end;) {
		uint64_t most = (end < region_end ? end : region_end) - page;
		uint64_t count = page_states_run(memory->states, page, most, PAGE_ABSENT);

		if (count > 0 && (!guest_memory_piece(memory, page) || !supply_run(&n, page, count)))
			return;
		page += count ?: 1;
	}
}
