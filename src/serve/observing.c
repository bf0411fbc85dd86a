#include "serve/observing.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

/* Where the session's memory is now. NULL: out of memory. */
static struct observer_region *describe(const struct guest_memory *memory)
{
	const struct address_map *map = &memory->map;
	struct observer_region *regions = calloc(map->count ?: 1, sizeof *regions);

	if (!regions)
		return NULL;
	for (size_t i = 0; i < map->count; i++) {
		const struct map_piece *piece = &map->pieces[i];
		const struct region *region = regions_of_page(memory->regions, memory->region_count, piece->first_page);

		regions[i] = (struct observer_region){
			.address = piece->address,
			.size = piece->length,
			.page_size = piece->page_size,
			.region = (uint32_t)(region - memory->regions),
			.offset = (piece->first_page - region->first_page) * piece->page_size,
		};
	}
	return regions;
}

void observing_begin(const struct observer *observer, struct session *s, const char *id,
		     const struct recording_wish *wish)
{
	struct guest_memory *memory = s->memory;

	if (!observer)
		return;
	_cleanup_free_ struct observer_region *regions = describe(memory);
	const struct observer_fork fork = {
		.id = id,
		.pid = s->pid,
		.uffd = memory->fd,
		.record = wish->record,
		.window_timeout_ns = wish->window_timeout_ns,
		.window_settle_ns = wish->window_settle_ns,
		.connected_ns = s->connected_ns,
		.regions = regions,
		.region_count = memory->map.count,
	};
	int r = regions ? observer->attach(observer->data, &fork, &s->observed) : -ENOMEM;
	if (r < 0)
		log_warning(s->name, "it is served, but not observed: %s", strerror(-r));
	else
		s->observer = observer;
}

void observing_map_changed(struct session *s)
{
	if (!s->observer)
		return;
	_cleanup_free_ struct observer_region *regions = describe(s->memory);
	if (regions)
		s->observer->regions(s->observer->data, s->observed, regions, s->memory->map.count);
}

void observing_ready(struct session *s)
{
	if (s->observer)
		s->observer->ready(s->observer->data, s->observed);
}

void observing_end(struct session *s)
{
	if (s->observer)
		s->observer->detach(s->observer->data, s->observed);
}
