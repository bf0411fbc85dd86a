#include "uffd/gate.h"

#include <limits.h>
#include <linux/futex.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Some microseconds: as long as a few copies of one page. */
#define SPINS 400

static void relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

/* Sleeps until the state is no longer SEEN, or for no reason: the caller looks again. */
static void sleep_while(struct gate *gate, uint32_t seen)
{
	atomic_fetch_add(&gate->sleepers, 1);
	syscall(SYS_futex, &gate->state, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
	atomic_fetch_sub(&gate->sleepers, 1);
}

void gate_wake_sleepers(struct gate *gate)
{
	syscall(SYS_futex, &gate->state, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

void gate_enter_slowly(struct gate *gate)
{
	for (unsigned spins = 0;; spins++) {
		uint32_t state = atomic_load_explicit(&gate->state, memory_order_relaxed);

		if (!(state & (GATE_EXCLUSIVE | GATE_WANTED))) {
			if (atomic_compare_exchange_weak_explicit(&gate->state, &state, state + 1, memory_order_acquire,
								  memory_order_relaxed))
				return;
		} else if (spins < SPINS) {
			relax();
		} else {
			sleep_while(gate, state);
		}
	}
}

/*
 * The first who gets in clears the wish of the others with its own, and they put it up again: a shared holder may slip in between, which
 * costs a moment and no order that anybody relies on.
 */
void gate_enter_alone_slowly(struct gate *gate)
{
	for (unsigned spins = 0;; spins++) {
		uint32_t state = atomic_load_explicit(&gate->state, memory_order_relaxed);

		if ((state & ~GATE_WANTED) == 0) {
			if (atomic_compare_exchange_weak_explicit(&gate->state, &state, GATE_EXCLUSIVE,
								  memory_order_acquire, memory_order_relaxed))
				return;
		} else if (!(state & GATE_WANTED)) {
			atomic_compare_exchange_weak_explicit(&gate->state, &state, state | GATE_WANTED,
							      memory_order_relaxed, memory_order_relaxed);
		} else if (spins < SPINS) {
			relax();
		} else {
			sleep_while(gate, state);
		}
	}
}
