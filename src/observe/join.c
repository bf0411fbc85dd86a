/* Recent stamps in a table, faults that wait for theirs in a row, touches in a queue. */
#include "observe/join.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Stamps that are kept: those of the last tenth of a second at 300,000 faults a second. */
#define STAMP_BITS  15
#define STAMP_COUNT (1u << STAMP_BITS)
/* Places that a stamp may lie at from its own. */
#define STAMP_REACH 8

struct waiting {
	struct fl_event event;
	uint64_t page;
};

struct waiting_row {
	struct waiting *items;
	size_t count, capacity;
	size_t at, kept; /* of the pass: looked at so far, and those of them that go on waiting */
};

struct joiner {
	struct observer_stamp stamps[STAMP_COUNT]; /* fork 0: free */
	struct waiting_row faults, touches;
	bool all; /* of the pass */
};

static uint64_t clamp(uint64_t value, uint64_t low, uint64_t high)
{
	return value < low ? low : value > high ? high : value;
}

void phases_split(const struct fl_event *fault, const struct observer_stamp *stamp, struct phases *ret)
{
	uint64_t read = clamp(stamp->read_ns, fault->touch_ns, fault->run_ns);
	uint64_t source = clamp(stamp->source_ns, read, fault->run_ns);
	uint64_t copied = clamp(stamp->copied_ns, source, fault->run_ns);

	/* The thread is woken within the copying call, and takes the CPU before that returns: the kernel's own stamp is the better one. */
	if (fault->wake_ns >= source && fault->wake_ns < copied)
		copied = fault->wake_ns;
	*ret = (struct phases){
		.queue_ns = read - fault->touch_ns,
		.source_ns = source - read,
		.copy_ns = copied - source,
		.wake_ns = fault->run_ns - copied,
	};
}

struct joiner *joiner_new(void)
{
	return calloc(1, sizeof(struct joiner));
}

void joiner_free(struct joiner *joiner)
{
	if (!joiner)
		return;
	free(joiner->faults.items);
	free(joiner->touches.items);
	free(joiner);
}

static size_t place_of(uint64_t fork, uint64_t page)
{
	return (size_t)(((page >> 12) + fork * 0x9e3779b97f4a7c15ull) * 0x9e3779b97f4a7c15ull >> (64 - STAMP_BITS));
}

void joiner_add_stamp(struct joiner *joiner, const struct observer_stamp *stamp)
{
	size_t place = place_of(stamp->fork, stamp->address);
	struct observer_stamp *oldest = &joiner->stamps[place];

	for (size_t i = 0; i < STAMP_REACH; i++) {
		struct observer_stamp *slot = &joiner->stamps[(place + i) % STAMP_COUNT];
		if (slot->fork == 0 || (slot->fork == stamp->fork && slot->address == stamp->address)) {
			*slot = *stamp;
			return;
		}
		if (slot->copied_ns < oldest->copied_ns)
			oldest = slot;
	}
	*oldest = *stamp;
}

/*
 * The stamp of what the server did for that fault, not for an earlier one of the same page. For a touch it counts only from when the server learnt of
 * a fault: before that it was another thread's.
 */
static const struct observer_stamp *find_stamp(const struct joiner *joiner, const struct waiting *waiting)
{
	const struct fl_event *event = &waiting->event;
	size_t place = place_of(event->fork, waiting->page);

	for (size_t i = 0; i < STAMP_REACH; i++) {
		const struct observer_stamp *slot = &joiner->stamps[(place + i) % STAMP_COUNT];
		if (slot->fork == event->fork && slot->address == waiting->page)
			return (event->kind == FL_EVENT_TOUCH ? slot->read_ns : slot->copied_ns) >= event->touch_ns
				       ? slot
				       : NULL;
	}
	return NULL;
}

static int append(struct waiting_row *row, const struct fl_event *event, uint64_t page)
{
	if (row->count == row->capacity) {
		size_t capacity = row->capacity ? row->capacity * 2 : 256;
		struct waiting *items = realloc(row->items, capacity * sizeof *items);
		if (!items)
			return -ENOMEM;
		row->items = items;
		row->capacity = capacity;
	}
	row->items[row->count++] = (struct waiting){ .event = *event, .page = page };
	return 0;
}

int joiner_add(struct joiner *joiner, const struct fl_event *event, uint64_t page)
{
	return append(event->kind == FL_EVENT_TOUCH ? &joiner->touches : &joiner->faults, event, page);
}

void joiner_rewind(struct joiner *joiner, bool all)
{
	joiner->faults.at = joiner->faults.kept = 0;
	joiner->touches.at = joiner->touches.kept = 0;
	joiner->all = all;
}

/* The next of the row that has a stamp, or is so old that none will come. Unless ALL are wanted, what is younger than AGE is not even looked at. */
static bool next(const struct joiner *joiner, struct waiting_row *row, uint64_t age, bool all, uint64_t now,
		 struct joined *ret)
{
	while (row->at < row->count) {
		const struct waiting *w = &row->items[row->at];
		bool old = now > w->event.run_ns + age;
		if (!old && !all)
			break;
		const struct observer_stamp *stamp = find_stamp(joiner, w);
		row->at++;
		if (stamp || old) {
			*ret = (struct joined){ .event = w->event, .stamp = stamp };
			return true;
		}
		row->items[row->kept++] = *w;
	}
	size_t rest = row->count - row->at;
	if (rest && row->kept < row->at)
		memmove(row->items + row->kept, row->items + row->at, rest * sizeof *row->items);
	row->count = row->at = row->kept = row->kept + rest;
	return false;
}

bool joiner_next(struct joiner *joiner, uint64_t now, struct joined *ret)
{
	return next(joiner, &joiner->faults, JOIN_PATIENCE_NS, true, now, ret) ||
	       next(joiner, &joiner->touches, JOIN_TOUCH_AGE_NS, joiner->all, now, ret);
}

bool joiner_is_empty(const struct joiner *joiner)
{
	return joiner->faults.count == 0 && joiner->touches.count == 0;
}
