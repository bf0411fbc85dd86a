/* Recordings: what becomes of a page's second touch, and where a recording's window ends. */
#include "unit/hotlist_helpers.h"

#include <stdlib.h>

#include "observe/hot_list.h"

#define MS UINT64_C(1000000)
#define S  (1000 * MS)

/* ---- what is kept ---- */

static const struct touch *the_touch(struct recording *recording, const struct touch *a, const struct touch *b)
{
	assert_int_equal(recording_add_touch(recording, a), 0);
	assert_int_equal(recording_add_touch(recording, b), 0);
	assert_int_equal(recording->touch_count, 1);
	return &recording->touches[0];
}

static void test_the_first_touch_of_a_page_stays(void **state)
{
	static const struct touch early = {
		.vcpu = 0, .offset = 4096, .touch_ns = 100, .run_ns = 200, .kind = TOUCH_READ
	};
	static const struct touch late = {
		.vcpu = 1, .offset = 4096, .touch_ns = 150, .run_ns = 160, .kind = TOUCH_WRITE
	};

	(void)state;
	for (int swapped = 0; swapped < 2; swapped++) {
		struct recording recording = { .touches = NULL };
		const struct touch *kept = the_touch(&recording, swapped ? &late : &early, swapped ? &early : &late);

		assert_int_equal(kept->touch_ns, 100);
		assert_int_equal(kept->run_ns, 200);
		assert_int_equal(kept->vcpu, 0);
		assert_int_equal(kept->kind, TOUCH_READ);
		recording_clear(&recording);
	}
}

/* KVM tells of a touch before its fault waits, which a kernel thread may do. */
static void test_a_touch_and_its_fault_are_one(void **state)
{
	static const struct touch seen = {
		.vcpu = 3, .offset = 4096, .touch_ns = 100, .run_ns = 100, .present = true, .kind = TOUCH_WRITE
	};
	static const struct touch fault = { .vcpu = VCPU_UNKNOWN, .offset = 4096, .touch_ns = 105, .run_ns = 300 };

	(void)state;
	for (int swapped = 0; swapped < 2; swapped++) {
		struct recording recording = { .touches = NULL };
		const struct touch *kept = the_touch(&recording, swapped ? &fault : &seen, swapped ? &seen : &fault);

		assert_int_equal(kept->touch_ns, 100);
		assert_int_equal(kept->run_ns, 300);
		assert_false(kept->present);
		assert_int_equal(kept->vcpu, 3);
		assert_int_equal(kept->kind, TOUCH_WRITE);
		recording_clear(&recording);
	}
	/* A page that was given back is demanded again much later: another touch. */
	static const struct touch again = { .vcpu = 3, .offset = 4096, .touch_ns = 5 * S, .run_ns = 5 * S + 100 };
	struct recording recording = { .touches = NULL };
	assert_true(the_touch(&recording, &seen, &again)->present);
	recording_clear(&recording);
}

static void test_a_million_events(void **state)
{
	enum { PAGES = 250000, EVENTS = 1000000 };
	struct recording recording = { .touches = NULL };
	struct random random = { .state = 3 };

	(void)state;
	for (uint64_t i = 0; i < EVENTS; i++) {
		const struct touch touch = { .region = (uint32_t)(i % 2),
					     .offset = random_below(&random, PAGES / 2) * 4096,
					     .touch_ns = i,
					     .run_ns = i };

		assert_int_equal(recording_add_touch(&recording, &touch), 0);
	}
	assert_in_range(recording.touch_count, PAGES * 95 / 100, PAGES);
	assert_false(recording.full);
	for (size_t i = 0; i < recording.touch_count; i++)
		assert_int_equal(page_index_find(&recording.seen, recording.touches[i].region,
						 recording.touches[i].offset),
				 i);
	recording_clear(&recording);
	assert_int_equal(recording.touch_count, 0);
}

static void test_what_does_not_fit_is_refused(void **state)
{
	struct recording recording = { .touches = NULL };
	int r = 0;

	(void)state;
	for (uint64_t i = 0; i <= RECORDING_MAX && r == 0; i++) {
		const struct vcpu_sleep sleep = { .sleep_ns = i };

		r = recording_add_sleep(&recording, &sleep);
	}
	assert_int_equal(r, -ENOSPC);
	assert_int_equal(recording.sleep_count, RECORDING_MAX);
	assert_true(recording.full);
	/* Touches have room of their own. */
	assert_int_equal(recording_add_touch(&recording, &(struct touch){ .touch_ns = 1 }), 0);
	recording_clear(&recording);
}

/* ---- the window ---- */

/* COUNT touches, evenly from FROM to TO, of pages that weren't touched before. */
static void add_touches(struct recording *recording, uint64_t from, uint64_t to, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		uint64_t at = from + (to - from) * i / count;
		const struct touch touch = {
			.offset = recording->touch_count * 4096, .touch_ns = at, .run_ns = at, .present = true
		};

		assert_int_equal(recording_add_touch(recording, &touch), 0);
	}
}

static struct window find(const struct recording *recording, struct window_rules rules)
{
	struct clocks clocks;
	struct window window;

	assert_int_equal(clocks_compute(recording, &clocks), 0);
	assert_int_equal(window_find(recording, &clocks, &rules, &window), 0);
	clocks_clear(&clocks);
	return window;
}

static void test_ready_ends_the_window(void **state)
{
	struct recording recording = { .touches = NULL };

	(void)state;
	add_touches(&recording, 0, S, 1000);
	struct window window = find(&recording, (struct window_rules){ .ready_ns = 400 * MS, .now_ns = 20 * S });
	assert_int_equal(window.end, HOT_WINDOW_READY);
	assert_int_equal(window.end_ns, 400 * MS);
	/* Ready after an hour is no start. */
	window = find(&recording,
		      (struct window_rules){ .ready_ns = 3600 * S, .now_ns = 4000 * S, .settle_ns = UINT64_MAX });
	assert_int_equal(window.end, HOT_WINDOW_TIMEOUT);
	assert_int_equal(window.end_ns, WINDOW_TIMEOUT_NS);
	recording_clear(&recording);
}

static void test_quiet_ends_the_window(void **state)
{
	struct recording recording = { .touches = NULL };

	(void)state;
	add_touches(&recording, 0, S, 2000);
	/* A page now and then goes on for ever. */
	add_touches(&recording, S, 30 * S, 60);
	struct window window = find(&recording, (struct window_rules){ .now_ns = 30 * S });
	assert_int_equal(window.end, HOT_WINDOW_SETTLED);
	assert_in_range(window.end_ns, 900 * MS, S);
	/* Too early to tell. */
	window = find(&recording, (struct window_rules){ .now_ns = 2 * S });
	assert_int_equal(window.end, HOT_WINDOW_UNKNOWN);
	assert_int_equal(window.end_ns, 2 * S);
	/* It ended before. */
	window = find(&recording, (struct window_rules){ .now_ns = 2 * S, .gone = true });
	assert_int_equal(window.end, HOT_WINDOW_GONE);
	recording_clear(&recording);
}

static void test_a_quiet_start_does_not_end_the_window(void **state)
{
	struct recording recording = { .touches = NULL };

	(void)state;
	/* It wakes up, waits for its first request for ten seconds, works, and is done. */
	add_touches(&recording, 0, 100 * MS, 40);
	add_touches(&recording, 10 * S, 11 * S, 3000);
	struct window window = find(&recording, (struct window_rules){ .now_ns = 40 * S });
	assert_int_equal(window.end, HOT_WINDOW_SETTLED);
	assert_in_range(window.end_ns, 10900 * MS, 11 * S);
	recording_clear(&recording);
}

static void test_a_fork_that_lives_on_does_not_swell_its_list(void **state)
{
	struct recording recording = { .touches = NULL };

	(void)state;
	add_touches(&recording, 0, S, 3000);
	/* Hours of new pages, never quiet. */
	add_touches(&recording, S, 7200 * S, 200000);
	struct window window = find(&recording, (struct window_rules){ .now_ns = 7200 * S });
	assert_int_equal(window.end, HOT_WINDOW_SETTLED);
	assert_true(window.end_ns <= S);
	/* Not even where nothing tells its start from the rest. */
	struct recording steady = { .touches = NULL };
	add_touches(&steady, 0, 7200 * S, 400000);
	window = find(&steady, (struct window_rules){ .now_ns = 7200 * S });
	assert_int_equal(window.end, HOT_WINDOW_TIMEOUT);
	assert_int_equal(window.end_ns, WINDOW_TIMEOUT_NS);

	struct hotlist *list;
	struct error err;
	assert_int_equal(hot_list_make(&steady, &(struct window_rules){ .now_ns = 7200 * S },
				       &(struct hotlist_origin){ .tier = "fentry" }, &list, &err),
			 0);
	assert_in_range(list->count, 3000, 3500);
	assert_int_equal(list->origin->window_end, HOT_WINDOW_TIMEOUT);
	assert_int_equal(list->origin->window_ns, WINDOW_TIMEOUT_NS);
	hotlist_free(list);
	recording_clear(&recording);
	recording_clear(&steady);
}

/* Who waits four seconds for one page of a remote image has not settled. */
static void test_waiting_is_not_quiet(void **state)
{
	struct recording recording = { .touches = NULL };

	(void)state;
	add_touches(&recording, 0, S, 1000);
	const struct touch stalled = { .offset = UINT64_C(1) << 40, .touch_ns = S, .run_ns = 5 * S };
	assert_int_equal(recording_add_touch(&recording, &stalled), 0);
	add_touches(&recording, 5 * S, 6 * S, 1000);
	struct window window = find(&recording, (struct window_rules){ .now_ns = 30 * S });
	assert_int_equal(window.end, HOT_WINDOW_SETTLED);
	assert_in_range(window.end_ns, 5900 * MS, 6 * S);
	recording_clear(&recording);
}

static void test_nothing_touched(void **state)
{
	struct recording recording = { .touches = NULL };
	struct hotlist *list;
	struct error err;

	(void)state;
	struct window window = find(&recording, (struct window_rules){ .now_ns = S });
	assert_int_equal(window.end, HOT_WINDOW_UNKNOWN);
	window = find(&recording, (struct window_rules){ .now_ns = 100 * S });
	assert_int_equal(window.end, HOT_WINDOW_TIMEOUT);
	assert_int_equal(hot_list_make(&recording, &(struct window_rules){ .now_ns = S },
				       &(struct hotlist_origin){ .tier = "fentry" }, &list, &err),
			 0);
	assert_int_equal(list->count, 0);
	assert_int_equal(list->origin->runs, 1);
	hotlist_free(list);
}

/* ---- the list ---- */

static void test_a_list_says_what_was_recorded(void **state)
{
	struct hotlist_region_size region = { .size = 1 << 20, .page_size = 4096 };
	struct hotlist_origin origin = {
		.tier = "kprobe", .page_size = 4096, .regions = &region, .region_count = 1, .template_size = 1 << 20
	};
	static const struct touch touches[] = {
		{ .vcpu = 1, .kind = TOUCH_WRITE, .offset = 8192, .touch_ns = 300, .run_ns = 400, .lost_ns = 0 },
		{ .vcpu = 0, .kind = TOUCH_FETCH, .offset = 4096, .touch_ns = 200, .run_ns = 200, .present = true },
		{ .vcpu = VCPU_UNKNOWN, .kind = TOUCH_READ, .offset = 0, .touch_ns = 250, .run_ns = 280 },
		{ .vcpu = 1, .kind = TOUCH_WALK, .offset = 12288, .touch_ns = 3 * S, .run_ns = 3 * S },
	};
	struct recording recording = { .events_lost = 7 };
	struct hotlist *list;
	struct error err;

	(void)state;
	for (size_t i = 0; i < 4; i++)
		assert_int_equal(recording_add_touch(&recording, &touches[i]), 0);
	assert_int_equal(hot_list_make(&recording, &(struct window_rules){ .now_ns = 9 * S, .ready_ns = S }, &origin,
				       &list, &err),
			 0);
	_cleanup_hotlist_ struct hotlist *expected = LIST({ 0, 4096 }, { 0, 0 }, { 0, 8192 });
	assert_same_pages(list, expected);
	assert_int_equal(list->touches[0].flags, HOT_WAS_PRESENT);
	assert_int_equal(list->touches[0].kind, HOT_FETCH);
	assert_int_equal(list->touches[1].vcpu, HOT_VCPU_UNKNOWN);
	assert_int_equal(list->touches[2].flags, 0);
	assert_int_equal(list->touches[2].raw_ns, 300);
	assert_int_equal(list->touches[2].vcpu, 1);
	assert_int_equal(list->touches[2].seen, 1);
	assert_string_equal(list->origin->tier, "kprobe");
	assert_int_equal(list->origin->region_count, 1);
	assert_int_equal(list->origin->regions[0].size, 1 << 20);
	assert_int_equal(list->origin->runs, 1);
	assert_int_equal(list->origin->events_lost, 7);
	assert_int_equal(list->origin->window_end, HOT_WINDOW_READY);
	assert_int_equal(list->origin->window_ns, S);
	hotlist_free(list);
	recording_clear(&recording);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_first_touch_of_a_page_stays),
		cmocka_unit_test(test_a_touch_and_its_fault_are_one),
		cmocka_unit_test(test_a_million_events),
		cmocka_unit_test(test_what_does_not_fit_is_refused),
		cmocka_unit_test(test_ready_ends_the_window),
		cmocka_unit_test(test_quiet_ends_the_window),
		cmocka_unit_test(test_a_quiet_start_does_not_end_the_window),
		cmocka_unit_test(test_a_fork_that_lives_on_does_not_swell_its_list),
		cmocka_unit_test(test_waiting_is_not_quiet),
		cmocka_unit_test(test_nothing_touched),
		cmocka_unit_test(test_a_list_says_what_was_recorded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
