/* What of a hot list fits into a budget of memory. */
#pragma once

#include <stdint.h>

#include "base/error.h"
#include "hotlist/hotlist.h"
#include "uffd/regions.h"

/*
 * Cuts LIST, in its own order, to the first pages that fit into BUDGET bytes of REGIONS' memory; a page that it names twice, or a huge page of which it
 * names several parts, counts once. *RET_USED: bytes of those that it has left; *RET_OVER: pages that it has lost. Checks the list first: codes as
 * plan_check, and io_error.
 */
int budget_cut(struct hotlist *list, const struct region *regions, size_t region_count, uint64_t budget,
	       uint64_t *ret_used, uint64_t *ret_over, struct error *err);
