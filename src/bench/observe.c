/* What observation costs: servers with it and without, side by side, and whether it loses anything. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "bench/run.h"

#define PAGES_FULL  16384
#define PAGES_QUICK 2048

/* Guests that fault at once, a thread each: enough to keep all CPUs busy. */
#define FLOOD_GUESTS 4

#define PACED_RATE 20000ull /* faults a second */

#define IDLE_FORKS_FULL	    100
#define IDLE_FORKS_QUICK    20
#define IDLE_INTERVAL_FULL  (2 * NSEC_PER_SEC)
#define IDLE_INTERVAL_QUICK (NSEC_PER_SEC / 2)
/* From the last fork's connecting until nobody has anything to do with it any more. */
#define IDLE_REST (3 * NSEC_PER_SEC / 2)

#define TARGET_LATENCY 1.05
#define TARGET_RATE    100000.0
#define TARGET_READER  100.0 /* ms a second: a tenth of a CPU */
#define TARGET_IDLE    1.0

struct observe_guest {
	struct process *process;
	char id[24];
};

struct observe_run {
	struct bench_server on, off;
	struct bench_image image;
	char tier[32];
	struct observe_guest guests[IDLE_FORKS_FULL];
	unsigned count;
};

static struct bench_server *server_of(struct observe_run *run, const struct side *side)
{
	return strcmp(side->id, "on") ? &run->off : &run->on;
}

/* ---- guests ---- */

/* PAGES 0: it does nothing. */
static int start_guest(struct bench *bench, struct observe_run *run, struct bench_server *server, uint64_t pages,
		       uint64_t interval_ns, uint64_t seed, struct error *err)
{
	struct observe_guest *guest = &run->guests[run->count];
	char socket_path[SOCKET_PATH_SIZE];
	struct guest_spec spec = { .image = &run->image,
				   .socket = socket_path,
				   .pages = pages,
				   .region_pages = run->image.pages,
				   .interval_ns = interval_ns,
				   .vcpus = 1,
				   .cpus = { pages ? bench->cpu_list[run->count % bench->cpu_count] : GUEST_ANY_CPU },
				   .seed = seed };

	bench_fork_id(bench, guest->id);
	int r = bench_server_create_fork(server, "base", guest->id, NULL, socket_path, err);
	if (r == 0)
		r = process_start(&bench->processes, "a guest", NULL, 0, pages ? guest_body : guest_idle_body, &spec,
				  &guest->process, err);
	run->count += r == 0;
	return r;
}

static int await_all(struct bench *bench, struct observe_run *run, char letter, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; i < run->count && r == 0; i++)
		r = process_await(&bench->processes, run->guests[i].process, letter, err);
	return r;
}

static int tell_all(struct observe_run *run, char letter, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; i < run->count && r == 0; i++)
		r = process_tell(run->guests[i].process, letter, err);
	return r;
}

static int end_all(struct bench *bench, struct observe_run *run, struct bench_server *server, struct error *err)
{
	unsigned count = run->count;
	int r = 0;

	run->count = 0;
	for (unsigned i = 0; i < count && r == 0; i++)
		r = process_join(&bench->processes, run->guests[i].process, err);
	for (unsigned i = 0; i < count && r == 0; i++)
		r = bench_server_end_fork(server, run->guests[i].id, err);
	return r;
}

/* Until they are about to touch. */
static int lead_to_touch(struct bench *bench, struct observe_run *run, struct error *err)
{
	int r = await_all(bench, run, GUEST_MAPPED, err);

	if (r == 0)
		r = tell_all(run, GUEST_GO, err);
	return r < 0 ? r : await_all(bench, run, GUEST_WARM, err);
}

static int touch_all(struct bench *bench, struct observe_run *run, struct error *err)
{
	int r = tell_all(run, GUEST_TOUCH, err);

	return r < 0 ? r : await_all(bench, run, GUEST_DONE, err);
}

/* Faults a second of all together, from the first touch to the last. */
static double rate_of(const struct observe_run *run)
{
	uint64_t start = UINT64_MAX, end = 0, touched = 0;

	for (unsigned i = 0; i < run->count; i++) {
		struct guest_result result;

		memcpy(&result, run->guests[i].process->shared->result, sizeof result);
		start = result.start_ns < start ? result.start_ns : start;
		end = result.end_ns > end ? result.end_ns : end;
		touched += result.touched;
	}
	return end > start ? (double)touched * 1e9 / (double)(end - start) : 0;
}

/* What the kernel saw of the guests' forks, and what was lost of it. */
static int count_events(struct observe_run *run, double *ret_seen, double *ret_lost, struct error *err)
{
	int r = 0;

	*ret_seen = *ret_lost = 0;
	for (unsigned i = 0; i < run->count && r == 0; i++) {
		json_t *fork = NULL;

		r = bench_server_show_fork(&run->on, run->guests[i].id, &fork, err);
		if (r < 0)
			break;
		const json_t *observed = json_object_get(fork, "observed");
		*ret_seen += json_number_value(json_object_get(observed, "faults"));
		*ret_lost += json_number_value(json_object_get(observed, "events_lost"));
		json_decref(fork);
	}
	return r;
}

/* ---- one fault ---- */

static int measure_fault(struct bench *bench, struct bench_case *c __attribute__((unused)), struct side *side,
			 unsigned round, void *data, struct error *err)
{
	struct observe_run *run = data;
	struct bench_visit visit = {
		.guest = { .image = &run->image,
			   .pages = bench_size(bench, PAGES_FULL, PAGES_QUICK),
			   .vcpus = 1,
			   .cpus = { bench->cpu_list[0] },
			   .seed = round },
		.server = server_of(run, side),
		.template = "base",
	};
	struct guest_result result;
	int r = bench_visit(bench, &visit, &result, err);

	if (r < 0)
		return r;
	side_add_latencies(side, &result);
	side_add(side, "faults_per_s", (double)result.touched * 1e9 / (double)(result.end_ns - result.start_ns));
	return 0;
}

static int case_fault(struct bench *bench, struct observe_run *run, struct error *err)
{
	struct bench_case *c = case_new("fault", "a demand fault, observed or not", err);

	if (!c)
		return -ENOMEM;
	snprintf(c->details, sizeof c->details, "%llu pages touched once each, in random order, on CPU %d; tier %s",
		 (unsigned long long)bench_size(bench, PAGES_FULL, PAGES_QUICK), bench->cpu_list[0], run->tier);
	case_add_side(c, "off", "not observed");
	case_add_side(c, "off_again", "the same once more");
	case_add_side(c, "on", "observed");
	c->again[0] = "off_again";
	c->again[1] = "off";
	case_add_ratio(c,
		       (struct ratio){ "p50: observed / not observed", "p50_us", "on", "off", TARGET_LATENCY, false });
	case_add_ratio(c,
		       (struct ratio){ "p99: observed / not observed", "p99_us", "on", "off", TARGET_LATENCY, false });
	return bench_alternate(bench, c, measure_fault, run, err);
}

/* ---- many ---- */

static int measure_flood(struct bench *bench, struct bench_case *c __attribute__((unused)), struct side *side,
			 unsigned round, void *data, struct error *err)
{
	struct observe_run *run = data;
	double seen = 0, lost = 0;
	int r = 0;

	for (unsigned i = 0; i < FLOOD_GUESTS && r == 0; i++)
		r = start_guest(bench, run, server_of(run, side), bench_size(bench, PAGES_FULL, PAGES_QUICK), 0,
				(uint64_t)round << 32 | i, err);
	if (r == 0)
		r = lead_to_touch(bench, run, err);
	if (r == 0)
		r = touch_all(bench, run, err);
	if (r == 0 && !strcmp(side->id, "on"))
		r = count_events(run, &seen, &lost, err);
	if (r < 0)
		return r;
	side_add(side, "faults_per_s", rate_of(run));
	if (!strcmp(side->id, "on")) {
		side_add(side, "seen", seen);
		side_add(side, "lost", lost);
	}
	return end_all(bench, run, server_of(run, side), err);
}

static int case_flood(struct bench *bench, struct observe_run *run, struct error *err)
{
	struct bench_case *c = case_new("flood", "as many faults as there can be", err);

	if (!c)
		return -ENOMEM;
	snprintf(c->details, sizeof c->details, "%d forks of %llu pages each, on all CPUs; ring of the default size",
		 FLOOD_GUESTS, (unsigned long long)bench_size(bench, PAGES_FULL, PAGES_QUICK));
	case_add_side(c, "off", "not observed");
	case_add_side(c, "off_again", "the same once more");
	case_add_side(c, "on", "observed");
	c->again[0] = "off_again";
	c->again[1] = "off";
	case_add_ratio(c, (struct ratio){ "faults a second: observed / not observed", "faults_per_s", "on", "off", 0,
					  false });
	case_add_limit(c, (struct limit){ .label = "events lost", .metric = "lost", .side = "on", .target = 0 });
	case_add_limit(c, (struct limit){ .label = "at so many faults a second",
					  .metric = "faults_per_s",
					  .side = "on",
					  .target = TARGET_RATE,
					  .at_least = true });
	return bench_alternate(bench, c, measure_flood, run, err);
}

/* ---- the reader ---- */

static int measure_paced(struct bench *bench, struct bench_case *c __attribute__((unused)), struct side *side,
			 unsigned round, void *data, struct error *err)
{
	struct observe_run *run = data;
	struct bench_server *server = server_of(run, side);
	uint64_t pages = bench_size(bench, PAGES_FULL, PAGES_QUICK), before = 0, after = 0, whole_before, whole_after;
	bool on = server == &run->on;
	int r = start_guest(bench, run, server, pages, NSEC_PER_SEC / PACED_RATE, round, err);

	if (r == 0)
		r = lead_to_touch(bench, run, err);
	if (r == 0 && on)
		r = bench_server_thread_cpu_ns(server, "observer", &before, err);
	if (r == 0)
		r = bench_server_cpu_ns(server, &whole_before, err);
	uint64_t start = now_ns();
	if (r == 0)
		r = touch_all(bench, run, err);
	double seconds = (double)(now_ns() - start) / 1e9;
	if (r == 0)
		r = bench_server_cpu_ns(server, &whole_after, err);
	if (r == 0 && on)
		r = bench_server_thread_cpu_ns(server, "observer", &after, err);
	if (r < 0)
		return r;
	side_add(side, "faults_per_s", rate_of(run));
	if (on)
		side_add(side, "observer_ms_per_s", (double)(after - before) / 1e6 / seconds);
	side_add(side, "cpu_ms_per_s", (double)(whole_after - whole_before) / 1e6 / seconds);
	return end_all(bench, run, server, err);
}

static int case_paced(struct bench *bench, struct observe_run *run, struct error *err)
{
	struct bench_case *c = case_new("paced", "what reading the events takes", err);

	if (!c)
		return -ENOMEM;
	snprintf(c->details, sizeof c->details,
		 "one fork that touches a page every %llu us; CPU time of the server's threads",
		 (unsigned long long)(NSEC_PER_SEC / PACED_RATE / NSEC_PER_USEC));
	case_add_side(c, "off", "not observed");
	case_add_side(c, "on", "observed");
	case_add_ratio(c, (struct ratio){ "the server's CPU time: observed / not observed", "cpu_ms_per_s", "on", "off",
					  0, false });
	case_add_limit(c, (struct limit){ .label = "the observer's CPU time, ms a second",
					  .metric = "observer_ms_per_s",
					  .side = "on",
					  .target = TARGET_READER });
	return bench_alternate(bench, c, measure_paced, run, err);
}

/* ---- at rest ---- */

/* One look at the server, a while in which nobody asks anything of it, and another look. */
static int watch(struct bench *bench, struct bench_server *server, struct side *side, struct error *err)
{
	uint64_t cpu[2] = { 0 }, wakeups[2] = { 0 }, start = 0;
	double seconds = 0;
	int r = 0;

	for (unsigned i = 0; i < 2 && r == 0; i++) {
		if (i == 1)
			r = processes_wait(&bench->processes, -1,
					   bench_size(bench, IDLE_INTERVAL_FULL, IDLE_INTERVAL_QUICK), err);
		if (r == 0)
			r = bench_server_cpu_ns(server, &cpu[i], err);
		if (r == 0)
			r = bench_server_wakeups(server, &wakeups[i], err);
		seconds = (double)(now_ns() - start) / 1e9;
		start = now_ns();
	}
	if (r < 0)
		return r;
	side_add(side, "cpu_ms_per_s", (double)(cpu[1] - cpu[0]) / 1e6 / seconds);
	side_add(side, "wakeups_per_s", (double)(wakeups[1] - wakeups[0]) / seconds);
	return 0;
}

static int measure_idle(struct bench *bench, struct bench_case *c __attribute__((unused)), struct side *side,
			unsigned round __attribute__((unused)), void *data, struct error *err)
{
	struct observe_run *run = data;
	struct bench_server *server = server_of(run, side);
	unsigned forks = (unsigned)bench_size(bench, IDLE_FORKS_FULL, IDLE_FORKS_QUICK);
	int r = 0;

	while (run->count < forks && r == 0) {
		r = start_guest(bench, run, server, 0, 0, 0, err);
		if (r == 0)
			r = process_await(&bench->processes, run->guests[run->count - 1].process, GUEST_WARM, err);
		if (r == 0)
			r = bench_server_wait_fork(server, run->guests[run->count - 1].id, "connected", NULL, err);
	}
	if (r == 0)
		r = processes_wait(&bench->processes, -1, IDLE_REST, err);
	if (r == 0)
		r = watch(bench, server, side, err);
	if (r == 0)
		r = tell_all(run, GUEST_END, err);
	return r < 0 ? r : end_all(bench, run, server, err);
}

static int case_idle(struct bench *bench, struct observe_run *run, struct error *err)
{
	struct bench_case *c = case_new("idle", "forks that do nothing", err);

	if (!c)
		return -ENOMEM;
	snprintf(c->details, sizeof c->details, "%llu idle forks, nobody asks anything of the server",
		 (unsigned long long)bench_size(bench, IDLE_FORKS_FULL, IDLE_FORKS_QUICK));
	case_add_side(c, "off", "not observed");
	case_add_side(c, "on", "observed");
	case_add_limit(c, (struct limit){ .label = "server's CPU time, observed, ms a second",
					  .metric = "cpu_ms_per_s",
					  .side = "on",
					  .target = TARGET_IDLE });
	case_add_limit(c, (struct limit){ .label = "wake-ups a second, observed",
					  .metric = "wakeups_per_s",
					  .side = "on",
					  .target = TARGET_IDLE });
	return bench_alternate(bench, c, measure_idle, run, err);
}

/* ---- the group ---- */

static const struct {
	const char *id, *title;
	int (*run)(struct bench *bench, struct observe_run *run, struct error *err);
} cases[] = {
	{ "fault", "a demand fault, observed or not", case_fault },
	{ "flood", "as many faults as there can be", case_flood },
	{ "paced", "what reading the events takes", case_paced },
	{ "idle", "forks that do nothing", case_idle },
};

static int skip_case(struct bench *bench, unsigned index, struct error *err)
{
	struct bench_case *c = case_new(cases[index].id, cases[index].title, err);

	if (!c)
		return -ENOMEM;
	case_skip(c, "nothing can be observed here; 'faultline doctor' says why");
	return bench_add_case(bench, c, err);
}

static int start_server(struct bench *bench, struct observe_run *run, const char *observe, struct bench_server *server,
			struct error *err)
{
	char dir[sizeof bench->dir + 8];

	snprintf(dir, sizeof dir, "%s/%s", bench->dir, observe);
	if (mkdir(dir, 0700) < 0)
		return error_set(err, -errno, "bench_failed", "can't make the directory %s: %s", dir, strerror(errno));
	int r = bench_server_start_observed(&bench->processes, bench->options, dir, observe, server, err);
	return r < 0 ? r : bench_server_add_template(server, "base", &run->image, err);
}

static int stop_server(struct bench_server *server, int result, struct error *err)
{
	if (!server->process)
		return result;
	if (result == 0)
		return bench_server_stop(server, err);
	bench_server_drop(server);
	return result;
}

int bench_observe(struct bench *bench, struct error *err)
{
	struct observe_run *run = calloc(1, sizeof *run);
	uint64_t pages = bench_size(bench, PAGES_FULL, PAGES_QUICK) + GUEST_SPARE_PAGES;

	if (!run)
		return error_set(err, -ENOMEM, "bench_failed", "there is not enough memory");
	run->on.pidfd = run->off.pidfd = -1;
	int r = bench_image_make(bench->dir, "observe", pages, 0, &run->image, err);
	if (r == 0)
		r = start_server(bench, run, "off", &run->off, err);
	if (r == 0)
		r = start_server(bench, run, "auto", &run->on, err);
	if (r == 0)
		r = bench_server_tier(&run->on, run->tier, err);
	for (unsigned i = 0; i < sizeof cases / sizeof *cases && r == 0; i++)
		r = strcmp(run->tier, "none") ? cases[i].run(bench, run, err) : skip_case(bench, i, err);
	r = stop_server(&run->off, r, err);
	r = stop_server(&run->on, r, err);
	free(run);
	return r;
}
