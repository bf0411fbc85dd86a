/* What the parts of `faultline trace` share: one touch as the server told it, which are wanted, and where they go. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/error.h"

/* Times in ns; those of a touch since the fork's connection. */
struct trace_touch {
	int64_t time_ns;
	long long vcpu; /* -1: not known */
	long long tid, cpu;
	const char *thread, *kind; /* as long as the event that it came from */
	uint64_t address, region, offset;
	bool demand, kthread;
	bool phased; /* the phases are known */
	int64_t total_ns, queue_ns, source_ns, copy_ns, wake_ns;
};

/* False: EVENT isn't one. */
bool trace_touch_from(const json_t *event, struct trace_touch *ret);

struct trace_filter {
	long long vcpu, region; /* -1: any */
	uint64_t from, to;	/* of addresses, or of offsets in a region: FROM to TO - 1; 0, 0: any */
	int64_t min_stall_ns;	/* 0: any */
	bool demand_only;
};

bool trace_wanted(const struct trace_filter *filter, const struct trace_touch *touch);
/* "FROM-TO", decimal or 0x…, with K, M, G. */
bool trace_parse_range(const char *text, struct trace_filter *filter);
/* "50us", "1.5ms", "2s"; a bare number is in seconds. */
bool trace_parse_duration(const char *text, int64_t *ret_ns);

/* ---- trace_print.c: lines for people ---- */

void trace_print_heading(void);
void trace_print_touch(const struct trace_touch *touch);

/* ---- trace_perfetto.c: a file for Perfetto and chrome://tracing ---- */

struct perfetto;

/* Opens PATH, replacing what is there. FORK and TIER are for names. */
int perfetto_new(const char *path, struct perfetto **ret, struct error *err);
void perfetto_begin(struct perfetto *perfetto, const char *fork, const char *tier);
void perfetto_touch(struct perfetto *perfetto, const struct trace_touch *touch);
void perfetto_lost(struct perfetto *perfetto, uint64_t count);
/* What has been added so far is a whole file now, if it is a regular one. */
void perfetto_flush(struct perfetto *perfetto);
/* Writes the end, and closes. 0, or negative errno with ERR if not all could be written. Frees. */
int perfetto_close(struct perfetto *perfetto, struct error *err);
/* The same without asking. NULL is fine. */
void perfetto_free(struct perfetto *perfetto);
