/* A list in use is kept fresh by the runs of forks that had it prefetched. */
#include <errno.h>
#include <stdlib.h>

#include "hotlist/merge_internal.h"

/* A run that lost more than this part of its events can't say that a page was not touched. */
#define LOST_PART 100

static int no_memory(struct error *err)
{
	return error_set(err, -ENOMEM, "no_memory", "there is not enough memory to refresh the list");
}

static uint64_t mix(uint64_t z)
{
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

/*
 * N * NUMERATOR / DENOMINATOR. What is left of the division is rounded up as often as it is worth, by a hash of page and run: rounded always the
 * same way, small numbers would never change, or always.
 */
static uint32_t scale(uint32_t n, uint64_t numerator, uint64_t denominator, const struct hot_page *page, uint64_t salt)
{
	uint64_t product = n * numerator;
	uint64_t chance = mix(mix(page->offset + salt) + page->region) % denominator;

	return (uint32_t)(product / denominator + (chance < product % denominator));
}

/* Another number for each run. */
static uint64_t salt_of(const struct hotlist *run)
{
	uint64_t salt = run->count;

	for (size_t i = 0; run->touches && i < run->count; i++)
		salt = mix(salt + run->touches[i].raw_ns);
	return salt;
}

/* OLD, counting for MERGE_FRESH_RUNS - 1 runs at most. */
static struct hotlist *fade(const struct hotlist *old, uint64_t salt)
{
	_cleanup_hotlist_ struct hotlist *faded = hotlist_copy(old);
	uint32_t runs = old->origin && old->origin->runs ? old->origin->runs : 1;

	if (!faded || runs < MERGE_FRESH_RUNS)
		return TAKE_PTR(faded);
	faded->origin->runs = MERGE_FRESH_RUNS - 1;
	for (size_t i = 0; faded->touches && i < faded->count; i++) {
		struct hot_touch *touch = &faded->touches[i];
		uint32_t seen = touch->seen && touch->seen < runs ? touch->seen : runs;

		touch->seen = scale(seen, MERGE_FRESH_RUNS - 1, runs, &faded->pages[i], salt);
	}
	return TAKE_PTR(faded);
}

/* RUN without what it touched after the list's window: a fork that lives on would bring everything in, in time. */
static struct hotlist *cut(const struct hotlist *run, const struct hotlist *old)
{
	uint64_t window = old->origin ? old->origin->window_ns : 0;
	_cleanup_hotlist_ struct hotlist *kept = hotlist_copy(run);
	size_t count = 0;

	if (!kept || !window || !kept->touches)
		return TAKE_PTR(kept);
	for (size_t i = 0; i < kept->count; i++) {
		if (merge_time(&kept->touches[i], BY_CORRECTED) > window)
			continue;
		kept->pages[count] = kept->pages[i];
		kept->touches[count++] = kept->touches[i];
	}
	kept->count = count;
	if (kept->origin && kept->origin->window_ns > window)
		kept->origin->window_ns = window;
	return TAKE_PTR(kept);
}

/* Inputs of the merge, in this order. */
enum { OLD, RUN, BOTH };

static bool saw_all(const struct merge *merge, const bool *in_run)
{
	const struct merge_input *old = &merge->inputs[OLD], *run = &merge->inputs[RUN];
	const struct hotlist_origin *origin = run->list->origin;
	size_t common = 0;

	if (origin && origin->events_lost > run->count / LOST_PART)
		return false;
	for (size_t i = 0; run->list->touches && i < run->list->count; i++)
		if (run->list->touches[i].flags & HOT_WAS_PRESENT)
			return true;
	for (size_t i = 0; i < old->count; i++)
		common += in_run[old->pages[i]];
	return 2 * common >= old->count;
}

/* Whether the run went on long enough to have touched the page, if it was going to. */
static bool reached(const struct merge *merge, size_t i)
{
	const struct merge_input *old = &merge->inputs[OLD];
	const struct hotlist_origin *origin = merge->inputs[RUN].list->origin;

	return !origin || !origin->window_ns || !old->timed ||
	       merge_time(&old->list->touches[old->entries[i]], BY_CORRECTED) <= origin->window_ns;
}

/* How many of OLD's pages stand in their places; the rest is its tail, whose times begin anew. */
static size_t placed_part(const struct merge_input *old)
{
	int clock = old->list->origin && old->list->origin->clock == HOT_CLOCK_CORRECTED ? BY_CORRECTED : BY_RAW;

	for (size_t i = 1; old->timed && i < old->count; i++)
		if (merge_time(&old->list->touches[old->entries[i]], clock) <
		    merge_time(&old->list->touches[old->entries[i - 1]], clock))
			return i;
	return old->count;
}

/* What becomes of each page, and how often it counts as seen. COMPLETE: the run saw all touches. */
static void judge_pages(const struct merge *merge, const bool *in_run, bool complete, uint64_t salt, uint8_t *fate,
			uint32_t *seen)
{
	const struct merge_input *old = &merge->inputs[OLD], *run = &merge->inputs[RUN];
	size_t placed = placed_part(old);

	for (size_t i = 0; i < old->count; i++) {
		const struct hot_touch *touch = old->list->touches ? &old->list->touches[old->entries[i]] : NULL;
		uint32_t page = old->pages[i];
		bool none = touch && !touch->seen && old->runs > 1; /* faded; merge_seen would take it for not known */

		seen[page] = none ? 0 : merge_seen(old, i);
		if (in_run[page] || (complete && reached(merge, i)))
			continue;
		/* That the run lacks it says nothing: it stays where it is, and its share of the runs as it was. */
		seen[page] = scale(seen[page], merge->runs, old->runs, &merge->index.pages[page], ~salt);
		seen[page] = seen[page] ?: 1;
		fate[page] = i < placed ? MERGE_PLACED : MERGE_TAIL;
	}
	/* What the last run touched is in its place, however new it is. */
	for (size_t i = 0; i < run->count; i++) {
		seen[run->pages[i]] += merge_seen(run, i);
		fate[run->pages[i]] = MERGE_PLACED;
	}
}

static int refresh_opened(const struct merge *merge, enum merge_saw saw, uint64_t salt, struct merge_result *ret)
{
	_cleanup_free_ uint32_t *seen = calloc(merge->index.count + 1, sizeof *seen);
	_cleanup_free_ uint8_t *fate = calloc(merge->index.count + 1, sizeof *fate);
	_cleanup_free_ bool *in_run = calloc(merge->index.count + 1, sizeof *in_run);
	const struct refresh refresh = { .fate = fate, .seen = seen };

	if (!seen || !fate || !in_run)
		return -ENOMEM;
	for (size_t i = 0; i < merge->inputs[RUN].count; i++)
		in_run[merge->inputs[RUN].pages[i]] = true;
	bool complete = saw == MERGE_SAW_ALL || (saw == MERGE_SAW_AUTO && saw_all(merge, in_run));
	judge_pages(merge, in_run, complete, salt, fate, seen);
	int r = merge_opened(merge, &refresh, ret);
	if (r >= 0)
		ret->complete = complete;
	return r;
}

int merge_refresh(const struct hotlist *old, const struct hotlist *run, enum merge_saw saw, const char *const names[2],
		  struct merge_result *ret, struct error *err)
{
	const struct hotlist *const given[BOTH] = { old, run };
	struct merge merge = { .inputs = NULL };

	if (!old->count)
		return merge_lists(&run, &names[RUN], 1, ret, err);
	int r = merge_check(given, names, BOTH, err);
	if (r < 0)
		return r;
	uint64_t salt = salt_of(run);
	_cleanup_hotlist_ struct hotlist *faded = fade(old, salt), *kept = cut(run, old);
	if (!faded || !kept)
		return no_memory(err);
	r = merge_open(&merge, (const struct hotlist *const[]){ faded, kept }, names, BOTH);
	if (r >= 0)
		r = refresh_opened(&merge, saw, salt, ret);
	merge_close(&merge);
	return r < 0 ? no_memory(err) : 0;
}
