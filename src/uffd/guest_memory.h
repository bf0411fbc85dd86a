/*
 * A fork's memory behind one userfaultfd: regions, page states, and the gate that keeps removed pages removed.
 *
 * The gate. Reading a REMOVE event lets the guest's madvise() go on: from then on a copy into that range would bring stale bytes
 * back, also one that was already on its way (before Linux 6.9 the kernel does not hold these apart). So pages are put in
 * with the gate held shared, and messages are read, and their events applied, with it held exclusively. Readers come first.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/types.h>

#include "uffd/gate.h"
#include "uffd/page_state.h"
#include "uffd/regions.h"
#include "uffd/uffd.h"

struct guest_memory {
	int fd;			/* owned */
	pid_t pid;		/* of the VMM, to look at its page table; 0: not known */
	struct region *regions; /* owned; fixed */
	size_t region_count;
	uint64_t page_count;
	struct page_states *states;

	struct gate gate;
	struct address_map map; /* changed with the gate held exclusively */
	bool fixed_map;		/* the map is as at the handshake: pages are found without a search */
	bool forgotten;		/* the map is empty, as the VM has ended */

	_Atomic uint64_t removed_pages;
	_Atomic uint64_t demands; /* goes up with every batch of demand faults: prefetch takes smaller steps beside them */

	pthread_mutex_t event_lock; /* innermost */
	pthread_cond_t event_read;
	_Atomic uint64_t events_read; /* changed under event_lock */
};

/* Takes FD and REGIONS (allocated, validated), on success only. */
int guest_memory_new(int fd, struct region *regions, size_t count, struct guest_memory **ret);
void guest_memory_free(struct guest_memory *memory);

/*
 * The VM has ended: once this returns, nothing is put anywhere any more. Its addresses may soon be those of another VM of the same process,
 * and the kernel would copy into memory that is registered with that one's userfaultfd just as well.
 */
void guest_memory_forget(struct guest_memory *memory);

static inline void guest_memory_enter(struct guest_memory *memory)
{
	gate_enter(&memory->gate);
}

static inline void guest_memory_leave(struct guest_memory *memory)
{
	gate_leave(&memory->gate);
}

/* The piece for a page number; the gate is held. NULL: unmapped. */
const struct map_piece *guest_memory_piece(const struct guest_memory *memory, uint64_t page);

/* How a supply ended; the pages before that are in place. */
enum supply_outcome {
	SUPPLY_DONE,
	SUPPLY_RETRY,	  /* an event has to be read first: try again from the first page that is missing */
	SUPPLY_GONE,	  /* the VMM is ending */
	SUPPLY_NO_MEMORY, /* the VMM's memory limit or hugetlbfs pool */
	SUPPLY_FAILED,	  /* see error */
};

struct supply {
	enum supply_outcome outcome;
	uint64_t copied;  /* pages that this call put there */
	uint64_t present; /* pages that were there already; their waiters were woken, or will be with the others */
	uint64_t skipped; /* pages that are unmapped now */
	int error;
};

/*
 * When the threads that wait for a page are woken: with the copy, or by guest_memory_wake. Later is for bytes that are not known to be right
 * yet; and for when another pager may wait for the gate: a woken vCPU takes this CPU at once, and the gate with it.
 */
enum wake { WAKE_NOW, WAKE_LATER };

/* Puts COUNT pages, whose bytes stand at DATA, from page number PAGE on; they lie in one region. The gate is held shared. */
struct supply guest_memory_supply(struct guest_memory *memory, uint64_t page, uint64_t count, const void *data,
				  enum wake wake);
void guest_memory_wake(struct guest_memory *memory, uint64_t page, uint64_t count);
/* Makes COUNT pages from PAGE on zero; one, if it is huge. They lie in one region. The gate is held shared. */
struct supply guest_memory_zero(struct guest_memory *memory, uint64_t page, uint64_t count, enum wake wake);
/* Makes touching the page a SIGBUS. SUPPLY_FAILED where the kernel can't (before Linux 6.6). The gate is held shared. */
struct supply guest_memory_poison(struct guest_memory *memory, uint64_t page);

/*
 * Reads up to COUNT messages and applies the events among them, with the gate held exclusively; the faults are the caller's to serve.
 * FORK: the child is not served. Its absent pages are poisoned, its descriptor is closed and -1 in the message; where the kernel
 * can't poison, the descriptor stays open, or the child would read zeros, and is the caller's. Messages read, and then the gate is
 * held shared without a gap, until guest_memory_leave; 0: none there; or negative errno.
 */
int guest_memory_read(struct guest_memory *memory, struct uffd_msg *messages, size_t count);

/* Waits, at most TIMEOUT_NS, until messages have been read after SEEN (see guest_memory_events). */
void guest_memory_wait_event(struct guest_memory *memory, uint64_t seen, uint64_t timeout_ns);
uint64_t guest_memory_events(struct guest_memory *memory);
