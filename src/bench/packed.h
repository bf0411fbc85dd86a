/* A template's packed hot set, as the group "ready" has it: made once, and kept while the image and it are put out of the page cache. */
#pragma once

#include "bench/order.h"

struct packed {
	char list[420], set[460], kept[460]; /* paths */
	bool there;
};

/* Has RUN's template make the set of LIST. Its template is added again without it. */
int packed_make(struct order_run *run, const struct hotlist *list, struct packed *ret, struct error *err);
/* RUN's template is one with the set, which is cold where the situation is; until packed_leave. */
int packed_enter(struct order_run *run, struct packed *packed, struct error *err);
int packed_leave(struct order_run *run, struct error *err);
void packed_forget(struct packed *packed);
