/* Of a list, what fits into a budget is kept in the list's order, and what doesn't is counted. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "prefetch/budget.h"

#define SMALL 4096ull
#define HUGE  (2ull << 20)

static const struct region regions[] = {
	{ .size = 1024 * SMALL, .page_size = SMALL },
	{ .size = 4 * HUGE, .page_size = HUGE, .offset = 1024 * SMALL, .first_page = 1024 },
};

struct named {
	uint32_t region;
	uint64_t offset;
};

static struct hotlist *list_of(const struct named *pages, size_t count)
{
	struct hotlist *list = calloc(1, sizeof *list);

	assert_non_null(list);
	list->pages = calloc(count, sizeof *list->pages);
	assert_non_null(list->pages);
	for (size_t i = 0; i < count; i++)
		list->pages[i] = (struct hot_page){ .region = pages[i].region, .offset = pages[i].offset };
	list->count = count;
	return list;
}

static const struct named mixed[] = {
	{ 0, 9 * SMALL }, { 0, 1 * SMALL }, { 0, 9 * SMALL }, { 1, HUGE + 3 * SMALL }, { 1, HUGE + 4 * SMALL },
	{ 0, 2 * SMALL }, { 0, 1 * SMALL }, { 1, 0 },	      { 0, 3 * SMALL },
};
#define MIXED (sizeof mixed / sizeof *mixed)

static void cut(uint64_t budget, size_t left, uint64_t used, uint64_t over)
{
	_cleanup_hotlist_ struct hotlist *list = list_of(mixed, MIXED);
	uint64_t got_used, got_over;

	assert_int_equal(budget_cut(list, regions, 2, budget, &got_used, &got_over, NULL), 0);
	assert_int_equal(list->count, left);
	assert_int_equal(got_used, used);
	assert_int_equal(got_over, over);
	for (size_t i = 0; i < left; i++)
		assert_int_equal(list->pages[i].offset, mixed[i].offset);
}

static void pages_count_once(void **state)
{
	(void)state;
	cut(1ull << 40, MIXED, 4 * SMALL + 2 * HUGE, 0);
	cut(4 * SMALL + 2 * HUGE, MIXED, 4 * SMALL + 2 * HUGE, 0);
	cut(2 * SMALL + HUGE, 5, 2 * SMALL + HUGE, 3);
}

static void what_comes_after_the_first_that_does_not_fit_is_left_out(void **state)
{
	(void)state;
	/* The huge page does not fit; the small ones behind it would. */
	cut(4 * SMALL, 3, 2 * SMALL, 4);
	cut(SMALL, 1, SMALL, 5);
	cut(SMALL + 100, 1, SMALL, 5);
	/* Named again, a page costs nothing more: up to the next that is new. */
	cut(3 * SMALL + HUGE, 7, 3 * SMALL + HUGE, 2);
}

static void less_than_a_page_is_nothing(void **state)
{
	(void)state;
	cut(SMALL - 1, 0, 0, 6);
}

static void a_list_of_other_regions_is_refused(void **state)
{
	const struct named outside[] = { { 0, 1024 * SMALL } }, nowhere[] = { { 2, 0 } };
	_cleanup_hotlist_ struct hotlist *a = list_of(outside, 1), *b = list_of(nowhere, 1);
	uint64_t used, over;

	(void)state;
	assert_int_equal(budget_cut(a, regions, 2, 1 << 20, &used, &over, NULL), -EINVAL);
	assert_int_equal(budget_cut(b, regions, 2, 1 << 20, &used, &over, NULL), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pages_count_once),
		cmocka_unit_test(what_comes_after_the_first_that_does_not_fit_is_left_out),
		cmocka_unit_test(less_than_a_page_is_nothing),
		cmocka_unit_test(a_list_of_other_regions_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
