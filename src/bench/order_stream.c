/* Lists put to use: streamed to a later fork of the same kind, which does what the second run of its trace did. */
#include <errno.h>
#include <string.h>

#include "bench/order.h"

#define STREAMS_FULL  3
#define STREAMS_QUICK 1

static int no_memory(struct error *err)
{
	return error_set(err, -ENOMEM, "bench_failed", "there is not enough memory for the lists");
}

/* The list that a side has in a round; the caller frees it. *RET is NULL for the side without one. False: there is no such side. */
static bool list_of(const struct order_run *run, const struct order_lists *lists, const char *id, unsigned round,
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

/* Adds to SIDE what LIST (may be NULL) is worth to a later fork that it is streamed to. */
static int add_stream(struct order_run *run, struct side *side, const struct hotlist *list, struct error *err)
{
	const struct hotlist *truth = run->workload->truth[1];
	struct order_visit visit = { .trace = 1 };
	char path[400];
	int r = list ? order_save(run, list, path, err) : 0;

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

static int stream_round(struct order_run *run, struct bench_case *c, const struct order_lists *lists, unsigned round,
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
		int r = add_stream(run, side, list, err);
		if (r < 0)
			return error_prefix(err, r, "streamed, %s: ", side->label);
	}
	return 0;
}

int order_stream(struct order_run *run, struct bench_case *c, const struct order_lists *lists, struct error *err)
{
	unsigned rounds = run->bench->options->streams ?: (unsigned)bench_size(run->bench, STREAMS_FULL, STREAMS_QUICK);
	int r = 0;

	order_side(c, "none", "nothing prefetched");
	order_side(c, "truth", "the later fork's own order");
	for (unsigned round = 0; round < rounds && r >= 0; round++)
		r = stream_round(run, c, lists, round, rounds, err);
	return r;
}
