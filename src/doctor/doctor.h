/*
 * What this machine can do for faultline: one check a row, each tried out for real. Safe to call from any program: what a check
 * does happens in child processes, which may be refused, killed or hang, and leave nothing behind.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

enum doctor_status { DOCTOR_OK, DOCTOR_DEGRADED, DOCTOR_MISSING };
const char *doctor_status_name(enum doctor_status status); /* "ok" "degraded" "missing" */

/* What a check is about. */
enum doctor_use {
	DOCTOR_SERVING = 1 << 0,
	DOCTOR_PREFETCH = 1 << 1,
	DOCTOR_OBSERVATION = 1 << 2,
	DOCTOR_VMM = 1 << 3, /* what VMMs need here, while the server itself does not */
};
#define DOCTOR_USES 4
const char *doctor_use_name(enum doctor_use use); /* "serving" "prefetch" "observation" "vmm" */

#define DOCTOR_TEXT_MAX 400

struct doctor_result {
	const char *group; /* "userfaultfd": a heading */
	const char *name;  /* stable, for programs: "uffd_open" */
	const char *title; /* for people */
	unsigned uses;	   /* of doctor_use */
	unsigned required; /* of those, the ones that don't work at all without it */
	enum doctor_status status;
	int error;		      /* the negative errno behind it; 0: none */
	bool killed;		      /* the probe did not live through it, and no more would the server */
	char found[DOCTOR_TEXT_MAX];  /* what there is, or how it failed */
	char cost[DOCTOR_TEXT_MAX];   /* what it costs; empty: nothing */
	char remedy[DOCTOR_TEXT_MAX]; /* how to change it; empty: nothing to do */
};

/* All checks of one use together; see verdict.c. */
struct doctor_summary {
	enum doctor_status serving; /* DOCTOR_MISSING: forks can't be served at all */
	enum doctor_status prefetch;
	const char *tier;		   /* "fentry", "kprobe", "tp_btf" or "none" */
	bool tier_pins;			   /* whether its figures can be pinned for bpftool */
	char serving_why[DOCTOR_TEXT_MAX]; /* the titles of what stands in the way; empty: nothing does */
	char prefetch_why[DOCTOR_TEXT_MAX];
	char tier_why[DOCTOR_TEXT_MAX];
	char huge_pages[DOCTOR_TEXT_MAX];
	char kvm[DOCTOR_TEXT_MAX];
};

struct doctor_report {
	struct doctor_summary summary;
	size_t count;
	struct doctor_result results[]; /* in the order of the table, groups together */
};

/*
 * Goes through all checks; takes well under two seconds, and a check that hangs is given up after a few. RUN_DIR: the run directory
 * that a server would be given. 0, or -ENOMEM; refusals are results and not errors. The caller frees the report.
 */
int doctor_run(const char *run_dir, struct doctor_report **ret, struct error *err);
void doctor_report_free(struct doctor_report *report);

/* NULL: there is no such check. */
const struct doctor_result *doctor_find(const struct doctor_report *report, const char *name);
