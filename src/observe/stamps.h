/* The server's stamps on their way from the pagers to the reader: a ring for each pager, which never waits. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "serve/observer.h"

/* The reader comes every 10 ms: 16 times what one pager serves in that. */
#define STAMPS_PER_PAGER 16384u

struct stamp_ring;

/* NULL: out of memory. */
struct stamp_ring *stamp_ring_new(void);
void stamp_ring_free(struct stamp_ring *ring);
/* By the ring's pager only. Full: the stamp is dropped and counted. */
void stamp_ring_put(struct stamp_ring *ring, const struct observer_stamp *stamp);
/* By one reader. False: it is empty. */
bool stamp_ring_take(struct stamp_ring *ring, struct observer_stamp *ret);
uint64_t stamp_ring_lost(const struct stamp_ring *ring);
