/* Which stamp belongs to which fault, and what the two say together, on hand-made cases. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "observe/join.h"

#define PAGE 4096u

static struct fl_event event_at(uint8_t kind, uint64_t touch_ns, uint64_t run_ns)
{
	return (struct fl_event){ .kind = kind, .fork = 1, .address = PAGE + 8, .touch_ns = touch_ns, .run_ns = run_ns };
}

static struct observer_stamp stamp_at(uint64_t read_ns, uint64_t source_ns, uint64_t copied_ns)
{
	return (struct observer_stamp){
		.fork = 1, .address = PAGE, .read_ns = read_ns, .source_ns = source_ns, .copied_ns = copied_ns
	};
}

static void assert_phases(struct fl_event event, struct observer_stamp stamp, struct phases expected)
{
	struct phases phases;

	phases_split(&event, &stamp, &phases);
	assert_int_equal(phases.queue_ns, expected.queue_ns);
	assert_int_equal(phases.source_ns, expected.source_ns);
	assert_int_equal(phases.copy_ns, expected.copy_ns);
	assert_int_equal(phases.wake_ns, expected.wake_ns);
	assert_int_equal(phases.queue_ns + phases.source_ns + phases.copy_ns + phases.wake_ns,
			 event.run_ns - event.touch_ns);
}

/* Whatever the clocks of the two sides say, the pieces are the whole. */
static void phases_sum_to_the_total(void **state)
{
	struct fl_event fault = event_at(FL_EVENT_FAULT, 1000, 2000);

	(void)state;
	assert_phases(fault, stamp_at(1100, 1300, 1700), (struct phases){ 100, 200, 400, 300 });
	assert_phases(fault, stamp_at(900, 1300, 2100), (struct phases){ 0, 300, 700, 0 });
	assert_phases(fault, stamp_at(1500, 1400, 1300), (struct phases){ 500, 0, 0, 500 });
	assert_phases(fault, stamp_at(2500, 2600, 2700), (struct phases){ 1000, 0, 0, 0 });
	/* The kernel saw the thread made runnable within the copying call. */
	fault.wake_ns = 1600;
	assert_phases(fault, stamp_at(1100, 1300, 1700), (struct phases){ 100, 200, 300, 400 });
	fault.wake_ns = 1200;
	assert_phases(fault, stamp_at(1100, 1300, 1700), (struct phases){ 100, 200, 400, 300 });
	/* Of no length at all. */
	assert_phases(event_at(FL_EVENT_FAULT, 1000, 1000), stamp_at(900, 1000, 1100), (struct phases){ 0, 0, 0, 0 });
}

/* Either side may come first, and a stamp of an earlier fault of the page is none of this one. */
static void faults_find_their_stamps(void **state)
{
	struct joiner *joiner = joiner_new();
	struct fl_event fault = event_at(FL_EVENT_FAULT, 1000, 2000);
	struct observer_stamp earlier = stamp_at(300, 400, 500), stamp = stamp_at(1100, 1300, 1700);
	struct joined joined;

	(void)state;
	assert_non_null(joiner);
	joiner_add_stamp(joiner, &earlier);
	assert_int_equal(joiner_add(joiner, &fault, PAGE), 0);
	joiner_rewind(joiner, false);
	assert_false(joiner_next(joiner, 3000, &joined));
	assert_false(joiner_is_empty(joiner));
	joiner_add_stamp(joiner, &stamp);
	joiner_rewind(joiner, false);
	assert_true(joiner_next(joiner, 3000, &joined));
	assert_int_equal(joined.event.touch_ns, 1000);
	assert_non_null(joined.stamp);
	assert_int_equal(joined.stamp->read_ns, 1100);
	assert_false(joiner_next(joiner, 3000, &joined));
	assert_true(joiner_is_empty(joiner));

	/* One that never comes. */
	fault.touch_ns = 5000;
	fault.run_ns = 6000;
	assert_int_equal(joiner_add(joiner, &fault, PAGE), 0);
	joiner_rewind(joiner, false);
	assert_false(joiner_next(joiner, 6000 + JOIN_PATIENCE_NS, &joined));
	joiner_rewind(joiner, false);
	assert_true(joiner_next(joiner, 6001 + JOIN_PATIENCE_NS, &joined));
	assert_null(joined.stamp);
	joiner_free(joiner);
}

/* A touch that the server learnt of was a fault; one of a page that another thread had brought was none. */
static void touches_find_out_what_they_were(void **state)
{
	struct joiner *joiner = joiner_new();
	struct fl_event slept_not = event_at(FL_EVENT_TOUCH, 1000, 1000),
			came_after = event_at(FL_EVENT_TOUCH, 1200, 1200);
	struct observer_stamp stamp = stamp_at(1100, 1300, 1700);
	struct joined joined;

	(void)state;
	assert_non_null(joiner);
	joiner_add_stamp(joiner, &stamp);
	assert_int_equal(joiner_add(joiner, &came_after, PAGE), 0);
	assert_int_equal(joiner_add(joiner, &slept_not, PAGE), 0);
	/* Left alone while they are young, unless all are asked for. */
	joiner_rewind(joiner, false);
	assert_false(joiner_next(joiner, 2000, &joined));
	joiner_rewind(joiner, true);
	assert_true(joiner_next(joiner, 2000, &joined));
	assert_int_equal(joined.event.touch_ns, 1000);
	assert_non_null(joined.stamp);
	assert_false(joiner_next(joiner, 2000, &joined));
	assert_false(joiner_is_empty(joiner));
	joiner_rewind(joiner, false);
	assert_true(joiner_next(joiner, 1201 + JOIN_TOUCH_AGE_NS, &joined));
	assert_int_equal(joined.event.touch_ns, 1200);
	assert_null(joined.stamp);
	assert_false(joiner_next(joiner, 1201 + JOIN_TOUCH_AGE_NS, &joined));
	assert_true(joiner_is_empty(joiner));
	joiner_free(joiner);
}

/* Any mixture of young and old, found and not, leaves by one of the two ways, and once. */
static void nothing_is_lost_on_the_way(void **state)
{
	struct joiner *joiner = joiner_new();
	struct joined joined;
	size_t added = 0, with = 0, without = 0;

	(void)state;
	assert_non_null(joiner);
	for (uint64_t round = 0; round < 40; round++) {
		uint64_t now = 1000000000 + round * 10000000;
		for (uint64_t i = 0; i < 100; i++, added++) {
			uint64_t page = (round * 100 + i + 1) * PAGE;
			struct fl_event event = event_at(i % 2 ? FL_EVENT_TOUCH : FL_EVENT_FAULT, now + i, now + i);
			struct observer_stamp stamp = stamp_at(now + i, now + i, now + i);
			assert_int_equal(joiner_add(joiner, &event, page), 0);
			stamp.address = page;
			if (i % 3 == 0)
				joiner_add_stamp(joiner, &stamp);
		}
		joiner_rewind(joiner, round % 5 == 0);
		while (joiner_next(joiner, now, &joined))
			*(joined.stamp ? &with : &without) += 1;
	}
	for (uint64_t i = 0; i < 2; i++) {
		joiner_rewind(joiner, i == 0);
		while (joiner_next(joiner, UINT64_MAX / 2, &joined))
			*(joined.stamp ? &with : &without) += 1;
	}
	assert_true(joiner_is_empty(joiner));
	assert_int_equal(with + without, added);
	assert_int_equal(with, 40 * 34);
	joiner_free(joiner);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(phases_sum_to_the_total),
		cmocka_unit_test(faults_find_their_stamps),
		cmocka_unit_test(touches_find_out_what_they_were),
		cmocka_unit_test(nothing_is_lost_on_the_way),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
