/*
 * A replay: a process of its own whose vCPU threads touch pages when the trace says, and which then checks every byte that it has. Its
 * memory comes from a page server, from a private mapping of the image, or was there before. The process that starts it watches it: a
 * server may kill it, or leave it standing still.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "replay/trace.h"

enum replay_memory {
	REPLAY_SERVED, /* by the server that listens on a socket */
	/*
	 * The same, but a memfd that is mapped twice: prefetched through one mapping, touched through the other, so that pages that are there
	 * have yet to be mapped. All touches are faults for writing, as those for reading would map others around.
	 */
	REPLAY_SHARED,
	REPLAY_PLAIN,	/* mmap(MAP_PRIVATE) of the image */
	REPLAY_PRESENT, /* every page is there before: the floor */
};

enum replay_vcpus {
	REPLAY_WAITING, /* a thread each; no touch before those that came REPLAY_SLACK_NS earlier have ended */
	REPLAY_HALTING, /* the same, but who has to wait for another sleeps until that one wakes it, as a halted vCPU does */
	REPLAY_INDEPENDENT, /* a thread each, which knows nothing of the others */
	REPLAY_ONE,	    /* one thread for all */
};

/* What a vCPU does between two touches, and so what its clock is. */
enum replay_pace {
	REPLAY_SPINS,	 /* runs, and its time is the wall's */
	REPLAY_COMPUTES, /* runs, and its time is what it gets of a CPU; for REPLAY_INDEPENDENT and REPLAY_ONE */
	REPLAY_IDLES, /* sleeps until a timer wakes it, where there is time enough for that; for REPLAY_INDEPENDENT */
};

/* Closer together, two vCPUs' touches have nothing to do with each other: an interrupt between vCPUs takes about as long. */
#define REPLAY_SLACK_NS 50000ull
/* A touch that took longer was no mere access: one that finds its page takes a tenth of this, the fastest server three times as long. */
#define REPLAY_SLOW_NS 2000ull

struct replay_config {
	const struct trace *trace;
	const struct trace_image *image;
	uint64_t seed; /* of the image's content */
	enum replay_memory memory;
	enum replay_vcpus vcpus;
	enum replay_pace pace;
	size_t tail; /* so many pages that the trace does not have are touched when replay_linger is called */
	const char *template_path; /* the image's file, for REPLAY_PLAIN */
	const char *socket;	   /* for REPLAY_SERVED */
	bool answers;		   /* the server there is one of faultline, which says whether it took the memory */
	const int *cpus;	   /* vCPU thread i stands on cpus[i % cpu_count] */
	size_t cpu_count;	   /* 0: wherever the scheduler puts them */
	/* Called in the process that waits, when the last touch has ended and no page has been compared yet; may be NULL. */
	int (*on_ran)(void *data, struct error *err);
	void *data;
	int interrupt_fd; /* once it is readable, waiting ends with -EINTR; -1: none */
};

/* Of one vCPU, or of all. Times in nanoseconds. */
struct replay_figures {
	size_t touches;
	size_t slow;				 /* touches of REPLAY_SLOW_NS or more */
	uint64_t stall_ns;			 /* all slow touches together */
	uint64_t p50_ns, p90_ns, p99_ns, max_ns; /* of slow touches */
	uint64_t faults;       /* pages that the thread waited for: from the server, or from the disk */
	uint64_t minor_faults; /* other faults of the thread */
};

struct replay_wrong {
	size_t count; /* pages that were not as they should be */
	/* The first of them: */
	uint64_t page;
	unsigned byte;
	uint64_t expected, found; /* the word there */
	char what[64];
};

struct replay_result {
	uint64_t before_ns; /* from the handshake to the guest's start */
	uint64_t run_ns;    /* from the guest's start to the end of the last touch */
	int64_t added_ns;   /* both, less the trace's own length */
	struct replay_figures all;
	struct replay_figures vcpus[TRACE_VCPUS_MAX]; /* REPLAY_ONE: the thread's faults are in `all` alone */
	size_t checked;				      /* touched pages, every byte of which was compared */
	size_t unasked;				      /* pages that were there and never touched, compared as well */
	struct replay_wrong wrong;
	bool crowded; /* more vCPU threads than CPUs for them: they gave way to each other while they waited */
};

/* Whether a server supplies the memory. */
static inline bool replay_is_served(const struct replay_config *config)
{
	return config->memory == REPLAY_SERVED || config->memory == REPLAY_SHARED;
}

struct replay_guest;

/*
 * Starts the process: its memory is ready, and the handshake done, when this returns. The guest does not run yet. CONFIG and what it
 * points to must stay until replay_free. The caller has no other threads. Errors as replay_run.
 */
int replay_start(const struct replay_config *config, struct replay_guest **ret, struct error *err);

/*
 * Lets the guest run, and returns when it has ended. Codes: server_gone (the server hung up, or killed the guest), guest_stuck (no touch
 * ended for long), bad_page (SIGBUS), guest_failed, interrupted (-EINTR). That pages were wrong is a result, and no error.
 */
int replay_run(struct replay_guest *guest, struct replay_result *ret, struct error *err);

/* After replay_run: touches the `tail` as well, pages with data in order of address, and checks them. Codes as replay_run. */
int replay_linger(struct replay_guest *guest, struct error *err);

/* After replay_run: when each touch began, and when it ended, since the guest's start; in the trace's order. Either may be NULL. */
void replay_touch_times(const struct replay_guest *guest, uint64_t *started_ns, uint64_t *ended_ns);

/* After replay_run: each touch with its times since the guest's start, in the trace's order, as CSV. Codes: disk_full, io_error. */
int replay_write_touches(const struct replay_guest *guest, const char *path, struct error *err);

/* Kills the process where it still lives. */
void replay_free(struct replay_guest *guest);
DEFINE_CLEANUP(struct replay_guest, replay_free)
#define _cleanup_replay_guest_ _cleanup_(cleanup_replay_free)
