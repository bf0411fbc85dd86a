/* What the files of the observer share. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "observe/join.h"
#include "observe/observe.h"
#include "observe/pins.h"
#include "observe/programs.h"
#include "observe/stamps.h"
#include "observe/tier.h"
#include "observe/watched.h"

#define FORK_BUCKETS 4096u

struct observe {
	const struct tier *tier;
	struct programs *programs;
	struct pins pins;
	char lacks[600];
	char kept_privileges[80];
	struct stamp_ring **stamps; /* one a pager */
	unsigned stamp_count;
	struct observer observer;

	int stop_fd; /* eventfd: the reader ends */
	_Atomic bool stopping;

	pthread_mutex_t attach_lock; /* what one thread at a time may ask of the programs; before LOCK */
	pthread_t reader;	     /* started with the first fork */
	bool reader_runs;
	uint32_t last_slot;

	pthread_mutex_t lock; /* what follows */
	struct ring_buffer *ring;
	struct joiner *joiner;
	struct watched *forks[FORK_BUCKETS]; /* by slot */
	uint64_t strangers;		     /* events of forks that were released already */
};

/* All of these with observe->lock held. */
struct watched *observe_find(struct observe *observe, uint64_t slot);
/* Takes what the ring and the pagers hold by now; ALL: and joins it as far as that goes. Events taken, or a negative errno. */
int observe_drain(struct observe *observe, bool all);

/* With the attach_lock held. */
int observe_start_reader(struct observe *observe);

/* observer.c */
void observer_fill(struct observe *observe);
