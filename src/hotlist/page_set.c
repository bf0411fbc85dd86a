/*
 * A hash table of indices: 8 to 16 bytes a page, where sorting a copy takes 24. The hash starts from random bits, so that nobody can make a list
 * whose pages all collide.
 */
#include "hotlist/page_set.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"

struct page_set {
	uint64_t seed;
	size_t mask;
	unsigned index_bits;
	uint32_t slots[]; /* index + 1 in the lower bits, above them what the hash has there; 0: free */
};

struct page_set *page_set_new(size_t count)
{
	size_t slots = 64;

	if (count >= UINT32_MAX)
		return NULL;
	while (slots < count * 2)
		slots *= 2;
	struct page_set *set = calloc(1, sizeof *set + slots * sizeof *set->slots);
	if (!set)
		return NULL;
	set->mask = slots - 1;
	while (set->index_bits < 32 && count >> set->index_bits)
		set->index_bits++;
	if (getrandom(&set->seed, sizeof set->seed, GRND_NONBLOCK) != sizeof set->seed)
		set->seed = now_ns();
	return set;
}

void page_set_free(struct page_set *set)
{
	free(set);
}

/* The finalizer of splitmix64: every bit of N changes half of the result's. */
static uint64_t mix(uint64_t n)
{
	n = (n ^ n >> 30) * 0xbf58476d1ce4e5b9;
	n = (n ^ n >> 27) * 0x94d049bb133111eb;
	return n ^ n >> 31;
}

static uint64_t hash(const struct page_set *set, const struct hot_page *page)
{
	return mix(mix(page->region ^ set->seed) + page->offset);
}

void page_set_prefetch(const struct page_set *set, const struct hot_page *page)
{
	__builtin_prefetch(&set->slots[hash(set, page) & set->mask], 1);
}

size_t page_set_add(struct page_set *set, const struct hot_page *pages, size_t index)
{
	const struct hot_page *page = &pages[index];
	uint64_t hashed = hash(set, page);
	/* Pages that share a slot are mostly told apart without a look at them. */
	uint32_t index_mask = (uint32_t)((1ull << set->index_bits) - 1), tag = (uint32_t)(hashed >> 32) & ~index_mask;
	size_t slot = hashed & set->mask;

	for (; set->slots[slot]; slot = (slot + 1) & set->mask) {
		if ((set->slots[slot] & ~index_mask) != tag)
			continue;
		size_t other = (set->slots[slot] & index_mask) - 1;
		if (pages[other].region == page->region && pages[other].offset == page->offset)
			return other;
	}
	set->slots[slot] = tag | ((uint32_t)index + 1);
	return index;
}
