/* hotlist.h over src/hotlist: opaque, with the public API's errors. */
#include "faultline/hotlist.h"

#include <errno.h>
#include <inttypes.h>
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
	else if (r == -EBADMSG || r == -EFBIG)
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
	if (list && inner_const(list)->format == HOTLIST_JSON)
		return FAULTLINE_HOTLIST_JSON;
	if (list && inner_const(list)->format == HOTLIST_CSV)
		return FAULTLINE_HOTLIST_CSV;
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

int faultline_hotlist_add(struct faultline_hotlist *list, uint64_t mapping, uint64_t offset,
			  struct faultline_error *error)
{
	if (!list)
		return missing(error, "The list");
	if (!is_aligned(offset, HOTLIST_PAGE_SIZE))
		return result_set(error, FAULTLINE_BAD_ARGUMENT, 0, "",
				  "Offset 0x%" PRIx64 " of mapping %" PRIu64 " is not a multiple of 4096", offset,
				  mapping);
	if (hotlist_add(inner(list), mapping, offset) < 0)
		return result_set(error, FAULTLINE_NO_RESOURCES, ENOMEM, OUT_OF_MEMORY,
				  "There is no memory for page %zu of the list", inner(list)->count);
	return FAULTLINE_OK;
}

void faultline_hotlist_sort(struct faultline_hotlist *list)
{
	if (list)
		hotlist_sort(inner(list));
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
