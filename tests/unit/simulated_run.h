/*
 * Recordings of guests that never were: a trace is replayed on paper, with stalls as they come from page caches and disks, and with vCPUs that wait
 * for each other or don't. So the guest's true order is known, and every clock can be held against it.
 */
#pragma once

#include <math.h>
#include <stdlib.h>

#include "observe/hot_list.h"
#include "replay/trace.h"
#include "unit/hotlist_helpers.h"

/* How far a vCPU that waits for the others gets: what was done that long before must be done. */
#define SIM_SLACK_NS 50000u
#define SIM_VCPUS    8
/* Less is not slept through. */
#define SIM_SLEEP_MIN_NS 100000u

enum sim_waiting {
	SIM_ALONE,    /* each vCPU has its own lag */
	SIM_SPINNING, /* one waits for all without sleeping: the kernel doesn't see it */
	SIM_HALTING,  /* one sleeps until the one that it waits for wakes it */
	SIM_TIMERS,   /* alone, and asleep between touches until a timer wakes it, mostly a little late */
};

enum sim_stalls { SIM_WARM, SIM_COLD, SIM_UNEVEN /* vCPU 1's pages alone are cold */ };

struct sim {
	enum sim_waiting waiting;
	enum sim_stalls stalls;
	unsigned vcpus; /* the trace's touches are dealt out to so many */
	uint64_t seed;
	double present;	  /* part of the pages that are there already */
	double preempted; /* part of the touches before which the vCPU lost its CPU for 2 ms */
};

/* Mostly MEDIAN, sometimes many times that, never less than half. */
static inline uint64_t sim_heavy(struct random *random, double median)
{
	double u = ((double)random_below(random, 1u << 30) + 1) / (double)(1u << 30);

	return (uint64_t)(median * (0.5 + 0.35 * pow(1 / u, 0.6)));
}

static inline uint64_t sim_stall(const struct sim *sim, unsigned vcpu, struct random *random)
{
	bool cold = sim->stalls == SIM_COLD || (sim->stalls == SIM_UNEVEN && vcpu == 1);

	/* Of a cold image, readahead brings a half of the pages with their neighbours. */
	if (cold && random_below(random, 2))
		return sim_heavy(random, 250e3);
	return sim_heavy(random, 9e3);
}

static inline unsigned sim_vcpu(const struct sim *sim, const struct trace_touch *touch)
{
	/* More vCPUs than the trace has: its vCPUs' pages are shared out, by blocks that are touched together. */
	unsigned share = sim->vcpus / 2;

	return sim->vcpus == 1 ? 0 : touch->vcpu % 2 + (share > 1 ? 2 * (touch->page / 8 % share) : 0);
}

struct sim_lane {
	uint64_t at, end; /* its last touch's time in the trace, and its end here */
	uint64_t lost;
	uint64_t stalled;
};

/* The touch that has put all others back furthest, of those that a waiting one must wait for. */
struct sim_awaited {
	int64_t lag;
	uint64_t at, end;
	uint16_t vcpu;
};

/* Until the timer that is set for a touch. That it wakes late puts nothing off but the one touch. */
static inline uint64_t sim_sleep(struct recording *recording, struct sim_lane *lane, unsigned vcpu, uint64_t at,
				 struct random *random)
{
	uint64_t due = at + lane->stalled;

	if (due < lane->end + SIM_SLEEP_MIN_NS)
		return due > lane->end ? due : lane->end;

	struct vcpu_sleep sleep = {
		.vcpu = (uint16_t)vcpu,
		.waker = VCPU_UNKNOWN,
		.sleep_ns = lane->end,
		.wake_ns = due,
		.run_ns = due + sim_heavy(random, 10e3),
		.lost_ns = lane->lost,
	};
	assert_int_equal(recording_add_sleep(recording, &sleep), 0);
	lane->lost += sleep.run_ns - sleep.wake_ns;
	return sleep.run_ns;
}

/* When the vCPU comes to its next touch, sleeping on the way where it waits so. */
static inline uint64_t sim_arrive(const struct sim *sim, struct recording *recording, struct sim_lane *lane,
				  unsigned vcpu, uint64_t at, const struct sim_awaited *awaited)
{
	uint64_t own = lane->end + (at - lane->at);
	uint64_t joined = (uint64_t)((int64_t)at + awaited->lag);

	if (sim->waiting == SIM_ALONE || joined <= own || awaited->vcpu == vcpu)
		return own;
	if (sim->waiting == SIM_HALTING) {
		/* It did what it could until the other's touch was needed. */
		uint64_t begin = lane->end + (awaited->at > lane->at ? awaited->at - lane->at : 0);

		if (begin < awaited->end) {
			struct vcpu_sleep sleep = {
				.vcpu = (uint16_t)vcpu,
				.waker = awaited->vcpu,
				.sleep_ns = begin,
				.wake_ns = awaited->end,
				.run_ns = awaited->end,
				.lost_ns = lane->lost,
			};
			assert_int_equal(recording_add_sleep(recording, &sleep), 0);
		}
	}
	return joined;
}

/* The trace's touches as they would be recorded, in the order of their ends, as a ring tells them. */
static inline void sim_run(const struct sim *sim, const struct trace *trace, struct recording *recording)
{
	struct random random = { .state = sim->seed * 1000003 + 17 };
	struct sim_lane lanes[SIM_VCPUS] = { { 0 } };
	struct sim_awaited awaited = { .lag = 0, .vcpu = UINT16_MAX };
	struct touch *touches = calloc(trace->count, sizeof *touches);
	size_t next = 0;

	assert_non_null(touches);
	for (size_t i = 0; i < trace->count; i++) {
		const struct trace_touch *touch = &trace->touches[i];
		unsigned vcpu = sim_vcpu(sim, touch);
		struct sim_lane *lane = &lanes[vcpu];

		for (; trace->touches[next].at + SIM_SLACK_NS <= touch->at; next++) {
			int64_t lag = (int64_t)touches[next].run_ns - (int64_t)trace->touches[next].at;

			if (lag >= awaited.lag)
				awaited = (struct sim_awaited){ lag, trace->touches[next].at, touches[next].run_ns,
								touches[next].vcpu };
		}
		uint64_t start = sim->waiting == SIM_TIMERS
					 ? sim_sleep(recording, lane, vcpu, touch->at, &random)
					 : sim_arrive(sim, recording, lane, vcpu, touch->at, &awaited);
		if (sim->preempted > 0 && (double)random_below(&random, 1000000) < sim->preempted * 1e6) {
			start += 2000000;
			lane->lost += 2000000;
		}
		bool present = (double)random_below(&random, 1000000) < sim->present * 1e6;
		uint64_t stall = present ? 0 : sim_stall(sim, vcpu, &random);

		touches[i] = (struct touch){
			.vcpu = (uint16_t)vcpu,
			.kind = touch->kind == 'w'   ? TOUCH_WRITE
				: touch->kind == 'x' ? TOUCH_FETCH
						     : TOUCH_READ,
			.present = present,
			.offset = touch->page * TRACE_PAGE,
			.touch_ns = start,
			.run_ns = start + stall,
			.lost_ns = lane->lost,
		};
		lane->lost += stall;
		lane->stalled += stall;
		lane->at = touch->at;
		lane->end = start + stall;
	}
	for (size_t i = 0; i < trace->count; i++)
		assert_int_equal(recording_add_touch(recording, &touches[i]), 0);
	free(touches);
}

static inline struct hotlist *sim_truth(const struct trace *trace)
{
	struct hotlist *list = hotlist_new();

	assert_non_null(list);
	for (size_t i = 0; i < trace->count; i++)
		assert_int_equal(hotlist_add(list, 0, trace->touches[i].page * TRACE_PAGE), 0);
	return list;
}

static inline struct trace *sim_trace(const char *name)
{
	const char *source = getenv("FAULTLINE_SOURCE");
	struct trace *trace = NULL;
	struct error err = { .message = "" };
	char path[4096];

	snprintf(path, sizeof path, "%s/traces/%s.csv.gz", source ?: ".", name);
	if (trace_load(path, &trace, &err) < 0)
		fail_msg("%s", err.message);
	return trace;
}

/* The list that an observer would make of the run. */
static inline struct hotlist *sim_list(const struct sim *sim, const struct trace *trace)
{
	static const struct hotlist_origin origin = { .tier = "tp_btf" };
	struct recording recording = { .touches = NULL };
	struct hotlist *list = NULL;
	struct error err;

	sim_run(sim, trace, &recording);
	const struct window_rules whole = {
		.now_ns = UINT64_MAX / 8, .timeout_ns = UINT64_MAX / 4, .settle_ns = UINT64_MAX, .gone = true
	};
	assert_int_equal(hot_list_make(&recording, &whole, &origin, &list, &err), 0);
	recording_clear(&recording);
	return list;
}
