/* The rows of the table, and what a probe says. Each file with probes exports its rows; doctor.c puts them together. */
#pragma once

#include <stdint.h>
#include <sys/types.h>

#include "doctor/doctor.h"

struct probe;

struct check {
	const char *name;
	const char *title;
	unsigned uses;	   /* of doctor_use */
	unsigned required; /* of those, the ones that don't work at all where this is missing */
	void (*probe)(struct probe *probe);
	/* Where the result isn't ok, and the probe has not said something better. */
	const char *cost;
	const char *remedy;
	/* Removes what the probe may have left where it was killed; runs in the caller's process. May be NULL. */
	void (*clean_up)(const struct probe *probe);
	uint64_t argument; /* the probe's own, for rows that share one */
};

/* Rows end with one that has no name. */
extern const struct check kernel_checks[], uffd_checks[], huge_checks[], io_checks[], process_checks[], kvm_checks[],
	bpf_checks[], tier_checks[], limit_checks[], run_dir_checks[];

/* What a probe is given; it answers by one of the three below, and may then say cost and remedy itself. */
struct probe {
	const struct check *check;
	const char *run_dir;
	pid_t doctor; /* goes into the names of what is made on disk, so that it can be told apart and removed */
	struct doctor_result *result;
};

void probe_ok(struct probe *probe, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* ERROR: a negative errno, or 0. */
void probe_degraded(struct probe *probe, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));
void probe_missing(struct probe *probe, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));
void probe_cost(struct probe *probe, const char *format, ...) __attribute__((format(printf, 2, 3)));
void probe_remedy(struct probe *probe, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Fills the summary from the results, and takes back what they cost where something better makes up for it. */
void verdict(struct doctor_report *report);
