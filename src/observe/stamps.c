/* One writer, one reader, no lock. */
#include "observe/stamps.h"

#include <stdlib.h>

struct stamp_ring {
	_Alignas(64) _Atomic uint32_t written; /* by the pager */
	_Atomic uint64_t lost;
	uint32_t read_seen; /* what the pager knows of READ: looked up again only when the ring seems full */
	_Alignas(64) _Atomic uint32_t read; /* by the reader */
	_Alignas(64) struct observer_stamp stamps[STAMPS_PER_PAGER];
};

struct stamp_ring *stamp_ring_new(void)
{
	struct stamp_ring *ring = aligned_alloc(64, sizeof *ring);

	if (!ring)
		return NULL;
	atomic_init(&ring->written, 0);
	atomic_init(&ring->read, 0);
	atomic_init(&ring->lost, 0);
	ring->read_seen = 0;
	return ring;
}

void stamp_ring_free(struct stamp_ring *ring)
{
	free(ring);
}

void stamp_ring_put(struct stamp_ring *ring, const struct observer_stamp *stamp)
{
	uint32_t written = atomic_load_explicit(&ring->written, memory_order_relaxed);

	if (written - ring->read_seen == STAMPS_PER_PAGER) {
		ring->read_seen = atomic_load_explicit(&ring->read, memory_order_acquire);
		if (written - ring->read_seen == STAMPS_PER_PAGER) {
			atomic_fetch_add_explicit(&ring->lost, 1, memory_order_relaxed);
			return;
		}
	}
	ring->stamps[written % STAMPS_PER_PAGER] = *stamp;
	atomic_store_explicit(&ring->written, written + 1, memory_order_release);
}

bool stamp_ring_take(struct stamp_ring *ring, struct observer_stamp *ret)
{
	uint32_t read = atomic_load_explicit(&ring->read, memory_order_relaxed);

	if (read == atomic_load_explicit(&ring->written, memory_order_acquire))
		return false;
	*ret = ring->stamps[read % STAMPS_PER_PAGER];
	atomic_store_explicit(&ring->read, read + 1, memory_order_release);
	return true;
}

uint64_t stamp_ring_lost(const struct stamp_ring *ring)
{
	return atomic_load_explicit(&ring->lost, memory_order_relaxed);
}
