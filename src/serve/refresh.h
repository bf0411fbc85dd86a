/*
 * Templates' hot lists kept fresh: what a production fork touched, its list prefetched, is merged into that list once its window has ended. A thread of
 * its own does it: it reads, computes and writes.
 */
#pragma once

#include "serve/internal.h"

struct refresher;

int refresher_new(struct refresher **ret, struct error *err);
/* Joins the thread; what it hasn't come to yet is dropped. NULL is fine. */
void refresher_free(struct refresher *refresher);

/* Whether FORK's touches are wanted for its template's list. */
bool refresh_wants(const struct fork *fork);
/* Its window has ended, by its guest being ready or its end. With server->lock held. Forks that aren't wanted are fine, and those told before. */
void refresh_take(struct server *server, struct fork *fork);
