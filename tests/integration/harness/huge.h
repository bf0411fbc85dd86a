/*
 * Huge pages for tests: the machine's pool, set to what a test needs and put back whatever becomes of the test, and regions
 * of such pages.
 */
#pragma once

#include <stdint.h>

#include "integration/harness/vmm.h"

#define HUGE (2ul << 20)

/*
 * Leaves the test program with 77 where the kernel has no huge pages at all. Takes the pool for this program alone, among tests, until it
 * ends: then the pool is as it was, by a process of its own if this one is killed.
 */
void huge_require(void);

/* Makes COUNT pages of the pool free for all comers, no more and no less. Fails the test where the machine has no memory for them. */
void huge_pool_set_free(unsigned count);
/* Pages that are free and that nobody has reserved. */
unsigned huge_pool_free(void);
/* Waits until COUNT are: a process that was killed gives its pages back a little later than its end is known. */
void huge_pool_await_free(unsigned count);

enum huge_kind {
	HUGE_ANONYMOUS, /* MAP_HUGETLB, as Firecracker has it */
	HUGE_MEMFD,	/* a private mapping of a memfd of MFD_HUGETLB */
};

/* Adds a region of huge pages, none of them reserved, for image bytes from OFFSET on. */
struct vmm_region *vmm_add_huge_region(struct vmm *vmm, enum huge_kind kind, uint64_t size, uint64_t offset);
/* Huge pages of the region that are there. */
uint64_t vmm_present_huge(struct vmm *vmm, const struct vmm_region *region);
