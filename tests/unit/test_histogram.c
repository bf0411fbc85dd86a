/* Percentiles from buckets against the exact ones, and the ends of the range. */
#include <stdlib.h>

#include "base/histogram.h"
#include "unit/hotlist_helpers.h"

#define SAMPLES 20000

static const unsigned permilles[] = { 1, 10, 250, 500, 900, 990, 999, 1000 };

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* At least the exact value, and at most an eighth above. */
static void assert_percentiles(uint64_t *samples, size_t count)
{
	struct histogram *h = calloc(1, sizeof *h);
	uint64_t sum = 0;

	assert_non_null(h);
	for (size_t i = 0; i < count; i++) {
		histogram_add(h, samples[i]);
		sum += samples[i];
	}
	qsort(samples, count, sizeof *samples, compare_u64);
	for (size_t i = 0; i < sizeof permilles / sizeof *permilles; i++) {
		size_t rank = (count * permilles[i] + 999) / 1000;
		uint64_t exact = samples[rank - 1], got = histogram_percentile(h, permilles[i]);
		if (got < exact || got - exact > exact / 8)
			fail_msg("%u permille: %llu, exactly %llu", permilles[i], (unsigned long long)got,
				 (unsigned long long)exact);
	}
	assert_int_equal(histogram_percentile(h, 1000), samples[count - 1]);
	assert_int_equal(h->max, samples[count - 1]);
	assert_int_equal(h->sum, sum);
	free(h);
}

static void test_uniform(void **state)
{
	static uint64_t samples[SAMPLES];
	struct random random = { .state = 1 };

	(void)state;
	for (size_t i = 0; i < SAMPLES; i++)
		samples[i] = random_below(&random, 1000000);
	assert_percentiles(samples, SAMPLES);
}

/* Every order of magnitude as often as every other: what latencies look like, and all buckets get some. */
static void test_all_magnitudes(void **state)
{
	static uint64_t samples[SAMPLES];
	struct random random = { .state = 2 };

	(void)state;
	for (size_t i = 0; i < SAMPLES; i++)
		samples[i] = random_u64(&random) >> random_below(&random, 64);
	assert_percentiles(samples, SAMPLES);
}

static void test_small_counts(void **state)
{
	struct random random = { .state = 3 };
	uint64_t samples[40];

	(void)state;
	for (size_t count = 1; count <= 40; count++) {
		for (size_t i = 0; i < count; i++)
			samples[i] = random_below(&random, 5000);
		assert_percentiles(samples, count);
	}
}

static void test_empty(void **state)
{
	static const struct histogram h;

	(void)state;
	assert_int_equal(histogram_percentile(&h, 0), 0);
	assert_int_equal(histogram_percentile(&h, 500), 0);
	assert_int_equal(histogram_percentile(&h, 1000), 0);
}

/* One value alone is given back as it is: its bucket's edge is cut at the maximum. At each power of two, and beside it. */
static void test_single_values(void **state)
{
	(void)state;
	for (unsigned bit = 0; bit < 64; bit++)
		for (int off = -1; off <= 1; off++) {
			uint64_t value = (1ull << bit) + (uint64_t)(int64_t)off;
			struct histogram *h = calloc(1, sizeof *h);
			assert_non_null(h);
			histogram_add(h, value);
			assert_int_equal(histogram_percentile(h, 1), value);
			assert_int_equal(histogram_percentile(h, 1000), value);
			free(h);
		}
}

static void test_extremes(void **state)
{
	static struct histogram h;

	(void)state;
	histogram_add(&h, 0);
	assert_int_equal(histogram_percentile(&h, 1000), 0);
	histogram_add(&h, UINT64_MAX);
	assert_int_equal(histogram_percentile(&h, 500), 0);
	assert_int_equal(histogram_percentile(&h, 501), UINT64_MAX);
	assert_int_equal(h.max, UINT64_MAX);
}

/* Values below eight have buckets of their own. */
static void test_smallest_are_exact(void **state)
{
	static struct histogram h;

	(void)state;
	for (uint64_t i = 0; i < 8; i++)
		histogram_add(&h, i);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(histogram_percentile(&h, (i + 1) * 125), i);
	assert_int_equal(histogram_percentile(&h, 0), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_uniform),
		cmocka_unit_test(test_all_magnitudes),
		cmocka_unit_test(test_small_counts),
		cmocka_unit_test(test_empty),
		cmocka_unit_test(test_single_values),
		cmocka_unit_test(test_extremes),
		cmocka_unit_test(test_smallest_are_exact),
	};

	return cmocka_run_group_tests_name("histogram", tests, NULL, NULL);
}
