/* What the tests of hot lists share. */
#pragma once

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "hotlist/hotlist.h"

/* Reproducible on every machine, and the same numbers whatever the C library's rand() is. */
struct random {
	uint64_t state;
};

static inline uint64_t random_u64(struct random *random)
{
	/* splitmix64 */
	uint64_t z = (random->state += 0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

static inline uint64_t random_below(struct random *random, uint64_t n)
{
	return random_u64(random) % n;
}

static inline struct hotlist *list_of(const struct hot_page *pages, size_t count)
{
	struct hotlist *list = hotlist_new();

	assert_non_null(list);
	for (size_t i = 0; i < count; i++)
		assert_int_equal(hotlist_add(list, pages[i].region, pages[i].offset), 0);
	return list;
}

#define LIST(...)                                         \
	list_of((const struct hot_page[]){ __VA_ARGS__ }, \
		sizeof((const struct hot_page[]){ __VA_ARGS__ }) / sizeof(struct hot_page))

static inline void assert_same_pages(const struct hotlist *a, const struct hotlist *b)
{
	assert_int_equal(a->count, b->count);
	for (size_t i = 0; i < a->count; i++) {
		assert_int_equal(a->pages[i].region, b->pages[i].region);
		assert_int_equal(a->pages[i].offset, b->pages[i].offset);
	}
}

/* The bytes are decoded from a block of exactly their size, so that a sanitizer sees a read past their end. */
static inline struct hotlist *decode(const void *data, size_t size)
{
	struct hotlist *list = NULL;
	struct error err = { .code = "" };
	void *copy = malloc(size ?: 1);

	assert_non_null(copy);
	memcpy(copy, data, size);
	int r = hotlist_decode(copy, size, &list, &err);
	free(copy);
	if (r < 0)
		fail_msg("%s", err.message);
	return list;
}

/* Must fail with -EBADMSG, and the message must be EXPECTED to the letter. */
static inline void assert_malformed(const void *data, size_t size, const char *expected)
{
	struct hotlist *list = NULL;
	struct error err = { .code = "" };
	void *copy = malloc(size ?: 1);

	assert_non_null(copy);
	memcpy(copy, data, size);
	int r = hotlist_decode(copy, size, &list, &err);
	free(copy);
	assert_int_equal(r, -EBADMSG);
	assert_null(list);
	assert_string_equal(err.code, "bad_hot_list");
	assert_string_equal(err.message, expected);
}

static inline void assert_contains(const char *text, const char *part)
{
	if (!strstr(text, part))
		fail_msg("\"%s\" is not in \"%s\"", part, text);
}
