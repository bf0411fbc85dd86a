/*
 * Measurements of a server against floors: the least that could do the same work. Sides take turns in the same run; what comes out are
 * medians, their spread, and ratios between sides, together with how far a floor strays from itself.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define BENCH_ROUNDS_DEFAULT 9
#define BENCH_ROUNDS_QUICK   3
#define BENCH_ROUNDS_MAX     99
#define BENCH_FORKS_MAX	     20000

enum bench_group {
	BENCH_FAULT,
	BENCH_PREFETCH,
	BENCH_IDLE,
	BENCH_FAIRNESS,
	BENCH_OBSERVE,
	BENCH_ORDER,
	BENCH_READY,
	BENCH_GROUPS
};

/* The name on the command line and in the report: "fault", "prefetch", "idle", "fairness", "observe", "order", "ready". */
const char *bench_group_name(enum bench_group group);

/* What some of may be asked for: the situations of the groups "order" and "ready", and the workloads of both. */
enum bench_kind { BENCH_ORDER_SITUATION, BENCH_READY_SITUATION, BENCH_WORKLOAD, BENCH_KINDS };

/* Their names; NULL behind the last one. At most 32 of a kind. */
const char *bench_name(enum bench_kind kind, unsigned index);

/* How the server's API is spoken to: the caller's, as the project has one client of it. One call at a time. */
struct bench_api {
	int (*open)(const char *run_dir, void **ret, struct error *err);
	/* BODY may be NULL. RET (may be NULL) becomes the answer, or NULL where it has no body; the caller drops it. */
	int (*call)(void *client, const char *method, const char *path, const json_t *body, unsigned timeout_s,
		    json_t **ret, struct error *err);
	/* GET: the answer's bytes as they are, which the caller frees. */
	int (*fetch)(void *client, const char *path, unsigned timeout_s, void **ret_data, size_t *ret_size,
		     struct error *err);
	void (*close)(void *client);
};

struct bench_options {
	const char *binary;  /* the faultline that is measured */
	const char *version; /* for the report */
	const char *dir;     /* where the temporary directory is made */
	unsigned rounds;
	bool quick;	     /* less of everything, for a first look */
	unsigned idle_forks; /* 0: as many as usual */
	bool groups[BENCH_GROUPS];
	const char *traces;	    /* the directory of the project's traces, for "order" and "ready" */
	const char *tiny_vmm;	    /* runs guests under KVM, for "order"; NULL: it is looked for beside BINARY */
	uint32_t only[BENCH_KINDS]; /* bits of those that bench_name names; of a kind that has none, all are wanted */
	unsigned streams;	    /* how often each list of "order" is streamed; 0: as often as usual */
	const struct bench_api *api;
	/* Says what is measured now; NULL for TEXT: that is over. May be NULL. */
	void (*progress)(void *data, const char *text);
	void *data;
};

/*
 * Runs the groups and makes the report: the object that docs/benchmarks.md describes. Starts servers and clients as processes of its
 * own and leaves none, nor any file. Only for a process of a single thread. Where SIGINT, SIGTERM or SIGHUP comes, everything is cleaned
 * up, and then the signal does what it did before. Codes: interrupted, wrong_bytes, bench_failed, and the API's own.
 */
int bench_run(const struct bench_options *options, json_t **ret, struct error *err);
