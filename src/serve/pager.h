/* A pager: one thread, on one CPU, that serves the demand faults of the forks that it watches. Several may watch one fork. Any thread may call. */
#pragma once

#include "base/error.h"
#include "serve/session.h"
#include "template/keeper.h"

struct pager;

/* Stands on CPU, is the server's pager number INDEX; asks KEEPER to look at images again. */
int pager_new(unsigned index, int cpu, struct keeper *keeper, struct pager **ret, struct error *err);
/* Joins the thread; no session may be left in it. NULL is fine. */
void pager_free(struct pager *pager);

int pager_cpu(const struct pager *pager);
unsigned pager_sessions(const struct pager *pager);

/*
 * The pager serves SESSION from now on, also if it was about to stop. SESSION has a user as long as it isn't closed. 1; 0: it did so
 * already; -ESRCH: it is closed; or another negative errno.
 */
int pager_watch(struct pager *pager, struct session *session);
/* The pager stops soon, and tells nobody; what it has read and not served yet goes to the others. */
void pager_unwatch(struct pager *pager, struct session *session);

/* All pagers stop soon, and no other begins. */
void session_close(struct session *session);
/* The CPUs of the pagers that serve SESSION: how many, at most MAX. */
unsigned session_cpus(struct session *session, int *ret_cpus, unsigned max);
