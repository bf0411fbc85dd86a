/* What one demand fault costs: a server against bare loops in the same place, for one, two and four vCPUs. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "bench/run.h"

#define PAGES_FULL  8192 /* a vCPU */
#define PAGES_QUICK 2048
#define CASE_VCPUS  4 /* of the largest case */

#define TARGET_PINNED 1.10
#define TARGET_FREE   0.50

struct fault_run {
	struct bench_server server;
	struct bench_image image, written; /* the second is open for writing as long as the run takes */
	uint64_t round_seed;
	unsigned vcpus;
	bool pinned;
};

/* Where the loops of a side stand. */
enum place { PLACE_GUEST, PLACE_OTHER, PLACE_ANY };

struct fault_side {
	const char *id, *label;
	enum { SUPPLY_SERVER, SUPPLY_WRITTEN, SUPPLY_LOOP, SUPPLY_KERNEL, SUPPLY_NOBODY } supply;
	enum place place;
	bool spin;
};

static const struct fault_side sides[] = {
	{ "ours", "faultline", SUPPLY_SERVER, PLACE_ANY, false },
	{ "ours_written", "faultline, image open for writing", SUPPLY_WRITTEN, PLACE_ANY, false },
	{ "loop_guest", "bare loop on the guest's CPU", SUPPLY_LOOP, PLACE_GUEST, false },
	{ "loop_guest_again", "the same once more", SUPPLY_LOOP, PLACE_GUEST, false },
	{ "loop_other", "bare loop on another CPU, asleep", SUPPLY_LOOP, PLACE_OTHER, false },
	{ "loop_spinning", "bare loop on another CPU, spinning", SUPPLY_LOOP, PLACE_OTHER, true },
	{ "loops_guest", "a bare loop on each of the CPUs", SUPPLY_LOOP, PLACE_GUEST, false },
	{ "loops_guest_again", "the same once more", SUPPLY_LOOP, PLACE_GUEST, false },
	{ "loop_free", "bare loop left to the scheduler", SUPPLY_LOOP, PLACE_ANY, false },
	{ "loop_free_again", "the same once more", SUPPLY_LOOP, PLACE_ANY, false },
	{ "mmap", "plain mmap of the image", SUPPLY_KERNEL, PLACE_ANY, false },
	{ "present", "everything present", SUPPLY_NOBODY, PLACE_ANY, false },
};

static const struct fault_side *side_of(const char *id)
{
	for (unsigned i = 0; i < sizeof sides / sizeof *sides; i++)
		if (!strcmp(sides[i].id, id))
			return &sides[i];
	return NULL;
}

static void place_guest(const struct bench *bench, const struct fault_run *run, struct guest_spec *guest)
{
	guest->vcpus = run->vcpus;
	for (unsigned i = 0; i < run->vcpus; i++)
		guest->cpus[i] = run->pinned ? bench->cpu_list[i % bench->cpu_count] : GUEST_ANY_CPU;
}

static void place_loops(const struct bench *bench, const struct fault_run *run, const struct fault_side *side,
			struct floor_loop *floor)
{
	floor->loops = 1;
	floor->spin = side->spin;
	floor->cpus[0] = side->place == PLACE_OTHER ? bench->cpu_list[1] : GUEST_ANY_CPU;
	if (side->place != PLACE_GUEST)
		return;
	floor->loops = run->vcpus < bench->cpu_count ? run->vcpus : bench->cpu_count;
	for (unsigned i = 0; i < floor->loops; i++)
		floor->cpus[i] = bench->cpu_list[i];
}

static int measure(struct bench *bench, struct bench_case *c __attribute__((unused)), struct side *side, unsigned round,
		   void *data, struct error *err)
{
	struct fault_run *run = data;
	const struct fault_side *what = side_of(side->id);
	struct floor_loop floor = { .image = &run->image, .guests = 1 };
	struct bench_visit visit = {
		.guest = { .image = &run->image,
			   .pages = run->vcpus * bench_size(bench, PAGES_FULL, PAGES_QUICK),
			   .seed = round },
	};
	struct guest_result result;

	place_guest(bench, run, &visit.guest);
	switch (what->supply) {
	case SUPPLY_SERVER:
	case SUPPLY_WRITTEN:
		visit.server = &run->server;
		visit.template = what->supply == SUPPLY_WRITTEN ? "written" : "base";
		break;
	case SUPPLY_LOOP:
		place_loops(bench, run, what, &floor);
		visit.floor = &floor;
		break;
	case SUPPLY_KERNEL:
		visit.guest.memory = GUEST_MMAP;
		break;
	case SUPPLY_NOBODY:
		visit.guest.memory = GUEST_PRESENT;
		break;
	}
	int r = bench_visit(bench, &visit, &result, err);
	if (r < 0)
		return r;
	side_add_latencies(side, &result);
	side_add(side, "faults_per_s", (double)result.touched * 1e9 / (double)(result.end_ns - result.start_ns));
	return 0;
}

struct fault_case {
	const char *id, *title;
	unsigned vcpus;
	bool pinned;
	const char *sides[SIDES_MAX];
	const char *again[2];
	const char *floors; /* the best of them is what faultline is held against */
	double target;	    /* 0: none, of p50 and p99 */
};

static const struct fault_case cases[] = {
	{ "one_pinned",
	  "one vCPU, pinned",
	  1,
	  true,
	  { "ours", "ours_written", "loop_guest", "loop_guest_again", "loop_other", "loop_spinning", "mmap", "present" },
	  { "loop_guest_again", "loop_guest" },
	  "loop_guest loop_other loop_spinning",
	  TARGET_PINNED },
	{ "two_pinned",
	  "two vCPUs, pinned to two CPUs",
	  2,
	  true,
	  { "ours", "loops_guest", "loops_guest_again" },
	  { "loops_guest_again", "loops_guest" },
	  "loops_guest",
	  TARGET_PINNED },
	{ "four_pinned",
	  "four vCPUs, pinned",
	  4,
	  true,
	  { "ours", "loops_guest", "loops_guest_again" },
	  { "loops_guest_again", "loops_guest" },
	  "loops_guest",
	  0 },
	{ "one_free",
	  "one vCPU, everything left to the scheduler",
	  1,
	  false,
	  { "ours", "loop_free", "loop_free_again" },
	  { "loop_free_again", "loop_free" },
	  "loop_free",
	  TARGET_FREE },
	{ "two_free",
	  "two vCPUs, everything left to the scheduler",
	  2,
	  false,
	  { "ours", "loop_free", "loop_free_again" },
	  { "loop_free_again", "loop_free" },
	  "loop_free",
	  TARGET_FREE },
	{ "four_free",
	  "four vCPUs, everything left to the scheduler",
	  4,
	  false,
	  { "ours", "loop_free", "loop_free_again" },
	  { "loop_free_again", "loop_free" },
	  "loop_free",
	  0 },
};

static void describe(const struct bench *bench, const struct fault_case *plan, struct bench_case *c)
{
	unsigned long long pages = plan->vcpus * bench_size(bench, PAGES_FULL, PAGES_QUICK);
	unsigned cpus = plan->vcpus < bench->cpu_count ? plan->vcpus : bench->cpu_count;
	int n = snprintf(c->details, sizeof c->details, "%llu pages touched once each, in random order", pages);

	if (!plan->pinned)
		return;
	n += snprintf(c->details + n, sizeof c->details - (size_t)n, "; the guest on CPU %d", bench->cpu_list[0]);
	for (unsigned i = 1; i < cpus; i++)
		n += snprintf(c->details + n, sizeof c->details - (size_t)n, ", %d", bench->cpu_list[i]);
	if (plan->vcpus == 1 && bench->cpu_count > 1)
		snprintf(c->details + n, sizeof c->details - (size_t)n, "; the other CPU is %d", bench->cpu_list[1]);
}

static void add_ratios(const struct fault_case *plan, struct bench_case *c)
{
	const char *against =
		strchr(plan->floors, ' ') ? "p50: faultline / the best loop" : "p50: faultline / bare loop";
	const char *against_p99 =
		strchr(plan->floors, ' ') ? "p99: faultline / the best loop" : "p99: faultline / bare loop";

	case_add_ratio(c, (struct ratio){ against, "p50_us", "ours", plan->floors, plan->target, false });
	case_add_ratio(c, (struct ratio){ against_p99, "p99_us", "ours", plan->floors, plan->target, false });
	if (case_side(c, "ours_written")) {
		case_add_ratio(c, (struct ratio){ "p50: the same, image open for writing", "p50_us", "ours_written",
						  plan->floors, 0, false });
		case_add_ratio(c, (struct ratio){ "p99: the same, image open for writing", "p99_us", "ours_written",
						  plan->floors, 0, false });
	}
}

static int run_case(struct bench *bench, struct fault_run *run, const struct fault_case *plan, struct error *err)
{
	struct bench_case *c = case_new(plan->id, plan->title, err);

	if (!c)
		return -ENOMEM;
	describe(bench, plan, c);
	if (plan->pinned && plan->vcpus > 1 && bench->cpu_count < 2) {
		case_skip(c, "it needs two CPUs, and this process may run on one only");
		return bench_add_case(bench, c, err);
	}
	for (unsigned i = 0; i < SIDES_MAX && plan->sides[i]; i++) {
		const struct fault_side *side = side_of(plan->sides[i]);

		if (side->place == PLACE_OTHER && bench->cpu_count < 2)
			snprintf(c->details + strlen(c->details), sizeof c->details - strlen(c->details),
				 "; no %s, as this process may run on one CPU only", side->label);
		else
			case_add_side(c, side->id, side->label);
	}
	c->again[0] = plan->again[0];
	c->again[1] = plan->again[1];
	add_ratios(plan, c);
	run->vcpus = plan->vcpus;
	run->pinned = plan->pinned;
	return bench_alternate(bench, c, measure, run, err);
}

static int run_cases(struct bench *bench, struct fault_run *run, struct error *err)
{
	/* Before the template is added, as a VMM whose memory backend the image is has it open before its forks come. */
	_cleanup_close_ int writer = open(run->written.path, O_RDWR | O_CLOEXEC);
	int r = writer < 0
			? error_set(err, -errno, "bench_failed", "can't open %s: %s", run->written.path, strerror(errno))
			: bench_server_add_template(&run->server, "base", &run->image, err);

	if (r == 0)
		r = bench_server_add_template(&run->server, "written", &run->written, err);
	for (unsigned i = 0; i < sizeof cases / sizeof *cases && r == 0; i++)
		r = run_case(bench, run, &cases[i], err);
	return r;
}

int bench_fault(struct bench *bench, struct error *err)
{
	uint64_t pages = CASE_VCPUS * bench_size(bench, PAGES_FULL, PAGES_QUICK) + GUEST_SPARE_PAGES;
	struct fault_run run = { .vcpus = 1 };
	int r = bench_image_make(bench->dir, "fault", pages, 0, &run.image, err);

	if (r == 0)
		r = bench_image_make(bench->dir, "fault-written", pages, 0, &run.written, err);
	if (r == 0)
		r = bench_server_start(&bench->processes, bench->options, bench->dir, &run.server, err);
	if (r < 0)
		return r;
	r = run_cases(bench, &run, err);
	if (r == 0)
		return bench_server_stop(&run.server, err);
	bench_server_drop(&run.server);
	return r;
}
