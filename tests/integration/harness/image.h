/*
 * Template images on disk whose every page can be told from every other: content is a function of seed and page number.
 * Pages may be holes (zero), and the size need not be a multiple of the page.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct test_image {
	char path[200];
	uint64_t size; /* bytes */
	uint64_t seed;
	uint32_t hole_every; /* every n-th page is a hole in the file; 0: none */
	uint32_t data_every; /* only every n-th page holds data, the others are holes; 0: all do */
};

/* Writes SIZE bytes to DIR/NAME.mem. Fails the test where it can't. The other fields are set in advance. */
void test_image_make(struct test_image *image, const char *dir, const char *name, uint64_t size);

/* Drops the image from the page cache, so that the first reads have to go to the disk. */
void test_image_evict(const struct test_image *image);

/* A sum over the whole file, to show that nobody wrote to it. */
uint64_t test_image_sum(const struct test_image *image);

bool test_image_is_hole(const struct test_image *image, uint64_t page);

/* The 8 bytes at WORD (0 to 511) of the page; zero past the end, and partly zero where the end cuts a word. */
uint64_t test_image_word(const struct test_image *image, uint64_t page, unsigned word);
