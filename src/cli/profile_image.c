/* The image that a profile is of: from mappings to what is observed, and back from what was seen to the regions that a fork will have. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "cli/profile.h"
#include "hotlist/identity.h"
#include "observe/observe.h"
#include "serve/observer.h"

static int no_memory(struct error *err)
{
	return error_set(err, -ENOMEM, "no_memory", "there is not enough memory");
}

/* Mappings may come one by one, so that their numbers are known at the end alone: until then all is one region, the image. */
static int attach(struct profile *profile, pid_t pid, const struct image_maps *maps, struct error *err)
{
	_cleanup_free_ struct observe_range *ranges = calloc(maps->count, sizeof *ranges);
	const struct observer *observer = observe_observer(profile->observe);

	if (!ranges)
		return no_memory(err);
	for (size_t i = 0; i < maps->count; i++)
		ranges[i] = (struct observe_range){
			.address = maps->maps[i].address,
			.size = maps->maps[i].size,
			.offset = maps->maps[i].offset,
		};
	if (profile->attached)
		observer->release(observer->data, profile->fork);
	profile->attached = false;
	int r = observe_attach_process(profile->observe, "profile", pid, ranges, maps->count, &profile->fork, err);
	if (r < 0)
		return r;
	profile->attached = true;
	profile->attached_ns = profile->mark_ns = now_ns();
	profile->touches = profile->mark_touches = 0;
	profile->present_before = image_maps_present(pid, maps);
	return 0;
}

static int update(struct profile *profile, const struct image_maps *maps, struct error *err)
{
	_cleanup_free_ struct observer_region *regions = calloc(maps->count, sizeof *regions);
	const struct observer *observer = observe_observer(profile->observe);

	if (!regions)
		return no_memory(err);
	for (size_t i = 0; i < maps->count; i++)
		regions[i] = (struct observer_region){
			.address = maps->maps[i].address,
			.size = maps->maps[i].size,
			.page_size = (uint64_t)sysconf(_SC_PAGESIZE),
			.offset = maps->maps[i].offset,
		};
	observer->regions(observer->data, profile->fork, regions, maps->count);
	return 0;
}

static bool same_maps(const struct image_maps *a, const struct image_maps *b)
{
	return a->count == b->count && !memcmp(a->maps, b->maps, a->count * sizeof *a->maps);
}

int profile_look(struct profile *profile, pid_t pid, struct error *err)
{
	_cleanup_image_maps_ struct image_maps maps = { .maps = NULL };
	int r = image_maps_read(pid, profile->memory, &maps, err);

	if (r < 0)
		return r;
	bool same = profile->attached && pid == profile->pid && maps.device == profile->maps.device &&
		    maps.inode == profile->maps.inode;
	if (same && same_maps(&maps, &profile->maps))
		return 0;
	r = same ? update(profile, &maps, err) : attach(profile, pid, &maps, err);
	if (r < 0)
		return r;

	struct image_maps old = profile->maps;
	profile->maps = maps;
	maps = old;
	profile->pid = pid;
	return 0;
}

/* ---- the list ---- */

/* The mapping that the byte at OFFSET of the image lies in; SIZE_MAX: none any more. */
static size_t find_map(const struct image_maps *maps, uint64_t offset)
{
	for (size_t i = 0; i < maps->count; i++)
		if (offset >= maps->maps[i].offset && offset - maps->maps[i].offset < maps->maps[i].size)
			return i;
	return SIZE_MAX;
}

/* What is known of the image. Where its file can't be read any more, the list is bound to none. */
static void identify(const struct profile *profile, struct hotlist_origin *origin)
{
	_cleanup_close_ int fd = open(profile->maps.path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_ino != profile->maps.inode)
		return;
	if (image_identity(fd, (uint64_t)st.st_size, origin->template_digest) == 0)
		origin->template_size = (uint64_t)st.st_size;
}

static enum hot_window_end window_end(enum profile_end end)
{
	switch (end) {
	case PROFILE_SETTLED:
		return HOT_WINDOW_SETTLED;
	case PROFILE_GONE:
		return HOT_WINDOW_GONE;
	case PROFILE_DURATION:
		return HOT_WINDOW_TIMEOUT;
	default:
		return HOT_WINDOW_UNKNOWN;
	}
}

static int set_origin(const struct profile *profile, const struct hotlist_origin *seen, struct hotlist *list,
		      struct error *err)
{
	const struct image_maps *maps = &profile->maps;
	size_t count = maps->count < HOTLIST_REGIONS_MAX ? maps->count : HOTLIST_REGIONS_MAX;
	_cleanup_free_ struct hotlist_region_size *regions = calloc(count, sizeof *regions);
	struct hotlist_origin origin = seen ? *seen : (struct hotlist_origin){ .runs = 1 };

	if (!regions)
		return no_memory(err);
	for (size_t i = 0; i < count; i++)
		regions[i] = (struct hotlist_region_size){
			.size = maps->maps[i].size,
			.offset = maps->maps[i].offset,
			.page_size = (uint64_t)sysconf(_SC_PAGESIZE),
		};
	origin.regions = regions;
	origin.region_count = count;
	origin.window_end = window_end(profile->end);
	identify(profile, &origin);
	return hotlist_set_origin(list, &origin) < 0 ? no_memory(err) : 0;
}

static int translate(const struct profile *profile, const struct hotlist *seen, struct hotlist *list, struct error *err)
{
	const struct hot_touch nothing = HOT_TOUCH_NOTHING;

	for (size_t i = 0; i < seen->count; i++) {
		uint64_t offset = seen->pages[i].offset;
		size_t map = find_map(&profile->maps, offset);

		if (map == SIZE_MAX)
			continue;
		if (hotlist_add_touch(list, map, offset - profile->maps.maps[map].offset,
				      seen->touches ? &seen->touches[i] : &nothing) < 0)
			return no_memory(err);
	}
	return set_origin(profile, seen->origin, list, err);
}

int profile_list(struct profile *profile, struct hotlist **ret, struct error *err)
{
	const struct observer *observer = observe_observer(profile->observe);
	_cleanup_hotlist_ struct hotlist *seen = NULL, *list = hotlist_new();
	bool settled = profile->end == PROFILE_SETTLED;

	if (!list)
		return no_memory(err);
	/* Its end was decided here; where it has settled, the exact place is found in the recording. */
	observe_set_window(profile->observe, profile->fork, UINT64_MAX,
			   settled ? (uint64_t)(profile->settle_s * NSEC_PER_SEC) : UINT64_MAX);
	int r = observer->hot_list(observer->data, profile->fork, &seen, err);
	if (r >= 0)
		r = translate(profile, seen, list, err);
	if (r < 0)
		return r;
	list->format = HOTLIST_HPL2;
	*ret = TAKE_PTR(list);
	return 0;
}
