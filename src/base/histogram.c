#include "base/histogram.h"

static unsigned bucket_of(uint64_t ns)
{
	if (ns < (1u << HISTOGRAM_SUB_BITS))
		return (unsigned)ns;
	unsigned exponent = 63 - (unsigned)__builtin_clzll(ns);
	unsigned sub = (unsigned)(ns >> (exponent - HISTOGRAM_SUB_BITS)) & ((1u << HISTOGRAM_SUB_BITS) - 1);
	return ((exponent - HISTOGRAM_SUB_BITS + 1) << HISTOGRAM_SUB_BITS) + sub;
}

/* The largest value that falls in bucket B. */
static uint64_t upper_edge(unsigned b)
{
	if (b < (1u << HISTOGRAM_SUB_BITS))
		return b;
	unsigned exponent = (b >> HISTOGRAM_SUB_BITS) + HISTOGRAM_SUB_BITS - 1;
	uint64_t sub = b & ((1u << HISTOGRAM_SUB_BITS) - 1), unit = 1ull << (exponent - HISTOGRAM_SUB_BITS);
	return (1ull << exponent) + (sub + 1) * unit - 1;
}

void histogram_add(struct histogram *h, uint64_t ns)
{
	uint64_t max = atomic_load_explicit(&h->max, memory_order_relaxed);

	atomic_fetch_add_explicit(&h->buckets[bucket_of(ns)], 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&h->sum, ns, memory_order_relaxed);
	while (ns > max &&
	       !atomic_compare_exchange_weak_explicit(&h->max, &max, ns, memory_order_relaxed, memory_order_relaxed))
		;
}

uint64_t histogram_percentile(const struct histogram *h, unsigned permille)
{
	uint64_t total = 0, seen = 0, max = atomic_load_explicit(&h->max, memory_order_relaxed);

	for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++)
		total += atomic_load_explicit(&h->buckets[i], memory_order_relaxed);
	if (total == 0)
		return 0;
	uint64_t rank = (total * permille + 999) / 1000;
	for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
		seen += atomic_load_explicit(&h->buckets[i], memory_order_relaxed);
		if (seen >= rank && seen > 0) {
			uint64_t edge = upper_edge(i);
			return edge < max ? edge : max;
		}
	}
	return max;
}
