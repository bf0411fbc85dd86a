#include "uffd/guest_memory.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "uffd/huge.h"

#define SMALL_PAGE 4096

/*
 * How long a huge page is tried again that is neither there nor to be had, and how often. One that the guest has just given back may be held for a
 * moment more by who reads it or writes to it; to stop a VMM for that would be worse than a pause.
 */
#define HUGE_WAIT_NS (2 * NSEC_PER_MSEC)
#define HUGE_LOOK_NS (50 * NSEC_PER_USEC)

int guest_memory_new(int fd, struct region *regions, size_t count, struct guest_memory **ret)
{
	struct guest_memory *memory = calloc(1, sizeof *memory);
	if (!memory)
		return -ENOMEM;

	memory->page_count = regions_page_count(regions, count);
	memory->states = page_states_new(memory->page_count);
	if (!memory->states || address_map_init(&memory->map, regions, count) < 0) {
		page_states_free(memory->states);
		free(memory);
		return -ENOMEM;
	}

	pthread_condattr_t condattr;
	pthread_condattr_init(&condattr);
	pthread_condattr_setclock(&condattr, CLOCK_MONOTONIC);
	pthread_mutex_init(&memory->event_lock, NULL);
	pthread_cond_init(&memory->event_read, &condattr);
	pthread_condattr_destroy(&condattr);

	memory->fd = fd;
	memory->regions = regions;
	memory->region_count = count;
	memory->fixed_map = true;
	*ret = memory;
	return 0;
}

void guest_memory_free(struct guest_memory *memory)
{
	if (!memory)
		return;
	close(memory->fd);
	pthread_cond_destroy(&memory->event_read);
	pthread_mutex_destroy(&memory->event_lock);
	address_map_clear(&memory->map);
	page_states_free(memory->states);
	free(memory->regions);
	free(memory);
}

void guest_memory_forget(struct guest_memory *memory)
{
	gate_enter_alone(&memory->gate);
	memory->map.count = 0;
	memory->fixed_map = false;
	memory->forgotten = true;
	gate_leave_alone(&memory->gate);
}

const struct map_piece *guest_memory_piece(const struct guest_memory *memory, uint64_t page)
{
	if (!memory->fixed_map)
		return address_map_find_page(&memory->map, page);

	const struct region *region = regions_of_page(memory->regions, memory->region_count, page);
	return address_map_find(&memory->map, region->address);
}

/* The page is in the guest. A removed page stays removed: its bytes are zero for good. */
static void mark_there(struct guest_memory *memory, uint64_t page)
{
	if (page_states_change(memory->states, page, PAGE_ABSENT, PAGE_THERE) == 0)
		page_states_change(memory->states, page, PAGE_COMING, PAGE_THERE);
}

typedef struct uffd_result (*put_fn)(struct guest_memory *memory, uint64_t address, const void *data, size_t length);

static struct uffd_result put_copy(struct guest_memory *memory, uint64_t address, const void *data, size_t length)
{
	return uffd_copy(memory->fd, address, data, length, true);
}

static struct uffd_result put_copy_held(struct guest_memory *memory, uint64_t address, const void *data, size_t length)
{
	return uffd_copy(memory->fd, address, data, length, false);
}

static struct uffd_result put_zero(struct guest_memory *memory, uint64_t address, const void *data, size_t length)
{
	(void)data;
	return uffd_zero(memory->fd, address, length, true);
}

static struct uffd_result put_zero_held(struct guest_memory *memory, uint64_t address, const void *data, size_t length)
{
	(void)data;
	return uffd_zero(memory->fd, address, length, false);
}

static struct uffd_result put_poison(struct guest_memory *memory, uint64_t address, const void *data, size_t length)
{
	(void)data;
	return uffd_poison(memory->fd, address, length);
}

/* Whether a huge page is there, as far as can be told: where the VMM can't be looked into, one that was put in before is. */
static bool seems_there(const struct guest_memory *memory, uint64_t page, uint64_t address)
{
	int present = huge_is_present(memory->pid, address);

	return present < 0 ? page_states_get(memory->states, page) == PAGE_THERE : present > 0;
}

/*
 * The kernel has said that a huge page is there, or that none is to be had. It may mean either by either (see huge.h): tries again, and
 * then decides.
 */
static struct uffd_result put_huge_again(struct guest_memory *memory, uint64_t page, uint64_t address, uint64_t size,
					 const void *data, put_fn put)
{
	const struct timespec pause = { .tv_nsec = HUGE_LOOK_NS };
	uint64_t until = now_ns() + HUGE_WAIT_NS;

	while (!seems_there(memory, page, address)) {
		huge_populate(data, size);
		struct uffd_result r = put(memory, address, data, size);
		if (r.outcome != UFFD_PRESENT && r.outcome != UFFD_NO_MEMORY)
			return r;
		if (now_ns() > until) {
			bool unknown = huge_is_present(memory->pid, address) < 0;
			if (unknown && huge_page_to_be_had(size))
				break; /* it is not for want of one, then */
			return (struct uffd_result){ .outcome = UFFD_NO_MEMORY, .error = -ENOMEM };
		}
		nanosleep(&pause, NULL);
	}
	return (struct uffd_result){ .outcome = UFFD_PRESENT, .error = -EEXIST };
}

/* Copies one huge page. Its source is mapped first, or the copy would take a second page of the pool for a moment: perhaps another's last. */
static struct uffd_result put_huge(struct guest_memory *memory, uint64_t page, uint64_t address, uint64_t size,
				   const void *data, put_fn put)
{
	huge_populate(data, size);
	struct uffd_result r = put(memory, address, data, size);

	return r.outcome == UFFD_PRESENT || r.outcome == UFFD_NO_MEMORY
		       ? put_huge_again(memory, page, address, size, data, put)
		       : r;
}

static struct supply put_pages(struct guest_memory *memory, uint64_t page, uint64_t count, const void *data, put_fn put,
			       enum wake wake)
{
	struct supply supply = { .outcome = SUPPLY_DONE };
	const struct map_piece *piece = guest_memory_piece(memory, page);

	if (!piece && memory->forgotten) {
		supply.outcome = SUPPLY_GONE;
		return supply;
	}
	if (!piece) {
		supply.skipped = count;
		return supply;
	}

	/* What lies behind a piece may be another one's pages by now: no call goes on into those. */
	uint64_t size = piece->page_size, address = piece_address(piece, page), at = 0, limit = count;
	uint64_t end = piece->first_page + piece->length / size - page;

	if (end < count) {
		supply = put_pages(memory, page, end, data, put, wake);
		if (supply.outcome != SUPPLY_DONE)
			return supply;
		struct supply rest = put_pages(memory, page + end, count - end,
					       data ? (const char *)data + end * size : NULL, put, wake);
		rest.copied += supply.copied;
		rest.present += supply.present;
		rest.skipped += supply.skipped;
		return rest;
	}
	while (at < count) {
		uint64_t length = count - at < limit ? count - at : limit;
		const char *bytes = data ? (const char *)data + at * size : NULL;
		struct uffd_result r = size > SMALL_PAGE && data
					       ? put_huge(memory, page + at, address + at * size, size, bytes, put)
					       : put(memory, address + at * size, bytes, length * size);

		if (r.done % size != 0) {
			/* A part of a page: the memory there is not what the handshake said, and its other parts are not ours to guess. */
			supply.outcome = SUPPLY_FAILED;
			supply.error = -EINVAL;
			return supply;
		}
		for (uint64_t done = r.done / size; done > 0; done--, at++) {
			mark_there(memory, page + at);
			supply.copied++;
		}
		switch (r.outcome) {
		case UFFD_DONE:
			limit *= 2;
			break;
		case UFFD_PRESENT:
			/* EEXIST wakes nobody: a thread that faulted before the page came would sleep for ever. */
			if (wake == WAKE_NOW)
				uffd_wake(memory->fd, address + at * size, size);
			mark_there(memory, page + at);
			supply.present++;
			at++;
			break;
		case UFFD_CHANGING:
			if (r.done > 0)
				break; /* it may have met a present page: the next call tells */
			supply.outcome = SUPPLY_RETRY;
			return supply;
		case UFFD_UNMAPPED:
			if (length > 1) {
				/* A call must stay in one of the guest's mappings: madvise or mprotect may have split them. */
				limit = length / 2;
				break;
			}
			/* Unmapped, or unregistered, without an event: let a waiter fault again on what is there now. */
			uffd_wake(memory->fd, address + at * size, size);
			supply.skipped++;
			at++;
			break;
		case UFFD_GONE:
			supply.outcome = SUPPLY_GONE;
			return supply;
		case UFFD_NO_MEMORY:
			supply.outcome = SUPPLY_NO_MEMORY;
			supply.error = r.error;
			return supply;
		default:
			supply.outcome = SUPPLY_FAILED;
			supply.error = r.error;
			return supply;
		}
	}
	return supply;
}

struct supply guest_memory_supply(struct guest_memory *memory, uint64_t page, uint64_t count, const void *data,
				  enum wake wake)
{
	return put_pages(memory, page, count, data, wake == WAKE_NOW ? put_copy : put_copy_held, wake);
}

void guest_memory_wake(struct guest_memory *memory, uint64_t page, uint64_t count)
{
	for (uint64_t end = page + count, next; page < end; page = next) {
		const struct map_piece *piece = guest_memory_piece(memory, page);
		uint64_t piece_end = piece ? piece->first_page + piece->length / piece->page_size : page + 1;

		next = piece_end < end ? piece_end : end;
		if (piece)
			uffd_wake(memory->fd, piece_address(piece, page), (next - page) * piece->page_size);
	}
}

/* Zeros to copy where UFFDIO_ZEROPAGE does not work: mapped once, read only, never touched by us otherwise. */
static const void *huge_zeros;
static pthread_once_t huge_zeros_once = PTHREAD_ONCE_INIT;

static void map_huge_zeros(void)
{
	void *p = mmap(NULL, 2u << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return;
	huge_populate(p, 2u << 20);
	huge_zeros = p;
}

struct supply guest_memory_zero(struct guest_memory *memory, uint64_t page, uint64_t count, enum wake wake)
{
	const struct region *region = regions_of_page(memory->regions, memory->region_count, page);

	if (region->page_size == SMALL_PAGE)
		return put_pages(memory, page, count, NULL, wake == WAKE_NOW ? put_zero : put_zero_held, wake);

	pthread_once(&huge_zeros_once, map_huge_zeros);
	if (!huge_zeros)
		return (struct supply){ .outcome = SUPPLY_FAILED, .error = -ENOMEM };
	return put_pages(memory, page, 1, huge_zeros, wake == WAKE_NOW ? put_copy : put_copy_held, wake);
}

struct supply guest_memory_poison(struct guest_memory *memory, uint64_t page)
{
	return put_pages(memory, page, 1, NULL, put_poison, WAKE_NOW);
}

/*
 * Of one page only [FROM, TO) has been given back. What is there the kernel zeroes itself; but a page that was never supplied would have
 * to be the image's in one part and zero in the other. Only shared hugetlbfs memory can do this (MADV_REMOVE).
 */
static int apply_partial_remove(const struct guest_memory *memory, const struct map_piece *piece, uint64_t at)
{
	enum page_state state = page_states_get(memory->states, piece_page(piece, at));

	return state == PAGE_THERE || state == PAGE_REMOVED ? 0 : -EOPNOTSUPP;
}

static uint64_t round_up(uint64_t address, uint64_t size)
{
	return (address + size - 1) & ~(size - 1);
}

/* Whatever of [START, END) is ours is zero from now on. */
static int apply_remove(struct guest_memory *memory, uint64_t start, uint64_t end)
{
	for (size_t i = 0; i < memory->map.count; i++) {
		const struct map_piece *piece = &memory->map.pieces[i];
		uint64_t from = start > piece->address ? start : piece->address;
		uint64_t piece_end = piece->address + piece->length, to = end < piece_end ? end : piece_end, changed;

		if (from >= to)
			continue;
		uint64_t first = round_up(from, piece->page_size), last = to & ~(piece->page_size - 1);
		int r = 0;
		if (from < first)
			r = apply_partial_remove(memory, piece, from);
		if (r == 0 && last < to && last >= from)
			r = apply_partial_remove(memory, piece, last);
		if (r < 0)
			return r;
		if (first >= last)
			continue;
		r = page_states_set(memory->states, piece_page(piece, first), (last - first) / piece->page_size,
				    PAGE_REMOVED, &changed);
		if (r < 0)
			return r;
		atomic_fetch_add_explicit(&memory->removed_pages, changed, memory_order_relaxed);
	}
	return 0;
}

/* Poisons COUNT pages in a child from ADDRESS on, stepping over what is there. False where the kernel can't. */
static bool poison_range(int child, uint64_t address, uint64_t count, uint64_t page_size)
{
	uint64_t at = 0;

	while (at < count) {
		struct uffd_result r = uffd_poison(child, address + at * page_size, (count - at) * page_size);

		at += r.done / page_size;
		if (r.outcome == UFFD_PRESENT)
			at++;
		else if (r.outcome == UFFD_GONE || r.outcome == UFFD_UNMAPPED)
			return true; /* ended, or another program by now */
		else if (r.outcome != UFFD_DONE && r.done == 0)
			return false;
	}
	return true;
}

/*
 * A child has pages where its parent had them at the fork: nothing could be put in between, as the event was unread. All else would
 * read as zeros once its userfaultfd is closed. One that only calls exec never notices the poison.
 */
static bool poison_child(const struct guest_memory *memory, int child)
{
	for (size_t i = 0; i < memory->map.count; i++) {
		const struct map_piece *piece = &memory->map.pieces[i];
		uint64_t pages = piece->length / piece->page_size, at = 0;

		while (at < pages) {
			enum page_state state = page_states_get(memory->states, piece->first_page + at);
			uint64_t run = page_states_run(memory->states, piece->first_page + at, pages - at, state);
			if ((state == PAGE_ABSENT || state == PAGE_COMING) &&
			    !poison_range(child, piece->address + at * piece->page_size, run, piece->page_size))
				return false;
			at += run;
		}
	}
	return true;
}

/*
 * Memory has gone from here. A thread that faulted before still sleeps at the old address, where no copy will wake it any more: its
 * page is unmapped, or will be supplied elsewhere. It faults again, on whatever is here now.
 */
static void wake_where_it_was(const struct guest_memory *memory, uint64_t address, uint64_t length)
{
	uffd_wake(memory->fd, address, length);
}

static int apply_event(struct guest_memory *memory, struct uffd_msg *message)
{
	switch (message->event) {
	case UFFD_EVENT_REMOVE:
		return apply_remove(memory, message->arg.remove.start, message->arg.remove.end);
	case UFFD_EVENT_UNMAP:
		memory->fixed_map = false;
		wake_where_it_was(memory, message->arg.remove.start,
				  message->arg.remove.end - message->arg.remove.start);
		return address_map_unmap(&memory->map, message->arg.remove.start, message->arg.remove.end);
	case UFFD_EVENT_REMAP:
		memory->fixed_map = false;
		wake_where_it_was(memory, message->arg.remap.from, message->arg.remap.len);
		return address_map_move(&memory->map, message->arg.remap.from, message->arg.remap.to,
					message->arg.remap.len);
	case UFFD_EVENT_FORK:
		if (poison_child(memory, (int)message->arg.fork.ufd)) {
			close((int)message->arg.fork.ufd);
			message->arg.fork.ufd = (uint32_t)-1;
		}
		return 0;
	default:
		return 0;
	}
}

int guest_memory_read(struct guest_memory *memory, struct uffd_msg *messages, size_t count)
{
	bool events = false;
	int failed = 0;

	gate_enter_alone(&memory->gate);
	int got = uffd_read(memory->fd, messages, count);
	for (int i = 0; i < got; i++)
		if (messages[i].event != UFFD_EVENT_PAGEFAULT) {
			events = true;
			int r = apply_event(memory, &messages[i]);
			if (r < 0)
				failed = r;
		}
	if (events) {
		pthread_mutex_lock(&memory->event_lock);
		memory->events_read++;
		pthread_cond_broadcast(&memory->event_read);
		pthread_mutex_unlock(&memory->event_lock);
	}
	if (got > 0 && !failed) {
		gate_share(&memory->gate);
		return got;
	}

	gate_leave_alone(&memory->gate);
	if (failed)
		return failed;
	return got == -EAGAIN || got == -EINTR ? 0 : got;
}

uint64_t guest_memory_events(struct guest_memory *memory)
{
	return atomic_load_explicit(&memory->events_read, memory_order_acquire);
}

void guest_memory_wait_event(struct guest_memory *memory, uint64_t seen, uint64_t timeout_ns)
{
	uint64_t until = now_ns() + timeout_ns;
	struct timespec ts = { .tv_sec = (time_t)(until / NSEC_PER_SEC), .tv_nsec = (long)(until % NSEC_PER_SEC) };

	pthread_mutex_lock(&memory->event_lock);
	while (memory->events_read == seen)
		if (pthread_cond_timedwait(&memory->event_read, &memory->event_lock, &ts) == ETIMEDOUT)
			break;
	pthread_mutex_unlock(&memory->event_lock);
}
