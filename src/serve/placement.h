/*
 * Where forks run, and so which pagers watch them. A vCPU that waits for a page leaves its CPU idle: a pager there serves it several times
 * faster than one that has to be woken elsewhere. A thread of its own looks, while a fork has faults, on which CPUs the threads
 * that have them ran last, and moves the fork's pagers after them. It sleeps while nobody has faults.
 */
#pragma once

#include <stdatomic.h>

#include "serve/pager.h"

struct placement;

/* PAGERS outlive it. */
int placement_new(struct pager *const *pagers, unsigned count, struct placement **ret, struct error *err);
/* Joins the thread; all sessions have been removed. NULL is fine. */
void placement_free(struct placement *placement);

/* SESSION is watched from now on, at first by the pager of the CPU on which its VMM was last. The caller is a user of it. */
int placement_add(struct placement *placement, struct session *session);
/* SESSION's pagers let go of it soon. */
void placement_remove(struct placement *placement, struct session *session);

/* For pagers, after each batch of faults. */
void placement_wake(struct placement *placement);
static inline void placement_note_faults(struct placement *placement)
{
	/* First in the structure. */
	if (atomic_load_explicit((_Atomic bool *)placement, memory_order_relaxed))
		placement_wake(placement);
}
