/* What a benchmark makes of its values: medians, ratios, which floor is the best, and when noise leaves a target open. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "bench/image.h"
#include "bench/result.h"

static void assert_near(double got, double expected, double off)
{
	if (!(fabs(got - expected) <= off))
		fail_msg("%g, expected %g", got, expected);
}

static struct series series_of(const double *values, unsigned count)
{
	struct series series = { 0 };

	for (unsigned i = 0; i < count; i++)
		series_add(&series, values[i]);
	return series;
}

#define SERIES(...) series_of((const double[]){ __VA_ARGS__ }, sizeof((const double[]){ __VA_ARGS__ }) / sizeof(double))

static void test_quartiles(void **state)
{
	(void)state;
	struct series odd = SERIES(5, 1, 3, 2, 4), even = SERIES(4, 1, 3, 2), one = SERIES(7), none = { 0 };
	struct summary s = series_summary(&odd);

	assert_near(s.median, 3, 0);
	assert_near(s.min, 1, 0);
	assert_near(s.max, 5, 0);
	assert_near(s.q1, 2, 1e-12);
	assert_near(s.q3, 4, 1e-12);
	assert_near(series_median(&even), 2.5, 1e-12);
	s = series_summary(&one);
	assert_true(s.median == 7 && s.min == 7 && s.q1 == 7 && s.q3 == 7 && s.max == 7);
	assert_near(series_median(&none), 0, 0);
}

static void test_series_takes_no_more_than_it_holds(void **state)
{
	(void)state;
	struct series series = { 0 };

	for (unsigned i = 0; i < BENCH_ROUNDS_MAX + 5; i++)
		series_add(&series, i);
	assert_int_equal(series.count, BENCH_ROUNDS_MAX);
	assert_near(series_summary(&series).max, BENCH_ROUNDS_MAX - 1, 0);
}

static void test_percentiles_are_samples(void **state)
{
	(void)state;
	uint64_t samples[1000];

	for (unsigned i = 0; i < 1000; i++)
		samples[i] = 1000 - i;
	sort_samples(samples, 1000);
	assert_int_equal(percentile(samples, 1000, 500), 500);
	assert_int_equal(percentile(samples, 1000, 990), 990);
	assert_int_equal(percentile(samples, 1000, 1000), 1000);
	assert_int_equal(percentile(samples, 1000, 0), 1);
	assert_int_equal(percentile(samples, 1, 500), 1);
	assert_int_equal(percentile(samples, 3, 500), 2);
	assert_int_equal(percentile(samples, 0, 500), 0);
}

static void test_noise_is_drift_or_spread(void **state)
{
	(void)state;
	struct series calm = SERIES(10, 10, 10, 10, 10), drifted = SERIES(11, 11, 11, 11, 11);
	struct series wild = SERIES(8, 9, 10, 11, 12), none = { 0 };

	assert_near(series_noise(&calm, &calm), 0, 1e-12);
	assert_near(series_noise(&drifted, &calm), 0.1, 1e-12);
	/* Its median is the same, but the ratios' quartiles are 0.9 and 1.1. */
	assert_near(series_noise(&wild, &calm), 0.1, 1e-12);
	assert_near(series_noise(&calm, &none), 0, 0);
}

/* ---- cases ---- */

static void fill(struct bench_case *c, const char *id, double a, double b, double d)
{
	struct side *side = case_add_side(c, id, id);

	side_add(side, "p50_us", a);
	side_add(side, "p50_us", b);
	side_add(side, "p50_us", d);
}

static struct bench_case *new_case(void)
{
	struct bench_case *c = calloc(1, sizeof *c);

	assert_non_null(c);
	c->id = "case";
	c->title = "a case";
	return c;
}

/* The case's JSON; frees it. */
static json_t *finish(struct bench_case *c)
{
	json_t *json = case_to_json(c);

	free(c);
	assert_non_null(json);
	return json;
}

static json_t *ratio_at(const json_t *json, size_t index)
{
	return json_array_get(json_object_get(json, "ratios"), index);
}

static double value_of(const json_t *figure)
{
	return json_number_value(json_object_get(figure, "value"));
}

static bool says(const json_t *figure, const char *name)
{
	assert_true(json_is_boolean(json_object_get(figure, name)));
	return json_is_true(json_object_get(figure, name));
}

static void test_the_best_floor_counts(void **state)
{
	(void)state;
	struct bench_case *c = new_case();

	fill(c, "ours", 22, 20, 21);
	fill(c, "slow", 30, 31, 32);
	fill(c, "fast", 10, 30, 20);
	case_add_ratio(c, (struct ratio){ "best", "p50_us", "ours", "slow absent fast", 1.1, false });
	case_add_ratio(c, (struct ratio){ "slow", "p50_us", "ours", "slow", 0, false });
	case_add_ratio(c, (struct ratio){ "speed-up", "p50_us", "slow", "ours", 1.8, true });
	json_t *json = finish(c), *best = ratio_at(json, 0);

	assert_string_equal(json_string_value(json_object_get(best, "to")), "fast");
	assert_near(value_of(best), 1.05, 1e-5);
	assert_true(says(best, "met"));
	assert_near(json_number_value(json_object_get(json_object_get(best, "rounds"), "max")), 2.2, 1e-5);
	assert_true(json_is_null(json_object_get(best, "noise")));
	assert_true(json_is_null(json_object_get(ratio_at(json, 1), "target")));
	assert_true(json_is_null(json_object_get(ratio_at(json, 1), "met")));
	assert_false(says(ratio_at(json, 2), "met"));
	assert_near(json_number_value(json_object_get(json_object_get(ratio_at(json, 2), "target"), "at_least")), 1.8,
		    1e-9);
	json_decref(json);
}

/* OURS against a floor of 10 that was 10 * (1 + NOISE) when it was measured again; whether target 1.10 counts as open. */
static bool open_with(double ours, double noise, bool *ret_met)
{
	struct bench_case *c = new_case();
	double again = 10 * (1 + noise);

	fill(c, "ours", ours, ours, ours);
	fill(c, "floor", 10, 10, 10);
	fill(c, "again", again, again, again);
	c->again[0] = "again";
	c->again[1] = "floor";
	case_add_ratio(c, (struct ratio){ "ratio", "p50_us", "ours", "floor", 1.1, false });
	json_t *json = finish(c);
	bool open = says(ratio_at(json, 0), "too_noisy");

	*ret_met = says(ratio_at(json, 0), "met");
	assert_near(json_number_value(json_object_get(ratio_at(json, 0), "noise")), noise, 1e-5);
	json_decref(json);
	return open;
}

static void test_noise_leaves_open_what_it_can_reach(void **state)
{
	(void)state;
	bool met;

	/* A ratio of 1.2: 5 % of noise don't bring it to 1.1, 15 % do. */
	assert_false(open_with(12, 0.05, &met));
	assert_false(met);
	assert_true(open_with(12, 0.15, &met));
	assert_false(met);
	assert_true(open_with(10.5, 0.08, &met));
	assert_true(met);
	/* A tenth of the target stays one, whatever the noise of a factor of two. */
	assert_false(open_with(1, 1.0, &met));
	assert_true(met);
	/* A steady floor leaves even a close call standing. */
	assert_false(open_with(10.95, 0.01, &met));
	assert_true(met);
}

static void test_limits(void **state)
{
	(void)state;
	struct bench_case *c = new_case();

	fill(c, "ours", 4, 5, 6);
	case_add_limit(c, (struct limit){ "fine", "p50_us", "ours", 5, false });
	case_add_limit(c, (struct limit){ "over", "p50_us", "ours", 4.9, false });
	json_t *json = finish(c), *limits = json_object_get(json, "limits");

	assert_true(says(json_array_get(limits, 0), "met"));
	assert_false(says(json_array_get(limits, 1), "met"));
	json_decref(json);
}

static void test_skipped_case_has_a_reason_and_no_figures(void **state)
{
	(void)state;
	struct bench_case *c = new_case();

	fill(c, "ours", 1, 1, 1);
	case_add_ratio(c, (struct ratio){ "ratio", "p50_us", "ours", "nobody", 1.1, false });
	case_skip(c, "it needs %d CPUs", 2);
	json_t *json = finish(c);

	assert_string_equal(json_string_value(json_object_get(json, "skipped")), "it needs 2 CPUs");
	assert_int_equal(json_array_size(json_object_get(json, "sides")), 0);
	assert_int_equal(json_array_size(json_object_get(json, "ratios")), 0);
	json_decref(json);
}

static void test_figures_that_are_no_numbers_are_refused(void **state)
{
	(void)state;
	struct bench_case *c = new_case();

	fill(c, "ours", 1, 1, 1);
	fill(c, "floor", 0, 0, 0);
	case_add_ratio(c, (struct ratio){ "ratio", "p50_us", "ours", "floor", 1.1, false });
	assert_null(case_to_json(c));
	free(c);

	c = new_case();
	fill(c, "ours", 1, 0.0 / 0.0, 1);
	assert_null(case_to_json(c));
	free(c);
}

/* ---- images and orders ---- */

static void test_pages_differ(void **state)
{
	(void)state;
	uint64_t page[BENCH_PAGE / 8];

	for (unsigned k = 0; k < BENCH_PAGE / 8; k++)
		page[k] = bench_image_word(41, k);
	assert_true(bench_page_is_right(page, 41));
	assert_false(bench_page_is_right(page, 40));
	assert_false(bench_page_is_right(page, 42));
	for (unsigned k = 0; k < BENCH_PAGE / 8; k++) {
		page[k] ^= 1ull << (k % 64);
		assert_false(bench_page_is_right(page, 41));
		page[k] ^= 1ull << (k % 64);
	}
	memset(page, 0, sizeof page);
	assert_false(bench_page_is_right(page, 0));
}

static void test_orders(void **state)
{
	(void)state;
	enum { COUNT = 1000 };
	struct bench_random random = { .state = 1 };
	uint64_t items[COUNT], sum = 0, moved = 0;

	for (unsigned i = 0; i < COUNT; i++)
		items[i] = i;
	bench_shuffle(&random, items, COUNT);
	for (unsigned i = 0; i < COUNT; i++)
		moved += items[i] != i;
	assert_true(moved > COUNT * 9 / 10);
	sort_samples(items, COUNT);
	for (unsigned i = 0; i < COUNT; i++)
		assert_int_equal(items[i], i);

	for (unsigned i = 0; i < 100000; i++) {
		uint64_t n = bench_random_geometric(&random, 3);
		assert_true(n >= 1);
		sum += n;
		assert_true(bench_random_below(&random, 7) < 7);
	}
	assert_true(sum > 295000 && sum < 305000);
	assert_int_equal(bench_random_geometric(&random, 1), 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_quartiles),
		cmocka_unit_test(test_series_takes_no_more_than_it_holds),
		cmocka_unit_test(test_percentiles_are_samples),
		cmocka_unit_test(test_noise_is_drift_or_spread),
		cmocka_unit_test(test_the_best_floor_counts),
		cmocka_unit_test(test_noise_leaves_open_what_it_can_reach),
		cmocka_unit_test(test_limits),
		cmocka_unit_test(test_skipped_case_has_a_reason_and_no_figures),
		cmocka_unit_test(test_figures_that_are_no_numbers_are_refused),
		cmocka_unit_test(test_pages_differ),
		cmocka_unit_test(test_orders),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
