/* What is made of measured values: medians, quartiles, percentiles, ratios. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "bench/bench.h"

/* One value a round. */
struct series {
	double values[BENCH_ROUNDS_MAX];
	unsigned count;
};

struct summary {
	double median, min, max, q1, q3;
};

/* Values beyond BENCH_ROUNDS_MAX are dropped. */
void series_add(struct series *series, double value);
/* All zero where there are no values. */
struct summary series_summary(const struct series *series);
double series_median(const struct series *series);
/* Round by round, A over B. */
struct series series_ratio(const struct series *a, const struct series *b);

/*
 * How far two series of the same thing stray from each other: the larger of how far the ratio of their medians is from 1, and of half the
 * distance between the quartiles of the ratios, round by round. 0 is perfect.
 */
double series_noise(const struct series *a, const struct series *b);

void sort_samples(uint64_t *samples, size_t count);
/* Of sorted samples, by nearest rank: PERMILLE 500 is the median, 1000 the largest. 0 where there are none. */
uint64_t percentile(const uint64_t *sorted, size_t count, unsigned permille);
