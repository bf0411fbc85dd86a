/* The JSON form of a list: all that is known of it. */
#include "hotlist/json.h"

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hotlist/format.h"
#include "hotlist/json_origin.h"
#include "hotlist/json_reader.h"
#include "hotlist/words.h"

#define FORMAT_NAME    "faultline-hotlist"
#define FORMAT_VERSION 1

/* What a page may have, in this order in the bits of its "seen". */
enum page_key { KEY_REGION, KEY_OFFSET, KEY_RAW, KEY_CORRECTED, KEY_SEEN, KEY_SPREAD, KEY_VCPU, KEY_KIND, KEY_PRESENT };

static const char *const page_keys[] = {
	[KEY_REGION] = "region",      [KEY_OFFSET] = "offset",
	[KEY_RAW] = "first_touch_ns", [KEY_CORRECTED] = "corrected_ns",
	[KEY_SEEN] = "seen",	      [KEY_SPREAD] = "spread",
	[KEY_VCPU] = "vcpu",	      [KEY_KIND] = "kind",
	[KEY_PRESENT] = "present",
};
#define PAGE_KEYS (sizeof page_keys / sizeof *page_keys)

static size_t find_key(const char *key)
{
	size_t i = 0;

	while (i < PAGE_KEYS && strcmp(page_keys[i], key))
		i++;
	return i;
}

static int read_u32(struct json_reader *r, const char *name, uint64_t limit, uint64_t *ret)
{
	uint64_t n;
	int error = jr_number(r, name, &n);

	if (error == 0 && n > limit)
		return jr_bad(r, "\"%s\" must be at most %" PRIu64, name, limit);
	if (error == 0)
		*ret = n;
	return error;
}

static int read_kind(struct json_reader *r, uint8_t *ret)
{
	char text[JSON_TEXT_MAX];
	int error = jr_string(r, text);

	if (error == 0 && !hot_kind_parse(text, strlen(text), ret))
		return jr_bad(r, "\"kind\" must be \"read\", \"write\", \"fetch\" or \"walk\"");
	return error;
}

static int read_touch_value(struct json_reader *r, size_t key, struct hot_touch *touch)
{
	uint64_t n = 0;
	bool present = false;
	int error;

	if (jr_peek(r) == 'n')
		return jr_skip(r); /* null: not known */
	switch (key) {
	case KEY_RAW:
		return jr_number(r, page_keys[key], &touch->raw_ns);
	case KEY_CORRECTED:
		return jr_number(r, page_keys[key], &touch->corrected_ns);
	case KEY_SEEN:
		error = read_u32(r, page_keys[key], UINT32_MAX, &n);
		touch->seen = (uint32_t)n;
		return error;
	case KEY_SPREAD:
		error = read_u32(r, page_keys[key], UINT32_MAX, &n);
		touch->spread = (uint32_t)n;
		return error;
	case KEY_VCPU:
		error = read_u32(r, page_keys[key], HOT_VCPU_UNKNOWN - 1, &n);
		touch->vcpu = (uint16_t)n;
		return error;
	case KEY_KIND:
		return read_kind(r, &touch->kind);
	default:
		error = jr_bool(r, page_keys[key], &present);
		touch->flags = present ? HOT_WAS_PRESENT : 0;
		return error;
	}
}

static int read_page(struct json_reader *r, struct hotlist *list)
{
	struct hot_touch touch = HOT_TOUCH_NOTHING;
	struct hot_page page = { .region = 0 };
	bool seen[PAGE_KEYS] = { false };
	char name[JSON_TEXT_MAX];

	int more = jr_open(r, '{', '}');
	while (more > 0) {
		int error = jr_key(r, name);
		if (error < 0)
			return error;
		size_t key = find_key(name);
		if (key < PAGE_KEYS)
			error = jr_once(r, name, &seen[key]);
		if (error == 0)
			error = key == KEY_REGION   ? jr_number(r, name, &page.region)
				: key == KEY_OFFSET ? jr_number(r, name, &page.offset)
				: key < PAGE_KEYS   ? read_touch_value(r, key, &touch)
						    : jr_skip(r);
		if (error < 0)
			return error;
		more = jr_next(r, '}');
	}
	if (more < 0)
		return more;
	if (!seen[KEY_REGION] || !seen[KEY_OFFSET])
		return jr_bad(r, "the page has no \"%s\"", seen[KEY_REGION] ? "offset" : "region");
	return hot_touch_says_nothing(&touch) ? hotlist_add(list, page.region, page.offset)
					      : hotlist_add_touch(list, page.region, page.offset, &touch);
}

static int read_pages(struct json_reader *r, struct hotlist *list)
{
	int more = jr_open(r, '[', ']');

	while (more > 0) {
		int error = read_page(r, list);
		if (error < 0)
			return error;
		more = jr_next(r, ']');
	}
	return more;
}

static int read_format(struct json_reader *r)
{
	char text[JSON_TEXT_MAX];
	int error = jr_string(r, text);

	if (error < 0)
		return error;
	if (strcmp(text, FORMAT_NAME))
		return jr_bad(r, "\"format\" must be \"" FORMAT_NAME "\"");
	return 0;
}

static int read_version(struct json_reader *r)
{
	uint64_t version;
	int error = jr_number(r, "version", &version);

	if (error < 0)
		return error;
	if (version != FORMAT_VERSION)
		return jr_bad(r, "version %" PRIu64 " of the format; this faultline reads version %d", version,
			      FORMAT_VERSION);
	return 0;
}

int json_list_decode(const char *text, size_t size, struct hotlist *list, struct error *err)
{
	struct json_reader r = { .at = text, .end = text + size, .line_start = text, .line = 1, .err = err };
	bool has_format = false, has_version = false, has_pages = false, has_origin = false;
	char key[JSON_TEXT_MAX];

	if (size >= 3 && !memcmp(text, "\xef\xbb\xbf", 3))
		r.at = r.line_start = text + 3;

	int more = jr_open(&r, '{', '}');
	while (more > 0) {
		int error = jr_key(&r, key);
		if (error < 0)
			return error;
		if (!strcmp(key, "format"))
			error = jr_once(&r, key, &has_format) ?: read_format(&r);
		else if (!strcmp(key, "version"))
			error = jr_once(&r, key, &has_version) ?: read_version(&r);
		else if (!strcmp(key, "origin"))
			error = jr_once(&r, key, &has_origin) ?: json_origin_read(&r, list);
		else if (!strcmp(key, "pages"))
			error = jr_once(&r, key, &has_pages) ?: read_pages(&r, list);
		else
			error = jr_skip(&r);
		if (error < 0)
			return error;
		more = jr_next(&r, '}');
	}
	if (more < 0)
		return more;
	if (!has_format || !has_version || !has_pages)
		return jr_bad(&r, "the object has no \"%s\"",
			      !has_format    ? "format"
			      : !has_version ? "version"
					     : "pages");
	if (jr_peek(&r) || r.at != r.end)
		return jr_bad(&r, "something follows the end of the list");
	return 0;
}

static void write_touch(FILE *f, const struct hot_touch *touch)
{
	fprintf(f,
		",\"first_touch_ns\":%" PRIu64 ",\"corrected_ns\":%" PRIu64 ",\"seen\":%" PRIu32 ",\"spread\":%" PRIu32,
		touch->raw_ns, touch->corrected_ns, touch->seen, touch->spread);
	if (touch->vcpu != HOT_VCPU_UNKNOWN)
		fprintf(f, ",\"vcpu\":%u", touch->vcpu);
	if (touch->kind)
		fprintf(f, ",\"kind\":\"%s\"", hot_kind_word(touch->kind));
	fprintf(f, ",\"present\":%s", touch->flags & HOT_WAS_PRESENT ? "true" : "false");
}

void json_page_write(FILE *f, const struct hotlist *list, size_t i)
{
	fprintf(f, "{\"region\":%" PRIu64 ",\"offset\":%" PRIu64, list->pages[i].region, list->pages[i].offset);
	if (list->touches && !hot_touch_says_nothing(&list->touches[i]))
		write_touch(f, &list->touches[i]);
	putc('}', f);
}

static void write_list(FILE *f, const struct hotlist *list)
{
	fprintf(f, "{\"format\":\"%s\",\"version\":%d,", FORMAT_NAME, FORMAT_VERSION);
	if (list->origin) {
		fputs("\"origin\":", f);
		json_origin_write(f, list->origin);
		fputs(",\n", f);
	}
	fputs("\"pages\":[", f);
	/* One page a line, so that diff, grep and head work on it. */
	for (size_t i = 0; i < list->count; i++) {
		fputs(i ? ",\n" : "\n", f);
		json_page_write(f, list, i);
	}
	fputs(list->count ? "\n]}\n" : "]}\n", f);
}

int json_list_encode(const struct hotlist *list, void **ret_data, size_t *ret_size)
{
	_cleanup_free_ char *text = NULL;
	size_t size;

	FILE *f = open_memstream(&text, &size);
	if (!f)
		return -ENOMEM;
	write_list(f, list);
	bool failed = ferror(f);
	if (fclose(f) != 0 || failed)
		return -ENOMEM;
	*ret_data = TAKE_PTR(text);
	*ret_size = size;
	return 0;
}
