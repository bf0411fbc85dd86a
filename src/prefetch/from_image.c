#include "prefetch/from_image.h"

#include <errno.h>

int supply_from_image(struct guest_memory *memory, struct source *source, struct lease_section *section, uint64_t page,
		      uint64_t count, const void *bytes, uint64_t size, uint64_t offset, enum wake wake,
		      struct supply *ret)
{
	if (atomic_load_explicit(&source->leased, memory_order_relaxed)) {
		atomic_store(&section->busy, true);
		bool leased = atomic_load(&source->leased); /* still, now that keeper_break would wait for us? */
		if (leased)
			*ret = guest_memory_supply(memory, page, count, bytes, wake);
		atomic_store_explicit(&section->busy, false, memory_order_release);
		if (leased)
			return 0;
	}

	/* Where inotify tells of changes a first look is not worth its system call. */
	if (!atomic_load_explicit(&source->guarded, memory_order_relaxed) && !source_intact(source, size, offset)) {
		*ret = (struct supply){ .outcome = SUPPLY_FAILED, .error = -EFAULT };
		return 0;
	}
	*ret = guest_memory_supply(memory, page, count, bytes, WAKE_LATER);
	/* One that was there may be another thread's copy of this moment, no better known to be right than ours. */
	if (ret->copied + ret->present == 0)
		return 0;
	if (!source_intact(source, size, offset))
		return -ESTALE;
	if (wake == WAKE_NOW)
		guest_memory_wake(memory, page, count);
	return 0;
}
