/* What else the machine did while something was measured, from /proc/stat. */
#pragma once

#include <jansson.h>
#include <sched.h>
#include <stdint.h>

/* Above these shares of the CPUs' time the figures are not this program's alone. */
#define OTHER_LOAD_MAX 0.10
#define STEAL_MAX      0.02

struct noise_meter {
	cpu_set_t cpus;
	uint64_t busy, steal; /* ticks of those CPUs */
	uint64_t wall_ns, own_ns;
	int error;
};

/* CPUS: those that count. No child that matters may be running at either end, as only those that were reaped are counted. */
void noise_start(struct noise_meter *meter, const cpu_set_t *cpus);
/* {"other_load", "steal", "too_noisy", "reason"}; shares of the CPUs' time, null where /proc/stat can't be read. */
json_t *noise_stop(const struct noise_meter *meter);
