/* What the server asks of its observer (serve/observer.h). */
#include "serve/observer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "observe/hot_list.h"
#include "observe/internal.h"

/* ---- a fork's life ---- */

static int add_ranges(struct observe *observe, const struct watched *watched)
{
	for (size_t i = 0; i < watched->region_count; i++) {
		const struct observer_region *region = &watched->regions[i];
		int r = programs_add_range(observe->programs, watched->mm, region->address,
					   region->address + region->size, watched->slot);
		if (r < 0)
			return r;
	}
	return 0;
}

static void remove_ranges(struct observe *observe, const struct watched *watched)
{
	for (size_t i = 0; i < watched->region_count; i++) {
		const struct observer_region *region = &watched->regions[i];
		programs_remove_range(observe->programs, watched->mm, region->address, region->address + region->size);
	}
}

/*
 * As the kernel's programs count now. A run that the kernel skipped, as the same program was under way on that CPU already, could have been any fork's:
 * it is a loss to each that was attached.
 */
static int fork_stats(struct observe *observe, const struct watched *watched, struct fork_stats *ret)
{
	int r = programs_fork_stats(observe->programs, watched->slot, ret);

	if (r == 0)
		ret->events_lost += programs_missed(observe->programs) - watched->missed_before;
	return r;
}

/* With the attach_lock held. The kernel's programs know nothing of the fork any more; what they counted is kept. */
static void disconnect(struct observe *observe, struct watched *watched)
{
	if (!watched->attached)
		return;
	watched->attached = false;
	if (watched->context)
		programs_remove_context(observe->programs, watched->context);
	remove_ranges(observe, watched);
	(void)fork_stats(observe, watched, &watched->final);
	programs_remove_fork(observe->programs, watched->slot);
	watched->detached_ns = now_ns();
}

/* With the attach_lock held; MM and CONTEXT (0: none) are known. */
static int connect_fork(struct observe *observe, struct watched *watched)
{
	struct fork_stats stats = { .pid = (uint32_t)watched->pid, .sleeps_wanted = watched->record };

	memcpy(stats.id, watched->id, sizeof stats.id);
	int r = programs_add_fork(observe->programs, watched->slot, &stats);
	if (r < 0)
		return r;
	watched->attached = true;
	watched->missed_before = programs_missed(observe->programs);
	r = add_ranges(observe, watched);
	if (r == 0 && watched->context)
		r = programs_add_context(observe->programs, watched->context, watched->slot);
	return r;
}

static int begin(struct observe *observe, struct watched *watched, uint64_t *ret)
{
	int r = observe_start_reader(observe);
	if (r < 0)
		return r;
	watched->slot = ++observe->last_slot;
	/* Known to the reader before the first event can come. */
	pthread_mutex_lock(&observe->lock);
	struct watched **bucket = &observe->forks[watched->slot % FORK_BUCKETS];
	watched->next = *bucket;
	*bucket = watched;
	pthread_mutex_unlock(&observe->lock);

	r = connect_fork(observe, watched);
	if (r == 0) {
		*ret = watched->slot;
		return 0;
	}
	disconnect(observe, watched);
	LOCK_SCOPE(&observe->lock);
	for (bucket = &observe->forks[watched->slot % FORK_BUCKETS]; *bucket != watched; bucket = &(*bucket)->next)
		;
	*bucket = watched->next;
	return r;
}

static int attach(void *data, const struct observer_fork *fork, observed_fork *ret)
{
	struct observe *observe = data;
	struct watched *watched = watched_new(fork);

	if (!watched)
		return -ENOMEM;
	LOCK_SCOPE(&observe->attach_lock);
	int r = programs_find_context(observe->programs, fork->uffd, &watched->context, &watched->mm);
	if (r == 0)
		r = begin(observe, watched, ret);
	if (r < 0)
		watched_free(watched);
	return r;
}

int observe_attach_process(struct observe *observe, const char *id, pid_t pid, const struct observe_range *ranges,
			   size_t count, uint64_t *ret_fork, struct error *err)
{
	_cleanup_free_ struct observer_region *regions = calloc(count ? count : 1, sizeof *regions);
	uint64_t page_size = (uint64_t)sysconf(_SC_PAGESIZE);

	for (size_t i = 0; regions && i < count; i++)
		regions[i] = (struct observer_region){ .address = ranges[i].address,
						       .size = ranges[i].size,
						       .page_size = page_size,
						       .region = ranges[i].region,
						       .offset = ranges[i].offset };
	struct observer_fork fork = {
		.id = id,
		.pid = pid,
		.uffd = -1,
		.record = true,
		.connected_ns = now_ns(),
		.regions = regions,
		.region_count = count,
	};
	struct watched *watched = regions ? watched_new(&fork) : NULL;
	if (!watched)
		return error_set(err, -ENOMEM, "no_memory", "out of memory");
	LOCK_SCOPE(&observe->attach_lock);
	int r = programs_find_mm(observe->programs, pid, &watched->mm);
	if (r == 0)
		r = begin(observe, watched, ret_fork);
	if (r < 0) {
		watched_free(watched);
		return error_set(err, r, "not_observed", "can't observe process %d: %s", (int)pid, strerror(-r));
	}
	return 0;
}

/* The fork, with observe->lock taken; NULL without. */
static struct watched *find_locked(struct observe *observe, uint64_t slot)
{
	pthread_mutex_lock(&observe->lock);
	struct watched *watched = observe_find(observe, slot);
	if (!watched)
		pthread_mutex_unlock(&observe->lock);
	return watched;
}

/* Ranges are changed under both locks: the reader looks addresses up in the regions. */
static void set_regions(void *data, observed_fork fork, const struct observer_region *regions, size_t count)
{
	struct observe *observe = data;

	LOCK_SCOPE(&observe->attach_lock);
	struct watched *watched = find_locked(observe, fork);
	if (!watched)
		return;
	observe_drain(observe, true); /* by the old ones, what was touched so far */
	if (watched->attached)
		remove_ranges(observe, watched);
	if (watched_set_regions(watched, regions, count) == 0 && watched->attached)
		(void)add_ranges(observe, watched);
	pthread_mutex_unlock(&observe->lock);
}

static void set_ready(void *data, observed_fork fork)
{
	struct observe *observe = data;
	struct watched *watched = find_locked(observe, fork);

	if (!watched)
		return;
	if (!watched->ready_ns)
		watched->ready_ns = now_ns();
	pthread_mutex_unlock(&observe->lock);
}

void observe_set_window(struct observe *observe, uint64_t fork, uint64_t timeout_ns, uint64_t settle_ns)
{
	struct watched *watched = find_locked(observe, fork);

	if (!watched)
		return;
	watched->window_timeout_ns = timeout_ns;
	watched->window_settle_ns = settle_ns;
	pthread_mutex_unlock(&observe->lock);
}

/* Lets threads tell what they have touched last, and takes everything in. With the attach_lock held. */
static void catch_up(struct observe *observe, observed_fork fork)
{
	struct watched *watched = find_locked(observe, fork);

	if (!watched)
		return;
	bool ask = watched->attached;
	pid_t pid = watched->pid;
	uint32_t slot = watched->slot;
	pthread_mutex_unlock(&observe->lock);
	if (ask)
		(void)programs_tell_pending(observe->programs, pid, slot);
	LOCK_SCOPE(&observe->lock);
	observe_drain(observe, true);
}

static void detach(void *data, observed_fork fork)
{
	struct observe *observe = data;

	LOCK_SCOPE(&observe->attach_lock);
	catch_up(observe, fork);
	struct watched *watched = find_locked(observe, fork);
	if (!watched)
		return;
	disconnect(observe, watched);
	for (struct trace *trace = watched->traces; trace; trace = trace->next)
		pthread_cond_signal(&trace->changed);
	pthread_mutex_unlock(&observe->lock);
}

static void release(void *data, observed_fork fork)
{
	struct observe *observe = data;

	detach(data, fork);
	struct watched *watched = find_locked(observe, fork);
	if (!watched)
		return;
	struct watched **at = &observe->forks[watched->slot % FORK_BUCKETS];
	while (*at != watched)
		at = &(*at)->next;
	*at = watched->next;
	for (struct trace *trace = watched->traces; trace; trace = trace->next) {
		trace->watched = NULL;
		pthread_cond_signal(&trace->changed);
	}
	pthread_mutex_unlock(&observe->lock);
	watched_free(watched);
}

/* ---- on a page's way ---- */

static void stamp(void *data, unsigned pager, const struct observer_stamp *stamp)
{
	struct observe *observe = data;

	if (pager < observe->stamp_count)
		stamp_ring_put(observe->stamps[pager], stamp);
}

/* ---- questions ---- */

static int figures_lately(void *data, observed_fork fork, struct observed_figures *ret)
{
	struct observe *observe = data;
	struct watched *watched = find_locked(observe, fork);
	if (!watched)
		return -ENOENT;
	struct fork_stats stats = watched->final;
	int r = watched->attached ? fork_stats(observe, watched, &stats) : 0;
	if (r == 0)
		watched_figures(watched, &stats, ret);
	pthread_mutex_unlock(&observe->lock);
	return r;
}

static int figures(void *data, observed_fork fork, struct observed_figures *ret)
{
	struct observe *observe = data;

	LOCK_SCOPE(&observe->attach_lock);
	catch_up(observe, fork);
	return figures_lately(data, fork, ret);
}

/* A recording of its own, so that a long one is put in order without the lock. */
static int copy_recording(const struct recording *from, struct recording *ret)
{
	for (size_t i = 0; i < from->touch_count; i++)
		if (recording_add_touch(ret, &from->touches[i]) < 0)
			return -ENOMEM;
	for (size_t i = 0; i < from->sleep_count; i++)
		if (recording_add_sleep(ret, &from->sleeps[i]) < 0)
			return -ENOMEM;
	ret->full = from->full;
	return 0;
}

static int hot_list(void *data, observed_fork fork, struct hotlist **ret, struct error *err)
{
	struct observe *observe = data;
	struct hotlist_origin origin = { .page_size = (uint64_t)sysconf(_SC_PAGESIZE) };
	struct fork_stats stats;
	struct recording recording = { 0 };
	struct window_rules rules = { 0 };
	int r = 0;

	strncpy(origin.tier, observe->tier->name, sizeof origin.tier - 1);
	pthread_mutex_lock(&observe->attach_lock);
	catch_up(observe, fork);
	struct watched *watched = find_locked(observe, fork);
	if (watched) {
		stats = watched->final;
		if (watched->attached)
			(void)fork_stats(observe, watched, &stats);
		uint64_t end = watched->attached ? now_ns() : watched->detached_ns;
		rules = (struct window_rules){
			.ready_ns = watched->ready_ns ? watched->ready_ns - watched->connected_ns : 0,
			.timeout_ns = watched->window_timeout_ns,
			.settle_ns = watched->window_settle_ns,
			.now_ns = end - watched->connected_ns,
			.gone = !watched->attached,
		};
		r = watched->record ? copy_recording(&watched->recording, &recording) : -ENODATA;
		recording.events_lost = stats.events_lost;
		pthread_mutex_unlock(&observe->lock);
	}
	pthread_mutex_unlock(&observe->attach_lock);
	if (!watched)
		r = error_set(err, -ENOENT, "fork_unknown", "the observer knows no such fork");
	else if (r == -ENODATA)
		error_set(err, r, "not_recorded", "it was not recorded");
	else if (r < 0)
		error_set(err, r, "no_memory", "out of memory");
	if (r == 0)
		r = hot_list_make(&recording, &rules, &origin, ret, err);
	recording_clear(&recording);
	return r;
}

/* ---- reading along ---- */

static int trace_open(void *data, observed_fork fork, void **ret_trace)
{
	struct observe *observe = data;
	struct watched *watched = find_locked(observe, fork);

	if (!watched)
		return -ENOENT;
	struct trace *trace = trace_new(watched, &observe->lock);
	pthread_mutex_unlock(&observe->lock);
	if (!trace)
		return -ENOMEM;
	*ret_trace = trace;
	return 0;
}

static ssize_t trace_read(void *data, struct observed_touch *ret, size_t max, uint64_t timeout_ns, uint64_t *ret_lost)
{
	struct trace *trace = data;
	uint64_t until = now_ns() + timeout_ns;
	struct timespec deadline = { .tv_sec = (time_t)(until / NSEC_PER_SEC), .tv_nsec = (long)(until % NSEC_PER_SEC) };
	size_t count = 0;

	LOCK_SCOPE(trace->lock);
	while (trace->read == trace->written) {
		/* What it touched last may wait for its stamp still: the pager may have been held up with it. */
		if (!trace->watched || (!trace->watched->attached && !trace->watched->waiting))
			return -ESHUTDOWN;
		if (pthread_cond_timedwait(&trace->changed, trace->lock, &deadline) == ETIMEDOUT)
			break;
	}
	while (count < max && trace->read < trace->written)
		ret[count++] = trace->touches[trace->read++ % TRACE_BACKLOG];
	*ret_lost = trace->lost;
	trace->lost = 0;
	return (ssize_t)count;
}

static void trace_close(void *data)
{
	struct trace *trace = data;

	pthread_mutex_lock(trace->lock);
	if (trace->watched) {
		struct trace **at = &trace->watched->traces;
		while (*at != trace)
			at = &(*at)->next;
		*at = trace->next;
	}
	pthread_mutex_unlock(trace->lock);
	pthread_cond_destroy(&trace->changed);
	free(trace->touches);
	free(trace);
}

void observer_fill(struct observe *observe)
{
	observe->observer = (struct observer){
		.data = observe,
		.tier = observe->tier->name,
		.attach = attach,
		.regions = set_regions,
		.ready = set_ready,
		.detach = detach,
		.release = release,
		.stamp = stamp,
		.figures = figures,
		.figures_lately = figures_lately,
		.hot_list = hot_list,
		.trace_open = trace_open,
		.trace_read = trace_read,
		.trace_close = trace_close,
	};
}
