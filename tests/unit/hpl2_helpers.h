/* What the tests of HPL2 share: lists with everything in them, and files put together from parts that may be wrong. */
#pragma once

#include <stdlib.h>
#include <zlib.h>

#include "unit/hotlist_helpers.h"

#define HEADER_SIZE 24

/* The offsets of the header's fields, as docs/hotlist-format.md has them. */
enum { AT_VERSION = 4, AT_FLAGS = 6, AT_ORIGIN_SIZE = 8, AT_PAGES = 12, AT_BODY_SIZE = 16, AT_PACKED_SIZE = 20 };

static inline void put_u32(uint8_t *at, uint32_t n)
{
	for (int i = 0; i < 4; i++)
		at[i] = (uint8_t)(n >> 8 * i);
}

static inline uint32_t get_u32(const uint8_t *at)
{
	return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* Makes the checksum right again, so that a reader sees what else is wrong. */
static inline void seal(uint8_t *file, size_t size)
{
	put_u32(file + size - 4, (uint32_t)crc32(0, file, (uInt)(size - 4)));
}

struct parts {
	uint16_t version, flags; /* version 0: the right one */
	const void *origin;
	size_t origin_size;
	uint32_t pages;
	const void *body; /* as it is before compression */
	size_t body_size;
	uint32_t body_size_said; /* 0: the true one */
	size_t after_stream;	 /* bytes within the packed size, behind the zlib stream */
};

/* The caller frees it. */
static inline uint8_t *file_of(const struct parts *parts, size_t *ret_size)
{
	/* Small bodies are stored: how far they are compressed depends on the version of zlib. */
	const int level = parts->body_size < 1024 ? 0 : 9;
	uLongf packed = compressBound(parts->body_size);
	uint8_t *file = calloc(1, HEADER_SIZE + parts->origin_size + packed + parts->after_stream + 4);

	assert_non_null(file);
	uint8_t *stream = file + HEADER_SIZE + parts->origin_size;
	assert_int_equal(compress2(stream, &packed, parts->body, parts->body_size, level), Z_OK);
	packed += parts->after_stream;
	memcpy(file, "HPL2", 4);
	file[AT_VERSION] = (uint8_t)(parts->version ?: 1);
	file[AT_FLAGS] = (uint8_t)parts->flags;
	file[AT_FLAGS + 1] = (uint8_t)(parts->flags >> 8);
	put_u32(file + AT_ORIGIN_SIZE, (uint32_t)parts->origin_size);
	put_u32(file + AT_PAGES, parts->pages);
	put_u32(file + AT_BODY_SIZE, parts->body_size_said ?: (uint32_t)parts->body_size);
	put_u32(file + AT_PACKED_SIZE, (uint32_t)packed);
	if (parts->origin_size)
		memcpy(file + HEADER_SIZE, parts->origin, parts->origin_size);
	*ret_size = HEADER_SIZE + parts->origin_size + packed + 4;
	seal(file, *ret_size);
	uint8_t *shrunk = realloc(file, *ret_size);
	return shrunk ?: file;
}

static inline void add_touch(struct hotlist *list, uint64_t region, uint64_t offset, struct hot_touch touch)
{
	assert_int_equal(hotlist_add_touch(list, region, offset, &touch), 0);
}

/* One with a value, and mostly an unusual one, in every field. */
static inline struct hotlist *full_list(void)
{
	static struct hotlist_region_size regions[] = {
		{ .size = 3ull << 30, .offset = 0, .page_size = 4096 },
		{ .size = 1ull << 30, .offset = 3ull << 30, .page_size = 2 << 20 },
		{ .size = 0, .offset = 0, .page_size = 0 },
	};
	struct hotlist_origin origin = {
		.page_size = 4096,
		.regions = regions,
		.region_count = 3,
		.template_size = 4ull << 30,
		.runs = 10,
		.events_lost = UINT64_MAX,
		.window_ns = 12345678901,
		.window_end = HOT_WINDOW_SETTLED,
		.tier = "tp_btf",
		.clock = HOT_CLOCK_CORRECTED,
		.agreement_raw = 1970001,
		.agreement_corrected = 999999, /* -0.000001 */
	};
	struct hotlist *list = hotlist_new();

	assert_non_null(list);
	for (size_t i = 0; i < sizeof origin.template_digest; i++)
		origin.template_digest[i] = (uint8_t)(i * 7 + 1);
	assert_int_equal(hotlist_set_origin(list, &origin), 0);
	add_touch(list, 0, 4096, (struct hot_touch){ 1000, 900, 10, 0, 0, HOT_READ, 0 });
	add_touch(list, 0, 8192, (struct hot_touch){ 2000, 1000, 9, 12, 1, HOT_WRITE, HOT_WAS_PRESENT });
	add_touch(list, 1, 2 << 20, (struct hot_touch){ UINT64_MAX, 0, UINT32_MAX, UINT32_MAX, 65534, HOT_FETCH, 0 });
	assert_int_equal(hotlist_add(list, 0, 0), 0);
	add_touch(list, 0, 1 << 20, (struct hot_touch){ 5, UINT64_MAX, 1, 1000000, HOT_VCPU_UNKNOWN, HOT_WALK, 0 });
	add_touch(list, 7, UINT64_MAX - 4095, (struct hot_touch){ 0, 0, 0, 0, 3, HOT_UNKNOWN, 0 });
	add_touch(list, 0, UINT64_MAX - 4095, (struct hot_touch){ 1, 1, 1, 1, 1, HOT_READ, HOT_WAS_PRESENT });
	return list;
}

static inline void assert_same_touches(const struct hotlist *a, const struct hotlist *b)
{
	assert_int_equal(hotlist_has_touches(a), hotlist_has_touches(b));
	for (size_t i = 0; hotlist_has_touches(a) && i < a->count; i++) {
		const struct hot_touch *x = &a->touches[i], *y = &b->touches[i];

		assert_int_equal(x->raw_ns, y->raw_ns);
		assert_int_equal(x->corrected_ns, y->corrected_ns);
		assert_int_equal(x->seen, y->seen);
		assert_int_equal(x->spread, y->spread);
		assert_int_equal(x->vcpu, y->vcpu);
		assert_int_equal(x->kind, y->kind);
		assert_int_equal(x->flags, y->flags);
	}
}

static inline void assert_same_origin(const struct hotlist_origin *a, const struct hotlist_origin *b)
{
	assert_int_equal(!a, !b);
	if (!a)
		return;
	assert_int_equal(a->page_size, b->page_size);
	assert_int_equal(a->template_size, b->template_size);
	assert_memory_equal(a->template_digest, b->template_digest, sizeof a->template_digest);
	assert_int_equal(a->runs, b->runs);
	assert_int_equal(a->events_lost, b->events_lost);
	assert_int_equal(a->window_ns, b->window_ns);
	assert_int_equal(a->window_end, b->window_end);
	assert_string_equal(a->tier, b->tier);
	assert_int_equal(a->clock, b->clock);
	assert_int_equal(a->agreement_raw, b->agreement_raw);
	assert_int_equal(a->agreement_corrected, b->agreement_corrected);
	assert_int_equal(a->region_count, b->region_count);
	for (size_t i = 0; i < a->region_count; i++) {
		assert_int_equal(a->regions[i].size, b->regions[i].size);
		assert_int_equal(a->regions[i].offset, b->regions[i].offset);
		assert_int_equal(a->regions[i].page_size, b->regions[i].page_size);
	}
}

static inline void assert_same_lists(const struct hotlist *a, const struct hotlist *b)
{
	assert_same_pages(a, b);
	assert_same_touches(a, b);
	assert_same_origin(a->origin, b->origin);
}

/* Written and read again. */
static inline struct hotlist *through(const struct hotlist *list, enum hotlist_format format)
{
	_cleanup_free_ void *data = NULL;
	struct error err = { .message = "" };
	size_t size;

	if (hotlist_encode(list, format, &data, &size, &err) < 0)
		fail_msg("%s", err.message);
	struct hotlist *again = decode(data, size);
	assert_int_equal(again->format, format);
	return again;
}
