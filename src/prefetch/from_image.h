/* Pages straight from the image's mapping, although somebody may be cutting the image short at this moment. */
#pragma once

#include "template/source.h"
#include "uffd/guest_memory.h"

/*
 * Copies COUNT pages from page number PAGE on, whose bytes BYTES are what source_peek gave for SIZE bytes at OFFSET; the gate is held shared.
 * A lease on the image vouches for them, and SECTION, this thread's own, holds the keeper up; without a lease, whoever waits
 * for a page is not woken before the bytes are known to be right. -ESTALE: they are not, and somebody waits for good: the VMM must be
 * stopped before the gate is left. 0: RET says what came of it; it is SUPPLY_FAILED with -EFAULT where the image has been cut short before.
 */
int supply_from_image(struct guest_memory *memory, struct source *source, struct lease_section *section, uint64_t page,
		      uint64_t count, const void *bytes, uint64_t size, uint64_t offset, enum wake wake,
		      struct supply *ret);
