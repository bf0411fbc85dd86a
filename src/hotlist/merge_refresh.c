/* A list in use is kept fresh by the runs of forks that had it prefetched. */
#include <errno.h>
#include <stdlib.h>

#include "hotlist/merge_internal.h"

/* A run that lost more than this part of its events can't say that a page was not touched. */
#define LOST_PART 100
/* Of a run's pages, one in so many may be touched long before its turn. */
#define STRAY_ONE_IN 50
/* What the kernel maps around a page that is read: its fault_around_bytes, unless somebody has changed that. */
#define FAULT_AROUND 65536ull

static int no_memory(struct error *err)
{
	return error_set(err, -ENOMEM, "no_memory", "there is not enough memory to refresh the list");
}

/*
 * How often a page was seen, of MERGE_FRESH_RUNS: the newest run counts for MERGE_NEW_RUNS of them, and all before it for the rest. In whole numbers, so that
 * a page that is not touched any more is gone after 5 runs, wherever it began (8, 5, 3, 2, 1, 0), one that was new after 3 (3, 2, 1, 0); and so that one which every third
 * run touches stays (4, 3, 2, 4, ...).
 */
static uint32_t after_touch(uint32_t seen)
{
	uint32_t kept = (seen * (MERGE_FRESH_RUNS - MERGE_NEW_RUNS) + MERGE_FRESH_RUNS - 1) / MERGE_FRESH_RUNS;

	return kept + MERGE_NEW_RUNS;
}

static uint32_t after_disuse(uint32_t seen)
{
	return seen > 1 ? (seen * (MERGE_FRESH_RUNS - MERGE_NEW_RUNS) + MERGE_FRESH_RUNS / 2) / MERGE_FRESH_RUNS : 0;
}

static uint32_t of_fresh_runs(uint64_t seen, uint64_t runs)
{
	return (uint32_t)((seen * MERGE_FRESH_RUNS + runs / 2) / runs) ?: 1;
}

static uint32_t window_end(const struct hotlist *list)
{
	return list->origin ? list->origin->window_end : HOT_WINDOW_UNKNOWN;
}

/* Both went on until the same had come about, which is no question of time: a fork whose pages are prefetched gets there sooner than one that was recorded. */
static bool ended_alike(const struct hotlist *old, const struct hotlist *run)
{
	uint32_t end = window_end(run);

	return end == window_end(old) && (end == HOT_WINDOW_READY || end == HOT_WINDOW_SETTLED);
}

/*
 * RUN without what it touched after the list's window: a fork that lives on would bring everything in, in time. Pages that the list has stay, as a fork may be slower
 * than those before it.
 */
static struct hotlist *cut(const struct hotlist *run, const struct hotlist *old)
{
	uint64_t window = old->origin ? old->origin->window_ns : 0;
	_cleanup_page_index_ struct page_index listed = { .pages = NULL };
	_cleanup_hotlist_ struct hotlist *kept = hotlist_copy(run);
	size_t count = 0;

	if (!kept || !window || !kept->touches || ended_alike(old, run))
		return TAKE_PTR(kept);
	if (page_index_add_list(&listed, old) < 0)
		return NULL;
	for (size_t i = 0; i < kept->count; i++) {
		const struct hot_page *page = &kept->pages[i];

		if (merge_time(&kept->touches[i], BY_CORRECTED) > window &&
		    page_index_find(&listed, page->region, page->offset) == PAGE_INDEX_NONE)
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

/* What of OLD the run, lacking it, says something about. */
struct sight {
	bool everything;
	const bool *regions; /* by number: touches of pages that were there are seen */
	size_t region_count;
	uint64_t until_ns;  /* of what OLD had touched by then */
	const bool *hidden; /* by page: the kernel may have mapped it without the guest having touched it */
};

static bool was_present(const struct hotlist *list, size_t i)
{
	return list->touches && (list->touches[i].flags & HOT_WAS_PRESENT);
}

static bool lost_much(const struct merge_input *run)
{
	return run->list->origin && run->list->origin->events_lost > run->count / LOST_PART;
}

static bool has_half(const struct merge_input *old, const bool *in_run)
{
	size_t common = 0;

	for (size_t i = 0; i < old->count; i++)
		common += in_run[old->pages[i]];
	return 2 * common >= old->count;
}

/* Regions are few and numbered from 0; a list that says otherwise is not believed beyond that. */
static void find_seen_regions(const struct hotlist *run, bool *regions, size_t count)
{
	for (size_t i = 0; i < run->count; i++)
		if (was_present(run, i) && run->pages[i].region < count)
			regions[run->pages[i].region] = true;
}

/* Where a page that was there is read, the kernel maps those around it as well, and nobody sees these touched. A write maps one. */
static void find_hidden(const struct merge *merge, const struct hotlist *run, bool *hidden)
{
	for (size_t i = 0; i < run->count; i++) {
		if (!was_present(run, i) || (run->touches[i].kind != HOT_READ && run->touches[i].kind != HOT_FETCH))
			continue;
		const struct hot_page *page = &run->pages[i];
		uint64_t end = page->offset + FAULT_AROUND,
			 from = page->offset < FAULT_AROUND ? 0 : page->offset - FAULT_AROUND;

		for (uint64_t at = from; at < end; at += HOTLIST_PAGE_SIZE) {
			uint32_t number = page_index_find(&merge->index, page->region, at);

			if (number != PAGE_INDEX_NONE)
				hidden[number] = true;
		}
	}
}

static bool sees(const struct sight *sight, const struct merge *merge, uint32_t page)
{
	uint64_t region = merge->index.pages[page].region;

	return sight->everything || (region < sight->region_count && sight->regions[region] && !sight->hidden[page]);
}

static int compare_times(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static uint64_t time_in(const struct merge_input *old, size_t i)
{
	return merge_time(&old->list->touches[old->entries[i]], BY_CORRECTED);
}

/*
 * How far the run came, in OLD's time: pages that OLD had touched by then it would have touched, if it was going to. TIMES is scratch. Where both ended with the same,
 * it came to the end. Else by the pages that it did touch, but for the last ones: some are touched long before their turn.
 */
static uint64_t reach(const struct merge *merge, const bool *in_run, uint64_t *times)
{
	const struct merge_input *old = &merge->inputs[OLD];
	const struct hotlist *run = merge->inputs[RUN].list;
	uint64_t window = run->origin ? run->origin->window_ns : 0;
	size_t count = 0;

	if (!window || !old->timed || ended_alike(old->list, run) ||
	    (window_end(old->list) == HOT_WINDOW_READY && window_end(run) == HOT_WINDOW_SETTLED))
		return UINT64_MAX;
	for (size_t i = 0; i < old->count; i++)
		if (in_run[old->pages[i]])
			times[count++] = time_in(old, i);
	if (!count)
		return window;
	qsort(times, count, sizeof *times, compare_times);
	uint64_t far = times[count - 1 - count / STRAY_ONE_IN];
	return far > window ? far : window;
}

/* What becomes of each page, and how often it counts as seen. */
static void judge_pages(const struct merge *merge, const bool *in_run, const struct sight *sight, uint8_t *fate,
			uint32_t *seen)
{
	const struct merge_input *old = &merge->inputs[OLD], *run = &merge->inputs[RUN];

	for (size_t i = 0; i < old->count; i++) {
		uint32_t page = old->pages[i];

		seen[page] = of_fresh_runs(merge_seen(old, i), old->runs);
		/* That the run lacks it may say nothing: then it stays as it is. */
		if (!in_run[page] && sees(sight, merge, page) && (!old->timed || time_in(old, i) <= sight->until_ns))
			seen[page] = after_disuse(seen[page]);
	}
	for (size_t i = 0; i < run->count; i++)
		seen[run->pages[i]] = after_touch(seen[run->pages[i]]);
	for (size_t page = 0; page < merge->index.count; page++)
		fate[page] = !seen[page]				       ? MERGE_DROPPED
			     : seen[page] * MERGE_TAIL_RUNS < MERGE_FRESH_RUNS ? MERGE_TAIL
									       : MERGE_PLACED;
}

/* Scratch, by page and by region. */
struct scratch {
	uint32_t *seen;
	uint8_t *fate;
	uint64_t *times;
	bool *in_run, *hidden, *regions;
};

static int open_scratch(struct scratch *s, size_t pages)
{
	s->seen = calloc(pages + 1, sizeof *s->seen);
	s->fate = calloc(pages + 1, sizeof *s->fate);
	s->times = calloc(pages + 1, sizeof *s->times);
	s->in_run = calloc(pages + 1, sizeof *s->in_run);
	s->hidden = calloc(pages + 1, sizeof *s->hidden);
	s->regions = calloc(HOTLIST_REGIONS_MAX, sizeof *s->regions);
	return s->seen && s->fate && s->times && s->in_run && s->hidden && s->regions ? 0 : -ENOMEM;
}

static void close_scratch(struct scratch *s)
{
	free(s->seen);
	free(s->fate);
	free(s->times);
	free(s->in_run);
	free(s->hidden);
	free(s->regions);
}

static struct sight look(const struct merge *merge, enum merge_saw saw, struct scratch *s)
{
	const struct merge_input *old = &merge->inputs[OLD], *run = &merge->inputs[RUN];
	struct sight sight = { .regions = s->regions, .region_count = HOTLIST_REGIONS_MAX, .hidden = s->hidden };
	bool present = false;

	sight.until_ns = reach(merge, s->in_run, s->times);
	for (size_t i = 0; i < run->list->count; i++)
		present |= was_present(run->list, i);
	if (saw == MERGE_SAW_ALL) {
		sight.everything = true;
	} else if (saw == MERGE_SAW_AUTO && !lost_much(run)) {
		find_seen_regions(run->list, s->regions, HOTLIST_REGIONS_MAX);
		find_hidden(merge, run->list, s->hidden);
		sight.everything = !present && has_half(old, s->in_run);
	}
	return sight;
}

static bool sees_any(const struct sight *sight)
{
	bool any = sight->everything;

	for (size_t i = 0; i < sight->region_count; i++)
		any |= sight->regions[i];
	return any;
}

static int refresh_with(struct merge *merge, enum merge_saw saw, struct scratch *s, struct merge_result *ret)
{
	struct merge_input *old = &merge->inputs[OLD], *run = &merge->inputs[RUN];
	const struct refresh refresh = { .fate = s->fate, .seen = s->seen };

	for (size_t i = 0; i < run->count; i++)
		s->in_run[run->pages[i]] = true;
	merge->runs = MERGE_FRESH_RUNS;
	old->weight = (double)(MERGE_FRESH_RUNS - MERGE_NEW_RUNS) / old->runs;
	run->weight = (double)MERGE_NEW_RUNS / run->runs;

	struct sight sight = look(merge, saw, s);
	judge_pages(merge, s->in_run, &sight, s->fate, s->seen);
	int r = merge_opened(merge, &refresh, ret);
	if (r >= 0)
		ret->complete = sees_any(&sight);
	return r;
}

static int refresh_opened(struct merge *merge, enum merge_saw saw, struct merge_result *ret)
{
	struct scratch scratch = { .seen = NULL };
	int r = open_scratch(&scratch, merge->index.count);

	if (r >= 0)
		r = refresh_with(merge, saw, &scratch, ret);
	close_scratch(&scratch);
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
	_cleanup_hotlist_ struct hotlist *kept = cut(run, old);
	if (!kept)
		return no_memory(err);
	r = merge_open(&merge, (const struct hotlist *const[]){ old, kept }, names, BOTH);
	if (r >= 0)
		r = refresh_opened(&merge, saw, ret);
	merge_close(&merge);
	return r < 0 ? no_memory(err) : 0;
}
