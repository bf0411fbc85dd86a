/* What was measured, as a tree: a group has cases, a case has sides that took turns, a side has metrics with a value for each round. */
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "bench/stats.h"

#define SIDES_MAX   14
#define METRICS_MAX 12
#define RATIOS_MAX  6

/* What a value is: its name in JSON ("p50_us") says what and in which unit. */
struct metric {
	const char *name;
	struct series series;
};

struct side {
	const char *id; /* "ours", "bare_loop", ... */
	const char *label;
	struct metric metrics[METRICS_MAX];
	unsigned metric_count;
};

/* One side's metric over another's. The strings are literals of the group's. */
struct ratio {
	const char *label;
	const char *metric;
	const char *of, *to; /* sides; TO may name several, of which the one with the least median counts: "a b c" */
	double target;	     /* 0: none */
	bool at_least;	     /* the target is a floor and not a ceiling */
};

/* A figure of one side with a target of its own, where no ratio says it. */
struct limit {
	const char *label, *metric, *side;
	double target;
	bool at_least;
};

struct bench_case {
	const char *id, *title;
	char details[200];
	char skipped[200]; /* why it was not run; empty: it was */
	struct side sides[SIDES_MAX];
	unsigned side_count;
	const char *again[2]; /* two sides that are the same floor; NULL: there is no such pair */
	struct ratio ratios[RATIOS_MAX];
	unsigned ratio_count;
	struct limit limits[RATIOS_MAX];
	unsigned limit_count;
};

struct side *case_add_side(struct bench_case *c, const char *id, const char *label);
struct side *case_side(struct bench_case *c, const char *id);
void case_add_ratio(struct bench_case *c, struct ratio ratio);
void case_add_limit(struct bench_case *c, struct limit limit);
void case_skip(struct bench_case *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Adds a round's value. */
void side_add(struct side *side, const char *metric, double value);

/* As docs/benchmarks.md describes it. NULL: no memory, or a value that is no number. */
json_t *case_to_json(struct bench_case *c);
