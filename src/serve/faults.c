/* One demand fault: from where its bytes come, and what came of putting them in. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "prefetch/from_image.h"
#include "serve/pager_internal.h"
#include "uffd/huge.h"

/* Faults outside a fork's regions without an event that would explain them. A page that moves gives a few. */
#define STRAYS_MAX 1000

/* From a copy to knowing that it was right takes a system call: a microsecond, or as long as a thread may be kept from its CPU. */
#define PROOF_NS (20 * NSEC_PER_MSEC)

/* Later, once the guest's map has stopped changing. */
static void try_again(struct watcher *w, struct session *s, uint64_t address, uint64_t read_ns)
{
	if (w) {
		watcher_defer(w, address, read_ns);
		return;
	}
	const struct map_piece *piece = address_map_find(&s->memory->map, address);
	if (piece)
		uffd_wake(s->memory->fd, address & ~(piece->page_size - 1), piece->page_size);
}

static uint64_t image_offset(const struct guest_memory *memory, uint64_t page)
{
	const struct region *region = regions_of_page(memory->regions, memory->region_count, page);

	return region->offset + (page - region->first_page) * region->page_size;
}

void poison(struct watcher *w, struct session *s, uint64_t page, uint64_t read_ns, int error)
{
	uint64_t offset = image_offset(s->memory, page);
	const char *why =
		error == -ENODATA ? "the image has become shorter than it was when it was added" : strerror(-error);
	struct supply supply = guest_memory_poison(s->memory, page);

	switch (supply.outcome) {
	case SUPPLY_DONE:
		if (supply.copied == 0)
			return; /* prefetch was there first, or it is unmapped */
		if (session_note_trouble(s,
					 "its template's image '%s' can't be read at offset 0x%" PRIx64
					 ": %s; the guest gets SIGBUS there, and wherever else this happens",
					 s->template->memory, offset, why))
			log_error(s->name, "%s", s->trouble);
		bump(&s->poisoned);
		return;
	case SUPPLY_RETRY: {
		const struct map_piece *piece = guest_memory_piece(s->memory, page);
		page_states_change(s->memory->states, page, PAGE_COMING, PAGE_ABSENT);
		if (piece)
			try_again(w, s, piece_address(piece, page), read_ns);
		return;
	}
	case SUPPLY_GONE:
		session_end(s);
		return;
	default:
		session_stop_vmm(s,
				 "cannot read its template's image '%s' at offset 0x%" PRIx64
				 ": %s; this kernel can't poison single pages (Linux 6.6 can)",
				 s->template->memory, offset, why);
	}
}

void settle(struct watcher *w, struct session *s, uint64_t page, uint64_t address, uint64_t read_ns, bool zero,
	    const struct supply *supply)
{
	switch (supply->outcome) {
	case SUPPLY_DONE:
		if (w && w->pager->wake == WAKE_LATER && supply->copied + supply->present > 0)
			watcher_wake_later(w, page);
		if (supply->copied > 0) {
			bump(zero ? &s->zeroed : &s->copied);
			if (!zero && atomic_load_explicit(&s->recording, memory_order_relaxed))
				session_record(s, page);
		}
		/* Unmapped without an event: should memory come back there, its faults must not be taken for ones in progress. */
		if (supply->skipped > 0)
			page_states_change(s->memory->states, page, PAGE_COMING, PAGE_ABSENT);
		histogram_add(&s->stall, now_ns() - read_ns);
		return;
	case SUPPLY_RETRY:
		page_states_change(s->memory->states, page, PAGE_COMING, PAGE_ABSENT);
		try_again(w, s, address, read_ns);
		return;
	case SUPPLY_GONE:
		session_end(s);
		return;
	case SUPPLY_NO_MEMORY: {
		const struct region *region = regions_of_page(s->memory->regions, s->memory->region_count, page);
		char why[200];

		describe_no_memory(region->page_size, why, sizeof why);
		session_stop_vmm(s, "%s", why);
		return;
	}
	default:
		session_stop_vmm(s, "the kernel refused a page at 0x%" PRIx64 ": %s", address, strerror(-supply->error));
	}
}

void supply_zero(struct watcher *w, struct session *s, uint64_t page, uint64_t address, uint64_t read_ns)
{
	struct supply supply = guest_memory_zero(s->memory, page, w ? w->pager->wake : WAKE_NOW);

	settle(w, s, page, address, read_ns, true, &supply);
}

/* An address outside the regions: a page on the move, whose event is not read yet; or a peer that registered more than it said. */
static void stray(struct session *s, uint64_t address, uint64_t page_size)
{
	if (atomic_fetch_add_explicit(&s->strays, 1, memory_order_relaxed) >= STRAYS_MAX) {
		session_stop_vmm(s, "it faults at 0x%" PRIx64 ", outside every region of its handshake", address);
		return;
	}
	uffd_wake(s->memory->fd, address & ~(page_size - 1), page_size);
}

/*
 * The image has been cut short, and PAGE is there: another thread may have copied it at this moment, and not have seen the cut yet. Then it is
 * not for us to wake who waits; a little later it is, as that thread has stopped the VMM by then, or the page was right.
 */
static bool may_be_unproved(const struct session *s, uint64_t page, uint64_t read_ns)
{
	const struct guest_memory *memory = s->memory;
	const struct region *region = regions_of_page(memory->regions, memory->region_count, page);

	return !source_intact(s->template->source, region->page_size, image_offset(memory, page)) &&
	       now_ns() - read_ns < PROOF_NS;
}

void serve_fault(struct watcher *w, uint64_t fault_address, uint64_t read_ns)
{
	struct pager *pager = w->pager;
	struct session *s = w->session;
	struct guest_memory *memory = s->memory;
	const struct map_piece *piece = address_map_find(&memory->map, fault_address);

	if (!piece) {
		if (!memory->forgotten)
			stray(s, fault_address, pager->host_page_size);
		return;
	}

	uint64_t page = piece_page(piece, fault_address), address = piece_address(piece, page), size = piece->page_size;
	switch (page_states_get(memory->states, page)) {
	case PAGE_COMING:
		return; /* its copy will wake this thread as well */
	case PAGE_THERE:
		/*
		 * Read late, and supplied since: only a wake is needed. Or dropped without an event that we would have been told by:
		 * then it is a zero page, like every page that a guest gives back.
		 */
		if (may_be_unproved(s, page, read_ns)) {
			watcher_defer(w, fault_address, read_ns);
			return;
		}
		/* fall through */
	case PAGE_REMOVED:
		supply_zero(w, s, page, address, read_ns);
		return;
	case PAGE_ABSENT:
		break;
	}

	uint64_t offset = image_offset(memory, page);
	struct source *source = s->template->source;
	const void *bytes = source_peek(source, size, offset, read_ns);
	if (bytes) {
		struct supply supply;
		if (supply_from_image(memory, source, &pager->leasing, page, 1, bytes, size, offset, pager->wake,
				      &supply) < 0) {
			session_stop_vmm(s,
					 "can't read a page of its template's image '%s': it was cut short there meanwhile",
					 s->template->memory);
			session_end(s);
			return;
		}
		if (supply.outcome != SUPPLY_FAILED || supply.error != -EFAULT) {
			settle(w, s, page, address, read_ns, false, &supply);
			return;
		}
		/* the image has been cut short: reading it tells */
	} else if (atomic_load_explicit(&source->stale, memory_order_relaxed)) {
		keeper_ask(pager->keeper, s->template);
	}

	int r = source_read_now(source, pager->buffer, size, offset);
	if (r == -EAGAIN) {
		fetch(w, page, address, read_ns, size);
	} else if (r < 0) {
		poison(w, s, page, read_ns, r);
	} else {
		struct supply supply = guest_memory_supply(memory, page, 1, pager->buffer, pager->wake);
		settle(w, s, page, address, read_ns, false, &supply);
	}
}
