/* hotlist.h over src/hotlist: opaque, with the public API's errors. */
#include "faultline/hotlist.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "client/client_internal.h"
#include "client/result.h"
#include "hotlist/hotlist.h"

/* The public list is the internal one under another name. */
static struct hotlist *inner(struct faultline_hotlist *list)
{
	return (struct hotlist *)list;
}

static const struct hotlist *inner_const(const struct faultline_hotlist *list)
{
	return (const struct hotlist *)list;
}

static int missing(struct faultline_error *error, const char *what)
{
	return result_set(error, FAULTLINE_BAD_ARGUMENT, 0, "", "%s is NULL", what);
}

/* R is what a function of hotlist.h returned, and ERR what it said. */
static int failed(int r, const struct error *err, struct faultline_error *error)
{
	int result = FAULTLINE_INPUT_OUTPUT;

	if (r == -ENOMEM)
		result = FAULTLINE_NO_RESOURCES;
	else if (r == -EACCES || r == -EPERM)
		result = FAULTLINE_NO_PERMISSION;
	else if (r == -EBADMSG || r == -EFBIG || r == -E2BIG || !strcmp(err->code, "bad_offset"))
		result = FAULTLINE_BAD_LIST;
	result_set(error, result, 0, "", "%s", err->message);
	if (error)
		error->system_error = r == -EBADMSG ? 0 : -r;
	return result;
}

int faultline_hotlist_new(struct faultline_hotlist **ret_list, struct faultline_error *error)
{
	if (!ret_list)
		return missing(error, "ret_list");
	struct hotlist *list = hotlist_new();
	if (!list)
		return result_set(error, FAULTLINE_NO_RESOURCES, ENOMEM, OUT_OF_MEMORY, "There is no memory for a list");
	*ret_list = (struct faultline_hotlist *)list;
	return FAULTLINE_OK;
}

void faultline_hotlist_free(struct faultline_hotlist *list)
{
	hotlist_free(inner(list));
}

int faultline_hotlist_load(const char *path, struct faultline_hotlist **ret_list, struct faultline_error *error)
{
	struct hotlist *list;
	struct error err;

	if (!path || !ret_list)
		return missing(error, path ? "ret_list" : "The list's path");
	int r = hotlist_load(path, &list, &err);
	if (r < 0)
		return failed(r, &err, error);
	*ret_list = (struct faultline_hotlist *)list;
	return FAULTLINE_OK;
}

int faultline_hotlist_decode(const void *data, size_t size, struct faultline_hotlist **ret_list,
			     struct faultline_error *error)
{
	struct hotlist *list;
	struct error err;

	if ((!data && size) || !ret_list)
		return missing(error, ret_list ? "The data" : "ret_list");
	int r = hotlist_decode(data ? data : "", size, &list, &err);
	if (r < 0)
		return failed(r, &err, error);
	*ret_list = (struct faultline_hotlist *)list;
	return FAULTLINE_OK;
}

/* An enum hotlist_format, or a result. */
static int take_format(int format, struct faultline_error *error)
{
	switch (format) {
	case FAULTLINE_HOTLIST_HPL1:
		return HOTLIST_HPL1;
	case FAULTLINE_HOTLIST_JSON:
		return HOTLIST_JSON;
	case FAULTLINE_HOTLIST_CSV:
		return HOTLIST_CSV;
	case FAULTLINE_HOTLIST_HPL2:
		return HOTLIST_HPL2;
	default:
		return result_set(error, FAULTLINE_BAD_ARGUMENT, 0, "Use one of enum faultline_hotlist_format",
				  "There is no list format %d", format);
	}
}

int faultline_hotlist_save(const struct faultline_hotlist *list, int format, const char *path,
			   struct faultline_error *error)
{
	struct error err;

	if (!list || !path)
		return missing(error, list ? "The list's path" : "The list");
	int as = take_format(format, error);
	if (as < 0)
		return as;
	int r = hotlist_save(inner_const(list), (enum hotlist_format)as, path, &err);
	return r < 0 ? failed(r, &err, error) : FAULTLINE_OK;
}

int faultline_hotlist_encode(const struct faultline_hotlist *list, int format, void **ret_data, size_t *ret_size,
			     struct faultline_error *error)
{
	struct error err;

	if (!list || !ret_data || !ret_size)
		return missing(error, list ? "ret_data or ret_size" : "The list");
	int as = take_format(format, error);
	if (as < 0)
		return as;
	int r = hotlist_encode(inner_const(list), (enum hotlist_format)as, ret_data, ret_size, &err);
	return r < 0 ? failed(r, &err, error) : FAULTLINE_OK;
}

size_t faultline_hotlist_count(const struct faultline_hotlist *list)
{
	return list ? inner_const(list)->count : 0;
}

int faultline_hotlist_format(const struct faultline_hotlist *list)
{
	switch (list ? inner_const(list)->format : HOTLIST_HPL1) {
	case HOTLIST_JSON:
		return FAULTLINE_HOTLIST_JSON;
	case HOTLIST_CSV:
		return FAULTLINE_HOTLIST_CSV;
	case HOTLIST_HPL2:
		return FAULTLINE_HOTLIST_HPL2;
	case HOTLIST_HPL1:
		break;
	}
	return FAULTLINE_HOTLIST_HPL1;
}

int faultline_hotlist_get(const struct faultline_hotlist *list, size_t index, uint64_t *ret_mapping,
			  uint64_t *ret_offset)
{
	if (!list || !ret_mapping || !ret_offset || index >= inner_const(list)->count)
		return FAULTLINE_BAD_ARGUMENT;
	*ret_mapping = inner_const(list)->pages[index].region;
	*ret_offset = inner_const(list)->pages[index].offset;
	return FAULTLINE_OK;
}

/* Members of the struct's first version. A smaller size is a mistake; a larger one is a later version's. */
#define TOUCH_SIZE_MIN sizeof(struct faultline_hotlist_touch)

int faultline_hotlist_get_touch(const struct faultline_hotlist *list, size_t index,
				struct faultline_hotlist_touch *ret_touch)
{
	if (!list || !ret_touch || ret_touch->size < TOUCH_SIZE_MIN || index >= inner_const(list)->count)
		return FAULTLINE_BAD_ARGUMENT;
	const struct hotlist *l = inner_const(list);
	const struct hot_touch touch = l->touches ? l->touches[index] : HOT_TOUCH_NOTHING;

	ret_touch->raw_ns = touch.raw_ns;
	ret_touch->corrected_ns = touch.corrected_ns;
	ret_touch->seen = touch.seen;
	ret_touch->spread = touch.spread;
	ret_touch->vcpu = touch.vcpu == HOT_VCPU_UNKNOWN ? FAULTLINE_HOTLIST_NO_VCPU : touch.vcpu;
	ret_touch->kind = touch.kind;
	ret_touch->present = !!(touch.flags & HOT_WAS_PRESENT);
	ret_touch->reserved = 0;
	return FAULTLINE_OK;
}

static int check_place(uint64_t mapping, uint64_t offset, struct faultline_error *error)
{
	if (is_aligned(offset, HOTLIST_PAGE_SIZE))
		return FAULTLINE_OK;
	return result_set(error, FAULTLINE_BAD_ARGUMENT, 0, "",
			  "Offset 0x%" PRIx64 " of mapping %" PRIu64 " is not a multiple of 4096", offset, mapping);
}

static int no_memory(const struct faultline_hotlist *list, struct faultline_error *error)
{
	return result_set(error, FAULTLINE_NO_RESOURCES, ENOMEM, OUT_OF_MEMORY,
			  "There is no memory for page %zu of the list", inner_const(list)->count);
}

int faultline_hotlist_add(struct faultline_hotlist *list, uint64_t mapping, uint64_t offset,
			  struct faultline_error *error)
{
	if (!list)
		return missing(error, "The list");
	int result = check_place(mapping, offset, error);
	if (result == FAULTLINE_OK && hotlist_add(inner(list), mapping, offset) < 0)
		result = no_memory(list, error);
	return result;
}

int faultline_hotlist_add_touch(struct faultline_hotlist *list, uint64_t mapping, uint64_t offset,
				const struct faultline_hotlist_touch *touch, struct faultline_error *error)
{
	if (!list || !touch)
		return missing(error, list ? "The touch" : "The list");
	if (touch->size < TOUCH_SIZE_MIN || touch->kind < 0 || touch->kind > FAULTLINE_HOTLIST_WALK ||
	    (touch->vcpu >= HOT_VCPU_UNKNOWN && touch->vcpu != FAULTLINE_HOTLIST_NO_VCPU))
		return result_set(error, FAULTLINE_BAD_ARGUMENT, 0,
				  "Set size to sizeof(struct faultline_hotlist_touch), and the kind and vCPU to what they can be",
				  "The touch of size %zu, kind %d and vCPU %" PRIu32 " cannot be", touch->size,
				  touch->kind, touch->vcpu);
	const struct hot_touch known = {
		.raw_ns = touch->raw_ns,
		.corrected_ns = touch->corrected_ns,
		.seen = touch->seen,
		.spread = touch->spread,
		.vcpu = touch->vcpu == FAULTLINE_HOTLIST_NO_VCPU ? HOT_VCPU_UNKNOWN : (uint16_t)touch->vcpu,
		.kind = (uint8_t)touch->kind,
		.flags = touch->present ? HOT_WAS_PRESENT : 0,
	};
	int result = check_place(mapping, offset, error);
	if (result == FAULTLINE_OK && hotlist_add_touch(inner(list), mapping, offset, &known) < 0)
		result = no_memory(list, error);
	return result;
}

void faultline_hotlist_sort(struct faultline_hotlist *list)
{
	if (!list || hotlist_sort(inner(list)) == 0)
		return;
	free(TAKE_PTR(inner(list)->touches));
	(void)hotlist_sort(inner(list));
}

int faultline_hotlist_check(const struct faultline_hotlist *list, const struct faultline_client *client,
			    struct faultline_error *error)
{
	struct error err;

	if (!list || !client)
		return missing(error, list ? "The client" : "The list");
	size_t count = client_region_count(client);
	_cleanup_free_ struct hotlist_region *regions = calloc(count ? count : 1, sizeof *regions);
	if (!regions)
		return result_set(error, FAULTLINE_NO_RESOURCES, ENOMEM, OUT_OF_MEMORY,
				  "There is no memory for checking the list");
	for (size_t i = 0; i < count; i++) {
		struct handover_region region = client_region(client, i);
		regions[i] = (struct hotlist_region){ .size = region.size, .page_size = region.page_size };
	}
	if (hotlist_check(inner_const(list), regions, count, &err) < 0)
		return result_set(error, FAULTLINE_BAD_LIST, 0, "", "%s", err.message);
	return FAULTLINE_OK;
}
