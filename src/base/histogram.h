/* Durations in log-linear buckets: eight to each power of two, so that a percentile is at most 12 % off. Any thread may add and read. */
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#define HISTOGRAM_SUB_BITS 3
#define HISTOGRAM_BUCKETS  ((64 - HISTOGRAM_SUB_BITS + 1) << HISTOGRAM_SUB_BITS)

struct histogram {
	_Atomic uint32_t buckets[HISTOGRAM_BUCKETS];
	_Atomic uint64_t sum, max;
};

void histogram_add(struct histogram *h, uint64_t ns);
/* PERMILLE 500 is the median. The upper edge of the bucket that it falls in, at most the maximum; 0 where nothing was added. */
uint64_t histogram_percentile(const struct histogram *h, unsigned permille);
