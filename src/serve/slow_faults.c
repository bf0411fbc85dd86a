/* Demand faults whose pages are not in memory: they wait for the device, and nobody waits for them. */
#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"
#include "serve/pager_internal.h"

/* A demand fault whose page is on its way from the device. */
struct slow_fault {
	struct io_read read; /* first: completions give this */
	struct pager *pager;
	struct session *session; /* a use */
	uint64_t page;
	uint64_t first, count; /* pages that are read: it, and maybe others beside it */
	bool unlisted;
	uint64_t read_ns;
	uint64_t source_ns; /* the bytes have come; 0 where nobody asks */
	size_t buffer_size;
	struct slow_fault *next;
};

static void slow_done(struct io_read *read, int result);

static struct slow_fault *slow_new(struct pager *pager, size_t size)
{
	struct slow_fault *slow = pager->slow_free;

	if (slow && size == slow->buffer_size) {
		pager->slow_free = slow->next;
		return slow;
	}
	slow = calloc(1, sizeof *slow);
	if (!slow)
		return NULL;
	slow->pager = pager;
	slow->buffer_size = size;
	return slow;
}

static void slow_release(struct pager *pager, struct slow_fault *slow)
{
	if (slow->buffer_size == pager->host_page_size) {
		slow->next = pager->slow_free;
		pager->slow_free = slow;
		return;
	}
	free(slow->read.buffer);
	free(slow);
}

/* Whether SLOW may be under way with the others. Those that have to wait hold no buffer. */
static bool has_room(const struct pager *pager, const struct slow_fault *slow)
{
	return pager->slow_count < SLOW_FAULTS_MAX &&
	       (pager->slow_count == 0 || pager->slow_bytes + slow->buffer_size <= SLOW_BYTES_MAX);
}

static int submit(struct pager *pager, struct slow_fault *slow)
{
	if (!slow->read.buffer)
		slow->read.buffer = aligned_alloc(4096, slow->buffer_size);
	return slow->read.buffer ? source_submit(slow->session->template->source, pager->io, &slow->read) : -ENOMEM;
}

static void slow_release_room(struct pager *pager, struct slow_fault *slow)
{
	pager->slow_count--;
	pager->slow_bytes -= slow->buffer_size;
}

/* The bytes have come, or RESULT says why not. The gate is held shared. */
static void resolve(struct slow_fault *slow, int result, enum wake wake)
{
	struct session *s = slow->session;
	const struct map_piece *piece = guest_memory_piece(s->memory, slow->page);

	const struct demand d = {
		.pager = slow->pager,
		.session = s,
		.page = slow->page,
		.unlisted = slow->unlisted,
		.address = piece ? piece_address(piece, slow->page) : 0,
		.read_ns = slow->read_ns,
		.source_ns = slow->source_ns ?: slow->read_ns,
	};
	if (session_ended(s) || !piece) {
		page_states_change(s->memory->states, slow->page, PAGE_COMING, PAGE_ABSENT);
	} else if (page_states_get(s->memory->states, slow->page) == PAGE_REMOVED) {
		supply_zero(&d);
	} else if (result == -ENOMEM) {
		/* Ours, not the image's: who waits faults again. */
		page_states_change(s->memory->states, slow->page, PAGE_COMING, PAGE_ABSENT);
		guest_memory_wake(s->memory, slow->page, 1);
	} else if (result < 0) {
		poison(&d, result);
	} else {
		const struct block block = { slow->first, slow->count, slow->read.buffer };
		size_t page_size = slow->buffer_size / slow->count;
		struct supply supply = guest_memory_supply(s->memory, slow->page, 1,
							   block.bytes + (slow->page - slow->first) * page_size, wake);
		settle(&d, false, &supply);
		/* Of an image in a file, those beside it have come to the page cache with it. */
		bring_neighbours(&d, slow->count > 1 ? &block : NULL);
	}
}

/* Takes up room. A negative errno gives it back, and then nothing is under way. */
static int slow_start(struct pager *pager, struct slow_fault *slow)
{
	const struct guest_memory *memory = slow->session->memory;
	const struct region *region = regions_of_page(memory->regions, memory->region_count, slow->page);

	slow->read.offset = region_image_offset(region, slow->first);
	slow->read.length = slow->count * region->page_size;
	slow->read.done = slow_done;
	pager->slow_count++;
	pager->slow_bytes += slow->buffer_size;
	int r = submit(pager, slow);
	if (r < 0)
		slow_release_room(pager, slow);
	return r;
}

/* Who waited is let run once the gate has been left, as another pager may want it. */
static void finish(struct pager *pager, struct slow_fault *slow, int result)
{
	struct session *s = slow->session;
	uint64_t address = 0, size = 0;

	guest_memory_enter(s->memory);
	resolve(slow, result, WAKE_LATER);
	const struct map_piece *piece = guest_memory_piece(s->memory, slow->page);
	if (piece) {
		address = piece_address(piece, slow->page);
		size = piece->page_size;
	}
	guest_memory_leave(s->memory);
	if (size > 0)
		uffd_wake(s->memory->fd, address, size);
	slow_release(pager, slow);
	session_unuse(s);
}

/* Its neighbours may be why it could not be read. 1: it is under way once more. */
static int read_alone(struct pager *pager, struct slow_fault *slow)
{
	slow->buffer_size /= slow->count;
	slow->first = slow->page;
	slow->count = 1;
	int r = slow_start(pager, slow);
	return r < 0 ? r : 1;
}

static void slow_done(struct io_read *read, int result)
{
	struct slow_fault *slow = (struct slow_fault *)read;
	struct pager *pager = slow->pager;

	slow_release_room(pager, slow);
	if (result < 0 && slow->count > 1)
		result = read_alone(pager, slow);
	if (result > 0)
		return;
	if (is_stamped(slow->session))
		slow->source_ns = now_ns();
	finish(pager, slow, result);
	while (pager->slow_waiting && has_room(pager, pager->slow_waiting)) {
		struct slow_fault *next = pager->slow_waiting;
		pager->slow_waiting = next->next;
		if (!pager->slow_waiting)
			pager->slow_waiting_tail = &pager->slow_waiting;
		int r = slow_start(pager, next);
		if (r < 0)
			finish(pager, next, r);
	}
}

void fetch(const struct demand *d, size_t page_size)
{
	struct pager *pager = d->pager;
	struct session *s = d->session;
	uint64_t first = d->page, count = 1;

	/* Images in files have what is beside a page read anyway. */
	if (!source_can_advise(s->template->source))
		find_neighbours(d, &first, &count);
	struct slow_fault *slow = slow_new(pager, count * page_size);

	if (!slow) {
		watcher_defer(d->watcher, d->address, d->read_ns);
		return;
	}
	if (page_states_change(s->memory->states, d->page, PAGE_ABSENT, PAGE_COMING) <= 0) {
		/* Another pager has just taken it on, or there is no memory for its state. */
		slow_release(pager, slow);
		watcher_defer(d->watcher, d->address, d->read_ns);
		return;
	}
	slow->session = session_use(s);
	slow->page = d->page;
	slow->first = first;
	slow->count = count;
	slow->unlisted = d->unlisted;
	slow->read_ns = d->read_ns;
	slow->source_ns = 0;
	bump(&s->slow);
	if (pager->slow_waiting || !has_room(pager, slow)) {
		slow->next = NULL;
		*pager->slow_waiting_tail = slow;
		pager->slow_waiting_tail = &slow->next;
		return;
	}
	int r = slow_start(pager, slow);
	if (r < 0) {
		resolve(slow, r, WAKE_NOW); /* the gate is held already */
		slow_release(pager, slow);
		session_unuse(s); /* not the last use: the watcher has one */
	}
}

void slow_faults_free(struct pager *pager)
{
	for (struct slow_fault *slow = pager->slow_free, *next; slow; slow = next) {
		next = slow->next;
		free(slow->read.buffer);
		free(slow);
	}
}
