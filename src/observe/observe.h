/*
 * Observation of forks by BPF programs in the kernel: faults, their latency, and touches in order. Where nothing else is said, functions may be
 * called by any thread, return 0 or a negative errno, and times are CLOCK_MONOTONIC nanoseconds.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

struct observer; /* serve/observer.h */
struct observe;

#define OBSERVE_RING_DEFAULT (4u << 20) /* bytes: half a second at 140,000 events a second */
#define OBSERVE_RING_MIN     4096u
#define OBSERVE_RING_MAX     (512u << 20)

struct observe_config {
	size_t ring_bytes; /* rounded up to a power of two; 0: OBSERVE_RING_DEFAULT */
	unsigned pagers;   /* threads that call observer->stamp */
	const char *tier;  /* only this one; NULL: the best that works */
	bool drop_privileges; /* as privileges_drop(), once all is attached: of the caller and of threads that it starts later */
};

/*
 * Loads and attaches the best tier's programs. No thread is started before the first fork is attached, so capabilities may be given up after this.
 * -EPERM, -EOPNOTSUPP and others with the code "no_tier": none works; the text says why for each.
 */
int observe_new(const struct observe_config *config, struct observe **ret, struct error *err);
/* No fork may be attached any more, and no stamp come. Pins are removed. NULL is fine. */
void observe_free(struct observe *observe);

/*
 * Pins maps and programs under /sys/fs/bpf/faultline/ and RUN_DIR's last name, for bpftool; RUN_DIR's lock is held. Code "no_pins": it can't be; all else
 * works without.
 */
int observe_pin(struct observe *observe, const char *run_dir, struct error *err);

struct programs;
struct programs *observe_programs(struct observe *observe);

const char *observe_tier(const struct observe *observe);
/* What is missing although the tier works ("touches of pages that are there, under KVM: …"), or NULL. */
const char *observe_lacks(const struct observe *observe);
/* Capabilities that could not be dropped ("CAP_BPF"), or NULL. */
const char *observe_kept_privileges(const struct observe *observe);
/* Where maps and programs are pinned, or NULL. */
const char *observe_pin_dir(const struct observe *observe);

/* As the server sees it; as long as OBSERVE. */
const struct observer *observe_observer(struct observe *observe);

/* A process without a userfaultfd: what it touches in ranges of its memory. For observer->hot_list and the others like any fork. */
struct observe_range {
	uint64_t address, size; /* bytes */
	uint64_t offset;	/* of what lies at ADDRESS, in region REGION */
	uint32_t region;
};
int observe_attach_process(struct observe *observe, const char *id, pid_t pid, const struct observe_range *ranges,
			   size_t count, uint64_t *ret_fork, struct error *err);
/* The rules of its recording's window, where they aren't the usual ones (window.h): 0 for each that is. */
void observe_set_window(struct observe *observe, uint64_t fork, uint64_t timeout_ns, uint64_t settle_ns);
