#include "bench/run.h"
#include "bench/order.h"

#include <errno.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <time.h>

#include "base/clock.h"
#include "bench/noise.h"

/* What guests, images and processes take at most, with room to spare. */
#define MEMORY_FULL  (1536ull << 20)
#define MEMORY_QUICK (512ull << 20)

/* How long a server's counter may lag behind, and how often it is looked at. */
#define COUNT_PATIENCE_NS (10 * NSEC_PER_SEC)
#define COUNT_AGAIN_NS	  (10 * NSEC_PER_MSEC)

static const struct {
	const char *name;
	int (*run)(struct bench *bench, struct error *err);
} groups[BENCH_GROUPS] = {
	[BENCH_FAULT] = { "fault", bench_fault },	[BENCH_PREFETCH] = { "prefetch", bench_prefetch },
	[BENCH_IDLE] = { "idle", bench_idle },		[BENCH_FAIRNESS] = { "fairness", bench_fairness },
	[BENCH_OBSERVE] = { "observe", bench_observe }, [BENCH_ORDER] = { "order", bench_order },
	[BENCH_READY] = { "ready", bench_ready },
};

const char *bench_group_name(enum bench_group group)
{
	return groups[group].name;
}

/* ---- cases ---- */

struct bench_case *case_new(const char *id, const char *title, struct error *err)
{
	struct bench_case *c = calloc(1, sizeof *c);

	if (!c) {
		error_set(err, -ENOMEM, "bench_failed", "there is not enough memory for a case");
		return NULL;
	}
	c->id = id;
	c->title = title;
	return c;
}

int bench_add_case(struct bench *bench, struct bench_case *c, struct error *err)
{
	json_t *json = case_to_json(c);
	int r = json && json_array_append_new(bench->cases, json) == 0 ? 0 : -EINVAL;

	if (r < 0)
		error_set(err, r, "bench_failed", "%s gave figures that are no numbers", c->title);
	free(c);
	return r;
}

const char *bench_name(enum bench_kind kind, unsigned index)
{
	static const char *(*const names[BENCH_KINDS])(unsigned) = {
		[BENCH_ORDER_SITUATION] = order_situation_name,
		[BENCH_READY_SITUATION] = ready_situation_name,
		[BENCH_WORKLOAD] = workload_name,
	};

	return names[kind](index);
}

bool bench_wants(const struct bench *bench, enum bench_kind kind, unsigned index, bool quick)
{
	uint32_t only = bench->options->only[kind];

	return only ? only >> index & 1 : quick || !bench->options->quick;
}

void bench_show_progress(const struct bench *bench, const char *format, ...)
{
	char text[200];
	va_list ap;

	va_start(ap, format);
	vsnprintf(text, sizeof text, format, ap);
	va_end(ap);
	if (bench->options->progress)
		bench->options->progress(bench->options->data, text);
}

static int measure_round(struct bench *bench, struct bench_case *c, unsigned round, bench_measure *measure, void *data,
			 struct error *err)
{
	for (unsigned i = 0; i < c->side_count; i++) {
		unsigned place = (i + round) % c->side_count;
		struct side *side = &c->sides[round % 2 ? c->side_count - 1 - place : place];

		if (round == 0)
			bench_show_progress(bench, "%s: %s, warming up: %s", bench->group, c->title, side->label);
		else
			bench_show_progress(bench, "%s: %s, round %u of %u: %s", bench->group, c->title, round,
					    bench->options->rounds, side->label);
		int r = measure(bench, c, side, round, data, err);
		if (r < 0)
			return error_prefix(err, r, "%s, %s: ", c->title, side->label);
	}
	return 0;
}

int bench_alternate(struct bench *bench, struct bench_case *c, bench_measure *measure, void *data, struct error *err)
{
	for (unsigned round = 0; round <= bench->options->rounds; round++) {
		int r = measure_round(bench, c, round, measure, data, err);
		if (r < 0) {
			free(c);
			return r;
		}
		for (unsigned i = 0; i < c->side_count && round == 0; i++)
			c->sides[i].metric_count = 0;
	}
	return bench_add_case(bench, c, err);
}

/* ---- one guest ---- */

void bench_fork_id(struct bench *bench, char ret[static 24])
{
	snprintf(ret, 24, "b%u", bench->forks++);
}

/*
 * Every page came from the server, and none twice. The pager counts a page when its guest runs on already, and may have been put off its
 * CPU in between: so a number that is still too small is asked for again.
 */
static int check_counts(struct bench *bench, struct bench_server *server, const char *id, uint64_t expected,
			struct error *err)
{
	uint64_t end = now_ns() + COUNT_PATIENCE_NS;

	for (;;) {
		json_t *fork = NULL;
		int r = bench_server_show_fork(server, id, &fork, err);

		if (r < 0)
			return r;
		uint64_t copied = (uint64_t)json_integer_value(json_object_get(fork, "copied_pages"));
		json_decref(fork);
		if (copied == expected)
			return 0;
		if (copied > expected || now_ns() > end)
			return error_set(err, -EPROTO, "bench_failed",
					 "the server says that it copied %" PRIu64
					 " pages for demand faults, but the guest touched %" PRIu64,
					 copied, expected);
		r = processes_wait(&bench->processes, -1, COUNT_AGAIN_NS, err);
		if (r < 0)
			return r;
	}
}

static int start_floor(struct bench *bench, const struct floor_loop *floor, struct process **ret, int *ret_guest_end,
		       struct error *err)
{
	int ends[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		return error_set(err, -errno, "bench_failed", "can't make a socket: %s", strerror(errno));
	_cleanup_close_ int guest_end = ends[0];
	int r = process_start(&bench->processes, "a bare loop", &ends[1], 1, floor_loop_body, floor, ret, err);
	close(ends[1]);
	if (r == 0)
		r = process_await(&bench->processes, *ret, FLOOR_READY, err);
	if (r < 0)
		return r;
	(*ret)->steady = true;
	*ret_guest_end = TAKE_FD(guest_end);
	return 0;
}

static int lead_guest(struct bench *bench, struct process *guest, struct error *err)
{
	static const struct {
		char await, tell;
	} steps[] = { { GUEST_MAPPED, GUEST_GO }, { GUEST_WARM, GUEST_TOUCH } };

	for (unsigned i = 0; i < 2; i++) {
		int r = process_await(&bench->processes, guest, steps[i].await, err);
		if (r == 0)
			r = process_tell(guest, steps[i].tell, err);
		if (r < 0)
			return r;
	}
	return process_await(&bench->processes, guest, GUEST_DONE, err);
}

int bench_visit(struct bench *bench, const struct bench_visit *visit, struct guest_result *ret, struct error *err)
{
	struct guest_spec spec = visit->guest;
	struct process *floor = NULL, *guest;
	_cleanup_close_ int guest_end = -1;
	char id[24], socket_path[SOCKET_PATH_SIZE];
	int r = 0;

	if (visit->server) {
		bench_fork_id(bench, id);
		r = bench_server_create_fork(visit->server, visit->template, id, NULL, socket_path, err);
		spec.socket = socket_path;
	} else if (visit->floor) {
		r = start_floor(bench, visit->floor, &floor, &guest_end, err);
	}
	if (r == 0)
		r = process_start(&bench->processes, "a guest", &guest_end, floor ? 1 : 0, guest_body, &spec, &guest,
				  err);
	if (r == 0)
		r = lead_guest(bench, guest, err);
	if (r < 0)
		return r;
	memcpy(ret, guest->shared->result, sizeof *ret);
	if (visit->server)
		r = check_counts(bench, visit->server, id, spec.pages + spec.vcpus, err);
	if (r == 0)
		r = process_join(&bench->processes, guest, err);
	process_kill(&bench->processes, floor);
	if (r == 0 && visit->server)
		r = bench_server_end_fork(visit->server, id, err);
	return r;
}

void side_add_latencies(struct side *side, const struct guest_result *result)
{
	side_add(side, "p50_us", (double)result->p50_ns / 1e3);
	side_add(side, "p90_us", (double)result->p90_ns / 1e3);
	side_add(side, "p99_us", (double)result->p99_ns / 1e3);
	side_add(side, "max_us", (double)result->max_ns / 1e3);
}

/* ---- the report ---- */

static void cpu_model(char *ret, size_t size)
{
	_cleanup_fclose_ FILE *file = fopen("/proc/cpuinfo", "re");
	_cleanup_free_ char *line = NULL;
	size_t capacity = 0;

	snprintf(ret, size, "unknown");
	while (file && getline(&line, &capacity, file) > 0) {
		const char *colon = strchr(line, ':');
		if (strncmp(line, "model name", 10) || !colon)
			continue;
		snprintf(ret, size, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
		return;
	}
}

static uint64_t meminfo(const char *name)
{
	_cleanup_fclose_ FILE *file = fopen("/proc/meminfo", "re");
	char line[128];
	unsigned long long kib;

	while (file && fgets(line, sizeof line, file))
		if (!strncmp(line, name, strlen(name)) && sscanf(line + strlen(name), ": %llu", &kib) == 1)
			return (uint64_t)kib << 10;
	return 0;
}

/* What this program was built for: figures of a build for finding mistakes say nothing about speed. */
static const char *build_kind(void)
{
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
	return "sanitizer";
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	return "sanitizer";
#elif !defined(__OPTIMIZE__)
	return "debug";
#else
	return "optimised";
#endif
}

static json_t *machine_to_json(const struct bench *bench)
{
	struct utsname system = { 0 };
	char model[128];
	json_t *cpus = json_array();

	uname(&system);
	cpu_model(model, sizeof model);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET((size_t)cpu, &bench->cpus))
			json_array_append_new(cpus, json_integer(cpu));
	return json_pack("{s:s,s:o,s:s,s:I}", "cpu", model, "cpus", cpus, "kernel", system.release, "memory",
			 (json_int_t)meminfo("MemTotal"));
}

static json_t *new_report(const struct bench *bench)
{
	char date[32];
	time_t now = time(NULL);
	struct tm utc;

	strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
	return json_pack("{s:s,s:s,s:s,s:i,s:b,s:o,s:[]}", "version", bench->options->version, "build", build_kind(),
			 "date", date, "rounds", bench->options->rounds, "quick", bench->options->quick, "machine",
			 machine_to_json(bench), "groups");
}

/* ---- the run ---- */

static int remove_entry(const char *path, const struct stat *st __attribute__((unused)),
			int kind __attribute__((unused)), struct FTW *place __attribute__((unused)))
{
	return remove(path);
}

static void remove_tree(const char *path)
{
	nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
}

/* Each group has a directory of its own, so that the page cache need not keep the images of all. */
static int make_group_dir(struct bench *bench, struct error *err)
{
	snprintf(bench->dir, sizeof bench->dir, "%s/%s", bench->top, bench->group);
	if (mkdir(bench->dir, 0700) < 0)
		return error_set(err, -errno, "bench_failed", "can't make the directory %s: %s", bench->dir,
				 strerror(errno));
	return 0;
}

static int run_group(struct bench *bench, enum bench_group group, json_t *report, struct error *err)
{
	struct noise_meter meter;

	bench->group = groups[group].name;
	bench->cases = json_array();
	noise_start(&meter, &bench->cpus);
	int r = make_group_dir(bench, err);
	if (r == 0)
		r = groups[group].run(bench, err);
	if (r < 0) {
		json_decref(bench->cases);
		return !strcmp(err->code, "interrupted") ? r : error_prefix(err, r, "%s: ", bench->group);
	}
	remove_tree(bench->dir);
	json_t *json = json_pack("{s:s,s:o,s:f,s:o}", "name", bench->group, "noise", noise_stop(&meter), "seconds",
				 (double)((now_ns() - meter.wall_ns) / NSEC_PER_MSEC) / 1e3, "cases", bench->cases);
	return json && json_array_append_new(json_object_get(report, "groups"), json) == 0
		       ? 0
		       : error_set(err, -ENOMEM, "bench_failed", "there is not enough memory for the report");
}

static int make_dir(struct bench *bench, struct error *err)
{
	char path[sizeof bench->top];

	if ((size_t)snprintf(path, sizeof path, "%s/faultline-bench-XXXXXX", bench->options->dir) >= sizeof path)
		return error_set(err, -ENAMETOOLONG, "bench_failed", "the path %s is too long: choose a shorter --dir",
				 bench->options->dir);
	if (!mkdtemp(path))
		return error_set(err, -errno, "bench_failed",
				 "can't make a directory in %s: %s; --dir names another place", bench->options->dir,
				 strerror(errno));
	memcpy(bench->top, path, sizeof path);
	return 0;
}

static int find_cpus(struct bench *bench, struct error *err)
{
	if (sched_getaffinity(0, sizeof bench->cpus, &bench->cpus) < 0)
		return error_set(err, -errno, "bench_failed", "can't find out which CPUs there are: %s",
				 strerror(errno));
	for (int cpu = 0; cpu < CPU_SETSIZE && bench->cpu_count < GUEST_VCPUS_MAX; cpu++)
		if (CPU_ISSET((size_t)cpu, &bench->cpus))
			bench->cpu_list[bench->cpu_count++] = cpu;
	return 0;
}

static int check_memory(const struct bench *bench, struct error *err)
{
	uint64_t needed = bench_size(bench, MEMORY_FULL, MEMORY_QUICK), there = meminfo("MemAvailable");

	if (there == 0 || there >= needed)
		return 0;
	return error_set(err, -ENOMEM, "bench_failed",
			 "%" PRIu64 " MiB of memory are needed, but only %" PRIu64 " MiB are available%s", needed >> 20,
			 there >> 20, bench->options->quick ? "" : "; --quick needs less");
}

/* Each child costs a descriptor here and some in the server, which raises its own limit. */
static void raise_file_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

static int run_groups(struct bench *bench, json_t **ret, struct error *err)
{
	json_t *report;
	int r = find_cpus(bench, err);

	if (r == 0)
		r = check_memory(bench, err);
	if (r == 0)
		r = make_dir(bench, err);
	if (r < 0)
		return r;
	report = new_report(bench);
	for (int group = 0; group < BENCH_GROUPS && r == 0; group++)
		if (bench->options->groups[group])
			r = run_group(bench, (enum bench_group)group, report, err);
	if (bench->options->progress)
		bench->options->progress(bench->options->data, NULL);
	if (r == 0)
		*ret = report;
	else
		json_decref(report);
	return r;
}

int bench_run(const struct bench_options *options, json_t **ret, struct error *err)
{
	struct bench bench = { .options = options };
	int r = processes_open(&bench.processes, err);

	if (r < 0)
		return r;
	raise_file_limit();
	r = run_groups(&bench, ret, err);
	processes_kill(&bench.processes);
	if (bench.top[0])
		remove_tree(bench.top);
	processes_close(&bench.processes);
	return r;
}
