#include "prefetch/plan.h"

#include <errno.h>
#include <stdlib.h>

static int check(const struct hotlist *list, const struct region *regions, size_t count, struct error *err)
{
	_cleanup_free_ struct hotlist_region *sizes = calloc(count, sizeof *sizes);
	if (!sizes)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	for (size_t i = 0; i < count; i++)
		sizes[i] = (struct hotlist_region){ .size = regions[i].size, .page_size = regions[i].page_size };
	return hotlist_check(list, sizes, count, err);
}

int plan_new(struct hotlist *list, const struct region *regions, size_t region_count, struct plan **ret,
	     struct error *err)
{
	int r = check(list, regions, region_count, err);
	if (r < 0)
		return r;

	_cleanup_plan_ struct plan *plan = calloc(1, sizeof *plan);
	if (!plan)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	plan->runs = calloc(list->count ?: 1, sizeof plan->runs[0]);
	if (!plan->runs)
		return error_set(err, -ENOMEM, "io_error", "out of memory for a list of %zu pages", list->count);

	hotlist_sort(list);
	uint64_t last_region = 0;
	for (size_t i = 0; i < list->count; i++) {
		const struct hot_page *hot = &list->pages[i];
		const struct region *region = &regions[hot->region];
		uint64_t page = region->first_page + hot->offset / region->page_size;
		struct plan_run *run = plan->count ? &plan->runs[plan->count - 1] : NULL;

		if (run && hot->region == last_region && page < run->page + run->count)
			continue; /* the same larger page again */
		if (run && hot->region == last_region && page == run->page + run->count)
			run->count++;
		else
			plan->runs[plan->count++] = (struct plan_run){ .page = page, .count = 1 };
		last_region = hot->region;
		plan->pages++;
	}
	*ret = TAKE_PTR(plan);
	return 0;
}

void plan_free(struct plan *plan)
{
	if (!plan)
		return;
	free(plan->runs);
	free(plan);
}
