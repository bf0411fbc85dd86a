/*
 * How well one list predicts another: as sets of pages, and as orders. A list's order is that of its entries; a page that is listed
 * twice counts where it stands first. Nothing here is ever NaN. Thread-safe as long as the lists don't change.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "hotlist/hotlist.h"

/*
 * Spearman's rank correlation of the places that the pages of both lists have among the pages of both: 1 the same order, 0 unrelated,
 * -1 reversed. It says nothing of pages that only one has. With fewer than two common pages there is no order to compare: 0. RET_COMMON
 * (may be NULL) is how many there are. Out of memory: 0, with no common page. O(n).
 */
double order_rank_correlation(const struct hotlist *a, const struct hotlist *b, size_t *ret_common);

/* The same for COUNT pairs of numbers, of which equal ones share their mean rank. 0 where all X or all Y are equal. O(n log n). */
double order_rank_correlation_of(const double *x, const double *y, size_t count);

/*
 * The touch curve. A guest touches the pages of TRUTH in order, one a tick; pages are supplied in PREDICTION's order at the same pace.
 * served[k] is how many of the guest's first k + 1 touches are of pages among the first k + 1 supplied: k + 1 where the prediction is
 * perfect, which is the true curve, and less where a page is late or missing or another that was not needed stands before it. The array has as
 * many numbers as TRUTH has pages; the caller frees it (NULL where TRUTH is empty). 0 or -ENOMEM.
 */
int order_touch_curve(const struct hotlist *prediction, const struct hotlist *truth, uint32_t **ret_served,
		      size_t *ret_count);

/* How a list did against the order in which a guest really touched its pages. */
struct order_figures {
	size_t predicted, touched; /* pages of the prediction and of the truth */
	size_t common;		   /* in both */
	size_t missing;		   /* touched and not predicted */
	size_t unused;		   /* predicted and not touched */
	size_t late; /* in both, and further back in the prediction than in the truth by more than the lead: at the guest's own pace, it would come late */
	double rank_correlation;
	/*
	 * Area between the true touch curve and the predicted one, of the area below the true one: 1 - sum of served[k] / sum of (k + 1).
	 * 0: each page comes just when it is needed. 1: nothing does. The right pages in random order make 1/3, reversed 1/2. An empty truth: 0.
	 */
	double area;
};

/* LEAD: how many pages the supply is ahead of the guest, for `late` alone. 0 or -ENOMEM. */
int order_compare(const struct hotlist *prediction, const struct hotlist *truth, size_t lead, struct order_figures *ret);
