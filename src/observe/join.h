/*
 * Two halves of one demand fault: what the kernel saw (touch, wake, run) and what the server did (read, source, copied), joined by fork and
 * page. Either may come first. Not thread-safe.
 *
 * A touch that the kernel's programs have not seen to wait may be a demand fault as well: its page came before the thread had gone to sleep. The
 * server's stamp tells.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bpf/event.h"
#include "serve/observer.h"

/* A fault whose stamp has not come by then never gets one: it was dropped, or the server did not serve it. */
#define JOIN_PATIENCE_NS 200000000ull
/* A touch is looked at when it is so old: by then the pager has written its stamp, and the table still has it. */
#define JOIN_TOUCH_AGE_NS 50000000ull

/* One fault's time, split; the four sum up to RUN - TOUCH. */
struct phases {
	uint64_t queue_ns, source_ns, copy_ns, wake_ns;
};

/*
 * Stamps that are out of order, as clocks of two sides may have them by microseconds, are moved into the interval, so that the sum stays
 * right. The kernel's wake_ns, where it was seen, ends the copy.
 */
void phases_split(const struct fl_event *fault, const struct observer_stamp *stamp, struct phases *ret);

struct joiner;

/* NULL: out of memory. */
struct joiner *joiner_new(void);
void joiner_free(struct joiner *joiner);

void joiner_add_stamp(struct joiner *joiner, const struct observer_stamp *stamp);
/* EVENT is a fault or a touch, PAGE the address of its page. -ENOMEM: it is not kept. */
int joiner_add(struct joiner *joiner, const struct fl_event *event, uint64_t page);

/*
 * Takes out a fault whose stamp has come, or whose patience is over at NOW, or a touch that is old enough; false: there is none at the moment. STAMP is
 * NULL in RET where none came. Valid until the next call.
 */
struct joined {
	struct fl_event event;
	const struct observer_stamp *stamp;
};
bool joiner_next(struct joiner *joiner, uint64_t now, struct joined *ret);
/* Begins a pass of joiner_next over what waits; ALL: also over touches that are young, whose stamps may have come nevertheless. */
void joiner_rewind(struct joiner *joiner, bool all);
bool joiner_is_empty(const struct joiner *joiner);
