#include "serve/handshake.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

/* A handshake is two or three levels deep; jansson would accept 2048. */
#define DEPTH_MAX 8

static bool is_space(char c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static void scan_in_string(struct handshake_scan *scan, char c)
{
	if (scan->escaped)
		scan->escaped = false;
	else if (c == '\\')
		scan->escaped = true;
	else if (c == '"')
		scan->in_string = false;
}

enum handshake_progress handshake_scan(struct handshake_scan *scan, const char *data, size_t size)
{
	for (size_t i = 0; i < size; i++) {
		char c = data[i];

		if (scan->in_string) {
			scan_in_string(scan, c);
		} else if (is_space(c)) {
			continue;
		} else if (scan->started && scan->depth == 0) {
			return HANDSHAKE_MALFORMED; /* something after the end */
		} else if (c == '[' || c == '{') {
			scan->started = true;
			if (++scan->depth > DEPTH_MAX)
				return HANDSHAKE_MALFORMED;
		} else if (!scan->started) {
			return HANDSHAKE_MALFORMED;
		} else if (c == ']' || c == '}') {
			scan->depth--;
		} else if (c == '"') {
			scan->in_string = true;
		}
	}
	return scan->started && scan->depth == 0 ? HANDSHAKE_COMPLETE : HANDSHAKE_INCOMPLETE;
}

static int get_number(const json_t *object, size_t index, const char *key, bool required, uint64_t *ret,
		      struct error *err)
{
	const json_t *value = json_object_get(object, key);

	if (!value)
		return required ? error_set(err, -EBADMSG, "bad_handshake", "region %zu lacks '%s'", index, key) : 0;
	if (!json_is_integer(value) || json_integer_value(value) < 0)
		return error_set(err, -EBADMSG, "bad_handshake", "region %zu: '%s' is not an unsigned integer", index,
				 key);
	*ret = (uint64_t)json_integer_value(value);
	return 1;
}

/*
 * The page size may be missing: then it is the host's. Older Firecrackers send page_size_kib alone, which holds bytes in spite of its
 * name; a value there that is no page size in bytes is not taken for one.
 */
static int parse_region(const json_t *object, size_t index, uint64_t host_page_size, struct region *ret,
			struct error *err)
{
	uint64_t kib = 0;

	if (!json_is_object(object))
		return error_set(err, -EBADMSG, "bad_handshake", "region %zu is not an object", index);
	*ret = (struct region){ .page_size = host_page_size };
	int r = get_number(object, index, "base_host_virt_addr", true, &ret->address, err);
	if (r >= 0)
		r = get_number(object, index, "size", true, &ret->size, err);
	if (r >= 0)
		r = get_number(object, index, "offset", true, &ret->offset, err);
	if (r >= 0)
		r = get_number(object, index, "page_size_kib", false, &kib, err);
	if (r > 0 && kib >= host_page_size)
		ret->page_size = kib;
	if (r >= 0)
		r = get_number(object, index, "page_size", false, &ret->page_size, err);
	return r < 0 ? r : 0;
}

static int parse_regions(const json_t *array, uint64_t host_page_size, struct handshake *ret, struct error *err)
{
	size_t count = json_array_size(array);

	if (count == 0)
		return error_set(err, -EBADMSG, "bad_handshake", "the handshake names no region");
	if (count > REGIONS_MAX)
		return error_set(err, -EBADMSG, "bad_handshake",
				 "the handshake names %zu regions; at most %d are served", count, REGIONS_MAX);

	_cleanup_free_ struct region *regions = calloc(count, sizeof *regions);
	if (!regions)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	for (size_t i = 0; i < count; i++) {
		int r = parse_region(json_array_get(array, i), i, host_page_size, &regions[i], err);
		if (r < 0)
			return r;
	}
	ret->answers = json_is_true(json_object_get(json_array_get(array, 0), "answers"));
	ret->regions = TAKE_PTR(regions);
	ret->region_count = count;
	return 0;
}

/* At most as many values are in TEXT as there are of these characters, but for the outermost one: each follows one. */
static size_t count_openings(const char *text, size_t size)
{
	size_t count = 0;

	for (size_t i = 0; i < size; i++)
		count += text[i] == '[' || text[i] == '{' || text[i] == ',';
	return count;
}

int handshake_parse(const char *text, size_t size, uint64_t host_page_size, struct handshake *ret, struct error *err)
{
	json_error_t jerr;

	if (count_openings(text, size) > HANDSHAKE_MAX_VALUES)
		return error_set(err, -EBADMSG, "bad_handshake",
				 "the handshake holds more than %d values; %d regions, which is the most that are served, need "
				 "fewer",
				 HANDSHAKE_MAX_VALUES, REGIONS_MAX);
	json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &jerr);
	if (!root)
		return error_set(err, -EBADMSG, "bad_handshake", "the handshake is not valid JSON, at byte %d: %s",
				 jerr.position, jerr.text);

	const json_t *array = root;
	struct handshake handshake = { .kind = "firecracker" };
	int r;

	if (json_is_object(root)) {
		handshake.kind = "hypeman";
		array = json_object_get(root, "mappings");
	}
	if (!json_is_array(array))
		r = error_set(err, -EBADMSG, "bad_handshake",
			      "the handshake is neither an array of regions nor an object with an array 'mappings'");
	else
		r = parse_regions(array, host_page_size, &handshake, err);
	json_decref(root);
	if (r < 0)
		return r;
	*ret = handshake;
	return 0;
}
