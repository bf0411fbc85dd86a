/* Many forks that fault at once: how many faults are served in all, and whether any fork is served worse than the others. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "bench/run.h"

#define FORKS_FULL  64
#define FORKS_QUICK 16
#define PAGES_FULL  2048 /* a fork */
#define PAGES_QUICK 512

#define TARGET_THROUGHPUT 0.9
#define TARGET_WORST	  3.0

struct fairness_guest {
	struct process *process;
	char id[24], socket_path[SOCKET_PATH_SIZE];
	int ends[2]; /* the guest's, the floor's */
};

struct fairness_run {
	struct bench_server server;
	struct bench_image image;
	unsigned count;
	uint64_t pages;
	struct fairness_guest guests[FORKS_FULL];
	struct process *floor;
};

/* ---- bringing them up ---- */

static void close_ends(struct fairness_run *run, int end)
{
	for (unsigned i = 0; i < run->count; i++) {
		cleanup_close(&run->guests[i].ends[end]);
		run->guests[i].ends[end] = -1;
	}
}

static int start_floor(struct bench *bench, struct fairness_run *run, struct error *err)
{
	struct floor_loop floor = { .image = &run->image, .guests = run->count, .loops = 1, .cpus = { GUEST_ANY_CPU } };
	int theirs[FORKS_FULL];

	for (unsigned i = 0; i < run->count; i++) {
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, run->guests[i].ends) < 0)
			return error_set(err, -errno, "bench_failed", "can't make a socket: %s", strerror(errno));
		theirs[i] = run->guests[i].ends[1];
	}
	int r = process_start(&bench->processes, "the bare loops", theirs, run->count, floor_loop_body, &floor,
			      &run->floor, err);
	close_ends(run, 1);
	if (r == 0)
		r = process_await(&bench->processes, run->floor, FLOOR_READY, err);
	if (r == 0)
		run->floor->steady = true;
	return r;
}

static int start_guest(struct bench *bench, struct fairness_run *run, struct fairness_guest *guest, uint64_t seed,
		       struct error *err)
{
	struct guest_spec spec = {
		.image = &run->image, .pages = run->pages, .vcpus = 1, .cpus = { GUEST_ANY_CPU }, .seed = seed
	};
	int r = 0;

	if (!run->floor) {
		bench_fork_id(bench, guest->id);
		r = bench_server_create_fork(&run->server, "base", guest->id, NULL, guest->socket_path, err);
		spec.socket = guest->socket_path;
	}
	return r < 0 ? r
		     : process_start(&bench->processes, "a guest", &guest->ends[0], run->floor ? 1 : 0, guest_body,
				     &spec, &guest->process, err);
}

static int await_all(struct bench *bench, struct fairness_run *run, char letter, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; i < run->count && r == 0; i++)
		r = process_await(&bench->processes, run->guests[i].process, letter, err);
	return r;
}

static int tell_all(struct fairness_run *run, char letter, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; i < run->count && r == 0; i++)
		r = process_tell(run->guests[i].process, letter, err);
	return r;
}

/* ---- one round ---- */

static int end_all(struct bench *bench, struct fairness_run *run, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; i < run->count && r == 0; i++)
		r = process_join(&bench->processes, run->guests[i].process, err);
	process_kill(&bench->processes, TAKE_PTR(run->floor));
	close_ends(run, 0);
	for (unsigned i = 0; i < run->count && r == 0; i++)
		if (run->guests[i].id[0])
			r = bench_server_end_fork(&run->server, run->guests[i].id, err);
	return r;
}

/* All together: from the first touch of any to the last of all. */
static void sum_up(const struct fairness_run *run, struct side *side)
{
	uint64_t start = UINT64_MAX, end = 0, touched = 0, p50[FORKS_FULL], p99[FORKS_FULL];

	for (unsigned i = 0; i < run->count; i++) {
		struct guest_result result;

		memcpy(&result, run->guests[i].process->shared->result, sizeof result);
		start = result.start_ns < start ? result.start_ns : start;
		end = result.end_ns > end ? result.end_ns : end;
		touched += result.touched;
		p50[i] = result.p50_ns;
		p99[i] = result.p99_ns;
	}
	sort_samples(p50, run->count);
	sort_samples(p99, run->count);
	double median = (double)percentile(p99, run->count, 500), worst = (double)percentile(p99, run->count, 1000);
	side_add(side, "faults_per_s", (double)touched * 1e9 / (double)(end - start));
	side_add(side, "median_fork_p50_us", (double)percentile(p50, run->count, 500) / 1e3);
	side_add(side, "median_fork_p99_us", median / 1e3);
	side_add(side, "worst_fork_p99_us", worst / 1e3);
	side_add(side, "worst_to_median_p99", median > 0 ? worst / median : 1);
}

static int measure(struct bench *bench, struct bench_case *c __attribute__((unused)), struct side *side, unsigned round,
		   void *data, struct error *err)
{
	struct fairness_run *run = data;
	int r = 0;

	for (unsigned i = 0; i < FORKS_FULL; i++)
		run->guests[i] = (struct fairness_guest){ .ends = { -1, -1 } };
	if (strcmp(side->id, "ours"))
		r = start_floor(bench, run, err);
	for (unsigned i = 0; i < run->count && r == 0; i++)
		r = start_guest(bench, run, &run->guests[i], (uint64_t)round << 32 | i, err);
	if (r == 0)
		r = await_all(bench, run, GUEST_MAPPED, err);
	if (r == 0)
		r = tell_all(run, GUEST_GO, err);
	if (r == 0)
		r = await_all(bench, run, GUEST_WARM, err);
	if (r == 0)
		r = tell_all(run, GUEST_TOUCH, err);
	if (r == 0)
		r = await_all(bench, run, GUEST_DONE, err);
	if (r < 0) {
		close_ends(run, 0);
		close_ends(run, 1);
		return r;
	}
	sum_up(run, side);
	return end_all(bench, run, err);
}

static int run_case(struct bench *bench, struct fairness_run *run, struct error *err)
{
	struct bench_case *c = case_new("at_once", "forks that fault at once", err);

	if (!c)
		return -ENOMEM;
	snprintf(c->details, sizeof c->details,
		 "%u forks, a process each, of %llu pages each; everything left to the scheduler", run->count,
		 (unsigned long long)run->pages);
	case_add_side(c, "ours", "faultline");
	case_add_side(c, "loops", "a bare loop for each fork");
	case_add_side(c, "loops_again", "the same once more");
	c->again[0] = "loops_again";
	c->again[1] = "loops";
	case_add_ratio(c, (struct ratio){ "faults a second: faultline / bare loops", "faults_per_s", "ours", "loops",
					  TARGET_THROUGHPUT, true });
	case_add_ratio(c, (struct ratio){ "median fork's p99: faultline / bare loops", "median_fork_p99_us", "ours",
					  "loops", 0, false });
	case_add_limit(c, (struct limit){ "worst fork's p99 / median fork's", "worst_to_median_p99", "ours",
					  TARGET_WORST, false });
	return bench_alternate(bench, c, measure, run, err);
}

int bench_fairness(struct bench *bench, struct error *err)
{
	struct fairness_run *run = calloc(1, sizeof *run);

	if (!run)
		return error_set(err, -ENOMEM, "bench_failed", "there is not enough memory");
	run->count = (unsigned)bench_size(bench, FORKS_FULL, FORKS_QUICK);
	run->pages = bench_size(bench, PAGES_FULL, PAGES_QUICK);
	int r = bench_image_make(bench->dir, "fairness", run->pages + GUEST_SPARE_PAGES, 0, &run->image, err);

	if (r == 0)
		r = bench_server_start(&bench->processes, bench->options, bench->dir, &run->server, err);
	if (r == 0) {
		r = bench_server_add_template(&run->server, "base", &run->image, err);
		if (r == 0)
			r = run_case(bench, run, err);
		if (r == 0)
			r = bench_server_stop(&run->server, err);
		else
			bench_server_drop(&run->server);
	}
	free(run);
	return r;
}
