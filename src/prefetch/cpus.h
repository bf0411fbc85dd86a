/*
 * Which CPUs prefetch workers stand on: not those that guests run on while pages are streamed to them, as long as there are others. A copy of
 * a window on its guest's CPU holds that guest up for longer than its pages are worth.
 */
#pragma once

#include <sched.h>
#include <stdint.h>

struct prefetch_cpus {
	cpu_set_t allowed;	      /* to the process, when the engine was made */
	uint16_t guests[CPU_SETSIZE]; /* jobs whose guests run there */
};

/* One job's guest: where it was last seen to run. */
struct guest_cpus {
	cpu_set_t set;
	uint64_t look_ns, interval_ns; /* when it is to be looked at again */
};

void prefetch_cpus_init(struct prefetch_cpus *cpus);
/* GUEST runs on the CPUs of NOW from now on; an empty set: nowhere that is known, or it has no guest any more. */
void prefetch_cpus_move(struct prefetch_cpus *cpus, struct guest_cpus *guest, const cpu_set_t *now);
/* Where a worker had best be that copies for GUEST: off all guests' CPUs, or off this one's at least, or wherever it may. */
void prefetch_cpus_choose(const struct prefetch_cpus *cpus, const struct guest_cpus *guest, cpu_set_t *ret);
