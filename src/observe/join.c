/* Recent stamps in a table, faults that wait for theirs in a row. */
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
	struct fl_event fault;
	uint64_t page;
};

struct joiner {
	struct observer_stamp stamps[STAMP_COUNT]; /* fork 0: free */
	struct waiting *waiting;
	size_t count, capacity;
	size_t at, kept; /* of the pass: looked at so far, and those of them that go on waiting */
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
	free(joiner->waiting);
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

/* The stamp of what the server did for that fault, not for an earlier one of the same page. */
static const struct observer_stamp *find_stamp(const struct joiner *joiner, const struct fl_event *fault, uint64_t page)
{
	size_t place = place_of(fault->fork, page);

	for (size_t i = 0; i < STAMP_REACH; i++) {
		const struct observer_stamp *slot = &joiner->stamps[(place + i) % STAMP_COUNT];
		if (slot->fork == fault->fork && slot->address == page)
			return slot->copied_ns >= fault->touch_ns ? slot : NULL;
	}
	return NULL;
}

int joiner_add_fault(struct joiner *joiner, const struct fl_event *fault, uint64_t page)
{
	if (joiner->count == joiner->capacity) {
		size_t capacity = joiner->capacity ? joiner->capacity * 2 : 256;
		struct waiting *waiting = realloc(joiner->waiting, capacity * sizeof *waiting);
		if (!waiting)
			return -ENOMEM;
		joiner->waiting = waiting;
		joiner->capacity = capacity;
	}
	joiner->waiting[joiner->count++] = (struct waiting){ .fault = *fault, .page = page };
	return 0;
}

void joiner_rewind(struct joiner *joiner)
{
	joiner->at = joiner->kept = 0;
}

bool joiner_next(struct joiner *joiner, uint64_t now, struct joined *ret)
{
	while (joiner->at < joiner->count) {
		const struct waiting *w = &joiner->waiting[joiner->at++];
		const struct observer_stamp *stamp = find_stamp(joiner, &w->fault, w->page);

		if (stamp || now > w->fault.run_ns + JOIN_PATIENCE_NS) {
			*ret = (struct joined){ .fault = w->fault, .stamp = stamp };
			return true;
		}
		joiner->waiting[joiner->kept++] = *w;
	}
	joiner->count = joiner->at = joiner->kept;
	return false;
}

bool joiner_is_empty(const struct joiner *joiner)
{
	return joiner->count == 0;
}
