/*
 * What was seen of one fork's memory: touches and sleeps, in the order in which they came in, with times. Facts only; clock.h, window.h and
 * hot_list.h make a hot list of it. Not thread-safe. Times are nanoseconds since the fork's handshake.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "hotlist/page_index.h"

/* Four million touches and sleeps are 16 GiB of guest memory and a few hundred MB here: more is not a warm-up. */
#define RECORDING_MAX (4u << 20)

enum touch_kind { TOUCH_UNKNOWN, TOUCH_READ, TOUCH_WRITE, TOUCH_FETCH, TOUCH_WALK };

struct touch {
	uint32_t region;
	uint16_t vcpu; /* counted from 0 in order of appearance; VCPU_UNKNOWN: a kernel thread's, or by the fault loop */
	uint8_t kind;  /* enum touch_kind */
	bool present;  /* the page was there: nobody waited */
	uint64_t offset;
	uint64_t touch_ns;
	uint64_t run_ns;  /* when the thread went on; touch_ns where nobody waited */
	uint64_t lost_ns; /* that its thread had lost before, to stalls and to being runnable without running */
};
#define VCPU_UNKNOWN UINT16_MAX

/* A vCPU thread slept, not for a page: it halted, or its VMM worked. */
struct vcpu_sleep {
	uint16_t vcpu;
	uint16_t waker; /* vCPU that woke it; VCPU_UNKNOWN: a timer, a device, or somebody not seen */
	uint64_t sleep_ns, wake_ns, run_ns;
	uint64_t lost_ns; /* as above, before sleep_ns */
};

struct recording {
	struct touch *touches;	/* only the first of each page */
	struct page_index seen; /* numbers are places in TOUCHES */
	size_t touch_count, touch_capacity;
	struct vcpu_sleep *sleeps;
	size_t sleep_count, sleep_capacity;
	uint64_t events_lost; /* that were generated and not seen */
	bool full;	      /* RECORDING_MAX or memory ran out */
};

/*
 * A page's touches may be told in any order, and more than once: the one that began first stays. Where that one seemed to find the page
 * there and a demand fault on it began within TOUCH_FOLLOWED_NS, both are the same touch (KVM sees it before the fault does): it keeps its time, and takes
 * the fault's end. 0, -ENOMEM or -ENOSPC (RECORDING_MAX); the recording is as it was and marked full then.
 */
#define TOUCH_FOLLOWED_NS 1000000000u /* the fault may be a kernel thread's, which has to get a CPU first */
int recording_add_touch(struct recording *recording, const struct touch *touch);
int recording_add_sleep(struct recording *recording, const struct vcpu_sleep *sleep);
void recording_clear(struct recording *recording);
