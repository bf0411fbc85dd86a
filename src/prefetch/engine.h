/*
 * Prefetch workers, shared by all forks. Each takes a slice of one fork's plan, or of its stream, then of the next one's. A plan is for a
 * guest that waits for it: where there is only one, all workers are at it. A stream runs beside its guest, one worker at a time
 * as long as its pages are in memory; where they are not, several reads of it are under way. Whoever waits for a disk is not counted as
 * working, so that the other forks' pages go on; it never holds a fork's gate while it does, and it never makes a removed page come back.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "prefetch/cpus.h"
#include "prefetch/plan.h"
#include "prefetch/stream.h"
#include "template/hot_set.h"
#include "template/keeper.h"
#include "template/source.h"
#include "uffd/guest_memory.h"

struct prefetch_job {
	/* One of the two; the job's maker owns it, memory and source, and frees them after done. */
	struct plan *plan;
	struct stream *stream;
	/* Makes it, on a worker, where both are NULL: reading and sorting a long list takes its time. 0 or negative errno. */
	int (*prepare)(struct prefetch_job *job);
	struct guest_memory *memory;
	struct source *source;
	/* Of a stream: where pages are that are not in memory by the image; its set may be NULL. */
	struct hot_reader *hot;
	/*
	 * On a worker, with the gate held so that nobody wakes a waiter first: the image was cut short while pages were copied from
	 * it, and one of them may have got zeros. The fork is lost; the job ends with -ESTALE.
	 */
	void (*lost)(struct prefetch_job *job);
	/*
	 * On a worker, when the job has ended: 0; -ESRCH the VMM is ending; -ECANCELED the engine stops; -ESTALE see above; else what
	 * failed. The job is the maker's again.
	 */
	void (*done)(struct prefetch_job *job, int result);
	/* The CPUs that its guest runs on, as far as they are known. Any thread; may be NULL. */
	void (*find_cpus)(struct prefetch_job *job, cpu_set_t *ret);
	void *data;

	/* Counts so far, for whoever looks. */
	_Atomic uint64_t copied, present, removed, skipped, unreadable;
	_Atomic uint64_t wanting; /* size of the pages that there was no memory for, where that was the end; or 0 */

	/* The engine's from here on. */
	size_t run; /* where the next slice begins, with AT; under the engine's lock, as what follows */
	uint64_t at;
	unsigned working, waiting; /* workers that have a slice of it, and those of them that wait for a disk */
	uint64_t waiting_bytes;	   /* for so many */
	bool queued;
	bool slow;		/* what it took last was not in memory */
	bool dry;		/* of a stream: nothing was left to be taken */
	struct guest_cpus cpus; /* of a stream */
	int result;		/* why it is given up, or 0 */
	_Atomic int first_error;
	struct prefetch_job *next;
};

struct prefetch_engine;

/* At most WORKERS at work at once, besides those that wait for a disk. KEEPER, which outlives it, gives the leases on images. */
int prefetch_engine_new(unsigned workers, struct keeper *keeper, struct prefetch_engine **ret, struct error *err);
/* Ends what is under way (done gets -ECANCELED) and joins the workers. NULL is fine. */
void prefetch_engine_free(struct prefetch_engine *engine);
/* JOB's counts and the engine's members are zeroed here. */
void prefetch_engine_submit(struct prefetch_engine *engine, struct prefetch_job *job);
