/* Which clock the runs agree under. True order repeats from run to run, and stalls don't. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "hotlist/merge_internal.h"

/* Two runs with fewer pages in common say nothing of their order. */
#define COMMON_MIN 16

struct tally {
	double weight, sum[CLOCKS];
};

/* Scratch by page, for comparing two inputs without a sort. */
struct scratch {
	uint32_t *in_a; /* A's number + 1 where A has the page */
	uint32_t *rank;
};

/* Spearman over the pages of both. COMMON is how many. */
static double correlate(const struct merge_input *a, const struct merge_input *b, uint32_t mark, int clock,
			struct scratch *scratch, size_t *ret_common)
{
	size_t rank_a = 0, rank_b = 0;
	double squares = 0;

	for (size_t i = 0; i < b->count; i++)
		if (scratch->in_a[b->order[clock][i]] == mark)
			scratch->rank[b->order[clock][i]] = (uint32_t)rank_b++;
		else
			scratch->rank[b->order[clock][i]] = UINT32_MAX;
	*ret_common = rank_b;
	if (rank_b < 2)
		return 0;
	for (size_t i = 0; i < a->count; i++) {
		uint32_t rank = scratch->rank[a->order[clock][i]];

		if (rank == UINT32_MAX)
			continue;
		double d = (double)rank_a++ - (double)rank;
		squares += d * d;
	}
	double n = (double)rank_b;
	return 1 - 6 * squares / (n * (n * n - 1));
}

static void count_pair(const struct merge *merge, size_t i, size_t j, struct scratch *scratch, struct tally *tally)
{
	const struct merge_input *a = &merge->inputs[i], *b = &merge->inputs[j];
	double agreement[CLOCKS], weight = (double)a->runs * (double)b->runs;
	size_t common;

	for (int clock = 0; clock < CLOCKS; clock++)
		agreement[clock] = correlate(a, b, (uint32_t)i + 1, clock, scratch, &common);
	if (common < COMMON_MIN)
		return;
	tally->weight += weight;
	for (int clock = 0; clock < CLOCKS; clock++)
		tally->sum[clock] += weight * agreement[clock];
}

/* What an input that was merged before knows of its own runs. */
static void count_within(const struct merge_input *input, struct tally *tally)
{
	const struct hotlist_origin *origin = input->list->origin;
	double weight = (double)input->runs * ((double)input->runs - 1) / 2;

	if (input->runs < 2 || !origin || !origin->agreement_raw || !origin->agreement_corrected)
		return;
	tally->weight += weight;
	tally->sum[BY_RAW] += weight * ((double)origin->agreement_raw / 1e6 - 1);
	tally->sum[BY_CORRECTED] += weight * ((double)origin->agreement_corrected / 1e6 - 1);
}

static int count_all(const struct merge *merge, struct tally *tally)
{
	size_t pages = merge->index.count + 1;
	struct scratch scratch = { .in_a = calloc(pages, sizeof *scratch.in_a),
				   .rank = malloc(pages * sizeof *scratch.rank) };
	int r = scratch.in_a && scratch.rank ? 0 : -ENOMEM;

	/* A rank is that of a page in both: of others there is none, and after each pair none is left. */
	for (size_t i = 0; r >= 0 && i < pages; i++)
		scratch.rank[i] = UINT32_MAX;
	for (size_t i = 0; r >= 0 && i < merge->input_count; i++) {
		const struct merge_input *a = &merge->inputs[i];

		count_within(a, tally);
		for (size_t k = 0; a->ordered && k < a->count; k++)
			scratch.in_a[a->pages[k]] = (uint32_t)i + 1;
		for (size_t j = i + 1; a->ordered && j < merge->input_count; j++) {
			const struct merge_input *b = &merge->inputs[j];

			if (!b->ordered)
				continue;
			count_pair(merge, i, j, &scratch, tally);
			for (size_t k = 0; k < b->count; k++)
				scratch.rank[b->pages[k]] = UINT32_MAX;
		}
	}
	free(scratch.in_a);
	free(scratch.rank);
	return r;
}

/* Mean of what the runs show by themselves; negative: nothing. */
static double mean_independence(const struct merge *merge)
{
	double weight = 0, sum = 0;

	for (size_t i = 0; i < merge->input_count; i++) {
		const struct merge_input *input = &merge->inputs[i];
		const struct hotlist_origin *origin = input->list->origin;

		if (!origin || !origin->agreement_raw || !origin->agreement_corrected)
			continue;
		double raw = (double)origin->agreement_raw / 1e6 - 1;
		double corrected = (double)origin->agreement_corrected / 1e6 - 1;
		if (input->runs == 1) {
			weight += 1;
			sum += corrected;
		} else if (origin->clock == HOT_CLOCK_CORRECTED && corrected <= raw) {
			/* Only its own runs' evidence can have decided so. */
			weight += input->runs;
			sum += input->runs;
		}
	}
	return weight > 0 ? sum / weight : -1;
}

static bool one_clock(const struct merge *merge)
{
	for (size_t i = 0; i < merge->input_count; i++)
		if (merge->inputs[i].order[BY_RAW] != merge->inputs[i].order[BY_CORRECTED])
			return false;
	return true;
}

static bool any_timed(const struct merge *merge)
{
	for (size_t i = 0; i < merge->input_count; i++)
		if (merge->inputs[i].timed)
			return true;
	return false;
}

/* The clock that the runs agree under, UNKNOWN where it makes no difference that counts. */
static enum hot_clock agreed_clock(const struct merge_vote *vote)
{
	double raw = 1 - vote->agreement_raw + MERGE_NOISE, corrected = 1 - vote->agreement_corrected + MERGE_NOISE;

	if (vote->pairs && raw >= MERGE_CLEAR * corrected)
		return HOT_CLOCK_CORRECTED;
	if (vote->pairs && corrected >= (corrected - raw < MERGE_CORRECTED_NOISE ? MERGE_CLEAR_RAW : MERGE_CLEAR) * raw)
		return HOT_CLOCK_RAW;
	if (!vote->pairs || fabs(raw - corrected) < MERGE_CLOSE)
		return HOT_CLOCK_UNKNOWN;
	return raw > corrected ? HOT_CLOCK_CORRECTED : HOT_CLOCK_RAW;
}

static void decide(const struct merge *merge, struct merge_vote *vote)
{
	enum hot_clock agreed = agreed_clock(vote);
	enum hot_clock shown = vote->independence < 0			      ? HOT_CLOCK_UNKNOWN
			       : vote->independence >= MERGE_INDEPENDENT_FROM ? HOT_CLOCK_CORRECTED
									      : HOT_CLOCK_RAW;
	bool sure = vote->independence < MERGE_SURELY_WAITING || vote->independence >= MERGE_SURELY_INDEPENDENT;

	if (one_clock(merge)) {
		vote->clock = any_timed(merge) ? HOT_CLOCK_RAW : HOT_CLOCK_UNKNOWN;
		vote->reason = MERGE_ONE_CLOCK;
	} else if (shown && shown != agreed && (!agreed || sure)) {
		vote->clock = shown;
		vote->reason = MERGE_EVIDENCE;
	} else if (agreed) {
		vote->clock = agreed;
		vote->reason = MERGE_AGREEMENT;
	} else {
		vote->clock = HOT_CLOCK_RAW;
		vote->reason = MERGE_TIED;
	}
}

int merge_take_vote(const struct merge *merge, struct merge_vote *ret)
{
	struct merge_vote vote = { .independence = mean_independence(merge) };
	struct tally tally = { .weight = 0 };

	if (count_all(merge, &tally) < 0)
		return -ENOMEM;
	if (tally.weight > 0) {
		vote.pairs = (size_t)tally.weight;
		vote.agreement_raw = tally.sum[BY_RAW] / tally.weight;
		vote.agreement_corrected = tally.sum[BY_CORRECTED] / tally.weight;
	}
	decide(merge, &vote);
	*ret = vote;
	return 0;
}
