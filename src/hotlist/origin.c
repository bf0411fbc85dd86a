/* Where a list comes from: kept with it, held against its rules, and against what the list is to be used on. */
#include "hotlist/hotlist.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "hotlist/format.h"

void hotlist_origin_free(struct hotlist_origin *origin)
{
	if (!origin)
		return;
	free(origin->regions);
	free(origin);
}

static struct hotlist_origin *copy_origin(const struct hotlist_origin *origin)
{
	struct hotlist_origin *copy = malloc(sizeof *copy);

	if (!copy)
		return NULL;
	*copy = *origin;
	copy->regions = NULL;
	if (!origin->region_count)
		return copy;
	copy->regions = reallocarray(NULL, origin->region_count, sizeof *copy->regions);
	if (!copy->regions) {
		free(copy);
		return NULL;
	}
	memcpy(copy->regions, origin->regions, origin->region_count * sizeof *copy->regions);
	return copy;
}

int hotlist_set_origin(struct hotlist *list, const struct hotlist_origin *origin)
{
	struct hotlist_origin *copy = origin ? copy_origin(origin) : NULL;

	if (origin && !copy)
		return -ENOMEM;
	hotlist_origin_free(list->origin);
	list->origin = copy;
	return 0;
}

bool hotlist_origin_is_bound(const struct hotlist_origin *origin)
{
	static const uint8_t none[IMAGE_IDENTITY_SIZE];

	return origin && memcmp(origin->template_digest, none, sizeof none);
}

/* The tier stands in JSON and in messages as it is. */
static bool good_tier(const char tier[static HOTLIST_TIER_SIZE])
{
	const char *end = memchr(tier, '\0', HOTLIST_TIER_SIZE);

	return end && strspn(tier, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+-") ==
			      (size_t)(end - tier);
}

static bool good_page_size(uint64_t size)
{
	return !size || (is_power_of_two(size) && size >= HOTLIST_PAGE_SIZE);
}

int hotlist_origin_check(const struct hotlist_origin *origin, const char **ret_field)
{
	const char *field = NULL;
	uint64_t end;

	if (!good_page_size(origin->page_size))
		field = "page size";
	else if (origin->window_end > HOT_WINDOW_GONE)
		field = "end of the window";
	else if (origin->clock > HOT_CLOCK_CORRECTED)
		field = "clock";
	else if (origin->agreement_raw > HOT_AGREEMENT_MAX)
		field = "agreement of the raw times";
	else if (origin->agreement_corrected > HOT_AGREEMENT_MAX)
		field = "agreement of the corrected times";
	else if (!good_tier(origin->tier))
		field = "tier";
	else if (origin->region_count > HOTLIST_REGIONS_MAX)
		field = "number of regions";
	for (size_t i = 0; !field && i < origin->region_count; i++) {
		const struct hotlist_region_size *region = &origin->regions[i];

		if (!good_page_size(region->page_size))
			field = "page size of a region";
		else if (!checked_add(region->offset, region->size, &end))
			field = "size of a region";
	}
	if (!field)
		return 0;
	*ret_field = field;
	return -EINVAL;
}

static void print_digest(const uint8_t digest[static IMAGE_IDENTITY_SIZE], char text[static 17])
{
	for (size_t i = 0; i < 8; i++)
		snprintf(text + 2 * i, 3, "%02x", digest[i]);
}

int hotlist_check_image(const struct hotlist *list, const char *image, uint64_t size,
			const uint8_t digest[static IMAGE_IDENTITY_SIZE], struct error *err)
{
	const struct hotlist_origin *origin = list->origin;
	char of_list[17], of_image[17];

	if (!hotlist_origin_is_bound(origin))
		return 0;
	if (origin->template_size != size)
		return error_set(err, -ESTALE, "bad_hot_list",
				 "the list was recorded on another image than %.200s: on one of %" PRIu64
				 " bytes, and this one has %" PRIu64 ". Record a list of this image",
				 image, origin->template_size, size);
	if (memcmp(origin->template_digest, digest, IMAGE_IDENTITY_SIZE) == 0)
		return 0;
	print_digest(origin->template_digest, of_list);
	print_digest(digest, of_image);
	return error_set(err, -ESTALE, "bad_hot_list",
			 "the list was recorded on another image than %.200s: on one with the identity %s…, and this one has %s…. "
			 "Record a list of this image",
			 image, of_list, of_image);
}

int hotlist_check_layout(const struct hotlist *list, const struct hotlist_region *regions, size_t region_count,
			 struct error *err)
{
	const struct hotlist_origin *origin = list->origin;

	if (!origin || !origin->region_count)
		return 0;
	if (origin->region_count != region_count)
		return error_set(err, -EINVAL, "bad_hot_list",
				 "the list was recorded on a fork of %zu memory region%s, and here %s %zu: it belongs to "
				 "another memory layout",
				 origin->region_count, origin->region_count == 1 ? "" : "s",
				 region_count == 1 ? "is" : "are", region_count);
	for (size_t i = 0; i < region_count; i++)
		if (origin->regions[i].size && origin->regions[i].size != regions[i].size)
			return error_set(err, -EINVAL, "bad_hot_list",
					 "region %zu had %" PRIu64 " bytes when the list was recorded, and has %" PRIu64
					 " here: the list belongs to another memory layout",
					 i, origin->regions[i].size, regions[i].size);
	return 0;
}
