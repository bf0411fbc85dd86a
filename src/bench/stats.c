#include "bench/stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void series_add(struct series *series, double value)
{
	if (series->count < BENCH_ROUNDS_MAX)
		series->values[series->count++] = value;
}

static int compare_values(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

/* The value at PLACE, from 0 to 1, of COUNT sorted ones; between two of them it is interpolated. */
static double quantile(const double *sorted, unsigned count, double place)
{
	double at = place * (count - 1);
	unsigned low = (unsigned)at, high = low + 1 < count ? low + 1 : low;

	return sorted[low] + (at - low) * (sorted[high] - sorted[low]);
}

struct summary series_summary(const struct series *series)
{
	double sorted[BENCH_ROUNDS_MAX];
	unsigned n = series->count;

	if (n == 0)
		return (struct summary){ 0 };
	memcpy(sorted, series->values, n * sizeof *sorted);
	qsort(sorted, n, sizeof *sorted, compare_values);
	return (struct summary){
		.median = quantile(sorted, n, 0.5),
		.min = sorted[0],
		.max = sorted[n - 1],
		.q1 = quantile(sorted, n, 0.25),
		.q3 = quantile(sorted, n, 0.75),
	};
}

double series_median(const struct series *series)
{
	return series_summary(series).median;
}

struct series series_ratio(const struct series *a, const struct series *b)
{
	struct series ratio = { 0 };

	for (unsigned i = 0; i < a->count && i < b->count; i++)
		if (b->values[i] > 0)
			series_add(&ratio, a->values[i] / b->values[i]);
	return ratio;
}

double series_noise(const struct series *a, const struct series *b)
{
	double other = series_median(b);

	if (other <= 0)
		return 0;
	struct series ratio = series_ratio(a, b);
	struct summary spread = series_summary(&ratio);
	double drift = fabs(series_median(a) / other - 1), half = (spread.q3 - spread.q1) / 2;

	return drift > half ? drift : half;
}

static int compare_samples(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

void sort_samples(uint64_t *samples, size_t count)
{
	qsort(samples, count, sizeof *samples, compare_samples);
}

uint64_t percentile(const uint64_t *sorted, size_t count, unsigned permille)
{
	if (count == 0)
		return 0;
	size_t rank = (count * permille + 999) / 1000;

	return sorted[rank > 0 ? rank - 1 : 0];
}
