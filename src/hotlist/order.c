#include "hotlist/order.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "hotlist/page_index.h"

/* Two lists on common ground: the place in B of each page of A, in A's order, and both without duplicates. */
struct places {
	struct page_index a, b;
	uint32_t *in_b; /* by place in A; PAGE_INDEX_NONE: B does not have it */
	size_t common;
};

static void places_clear(struct places *places)
{
	page_index_clear(&places->a);
	page_index_clear(&places->b);
	free(places->in_b);
}

static int places_fill(struct places *places, const struct hotlist *a, const struct hotlist *b)
{
	if (page_index_add_list(&places->a, a) < 0 || page_index_add_list(&places->b, b) < 0)
		return -ENOMEM;
	places->in_b = malloc((places->a.count ?: 1) * sizeof *places->in_b);
	if (!places->in_b)
		return -ENOMEM;
	for (size_t i = 0; i < places->a.count; i++) {
		const struct hot_page *page = &places->a.pages[i];

		places->in_b[i] = page_index_find(&places->b, page->region, page->offset);
		places->common += places->in_b[i] != PAGE_INDEX_NONE;
	}
	return 0;
}

/* Spearman for two orders without ties: 1 - 6 * sum of d^2 / (n^3 - n). Sums of 40 million squares fit a double to more digits than anybody reads. */
static int correlation_of_places(const struct places *places, double *ret)
{
	size_t n = places->common, rank_a = 0, rank_b = 0;
	double squares = 0;

	if (n < 2) {
		*ret = 0;
		return 0;
	}
	uint32_t *ranks = calloc(places->b.count, sizeof *ranks);
	if (!ranks)
		return -ENOMEM;
	for (size_t i = 0; i < places->a.count; i++)
		if (places->in_b[i] != PAGE_INDEX_NONE)
			ranks[places->in_b[i]] = 1;
	for (size_t i = 0; i < places->b.count; i++)
		if (ranks[i])
			ranks[i] = (uint32_t)rank_b++;
	for (size_t i = 0; i < places->a.count; i++)
		if (places->in_b[i] != PAGE_INDEX_NONE) {
			double d = (double)rank_a++ - (double)ranks[places->in_b[i]];
			squares += d * d;
		}
	free(ranks);
	*ret = 1 - 6 * squares / ((double)n * ((double)n * (double)n - 1));
	return 0;
}

double order_rank_correlation(const struct hotlist *a, const struct hotlist *b, size_t *ret_common)
{
	_cleanup_(places_clear) struct places places = { .common = 0 };
	double correlation = 0;
	size_t common = 0;

	if (places_fill(&places, a, b) == 0 && correlation_of_places(&places, &correlation) == 0)
		common = places.common;
	if (ret_common)
		*ret_common = common;
	return correlation;
}

/* ---- numbers with ties ---- */

struct ranked {
	double value;
	size_t index;
};

static int compare_ranked(const void *a, const void *b)
{
	const struct ranked *x = a, *y = b;

	return (x->value > y->value) - (x->value < y->value);
}

/* Ranks from 0, less their mean; equal values share the mean of their ranks. NULL: out of memory. */
static double *centred_ranks(const double *values, size_t count)
{
	_cleanup_free_ struct ranked *sorted = calloc(count, sizeof *sorted);
	double *ranks = calloc(count, sizeof *ranks);

	if (!sorted || !ranks) {
		free(ranks);
		return NULL;
	}
	for (size_t i = 0; i < count; i++)
		sorted[i] = (struct ranked){ isnan(values[i]) ? INFINITY : values[i], i };
	qsort(sorted, count, sizeof *sorted, compare_ranked);
	for (size_t i = 0, j; i < count; i = j) {
		for (j = i + 1; j < count && sorted[j].value <= sorted[i].value; j++)
			;
		for (size_t k = i; k < j; k++)
			ranks[sorted[k].index] = ((double)i + (double)j - 1) / 2 - ((double)count - 1) / 2;
	}
	return ranks;
}

double order_rank_correlation_of(const double *x, const double *y, size_t count)
{
	double products = 0, squares_x = 0, squares_y = 0;

	if (count < 2)
		return 0;
	_cleanup_free_ double *ranks_x = centred_ranks(x, count);
	_cleanup_free_ double *ranks_y = centred_ranks(y, count);
	if (!ranks_x || !ranks_y)
		return 0;
	for (size_t i = 0; i < count; i++) {
		products += ranks_x[i] * ranks_y[i];
		squares_x += ranks_x[i] * ranks_x[i];
		squares_y += ranks_y[i] * ranks_y[i];
	}
	return squares_x > 0 && squares_y > 0 ? products / sqrt(squares_x) / sqrt(squares_y) : 0;
}

/* ---- the touch curve ---- */

/* PLACES: truth as A, prediction as B. */
static int curve_of_places(const struct places *places, uint32_t **ret)
{
	size_t n = places->a.count;
	uint32_t *served = calloc(n ?: 1, sizeof *served);

	if (!served)
		return -ENOMEM;
	/* A page that is touched as number t and supplied as number p counts from max(t, p) on. */
	for (size_t t = 0; t < n; t++) {
		size_t p = places->in_b[t];

		if (p != PAGE_INDEX_NONE && (p > t ? p : t) < n)
			served[p > t ? p : t]++;
	}
	for (size_t k = 1; k < n; k++)
		served[k] += served[k - 1];
	*ret = served;
	return 0;
}

int order_touch_curve(const struct hotlist *prediction, const struct hotlist *truth, uint32_t **ret_served,
		      size_t *ret_count)
{
	_cleanup_(places_clear) struct places places = { .common = 0 };
	uint32_t *served;

	if (places_fill(&places, truth, prediction) < 0 || curve_of_places(&places, &served) < 0)
		return -ENOMEM;
	if (!places.a.count) {
		free(served);
		served = NULL;
	}
	*ret_served = served;
	*ret_count = places.a.count;
	return 0;
}

static double area_of(const uint32_t *served, size_t count)
{
	double sum = 0;

	if (!count)
		return 0;
	for (size_t k = 0; k < count; k++)
		sum += served[k];
	return 1 - sum / ((double)count * ((double)count + 1) / 2);
}

int order_compare(const struct hotlist *prediction, const struct hotlist *truth, size_t lead, struct order_figures *ret)
{
	_cleanup_(places_clear) struct places places = { .common = 0 };
	_cleanup_free_ uint32_t *served = NULL;
	struct order_figures figures;

	if (places_fill(&places, truth, prediction) < 0 || curve_of_places(&places, &served) < 0)
		return -ENOMEM;
	figures = (struct order_figures){
		.predicted = places.b.count,
		.touched = places.a.count,
		.common = places.common,
		.missing = places.a.count - places.common,
		.unused = places.b.count - places.common,
		.area = area_of(served, places.a.count),
	};
	for (size_t t = 0; t < places.a.count; t++)
		figures.late += places.in_b[t] != PAGE_INDEX_NONE && places.in_b[t] > t && places.in_b[t] - t > lead;
	if (correlation_of_places(&places, &figures.rank_correlation) < 0)
		return -ENOMEM;
	*ret = figures;
	return 0;
}
