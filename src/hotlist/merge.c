#include "hotlist/merge.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "hotlist/merge_internal.h"

/* ---- whether lists belong together ---- */

static bool is_bound(const struct hotlist_origin *origin)
{
	static const uint8_t unbound[sizeof origin->template_digest];

	return memcmp(origin->template_digest, unbound, sizeof unbound) != 0;
}

static bool differs(uint64_t a, uint64_t b)
{
	return a && b && a != b;
}

static bool other_template(const struct hotlist_origin *a, const struct hotlist_origin *b)
{
	return differs(a->template_size, b->template_size) ||
	       (is_bound(a) && is_bound(b) &&
		memcmp(a->template_digest, b->template_digest, sizeof a->template_digest) != 0);
}

static bool other_regions(const struct hotlist_origin *a, const struct hotlist_origin *b)
{
	if (!a->region_count || !b->region_count)
		return false;
	if (a->region_count != b->region_count)
		return true;
	for (size_t i = 0; i < a->region_count; i++)
		if (a->regions[i].size != b->regions[i].size || a->regions[i].offset != b->regions[i].offset ||
		    differs(a->regions[i].page_size, b->regions[i].page_size))
			return true;
	return false;
}

/* Not each with each: what isn't known of one list another one may know. */
static int check_pair(const struct hotlist *a, const struct hotlist *b, const char *name_a, const char *name_b,
		      struct error *err)
{
	if (!a->origin || !b->origin)
		return 0;
	if (other_template(a->origin, b->origin))
		return error_set(err, -EINVAL, "other_template",
				 "%s and %s are lists of different templates, which have nothing in common: merge lists of one template",
				 name_a, name_b);
	if (other_regions(a->origin, b->origin))
		return error_set(err, -EINVAL, "other_regions",
				 "%s and %s come from forks with different memory regions, so that their pages don't mean the same: "
				 "merge lists of forks with the same regions",
				 name_a, name_b);
	return 0;
}

/* A list that does not know its regions must fit those of the others. */
static int check_fits(const struct hotlist *list, const struct hotlist *other, const char *name, const char *name_other,
		      struct error *err)
{
	const struct hotlist_origin *origin = other->origin;

	if (!origin || !origin->region_count || (list->origin && list->origin->region_count))
		return 0;
	_cleanup_free_ struct hotlist_region *regions = calloc(origin->region_count, sizeof *regions);
	if (!regions)
		return error_set(err, -ENOMEM, "no_memory", "out of memory");
	for (size_t i = 0; i < origin->region_count; i++)
		regions[i] = (struct hotlist_region){ origin->regions[i].size, origin->regions[i].page_size };
	if (hotlist_check(list, regions, origin->region_count, err) < 0)
		return error_prefix(err, -EINVAL, "%s does not fit the regions of %s: ", name, name_other);
	return 0;
}

int merge_check(const struct hotlist *const *lists, const char *const *names, size_t count, struct error *err)
{
	int r = 0;

	for (size_t i = 0; r >= 0 && i < count; i++)
		for (size_t j = 0; r >= 0 && j < count; j++) {
			if (i < j)
				r = check_pair(lists[i], lists[j], names[i], names[j], err);
			if (r >= 0 && i != j)
				r = check_fits(lists[i], lists[j], names[i], names[j], err);
		}
	return r;
}

/* ---- what is known of the merged list ---- */

static uint32_t encode_agreement(double agreement)
{
	double millionths = (agreement + 1) * 1e6;

	return millionths < 1 ? 1 : (uint32_t)lround(millionths); /* 0: not known */
}

static void add_origin(struct hotlist_origin *sum, const struct hotlist_origin *origin, bool first)
{
	if (!sum->page_size || (origin->page_size && origin->page_size < sum->page_size))
		sum->page_size = origin->page_size;
	if (!sum->region_count) {
		sum->regions = origin->regions;
		sum->region_count = origin->region_count;
	}
	if (!sum->template_size)
		sum->template_size = origin->template_size;
	if (!is_bound(sum))
		memcpy(sum->template_digest, origin->template_digest, sizeof sum->template_digest);
	if (__builtin_add_overflow(sum->events_lost, origin->events_lost, &sum->events_lost))
		sum->events_lost = UINT64_MAX;
	if (origin->window_ns > sum->window_ns)
		sum->window_ns = origin->window_ns;
	if (first)
		sum->window_end = origin->window_end;
	else if (sum->window_end != origin->window_end)
		sum->window_end = HOT_WINDOW_UNKNOWN;
	if (first)
		memcpy(sum->tier, origin->tier, sizeof sum->tier);
	else if (strncmp(sum->tier, origin->tier, sizeof sum->tier) != 0)
		strcpy(sum->tier, "mixed");
}

static int set_origin(struct hotlist *list, const struct merge *merge, const struct merge_vote *vote)
{
	struct hotlist_origin sum = { .runs = merge->runs, .clock = vote->clock };
	const struct hotlist_origin *only = merge->inputs[0].list->origin;
	bool first = true;

	for (size_t i = 0; i < merge->input_count; i++)
		if (merge->inputs[i].list->origin) {
			add_origin(&sum, merge->inputs[i].list->origin, first);
			first = false;
		}
	if (vote->pairs) {
		sum.agreement_raw = encode_agreement(vote->agreement_raw);
		sum.agreement_corrected = encode_agreement(vote->agreement_corrected);
	} else if (merge->input_count == 1 && only) {
		sum.agreement_raw = only->agreement_raw;
		sum.agreement_corrected = only->agreement_corrected;
	}
	return hotlist_set_origin(list, &sum);
}

/* ---- each page ---- */

/* What the inputs say of pages, by number. */
struct knowledge {
	uint32_t *seen;
	uint32_t *present; /* of those, how often it was there already */
	uint16_t *vcpu;
	uint8_t *kind;
	uint32_t *vcpu_votes, *kind_votes;
};

static void free_knowledge(struct knowledge *k)
{
	free(k->seen);
	free(k->present);
	free(k->vcpu);
	free(k->kind);
	free(k->vcpu_votes);
	free(k->kind_votes);
}

static int new_knowledge(struct knowledge *k, size_t pages)
{
	k->seen = calloc(pages + 1, sizeof *k->seen);
	k->present = calloc(pages + 1, sizeof *k->present);
	k->vcpu = calloc(pages + 1, sizeof *k->vcpu);
	k->kind = calloc(pages + 1, sizeof *k->kind);
	k->vcpu_votes = calloc(pages + 1, sizeof *k->vcpu_votes);
	k->kind_votes = calloc(pages + 1, sizeof *k->kind_votes);
	if (!k->seen || !k->present || !k->vcpu || !k->kind || !k->vcpu_votes || !k->kind_votes)
		return -ENOMEM;
	for (size_t i = 0; i < pages; i++)
		k->vcpu[i] = HOT_VCPU_UNKNOWN;
	return 0;
}

/* The majority's answer, without counting each answer: a vote for another one takes one away (Boyer and Moore). RET: whether VALUE is it now. */
static bool vote_for(bool same, uint32_t weight, uint32_t *votes)
{
	if (same) {
		*votes += weight;
		return true;
	}
	if (*votes >= weight) {
		*votes -= weight;
		return false;
	}
	*votes = weight - *votes;
	return true;
}

static void learn(struct knowledge *k, const struct merge_input *input)
{
	for (size_t i = 0; i < input->count; i++) {
		uint32_t page = input->pages[i], seen = (uint32_t)lround(merge_weight(input, i)) ?: 1;
		const struct hot_touch *touch = input->list->touches ? &input->list->touches[input->entries[i]] : NULL;

		k->seen[page] += seen;
		if (!touch)
			continue;
		k->present[page] += touch->flags & HOT_WAS_PRESENT ? seen : 0;
		if (touch->vcpu != HOT_VCPU_UNKNOWN && vote_for(touch->vcpu == k->vcpu[page], seen, &k->vcpu_votes[page]))
			k->vcpu[page] = touch->vcpu;
		if (touch->kind != HOT_UNKNOWN && vote_for(touch->kind == k->kind[page], seen, &k->kind_votes[page]))
			k->kind[page] = touch->kind;
	}
}

/* Past the end of most runs by so much of what they saw, a page is one of a run whose window was too long. */
#define END_SLACK 1.05

struct policy {
	const struct merge *merge;
	const struct merge_places *places; /* of the clock that won */
	const uint32_t *seen;		   /* by page */
	const uint8_t *fate;		   /* by page, enum merge_fate; NULL: by how often they were seen */
};

static enum merge_fate fate_of(const struct policy *policy, uint32_t page)
{
	uint64_t seen = policy->seen[page], runs = policy->merge->runs;

	if (policy->fate)
		return (enum merge_fate)policy->fate[page];
	if (!seen || seen * MERGE_LEAVE_RUNS <= runs)
		return MERGE_DROPPED;
	if (2 * seen < runs && policy->places->place[page] > policy->places->end * END_SLACK)
		return MERGE_DROPPED;
	return seen * MERGE_TAIL_RUNS < runs ? MERGE_TAIL : MERGE_PLACED;
}

static int add_page(struct hotlist *list, const struct policy *policy, const struct knowledge *k,
		    const struct merge_places *const places[CLOCKS], uint32_t page)
{
	const struct hot_page *where = &policy->merge->index.pages[page];
	double spread = policy->places->spread[page] * 1e6;
	struct hot_touch touch = {
		.raw_ns = places[BY_RAW]->time_ns[page],
		.corrected_ns = places[BY_CORRECTED]->time_ns[page],
		.seen = policy->seen[page] < policy->merge->runs ? policy->seen[page] : policy->merge->runs,
		.spread = spread < 1e6 ? (uint32_t)lround(spread) : 1000000,
		.vcpu = k->vcpu[page],
		.kind = k->kind[page],
		.flags = 2 * k->present[page] > k->seen[page] ? HOT_WAS_PRESENT : 0,
	};

	return hotlist_add_touch(list, where->region, where->offset, &touch);
}

static int build_list(const struct policy *policy, const struct knowledge *k,
		      const struct merge_places *const places[CLOCKS], struct merge_result *result)
{
	const uint32_t *order = policy->places->order;
	int r = 0;

	for (int pass = MERGE_PLACED; pass <= MERGE_TAIL; pass++)
		for (size_t i = 0; r >= 0 && i < policy->merge->index.count; i++) {
			if (fate_of(policy, order[i]) != (enum merge_fate)pass)
				continue;
			r = add_page(result->list, policy, k, places, order[i]);
			*(pass == MERGE_PLACED ? &result->placed : &result->tail) += 1;
		}
	result->dropped = policy->merge->index.count - result->placed - result->tail;
	return r;
}

/* ---- merging ---- */

static int merge_by(const struct merge *merge, const struct refresh *refresh, struct knowledge *k,
		    struct merge_places places[CLOCKS], struct merge_result *result)
{
	if (merge_take_vote(merge, &result->vote) < 0 || new_knowledge(k, merge->index.count) < 0)
		return -ENOMEM;
	for (int clock = 0; clock < CLOCKS; clock++)
		if (merge_find_places(merge, clock, refresh != NULL, &places[clock]) < 0)
			return -ENOMEM;
	for (size_t i = 0; i < merge->input_count; i++)
		learn(k, &merge->inputs[i]);

	const struct policy policy = {
		.merge = merge,
		.places = &places[result->vote.clock == HOT_CLOCK_CORRECTED ? BY_CORRECTED : BY_RAW],
		.seen = refresh ? refresh->seen : k->seen,
		.fate = refresh ? refresh->fate : NULL,
	};
	result->list = hotlist_new();
	result->runs = merge->runs;
	if (!result->list ||
	    build_list(&policy, k, (const struct merge_places *const[]){ &places[BY_RAW], &places[BY_CORRECTED] },
		       result) < 0 ||
	    set_origin(result->list, merge, &result->vote) < 0)
		return -ENOMEM;
	result->list->format = HOTLIST_HPL2;
	return 0;
}

int merge_opened(const struct merge *merge, const struct refresh *refresh, struct merge_result *ret)
{
	struct merge_places places[CLOCKS] = { { .order = NULL } };
	struct merge_result result = { .list = NULL };
	struct knowledge knowledge = { .seen = NULL };
	int r = merge_by(merge, refresh, &knowledge, places, &result);

	for (int clock = 0; clock < CLOCKS; clock++)
		merge_places_clear(&places[clock]);
	free_knowledge(&knowledge);
	if (r < 0)
		hotlist_free(result.list);
	else
		*ret = result;
	return r;
}

static int no_memory(struct error *err)
{
	return error_set(err, -ENOMEM, "no_memory", "there is not enough memory to merge the lists");
}

int merge_lists(const struct hotlist *const *lists, const char *const *names, size_t count, struct merge_result *ret,
		struct error *err)
{
	struct merge merge = { .inputs = NULL };
	int r = merge_check(lists, names, count, err);

	if (r < 0)
		return r;
	r = merge_open(&merge, lists, names, count);
	if (r >= 0)
		r = merge_opened(&merge, NULL, ret);
	merge_close(&merge);
	return r < 0 ? no_memory(err) : 0;
}
