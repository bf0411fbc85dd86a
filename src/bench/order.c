/* Which order is right: lists recorded by the fault loop and by the kernel against the order in which a guest really touched its pages. */
#include "bench/order.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct situation situations[] = {
	{ .id = "one", .title = "one vCPU", .vcpus = REPLAY_ONE, .cpus = 1, .runs = ORDER_RUNS_FEW, .quick = true },
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
	  /* An object store in the same building; a gigabit and a half. */
	  .inject = "delay=500us,rate=200MB/s",
	  .runs = ORDER_RUNS_FEW },
	{ .id = "free",
	  .title = "two vCPUs that don't wait for each other",
	  .vcpus = REPLAY_INDEPENDENT,
	  .pace = REPLAY_COMPUTES,
	  .runs = ORDER_RUNS_FEW },
	{ .id = "free_uneven",
	  .title = "two vCPUs that don't wait for each other, one's pages slow",
	  .vcpus = REPLAY_INDEPENDENT,
	  .pace = REPLAY_COMPUTES,
	  .slow = SLOW_ODD,
	  .runs = ORDER_RUNS_MANY,
	  .quick = true },
	{ .id = "free_cold",
	  .title = "two vCPUs that don't wait for each other, cold page cache",
	  .vcpus = REPLAY_INDEPENDENT,
	  .pace = REPLAY_COMPUTES,
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
	{ .id = "kvm",
	  .title = "a guest under KVM, of two vCPUs that wait for each other, halted",
	  .vcpus = REPLAY_HALTING,
	  .runs = ORDER_RUNS_FEW,
	  .quick = true,
	  .kvm = true },
	{ .id = "kvm_uneven",
	  .title = "a guest under KVM, of two vCPUs that don't wait for each other, one's pages slow",
	  .vcpus = REPLAY_INDEPENDENT,
	  .spread = 2,
	  .slow = SLOW_ODD,
	  .runs = ORDER_RUNS_FEW,
	  .quick = true,
	  .kvm = true },
	{ .id = "kvm_second",
	  .title = "the second generation under KVM: an older list is prefetched, and the workload has changed",
	  .vcpus = REPLAY_HALTING,
	  .story = STORY_SECOND,
	  .runs = ORDER_RUNS_FEW,
	  .quick = true,
	  .kvm = true },
};
#define SITUATIONS (sizeof situations / sizeof *situations)
/* As many touches one after another are one thread's: what an interrupt handler or a system call makes. Guests under KVM take turns. */
#define SPREAD_BURST 32
/* Of the trace, so much is done by a guest under KVM: a tenth of a second on a processor, and many of them where that is emulated. */
#define KVM_TOUCHES_FULL  3000
#define KVM_TOUCHES_QUICK 1000

const char *order_situation_name(unsigned index)
{
	return index < SITUATIONS ? situations[index].id : NULL;
}

/* ---- cases ---- */

static int measure(struct order_run *run, struct bench_case *c, struct error *err)
{
	unsigned runs = run->bench->options->quick ? ORDER_RUNS_FEW : run->situation->runs;
	struct order_lists lists = { 0 };
	int r = order_record(run, runs, &lists, err);

	if (r >= 0)
		r = order_merge_all(run, &lists, c, err);
	if (r >= 0)
		r = order_judge(run, c, &lists, err);
	if (r >= 0)
		r = order_stream(run, c, &lists, err);
	order_lists_clear(&lists);
	return r;
}

static int spread_traces(struct order_run *run, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; i < 2 && run->situation->spread && r >= 0; i++)
		r = trace_spread(run->workload->traces[i], run->situation->spread,
				 run->situation->kvm ? 1 : SPREAD_BURST, &run->spread[i], err);
	return r;
}

/* What a case does where it can run. */
static int measure_case(struct order_run *run, struct bench_case *c, struct error *err)
{
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
	for (unsigned i = 0; i < 2; i++) {
		trace_free(run->spread[i]);
		run->spread[i] = NULL;
	}
	return r;
}

static int measure_process(struct order_run *run, struct workload *whole, struct bench_case *c, struct error *err)
{
	int r = workload_make_image(whole, err);

	run->workload = whole;
	if (r >= 0)
		r = measure_case(run, c, err);
	if (r >= 0 && run->situation->slow == SLOW_COLD)
		r = workload_warm(whole, err);
	return r;
}

static int measure_kvm(struct order_run *run, const struct workload *whole, struct bench_case *c, struct error *err)
{
	size_t touches = bench_size(run->bench, KVM_TOUCHES_FULL, KVM_TOUCHES_QUICK);
	int r = run->kvm_tried ? 0 : order_try_kvm(run, whole, err);

	if (r >= 0 && run->kvm_missing[0]) {
		case_skip(c, "%s", run->kvm_missing);
		return 0;
	}
	struct workload beginning;
	if (r >= 0)
		r = workload_fold(whole, touches, &beginning, err);
	if (r < 0)
		return r;
	run->workload = &beginning;
	r = measure_case(run, c, err);
	run->workload = NULL;
	workload_clear(&beginning);
	return r;
}

static int run_case(struct order_run *run, struct workload *whole, struct error *err)
{
	const struct situation *s = run->situation;
	char id[80], title[160];
	struct bench_case *c;

	snprintf(id, sizeof id, "%s:%s", s->id, whole->name);
	snprintf(title, sizeof title, "%s: %s", s->title, whole->name);
	c = case_new(id, title, err);
	if (!c)
		return -ENOMEM;
	int r = s->kvm ? measure_kvm(run, whole, c, err) : measure_process(run, whole, c, err);
	if (r < 0) {
		free(c);
		return error_prefix(err, r, "%s, %s: ", s->id, whole->name);
	}
	return bench_add_case(run->bench, c, err);
}

static bool is_wanted(const struct bench *bench, unsigned index)
{
	return bench_wants(bench, BENCH_ORDER_SITUATION, index, situations[index].quick);
}

static int run_workload(struct order_run *run, const char *name, struct error *err)
{
	struct workload w;
	int r;

	bench_show_progress(run->bench, "order: %s: reading the traces", name);
	r = workload_load(run->bench, name, &w, err);
	if (r < 0)
		return r;
	for (unsigned i = 0; i < SITUATIONS && r >= 0; i++) {
		if (!is_wanted(run->bench, i))
			continue;
		run->situation = &situations[i];
		r = run_case(run, &w, err);
	}
	run->workload = NULL;
	workload_clear(&w);
	return r;
}

static bool wants_kvm(const struct bench *bench)
{
	for (unsigned i = 0; i < SITUATIONS; i++)
		if (situations[i].kvm && is_wanted(bench, i))
			return true;
	return false;
}

int bench_order(struct bench *bench, struct error *err)
{
	struct order_run run = { .bench = bench };
	int r = wants_kvm(bench) ? order_find_vmm(&run, err) : 0;

	if (r >= 0)
		r = bench_server_start(&bench->processes, bench->options, bench->dir, &run.server, err);
	if (r < 0)
		return r;
	for (unsigned i = 0; workload_name(i) && r >= 0; i++)
		if (bench_wants(bench, BENCH_WORKLOAD, i, i == WORKLOAD_QUICK))
			r = run_workload(&run, workload_name(i), err);
	if (r >= 0)
		return bench_server_stop(&run.server, err);
	bench_server_drop(&run.server);
	return r;
}
