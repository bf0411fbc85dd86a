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
	list->capacity = count;
	return 0;
}

int hotlist_add(struct hotlist *list, uint64_t region, uint64_t offset)
{
	if (list->count == list->capacity) {
		uint64_t capacity;

		if (!checked_mul(list->capacity ?: 32, 2, &capacity) || hotlist_reserve(list, capacity) < 0)
			return -ENOMEM;
	}
	list->pages[list->count++] = (struct hot_page){ .region = region, .offset = offset };
	return 0;
}

struct hotlist *hotlist_copy(const struct hotlist *list)
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

static int compare_pages(const void *a, const void *b)
{
	const struct hot_page *x = a, *y = b;

	if (x->region != y->region)
		return x->region < y->region ? -1 : 1;
	if (x->offset != y->offset)
		return x->offset < y->offset ? -1 : 1;
	return 0;
}

bool hotlist_is_sorted(const struct hotlist *list)
{
	for (size_t i = 1; i < list->count; i++)
		if (compare_pages(&list->pages[i - 1], &list->pages[i]) >= 0)
			return false;
	return true;
}

void hotlist_sort(struct hotlist *list)
{
	if (hotlist_is_sorted(list))
		return;

	qsort(list->pages, list->count, sizeof *list->pages, compare_pages);
	size_t kept = 1;
	for (size_t i = 1; i < list->count; i++)
		if (compare_pages(&list->pages[kept - 1], &list->pages[i]) != 0)
			list->pages[kept++] = list->pages[i];
	list->count = kept;
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
	return error_set(err, -EINVAL, "bad_format", "no list format \"%.40s\": use hpl1, json or csv", name);
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

	_cleanup_hotlist_ struct hotlist *sorted = hotlist_copy(list);
	if (!sorted)
		return -ENOMEM;
	hotlist_sort(sorted);
	return hpl1_encode(sorted, ret_data, ret_size);
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
		break;
	case HOTLIST_CSV:
		r = csv_list_encode(list, ret_data, ret_size);
		break;
	}
	if (r < 0)
		return error_set(err, r, "no_memory", "out of memory: the list has %zu pages", list->count);
	return 0;
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
