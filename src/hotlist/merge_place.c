/*
 * Where pages stand by one clock when several lists are made one. Each list's order is laid along a common scale first, as lists differ in
 * what they saw: one ended early, one saw misses only. The k-th of the pages that a list shares with the scale gets the place of the k-th of them
 * there; what lies between two of them comes between their places. Lists with the same pages are left as they are by that.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "hotlist/merge_internal.h"

/* With fewer pages in common a list is laid along the scale by time, or from end to end. */
#define ANCHORS_MIN 16

struct opinion {
	double value, weight;
};

struct scale {
	const uint32_t *order; /* page numbers */
	size_t count;
	double *place;			/* by page; NAN: not on it */
	const struct merge_input *from; /* whose order it is, or NULL */
};

struct placing {
	const struct merge *merge;
	int clock;
	bool mean;
	size_t pages;
	size_t *first;		       /* by page, and one more: where its opinions begin */
	size_t *filled;		       /* by page: how many there are so far */
	struct opinion *opinions;      /* of all inputs about all pages */
	double *value;		       /* by page: what they come to */
	double *anchors_x, *anchors_y; /* scratch */
	uint8_t *mark;		       /* scratch, by page */
	double *ends;		       /* by input: the place of its last page */
};

static int compare_opinions(const void *a, const void *b)
{
	const struct opinion *x = a, *y = b;

	return (x->value > y->value) - (x->value < y->value);
}

/* Sorts OPINIONS. NAN: there are none. */
static double weighted_median(struct opinion *opinions, size_t count)
{
	double all = 0, below = 0;

	qsort(opinions, count, sizeof *opinions, compare_opinions);
	for (size_t i = 0; i < count; i++)
		all += opinions[i].weight;
	for (size_t i = 0; i < count; i++) {
		below += opinions[i].weight;
		if (2 * below > all)
			return opinions[i].value;
		if (2 * below >= all && i + 1 < count)
			return (opinions[i].value + opinions[i + 1].value) / 2;
	}
	return count ? opinions[count - 1].value : NAN;
}

static double weighted_mean(const struct opinion *opinions, size_t count)
{
	double all = 0, sum = 0;

	for (size_t i = 0; i < count; i++) {
		all += opinions[i].weight;
		sum += opinions[i].weight * opinions[i].value;
	}
	return all > 0 ? sum / all : NAN;
}

/* ---- one list along the scale ---- */

/* RET_X: ranks in the input, RET_Y: places on the scale, each in its own order, of the pages of both. */
static size_t find_anchors(struct placing *p, const struct merge_input *input, const struct scale *scale)
{
	const uint32_t *order = input->order[p->clock];
	size_t x = 0, y = 0;

	for (size_t i = 0; i < input->count; i++) {
		p->mark[order[i]] = 1;
		if (!isnan(scale->place[order[i]]))
			p->anchors_x[x++] = (double)i;
	}
	for (size_t i = 0; i < scale->count; i++)
		if (p->mark[scale->order[i]])
			p->anchors_y[y++] = scale->place[scale->order[i]];
	for (size_t i = 0; i < input->count; i++)
		p->mark[order[i]] = 0;
	return x;
}

/* The place of rank X between its anchors; *AT is the last anchor before, for ranks that grow. */
static double place_among_anchors(const struct placing *p, size_t anchors, double x, size_t *at)
{
	const double *xs = p->anchors_x, *ys = p->anchors_y;

	if (x <= xs[0])
		return ys[0] - (xs[0] - x) / (double)p->pages;
	if (x >= xs[anchors - 1])
		return ys[anchors - 1] + (x - xs[anchors - 1]) / (double)p->pages;
	while (xs[*at + 1] <= x)
		++*at;
	return ys[*at] + (ys[*at + 1] - ys[*at]) * (x - xs[*at]) / (xs[*at + 1] - xs[*at]);
}

static uint64_t time_of(const struct merge_input *input, const uint32_t *entry_of, uint32_t page, int clock)
{
	return merge_time(&input->list->touches[entry_of[page]], clock);
}

/* By time: as far along the scale's list as that was at the same time. */
static int place_by_time(const struct placing *p, const struct merge_input *input, const struct scale *scale,
			 double *places)
{
	_cleanup_free_ uint32_t *entry_of = calloc(p->pages + 1, sizeof *entry_of);
	_cleanup_free_ uint64_t *times = calloc(scale->count + 1, sizeof *times);
	size_t at = 0;

	if (!entry_of || !times)
		return -ENOMEM;
	for (size_t i = 0; i < scale->count; i++)
		entry_of[scale->from->pages[i]] = scale->from->entries[i];
	for (size_t i = 0; i < scale->count; i++)
		times[i] = time_of(scale->from, entry_of, scale->order[i], p->clock);
	for (size_t i = 0; i < input->count; i++)
		entry_of[input->pages[i]] = input->entries[i];
	for (size_t i = 0; i < input->count; i++) {
		uint64_t time = time_of(input, entry_of, input->order[p->clock][i], p->clock);

		while (at < scale->count && times[at] < time)
			at++;
		places[i] = (double)at / (double)scale->count;
	}
	return 0;
}

static int lay_along(struct placing *p, const struct merge_input *input, const struct scale *scale, double *places)
{
	size_t anchors = find_anchors(p, input, scale), at = 0;
	bool few = anchors < ANCHORS_MIN && anchors < input->count;

	if (few && input->timed && scale->from && scale->from->timed)
		return place_by_time(p, input, scale, places);
	for (size_t i = 0; i < input->count; i++)
		places[i] = few ? ((double)i + 0.5) / (double)input->count
				: place_among_anchors(p, anchors, (double)i, &at);
	return 0;
}

/* ---- all lists ---- */

static int hear_input(struct placing *p, size_t number, const struct scale *scale)
{
	const struct merge_input *input = &p->merge->inputs[number];
	_cleanup_free_ double *places = calloc(input->count + 1, sizeof *places);
	_cleanup_free_ double *weights = calloc(p->pages + 1, sizeof *weights);

	if (!places || !weights || lay_along(p, input, scale, places) < 0)
		return -ENOMEM;
	for (size_t i = 0; i < input->count; i++)
		weights[input->pages[i]] = merge_weight(input, i);
	for (size_t i = 0; i < input->count; i++) {
		uint32_t page = input->order[p->clock][i];

		p->opinions[p->first[page] + p->filled[page]++] = (struct opinion){ places[i], weights[page] };
	}
	p->ends[number] = input->count ? places[input->count - 1] : 0;
	return 0;
}

static int hear_all(struct placing *p, const struct scale *scale)
{
	for (size_t i = 0; i < p->pages; i++)
		p->filled[i] = 0;
	for (size_t i = 0; i < p->merge->input_count; i++)
		if (p->merge->inputs[i].ordered && hear_input(p, i, scale) < 0)
			return -ENOMEM;
	for (size_t i = 0; i < p->pages; i++)
		p->value[i] = p->mean ? weighted_mean(p->opinions + p->first[i], p->filled[i])
				      : weighted_median(p->opinions + p->first[i], p->filled[i]);
	return 0;
}

struct placed {
	double value;
	uint32_t number;
	const struct hot_page *page;
};

/* Pages without a value go by address, at the end. */
static int compare_placed(const void *a, const void *b)
{
	const struct placed *x = a, *y = b;

	if (isnan(x->value) || isnan(y->value)) {
		if (isnan(x->value) != isnan(y->value))
			return isnan(x->value) ? 1 : -1;
		if (x->page->region != y->page->region)
			return x->page->region < y->page->region ? -1 : 1;
		return (x->page->offset > y->page->offset) - (x->page->offset < y->page->offset);
	}
	if (x->value < y->value || x->value > y->value)
		return x->value < y->value ? -1 : 1;
	return (x->number > y->number) - (x->number < y->number);
}

static int sort_by_value(const struct placing *p, uint32_t *order)
{
	_cleanup_free_ struct placed *sorted = calloc(p->pages + 1, sizeof *sorted);

	if (!sorted)
		return -ENOMEM;
	for (size_t i = 0; i < p->pages; i++)
		sorted[i] = (struct placed){ p->value[i], (uint32_t)i, &p->merge->index.pages[i] };
	qsort(sorted, p->pages, sizeof *sorted, compare_placed);
	for (size_t i = 0; i < p->pages; i++)
		order[i] = sorted[i].number;
	return 0;
}

/* The list that the others are laid along at first: the longest. */
static const struct merge_input *longest(const struct merge *merge)
{
	const struct merge_input *best = NULL;

	for (size_t i = 0; i < merge->input_count; i++)
		if (merge->inputs[i].ordered && (!best || merge->inputs[i].count > best->count))
			best = &merge->inputs[i];
	return best;
}

/* Twice: along the longest list, and then along what came of that, which knows all pages. */
static int place_all(struct placing *p, struct merge_places *places)
{
	const struct merge_input *from = longest(p->merge);
	struct scale scale = { .place = places->place, .from = from };

	for (size_t i = 0; i < p->pages; i++)
		p->value[i] = scale.place[i] = NAN;
	if (!from)
		return sort_by_value(p, places->order);
	scale.order = from->order[p->clock];
	scale.count = from->count;
	for (size_t i = 0; i < scale.count; i++)
		scale.place[scale.order[i]] = ((double)i + 0.5) / (double)scale.count;
	if (hear_all(p, &scale) < 0 || sort_by_value(p, places->order) < 0)
		return -ENOMEM;

	scale = (struct scale){ .place = places->place, .order = places->order, .count = p->pages };
	for (size_t i = 0; i < p->pages; i++)
		scale.place[places->order[i]] = ((double)i + 0.5) / (double)p->pages;
	return hear_all(p, &scale) < 0 ? -ENOMEM : sort_by_value(p, places->order);
}

/* ---- how sure, and when ---- */

static void find_spread(struct placing *p, struct merge_places *places)
{
	for (size_t i = 0; i < p->pages; i++) {
		struct opinion *opinions = p->opinions + p->first[i];

		for (size_t k = 0; k < p->filled[i]; k++)
			opinions[k].value = fabs(opinions[k].value - p->value[i]);
		places->spread[i] = p->filled[i] ? weighted_median(opinions, p->filled[i]) : 0;
	}
	/* A list that was merged before has seen its own runs differ. */
	for (size_t i = 0; i < p->merge->input_count; i++) {
		const struct merge_input *input = &p->merge->inputs[i];
		double share = (double)input->runs * input->weight / (double)(p->merge->runs ?: 1);

		for (size_t k = 0; input->list->touches && k < input->count; k++)
			places->spread[input->pages[k]] += share * input->list->touches[input->entries[k]].spread / 1e6;
	}
}

static int compare_times(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/*
 * Times are medians over the runs. They are dealt out again in the order of the pages' places, so that a merged list that is merged again is
 * ordered by its times as it was by its runs.
 */
static int find_times(struct placing *p, struct merge_places *places)
{
	_cleanup_free_ uint64_t *times = calloc(p->pages + 1, sizeof *times);
	size_t count = 0, next = 0;

	if (!times)
		return -ENOMEM;
	for (size_t i = 0; i < p->pages; i++)
		p->filled[i] = 0;
	for (size_t i = 0; i < p->merge->input_count; i++) {
		const struct merge_input *input = &p->merge->inputs[i];

		for (size_t k = 0; input->timed && k < input->count; k++) {
			uint32_t page = input->pages[k];

			p->opinions[p->first[page] + p->filled[page]++] = (struct opinion){
				(double)merge_time(&input->list->touches[input->entries[k]], p->clock),
				merge_weight(input, k),
			};
		}
	}
	for (size_t i = 0; i < p->pages; i++)
		if (p->filled[i])
			times[count++] = (uint64_t)weighted_median(p->opinions + p->first[i], p->filled[i]);
	qsort(times, count, sizeof *times, compare_times);
	for (size_t i = 0; i < p->pages; i++) {
		uint32_t page = places->order[i];

		/* A page without a time of its own has that of the one before. */
		if (p->filled[page])
			places->time_ns[page] = times[next++];
		else
			places->time_ns[page] = next ? times[next - 1] : 0;
	}
	return 0;
}

static double find_end(const struct placing *p)
{
	_cleanup_free_ struct opinion *ends = calloc(p->merge->input_count + 1, sizeof *ends);
	size_t count = 0;

	for (size_t i = 0; ends && i < p->merge->input_count; i++)
		if (p->merge->inputs[i].ordered)
			ends[count++] =
				(struct opinion){ p->ends[i], p->merge->inputs[i].runs * p->merge->inputs[i].weight };
	return count ? weighted_median(ends, count) : INFINITY;
}

static int open_placing(struct placing *p)
{
	const struct merge *merge = p->merge;
	size_t all = 0;

	p->pages = merge->index.count;
	p->first = calloc(p->pages + 2, sizeof *p->first);
	p->filled = calloc(p->pages + 1, sizeof *p->filled);
	p->value = calloc(p->pages + 1, sizeof *p->value);
	p->anchors_x = calloc(p->pages + 1, sizeof *p->anchors_x);
	p->anchors_y = calloc(p->pages + 1, sizeof *p->anchors_y);
	p->mark = calloc(p->pages + 1, sizeof *p->mark);
	p->ends = calloc(merge->input_count + 1, sizeof *p->ends);
	if (!p->first || !p->filled || !p->value || !p->anchors_x || !p->anchors_y || !p->mark || !p->ends)
		return -ENOMEM;
	for (size_t i = 0; i < merge->input_count; i++) {
		all += merge->inputs[i].count;
		for (size_t k = 0; k < merge->inputs[i].count; k++)
			p->first[merge->inputs[i].pages[k] + 1]++;
	}
	for (size_t i = 0; i < p->pages; i++)
		p->first[i + 1] += p->first[i];
	p->opinions = calloc(all + 1, sizeof *p->opinions);
	return p->opinions ? 0 : -ENOMEM;
}

static void close_placing(struct placing *p)
{
	free(p->first);
	free(p->filled);
	free(p->opinions);
	free(p->value);
	free(p->anchors_x);
	free(p->anchors_y);
	free(p->mark);
	free(p->ends);
}

static int find_places(struct placing *p, struct merge_places *places)
{
	places->order = calloc(p->pages + 1, sizeof *places->order);
	places->place = calloc(p->pages + 1, sizeof *places->place);
	places->spread = calloc(p->pages + 1, sizeof *places->spread);
	places->time_ns = calloc(p->pages + 1, sizeof *places->time_ns);
	if (!places->order || !places->place || !places->spread || !places->time_ns || place_all(p, places) < 0)
		return -ENOMEM;
	places->end = find_end(p);
	find_spread(p, places);
	for (size_t i = 0; i < p->pages; i++)
		places->place[i] = p->value[i];
	return find_times(p, places);
}

int merge_find_places(const struct merge *merge, int clock, bool mean, struct merge_places *ret)
{
	struct placing p = { .merge = merge, .clock = clock, .mean = mean };
	struct merge_places places = { .order = NULL };
	int r = open_placing(&p);

	if (r >= 0)
		r = find_places(&p, &places);
	close_placing(&p);
	if (r < 0)
		merge_places_clear(&places);
	else
		*ret = places;
	return r;
}

void merge_places_clear(struct merge_places *places)
{
	free(places->order);
	free(places->place);
	free(places->spread);
	free(places->time_ns);
	*places = (struct merge_places){ .order = NULL };
}
