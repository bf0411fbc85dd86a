/* One run of the benchmark: what its groups share. */
#pragma once

#include <sched.h>

#include "bench/bench.h"
#include "bench/floor.h"
#include "bench/guest.h"
#include "bench/process.h"
#include "bench/result.h"
#include "bench/server.h"

struct bench {
	const struct bench_options *options;
	struct processes processes;
	char top[256];	/* all of the run's files */
	char dir[300];	/* the group's */
	cpu_set_t cpus; /* that this process may run on */
	int cpu_list[GUEST_VCPUS_MAX];
	unsigned cpu_count; /* of cpu_list */
	unsigned forks;	    /* made so far, for their ids */
	const char *group;
	json_t *cases; /* of the group */
};

/* Each makes its images, starts its server, runs its cases, and stops the server. */
int bench_fault(struct bench *bench, struct error *err);
int bench_prefetch(struct bench *bench, struct error *err);
int bench_idle(struct bench *bench, struct error *err);
int bench_fairness(struct bench *bench, struct error *err);
int bench_observe(struct bench *bench, struct error *err);
int bench_order(struct bench *bench, struct error *err);
int bench_ready(struct bench *bench, struct error *err);

/* Whether that one is wanted; QUICK: it is part of a quick look. */
bool bench_wants(const struct bench *bench, enum bench_kind kind, unsigned index, bool quick);

void bench_show_progress(const struct bench *bench, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* FULL, or QUICK where the run is to be a quick one. */
static inline uint64_t bench_size(const struct bench *bench, uint64_t full, uint64_t quick)
{
	return bench->options->quick ? quick : full;
}

/* Measures one side in one round, and adds its values to the side. */
typedef int bench_measure(struct bench *bench, struct bench_case *c, struct side *side, unsigned round, void *data,
			  struct error *err);

/*
 * Runs the rounds of a case: in each, all sides in turn, in another order each time. What a first round gives is thrown away: files,
 * allocators and the server are warm after it. The result goes to bench->cases. C was made by case_new, and is freed.
 */
int bench_alternate(struct bench *bench, struct bench_case *c, bench_measure *measure, void *data, struct error *err);
/* The same for a case that is not run (case_skip). */
int bench_add_case(struct bench *bench, struct bench_case *c, struct error *err);
struct bench_case *case_new(const char *id, const char *title, struct error *err);

/* An id that no fork of this run has had. */
void bench_fork_id(struct bench *bench, char ret[static 24]);

/* A guest that touches its pages once, and who supplies them. */
struct bench_visit {
	struct guest_spec guest;	/* socket is filled in */
	struct bench_server *server;	/* supplies the pages by demand faults ... */
	const char *template;		/* ... as a fork of this one; */
	const struct floor_loop *floor; /* or these loops; both NULL: nobody has to */
};
int bench_visit(struct bench *bench, const struct bench_visit *visit, struct guest_result *ret, struct error *err);

/* Latencies of demand faults in the order that reports have: p50_us, p90_us, p99_us, max_us. */
void side_add_latencies(struct side *side, const struct guest_result *result);
