/* Which order is right: lists recorded by the fault loop and by the kernel against the order in which a guest really touched its pages. */
#include "bench/order.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hotlist/merge.h"
#include "hotlist/order.h"

#define STREAMS_FULL  3
#define STREAMS_QUICK 1

#define TARGET_RANK  0.98
#define TARGET_BELOW 0.001

static const char *const workloads[] = { "gcc-compile", "redis-get", "python-import" };
/* Of a quick look. */
#define WORKLOAD_QUICK 1

static const struct situation situations[] = {
	{ .id = "one",
	  .title = "one vCPU",
	  .vcpus = REPLAY_ONE,
	  .cpus = 1,
	  .runs = ORDER_RUNS_FEW,
	  .quick = true },
	{ .id = "one_uneven",
	  .title = "one vCPU, half of the pages slow",
	  .vcpus = REPLAY_ONE,
	  .cpus = 1,
	  .slow = SLOW_ODD,
	  .runs = ORDER_RUNS_FEW },
	{ .id = "one_remote",
	  .title = "one vCPU, a remote image",
	  .vcpus = REPLAY_ONE,
	  .cpus = 1,
	  .slow = SLOW_REMOTE,
	  .runs = ORDER_RUNS_FEW },
	{ .id = "free",
	  .title = "two vCPUs that don't wait for each other",
	  .vcpus = REPLAY_INDEPENDENT,
	  .runs = ORDER_RUNS_FEW },
	{ .id = "free_uneven",
	  .title = "two vCPUs that don't wait for each other, one's pages slow",
	  .vcpus = REPLAY_INDEPENDENT,
	  .slow = SLOW_ODD,
	  .runs = ORDER_RUNS_MANY,
	  .quick = true },
	{ .id = "free_cold",
	  .title = "two vCPUs that don't wait for each other, cold page cache",
	  .vcpus = REPLAY_INDEPENDENT,
	  .slow = SLOW_COLD,
	  .runs = ORDER_RUNS_FEW },
	{ .id = "spin_uneven",
	  .title = "two vCPUs that wait for each other, spinning, one's pages slow",
	  .vcpus = REPLAY_WAITING,
	  .slow = SLOW_ODD,
	  .runs = ORDER_RUNS_MANY,
	  .quick = true },
	{ .id = "halt_uneven",
	  .title = "two vCPUs that wait for each other, halted, one's pages slow",
	  .vcpus = REPLAY_HALTING,
	  .slow = SLOW_ODD,
	  .runs = ORDER_RUNS_FEW,
	  .quick = true },
	{ .id = "eight_uneven",
	  .title = "eight vCPUs that idle in between, half of the pages slow",
	  .vcpus = REPLAY_INDEPENDENT,
	  .pace = REPLAY_IDLES,
	  .spread = 8,
	  .slow = SLOW_ODD,
	  .runs = ORDER_RUNS_FEW },
	{ .id = "crowded",
	  .title = "eight vCPUs that compute, on fewer CPUs",
	  .vcpus = REPLAY_INDEPENDENT,
	  .pace = REPLAY_COMPUTES,
	  .spread = 8,
	  .runs = ORDER_RUNS_FEW },
	{ .id = "second",
	  .title = "the second generation: an older list is prefetched, and the workload has changed",
	  .vcpus = REPLAY_ONE,
	  .cpus = 1,
	  .story = STORY_SECOND,
	  .runs = ORDER_RUNS_FEW,
	  .quick = true },
	{ .id = "long_life",
	  .title = "a fork that lives on and touches much else",
	  .vcpus = REPLAY_ONE,
	  .cpus = 1,
	  .story = STORY_LONG_LIFE,
	  .runs = ORDER_RUNS_FEW },
};
#define SITUATIONS (sizeof situations / sizeof *situations)
#define WORKLOADS  (sizeof workloads / sizeof *workloads)
/* As many touches one after another are one thread's: what an interrupt handler or a system call makes. */
#define SPREAD_BURST 32

const char *bench_order_name(unsigned index)
{
	if (index < SITUATIONS)
		return situations[index].id;
	return index < SITUATIONS + WORKLOADS ? workloads[index - SITUATIONS] : NULL;
}

/* ---- what a case knows ---- */

struct lists {
	struct hotlist *loop[ORDER_RUNS_MANY], *seen[ORDER_RUNS_MANY];
	struct hotlist *raw[ORDER_RUNS_MANY], *corrected[ORDER_RUNS_MANY];
	unsigned count;
	struct hotlist *merged[ORDER_RUNS_MANY / ORDER_MERGED]; /* of ORDER_MERGED runs each, one after another */
	unsigned merged_count;
	struct hotlist *all;  /* where there are many */
	struct hotlist *old;  /* of an earlier generation */
	struct hotlist *kept; /* that one, kept fresh by what was seen since */
};

static void lists_clear(struct lists *lists)
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

static int save_list(struct order_run *run, const struct hotlist *list, char ret_path[static 400], struct error *err)
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
static int make_old(struct order_run *run, struct lists *lists, char ret_path[static 400], struct error *err)
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
	return r < 0 ? r : save_list(run, lists->old, ret_path, err);
}

static int record_all(struct order_run *run, unsigned runs, struct lists *lists, struct error *err)
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

static int keep_fresh(struct lists *lists, struct error *err)
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

static int merge_all(struct order_run *run, struct lists *lists, struct bench_case *c, struct error *err)
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

/* ---- against the truth ---- */

static struct side *side_of(struct bench_case *c, const char *id, const char *label)
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
static double below_best(const struct lists *lists, unsigned first, unsigned count, const struct hotlist *merged,
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
		r = add_figures(side_of(c, id, label), lists[i], truth, err);
	return r;
}

static void add_targets(struct bench_case *c, const char *side)
{
	case_add_limit(c, (struct limit){ .label = "rank correlation, voted", .metric = "rank", .side = side,
					  .target = TARGET_RANK, .at_least = true });
	case_add_limit(c, (struct limit){ .label = "voted below the best single order", .metric = "below_best",
					  .side = side, .target = TARGET_BELOW });
}

static int judge_merged(struct bench_case *c, const struct lists *lists, const struct hotlist *truth, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; i < lists->merged_count && r >= 0; i++) {
		struct side *side = side_of(c, "voted_3", "voted, of 3");

		r = add_figures(side, lists->merged[i], truth, err);
		side_add(side, "below_best",
			 below_best(lists, i * ORDER_MERGED, ORDER_MERGED, lists->merged[i], truth));
	}
	if (r >= 0 && lists->merged_count)
		add_targets(c, "voted_3");
	if (r < 0 || !lists->all)
		return r;
	struct side *side = side_of(c, "voted_10", "voted, of 10");
	r = add_figures(side, lists->all, truth, err);
	side_add(side, "below_best", below_best(lists, 0, lists->count, lists->all, truth));
	add_targets(c, "voted_10");
	return r;
}

/* Sides in the order in which they are shown. */
static int judge(struct order_run *run, struct bench_case *c, const struct lists *lists, struct error *err)
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

		r = list ? add_figures(side_of(c, "appended", "fault loop, added to the older list"), list, truth, err)
			 : no_memory(err);
	}
	if (r >= 0)
		r = judge_each(c, lists->raw, lists->count, "raw", "kernel, raw", truth, err);
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

/* ---- streamed to a later fork ---- */

/* The list that a side has in a round; the caller frees it. *RET is NULL for the side without one. False: there is no such side. */
static bool list_of(const struct order_run *run, const struct lists *lists, const char *id, unsigned round,
		    struct hotlist **ret)
{
	unsigned i = round % lists->count;
	const struct hotlist *list = NULL;

	*ret = NULL;
	if (!strcmp(id, "none"))
		return true;
	if (!strcmp(id, "address")) {
		*ret = order_by_address(lists->seen[i] ?: lists->loop[i]);
		return true;
	}
	if (!strcmp(id, "appended")) {
		*ret = order_append(lists->old, lists->loop[i]);
		return true;
	}
	if (!strcmp(id, "old"))
		list = lists->old;
	else if (!strcmp(id, "loop"))
		list = lists->loop[i];
	else if (!strcmp(id, "raw"))
		list = lists->raw[i];
	else if (!strcmp(id, "corrected"))
		list = lists->corrected[i];
	else if (!strcmp(id, "voted_3") && lists->merged_count)
		list = lists->all ? NULL : lists->merged[round % lists->merged_count];
	else if (!strcmp(id, "voted_10"))
		list = lists->all;
	else if (!strcmp(id, "kept"))
		list = lists->kept;
	else if (!strcmp(id, "truth"))
		list = run->workload->truth[1];
	if (!list)
		return false;
	*ret = hotlist_copy(list);
	return true;
}

static int stream_to(struct order_run *run, struct side *side, const struct hotlist *list, struct error *err)
{
	const struct hotlist *truth = run->workload->truth[1];
	struct order_visit visit = { .trace = 1 };
	char path[400];
	int r = list ? save_list(run, list, path, err) : 0;

	visit.hot_list = list ? path : NULL;
	if (r >= 0)
		r = order_visit(run, &visit, err);
	if (r >= 0 && list) {
		size_t common = order_count_common(list, truth), listed;

		if (hotlist_count_distinct(list, &listed) < 0)
			r = no_memory(err);
		side_add(side, "late", (double)order_count_common(visit.loop, list));
		side_add(side, "unused", (double)(listed - common));
		side_add(side, "missing", (double)(truth->count - common));
	}
	if (r >= 0) {
		side_add(side, "faults", (double)visit.faults);
		side_add(side, "added_ms", (double)visit.result.added_ns / 1e6);
	}
	order_visit_clear(&visit);
	return r;
}

static int stream_round(struct order_run *run, struct bench_case *c, const struct lists *lists, unsigned round,
			unsigned rounds, struct error *err)
{
	for (unsigned i = 0; i < c->side_count; i++) {
		unsigned place = (i + round) % c->side_count;
		struct side *side = &c->sides[round % 2 ? c->side_count - 1 - place : place];
		_cleanup_hotlist_ struct hotlist *list = NULL;

		if (!list_of(run, lists, side->id, round, &list))
			continue;
		if (!list && strcmp(side->id, "none"))
			return no_memory(err);
		bench_show_progress(run->bench, "order: %s, %s: streaming, round %u of %u: %s", run->situation->id,
				    run->workload->name, round + 1, rounds, side->label);
		int r = stream_to(run, side, list, err);
		if (r < 0)
			return error_prefix(err, r, "streamed, %s: ", side->label);
	}
	return 0;
}

static int stream(struct order_run *run, struct bench_case *c, const struct lists *lists, struct error *err)
{
	unsigned rounds = run->bench->options->streams ?:
							(unsigned)bench_size(run->bench, STREAMS_FULL, STREAMS_QUICK);
	int r = 0;

	side_of(c, "none", "nothing prefetched");
	side_of(c, "truth", "the later fork's own order");
	for (unsigned round = 0; round < rounds && r >= 0; round++)
		r = stream_round(run, c, lists, round, rounds, err);
	return r;
}

/* ---- cases ---- */

static int measure(struct order_run *run, struct bench_case *c, struct error *err)
{
	unsigned runs = run->bench->options->quick ? ORDER_RUNS_FEW : run->situation->runs;
	struct lists lists = { 0 };
	int r = record_all(run, runs, &lists, err);

	if (r >= 0)
		r = merge_all(run, &lists, c, err);
	if (r >= 0)
		r = judge(run, c, &lists, err);
	if (r >= 0)
		r = stream(run, c, &lists, err);
	lists_clear(&lists);
	return r;
}

static int spread_traces(struct order_run *run, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; i < 2 && run->situation->spread && r >= 0; i++)
		r = trace_spread(run->workload->traces[i], run->situation->spread, SPREAD_BURST, &run->spread[i], err);
	return r;
}

static int run_case(struct order_run *run, struct error *err)
{
	const struct situation *s = run->situation;
	const struct workload *w = run->workload;
	char id[80], title[160];
	struct bench_case *c;

	snprintf(id, sizeof id, "%s:%s", s->id, w->name);
	snprintf(title, sizeof title, "%s: %s", s->title, w->name);
	c = case_new(id, title, err);
	if (!c)
		return -ENOMEM;
	int r = spread_traces(run, err);
	if (r >= 0)
		r = order_add_template(run, err);
	if (r >= 0)
		r = measure(run, c, err);
	if (r == -EBUSY && !strcmp(err->code, "not_cold")) {
		case_skip(c, "%s", err->message);
		r = 0;
	}
	if (r >= 0)
		r = order_remove_template(run, err);
	if (r >= 0 && s->slow == SLOW_COLD)
		r = workload_warm(w, err);
	for (unsigned i = 0; i < 2; i++) {
		trace_free(run->spread[i]);
		run->spread[i] = NULL;
	}
	if (r < 0) {
		free(c);
		return error_prefix(err, r, "%s, %s: ", s->id, w->name);
	}
	return bench_add_case(run->bench, c, err);
}

/* Whether NAME is wanted: it is in the list, or the list has none of its kind. */
static bool is_wanted(const struct bench *bench, unsigned index)
{
	unsigned first = index < SITUATIONS ? 0 : SITUATIONS, last = index < SITUATIONS ? SITUATIONS : SITUATIONS + WORKLOADS;
	bool any = false;

	for (unsigned i = first; i < last; i++)
		any |= bench->options->only >> i & 1;
	if (any)
		return bench->options->only >> index & 1;
	if (!bench->options->quick)
		return true;
	return index < SITUATIONS ? situations[index].quick : index == SITUATIONS + WORKLOAD_QUICK;
}

static int run_workload(struct order_run *run, const char *name, struct error *err)
{
	struct workload w;
	int r;

	bench_show_progress(run->bench, "order: %s: reading the traces, writing the memory image", name);
	r = workload_load(run->bench, name, &w, err);
	if (r < 0)
		return r;
	run->workload = &w;
	for (unsigned i = 0; i < SITUATIONS && r >= 0; i++) {
		if (!is_wanted(run->bench, i))
			continue;
		run->situation = &situations[i];
		r = run_case(run, err);
	}
	workload_clear(&w);
	return r;
}

int bench_order(struct bench *bench, struct error *err)
{
	struct order_run run = { .bench = bench };
	int r = bench_server_start(&bench->processes, bench->options, bench->dir, &run.server, err);

	if (r < 0)
		return r;
	for (unsigned i = 0; i < WORKLOADS && r >= 0; i++)
		if (is_wanted(bench, SITUATIONS + i))
			r = run_workload(&run, workloads[i], err);
	if (r >= 0)
		return bench_server_stop(&run.server, err);
	bench_server_drop(&run.server);
	return r;
}
