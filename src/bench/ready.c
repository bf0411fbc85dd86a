/* How soon a fork is ready: replayed guests that get their memory in every way there is, side by side. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/floor_served.h"
#include "bench/order.h"
#include "bench/packed.h"

/* Added time over another way's: docs/benchmarks.md says where these come from. */
#define TARGET_WARM_MMAP   0.8
#define TARGET_WARM_SORTED 0.35
#define TARGET_COLD	   0.4
/* Where the list lacks next to nothing. */
#define TARGET_COLD_COMPLETE 0.25
#define COMPLETE_PERMILLE    10
#define TARGET_SLOW	     0.7

static const struct situation situations[] = {
	{ .id = "warm", .title = "page cache warm", .vcpus = REPLAY_ONE, .cpus = 1, .quick = true },
	{ .id = "cold", .title = "page cache cold", .vcpus = REPLAY_ONE, .cpus = 1, .slow = SLOW_COLD, .quick = true },
	{ .id = "slow_300",
	  .title = "a source of 300 MB/s and 0.5 ms",
	  .vcpus = REPLAY_ONE,
	  .cpus = 1,
	  .slow = SLOW_REMOTE,
	  .inject = "delay=500us,rate=300MB/s" },
	{ .id = "slow_100",
	  .title = "a source of 100 MB/s and 0.5 ms",
	  .vcpus = REPLAY_ONE,
	  .cpus = 1,
	  .slow = SLOW_REMOTE,
	  .inject = "delay=500us,rate=100MB/s" },
	{ .id = "slow_50",
	  .title = "a source of 50 MB/s and 0.5 ms",
	  .vcpus = REPLAY_ONE,
	  .cpus = 1,
	  .slow = SLOW_REMOTE,
	  .inject = "delay=500us,rate=50MB/s" },
};
#define SITUATIONS (sizeof situations / sizeof *situations)

const char *ready_situation_name(unsigned index)
{
	return index < SITUATIONS ? situations[index].id : NULL;
}

/* How a guest gets its memory. */
struct way {
	const char *id, *label;
	enum { PRESENT, PLAIN, FLOOR, OURS } by;
	enum { NO_LIST, BY_ADDRESS, BY_LOOP, BY_KERNEL } list;
	bool ahead, packed;
};

static const struct way ways[] = {
	{ "present", "everything present", PRESENT, NO_LIST, false, false },
	{ "mmap", "plain mmap of the image", PLAIN, NO_LIST, false, false },
	{ "loop", "bare fault loop", FLOOR, NO_LIST, false, false },
	{ "sorted", "sorted list, one page a call, before it runs", FLOOR, BY_ADDRESS, true, false },
	{ "faults", "faultline, demand faults alone", OURS, NO_LIST, false, false },
	{ "eager", "faultline, eager", OURS, BY_KERNEL, true, false },
	{ "stream_address", "faultline, stream, by address", OURS, BY_ADDRESS, false, false },
	{ "stream_loop", "faultline, stream, the fault loop's order", OURS, BY_LOOP, false, false },
	{ "stream", "faultline, stream, the kernel's order", OURS, BY_KERNEL, false, false },
	{ "packed", "the same, from a packed hot set", OURS, BY_KERNEL, false, true },
};
#define WAYS (sizeof ways / sizeof *ways)

struct ready_run {
	struct order_run order;
	struct hotlist *lists[BY_KERNEL + 1];
	struct packed packed;
};

static const struct way *way_of(const struct side *side)
{
	for (size_t i = 0; i < WAYS; i++)
		if (!strcmp(ways[i].id, side->id))
			return &ways[i];
	return NULL;
}

/* ---- a guest ---- */

static int run_guest(const struct replay_config *config, struct side *side, struct bench *bench, struct process *floor,
		     struct error *err)
{
	struct replay_guest *guest = NULL;
	struct replay_result result;
	int r = replay_start(config, &guest, err);

	if (r >= 0 && floor)
		r = process_await(&bench->processes, floor, FLOOR_THERE, err);
	if (r >= 0)
		r = replay_run(guest, &result, err);
	if (r >= 0)
		r = order_check_pages(&result, err);
	if (r >= 0) {
		side_add(side, "before_ms", (double)result.before_ns / 1e6);
		side_add(side, "stall_ms", (double)result.all.stall_ns / 1e6);
		side_add(side, "added_ms", (double)result.added_ns / 1e6);
	}
	replay_free(guest);
	return r;
}

static int run_on_floor(struct ready_run *run, const struct way *way, struct side *side, struct error *err)
{
	struct bench *bench = run->order.bench;
	struct replay_config config = order_replay(&run->order, 1);
	struct floor_served floor = { .image_path = config.template_path,
				      .list = run->lists[way->list],
				      .cpu = bench->cpu_list[0] };
	struct process *process = NULL;

	if ((size_t)snprintf(floor.socket, sizeof floor.socket, "%s/floor", bench->dir) >= sizeof floor.socket)
		return error_set(err, -ENAMETOOLONG, "bench_failed", "the path %s is too long: choose a shorter --dir",
				 bench->dir);
	unlink(floor.socket);
	int r = process_start(&bench->processes, "a bare server", NULL, 0, floor_served_body, &floor, &process, err);
	if (r >= 0)
		r = process_await(&bench->processes, process, FLOOR_LISTENS, err);
	config.memory = REPLAY_SERVED;
	config.socket = floor.socket;
	if (r >= 0)
		r = run_guest(&config, side, bench, process, err);
	process_kill(&bench->processes, process);
	return r;
}

static void add_figures(struct ready_run *run, const struct way *way, struct side *side,
			const struct order_visit *visit, size_t listed)
{
	const struct hotlist *truth = run->order.workload->truth[1], *list = run->lists[way->list];

	side_add(side, "faults", (double)visit->faults);
	if (list) {
		size_t common = order_count_common(list, truth);

		side_add(side, "late", (double)visit->late);
		side_add(side, "unused", (double)(listed - common));
		side_add(side, "missing", (double)(visit->streamed ? visit->missing : truth->count - common));
		side_add(side, "neighbours", (double)visit->neighbours);
	}
	side_add(side, "before_ms", (double)visit->result.before_ns / 1e6);
	side_add(side, "stall_ms", (double)visit->result.all.stall_ns / 1e6);
	side_add(side, "added_ms", (double)visit->result.added_ns / 1e6);
}

static int visit(struct ready_run *run, const struct way *way, struct side *side, struct error *err)
{
	const struct hotlist *list = run->lists[way->list];
	struct order_visit visit = { .trace = 1, .ahead = way->ahead, .unrecorded = true };
	char path[400];
	size_t listed = 0;
	int r = list && !way->packed ? order_save(&run->order, list, path, err) : 0;

	visit.hot_list = !list ? NULL : way->packed ? run->packed.list : path;
	if (r >= 0 && list && hotlist_count_distinct(list, &listed) < 0)
		r = error_set(err, -ENOMEM, "bench_failed", "there is not enough memory for the lists");
	if (r >= 0)
		r = order_visit(&run->order, &visit, err);
	if (r >= 0)
		add_figures(run, way, side, &visit, listed);
	order_visit_clear(&visit);
	return r;
}

static int run_ours(struct ready_run *run, const struct way *way, struct side *side, struct error *err)
{
	struct bench_server *server = &run->order.server;
	uint64_t before, after;
	int r = way->packed ? packed_enter(&run->order, &run->packed, err) : 0;

	if (r >= 0)
		r = bench_server_cpu_ns(server, &before, err);
	if (r >= 0)
		r = visit(run, way, side, err);
	if (r >= 0)
		r = bench_server_cpu_ns(server, &after, err);
	if (r >= 0)
		side_add(side, "server_ms", (double)(after - before) / 1e6);
	return r >= 0 && way->packed ? packed_leave(&run->order, err) : r;
}

static int measure(struct bench *bench, struct bench_case *c __attribute__((unused)), struct side *side,
		   unsigned round __attribute__((unused)), void *data, struct error *err)
{
	struct ready_run *run = data;
	const struct way *way = way_of(side);
	struct replay_config config = order_replay(&run->order, 1);

	if (way->by == OURS)
		return run_ours(run, way, side, err);
	int r = run->order.situation->slow == SLOW_COLD ? order_make_cold(&run->order, err) : 0;
	if (r < 0)
		return r;
	if (way->by == FLOOR)
		return run_on_floor(run, way, side, err);
	config.memory = way->by == PLAIN ? REPLAY_PLAIN : REPLAY_PRESENT;
	return run_guest(&config, side, bench, NULL, err);
}

/* ---- a case ---- */

static int no_memory(struct error *err)
{
	return error_set(err, -ENOMEM, "bench_failed", "there is not enough memory for the lists");
}

/* What one fork of the first run tells, under the conditions of the later ones. */
static int record(struct ready_run *run, struct error *err)
{
	struct order_visit visit = { .kernel = true };
	int r = order_visit(&run->order, &visit, err);

	if (r >= 0) {
		run->lists[BY_LOOP] = visit.loop;
		run->lists[BY_KERNEL] = visit.seen;
		visit.loop = visit.seen = NULL;
		run->lists[BY_ADDRESS] = order_by_address(run->lists[BY_LOOP]);
		r = run->lists[BY_ADDRESS] ? 0 : no_memory(err);
	}
	order_visit_clear(&visit);
	return r;
}

static void forget(struct ready_run *run)
{
	packed_forget(&run->packed);
	for (size_t i = 0; i <= BY_KERNEL; i++) {
		hotlist_free(run->lists[i]);
		run->lists[i] = NULL;
	}
}

/* Nobody but a server of ours can be made slow: the others' pages come from the file. */
static bool can_be_slow(const struct way *way)
{
	return way->by == OURS || way->by == PRESENT;
}

static void add_ways(const struct ready_run *run, struct bench_case *c)
{
	for (size_t i = 0; i < WAYS; i++) {
		bool wanted = run->order.situation->slow != SLOW_REMOTE || can_be_slow(&ways[i]);

		wanted = wanted && (!ways[i].packed || run->packed.there);
		if (wanted && (ways[i].list == NO_LIST || run->lists[ways[i].list]))
			case_add_side(c, ways[i].id, ways[i].label);
	}
}

/* The list lacks so little of what the later guest touches that it can be there in time. */
static bool is_complete(const struct ready_run *run)
{
	const struct hotlist *truth = run->order.workload->truth[1];
	size_t missing = truth->count - order_count_common(run->lists[BY_LOOP], truth);

	return missing * 1000 <= truth->count * COMPLETE_PERMILLE;
}

static void add_ratios(const struct ready_run *run, struct bench_case *c)
{
	const char *ours = run->packed.there ? "packed" : run->lists[BY_KERNEL] ? "stream" : "stream_loop";
	double cold = is_complete(run) ? TARGET_COLD_COMPLETE : TARGET_COLD;

	switch (run->order.situation->slow) {
	case SLOW_REMOTE:
		case_add_ratio(c, (struct ratio){ .label = "added time: ours / by address",
						  .metric = "added_ms",
						  .of = ours,
						  .to = "stream_address",
						  .target = TARGET_SLOW });
		case_add_ratio(c, (struct ratio){ .label = "demand faults: ours / by address",
						  .metric = "faults",
						  .of = ours,
						  .to = "stream_address",
						  .target = TARGET_SLOW });
		return;
	default:
		break;
	}
	bool is_cold = run->order.situation->slow == SLOW_COLD;
	case_add_ratio(c, (struct ratio){ .label = "added time: ours / plain mmap",
					  .metric = "added_ms",
					  .of = ours,
					  .to = "mmap",
					  .target = is_cold ? cold : TARGET_WARM_MMAP });
	case_add_ratio(c, (struct ratio){ .label = "added time: ours / sorted before it runs",
					  .metric = "added_ms",
					  .of = ours,
					  .to = "sorted",
					  .target = is_cold ? cold : TARGET_WARM_SORTED });
}

static int run_case(struct ready_run *run, struct error *err)
{
	const struct situation *s = run->order.situation;
	const struct workload *w = run->order.workload;
	char id[80], title[160];

	snprintf(id, sizeof id, "%s:%s", s->id, w->name);
	snprintf(title, sizeof title, "%s, %s", w->name, s->title);
	struct bench_case *c = case_new(id, title, err);
	if (!c)
		return -ENOMEM;
	int r = order_add_template(&run->order, err);
	if (r >= 0)
		r = record(run, err);
	/* Where the image is in memory, nobody would read it. */
	if (r >= 0 && s->slow != SLOW_NONE && run->lists[BY_KERNEL])
		r = packed_make(&run->order, run->lists[BY_KERNEL], &run->packed, err);
	if (r == -EBUSY && !strcmp(err->code, "not_cold")) {
		case_skip(c, "%s", err->message);
		return bench_add_case(run->order.bench, c, err);
	}
	if (r < 0) {
		free(c);
		return error_prefix(err, r, "%s, %s: ", s->id, w->name);
	}
	add_ways(run, c);
	add_ratios(run, c);
	snprintf(c->details, sizeof c->details, "%zu pages in the list, %zu touched, %zu of them not in the list",
		 run->lists[BY_LOOP]->count, w->truth[1]->count,
		 w->truth[1]->count - order_count_common(run->lists[BY_LOOP], w->truth[1]));
	r = bench_alternate(run->order.bench, c, measure, run, err);
	forget(run);
	return r < 0 ? r : order_remove_template(&run->order, err);
}

static int run_workload(struct ready_run *run, unsigned number, struct error *err)
{
	struct bench *bench = run->order.bench;
	struct workload w;
	int r = workload_load(bench, workload_name(number), &w, err);

	if (r < 0)
		return r;
	r = workload_make_image(&w, err);
	run->order.workload = &w;
	for (unsigned i = 0; i < SITUATIONS && r >= 0; i++) {
		if (!bench_wants(bench, BENCH_READY_SITUATION, i, situations[i].quick))
			continue;
		run->order.situation = &situations[i];
		if (situations[i].slow != SLOW_COLD)
			r = workload_warm(&w, err);
		if (r >= 0)
			r = run_case(run, err);
	}
	run->order.workload = NULL;
	workload_clear(&w);
	return r;
}

int bench_ready(struct bench *bench, struct error *err)
{
	struct ready_run run = { .order = { .bench = bench, .zeros = true } };
	int r = bench_server_start(&bench->processes, bench->options, bench->dir, &run.order.server, err);

	for (unsigned i = 0; r >= 0 && workload_name(i); i++)
		if (bench_wants(bench, BENCH_WORKLOAD, i, i == WORKLOAD_QUICK))
			r = run_workload(&run, i, err);
	forget(&run);
	if (r >= 0)
		return bench_server_stop(&run.order.server, err);
	bench_server_drop(&run.order.server);
	return r;
}
