/*
 * How the server is observed, and what it asks of its observer. The server doesn't know what stands behind this, and nothing on a page's way
 * waits for it: every call may fail, and no page is served later for it. A server without an observer has NULL.
 *
 * Calls come from any thread unless said otherwise, and none blocks for more than a system call or a short lock, but trace_read.
 * Times are CLOCK_MONOTONIC nanoseconds where nothing else is said. Functions return 0 or a negative errno.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "hotlist/hotlist.h"

/* A fork as its observer knows it; made by attach. */
typedef uint64_t observed_fork;

struct observer_region {
	uint64_t address, size, page_size; /* bytes, in the VMM's address space */
	uint32_t region;		   /* index in the handshake, and ... */
	uint64_t offset; /* ... the byte in that region that lies at ADDRESS: not 0 where memory has moved */
};

struct observer_fork {
	const char *id;
	pid_t pid;
	int uffd; /* the server's; used during the call only */
	bool record;
	/* Of the recording's window, where they aren't the usual ones: 0 for each that is. SETTLE: UINT64_MAX is never. */
	uint64_t window_timeout_ns, window_settle_ns;
	uint64_t connected_ns; /* recorded times count from here */
	const struct observer_region *regions;
	size_t region_count;
};

/* What the server did about one demand fault that it read. */
struct observer_stamp {
	observed_fork fork;
	uint64_t address;   /* of the page, in the VMM's address space */
	uint64_t read_ns;   /* the fault was read from the userfaultfd */
	uint64_t source_ns; /* its bytes were at hand; read_ns where nothing had to be fetched */
	uint64_t copied_ns; /* the page was in, and its waiters woken, or right after; a waiter on the pager's CPU may run before this is looked at */
};

struct phase_figures {
	uint64_t count, p50_ns, p90_ns, p99_ns, max_ns;
};

/* Latency of demand faults, whole and by phase: queue (touch to read), source, copy, wake (copied to running again). */
struct observed_figures {
	uint64_t faults;      /* as the kernel saw them: threads that waited */
	uint64_t present;     /* touches of pages that were there */
	uint64_t stall_ns;    /* sum, over FAULTS */
	uint64_t events_lost; /* of the ring: not in the figures below nor in the recording, but in those above */
	uint64_t unjoined;    /* faults whose stamps of the server were not found */
	unsigned vcpus;	      /* threads that touched memory */
	struct phase_figures total, queue, source, copy, wake;
	uint64_t kvm_touches; /* as KVM told them: each page's first, whether or not it was there */
};

/* One fault or touch, as `faultline trace` shows it. Stamps that are not known are 0. */
struct observed_touch {
	uint64_t touch_ns, read_ns, source_ns, copied_ns, run_ns;
	uint64_t address; /* exact */
	uint64_t offset;  /* in the region */
	uint32_t region;
	pid_t tid;
	char thread[16]; /* its name */
	uint16_t vcpu, cpu;
	bool demand; /* it waited for the page */
	bool kthread, write, fetch, kvm;
};

struct observer {
	void *data;
	const char *tier; /* "fentry", "kprobe", "tp_btf"; never "none": then there is no observer */

	/* The fork's session begins. FORK may be used until release. */
	int (*attach)(void *data, const struct observer_fork *fork, observed_fork *ret);
	/* Its memory has moved or shrunk. */
	void (*regions)(void *data, observed_fork fork, const struct observer_region *regions, size_t count);
	/* Its guest is ready: the window of its recording ends. */
	void (*ready)(void *data, observed_fork fork);
	/* Its memory is gone, or about to go; figures and recording stay. */
	void (*detach)(void *data, observed_fork fork);
	void (*release)(void *data, observed_fork fork);

	/* By the pager PAGER (0 to server_pager_count - 1) alone; never blocks, never fails. */
	void (*stamp)(void *data, unsigned pager, const struct observer_stamp *stamp);

	/* As of now: threads are asked for what they have done last. */
	int (*figures)(void *data, observed_fork fork, struct observed_figures *ret);
	/* As of a moment ago, which asks nobody: for lists of all forks. */
	int (*figures_lately)(void *data, observed_fork fork, struct observed_figures *ret);
	/* What it touched so far, as a list in first-touch order. -ENODATA: it was not recorded. */
	int (*hot_list)(void *data, observed_fork fork, struct hotlist **ret, struct error *err);

	/* Touches from now on, for one reader. */
	int (*trace_open)(void *data, observed_fork fork, void **ret_trace);
	/* Up to MAX of them, at least one, unless TIMEOUT_NS pass: 0. -ESHUTDOWN: all told, and the fork has ended. LOST counts those that came too fast. */
	ssize_t (*trace_read)(void *trace, struct observed_touch *ret, size_t max, uint64_t timeout_ns,
			      uint64_t *ret_lost);
	void (*trace_close)(void *trace);
};
