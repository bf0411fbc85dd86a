/*
 * A hot list laid against one fork's regions: runs of neighbouring pages. Small pages are sorted by address, since neighbours go in with one
 * call; then come huge pages, each of which takes a call of its own anyway, in the order in which the list first names a part of them.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "hotlist/hotlist.h"
#include "uffd/regions.h"

/* COUNT pages from page number PAGE on, all in one region. */
struct plan_run {
	uint64_t page;
	uint64_t count;
};

struct plan {
	struct plan_run *runs; /* disjoint */
	size_t count;
	uint64_t pages;
};

/* Whether LIST fits REGIONS, before anything is done with it: codes "bad_region", "bad_offset" and "bad_hot_list". */
int plan_check(const struct hotlist *list, const struct region *regions, size_t region_count, struct error *err);

/* Checks the whole list first: codes "bad_region", "bad_offset", and "bad_hot_list" (recorded on other regions). LIST is sorted on the way. */
int plan_new(struct hotlist *list, const struct region *regions, size_t region_count, struct plan **ret,
	     struct error *err);
void plan_free(struct plan *plan);
DEFINE_CLEANUP(struct plan, plan_free)
#define _cleanup_plan_ _cleanup_(cleanup_plan_free)
