#include "prefetch/budget.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "prefetch/plan.h"

int budget_cut(struct hotlist *list, const struct region *regions, size_t region_count, uint64_t budget,
	       uint64_t *ret_used, uint64_t *ret_over, struct error *err)
{
	int r = plan_check(list, regions, region_count, err);
	if (r < 0)
		return r;

	uint64_t pages = regions_page_count(regions, region_count), used = 0, over = 0;
	_cleanup_free_ uint64_t *seen = calloc(pages / 64 + 1, sizeof *seen);
	size_t keep = 0;
	bool full = false;

	if (!seen)
		return error_set(err, -ENOMEM, "io_error", "out of memory for a list of %zu pages", list->count);
	for (size_t i = 0; i < list->count; i++) {
		const struct region *region = &regions[list->pages[i].region];
		uint64_t page = region->first_page + list->pages[i].offset / region->page_size;
		bool new = !(seen[page / 64] & 1ull << page % 64);

		seen[page / 64] |= 1ull << page % 64;
		/* What comes after the first that does not fit is less wanted than that. */
		full = full || (new && region->page_size > budget - used);
		over += full && new;
		if (full)
			continue;
		used += new ? region->page_size : 0;
		keep = i + 1;
	}
	list->count = keep;
	*ret_used = used;
	*ret_over = over;
	return 0;
}
