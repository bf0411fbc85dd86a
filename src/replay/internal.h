/* What the parts of the replaying process share. Internal to this folder. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "replay/guest.h"

/* What a guest's write adds to the word that it touches. */
#define WRITE_MARK 0x5a5a000000000000ull

/* One touch, as it was. Times since the guest's start. */
struct touch_record {
	uint64_t started_ns, ended_ns;
	uint64_t value; /* of the word that was touched, as it was before */
};

/* One thread, and the touches that are its own. It alone writes here, but for `wanted`; others read `progress`. */
struct lane {
	_Alignas(64) _Atomic size_t progress; /* touches that have ended */
	/* REPLAY_HALTING: for which progress of this lane each other one sleeps; 0: it doesn't. */
	_Atomic size_t wanted[TRACE_VCPUS_MAX];
	size_t count;
	size_t first;				     /* where its records begin */
	uint32_t *touches;			     /* their numbers in the trace, in order */
	uint64_t sleeps, minor_faults, major_faults; /* as the kernel counts its thread's */
};

/* What the process shares with the one that started it; the records and lanes stand in the same mapping. */
struct replay_shared {
	atomic_int failed; /* set by whoever fills `error` */
	struct error error;
	struct replay_result result;	 /* once it has said SAY_DONE */
	uint64_t handshake_ns, start_ns; /* on the clock */
	size_t checked, unasked;
	struct replay_wrong wrong;
	bool crowded;
	unsigned lane_count;
	struct lane lanes[TRACE_VCPUS_MAX];
	struct touch_record records[]; /* lane by lane, so that two threads write to one cache line at most where lanes meet */
};

/* The guest's memory in its process. */
struct memory {
	char *base;
	uint64_t size;
	int connection; /* to the server; -1: none */
};

/* Of REPLAY_SHARED, in the handshake: the mapping that is prefetched, and the one that is touched. */
enum { REGION_PREFETCHED, REGION_TOUCHED };

/* Which word of a page a touch goes to: a different one on each page. */
static inline unsigned touched_word(uint64_t page)
{
	return (unsigned)(page * 0x9e3779b1u >> 7) % (TRACE_PAGE / 8);
}

/* Maps the memory and, where it is served, does the handshake. In the guest's process. */
int memory_open(const struct replay_config *config, struct memory *ret, uint64_t *ret_handshake_ns, struct error *err);

/* The number of the lane that makes the touch. */
static inline unsigned lane_of(const struct replay_config *config, const struct trace_touch *touch)
{
	return config->vcpus == REPLAY_ONE ? 0 : touch->vcpu;
}

/* Deals the trace's touches out. The lanes' `touches` are one allocation, lanes[0].touches, which the caller frees. */
int lanes_deal(const struct replay_config *config, struct replay_shared *shared, struct error *err);

/* The threads. Lives as long as they do: until the process ends. */
struct runner {
	const struct replay_config *config;
	struct replay_shared *shared;
	char *base;
	int done_fd; /* an eventfd, written to when all are through */
	pthread_mutex_t lock;
	pthread_cond_t released_changed;
	bool released; /* under lock */
	_Atomic unsigned awake, finished;
	_Atomic uint64_t start_ns; /* 0: not all threads are awake */
	_Atomic uint64_t lag_ns;   /* the largest that any touch has had, where vCPUs wait for each other */
};

/* Starts the threads, which sleep until runner_release. The other members of RUNNER are set by the caller. */
int runner_start(struct runner *runner, struct error *err);
void runner_release(struct runner *runner);

/* Compares every byte of every page that is there. 0 or -ENOMEM. */
int check_memory(const struct replay_config *config, struct replay_shared *shared, const struct memory *memory);

/* Touches config->tail pages with data that the trace does not have, and compares them. -ENOMEM. */
int check_tail(const struct replay_config *config, struct replay_shared *shared, const struct memory *memory);

/* Records to figures. -ENOMEM. */
int figures_make(const struct replay_config *config, const struct replay_shared *shared, struct replay_result *result);

/* The body of the guest's process: TALK is its end of a socket to the one that started it. Never returns. */
void guest_process(const struct replay_config *config, struct replay_shared *shared, int talk) __attribute__((noreturn));

/* What the two say to each other. */
enum { SAY_CONNECTED = 'c', SAY_RUN = 'r', SAY_CHECK = 'k', SAY_DONE = 'd', SAY_LINGER = 'l', SAY_FAILED = 'f' };
