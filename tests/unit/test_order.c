/* Orders compared: rank correlation and touch curves, on lists small enough to be worked out by hand. */
#include "unit/hotlist_helpers.h"

#include <math.h>

#include "hotlist/order.h"

#define P(n)                   \
	{                      \
		0, (n)*4096ull \
	}

static void assert_near(double value, double expected)
{
	if (isnan(value) || fabs(value - expected) > 1e-9)
		fail_msg("%.12f instead of %.12f", value, expected);
}

static void test_rank_correlation(void **state)
{
	size_t common;

	(void)state;
	_cleanup_hotlist_ struct hotlist *a = LIST(P(1), P(2), P(3), P(4));
	_cleanup_hotlist_ struct hotlist *reversed = LIST(P(4), P(3), P(2), P(1));
	assert_near(order_rank_correlation(a, a, &common), 1);
	assert_int_equal(common, 4);
	assert_near(order_rank_correlation(a, reversed, &common), -1);

	/* Ranks 0123 against 0213: d^2 is 0, 1, 1, 0. */
	_cleanup_hotlist_ struct hotlist *swapped = LIST(P(1), P(3), P(2), P(4));
	assert_near(order_rank_correlation(a, swapped, NULL), 1 - 6.0 * 2 / (4 * 15));

	/* What only one has doesn't count, nor where a page stands a second time; other regions are other pages. */
	_cleanup_hotlist_ struct hotlist *more = LIST(P(9), P(1), { 7, 4096 }, P(3), P(1), P(8), P(2), P(3), P(4), P(9));
	assert_near(order_rank_correlation(a, more, &common), 1 - 6.0 * 2 / (4 * 15));
	assert_int_equal(common, 4);
	assert_near(order_rank_correlation(more, a, &common), 1 - 6.0 * 2 / (4 * 15));
}

static void test_too_few_pages_have_no_order(void **state)
{
	size_t common = 99;

	(void)state;
	_cleanup_hotlist_ struct hotlist *none = hotlist_new();
	_cleanup_hotlist_ struct hotlist *one = LIST(P(1));
	_cleanup_hotlist_ struct hotlist *two = LIST(P(2), P(1));
	_cleanup_hotlist_ struct hotlist *same = LIST(P(1), P(1), P(1));
	assert_near(order_rank_correlation(none, none, &common), 0);
	assert_int_equal(common, 0);
	assert_near(order_rank_correlation(one, two, &common), 0);
	assert_int_equal(common, 1);
	assert_near(order_rank_correlation(same, two, &common), 0);
	assert_int_equal(common, 1);
	assert_near(order_rank_correlation(two, two, &common), 1);
	assert_int_equal(common, 2);
}

static void test_equal_numbers_share_their_rank(void **state)
{
	static const double up[] = { 1, 2, 3, 4 }, tied[] = { 5, 7, 7, 9 }, flat[] = { 1, 1, 1, 1 };

	(void)state;
	assert_near(order_rank_correlation_of(up, up, 4), 1);
	/* Ranks -1.5 -0.5 0.5 1.5 and -1.5 0 0 1.5. */
	assert_near(order_rank_correlation_of(up, tied, 4), 4.5 / sqrt(5.0 * 4.5));
	assert_near(order_rank_correlation_of(up, flat, 4), 0);
	assert_near(order_rank_correlation_of(up, up, 1), 0);
	assert_near(order_rank_correlation_of(NULL, NULL, 0), 0);
	assert_false(isnan(order_rank_correlation_of((double[]){ NAN, 1, 2 }, up, 3)));
}

static void test_touch_curve(void **state)
{
	(void)state;
	_cleanup_hotlist_ struct hotlist *truth = LIST(P(1), P(2), P(3), P(4), P(2));
	_cleanup_hotlist_ struct hotlist *prediction = LIST(P(2), P(9), P(1), P(3));
	/*
	 * k          1    2      3        4
	 * touched    1    1 2    1 2 3    1 2 3 4
	 * brought    2    2 9    2 9 1    2 9 1 3
	 * there      0    1      2        3
	 */
	static const uint32_t expected[] = { 0, 1, 2, 3 };
	uint32_t *served;
	size_t count;

	assert_int_equal(order_touch_curve(prediction, truth, &served, &count), 0);
	assert_int_equal(count, 4);
	assert_memory_equal(served, expected, sizeof expected);
	free(served);

	struct order_figures figures;
	assert_int_equal(order_compare(prediction, truth, 0, &figures), 0);
	assert_near(figures.area, 1 - 6.0 / 10);
	assert_int_equal(figures.predicted, 4);
	assert_int_equal(figures.touched, 4);
	assert_int_equal(figures.common, 3);
	assert_int_equal(figures.missing, 1);
	assert_int_equal(figures.unused, 1);
	assert_int_equal(figures.late, 2); /* 1 is touched first and brought third, 3 third and fourth */
	assert_int_equal(order_compare(prediction, truth, 1, &figures), 0);
	assert_int_equal(figures.late, 1);
	/* Ranks among 1, 2, 3: 0 1 2 and 1 0 2. */
	assert_near(figures.rank_correlation, 1 - 6.0 * 2 / (3 * 8));
}

static void test_area_of_the_best_and_the_worst(void **state)
{
	struct order_figures figures;
	uint32_t *served;
	size_t count;

	(void)state;
	_cleanup_hotlist_ struct hotlist *truth = LIST(P(1), P(2), P(3));
	_cleanup_hotlist_ struct hotlist *longer = LIST(P(1), P(2), P(3), P(4));
	_cleanup_hotlist_ struct hotlist *other = LIST(P(7), P(8), P(9));
	_cleanup_hotlist_ struct hotlist *none = hotlist_new();
	assert_int_equal(order_compare(truth, truth, 0, &figures), 0);
	assert_near(figures.area, 0);
	assert_int_equal(order_compare(longer, truth, 0, &figures), 0);
	assert_near(figures.area, 0);
	assert_int_equal(order_compare(other, truth, 0, &figures), 0);
	assert_near(figures.area, 1);
	assert_int_equal(figures.missing, 3);
	assert_int_equal(order_compare(none, truth, 0, &figures), 0);
	assert_near(figures.area, 1);
	assert_int_equal(order_compare(truth, none, 0, &figures), 0);
	assert_near(figures.area, 0);
	assert_int_equal(figures.unused, 3);
	assert_int_equal(order_touch_curve(truth, none, &served, &count), 0);
	assert_null(served);
	assert_int_equal(count, 0);
}

/* As the header says of the right pages in other orders. */
static void test_area_of_random_and_of_reversed_order(void **state)
{
	enum { PAGES = 20000 };
	struct random random = { .state = 7 };
	_cleanup_hotlist_ struct hotlist *truth = hotlist_new(), *shuffled = hotlist_new(), *reversed = hotlist_new();
	static uint64_t pages[PAGES];
	struct order_figures figures;

	(void)state;
	for (uint64_t i = 0; i < PAGES; i++) {
		assert_int_equal(hotlist_add(truth, 3, i * 4096), 0);
		assert_int_equal(hotlist_add(reversed, 3, (PAGES - 1 - i) * 4096), 0);
		uint64_t other = random_below(&random, i + 1);
		pages[i] = pages[other];
		pages[other] = i;
	}
	for (size_t i = 0; i < PAGES; i++)
		assert_int_equal(hotlist_add(shuffled, 3, pages[i] * 4096), 0);
	assert_int_equal(order_compare(shuffled, truth, 0, &figures), 0);
	assert_true(fabs(figures.area - 1.0 / 3) < 0.01);
	assert_true(fabs(figures.rank_correlation) < 0.03);
	assert_int_equal(order_compare(reversed, truth, 0, &figures), 0);
	assert_true(fabs(figures.area - 0.5) < 0.001);
	assert_near(figures.rank_correlation, -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rank_correlation),
		cmocka_unit_test(test_too_few_pages_have_no_order),
		cmocka_unit_test(test_equal_numbers_share_their_rank),
		cmocka_unit_test(test_touch_curve),
		cmocka_unit_test(test_area_of_the_best_and_the_worst),
		cmocka_unit_test(test_area_of_random_and_of_reversed_order),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
