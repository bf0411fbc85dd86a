/* Which thread makes which touches, and when: the time model of docs/traces.md. */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "replay/internal.h"

/* ---- who touches what ---- */

int lanes_deal(const struct replay_config *config, struct replay_shared *shared, struct error *err)
{
	const struct trace *trace = config->trace;
	uint32_t *touches = calloc(trace->count, sizeof *touches);
	size_t at = 0;

	if (!touches)
		return error_set(err, -ENOMEM, "no_memory", "there is not enough memory for %zu touches", trace->count);
	shared->lane_count = config->vcpus == REPLAY_ONE ? 1 : trace->vcpus;
	for (size_t i = 0; i < trace->count; i++)
		shared->lanes[lane_of(config, &trace->touches[i])].count++;
	for (unsigned l = 0; l < shared->lane_count; l++) {
		struct lane *lane = &shared->lanes[l];

		lane->first = at;
		lane->touches = touches + at;
		at += lane->count;
		lane->count = 0;
	}
	for (size_t i = 0; i < trace->count; i++) {
		struct lane *lane = &shared->lanes[lane_of(config, &trace->touches[i])];

		lane->touches[lane->count++] = (uint32_t)i;
	}
	return 0;
}

/* ---- one thread ---- */

/* Less than this is not slept through: a timer takes so long to wake somebody. */
#define IDLE_LEAST_NS 100000ull

struct vcpu {
	struct runner *runner;
	struct lane *lane;
	unsigned number;
	uint64_t own_lag_ns;		 /* where vCPUs know nothing of each other */
	uint64_t own_start_ns;		 /* REPLAY_COMPUTES: of its CPU's time */
	uint64_t halts;			 /* sleeps that were not for a page */
	size_t awaited[TRACE_VCPUS_MAX]; /* how many touches of each lane must have ended before the next one here */
};

static void spin(const struct runner *runner)
{
	if (runner->shared->crowded && runner->config->pace != REPLAY_COMPUTES)
		sched_yield();
}

static bool waits_for_others(const struct runner *runner)
{
	return runner->config->vcpus == REPLAY_WAITING || runner->config->vcpus == REPLAY_HALTING;
}

/* The low half of a lane's progress, as the kernel looks at it. */
static uint32_t *progress_word(struct lane *lane)
{
	_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the low half of a number comes first");
	return (uint32_t *)&lane->progress;
}

/* Sleeps until LANE has got so far, as a halted vCPU does; whoever gets it there wakes it. */
static void halt_until(struct vcpu *vcpu, struct lane *lane, size_t progress)
{
	_Atomic size_t *wanted = &lane->wanted[vcpu->number];

	/* Set first, looked at then: the other one moves on first, and looks at this then. */
	atomic_store(wanted, progress);
	for (;;) {
		size_t now = atomic_load(&lane->progress);

		if (now >= progress)
			break;
		if (syscall(SYS_futex, progress_word(lane), FUTEX_WAIT_PRIVATE, (uint32_t)now, NULL, NULL, 0) == 0)
			vcpu->halts++;
	}
	atomic_store(wanted, 0);
}

/* Wakes those that wait for what has just ended here. */
static void wake_others(const struct vcpu *vcpu, size_t progress)
{
	bool any = false;

	for (unsigned l = 0; l < vcpu->runner->shared->lane_count; l++) {
		size_t wanted = atomic_load(&vcpu->lane->wanted[l]);

		any |= wanted && wanted <= progress;
	}
	if (any)
		syscall(SYS_futex, progress_word(vcpu->lane), FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/*
 * A touch waits for all that came REPLAY_SLACK_NS before it. Times grow along a lane, so that nothing is looked at twice. Returns a lane
 * that is not there yet, or NULL.
 */
static struct lane *find_awaited(struct vcpu *vcpu, uint64_t at, size_t *ret_progress)
{
	const struct trace_touch *touches = vcpu->runner->config->trace->touches;
	struct replay_shared *shared = vcpu->runner->shared;

	for (unsigned l = 0; l < shared->lane_count; l++) {
		struct lane *lane = &shared->lanes[l];
		size_t *awaited = &vcpu->awaited[l];

		if (lane == vcpu->lane)
			continue;
		while (*awaited < lane->count && touches[lane->touches[*awaited]].at + REPLAY_SLACK_NS <= at)
			++*awaited;
		*ret_progress = *awaited;
		if (atomic_load_explicit(&lane->progress, memory_order_acquire) < *awaited)
			return lane;
	}
	return NULL;
}

static void await_others(struct vcpu *vcpu, uint64_t at)
{
	struct lane *lane;
	size_t progress;

	while ((lane = find_awaited(vcpu, at, &progress))) {
		if (vcpu->runner->config->vcpus == REPLAY_HALTING)
			halt_until(vcpu, lane, progress);
		else
			spin(vcpu->runner);
	}
}

static uint64_t own_time_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * NSEC_PER_SEC + (uint64_t)ts.tv_nsec;
}

/* On the clock by which touches have their times. */
static uint64_t virtual_now(const struct vcpu *vcpu, uint64_t start_ns)
{
	return vcpu->runner->config->pace == REPLAY_COMPUTES ? own_time_ns() - vcpu->own_start_ns : now_ns() - start_ns;
}

static void idle_until(struct vcpu *vcpu, uint64_t when_ns)
{
	struct timespec ts = { .tv_sec = (time_t)(when_ns / NSEC_PER_SEC), .tv_nsec = (long)(when_ns % NSEC_PER_SEC) };

	if (when_ns < now_ns() + IDLE_LEAST_NS)
		return;
	vcpu->halts++;
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
}

/* Waits as a vCPU does for a touch's time. */
static void await_turn(struct vcpu *vcpu, uint64_t at, uint64_t start_ns)
{
	struct runner *runner = vcpu->runner;
	bool waiting = waits_for_others(runner);

	if (waiting)
		await_others(vcpu, at);
	if (runner->config->pace == REPLAY_IDLES)
		idle_until(vcpu, start_ns + at + vcpu->own_lag_ns);
	for (;;) {
		uint64_t lag = waiting ? atomic_load_explicit(&runner->lag_ns, memory_order_relaxed) : vcpu->own_lag_ns;

		if (virtual_now(vcpu, start_ns) >= at + lag)
			return;
		spin(runner);
	}
}

static void remember_lag(struct vcpu *vcpu, uint64_t lag)
{
	_Atomic uint64_t *shared = &vcpu->runner->lag_ns;

	if (!waits_for_others(vcpu->runner)) {
		vcpu->own_lag_ns = lag > vcpu->own_lag_ns ? lag : vcpu->own_lag_ns;
		return;
	}
	uint64_t largest = atomic_load_explicit(shared, memory_order_relaxed);
	while (lag > largest && !atomic_compare_exchange_weak_explicit(shared, &largest, lag, memory_order_relaxed,
								       memory_order_relaxed))
		;
}

/* One access of the kind that the guest made. A write is one instruction that also says what was there: its fault is one for writing. */
static uint64_t touch_page(const struct replay_config *config, char *base, const struct trace_touch *touch)
{
	uint64_t *word = (uint64_t *)(base + touch->page * TRACE_PAGE) + touched_word(touch->page);

	if (touch->kind == 'w')
		return __atomic_fetch_add(word, WRITE_MARK, __ATOMIC_RELAXED);
	return config->memory == REPLAY_SHARED ? __atomic_fetch_add(word, 0, __ATOMIC_RELAXED)
					       : __atomic_load_n(word, __ATOMIC_RELAXED);
}

static void make_touches(struct vcpu *vcpu, uint64_t start_ns)
{
	struct runner *runner = vcpu->runner;
	struct touch_record *records = runner->shared->records + vcpu->lane->first;

	for (size_t i = 0; i < vcpu->lane->count; i++) {
		const struct trace_touch *touch = &runner->config->trace->touches[vcpu->lane->touches[i]];

		await_turn(vcpu, touch->at, start_ns);
		uint64_t started = now_ns() - start_ns;
		uint64_t value = touch_page(runner->config, runner->base, touch);
		uint64_t ended = now_ns() - start_ns;

		records[i] = (struct touch_record){ started, ended, value };
		/* That a timer woke it late is made good in its next sleep; that it stood still is not. */
		if (runner->config->pace == REPLAY_IDLES)
			remember_lag(vcpu, vcpu->own_lag_ns + ended - started);
		else
			remember_lag(vcpu, virtual_now(vcpu, start_ns) - touch->at);
		atomic_store(&vcpu->lane->progress, i + 1);
		if (runner->config->vcpus == REPLAY_HALTING)
			wake_others(vcpu, i + 1);
	}
}

/* Once released, waits until the last thread is awake: that is when the guest starts. */
static uint64_t await_start(struct runner *runner)
{
	uint64_t start;

	pthread_mutex_lock(&runner->lock);
	while (!runner->released)
		pthread_cond_wait(&runner->released_changed, &runner->lock);
	pthread_mutex_unlock(&runner->lock);
	if (atomic_fetch_add(&runner->awake, 1) + 1 == runner->shared->lane_count) {
		runner->shared->start_ns = now_ns();
		atomic_store(&runner->start_ns, runner->shared->start_ns);
	}
	while (!(start = atomic_load(&runner->start_ns)))
		spin(runner);
	return start;
}

static void *run_vcpu(void *data)
{
	_cleanup_free_ struct vcpu *vcpu = data;
	struct runner *runner = vcpu->runner;
	uint64_t start_ns = await_start(runner);
	struct rusage before, after;

	/* A timer is to wake it when it is due, and not when it suits the kernel. */
	prctl(PR_SET_TIMERSLACK, 1);
	vcpu->own_start_ns = own_time_ns();
	getrusage(RUSAGE_THREAD, &before);
	make_touches(vcpu, start_ns);
	getrusage(RUSAGE_THREAD, &after);
	uint64_t sleeps = (uint64_t)(after.ru_nvcsw - before.ru_nvcsw);
	vcpu->lane->sleeps = sleeps > vcpu->halts ? sleeps - vcpu->halts : 0;
	vcpu->lane->minor_faults = (uint64_t)(after.ru_minflt - before.ru_minflt);
	vcpu->lane->major_faults = (uint64_t)(after.ru_majflt - before.ru_majflt);
	if (atomic_fetch_add(&runner->finished, 1) + 1 == runner->shared->lane_count)
		eventfd_write(runner->done_fd, 1);
	return NULL;
}

/* ---- all threads ---- */

/* CPUs that the threads may run on. */
static unsigned usable_cpus(const struct replay_config *config)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	for (size_t i = 0; i < config->cpu_count; i++)
		CPU_SET((size_t)config->cpus[i], &set);
	if (!config->cpu_count && sched_getaffinity(0, sizeof set, &set) < 0)
		return 1;
	return (unsigned)CPU_COUNT(&set);
}

static int start_thread(struct runner *runner, unsigned number, const pthread_attr_t *attributes)
{
	struct vcpu *vcpu = calloc(1, sizeof *vcpu);
	pthread_t thread;
	char name[16] = "vcpu/";

	if (!vcpu)
		return -ENOMEM;
	vcpu->runner = runner;
	vcpu->lane = &runner->shared->lanes[number];
	vcpu->number = number;
	int r = -pthread_create(&thread, attributes, run_vcpu, vcpu);
	if (r < 0) {
		free(vcpu);
		return r;
	}
	snprintf(name + 5, sizeof name - 5, "%u", number);
	pthread_setname_np(thread, name);
	pthread_detach(thread);
	return 0;
}

static int start_pinned(struct runner *runner, unsigned number)
{
	const struct replay_config *config = runner->config;
	pthread_attr_t attributes;
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((size_t)config->cpus[number % config->cpu_count], &set);
	pthread_attr_init(&attributes);
	pthread_attr_setaffinity_np(&attributes, sizeof set, &set);
	int r = start_thread(runner, number, &attributes);
	pthread_attr_destroy(&attributes);
	return r;
}

int runner_start(struct runner *runner, struct error *err)
{
	struct replay_shared *shared = runner->shared;
	unsigned busy = 0;

	pthread_mutex_init(&runner->lock, NULL);
	pthread_cond_init(&runner->released_changed, NULL);
	for (unsigned l = 0; l < shared->lane_count; l++)
		busy += shared->lanes[l].count > 0;
	shared->crowded = busy > usable_cpus(runner->config);
	for (unsigned l = 0; l < shared->lane_count; l++) {
		int r = runner->config->cpu_count ? start_pinned(runner, l) : start_thread(runner, l, NULL);

		if (r < 0)
			return error_set(err, r, "guest_failed", "cannot start the thread of vCPU %u: %s", l,
					 strerror(-r));
	}
	return 0;
}

void runner_release(struct runner *runner)
{
	pthread_mutex_lock(&runner->lock);
	runner->released = true;
	pthread_cond_broadcast(&runner->released_changed);
	pthread_mutex_unlock(&runner->lock);
}
