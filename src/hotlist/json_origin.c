/* What isn't known is left out, and read as not known where it is not there. */
#include "hotlist/json_origin.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "hotlist/format.h"
#include "hotlist/json.h"
#include "hotlist/json_reader.h"
#include "hotlist/words.h"

/* ---- reading ---- */

static int read_u32(struct json_reader *r, const char *name, uint32_t *ret)
{
	uint64_t n;
	int error = jr_number(r, name, &n);

	if (error == 0 && n > UINT32_MAX)
		return jr_bad(r, "\"%s\" is over 32 bits", name);
	if (error == 0)
		*ret = (uint32_t)n;
	return error;
}

static int read_agreement(struct json_reader *r, const char *name, uint32_t *ret)
{
	int32_t millionths;
	int error = jr_millionths(r, name, &millionths);

	if (error == 0)
		*ret = (uint32_t)(millionths + HOT_AGREEMENT_MAX / 2);
	return error;
}

static int read_tier(struct json_reader *r, char ret[static HOTLIST_TIER_SIZE])
{
	char text[JSON_TEXT_MAX];
	int error = jr_string(r, text);

	if (error == 0 && strlen(text) >= HOTLIST_TIER_SIZE)
		return jr_bad(r, "\"tier\" is longer than %d bytes", HOTLIST_TIER_SIZE - 1);
	if (error == 0)
		memcpy(ret, text, strlen(text) + 1);
	return error;
}

static int read_window_end(struct json_reader *r, uint32_t *ret)
{
	char text[JSON_TEXT_MAX];
	int error = jr_string(r, text);

	if (error == 0 && !hot_window_end_parse(text, strlen(text), ret))
		return jr_bad(r, "\"window_end\" must be \"ready\", \"settled\", \"timeout\" or \"gone\"");
	return error;
}

static int read_clock(struct json_reader *r, enum hot_clock *ret)
{
	char text[JSON_TEXT_MAX];
	int error = jr_string(r, text);

	if (error == 0 && !hot_clock_parse(text, strlen(text), ret))
		return jr_bad(r, "\"clock\" must be \"raw\" or \"corrected\"");
	return error;
}

static int hex_digit(char c)
{
	const char *digits = "0123456789abcdef", *found = c ? strchr(digits, c) : NULL;

	return found ? (int)(found - digits) : -1;
}

static int read_digest(struct json_reader *r, uint8_t ret[static IMAGE_IDENTITY_SIZE])
{
	char text[JSON_TEXT_MAX];
	int error = jr_string(r, text);

	if (error < 0)
		return error;
	bool good = strlen(text) == (size_t)2 * IMAGE_IDENTITY_SIZE;
	for (size_t i = 0; good && i < IMAGE_IDENTITY_SIZE; i++) {
		int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);
		good = high >= 0 && low >= 0;
		if (good)
			ret[i] = (uint8_t)(high << 4 | low);
	}
	return good ? 0 : jr_bad(r, "\"image_identity\" must be %d hexadecimal digits", 2 * IMAGE_IDENTITY_SIZE);
}

static int read_region(struct json_reader *r, struct hotlist_region_size *region)
{
	bool has_size = false, has_offset = false, has_page_size = false;
	char key[JSON_TEXT_MAX];

	int more = jr_open(r, '{', '}');
	while (more > 0) {
		int error = jr_key(r, key);
		if (error < 0)
			return error;
		if (!strcmp(key, "size"))
			error = jr_once(r, key, &has_size) ?: jr_number(r, key, &region->size);
		else if (!strcmp(key, "offset"))
			error = jr_once(r, key, &has_offset) ?: jr_number(r, key, &region->offset);
		else if (!strcmp(key, "page_size"))
			error = jr_once(r, key, &has_page_size) ?: jr_number(r, key, &region->page_size);
		else
			error = jr_skip(r);
		if (error < 0)
			return error;
		more = jr_next(r, '}');
	}
	return more;
}

static int read_regions(struct json_reader *r, struct hotlist_origin *origin)
{
	int more = jr_open(r, '[', ']');

	if (more > 0 && !origin->regions) {
		origin->regions = calloc(HOTLIST_REGIONS_MAX, sizeof *origin->regions);
		if (!origin->regions)
			return -ENOMEM;
	}
	while (more > 0) {
		if (origin->region_count == HOTLIST_REGIONS_MAX)
			return jr_bad(r, "more than %d regions", HOTLIST_REGIONS_MAX);
		int error = read_region(r, &origin->regions[origin->region_count++]);
		if (error < 0)
			return error;
		more = jr_next(r, ']');
	}
	return more;
}

enum origin_key {
	KEY_TIER,
	KEY_RUNS,
	KEY_EVENTS_LOST,
	KEY_WINDOW_NS,
	KEY_WINDOW_END,
	KEY_CLOCK,
	KEY_AGREEMENT_RAW,
	KEY_AGREEMENT_CORRECTED,
	KEY_PAGE_SIZE,
	KEY_IMAGE_SIZE,
	KEY_IMAGE_IDENTITY,
	KEY_REGIONS,
};

static const char *const keys[] = {
	[KEY_TIER] = "tier",
	[KEY_RUNS] = "runs",
	[KEY_EVENTS_LOST] = "events_lost",
	[KEY_WINDOW_NS] = "window_ns",
	[KEY_WINDOW_END] = "window_end",
	[KEY_CLOCK] = "clock",
	[KEY_AGREEMENT_RAW] = "agreement_raw",
	[KEY_AGREEMENT_CORRECTED] = "agreement_corrected",
	[KEY_PAGE_SIZE] = "page_size",
	[KEY_IMAGE_SIZE] = "image_size",
	[KEY_IMAGE_IDENTITY] = "image_identity",
	[KEY_REGIONS] = "regions",
};
#define KEYS (sizeof keys / sizeof *keys)

static int read_value(struct json_reader *r, size_t key, struct hotlist_origin *origin)
{
	if (jr_peek(r) == 'n')
		return jr_skip(r); /* null: not known */
	switch (key) {
	case KEY_TIER:
		return read_tier(r, origin->tier);
	case KEY_RUNS:
		return read_u32(r, keys[key], &origin->runs);
	case KEY_EVENTS_LOST:
		return jr_number(r, keys[key], &origin->events_lost);
	case KEY_WINDOW_NS:
		return jr_number(r, keys[key], &origin->window_ns);
	case KEY_WINDOW_END:
		return read_window_end(r, &origin->window_end);
	case KEY_CLOCK:
		return read_clock(r, &origin->clock);
	case KEY_AGREEMENT_RAW:
		return read_agreement(r, keys[key], &origin->agreement_raw);
	case KEY_AGREEMENT_CORRECTED:
		return read_agreement(r, keys[key], &origin->agreement_corrected);
	case KEY_PAGE_SIZE:
		return jr_number(r, keys[key], &origin->page_size);
	case KEY_IMAGE_SIZE:
		return jr_number(r, keys[key], &origin->template_size);
	case KEY_IMAGE_IDENTITY:
		return read_digest(r, origin->template_digest);
	case KEY_REGIONS:
		return read_regions(r, origin);
	default:
		return jr_skip(r);
	}
}

int json_origin_read(struct json_reader *r, struct hotlist *list)
{
	bool seen[KEYS] = { false };
	char name[JSON_TEXT_MAX];
	const char *field;

	list->origin = calloc(1, sizeof *list->origin);
	if (!list->origin)
		return -ENOMEM;
	int more = jr_open(r, '{', '}');
	while (more > 0) {
		int error = jr_key(r, name);
		if (error < 0)
			return error;
		size_t key = 0;
		while (key < KEYS && strcmp(keys[key], name))
			key++;
		if (key < KEYS)
			error = jr_once(r, name, &seen[key]);
		if (error == 0)
			error = read_value(r, key, list->origin);
		if (error < 0)
			return error;
		more = jr_next(r, '}');
	}
	if (more == 0 && hotlist_origin_check(list->origin, &field) < 0)
		return jr_bad(r, "the origin has a bad %s", field);
	return more;
}

/* ---- writing ---- */

/* As a decimal number, exactly. */
static void write_agreement(FILE *f, const char *key, uint32_t agreement)
{
	uint32_t half = HOT_AGREEMENT_MAX / 2;
	uint32_t size = agreement < half ? half - agreement : agreement - half;

	if (agreement)
		fprintf(f, ",\"%s\":%s%u.%06u", key, agreement < half ? "-" : "", size / half, size % half);
}

static void write_word(FILE *f, const char *key, const char *word)
{
	if (word)
		fprintf(f, ",\"%s\":\"%s\"", key, word);
}

static void write_image(FILE *f, const struct hotlist_origin *origin)
{
	if (origin->template_size)
		fprintf(f, ",\"image_size\":%" PRIu64, origin->template_size);
	if (!hotlist_origin_is_bound(origin))
		return;
	fputs(",\"image_identity\":\"", f);
	for (size_t i = 0; i < IMAGE_IDENTITY_SIZE; i++)
		fprintf(f, "%02x", origin->template_digest[i]);
	putc('"', f);
}

void json_origin_write(FILE *f, const struct hotlist_origin *origin)
{
	fprintf(f, "{\"tier\":\"%s\",\"runs\":%" PRIu32 ",\"events_lost\":%" PRIu64 ",\"window_ns\":%" PRIu64,
		origin->tier, origin->runs, origin->events_lost, origin->window_ns);
	write_word(f, "window_end", hot_window_end_word(origin->window_end));
	write_word(f, "clock", hot_clock_word(origin->clock));
	write_agreement(f, "agreement_raw", origin->agreement_raw);
	write_agreement(f, "agreement_corrected", origin->agreement_corrected);
	fprintf(f, ",\"page_size\":%" PRIu64, origin->page_size);
	write_image(f, origin);
	fputs(",\"regions\":[", f);
	for (size_t i = 0; i < origin->region_count; i++)
		fprintf(f, "%s{\"size\":%" PRIu64 ",\"offset\":%" PRIu64 ",\"page_size\":%" PRIu64 "}", i ? "," : "",
			origin->regions[i].size, origin->regions[i].offset, origin->regions[i].page_size);
	fputs("]}", f);
}
