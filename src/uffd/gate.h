/*
 * A lock for many who put pages in and few who read messages: shared or exclusive, exclusive first, and exclusive can become shared
 * without a gap. Whoever holds it does so for a microsecond or two, so that waiting starts by spinning: a sleep would cost
 * several times as much. Not recursive.
 */
#pragma once

#include <stdatomic.h>
#include <stdint.h>

/* GATE_EXCLUSIVE is held, GATE_WANTED waits for the present holders to leave; the rest counts shared holders. */
#define GATE_EXCLUSIVE (1u << 31)
#define GATE_WANTED    (1u << 30)

/* All zeros is an open gate. */
struct gate {
	_Atomic uint32_t state;
	_Atomic uint32_t sleepers;
};

void gate_enter_slowly(struct gate *gate);
void gate_enter_alone_slowly(struct gate *gate);
void gate_wake_sleepers(struct gate *gate);

static inline void gate_enter(struct gate *gate)
{
	uint32_t state = atomic_load_explicit(&gate->state, memory_order_relaxed);

	if (state & (GATE_EXCLUSIVE | GATE_WANTED) ||
	    !atomic_compare_exchange_strong_explicit(&gate->state, &state, state + 1, memory_order_acquire,
						     memory_order_relaxed))
		gate_enter_slowly(gate);
}

static inline void gate_enter_alone(struct gate *gate)
{
	uint32_t open = 0;

	if (!atomic_compare_exchange_strong_explicit(&gate->state, &open, GATE_EXCLUSIVE, memory_order_acquire,
						     memory_order_relaxed))
		gate_enter_alone_slowly(gate);
}

/* From exclusive to shared. */
static inline void gate_share(struct gate *gate)
{
	atomic_fetch_sub(&gate->state, GATE_EXCLUSIVE - 1);
	if (atomic_load(&gate->sleepers) > 0)
		gate_wake_sleepers(gate);
}

static inline void gate_leave(struct gate *gate)
{
	atomic_fetch_sub(&gate->state, 1);
	if (atomic_load(&gate->sleepers) > 0)
		gate_wake_sleepers(gate);
}

static inline void gate_leave_alone(struct gate *gate)
{
	atomic_fetch_sub(&gate->state, GATE_EXCLUSIVE);
	if (atomic_load(&gate->sleepers) > 0)
		gate_wake_sleepers(gate);
}
