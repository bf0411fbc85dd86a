/* What merge*.c share. */
#pragma once

#include "hotlist/merge.h"
#include "hotlist/page_index.h"

enum { BY_RAW, BY_CORRECTED, CLOCKS };

/* One of the lists, with its pages by number. */
struct merge_input {
	const struct hotlist *list;
	const char *name;
	uint32_t runs;
	double weight;		 /* of each of them; 1 unless a list is refreshed */
	size_t count;		 /* distinct pages */
	uint32_t *pages;	 /* their numbers, in list order */
	uint32_t *entries;	 /* where they stand in the list */
	bool timed;		 /* the list knows times */
	bool ordered;		 /* ... or has an order of its own at least; else it is a set */
	uint32_t *order[CLOCKS]; /* page numbers in the order of the clock; the same array where there is one clock only */
};

struct merge {
	struct merge_input *inputs;
	size_t input_count;
	struct page_index index; /* of all pages */
	uint32_t runs;
};

/* By page: what all inputs together say. */
struct merge_places {
	uint32_t *order; /* all pages, in the order of the clock; those of sets alone at the end, by address */
	double *place;	 /* 0 to 1 */
	double *spread;	 /* of the list's length */
	uint64_t *time_ns;
	double end; /* the place at which most runs had ended */
};

/* Fills INDEX and the inputs' arrays. -ENOMEM. */
int merge_open(struct merge *merge, const struct hotlist *const *lists, const char *const *names, size_t count);
void merge_close(struct merge *merge);

int merge_take_vote(const struct merge *merge, struct merge_vote *ret);

/* WEIGHTED_MEAN: the mean over the inputs instead of their median, which lets a new run move what many old ones said. */
int merge_find_places(const struct merge *merge, int clock, bool weighted_mean, struct merge_places *ret);
void merge_places_clear(struct merge_places *places);

/* What becomes of a page. */
enum merge_fate { MERGE_PLACED, MERGE_TAIL, MERGE_DROPPED };

/* What merge_refresh wants to be otherwise, by page. */
struct refresh {
	const uint8_t *fate;  /* enum merge_fate */
	const uint32_t *seen; /* instead of the sum over the inputs */
};

/* Whether the lists may be merged at all. -EINVAL or -ENOMEM with ERR. */
int merge_check(const struct hotlist *const *lists, const char *const *names, size_t count, struct error *err);
/* What is left to do once MERGE is open; REFRESH may be NULL. -ENOMEM. */
int merge_opened(const struct merge *merge, const struct refresh *refresh, struct merge_result *ret);

static inline uint64_t merge_time(const struct hot_touch *touch, int clock)
{
	/* Who recorded no corrected time has none that differs. */
	return clock == BY_CORRECTED && touch->corrected_ns ? touch->corrected_ns : touch->raw_ns;
}

static inline uint32_t merge_seen(const struct merge_input *input, size_t i)
{
	const struct hotlist *list = input->list;
	uint32_t seen = list->touches ? list->touches[input->entries[i]].seen : 0;

	return seen && seen < input->runs ? seen : input->runs;
}

/* How much what the input says of that page counts: its runs that touched it. */
static inline double merge_weight(const struct merge_input *input, size_t i)
{
	return merge_seen(input, i) * input->weight;
}
