/* Virtual clocks of vCPUs, on recordings made by hand: each case is a table of what happened, with the clocks that must come out. Times are in µs. */
#include "unit/hotlist_helpers.h"

#include <stdlib.h>

#include "observe/clock.h"

#define US     1000u
#define NOBODY VCPU_UNKNOWN

struct row {
	enum { TOUCH, PRESENT, SLEEP } what;
	uint16_t vcpu;
	uint16_t waker;		/* SLEEP */
	unsigned at, wake, run; /* touch or sleep; wake-up (SLEEP); runs again (not PRESENT) */
	unsigned lost;
	unsigned corrected; /* expected; not for SLEEP */
};

static void check(const struct row *rows, size_t count)
{
	struct recording recording = { .touches = NULL };
	struct clocks clocks;
	size_t touches = 0;

	for (size_t i = 0; i < count; i++) {
		const struct row *row = &rows[i];
		const struct vcpu_sleep sleep = { .vcpu = row->vcpu,
						  .waker = row->waker,
						  .sleep_ns = row->at * US,
						  .wake_ns = row->wake * US,
						  .run_ns = row->run * US,
						  .lost_ns = row->lost * US };
		const struct touch touch = { .vcpu = row->vcpu,
					     .present = row->what == PRESENT,
					     .offset = i * 4096,
					     .touch_ns = row->at * US,
					     .run_ns = (row->what == PRESENT ? row->at : row->run) * US,
					     .lost_ns = row->lost * US };

		if (row->what == SLEEP)
			assert_int_equal(recording_add_sleep(&recording, &sleep), 0);
		else
			assert_int_equal(recording_add_touch(&recording, &touch), 0);
	}
	assert_int_equal(clocks_compute(&recording, &clocks), 0);
	for (size_t i = 0; i < count; i++) {
		if (rows[i].what == SLEEP)
			continue;
		if (clocks.corrected_ns[touches] != rows[i].corrected * US)
			fail_msg("row %zu: %.1f instead of %u", i, (double)clocks.corrected_ns[touches] / US,
				 rows[i].corrected);
		touches++;
	}
	clocks_clear(&clocks);
	recording_clear(&recording);
}

#define CHECK(...)                                            \
	do {                                                  \
		static const struct row rows[] = __VA_ARGS__; \
		check(rows, sizeof rows / sizeof *rows);      \
	} while (0)

static void test_stalls_do_not_count(void **state)
{
	(void)state;
	CHECK({
		{ TOUCH, 0, .at = 10, .run = 110, .lost = 0, .corrected = 10 },
		{ TOUCH, 0, .at = 130, .run = 530, .lost = 100, .corrected = 30 },
		{ PRESENT, 0, .at = 540, .lost = 500, .corrected = 40 },
	});
}

static void test_losses_without_a_cause_do_not_count_either(void **state)
{
	(void)state;
	/* Between the touches it was runnable for 50 µs and did not run. */
	CHECK({
		{ TOUCH, 0, .at = 10, .run = 110, .lost = 0, .corrected = 10 },
		{ PRESENT, 0, .at = 200, .lost = 150, .corrected = 50 },
	});
	/* Nobody says what was lost: the stalls themselves are known. */
	CHECK({
		{ TOUCH, 0, .at = 10, .run = 110, .lost = 0, .corrected = 10 },
		{ PRESENT, 0, .at = 200, .lost = 0, .corrected = 100 },
	});
}

static void test_vcpus_have_clocks_of_their_own(void **state)
{
	(void)state;
	CHECK({
		{ TOUCH, 0, .at = 0, .run = 1000, .lost = 0, .corrected = 0 },
		{ PRESENT, 1, .at = 0, .lost = 0, .corrected = 0 },
		{ PRESENT, 1, .at = 500, .lost = 0, .corrected = 500 },
		{ PRESENT, 0, .at = 1100, .lost = 1000, .corrected = 100 },
		{ PRESENT, 1, .at = 1100, .lost = 0, .corrected = 1100 },
	});
}

static void test_who_is_woken_has_the_wakers_clock(void **state)
{
	(void)state;
	/* 1 sleeps until 0 has had its page, and goes on where 0 is by then. */
	CHECK({
		{ PRESENT, 1, .at = 0, .lost = 0, .corrected = 0 },
		{ TOUCH, 0, .at = 20, .run = 1020, .lost = 0, .corrected = 20 },
		{ SLEEP, 1, .waker = 0, .at = 10, .wake = 1050, .run = 1060, .lost = 0 },
		{ PRESENT, 1, .at = 1070, .lost = 10, .corrected = 60 },
		{ PRESENT, 0, .at = 1080, .lost = 1000, .corrected = 80 },
	});
	/* A waker that is behind takes nobody back; and the sleep itself is no time. */
	CHECK({
		{ PRESENT, 1, .at = 500, .lost = 0, .corrected = 500 },
		{ TOUCH, 0, .at = 500, .run = 900, .lost = 0, .corrected = 500 },
		{ PRESENT, 1, .at = 850, .lost = 0, .corrected = 850 },
		{ SLEEP, 1, .waker = 0, .at = 860, .wake = 950, .run = 950, .lost = 0 },
		{ PRESENT, 1, .at = 960, .lost = 0, .corrected = 870 },
		{ PRESENT, 0, .at = 1000, .lost = 400, .corrected = 600 },
	});
	/* Through two of them. */
	CHECK({
		{ PRESENT, 0, .at = 0, .lost = 0, .corrected = 0 },
		{ PRESENT, 1, .at = 0, .lost = 0, .corrected = 0 },
		{ PRESENT, 2, .at = 0, .lost = 0, .corrected = 0 },
		{ TOUCH, 0, .at = 10, .run = 510, .lost = 0, .corrected = 10 },
		{ SLEEP, 1, .waker = 0, .at = 5, .wake = 520, .run = 520, .lost = 0 },
		{ SLEEP, 2, .waker = 1, .at = 6, .wake = 530, .run = 530, .lost = 0 },
		{ PRESENT, 2, .at = 540, .lost = 0, .corrected = 40 },
		{ PRESENT, 1, .at = 550, .lost = 0, .corrected = 50 },
		{ PRESENT, 0, .at = 560, .lost = 500, .corrected = 60 },
	});
}

static void test_a_sleep_that_something_else_ends_counts(void **state)
{
	(void)state;
	CHECK({
		{ PRESENT, 0, .at = 0, .lost = 0, .corrected = 0 },
		{ SLEEP, 0, .waker = NOBODY, .at = 100, .wake = 400, .run = 430, .lost = 0 },
		{ PRESENT, 0, .at = 440, .lost = 30, .corrected = 410 },
	});
	/* But not while another one was stalled and none got on: 100 to 300. */
	CHECK({
		{ PRESENT, 0, .at = 0, .lost = 0, .corrected = 0 },
		{ PRESENT, 1, .at = 0, .lost = 0, .corrected = 0 },
		{ SLEEP, 0, .waker = NOBODY, .at = 50, .wake = 400, .run = 400, .lost = 0 },
		{ TOUCH, 1, .at = 100, .run = 300, .lost = 0, .corrected = 100 },
		{ PRESENT, 0, .at = 410, .lost = 0, .corrected = 210 },
		{ PRESENT, 1, .at = 420, .lost = 200, .corrected = 220 },
	});
	/* With a third one at work all the time, it counts whole. */
	CHECK({
		{ PRESENT, 0, .at = 0, .lost = 0, .corrected = 0 },
		{ PRESENT, 1, .at = 0, .lost = 0, .corrected = 0 },
		{ PRESENT, 2, .at = 0, .lost = 0, .corrected = 0 },
		{ SLEEP, 0, .waker = NOBODY, .at = 50, .wake = 400, .run = 400, .lost = 0 },
		{ TOUCH, 1, .at = 100, .run = 300, .lost = 0, .corrected = 100 },
		{ PRESENT, 0, .at = 410, .lost = 0, .corrected = 410 },
		{ PRESENT, 2, .at = 420, .lost = 0, .corrected = 420 },
	});
}

static void test_kernel_threads_touch_by_the_forks_clock(void **state)
{
	(void)state;
	/* 1 is furthest, as 0 was stalled. */
	CHECK({
		{ TOUCH, 0, .at = 0, .run = 300, .lost = 0, .corrected = 0 },
		{ PRESENT, 1, .at = 0, .lost = 0, .corrected = 0 },
		{ TOUCH, NOBODY, .at = 350, .run = 400, .lost = 0, .corrected = 350 },
		{ PRESENT, 1, .at = 360, .lost = 0, .corrected = 360 },
		{ PRESENT, 0, .at = 370, .lost = 300, .corrected = 70 },
	});
	/* A kernel thread waits for the page, and the vCPU sleeps for so long: no time passed. */
	CHECK({
		{ PRESENT, 0, .at = 0, .lost = 0, .corrected = 0 },
		{ TOUCH, NOBODY, .at = 100, .run = 600, .lost = 0, .corrected = 100 },
		{ SLEEP, 0, .waker = NOBODY, .at = 100, .wake = 600, .run = 600, .lost = 0 },
		{ PRESENT, 0, .at = 650, .lost = 0, .corrected = 150 },
	});
	/* Nobody is known (the fault loop's recording): the order is that of the touches. */
	CHECK({
		{ TOUCH, NOBODY, .at = 100, .run = 600, .lost = 0, .corrected = 100 },
		{ TOUCH, NOBODY, .at = 300, .run = 900, .lost = 0, .corrected = 100 },
		{ TOUCH, NOBODY, .at = 1000, .run = 1100, .lost = 0, .corrected = 200 },
	});
}

static void test_a_thread_that_comes_later_starts_at_the_forks_clock(void **state)
{
	(void)state;
	CHECK({
		{ TOUCH, 0, .at = 10, .run = 910, .lost = 0, .corrected = 10 },
		{ PRESENT, 0, .at = 1000, .lost = 900, .corrected = 100 },
		{ PRESENT, 1, .at = 1005, .lost = 0, .corrected = 105 },
		{ PRESENT, 1, .at = 1025, .lost = 0, .corrected = 125 },
		{ PRESENT, 0, .at = 1050, .lost = 900, .corrected = 150 },
	});
	/* Asleep since before anything was seen, and woken by 0. */
	CHECK({
		{ SLEEP, 1, .waker = 0, .at = 0, .wake = 1000, .run = 1000, .lost = 0 },
		{ TOUCH, 0, .at = 10, .run = 910, .lost = 0, .corrected = 10 },
		{ PRESENT, 1, .at = 1005, .lost = 0, .corrected = 105 },
		{ PRESENT, 0, .at = 1050, .lost = 900, .corrected = 150 },
	});
}

static void test_events_may_come_in_any_order(void **state)
{
	(void)state;
	CHECK({
		{ PRESENT, 1, .at = 1070, .lost = 10, .corrected = 60 },
		{ PRESENT, 0, .at = 1080, .lost = 1000, .corrected = 80 },
		{ SLEEP, 1, .waker = 0, .at = 10, .wake = 1050, .run = 1060, .lost = 0 },
		{ TOUCH, 0, .at = 20, .run = 1020, .lost = 0, .corrected = 20 },
		{ PRESENT, 1, .at = 0, .lost = 0, .corrected = 0 },
	});
}

static void test_nonsense_gives_clocks_that_do_not_go_back(void **state)
{
	(void)state;
	/* A touch in the middle of a sleep, one within a stall, losses that shrink or are more than there was time, a vCPU that wakes itself. */
	CHECK({
		{ PRESENT, 0, .at = 100, .lost = 500, .corrected = 0 },
		{ SLEEP, 0, .waker = 0, .at = 200, .wake = 400, .run = 300, .lost = 0 },
		{ PRESENT, 0, .at = 250, .lost = 0, .corrected = 100 },
		{ TOUCH, 0, .at = 500, .run = 900, .lost = 100, .corrected = 350 },
		{ PRESENT, 0, .at = 600, .lost = 100, .corrected = 350 },
	});
}

/* Later than that are only times that no machine has been up for; they count as one. */
#define NONSENSE 100000u

static uint64_t some_time(struct random *random)
{
	switch (random_below(random, 12)) {
	case 0:
		return random_u64(random);
	case 1:
		return UINT64_MAX - random_below(random, 3);
	case 2:
		return 0;
	default:
		return random_below(random, NONSENSE);
	}
}

static uint16_t some_vcpu(struct random *random)
{
	switch (random_below(random, 20)) {
	case 0:
		return VCPU_UNKNOWN;
	case 1:
		return VCPU_UNKNOWN - 1;
	default:
		return (uint16_t)random_below(random, 4);
	}
}

/* Whatever is told: it ends, no clock is ahead of the time, and none goes back. A sanitizer sees the rest. */
static void test_any_input_is_survived(void **state)
{
	struct random random = { .state = 5 };

	(void)state;
	for (int round = 0; round < 300; round++) {
		struct recording recording = { .touches = NULL };
		struct independence independence;
		struct clocks clocks;

		for (uint64_t i = random_below(&random, 60); i > 0; i--) {
			const struct touch touch = {
				.region = (uint32_t)random_below(&random, 2),
				.vcpu = some_vcpu(&random),
				.present = random_below(&random, 2),
				.offset = random_below(&random, 64) * 4096,
				.touch_ns = some_time(&random),
				.run_ns = some_time(&random),
				.lost_ns = some_time(&random),
			};
			const struct vcpu_sleep sleep = {
				.vcpu = some_vcpu(&random),
				.waker = some_vcpu(&random),
				.sleep_ns = some_time(&random),
				.wake_ns = some_time(&random),
				.run_ns = some_time(&random),
				.lost_ns = some_time(&random),
			};
			assert_int_equal(recording_add_touch(&recording, &touch), 0);
			assert_int_equal(recording_add_sleep(&recording, &sleep), 0);
		}
		assert_int_equal(clocks_compute(&recording, &clocks), 0);
		for (size_t i = 0; i < recording.touch_count; i++) {
			const struct touch *a = &recording.touches[i];

			assert_true(clocks.corrected_ns[i] <= a->touch_ns);
			assert_true(clocks.progress_ns[i] <= a->touch_ns);
			for (size_t j = 0; j < recording.touch_count; j++) {
				const struct touch *b = &recording.touches[j];

				if (a->vcpu == b->vcpu && a->touch_ns < b->touch_ns && b->touch_ns < NONSENSE)
					assert_true(clocks.corrected_ns[i] <= clocks.corrected_ns[j]);
			}
		}
		assert_int_equal(independence_measure(&recording, UINT64_MAX, &independence), 0);
		assert_true(independence.ratio >= 0 && independence.ratio <= 1 && independence.expected >= 0);
		clocks_clear(&clocks);
		recording_clear(&recording);
	}
}

static void test_nothing_recorded(void **state)
{
	struct recording recording = { .touches = NULL };
	struct independence independence;
	struct clocks clocks;

	(void)state;
	assert_int_equal(clocks_compute(&recording, &clocks), 0);
	clocks_clear(&clocks);
	assert_int_equal(independence_measure(&recording, UINT64_MAX, &independence), 0);
	assert_int_equal(independence.vcpus, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_stalls_do_not_count),
		cmocka_unit_test(test_losses_without_a_cause_do_not_count_either),
		cmocka_unit_test(test_vcpus_have_clocks_of_their_own),
		cmocka_unit_test(test_who_is_woken_has_the_wakers_clock),
		cmocka_unit_test(test_a_sleep_that_something_else_ends_counts),
		cmocka_unit_test(test_kernel_threads_touch_by_the_forks_clock),
		cmocka_unit_test(test_a_thread_that_comes_later_starts_at_the_forks_clock),
		cmocka_unit_test(test_events_may_come_in_any_order),
		cmocka_unit_test(test_nonsense_gives_clocks_that_do_not_go_back),
		cmocka_unit_test(test_any_input_is_survived),
		cmocka_unit_test(test_nothing_recorded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
