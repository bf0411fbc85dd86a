/* A pager: one thread, on one CPU, that serves the demand faults of the forks given to it. */
#pragma once

#include "base/error.h"
#include "serve/session.h"
#include "template/keeper.h"

struct pager;

/* Stands on CPU; asks KEEPER to look at images again. */
int pager_new(int cpu, struct keeper *keeper, struct pager **ret, struct error *err);
/* Joins the thread; no session may be left in it. NULL is fine. */
void pager_free(struct pager *pager);

int pager_cpu(const struct pager *pager);
unsigned pager_sessions(const struct pager *pager);

/* The pager becomes a user of SESSION and serves it. Any thread. 0 or negative errno. */
int pager_add(struct pager *pager, struct session *session);
/* The pager lets go of SESSION soon, and tells nobody. Any thread. */
void pager_remove(struct pager *pager, struct session *session);
