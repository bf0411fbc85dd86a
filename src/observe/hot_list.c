#include "observe/hot_list.h"

#include <errno.h>
#include <stdlib.h>

#include "hotlist/merge.h"

/*
 * Before it has shown anything, a run's independence is taken for PRIOR, as if so many touches had been expected. That is on the side of the corrected
 * time: a run without a long stall shows nothing, and where all stalls are short, raw time is further off where it is wrong (rank correlation with the
 * truth 0.96 to 0.99) than corrected time where that is (0.99 to 1.00).
 */
#define PRIOR	      0.34
#define PRIOR_TOUCHES 16

struct entry {
	uint64_t time_ns, raw_ns;
	uint32_t index;
};

static int compare_entries(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;

	if (x->time_ns != y->time_ns)
		return x->time_ns < y->time_ns ? -1 : 1;
	if (x->raw_ns != y->raw_ns)
		return x->raw_ns < y->raw_ns ? -1 : 1;
	return (x->index > y->index) - (x->index < y->index);
}

static const uint8_t kinds[] = {
	[TOUCH_UNKNOWN] = HOT_UNKNOWN, [TOUCH_READ] = HOT_READ, [TOUCH_WRITE] = HOT_WRITE,
	[TOUCH_FETCH] = HOT_FETCH,     [TOUCH_WALK] = HOT_WALK,
};

static int add_entry(struct hotlist *list, const struct touch *touch, uint64_t corrected_ns)
{
	struct hot_touch hot = {
		.raw_ns = touch->touch_ns,
		.corrected_ns = corrected_ns,
		.seen = 1,
		.vcpu = touch->vcpu,
		.kind = touch->kind < sizeof kinds ? kinds[touch->kind] : HOT_UNKNOWN,
		.flags = touch->present ? HOT_WAS_PRESENT : 0,
	};

	return hotlist_add_touch(list, touch->region, touch->offset, &hot);
}

static int fill(struct hotlist *list, const struct recording *recording, const struct clocks *clocks,
		const struct window *window, enum hot_clock clock)
{
	_cleanup_free_ struct entry *entries = calloc(recording->touch_count + 1, sizeof *entries);
	size_t count = 0;
	int r = 0;

	if (!entries)
		return -ENOMEM;
	for (size_t i = 0; i < recording->touch_count; i++) {
		uint64_t raw = recording->touches[i].touch_ns;

		if (raw <= window->end_ns)
			entries[count++] = (struct entry){
				.time_ns = clock == HOT_CLOCK_CORRECTED ? clocks->corrected_ns[i] : raw,
				.raw_ns = raw,
				.index = (uint32_t)i,
			};
	}
	qsort(entries, count, sizeof *entries, compare_entries);
	for (size_t i = 0; r >= 0 && i < count; i++)
		r = add_entry(list, &recording->touches[entries[i].index], clocks->corrected_ns[entries[i].index]);
	return r;
}

/* How sure a run can be, in the form in which a merge looks for it, and the clock that it speaks for. */
static void judge(const struct independence *independence, struct hotlist_origin *origin)
{
	double ratio = (independence->ratio * independence->expected + PRIOR * PRIOR_TOUCHES) /
		       (independence->expected + PRIOR_TOUCHES);

	origin->clock = HOT_CLOCK_RAW;
	origin->agreement_raw = origin->agreement_corrected = 0;
	if (independence->vcpus < 2)
		return;
	if (ratio >= MERGE_INDEPENDENT_FROM)
		origin->clock = HOT_CLOCK_CORRECTED;
	origin->agreement_raw = 1000000 + (uint32_t)((1 - ratio) * 1e6);
	origin->agreement_corrected = 1000000 + (uint32_t)(ratio * 1e6);
}

static int make(const struct recording *recording, const struct clocks *clocks, const struct window_rules *rules,
		struct hotlist_origin *origin, struct hotlist **ret)
{
	_cleanup_hotlist_ struct hotlist *list = hotlist_new();
	struct independence independence;
	struct window window;

	if (!list || window_find(recording, clocks, rules, &window) < 0 ||
	    independence_measure(recording, window.end_ns, &independence) < 0)
		return -ENOMEM;
	judge(&independence, origin);
	origin->runs = 1;
	origin->events_lost = recording->events_lost;
	origin->window_ns = window.end_ns;
	origin->window_end = window.end;
	if (fill(list, recording, clocks, &window, origin->clock) < 0 || hotlist_set_origin(list, origin) < 0)
		return -ENOMEM;
	list->format = HOTLIST_HPL2;
	*ret = TAKE_PTR(list);
	return 0;
}

int hot_list_make(const struct recording *recording, const struct window_rules *rules,
		  const struct hotlist_origin *origin, struct hotlist **ret, struct error *err)
{
	struct hotlist_origin complete = *origin;
	struct clocks clocks = { .corrected_ns = NULL };
	int r = clocks_compute(recording, &clocks);

	if (r >= 0)
		r = make(recording, &clocks, rules, &complete, ret);
	clocks_clear(&clocks);
	if (r < 0)
		return error_set(err, r, "no_memory", "there is not enough memory for a list of %zu touches",
				 recording->touch_count);
	return 0;
}
