/* Lists against the truth: the order in which the guest really touched its pages. */
#include <errno.h>

#include "bench/order.h"
#include "hotlist/order.h"

#define TARGET_RANK  0.98
#define TARGET_BELOW 0.001

static int no_memory(struct error *err)
{
	return error_set(err, -ENOMEM, "bench_failed", "there is not enough memory for the lists");
}

struct side *order_side(struct bench_case *c, const char *id, const char *label)
{
	return case_side(c, id) ?: case_add_side(c, id, label);
}

static int add_figures(struct side *side, const struct hotlist *list, const struct hotlist *truth, struct error *err)
{
	struct order_figures figures;

	if (order_compare(list, truth, 0, &figures) < 0)
		return no_memory(err);
	side_add(side, "rank", figures.rank_correlation);
	side_add(side, "area", figures.area);
	side_add(side, "lacking", (double)figures.missing);
	side_add(side, "extra", (double)figures.unused);
	return 0;
}

static double mean_rank(struct hotlist *const *lists, unsigned count, const struct hotlist *truth)
{
	double sum = 0;

	for (unsigned i = 0; i < count; i++)
		sum += order_rank_correlation(lists[i], truth, NULL);
	return sum / count;
}

/* How far a merged list is behind the best of the orders that its runs have by themselves. */
static double below_best(const struct order_lists *lists, unsigned first, unsigned count, const struct hotlist *merged,
			 const struct hotlist *truth)
{
	const double singles[] = { mean_rank(&lists->loop[first], count, truth),
				   mean_rank(&lists->raw[first], count, truth),
				   mean_rank(&lists->corrected[first], count, truth) };
	double best = singles[0];

	for (unsigned i = 1; i < sizeof singles / sizeof *singles; i++)
		best = singles[i] > best ? singles[i] : best;
	return best - order_rank_correlation(merged, truth, NULL);
}

static int judge_each(struct bench_case *c, struct hotlist *const *lists, unsigned count, const char *id,
		      const char *label, const struct hotlist *truth, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; i < count && lists[i] && r >= 0; i++)
		r = add_figures(order_side(c, id, label), lists[i], truth, err);
	return r;
}

static void add_targets(struct bench_case *c, const char *side)
{
	case_add_limit(c, (struct limit){ .label = "rank correlation, voted",
					  .metric = "rank",
					  .side = side,
					  .target = TARGET_RANK,
					  .at_least = true });
	case_add_limit(c, (struct limit){ .label = "voted below the best single order",
					  .metric = "below_best",
					  .side = side,
					  .target = TARGET_BELOW });
}

static int judge_merged(struct bench_case *c, const struct order_lists *lists, const struct hotlist *truth,
			struct error *err)
{
	int r = 0;

	for (unsigned i = 0; i < lists->merged_count && r >= 0; i++) {
		struct side *side = order_side(c, "voted_3", "voted, of 3");

		r = add_figures(side, lists->merged[i], truth, err);
		side_add(side, "below_best", below_best(lists, i * ORDER_MERGED, ORDER_MERGED, lists->merged[i], truth));
	}
	if (r >= 0 && lists->merged_count)
		add_targets(c, "voted_3");
	if (r < 0 || !lists->all)
		return r;
	struct side *side = order_side(c, "voted_10", "voted, of 10");
	r = add_figures(side, lists->all, truth, err);
	side_add(side, "below_best", below_best(lists, 0, lists->count, lists->all, truth));
	add_targets(c, "voted_10");
	return r;
}

/* Sides in the order in which they are shown. */
int order_judge(struct order_run *run, struct bench_case *c, const struct order_lists *lists, struct error *err)
{
	bool second = run->situation->story == STORY_SECOND;
	const struct hotlist *truth = run->workload->truth[second];
	_cleanup_hotlist_ struct hotlist *sorted = order_by_address(lists->seen[0] ?: lists->loop[0]);
	int r = sorted ? 0 : no_memory(err);

	if (r >= 0 && second)
		r = judge_each(c, (struct hotlist *const[]){ lists->old }, 1, "old", "the older list", truth, err);
	if (r >= 0)
		r = judge_each(c, (struct hotlist *const[]){ sorted }, 1, "address", "by address", truth, err);
	if (r >= 0)
		r = judge_each(c, lists->loop, lists->count, "loop", second ? "fault loop, alone" : "fault loop", truth,
			       err);
	for (unsigned i = 0; second && i < lists->count && r >= 0; i++) {
		_cleanup_hotlist_ struct hotlist *list = order_append(lists->old, lists->loop[i]);

		r = list ? add_figures(order_side(c, "appended", "fault loop, added to the older list"), list, truth,
				       err)
			 : no_memory(err);
	}
	if (r >= 0)
		r = judge_each(c, lists->raw, lists->count, "raw", "kernel, raw", truth, err);
	for (unsigned i = 0; second && i < lists->count && lists->raw[i] && r >= 0; i++)
		side_add(order_side(c, "raw", "kernel, raw"), "present", (double)order_count_present(lists->raw[i]));
	if (r >= 0)
		r = judge_each(c, lists->corrected, lists->count, "corrected", "kernel, corrected", truth, err);
	if (r >= 0)
		r = judge_each(c, lists->seen, lists->count, "voted_1", "kernel, its own choice", truth, err);
	if (r >= 0)
		r = judge_merged(c, lists, truth, err);
	if (r >= 0 && lists->kept)
		r = judge_each(c, (struct hotlist *const[]){ lists->kept }, 1, "kept", "the older list, kept fresh",
			       truth, err);
	return r;
}
