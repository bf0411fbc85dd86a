/* What events mean for a fork. */
#include "observe/watched.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "observe/join.h"
#include "observe/window.h"

struct watched *watched_new(const struct observer_fork *fork)
{
	struct watched *watched = calloc(1, sizeof *watched);

	if (!watched)
		return NULL;
	snprintf(watched->id, sizeof watched->id, "%.63s", fork->id);
	watched->pid = fork->pid;
	watched->record = fork->record;
	watched->window_timeout_ns = fork->window_timeout_ns;
	watched->window_settle_ns = fork->window_settle_ns;
	watched->connected_ns = fork->connected_ns;
	if (watched_set_regions(watched, fork->regions, fork->region_count) < 0) {
		watched_free(watched);
		return NULL;
	}
	return watched;
}

void watched_free(struct watched *watched)
{
	if (!watched)
		return;
	free(watched->regions);
	free(watched->threads);
	recording_clear(&watched->recording);
	free(watched);
}

static int by_address(const void *a, const void *b)
{
	const struct observer_region *x = a, *y = b;

	return x->address < y->address ? -1 : x->address > y->address;
}

int watched_set_regions(struct watched *watched, const struct observer_region *regions, size_t count)
{
	struct observer_region *copy = calloc(count ? count : 1, sizeof *copy);

	if (!copy)
		return -ENOMEM;
	memcpy(copy, regions, count * sizeof *copy);
	qsort(copy, count, sizeof *copy, by_address);
	free(watched->regions);
	watched->regions = copy;
	watched->region_count = count;
	return 0;
}

const struct observer_region *watched_region(const struct watched *watched, uint64_t address)
{
	size_t low = 0, high = watched->region_count;

	while (low < high) {
		size_t middle = (low + high) / 2;
		const struct observer_region *region = &watched->regions[middle];

		if (address < region->address)
			high = middle;
		else if (address - region->address >= region->size)
			low = middle + 1;
		else
			return region;
	}
	return NULL;
}

/* NULL: there are too many, or no memory. */
static struct watched_thread *find_thread(struct watched *watched, uint32_t tid, bool kthread)
{
	for (size_t i = 0; i < watched->thread_count; i++)
		if (watched->threads[i].tid == tid)
			return &watched->threads[i];
	if (watched->thread_count == WATCHED_THREADS_MAX)
		return NULL;
	if (watched->thread_count == watched->thread_capacity) {
		size_t capacity = watched->thread_capacity ? watched->thread_capacity * 2 : 8;
		struct watched_thread *threads = realloc(watched->threads, capacity * sizeof *threads);
		if (!threads)
			return NULL;
		watched->threads = threads;
		watched->thread_capacity = capacity;
	}
	struct watched_thread *thread = &watched->threads[watched->thread_count++];
	*thread = (struct watched_thread){ .tid = tid, .kthread = kthread, .vcpu = VCPU_UNKNOWN };
	if (!kthread)
		thread->vcpu = watched->vcpus++;
	return thread;
}

static uint16_t vcpu_of(struct watched *watched, const struct fl_event *event)
{
	const struct watched_thread *thread = find_thread(watched, event->tid, event->flags & FL_EVENT_KTHREAD);

	return thread ? thread->vcpu : VCPU_UNKNOWN;
}

void watched_thread_named(struct watched *watched, const struct fl_event *event)
{
	struct watched_thread *thread = find_thread(watched, event->tid, event->flags & FL_EVENT_KTHREAD);

	if (thread)
		snprintf(thread->name, sizeof thread->name, "%.15s", event->name);
}

static uint64_t since(const struct watched *watched, uint64_t ns)
{
	return ns > watched->connected_ns ? ns - watched->connected_ns : 0;
}

/* What begins at NS can be no part of the recording's window any more: a fork that lives for days would fill the memory with it. */
static bool is_too_late(const struct watched *watched, uint64_t ns)
{
	return (watched->ready_ns && ns > watched->ready_ns) ||
	       since(watched, ns) > (watched->window_timeout_ns ?: WINDOW_TIMEOUT_NS);
}

static void record_touch(struct watched *watched, const struct fl_event *event, bool present)
{
	const struct observer_region *region = watched_region(watched, event->address);

	if (!watched->record || !region || is_too_late(watched, event->touch_ns))
		return;
	uint64_t page_size = region->page_size;
	struct touch touch = {
		.region = region->region,
		.vcpu = vcpu_of(watched, event),
		.kind = event->flags & FL_EVENT_WALK	? TOUCH_WALK
			: event->flags & FL_EVENT_FETCH ? TOUCH_FETCH
			: event->flags & FL_EVENT_WRITE ? TOUCH_WRITE
							: TOUCH_READ,
		.present = present,
		.offset = (event->address - region->address + region->offset) & ~(page_size - 1),
		.touch_ns = since(watched, event->touch_ns),
		.run_ns = since(watched, event->run_ns),
		.lost_ns = event->lost_ns,
	};
	/* Too many are marked in the recording itself. */
	(void)recording_add_touch(&watched->recording, &touch);
}

/* Touch or fault for who reads along; the oldest that wasn't read gives way. */
static void tell_traces(struct watched *watched, const struct fl_event *event, const struct observer_stamp *stamp,
			bool demand)
{
	if (!watched->traces)
		return;

	const struct observer_region *region = watched_region(watched, event->address);
	const struct watched_thread *thread = find_thread(watched, event->tid, event->flags & FL_EVENT_KTHREAD);
	struct observed_touch touch = {
		.touch_ns = event->touch_ns,
		.run_ns = event->run_ns,
		.address = event->address,
		.offset = region ? event->address - region->address + region->offset : 0,
		.region = region ? region->region : 0,
		.tid = (pid_t)event->tid,
		.vcpu = thread ? thread->vcpu : VCPU_UNKNOWN,
		.cpu = event->cpu,
		.demand = demand,
		.kthread = event->flags & FL_EVENT_KTHREAD,
		.write = event->flags & FL_EVENT_WRITE,
		.fetch = event->flags & FL_EVENT_FETCH,
		.kvm = event->flags & FL_EVENT_KVM,
	};
	if (thread)
		memcpy(touch.thread, thread->name, sizeof touch.thread);
	if (stamp) {
		struct phases phases;
		phases_split(event, stamp, &phases);
		touch.read_ns = event->touch_ns + phases.queue_ns;
		touch.source_ns = touch.read_ns + phases.source_ns;
		touch.copied_ns = touch.source_ns + phases.copy_ns;
	}
	for (struct trace *trace = watched->traces; trace; trace = trace->next) {
		if (trace->written - trace->read == TRACE_BACKLOG) {
			trace->read++;
			trace->lost++;
		}
		trace->touches[trace->written++ % TRACE_BACKLOG] = touch;
		pthread_cond_signal(&trace->changed);
	}
}

void watched_touched(struct watched *watched, const struct fl_event *event, bool told_again)
{
	watched->kvm_touches += (event->flags & FL_EVENT_KVM) != 0;
	watched->told_again += told_again;
	(void)vcpu_of(watched, event);
	record_touch(watched, event, true);
}

void watched_slept(struct watched *watched, const struct fl_event *event)
{
	uint16_t vcpu = vcpu_of(watched, event), waker = VCPU_UNKNOWN;

	if (vcpu == VCPU_UNKNOWN || !watched->record || is_too_late(watched, event->touch_ns))
		return;
	for (size_t i = 0; event->waker && i < watched->thread_count; i++)
		if (watched->threads[i].tid == event->waker)
			waker = watched->threads[i].vcpu;
	struct vcpu_sleep sleep = {
		.vcpu = vcpu,
		.waker = waker,
		.sleep_ns = since(watched, event->touch_ns),
		.wake_ns = since(watched, event->wake_ns ? event->wake_ns : event->run_ns),
		.run_ns = since(watched, event->run_ns),
		.lost_ns = event->lost_ns,
	};
	(void)recording_add_sleep(&watched->recording, &sleep);
}

void watched_faulted(struct watched *watched, const struct fl_event *event)
{
	watched->faults++;
	histogram_add(&watched->total, event->run_ns - event->touch_ns);
	(void)vcpu_of(watched, event);
	record_touch(watched, event, false);
}

static void fault_joined(struct watched *watched, const struct fl_event *event, const struct observer_stamp *stamp)
{
	struct phases phases;

	phases_split(event, stamp, &phases);
	watched->joined++;
	histogram_add(&watched->queue, phases.queue_ns);
	histogram_add(&watched->source, phases.source_ns);
	histogram_add(&watched->copy, phases.copy_ns);
	histogram_add(&watched->wake, phases.wake_ns);
	tell_traces(watched, event, stamp, true);
}

void watched_joined(struct watched *watched, const struct fl_event *event, const struct observer_stamp *stamp)
{
	if (event->kind == FL_EVENT_TOUCH && stamp) {
		/* The thread found its page on its way to sleep: it went on once the server had copied. */
		struct fl_event fault = *event;
		fault.kind = FL_EVENT_FAULT;
		fault.run_ns = stamp->copied_ns;
		watched->awake++;
		watched->awake_stall_ns += fault.run_ns - fault.touch_ns;
		watched_faulted(watched, &fault);
		fault_joined(watched, &fault, stamp);
	} else if (stamp) {
		fault_joined(watched, event, stamp);
	} else {
		if (event->kind == FL_EVENT_FAULT)
			watched->unjoined++;
		tell_traces(watched, event, NULL, event->kind == FL_EVENT_FAULT);
	}
}

static struct phase_figures phase_figures(const struct histogram *h, uint64_t count)
{
	return (struct phase_figures){
		.count = count,
		.p50_ns = histogram_percentile(h, 500),
		.p90_ns = histogram_percentile(h, 900),
		.p99_ns = histogram_percentile(h, 990),
		.max_ns = atomic_load_explicit(&h->max, memory_order_relaxed),
	};
}

void watched_figures(const struct watched *watched, const struct fork_stats *stats, struct observed_figures *ret)
{
	uint64_t joined = watched->joined;
	/* KVM tells each touch, and then those that had to wait once more. */
	uint64_t twice = watched->told_again < watched->faults ? watched->told_again : watched->faults;
	uint64_t faults_among_touches = watched->awake + twice;

	*ret = (struct observed_figures){
		.faults = stats->faults + watched->awake,
		.present = stats->touches > faults_among_touches ? stats->touches - faults_among_touches : 0,
		.kvm_touches = watched->kvm_touches,
		.stall_ns = stats->stall_ns + watched->awake_stall_ns,
		.events_lost = stats->events_lost,
		.unjoined = watched->unjoined,
		.vcpus = watched->vcpus,
		.total = phase_figures(&watched->total, watched->faults),
		.queue = phase_figures(&watched->queue, joined),
		.source = phase_figures(&watched->source, joined),
		.copy = phase_figures(&watched->copy, joined),
		.wake = phase_figures(&watched->wake, joined),
	};
}

struct trace *trace_new(struct watched *watched, pthread_mutex_t *lock)
{
	struct trace *trace = calloc(1, sizeof *trace);
	pthread_condattr_t attributes;

	if (!trace)
		return NULL;
	trace->touches = calloc(TRACE_BACKLOG, sizeof *trace->touches);
	if (!trace->touches) {
		free(trace);
		return NULL;
	}
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&trace->changed, &attributes);
	pthread_condattr_destroy(&attributes);
	trace->lock = lock;
	trace->watched = watched;
	trace->next = watched->traces;
	watched->traces = trace;
	return trace;
}
