/*
 * Lists of several runs made into one: a vote on which clock is right, the pages' order by it, and how sure we are of each page.
 * docs/observation.md gives the reasons for the thresholds. Thread-safe as long as the inputs don't change.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "hotlist/hotlist.h"

/* A page stands in its place if at least one run in MERGE_TAIL_RUNS touched it; else at the list's end. */
#define MERGE_TAIL_RUNS 3
/* It leaves the list if no more than one run in MERGE_LEAVE_RUNS touched it. */
#define MERGE_LEAVE_RUNS 8
/* A list that is kept fresh counts for so many runs, the newest one for so many of them: what is older fades. */
#define MERGE_FRESH_RUNS 8
#define MERGE_NEW_RUNS	 3

/* Agreements that differ by less are close: a run's own evidence may overrule them. */
#define MERGE_CLOSE 0.01
/* Closer ones count still where one clock's disagreement (1 - agreement) is so many times the other's; this much of both is noise. */
#define MERGE_CLEAR 3
#define MERGE_NOISE 2e-6
/*
 * Runs that stall at the same pages agree under raw time though it is wrong, and corrected time, which is estimated, differs by this much between runs though it is
 * right: for raw time to count below that, the other disagreement has to be so many times its own.
 */
#define MERGE_CORRECTED_NOISE 5e-4
#define MERGE_CLEAR_RAW	      6

/* Runs whose own evidence (merge_vote.independence) is at least this don't wait for themselves, ... */
#define MERGE_INDEPENDENT_FROM 0.3
/* ... and outside of these it is beyond doubt. */
#define MERGE_SURELY_WAITING	 0.25
#define MERGE_SURELY_INDEPENDENT 0.45

/* Why a clock was taken. */
enum merge_reason {
	MERGE_ONE_CLOCK, /* the inputs know no more than one, or both make the same order */
	MERGE_AGREEMENT, /* the runs agree more under it */
	MERGE_EVIDENCE, /* the runs agree about as much under both, or there is one only: what runs show by themselves decided */
	MERGE_TIED, /* nothing spoke for either: raw */
};

struct merge_vote {
	enum hot_clock clock; /* that won */
	enum merge_reason reason;
	size_t pairs; /* of runs that were compared */
	/* Mean pairwise rank correlation of the runs by each clock; 0 without pairs. */
	double agreement_raw, agreement_corrected;
	/* What runs showed by themselves: 0 they wait for each other (raw is right), 1 they don't (corrected is). Negative: nothing. */
	double independence;
};

struct merge_result {
	struct hotlist *list;
	struct merge_vote vote;
	uint32_t runs;
	size_t placed, tail; /* pages of the list in their places, and at its end as they are rare */
	size_t dropped;	     /* pages of the inputs that are not in it */
	bool complete; /* merge_refresh: the run was taken to have seen touches of prefetched pages, so that those that it lacks have sunk */
};

/*
 * COUNT lists (at least one) become one; each may be merged itself. NAMES are for errors. A list without times takes part with its order, and
 * one in order of address (HPL1) as a set of pages. What is of another template, or has other regions: -EINVAL with code "other_template" or
 * "other_regions". -ENOMEM. The caller frees RET->list.
 */
int merge_lists(const struct hotlist *const *lists, const char *const *names, size_t count, struct merge_result *ret,
		struct error *err);

/* Whether a run saw touches of pages that were there already. That it lacks a page says nothing of the page otherwise. */
enum merge_saw {
	/*
	 * By what it names. In each region of which it names such a page it did, but for pages around one that was read: memory that is shared is mapped so.
	 * If there are none at all, it did if it has half of the old list's pages.
	 */
	MERGE_SAW_AUTO,
	MERGE_SAW_ALL,	  /* all of them, as under KVM */
	MERGE_SAW_DEMAND, /* demand faults alone */
};

/*
 * A list in use and a run of a fork that had it prefetched: unused pages sink and leave, after 5 runs at most; new ones enter in their places. RUN counts as one
 * run, whatever it was made of. Errors as above. NAMES: of OLD and of RUN.
 */
int merge_refresh(const struct hotlist *old, const struct hotlist *run, enum merge_saw saw, const char *const names[2],
		  struct merge_result *ret, struct error *err);
