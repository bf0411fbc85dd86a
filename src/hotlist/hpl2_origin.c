/* The origin in an HPL2 file: numbers one after the other, not compressed, so that a hex dump shows it. */
#include "hotlist/hpl2.h"

#include <stdlib.h>
#include <string.h>

#define NUMBERS_MAX	 10 /* before the regions */
#define REGION_NUMBERS	 3
#define ORIGIN_MAX_BYTES ((NUMBERS_MAX + 1) * UVARINT_MAX_BYTES + HOTLIST_TIER_SIZE + 1 + IMAGE_IDENTITY_SIZE)

struct cursor {
	const uint8_t *data;
	size_t size, at;
	size_t file_at; /* of DATA */
	struct error *err;
};

/* A number of at most LIMIT. */
static int take(struct cursor *c, const char *field, uint64_t limit, uint64_t *ret)
{
	uint64_t n;
	int r = uvarint_decode(c->data + c->at, c->size - c->at, &n);

	if (r == -EOVERFLOW)
		return BAD_LIST(c->err, "varint over 64 bits in the origin (%s) at byte %zu", field, c->file_at + c->at);
	if (r < 0)
		return BAD_LIST(c->err, "the origin ends at byte %zu, within or before its %s at byte %zu",
				c->file_at + c->size, field, c->file_at + c->at);
	if (n > limit)
		return BAD_LIST(c->err,
				"bad %s in the origin at byte %zu: %" PRIu64 ", and at most %" PRIu64 " is known",
				field, c->file_at + c->at, n, limit);
	c->at += (size_t)r;
	*ret = n;
	return 0;
}

static int take_u32(struct cursor *c, const char *field, uint64_t limit, uint32_t *ret)
{
	uint64_t n;
	int r = take(c, field, limit, &n);

	if (r == 0)
		*ret = (uint32_t)n;
	return r;
}

/* SIZE bytes as they are. */
static int take_bytes(struct cursor *c, const char *field, size_t size, void *ret)
{
	if (c->size - c->at < size)
		return BAD_LIST(c->err, "the origin ends at byte %zu, within or before its %s at byte %zu",
				c->file_at + c->size, field, c->file_at + c->at);
	memcpy(ret, c->data + c->at, size);
	c->at += size;
	return 0;
}

static int take_tier(struct cursor *c, char ret[static HOTLIST_TIER_SIZE])
{
	uint64_t length;
	int r = take(c, "length of the tier", HOTLIST_TIER_SIZE - 1, &length);
	size_t at = c->at;

	if (r == 0)
		r = take_bytes(c, "tier", (size_t)length, ret);
	if (r == 0 && memchr(ret, '\0', (size_t)length))
		return BAD_LIST(c->err, "bad tier in the origin at byte %zu: it holds a NUL", c->file_at + at);
	return r;
}

static int take_template(struct cursor *c, struct hotlist_origin *origin)
{
	uint64_t bound;
	size_t at = c->at;
	int r = take(c, "size of the image", UINT64_MAX, &origin->template_size);

	if (r == 0)
		r = take(c, "mark whether there is an identity", 1, &bound);
	if (r < 0 || !bound)
		return r;
	r = take_bytes(c, "identity of the image", IMAGE_IDENTITY_SIZE, origin->template_digest);
	if (r == 0 && !hotlist_origin_is_bound(origin))
		return BAD_LIST(c->err, "bad identity of the image in the origin at byte %zu: all zeros stand for none",
				c->file_at + at);
	return r;
}

static int take_regions(struct cursor *c, struct hotlist_origin *origin)
{
	uint64_t count;
	int r = take(c, "number of regions", HOTLIST_REGIONS_MAX, &count);

	if (r < 0)
		return r;
	if (count > (c->size - c->at) / REGION_NUMBERS)
		return BAD_LIST(c->err,
				"bad number of regions in the origin: %" PRIu64
				" do not fit in the %zu bytes from byte %zu on",
				count, c->size - c->at, c->file_at + c->at);
	if (!count)
		return 0;
	origin->regions = calloc(count, sizeof *origin->regions);
	if (!origin->regions)
		return -ENOMEM;
	for (; r == 0 && origin->region_count < count; origin->region_count++) {
		struct hotlist_region_size *region = &origin->regions[origin->region_count];

		r = take(c, "size of a region", UINT64_MAX, &region->size);
		if (r == 0)
			r = take(c, "offset of a region", UINT64_MAX, &region->offset);
		if (r == 0)
			r = take(c, "page size of a region", UINT64_MAX, &region->page_size);
	}
	return r;
}

static int take_all(struct cursor *c, struct hotlist_origin *origin)
{
	uint64_t clock = 0;
	int r = take(c, "page size", UINT64_MAX, &origin->page_size);

	if (r == 0)
		r = take_u32(c, "number of runs", UINT32_MAX, &origin->runs);
	if (r == 0)
		r = take(c, "number of lost events", UINT64_MAX, &origin->events_lost);
	if (r == 0)
		r = take(c, "length of the window", UINT64_MAX, &origin->window_ns);
	if (r == 0)
		r = take_u32(c, "end of the window", HOT_WINDOW_GONE, &origin->window_end);
	if (r == 0)
		r = take(c, "clock", HOT_CLOCK_CORRECTED, &clock);
	if (r == 0)
		r = take_u32(c, "agreement of the raw times", HOT_AGREEMENT_MAX, &origin->agreement_raw);
	if (r == 0)
		r = take_u32(c, "agreement of the corrected times", HOT_AGREEMENT_MAX, &origin->agreement_corrected);
	origin->clock = (enum hot_clock)clock;
	if (r == 0)
		r = take_tier(c, origin->tier);
	if (r == 0)
		r = take_template(c, origin);
	return r < 0 ? r : take_regions(c, origin);
}

int hpl2_origin_decode(const uint8_t *data, size_t size, size_t file_at, struct hotlist *list, struct error *err)
{
	struct cursor c = { .data = data, .size = size, .file_at = file_at, .err = err };
	const char *field;

	list->origin = calloc(1, sizeof *list->origin);
	if (!list->origin)
		return -ENOMEM;
	int r = take_all(&c, list->origin);
	if (r < 0)
		return r;
	if (c.at < size)
		return BAD_LIST(err, "trailing bytes at byte %zu, after the origin, which was to end at byte %zu",
				file_at + c.at, file_at + size);
	if (hotlist_origin_check(list->origin, &field) < 0)
		return BAD_LIST(err, "bad %s in the origin, which begins at byte %zu", field, file_at);
	return 0;
}

struct sink {
	uint8_t *at;
};

static void put(struct sink *sink, uint64_t n)
{
	sink->at += uvarint_encode(n, sink->at);
}

static void put_bytes(struct sink *sink, const void *data, size_t size)
{
	memcpy(sink->at, data, size);
	sink->at += size;
}

static void put_all(struct sink *sink, const struct hotlist_origin *origin)
{
	bool bound = hotlist_origin_is_bound(origin);

	put(sink, origin->page_size);
	put(sink, origin->runs);
	put(sink, origin->events_lost);
	put(sink, origin->window_ns);
	put(sink, origin->window_end);
	put(sink, origin->clock);
	put(sink, origin->agreement_raw);
	put(sink, origin->agreement_corrected);
	put(sink, strlen(origin->tier));
	put_bytes(sink, origin->tier, strlen(origin->tier));
	put(sink, origin->template_size);
	put(sink, bound);
	if (bound)
		put_bytes(sink, origin->template_digest, IMAGE_IDENTITY_SIZE);
	put(sink, origin->region_count);
	for (size_t i = 0; i < origin->region_count; i++) {
		put(sink, origin->regions[i].size);
		put(sink, origin->regions[i].offset);
		put(sink, origin->regions[i].page_size);
	}
}

int hpl2_origin_encode(const struct hotlist_origin *origin, uint8_t **ret, size_t *ret_size, struct error *err)
{
	const char *field;

	if (hotlist_origin_check(origin, &field) < 0)
		return error_set(err, -EINVAL, "bad_hot_list",
				 "the list cannot be written as hpl2: what it says of its origin has a bad %s", field);
	uint8_t *data = malloc(ORIGIN_MAX_BYTES + origin->region_count * REGION_NUMBERS * UVARINT_MAX_BYTES);
	if (!data)
		return -ENOMEM;
	struct sink sink = { .at = data };
	put_all(&sink, origin);
	*ret = data;
	*ret_size = (size_t)(sink.at - data);
	return 0;
}
