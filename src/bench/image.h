/* Memory images of which every page can be told from every other, so that whatever a client reads can be checked; and random orders. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

#define BENCH_PAGE 4096ull

struct bench_image {
	char path[512];
	uint64_t pages; /* with content */
	uint64_t size;	/* bytes of the file; what lies behind the content is a hole */
};

/* Writes DIR/NAME, of PAGES pages and at least SIZE bytes, to the disk and into the page cache. */
int bench_image_make(const char *dir, const char *name, uint64_t pages, uint64_t size, struct bench_image *ret,
		     struct error *err);

/* The 8 bytes at WORD (0 to 511) of a page with content. */
static inline uint64_t bench_image_word(uint64_t page, unsigned word)
{
	return (page + 1) * 0x9e3779b97f4a7c15ull + word;
}

/* Whether all of MEMORY, one page long, is what PAGE has. */
bool bench_page_is_right(const void *memory, uint64_t page);

/* splitmix64. */
struct bench_random {
	uint64_t state;
};
uint64_t bench_random_next(struct bench_random *random);
/* 0 to BOUND - 1. */
uint64_t bench_random_below(struct bench_random *random, uint64_t bound);
/* 1 or more, geometrically distributed with that mean (1 or more). */
uint64_t bench_random_geometric(struct bench_random *random, double mean);
void bench_shuffle(struct bench_random *random, uint64_t *items, uint64_t count);
