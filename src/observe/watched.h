/* One fork as its observer keeps it: where its memory lies, its threads, figures, recording, and who reads along. Under the observer's lock. */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/histogram.h"
#include "bpf/event.h"
#include "observe/recording.h"
#include "serve/observer.h"

/* Threads that have vCPU numbers; a VMM has one a vCPU and a few of its own. */
#define WATCHED_THREADS_MAX 1024
/* What a slow reader of a trace may fall behind. */
#define TRACE_BACKLOG 16384u

struct watched_thread {
	uint32_t tid;
	bool kthread;
	uint16_t vcpu; /* VCPU_UNKNOWN for a kernel thread */
	char name[16];
};

struct watched;

struct trace {
	struct watched *watched; /* NULL: the fork is released */
	struct trace *next;	 /* of the fork's */
	pthread_mutex_t *lock;	 /* the observer's */
	pthread_cond_t changed;
	struct observed_touch *touches; /* TRACE_BACKLOG of them */
	uint64_t written, read;
	uint64_t lost;
};

struct watched {
	uint32_t slot;
	struct watched *next; /* in its bucket */
	char id[64];
	pid_t pid;
	uint64_t context, mm;
	bool attached; /* the kernel's programs know it */
	bool record;
	uint64_t missed_before; /* runs of programs that the kernel had skipped when it was attached */
	uint64_t connected_ns, ready_ns, detached_ns;
	uint64_t window_timeout_ns, window_settle_ns; /* 0: the usual ones */

	struct observer_region *regions; /* by address */
	size_t region_count;

	struct watched_thread *threads;
	size_t thread_count, thread_capacity;
	uint16_t vcpus;

	struct fork_stats final; /* as of the end, once it isn't attached */
	uint64_t seen;		 /* events */
	uint64_t waiting;	 /* of them: faults and touches that are to be joined yet */
	uint64_t kvm_touches, told_again, faults, joined, unjoined;
	uint64_t awake,
		awake_stall_ns; /* of the faults: those that the kernel's programs took for touches, as no thread slept */
	struct histogram total, queue, source, copy, wake;
	struct recording recording;
	struct trace *traces;
};

/* NULL: out of memory. Regions are copied. */
struct watched *watched_new(const struct observer_fork *fork);
void watched_free(struct watched *watched);
int watched_set_regions(struct watched *watched, const struct observer_region *regions, size_t count);
/* NULL: the address is none of its memory. */
const struct observer_region *watched_region(const struct watched *watched, uint64_t address);

/* What EVENT says is noted. */
void watched_thread_named(struct watched *watched, const struct fl_event *event);
/* TOLD_AGAIN: if it is a fault, that comes as an event of its own. */
void watched_touched(struct watched *watched, const struct fl_event *event, bool told_again);
void watched_slept(struct watched *watched, const struct fl_event *event);
void watched_faulted(struct watched *watched, const struct fl_event *event);
/* The fault or touch, which was noted before, with what the server's STAMP says of it (NULL: there is none). */
void watched_joined(struct watched *watched, const struct fl_event *event, const struct observer_stamp *stamp);
void watched_figures(const struct watched *watched, const struct fork_stats *stats, struct observed_figures *ret);

struct trace *trace_new(struct watched *watched, pthread_mutex_t *lock);
