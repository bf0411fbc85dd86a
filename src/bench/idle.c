/* What connected forks cost that do nothing: memory and CPU time in the server, and the speed of a busy one beside them. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "bench/run.h"

#define FORKS_FULL     1000
#define FORKS_QUICK    100
#define PAGES_FULL     8192 /* of the busy fork */
#define PAGES_QUICK    1024
#define FORK_SIZE      (1ull << 30)
#define INTERVAL_FULL  (2 * NSEC_PER_SEC)
#define INTERVAL_QUICK (NSEC_PER_SEC / 2)

/* In the server and in the run: what is there besides forks; and in the server for each: socket, userfaultfd, pidfd, one to spare. */
#define FDS_BESIDES 200
#define FDS_A_FORK  4

#define TARGET_MEMORY_KIB 64
#define TARGET_CPU	  1.0 /* ms a second: "none", as far as clocks can tell */
#define TARGET_BESIDE	  1.2

struct idle_fork {
	struct process *process;
	char id[24];
};

struct idle_run {
	struct bench_server server;
	struct bench_image image;
	struct idle_fork *forks;
	unsigned count, connected;
	double memory_before;
};

static int visit_busy(struct bench *bench, struct idle_run *run, struct side *side, unsigned round, struct error *err)
{
	struct guest_result result;
	struct bench_visit visit = {
		.guest = { .image = &run->image,
			   .pages = bench_size(bench, PAGES_FULL, PAGES_QUICK),
			   .vcpus = 1,
			   .cpus = { bench->cpu_list[0] },
			   .seed = round },
		.server = &run->server,
		.template = "base",
	};
	int r = bench_visit(bench, &visit, &result, err);

	if (r == 0)
		side_add_latencies(side, &result);
	return r;
}

/* ---- the idle ones ---- */

static int connect_one(struct bench *bench, struct idle_run *run, struct error *err)
{
	struct idle_fork *fork = &run->forks[run->connected];
	char socket_path[SOCKET_PATH_SIZE];
	struct guest_spec spec = { .image = &run->image,
				   .socket = socket_path,
				   .region_pages = FORK_SIZE / BENCH_PAGE,
				   .vcpus = 1,
				   .cpus = { GUEST_ANY_CPU } };

	bench_fork_id(bench, fork->id);
	int r = bench_server_create_fork(&run->server, "base", fork->id, NULL, socket_path, err);
	if (r == 0)
		r = process_start(&bench->processes, "an idle guest", NULL, 0, guest_idle_body, &spec, &fork->process,
				  err);
	if (r == 0)
		r = process_await(&bench->processes, fork->process, GUEST_WARM, err);
	if (r == 0)
		r = bench_server_wait_fork(&run->server, fork->id, "connected", NULL, err);
	if (r == 0)
		run->connected++;
	return r;
}

static int connect_all(struct bench *bench, struct idle_run *run, struct error *err)
{
	int r = 0;

	while (run->connected < run->count && r == 0)
		r = connect_one(bench, run, err);
	return r;
}

static int disconnect_all(struct bench *bench, struct idle_run *run, struct error *err)
{
	unsigned count = run->connected;
	int r = 0;

	run->connected = 0;
	for (unsigned i = 0; i < count && r == 0; i++)
		r = process_tell(run->forks[i].process, GUEST_END, err);
	for (unsigned i = 0; i < count && r == 0; i++)
		r = process_join(&bench->processes, run->forks[i].process, err);
	for (unsigned i = 0; i < count && r == 0; i++)
		r = bench_server_end_fork(&run->server, run->forks[i].id, err);
	return r;
}

/* How much CPU time the server takes while nobody asks anything of it. */
static int watch_server(struct bench *bench, struct idle_run *run, struct side *side, struct error *err)
{
	uint64_t before, after, start = now_ns();
	int r = bench_server_cpu_ns(&run->server, &before, err);

	if (r == 0)
		r = processes_wait(&bench->processes, -1, bench_size(bench, INTERVAL_FULL, INTERVAL_QUICK), err);
	if (r == 0)
		r = bench_server_cpu_ns(&run->server, &after, err);
	if (r == 0)
		side_add(side, "cpu_ms_per_s",
			 (double)(after - before) / 1e6 / ((double)(now_ns() - start) / (double)NSEC_PER_SEC));
	return r;
}

static int measure_beside(struct bench *bench, struct idle_run *run, struct side *side, unsigned round,
			  struct error *err)
{
	double memory;
	int r = connect_all(bench, run, err);

	if (r == 0)
		r = bench_server_memory(&run->server, &memory, err);
	if (r == 0)
		r = visit_busy(bench, run, side, round, err);
	if (r == 0)
		r = watch_server(bench, run, side, err);
	if (r < 0)
		return r;
	double more = memory > run->memory_before ? memory - run->memory_before : 0;
	side_add(side, "kib_per_fork", more / 1024 / run->count);
	return disconnect_all(bench, run, err);
}

static int measure(struct bench *bench, struct bench_case *c __attribute__((unused)), struct side *side, unsigned round,
		   void *data, struct error *err)
{
	struct idle_run *run = data;

	if (!strcmp(side->id, "beside"))
		return measure_beside(bench, run, side, round, err);
	int r = visit_busy(bench, run, side, round, err);
	/* After its first fork, and before the idle ones: later a server has memory in hand that is to be used again. */
	if (r == 0 && run->memory_before <= 0)
		r = bench_server_memory(&run->server, &run->memory_before, err);
	return r;
}

/* ---- the case ---- */

/* How many there can be: of what was asked for, as many as the limit on open files lets the server and this process hold. */
static unsigned possible_forks(unsigned wanted)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_max == RLIM_INFINITY)
		return wanted;
	uint64_t most = limit.rlim_max > FDS_BESIDES ? (limit.rlim_max - FDS_BESIDES) / FDS_A_FORK : 0;
	return most < wanted ? (unsigned)most : wanted;
}

static int run_case(struct bench *bench, struct idle_run *run, unsigned wanted, struct error *err)
{
	struct bench_case *c = case_new("idle", "a busy fork beside idle ones", err);

	if (!c)
		return -ENOMEM;
	int n = snprintf(c->details, sizeof c->details,
			 "%u idle forks of 1 GiB, a process each; the busy one touches %llu pages on CPU %d",
			 run->count, (unsigned long long)bench_size(bench, PAGES_FULL, PAGES_QUICK), bench->cpu_list[0]);
	if (run->count < wanted)
		snprintf(c->details + n, sizeof c->details - (size_t)n,
			 "; the limit on open files allows no more (%u were wanted)", wanted);
	if (run->count == 0) {
		case_skip(c, "the limit on open files (ulimit -Hn) does not allow a single fork");
		return bench_add_case(bench, c, err);
	}
	case_add_side(c, "alone", "the busy fork alone");
	case_add_side(c, "alone_again", "the same once more");
	case_add_side(c, "beside", "the busy fork beside idle ones");
	c->again[0] = "alone_again";
	c->again[1] = "alone";
	case_add_ratio(c, (struct ratio){ "p50: beside idle forks / alone", "p50_us", "beside", "alone", TARGET_BESIDE,
					  false });
	case_add_ratio(c, (struct ratio){ "p99: beside idle forks / alone", "p99_us", "beside", "alone", 0, false });
	case_add_limit(c, (struct limit){ "server's memory for an idle fork, KiB", "kib_per_fork", "beside",
					  TARGET_MEMORY_KIB, false });
	case_add_limit(c, (struct limit){ "server's CPU time while all are idle, ms a second", "cpu_ms_per_s", "beside",
					  TARGET_CPU, false });
	return bench_alternate(bench, c, measure, run, err);
}

int bench_idle(struct bench *bench, struct error *err)
{
	unsigned wanted = bench->options->idle_forks ?: (unsigned)bench_size(bench, FORKS_FULL, FORKS_QUICK);
	struct idle_run run = { .count = possible_forks(wanted) };
	uint64_t pages = bench_size(bench, PAGES_FULL, PAGES_QUICK) + GUEST_SPARE_PAGES;
	int r = bench_image_make(bench->dir, "idle", pages, FORK_SIZE, &run.image, err);

	run.forks = calloc(run.count + 1, sizeof *run.forks);
	if (r == 0 && !run.forks)
		r = error_set(err, -ENOMEM, "bench_failed", "there is not enough memory for %u forks", run.count);
	if (r == 0)
		r = bench_server_start(&bench->processes, bench->options, bench->dir, &run.server, err);
	if (r == 0) {
		r = bench_server_add_template(&run.server, "base", &run.image, err);
		if (r == 0)
			r = run_case(bench, &run, wanted, err);
		if (r == 0)
			r = bench_server_stop(&run.server, err);
		else
			bench_server_drop(&run.server);
	}
	free(run.forks);
	return r;
}
