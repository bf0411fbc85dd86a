/* Page faults that a probe takes and serves itself: what several checks need, to see that something works to its end. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * A userfaultfd with FEATURES negotiated; where faults of the kernel's can't be had, one for faults in user mode only.
 * ret_user_mode (may be NULL): whether it is such. fd or negative errno.
 */
int trial_open(uint64_t features, bool *ret_user_mode);

/* How the memory is touched. */
enum trial_touch {
	TRIAL_READ,    /* by an instruction of this process */
	TRIAL_SYSCALL, /* by the kernel, in a system call that reads it */
};

/*
 * SIZE bytes (a page) at MEMORY are registered with UFFD and absent. A thread touches them, the fault is read and served with the bytes
 * at CONTENT, and what the thread saw is compared. 0; -ETIMEDOUT: no fault came; -EILSEQ: other bytes came; or what failed.
 */
int trial_fault(int uffd, void *memory, size_t size, const void *content, enum trial_touch touch);

/*
 * Serves the faults in [MEMORY, MEMORY + SIZE) with pages of CONTENT (as large) while FUNCTION(data) runs in a thread. Returns what it
 * returns, or -ETIMEDOUT where it doesn't come back; ret_messages: how many faults and events came.
 */
int trial_serve(int uffd, void *memory, size_t size, const void *content, int (*function)(void *), void *data,
		unsigned *ret_messages);

/* The usual trial: one anonymous page with FEATURES negotiated. */
int trial_anonymous(uint64_t features, enum trial_touch touch);
