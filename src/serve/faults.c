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

/* The page is in, and who waited for it runs again, or will in a moment. */
static void stamp(const struct demand *d, uint64_t now)
{
	const struct session *s = d->session;

	if (!is_stamped(s))
		return;
	const struct observer_stamp stamp = {
		.fork = s->observed,
		.address = d->address,
		.read_ns = d->read_ns,
		.source_ns = d->source_ns,
		.copied_ns = now,
	};
	s->observer->stamp(s->observer->data, d->pager->index, &stamp);
}

/* Later, once the guest's map has stopped changing. */
static void try_again(const struct demand *d, uint64_t address)
{
	if (d->watcher) {
		watcher_defer(d->watcher, address, d->read_ns);
		return;
	}
	const struct guest_memory *memory = d->session->memory;
	const struct map_piece *piece = address_map_find(&memory->map, address);
	if (piece)
		uffd_wake(memory->fd, address & ~(piece->page_size - 1), piece->page_size);
}

static const struct region *region_of(const struct session *s, uint64_t page)
{
	return regions_of_page(s->memory->regions, s->memory->region_count, page);
}

void poison(const struct demand *d, int error)
{
	struct session *s = d->session;
	uint64_t page = d->page, offset = region_image_offset(region_of(s, page), page);
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
		if (is_stamped(s))
			stamp(d, now_ns());
		return;
	case SUPPLY_RETRY: {
		const struct map_piece *piece = guest_memory_piece(s->memory, page);
		page_states_change(s->memory->states, page, PAGE_COMING, PAGE_ABSENT);
		if (piece)
			try_again(d, piece_address(piece, page));
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

static void settle_done(const struct demand *d, bool zero, const struct supply *supply)
{
	struct session *s = d->session;
	uint64_t now = now_ns();

	if (d->watcher && d->pager->wake == WAKE_LATER && supply->copied + supply->present > 0)
		watcher_wake_later(d->watcher, d->page);
	if (supply->copied > 0) {
		bump(zero ? &s->zeroed : &s->copied);
		if (atomic_load_explicit(&s->recording, memory_order_relaxed)) {
			if (zero)
				session_record_zero(s, d->page);
			else
				session_record(s, d->page, d->read_ns);
		}
	}
	/* Unmapped without an event: should memory come back there, its faults must not be taken for ones in progress. */
	if (supply->skipped > 0)
		page_states_change(s->memory->states, d->page, PAGE_COMING, PAGE_ABSENT);
	histogram_add(&s->stall, now - d->read_ns);
	stamp(d, now);
}

void settle(const struct demand *d, bool zero, const struct supply *supply)
{
	struct session *s = d->session;

	switch (supply->outcome) {
	case SUPPLY_DONE:
		settle_done(d, zero, supply);
		return;
	case SUPPLY_RETRY:
		page_states_change(s->memory->states, d->page, PAGE_COMING, PAGE_ABSENT);
		try_again(d, d->address);
		return;
	case SUPPLY_GONE:
		session_end(s);
		return;
	case SUPPLY_NO_MEMORY: {
		char why[200];

		describe_no_memory(region_of(s, d->page)->page_size, why, sizeof why);
		session_stop_vmm(s, "%s", why);
		return;
	}
	default:
		session_stop_vmm(s, "the kernel refused a page at 0x%" PRIx64 ": %s", d->address,
				 strerror(-supply->error));
	}
}

void supply_zero(const struct demand *d)
{
	struct supply supply = guest_memory_zero(d->session->memory, d->page, 1, d->watcher ? d->pager->wake : WAKE_NOW);

	settle(d, true, &supply);
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
	const struct region *region = region_of(s, page);

	return !source_intact(s->template->source, region->page_size, region_image_offset(region, page)) &&
	       now_ns() - read_ns < PROOF_NS;
}

int supply_mapped(const struct demand *d, uint64_t page, uint64_t count, const void *bytes, uint64_t size,
		  uint64_t offset, enum wake wake, struct supply *ret)
{
	struct session *s = d->session;
	int r = supply_from_image(s->memory, s->template->source, &d->pager->leasing, page, count, bytes, size, offset,
				  wake, ret);

	if (r < 0) {
		session_stop_vmm(s, "can't read a page of its template's image '%s': it was cut short there meanwhile",
				 s->template->memory);
		session_end(s);
	}
	return r;
}

/* From the image's mapping, where it is known to be in memory. False: its bytes have to be had in another way. */
static bool supply_peeked(const struct demand *d, uint64_t size, uint64_t offset)
{
	struct pager *pager = d->pager;
	struct session *s = d->session;
	struct source *source = s->template->source;
	const void *bytes = source_peek(source, size, offset, d->read_ns);
	struct supply supply;

	if (!bytes) {
		if (atomic_load_explicit(&source->stale, memory_order_relaxed))
			keeper_ask(pager->keeper, s->template);
		return false;
	}
	if (supply_mapped(d, d->page, 1, bytes, size, offset, pager->wake, &supply) < 0)
		return true;
	if (supply.outcome == SUPPLY_FAILED && supply.error == -EFAULT)
		return false; /* the image has been cut short: reading it tells */
	settle(d, false, &supply);
	bring_neighbours(d, NULL);
	return true;
}

/* To the pager's buffer. -EAGAIN: it is not in memory, or there is no such page. */
static int copy_packed(const struct demand *d, uint64_t size, uint64_t offset)
{
	struct session *s = d->session;
	void *buffer = d->pager->buffer;
	const void *bytes;
	struct hot_run run;

	if (!s->hot.set || size != HOT_SET_PAGE || !hot_set_find(s->hot.set, offset / HOT_SET_PAGE, 1, &run))
		return -EAGAIN;
	if (run.zero) {
		memset(buffer, 0, size);
		return 0;
	}
	if (hot_reader_read(&s->hot, &run, false, buffer, &bytes) < 0)
		return -EAGAIN;
	memmove(buffer, bytes, size);
	return 0;
}

/* The same, as long as the stream has its template's packed hot set. */
static int read_packed(const struct demand *d, uint64_t size, uint64_t offset)
{
	struct session *s = d->session;

	if (!atomic_load_explicit(&s->stream, memory_order_acquire) || pthread_rwlock_tryrdlock(&s->hot_lock) != 0)
		return -EAGAIN;
	int r = copy_packed(d, size, offset);
	pthread_rwlock_unlock(&s->hot_lock);
	return r;
}

static void supply_from_source(const struct demand *d, uint64_t size)
{
	struct session *s = d->session;
	struct pager *pager = d->pager;
	uint64_t offset = region_image_offset(region_of(s, d->page), d->page);

	if (!source_is_zero(s->template->source, size, offset) && supply_peeked(d, size, offset))
		return;
	int r = source_read_now(s->template->source, pager->buffer, size, offset);
	if (r == -EAGAIN)
		r = read_packed(d, size, offset);
	if (r == -EAGAIN) {
		fetch(d, size);
	} else if (r < 0) {
		poison(d, r);
	} else {
		struct demand read = *d;

		if (is_stamped(s))
			read.source_ns = now_ns();
		struct supply supply = guest_memory_supply(s->memory, d->page, 1, pager->buffer, pager->wake);
		settle(&read, false, &supply);
		bring_neighbours(&read, NULL);
	}
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

	struct demand d = {
		.pager = pager,
		.watcher = w,
		.session = s,
		.page = piece_page(piece, fault_address),
		.address = piece_address(piece, piece_page(piece, fault_address)),
		.read_ns = read_ns,
		.source_ns = read_ns,
	};
	switch (page_states_get(memory->states, d.page)) {
	case PAGE_COMING:
		return; /* its copy will wake this thread as well */
	case PAGE_THERE:
		/*
		 * Read late, and supplied since: only a wake is needed. Or dropped without an event that we would have been told by:
		 * then it is a zero page, like every page that a guest gives back.
		 */
		if (may_be_unproved(s, d.page, read_ns)) {
			watcher_defer(w, fault_address, read_ns);
			return;
		}
		/* fall through */
	case PAGE_REMOVED:
		supply_zero(&d);
		return;
	case PAGE_ABSENT:
		d.unlisted = session_note_demand(s, d.page);
		supply_from_source(&d, piece->page_size);
		return;
	}
}
