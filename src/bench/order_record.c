/* Recording a case's forks, and making lists of the recordings. */
#include <errno.h>
#include <stdio.h>

#include "bench/order.h"
#include "hotlist/merge.h"

void order_lists_clear(struct order_lists *lists)
{
	for (unsigned i = 0; i < ORDER_RUNS_MANY; i++) {
		hotlist_free(lists->loop[i]);
		hotlist_free(lists->seen[i]);
		hotlist_free(lists->raw[i]);
		hotlist_free(lists->corrected[i]);
	}
	for (unsigned i = 0; i < ORDER_RUNS_MANY / ORDER_MERGED; i++)
		hotlist_free(lists->merged[i]);
	hotlist_free(lists->all);
	hotlist_free(lists->old);
	hotlist_free(lists->kept);
}

static int no_memory(struct error *err)
{
	return error_set(err, -ENOMEM, "bench_failed", "there is not enough memory for the lists");
}

int order_save(struct order_run *run, const struct hotlist *list, char ret_path[static 400], struct error *err)
{
	snprintf(ret_path, 400, "%s/list", run->bench->dir);
	return hotlist_save(list, HOTLIST_HPL2, ret_path, err);
}

/* ---- recording ---- */

static int record(struct order_run *run, unsigned trace, const char *hot_list, struct hotlist **ret_loop,
		  struct hotlist **ret_seen, struct error *err)
{
	struct order_visit visit = { .trace = trace, .hot_list = hot_list, .kernel = true };
	int r = order_visit(run, &visit, err);

	if (r >= 0) {
		*ret_loop = TAKE_PTR(visit.loop);
		*ret_seen = TAKE_PTR(visit.seen);
	}
	order_visit_clear(&visit);
	return r;
}

/* The list that the second generation has prefetched. */
static int make_old(struct order_run *run, struct order_lists *lists, char ret_path[static 400], struct error *err)
{
	struct hotlist *loop[ORDER_MERGED] = { 0 }, *seen[ORDER_MERGED] = { 0 };
	char vote[120];
	int r = 0;

	for (unsigned i = 0; i < ORDER_MERGED && r >= 0; i++)
		r = record(run, 0, NULL, &loop[i], &seen[i], err);
	if (r >= 0)
		r = order_merge(run->unobserved ? loop : seen, ORDER_MERGED, &lists->old, vote, err);
	for (unsigned i = 0; i < ORDER_MERGED; i++) {
		hotlist_free(loop[i]);
		hotlist_free(seen[i]);
	}
	return r < 0 ? r : order_save(run, lists->old, ret_path, err);
}

int order_record(struct order_run *run, unsigned runs, struct order_lists *lists, struct error *err)
{
	bool second = run->situation->story == STORY_SECOND;
	char path[400];
	int r = second ? make_old(run, lists, path, err) : 0;

	for (; lists->count < runs && r >= 0; lists->count++) {
		unsigned i = lists->count;

		bench_show_progress(run->bench, "order: %s, %s: recording %u of %u", run->situation->id,
				    run->workload->name, i + 1, runs);
		r = record(run, second, second ? path : NULL, &lists->loop[i], &lists->seen[i], err);
		if (r < 0 || run->unobserved)
			continue;
		lists->raw[i] = order_by_clock(lists->seen[i], HOT_CLOCK_RAW);
		lists->corrected[i] = order_by_clock(lists->seen[i], HOT_CLOCK_CORRECTED);
		if (!lists->raw[i] || !lists->corrected[i])
			r = no_memory(err);
	}
	return r;
}

static int keep_fresh(struct order_lists *lists, struct error *err)
{
	static const char *const names[2] = { "the old list", "a recording" };
	int r = 0;

	for (unsigned i = 0; i < ORDER_MERGED && i < lists->count && r >= 0; i++) {
		struct merge_result result = { 0 };

		r = merge_refresh(lists->kept ?: lists->old, lists->seen[i], MERGE_SAW_ALL, names, &result, err);
		if (r < 0)
			break;
		hotlist_free(lists->kept);
		lists->kept = result.list;
	}
	return r;
}

int order_merge_all(struct order_run *run, struct order_lists *lists, struct bench_case *c, struct error *err)
{
	char vote[120] = "";
	int r = 0;

	if (run->unobserved) {
		snprintf(c->details, sizeof c->details, "the kernel's orders are missing: nothing observes it here");
		return 0;
	}
	for (unsigned i = 0; i + ORDER_MERGED <= lists->count && r >= 0; i += ORDER_MERGED)
		r = order_merge(&lists->seen[i], ORDER_MERGED, &lists->merged[lists->merged_count++], vote, err);
	if (r >= 0 && lists->count == ORDER_RUNS_MANY)
		r = order_merge(lists->seen, lists->count, &lists->all, vote, err);
	if (r >= 0 && lists->old)
		r = keep_fresh(lists, err);
	snprintf(c->details, sizeof c->details, "%u recordings; the vote: %s", lists->count, vote);
	return r;
}
