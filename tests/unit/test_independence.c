/* Whether vCPUs touch on while another one is stalled, in recordings made by hand. Times are in µs. */
#include "unit/hotlist_helpers.h"

#include <stdlib.h>

#include "observe/clock.h"

#define US     1000ull
#define NOBODY VCPU_UNKNOWN

/* vCPU 0 is stalled for STALL in each round of ROUND. */
#define ROUNDS 40u
#define ROUND  2000u
#define STALL  1000u

/* What vCPU 1 does, once in STEP. */
enum other {
	RUNS_ON,      /* touches, and runs in between */
	SPINS,	      /* the same, but for stalls: 50 µs into one it has to wait */
	HALTS,	      /* the same, but it sleeps then, until 0 wakes it */
	HAS_TIMERS,   /* sleeps in between; a timer wakes it for each touch */
	IS_MOVED_ON,  /* the same, but only while 0 is stalled: at other times it runs */
	IS_LEFT_IDLE, /* a timer wakes it for each touch, and none does while 0 is stalled */
};
#define STEP 40u

static void add_touch(struct recording *recording, uint16_t vcpu, unsigned at, unsigned run)
{
	const struct touch touch = { .vcpu = vcpu,
				     .present = run == at,
				     .offset = recording->touch_count * 4096,
				     .touch_ns = at * US,
				     .run_ns = run * US };

	assert_int_equal(recording_add_touch(recording, &touch), 0);
}

static void add_sleep(struct recording *recording, uint16_t waker, unsigned at, unsigned run)
{
	const struct vcpu_sleep sleep = {
		.vcpu = 1, .waker = waker, .sleep_ns = at * US, .wake_ns = run * US, .run_ns = run * US
	};

	assert_int_equal(recording_add_sleep(recording, &sleep), 0);
}

static void add_round(struct recording *recording, enum other other, unsigned stall, unsigned start)
{
	add_touch(recording, 0, start, start + stall);
	for (unsigned at = STEP / 2; at < ROUND; at += STEP) {
		bool stalled = at < stall;

		if (stalled && at > 50 && (other == SPINS || other == HALTS || other == IS_LEFT_IDLE))
			continue;
		if (other == HAS_TIMERS || other == IS_LEFT_IDLE || (other == IS_MOVED_ON && stalled))
			add_sleep(recording, NOBODY, start + at - STEP + 5, start + at - 5);
		add_touch(recording, 1, start + at, start + at);
	}
	if (other == HALTS)
		add_sleep(recording, 0, start + 50, start + stall);
}

static struct independence measure(enum other other, unsigned stall)
{
	struct recording recording = { .touches = NULL };
	struct independence independence;

	for (unsigned i = 0; i < ROUNDS; i++)
		add_round(&recording, other, stall, 1000 + i * ROUND);
	assert_int_equal(independence_measure(&recording, UINT64_MAX, &independence), 0);
	recording_clear(&recording);
	assert_int_equal(independence.vcpus, 2);
	return independence;
}

/* So many would fit into the stalls, but for the time that a waiting one runs on. */
static void assert_expects_all(const struct independence *independence)
{
	unsigned all = ROUNDS * (STALL - 100) / STEP;

	assert_true(independence->expected > 0.9 * all);
	assert_true(independence->expected < 1.1 * all);
}

static void test_who_touches_on_is_independent(void **state)
{
	struct independence independence = measure(RUNS_ON, STALL);

	(void)state;
	assert_expects_all(&independence);
	assert_true(independence.ratio > 0.9);
}

static void test_who_touches_nothing_more_waits(void **state)
{
	struct independence independence = measure(SPINS, STALL);

	(void)state;
	assert_expects_all(&independence);
	assert_true(independence.ratio < 0.05);
}

/* That the kernel sees, and both clocks know it. */
static void test_who_halts_until_it_is_woken_says_nothing(void **state)
{
	struct independence independence = measure(HALTS, STALL);

	(void)state;
	assert_true(independence.expected < ROUNDS);
}

/* Each touch comes right after a sleep, and there is no other time at which one could: timers run on while somebody is stalled. */
static void test_who_is_woken_by_timers_is_independent(void **state)
{
	struct independence independence = measure(HAS_TIMERS, STALL);

	(void)state;
	assert_expects_all(&independence);
	assert_true(independence.ratio > 0.9);

	independence = measure(IS_MOVED_ON, STALL);
	assert_expects_all(&independence);
	assert_true(independence.ratio > 0.9);
}

static void test_whose_timers_stand_still_in_stalls_waits(void **state)
{
	struct independence independence = measure(IS_LEFT_IDLE, STALL);

	(void)state;
	assert_expects_all(&independence);
	assert_true(independence.ratio < 0.05);
}

static void test_short_stalls_say_nothing(void **state)
{
	(void)state;
	assert_true(measure(RUNS_ON, 90).expected == 0);
	assert_true(measure(SPINS, 90).expected == 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_who_touches_on_is_independent),
		cmocka_unit_test(test_who_touches_nothing_more_waits),
		cmocka_unit_test(test_who_halts_until_it_is_woken_says_nothing),
		cmocka_unit_test(test_who_is_woken_by_timers_is_independent),
		cmocka_unit_test(test_whose_timers_stand_still_in_stalls_waits),
		cmocka_unit_test(test_short_stalls_say_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
