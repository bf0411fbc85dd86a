/* Demand faults whose pages are not in memory: they wait for the device, and nobody waits for them. */
#include <errno.h>
#include <stdlib.h>

#include "serve/pager_internal.h"

/* A demand fault whose page is on its way from the device. */
struct slow_fault {
	struct io_read read; /* first: completions give this */
	struct pager *pager;
	struct session *session; /* a use */
	uint64_t page;
	uint64_t read_ns;
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
	slow->read.buffer = aligned_alloc(4096, size);
	if (!slow->read.buffer) {
		free(slow);
		return NULL;
	}
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

static void slow_start(struct pager *pager, struct slow_fault *slow)
{
	const struct guest_memory *memory = slow->session->memory;
	const struct region *region = regions_of_page(memory->regions, memory->region_count, slow->page);

	slow->read.offset = region->offset + (slow->page - region->first_page) * region->page_size;
	slow->read.length = region->page_size;
	slow->read.done = slow_done;
	slow->next = NULL;
	if (pager->slow_count < SLOW_FAULTS_MAX) {
		pager->slow_count++;
		int r = source_submit(slow->session->template->source, pager->io, &slow->read);
		if (r < 0) {
			slow->read.done(&slow->read, r);
		}
		return;
	}
	*pager->slow_waiting_tail = slow;
	pager->slow_waiting_tail = &slow->next;
}

static void slow_done(struct io_read *read, int result)
{
	struct slow_fault *slow = (struct slow_fault *)read;
	struct pager *pager = slow->pager;
	struct session *s = slow->session;

	guest_memory_enter(s->memory);
	const struct map_piece *piece = guest_memory_piece(s->memory, slow->page);
	if (session_ended(s) || !piece) {
		page_states_change(s->memory->states, slow->page, PAGE_COMING, PAGE_ABSENT);
	} else if (page_states_get(s->memory->states, slow->page) == PAGE_REMOVED) {
		supply_zero(NULL, s, slow->page, piece_address(piece, slow->page), slow->read_ns);
	} else if (result < 0) {
		poison(NULL, s, slow->page, slow->read_ns, result);
	} else {
		struct supply supply = guest_memory_supply(s->memory, slow->page, 1, read->buffer, WAKE_NOW);
		settle(NULL, s, slow->page, piece_address(piece, slow->page), slow->read_ns, false, &supply);
	}
	guest_memory_leave(s->memory);

	slow_release(pager, slow);
	session_unuse(s);
	pager->slow_count--;
	if (pager->slow_waiting) {
		struct slow_fault *next = pager->slow_waiting;
		pager->slow_waiting = next->next;
		if (!pager->slow_waiting)
			pager->slow_waiting_tail = &pager->slow_waiting;
		slow_start(pager, next);
	}
}

void fetch(struct watcher *w, uint64_t page, uint64_t address, uint64_t read_ns, size_t page_size)
{
	struct pager *pager = w->pager;
	struct session *s = w->session;
	struct slow_fault *slow = slow_new(pager, page_size);

	if (!slow) {
		watcher_defer(w, address, read_ns);
		return;
	}
	if (page_states_change(s->memory->states, page, PAGE_ABSENT, PAGE_COMING) <= 0) {
		/* Another pager has just taken it on, or there is no memory for its state. */
		slow_release(pager, slow);
		watcher_defer(w, address, read_ns);
		return;
	}
	slow->session = session_use(s);
	slow->page = page;
	slow->read_ns = read_ns;
	bump(&s->slow);
	slow_start(pager, slow);
}

void slow_faults_free(struct pager *pager)
{
	for (struct slow_fault *slow = pager->slow_free, *next; slow; slow = next) {
		next = slow->next;
		free(slow->read.buffer);
		free(slow);
	}
}
