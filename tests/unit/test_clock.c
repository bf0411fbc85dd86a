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
	/* A timer waits for nobody: whether another one is stalled meanwhile, and no third one gets on, is all the same. */
	CHECK({
		{ PRESENT, 0, .at = 0, .lost = 0, .corrected = 0 },
		{ PRESENT, 1, .at = 0, .lost = 0, .corrected = 0 },
		{ SLEEP, 0, .waker = NOBODY, .at = 50, .wake = 400, .run = 400, .lost = 0 },
		{ TOUCH, 1, .at = 100, .run = 300, .lost = 0, .corrected = 100 },
		{ PRESENT, 0, .at = 410, .lost = 0, .corrected = 410 },
		{ PRESENT, 1, .at = 420, .lost = 200, .corrected = 220 },
	});
	/* Its own stall puts a vCPU back for good: its timers are set later. */
	CHECK({
		{ TOUCH, 0, .at = 0, .run = 200, .lost = 0, .corrected = 0 },
		{ SLEEP, 0, .waker = NOBODY, .at = 250, .wake = 1250, .run = 1250, .lost = 200 },
		{ PRESENT, 0, .at = 1260, .lost = 200, .corrected = 1060 },
	});
}

static void test_a_vcpu_that_is_halted_for_its_page_is_stalled(void **state)
{
	(void)state;
	/* A kernel thread waits for the page and wakes the vCPU, which then has to get a CPU. */
	CHECK({
		{ TOUCH, 0, .at = 10, .run = 510, .lost = 0, .corrected = 10 },
		{ SLEEP, 0, .waker = NOBODY, .at = 20, .wake = 520, .run = 540, .lost = 0 },
		{ PRESENT, 0, .at = 560, .lost = 20, .corrected = 30 },
	});
	/* Something else woke it before, in vain. */
	CHECK({
		{ TOUCH, 0, .at = 10, .run = 510, .lost = 0, .corrected = 10 },
		{ SLEEP, 0, .waker = NOBODY, .at = 20, .wake = 300, .run = 310, .lost = 0 },
		{ PRESENT, 0, .at = 530, .lost = 0, .corrected = 30 },
	});
	/* The sleep that comes after it counts. */
	CHECK({
		{ TOUCH, 0, .at = 10, .run = 510, .lost = 0, .corrected = 10 },
		{ SLEEP, 0, .waker = NOBODY, .at = 20, .wake = 515, .run = 515, .lost = 0 },
		{ SLEEP, 0, .waker = NOBODY, .at = 615, .wake = 815, .run = 815, .lost = 0 },
		{ PRESENT, 0, .at = 830, .lost = 0, .corrected = 325 },
	});
}

static void test_a_sleep_makes_good_what_was_late(void **state)
{
	(void)state;
	/* It got its CPU 20 µs late each time, and so slept less for the next timer, which had its time. */
	CHECK({
		{ PRESENT, 0, .at = 0, .lost = 0, .corrected = 0 },
		{ SLEEP, 0, .waker = NOBODY, .at = 100, .wake = 400, .run = 420, .lost = 0 },
		{ PRESENT, 0, .at = 430, .lost = 20, .corrected = 410 },
		{ SLEEP, 0, .waker = NOBODY, .at = 440, .wake = 800, .run = 820, .lost = 20 },
		{ PRESENT, 0, .at = 830, .lost = 40, .corrected = 810 },
		{ SLEEP, 0, .waker = NOBODY, .at = 840, .wake = 1200, .run = 1200, .lost = 40 },
		{ PRESENT, 0, .at = 1210, .lost = 40, .corrected = 1210 },
	});
	/* What it lost in between, runnable, counts as well; its stalls don't. */
	CHECK({
		{ TOUCH, 0, .at = 0, .run = 100, .lost = 0, .corrected = 0 },
		{ PRESENT, 0, .at = 200, .lost = 150, .corrected = 50 },
		{ SLEEP, 0, .waker = NOBODY, .at = 210, .wake = 610, .run = 610, .lost = 150 },
		{ PRESENT, 0, .at = 620, .lost = 150, .corrected = 520 },
	});
	/* A short sleep doesn't make good a long time without a CPU: not more than its length. */
	CHECK({
		{ PRESENT, 0, .at = 0, .lost = 0, .corrected = 0 },
		{ PRESENT, 0, .at = 1000, .lost = 900, .corrected = 100 },
		{ SLEEP, 0, .waker = NOBODY, .at = 1010, .wake = 1050, .run = 1050, .lost = 900 },
		{ PRESENT, 0, .at = 1060, .lost = 900, .corrected = 200 },
		{ SLEEP, 0, .waker = NOBODY, .at = 1070, .wake = 2070, .run = 2070, .lost = 900 },
		{ PRESENT, 0, .at = 2080, .lost = 900, .corrected = 2080 },
	});
	/* Woken by another vCPU it is where that one is, and nothing is made good. */
	CHECK({
		{ PRESENT, 0, .at = 0, .lost = 0, .corrected = 0 },
		{ PRESENT, 1, .at = 0, .lost = 0, .corrected = 0 },
		{ PRESENT, 0, .at = 300, .lost = 250, .corrected = 50 },
		{ SLEEP, 0, .waker = 1, .at = 310, .wake = 1000, .run = 1000, .lost = 250 },
		{ TOUCH, 1, .at = 400, .run = 900, .lost = 0, .corrected = 400 },
		{ PRESENT, 0, .at = 1010, .lost = 250, .corrected = 510 },
		{ PRESENT, 1, .at = 1020, .lost = 500, .corrected = 520 },
	});
}

static void test_ticks_without_a_touch_do_not_put_a_vcpu_ahead_of_its_waker(void **state)
{
	(void)state;
	/* 1 idles, with ticks, while 0 is stalled; then 0 has something for it to do. */
	CHECK({
		{ PRESENT, 0, .at = 0, .lost = 0, .corrected = 0 },
		{ PRESENT, 1, .at = 0, .lost = 0, .corrected = 0 },
		{ SLEEP, 1, .waker = NOBODY, .at = 10, .wake = 1000, .run = 1000, .lost = 0 },
		{ TOUCH, 0, .at = 100, .run = 1500, .lost = 0, .corrected = 100 },
		{ SLEEP, 1, .waker = 0, .at = 1010, .wake = 1600, .run = 1600, .lost = 0 },
		{ PRESENT, 1, .at = 1610, .lost = 0, .corrected = 210 },
		{ PRESENT, 0, .at = 1700, .lost = 1400, .corrected = 300 },
	});
	/* What it touched by itself stays before what it touches now, and so does the time in which it ran. */
	CHECK({
		{ PRESENT, 0, .at = 0, .lost = 0, .corrected = 0 },
		{ PRESENT, 1, .at = 0, .lost = 0, .corrected = 0 },
		{ SLEEP, 1, .waker = NOBODY, .at = 10, .wake = 1000, .run = 1000, .lost = 0 },
		{ TOUCH, 0, .at = 100, .run = 1500, .lost = 0, .corrected = 100 },
		{ PRESENT, 1, .at = 1005, .lost = 0, .corrected = 1005 },
		{ SLEEP, 1, .waker = 0, .at = 1010, .wake = 1600, .run = 1600, .lost = 0 },
		{ PRESENT, 1, .at = 1610, .lost = 0, .corrected = 1020 },
		{ PRESENT, 0, .at = 1700, .lost = 1400, .corrected = 300 },
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

static void test_a_thread_that_had_no_cpu_at_first_is_not_taken_for_a_late_one(void **state)
{
	(void)state;
	/* 1 was there from the beginning, and runnable for 950 of its first 1000 µs. */
	CHECK({
		{ PRESENT, 0, .at = 10, .lost = 0, .corrected = 10 },
		{ PRESENT, 0, .at = 1000, .lost = 0, .corrected = 1000 },
		{ PRESENT, 1, .at = 1000, .lost = 950, .corrected = 50 },
		{ PRESENT, 1, .at = 1100, .lost = 1000, .corrected = 100 },
	});
	/* Before its fork connected, a thread may have lost more than there was time since. */
	CHECK({
		{ PRESENT, 0, .at = 10, .lost = 5000, .corrected = 0 },
		{ PRESENT, 0, .at = 30, .lost = 5000, .corrected = 20 },
		{ PRESENT, 0, .at = 100, .lost = 5050, .corrected = 40 },
	});
}

static void test_the_kernels_own_work_does_not_count(void **state)
{
	struct recording recording = { .touches = NULL };
	struct clocks clocks;
	uint64_t at = 0, own = 0;

	(void)state;
	/* A stall of 20 µs for each page, and 2 µs until the guest is back; it goes on to the next at once, but for each eighth. */
	for (unsigned i = 0; i < 400; i++) {
		const struct touch touch = { .offset = i * 4096, .touch_ns = at, .run_ns = at + 20 * US };

		assert_int_equal(recording_add_touch(&recording, &touch), 0);
		at += (22 + (i % 8 ? 0 : 50)) * US;
	}
	assert_int_equal(clocks_compute(&recording, &clocks), 0);
	for (unsigned i = 0; i < 400; i++) {
		assert_int_equal(clocks.corrected_ns[i], own);
		own += i % 8 ? 0 : 50 * US;
	}
	clocks_clear(&clocks);

	/* Too few tell nothing. */
	recording.touch_count = 100;
	assert_int_equal(clocks_compute(&recording, &clocks), 0);
	assert_int_equal(clocks.corrected_ns[1], 52 * US);
	assert_int_equal(clocks.corrected_ns[2], 54 * US);
	clocks_clear(&clocks);
	recording_clear(&recording);
}

static void test_times_between_faults_are_the_kernels_up_to_a_bound(void **state)
{
	struct recording recording = { .touches = NULL };
	struct clocks clocks;

	(void)state;
	/* A guest that computes for 100 µs between any two of its pages. */
	for (unsigned i = 0; i < 400; i++) {
		const struct touch touch = { .offset = i * 4096,
					     .touch_ns = i * 120 * US,
					     .run_ns = (i * 120 + 20) * US };

		assert_int_equal(recording_add_touch(&recording, &touch), 0);
	}
	assert_int_equal(clocks_compute(&recording, &clocks), 0);
	assert_int_equal(clocks.corrected_ns[399], 399 * 95 * US);
	clocks_clear(&clocks);
	recording_clear(&recording);
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
		cmocka_unit_test(test_a_vcpu_that_is_halted_for_its_page_is_stalled),
		cmocka_unit_test(test_a_sleep_makes_good_what_was_late),
		cmocka_unit_test(test_ticks_without_a_touch_do_not_put_a_vcpu_ahead_of_its_waker),
		cmocka_unit_test(test_kernel_threads_touch_by_the_forks_clock),
		cmocka_unit_test(test_a_thread_that_comes_later_starts_at_the_forks_clock),
		cmocka_unit_test(test_a_thread_that_had_no_cpu_at_first_is_not_taken_for_a_late_one),
		cmocka_unit_test(test_the_kernels_own_work_does_not_count),
		cmocka_unit_test(test_times_between_faults_are_the_kernels_up_to_a_bound),
		cmocka_unit_test(test_events_may_come_in_any_order),
		cmocka_unit_test(test_nonsense_gives_clocks_that_do_not_go_back),
		cmocka_unit_test(test_any_input_is_survived),
		cmocka_unit_test(test_nothing_recorded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
