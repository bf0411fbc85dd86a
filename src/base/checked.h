/* Arithmetic on numbers that a peer or a file supplied. Each returns false, and leaves *ret alone, where the result does not fit. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool checked_add(uint64_t a, uint64_t b, uint64_t *ret)
{
	uint64_t sum;

	if (__builtin_add_overflow(a, b, &sum))
		return false;
	*ret = sum;
	return true;
}

static inline bool checked_mul(uint64_t a, uint64_t b, uint64_t *ret)
{
	uint64_t product;

	if (__builtin_mul_overflow(a, b, &product))
		return false;
	*ret = product;
	return true;
}

static inline bool is_power_of_two(uint64_t n)
{
	return n && !(n & (n - 1));
}

/* ALIGN is a power of two. */
static inline bool is_aligned(uint64_t n, uint64_t align)
{
	return !(n & (align - 1));
}

static inline bool checked_round_up(uint64_t n, uint64_t align, uint64_t *ret)
{
	uint64_t sum;

	if (!checked_add(n, align - 1, &sum))
		return false;
	*ret = sum & ~(align - 1);
	return true;
}
