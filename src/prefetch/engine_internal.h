/* What the files of the engine share: engine.c (the threads), turns.c (whose turn it is), slice.c (one turn's pages). */
#pragma once

#include <pthread.h>

#include "prefetch/engine.h"

/* What a small page takes to put in, before any has been. */
#define PAGE_NS_GUESS 2000

/* A worker's buffer: one huge page, or many small ones. */
#define BUFFER_SIZE (2u << 20)

/*
 * Threads for reads that wait, besides the workers: so forks whose pages are in memory never find all threads waiting for others' disks. One
 * stream may have so many reads under way as keep a disk busy, but not more than its share; nor more bytes, as the guest's own faults wait
 * behind them.
 */
#define READERS		16
#define READS_OF_STREAM 16
#define BYTES_OF_STREAM (256u << 10)
/* Where a whole window's reads can be started at once, so many windows of a stream are under way. */
#define WINDOWS_ADVISED 4

struct prefetch_engine {
	pthread_mutex_t lock; /* of all that follows but what never changes */
	pthread_cond_t wanted;
	struct prefetch_job *queue, **queue_tail; /* those with slices to take, or to be prepared */
	unsigned jobs, streams;			  /* that have not ended; streams once they are prepared */
	unsigned working, waiting, preparing;	  /* workers, and what they do */
	unsigned working_max;
	_Atomic bool stopping; /* changed under the lock */
	struct prefetch_cpus cpus;
	_Atomic uint64_t page_ns; /* that putting in a small page has lately taken */
	struct keeper *keeper;
	unsigned worker_count;
	struct worker {
		pthread_t thread;
		struct prefetch_engine *engine;
		void *buffer;
		cpu_set_t cpus; /* that it may run on */
		struct lease_section leasing;
	} workers[];
};

/* A part of a plan, or of a stream, that one worker has taken. */
struct slice {
	const struct plan_run *runs;
	size_t run; /* where it stands, with AT */
	uint64_t at;
	uint64_t left; /* pages */
	uint64_t step; /* pages a call; 0 before the first */
	uint64_t demands_seen;
	bool whole;		     /* a stream's window, of which nothing is to be read with waiting, unless ... */
	bool advised;		     /* ... the reads of all of it have been started */
	bool packed;		     /* ... or its pages come from the packed hot set */
	bool waited;		     /* or would have had to */
	struct stream_window window; /* of a stream: RUNS are its */
};

static inline bool is_stopping(const struct prefetch_engine *engine)
{
	return atomic_load_explicit(&engine->stopping, memory_order_relaxed);
}

static inline bool is_packed(const struct prefetch_job *job)
{
	return job->stream && job->hot && job->hot->set;
}

static inline bool is_unprepared(const struct prefetch_job *job)
{
	return !job->plan && !job->stream;
}

/* turns.c; with the engine's lock held */
void enqueue(struct prefetch_engine *engine, struct prefetch_job *job);
/* Puts JOB in line for another turn, where there is something left for one. */
void enqueue_again(struct prefetch_engine *engine, struct prefetch_job *job);
/* Whether there is a job that may have a turn now. */
bool has_turn(const struct prefetch_engine *engine);
/* The first job that may have a turn now, and out of line with it; or NULL. */
struct prefetch_job *dequeue(struct prefetch_engine *engine);
/* What the turn is for; it may be empty. */
void take_slice(const struct prefetch_engine *engine, struct prefetch_job *job, struct slice *slice);

/* turns.c; these take the lock */
/* Not all of a stream's window is in memory: gives the rest of it back, to be read in the list's order. */
void leave_to_readers(struct worker *worker, struct prefetch_job *job, struct slice *slice);
/* The slice's next PAGES have to be waited for: lets others work, also on what is behind them in a stream. */
void begin_waiting(struct worker *worker, struct prefetch_job *job, struct slice *slice, uint64_t pages,
		   size_t page_size);
/* BYTES: of these pages. */
void end_waiting(struct worker *worker, struct prefetch_job *job, uint64_t bytes);

/* slice.c */
/* Deals with all of SLICE. 0, or negative errno: the job is given up. */
int work_on(struct worker *worker, struct prefetch_job *job, struct slice *slice);
