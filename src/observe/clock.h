/*
 * What time it was for the guest when it touched a page: a virtual clock for each vCPU, computed from a recording. docs/observation.md has the
 * reasons.
 *
 * A vCPU's clock goes with the time while it runs, and stands while it waits for a page or is runnable and does not run. Over a sleep, it depends
 * on who woke it: another vCPU of the fork, then it becomes at least the waker's; something else, then the sleep counts, and makes good what
 * the vCPU was late. A touch in the name of no vCPU has the fork's clock, that of the vCPU which is furthest.
 *
 * Recordings may be nonsense (times that go back, sleeps that overlap, events missing): no clock ever goes back, and none is ahead of the real time.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "observe/recording.h"

struct clocks {
	/* By touch, as in the recording. */
	uint64_t *corrected_ns;
	uint64_t *progress_ns; /* time until then, less that in which somebody was stalled and no vCPU got on */
};

/* 0 or -ENOMEM. O(n log n). */
int clocks_compute(const struct recording *recording, struct clocks *ret);
void clocks_clear(struct clocks *clocks);

/*
 * Whether vCPUs wait for each other in a way that the kernel can't see, by spinning. During a long stall of one the others make hardly any new
 * touches then; vCPUs that know nothing of each other touch on as they always do.
 *
 * EXPECTED is how many touches they would have made during others' stalls at the rate that they have at other times, RATIO how many they made of
 * that: 0 they wait for each other, so touches happened in the guest's order (raw time is right), 1 they don't (corrected time is). It says the more the
 * larger EXPECTED is.
 */
struct independence {
	double ratio, expected;
	unsigned vcpus; /* that touched anything */
};

/* Touches after UNTIL_NS are left out. 0 or -ENOMEM. O(n log n). */
int independence_measure(const struct recording *recording, uint64_t until_ns, struct independence *ret);
