/* The list itself: pages in order, and the way from bytes to a list and back whatever the format. */
#include "hotlist/hotlist.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "hotlist/format.h"

struct hotlist *hotlist_new(void)
{
	return calloc(1, sizeof(struct hotlist));
}

void hotlist_free(struct hotlist *list)
{
	if (!list)
		return;
	free(list->pages);
	free(list->touches);
	hotlist_origin_free(list->origin);
	free(list);
}

int hotlist_reserve(struct hotlist *list, size_t count)
{
	if (count <= list->capacity)
		return 0;

	struct hot_page *pages = reallocarray(list->pages, count, sizeof *pages);
	if (!pages)
		return -ENOMEM;
	list->pages = pages;
	if (list->touches) {
		struct hot_touch *touches = reallocarray(list->touches, count, sizeof *touches);
		if (!touches)
			return -ENOMEM;
		list->touches = touches;
	}
	list->capacity = count;
	return 0;
}

static int make_room(struct hotlist *list)
{
	uint64_t capacity;

	if (list->count < list->capacity)
		return 0;
	return checked_mul(list->capacity ?: 32, 2, &capacity) ? hotlist_reserve(list, capacity) : -ENOMEM;
}

int hotlist_reserve_touches(struct hotlist *list)
{
	if (list->touches)
		return 0;
	list->touches = calloc(list->capacity ?: 1, sizeof *list->touches);
	if (!list->touches)
		return -ENOMEM;
	for (size_t i = 0; i < list->count; i++)
		list->touches[i] = HOT_TOUCH_NOTHING;
	return 0;
}

int hotlist_add(struct hotlist *list, uint64_t region, uint64_t offset)
{
	if (make_room(list) < 0)
		return -ENOMEM;
	if (list->touches)
		list->touches[list->count] = HOT_TOUCH_NOTHING;
	list->pages[list->count++] = (struct hot_page){ .region = region, .offset = offset };
	return 0;
}

int hotlist_add_touch(struct hotlist *list, uint64_t region, uint64_t offset, const struct hot_touch *touch)
{
	if (make_room(list) < 0 || hotlist_reserve_touches(list) < 0)
		return -ENOMEM;
	list->touches[list->count] = *touch;
	list->pages[list->count++] = (struct hot_page){ .region = region, .offset = offset };
	return 0;
}

bool hot_touch_says_nothing(const struct hot_touch *touch)
{
	return !touch->raw_ns && !touch->corrected_ns && !touch->seen && !touch->spread && !touch->kind &&
	       !touch->flags && touch->vcpu == HOT_VCPU_UNKNOWN;
}

bool hotlist_has_touches(const struct hotlist *list)
{
	for (size_t i = 0; list->touches && i < list->count; i++)
		if (!hot_touch_says_nothing(&list->touches[i]))
			return true;
	return false;
}

struct hotlist *hotlist_copy_pages(const struct hotlist *list)
{
	_cleanup_hotlist_ struct hotlist *copy = hotlist_new();

	if (!copy || hotlist_reserve(copy, list->count) < 0)
		return NULL;
	if (list->count)
		memcpy(copy->pages, list->pages, list->count * sizeof *list->pages);
	copy->count = list->count;
	copy->format = list->format;
	return TAKE_PTR(copy);
}

struct hotlist *hotlist_copy(const struct hotlist *list)
{
	_cleanup_hotlist_ struct hotlist *copy = hotlist_copy_pages(list);

	if (!copy || hotlist_set_origin(copy, list->origin) < 0)
		return NULL;
	if (list->touches) {
		if (hotlist_reserve_touches(copy) < 0)
			return NULL;
		memcpy(copy->touches, list->touches, list->count * sizeof *list->touches);
	}
	return TAKE_PTR(copy);
}

int hotlist_check(const struct hotlist *list, const struct hotlist_region *regions, size_t region_count,
		  struct error *err)
{
	for (size_t i = 0; i < list->count; i++) {
		const struct hot_page *page = &list->pages[i];

		if (page->region >= region_count)
			return error_set(err, -EINVAL, "bad_region",
					 "entry %zu of the list is in region %" PRIu64
					 ", but regions are counted from 0 and there %s only %zu: the list belongs to another memory "
					 "layout",
					 i, page->region, region_count == 1 ? "is" : "are", region_count);
		if (page->offset >= regions[page->region].size)
			return error_set(err, -EINVAL, "bad_offset",
					 "entry %zu of the list is at offset %" PRIu64 " of region %" PRIu64
					 ", which ends at %" PRIu64 ": the list belongs to another image",
					 i, page->offset, page->region, regions[page->region].size);
		if (!is_aligned(page->offset, HOTLIST_PAGE_SIZE))
			return error_set(err, -EINVAL, "bad_offset",
					 "entry %zu of the list is at offset %" PRIu64 " of region %" PRIu64
					 ", which is not a multiple of 4096",
					 i, page->offset, page->region);
	}
	return 0;
}

static const char *const format_names[] = {
	[HOTLIST_HPL1] = "hpl1",
	[HOTLIST_JSON] = "json",
	[HOTLIST_CSV] = "csv",
	[HOTLIST_HPL2] = "hpl2",
};

const char *hotlist_format_name(enum hotlist_format format)
{
	return format_names[format];
}

int hotlist_format_parse(const char *name, enum hotlist_format *ret, struct error *err)
{
	for (size_t i = 0; i < sizeof format_names / sizeof *format_names; i++)
		if (!strcmp(name, format_names[i])) {
			*ret = (enum hotlist_format)i;
			return 0;
		}
	return error_set(err, -EINVAL, "bad_format", "no list format \"%.40s\": use hpl1, hpl2, json or csv", name);
}

/* Text formats may start with a byte order mark and blanks, as editors leave them. */
static size_t text_start(const char *text, size_t size)
{
	size_t i = 0;

	if (size >= 3 && !memcmp(text, "\xef\xbb\xbf", 3))
		i = 3;
	while (i < size && strchr(" \t\r\n", text[i]) && text[i])
		i++;
	return i;
}

/* What is none of the formats counts as HPL1, whose decoder says what is wrong with it. */
static enum hotlist_format detect_format(const char *text, size_t size)
{
	size_t start = text_start(text, size);

	if (size >= 4 && !memcmp(text, "HPL1", 4))
		return HOTLIST_HPL1;
	if (hpl2_detect(text, size))
		return HOTLIST_HPL2;
	if (start < size && (text[start] == '{' || text[start] == '['))
		return HOTLIST_JSON;
	if (csv_list_detect(text, size))
		return HOTLIST_CSV;
	return HOTLIST_HPL1;
}

int hotlist_decode(const void *data, size_t size, struct hotlist **ret, struct error *err)
{
	_cleanup_hotlist_ struct hotlist *list = hotlist_new();
	int r = -EINVAL;

	if (!list)
		return error_set(err, -ENOMEM, "no_memory", "out of memory");

	list->format = detect_format(data, size);
	switch (list->format) {
	case HOTLIST_HPL1:
		r = hpl1_decode(data, size, list, err);
		break;
	case HOTLIST_JSON:
		r = json_list_decode(data, size, list, err);
		break;
	case HOTLIST_HPL2:
		r = hpl2_decode(data, size, list, err);
		break;
	case HOTLIST_CSV:
		r = csv_list_decode(data, size, list, err);
		break;
	}
	if (r == -ENOMEM)
		return error_set(err, r, "no_memory", "out of memory after %zu pages of the list", list->count);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(list);
	return 0;
}

static int encode_hpl1(const struct hotlist *list, void **ret_data, size_t *ret_size)
{
	if (hotlist_is_sorted(list))
		return hpl1_encode(list, ret_data, ret_size);

	_cleanup_hotlist_ struct hotlist *sorted = hotlist_copy_pages(list);
	if (!sorted || hotlist_sort(sorted) < 0)
		return -ENOMEM;
	return hpl1_encode(sorted, ret_data, ret_size);
}

/* Of a page that is there twice the first place counts. */
static int encode_hpl2(const struct hotlist *list, void **ret_data, size_t *ret_size, struct error *err)
{
	size_t distinct;

	if (hotlist_count_distinct(list, &distinct) < 0)
		return -ENOMEM;
	if (distinct == list->count)
		return hpl2_encode(list, ret_data, ret_size, err);

	_cleanup_hotlist_ struct hotlist *deduped = hotlist_copy(list);
	if (!deduped || hotlist_dedupe(deduped) < 0)
		return -ENOMEM;
	return hpl2_encode(deduped, ret_data, ret_size, err);
}

int hotlist_encode(const struct hotlist *list, enum hotlist_format format, void **ret_data, size_t *ret_size,
		   struct error *err)
{
	int r = -EINVAL;

	switch (format) {
	case HOTLIST_HPL1:
		r = encode_hpl1(list, ret_data, ret_size);
		break;
	case HOTLIST_JSON:
		r = json_list_encode(list, ret_data, ret_size);
		break;
	case HOTLIST_HPL2:
		r = encode_hpl2(list, ret_data, ret_size, err);
		break;
	case HOTLIST_CSV:
		r = csv_list_encode(list, ret_data, ret_size);
		break;
	}
	if (r == -ENOMEM)
		return error_set(err, r, "no_memory", "out of memory: the list has %zu pages", list->count);
	return r;
}

int hotlist_save(const struct hotlist *list, enum hotlist_format format, const char *path, struct error *err)
{
	_cleanup_free_ void *data = NULL;
	size_t size;

	int r = hotlist_encode(list, format, &data, &size, err);
	if (r < 0)
		return r;
	return hotlist_write_file(path, data, size, err);
}
