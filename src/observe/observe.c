/* The observer's beginning and end, and the thread that reads. */
#include "observe/observe.h"

#include <bpf/libbpf.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/background.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "observe/internal.h"
#include "observe/privileges.h"
#include <observe_bpf.skel.h>

/* While events come, the ring is looked at so often, instead of being woken for each. */
#define READ_EVERY_MS 10
/* Looks without an event, after which the reader sleeps until the next one. */
#define IDLE_LOOKS 50

struct watched *observe_find(struct observe *observe, uint64_t slot)
{
	for (struct watched *w = observe->forks[slot % FORK_BUCKETS]; w; w = w->next)
		if (w->slot == slot)
			return w;
	return NULL;
}

/* ---- reading ---- */

static void joined(struct watched *watched, const struct fl_event *event, const struct observer_stamp *stamp)
{
	watched->waiting--;
	watched_joined(watched, event, stamp);
}

/* A fault, or a touch that may turn out to be one. */
static void join_later(struct observe *observe, struct watched *watched, const struct fl_event *event)
{
	const struct observer_region *region = watched_region(watched, event->address);
	uint64_t page = region ? event->address & ~(region->page_size - 1) : event->address;

	watched->waiting++;
	if (joiner_add(observe->joiner, event, page) < 0)
		joined(watched, event, NULL);
}

/* What KVM tells is the touch alone: a fault of it comes as an event of its own, in the tiers that see faults under KVM. */
static void take_touch(struct observe *observe, struct watched *watched, const struct fl_event *event)
{
	bool told_again = event->flags & FL_EVENT_KVM && !observe->tier->waits_by_switch;

	watched_touched(watched, event, told_again);
	if (told_again)
		watched_joined(watched, event, NULL);
	else
		join_later(observe, watched, event);
}

static int take_event(void *data, void *bytes, size_t size)
{
	struct observe *observe = data;
	const struct fl_event *event = bytes;

	if (size < sizeof *event)
		return 0;
	struct watched *watched = observe_find(observe, event->fork);
	if (!watched) {
		observe->strangers++;
		return 0;
	}
	watched->seen++;
	switch (event->kind) {
	case FL_EVENT_FAULT:
		watched_faulted(watched, event);
		join_later(observe, watched, event);
		break;
	case FL_EVENT_TOUCH:
		take_touch(observe, watched, event);
		break;
	case FL_EVENT_SLEEP:
		watched_slept(watched, event);
		break;
	case FL_EVENT_THREAD:
		watched_thread_named(watched, event);
		break;
	}
	return 0;
}

int observe_drain(struct observe *observe, bool all)
{
	struct observer_stamp stamp;
	struct joined found;
	int r = ring_buffer__consume(observe->ring);

	for (unsigned i = 0; i < observe->stamp_count; i++)
		while (stamp_ring_take(observe->stamps[i], &stamp))
			joiner_add_stamp(observe->joiner, &stamp);
	joiner_rewind(observe->joiner, all);
	uint64_t now = now_ns();
	while (joiner_next(observe->joiner, now, &found)) {
		struct watched *watched = observe_find(observe, found.event.fork);
		if (watched)
			joined(watched, &found.event, found.stamp);
	}
	return r;
}

/* True: something was there, or is awaited. */
static bool look(struct observe *observe)
{
	LOCK_SCOPE(&observe->lock);

	return observe_drain(observe, false) != 0 || !joiner_is_empty(observe->joiner);
}

static void *read_events(void *data)
{
	struct observe *observe = data;
	struct pollfd polls[] = {
		{ .fd = observe->stop_fd, .events = POLLIN },
		{ .fd = ring_buffer__epoll_fd(observe->ring), .events = POLLIN },
	};
	_Atomic uint32_t *sleeps = (_Atomic uint32_t *)&observe->programs->skeleton->bss->reader_sleeps;
	unsigned idle = 0;

	pthread_setname_np(pthread_self(), "observer");
	run_in_background();
	while (!atomic_load(&observe->stopping)) {
		idle = look(observe) ? 0 : idle + 1;
		if (idle < IDLE_LOOKS) {
			poll(polls, 2, READ_EVERY_MS);
			continue;
		}
		/* An event that came before this was seen is found by one more look; one that comes later wakes. */
		atomic_store(sleeps, 1);
		if (look(observe))
			idle = 0;
		else
			poll(polls, 2, -1);
		atomic_store(sleeps, 0);
		idle = IDLE_LOOKS / 2;
	}
	return NULL;
}

int observe_start_reader(struct observe *observe)
{
	if (observe->reader_runs)
		return 0;
	int r = pthread_create(&observe->reader, NULL, read_events, observe);
	observe->reader_runs = r == 0;
	return -r;
}

/* ---- beginning ---- */

static size_t ring_size(size_t bytes)
{
	size_t size = (size_t)sysconf(_SC_PAGESIZE);

	if (bytes == 0)
		bytes = OBSERVE_RING_DEFAULT;
	while (size < bytes && size < OBSERVE_RING_MAX)
		size *= 2;
	return size;
}

static void lack(struct observe *observe, const char *what, const char *why)
{
	size_t length = strlen(observe->lacks);

	snprintf(observe->lacks + length, sizeof observe->lacks - length, "%s%s: %s", length ? "; " : "", what, why);
}

/* The tier's own programs, and those of the extras that work. */
static int load_tier(struct observe *observe, const struct tier *tier, const struct tier_trial *extras,
		     size_t ring_bytes, struct error *err)
{
	const char *names[TIER_PROGRAMS_MAX + 8] = { 0 };
	size_t count = 0;

	for (size_t i = 0; tier->programs[i]; i++)
		names[count++] = tier->programs[i];
	for (size_t i = 0; i < tier_extra_count; i++)
		if (extras[i].works)
			names[count++] = extras[i].program;
	struct programs_config config = {
		.names = names,
		.ring_bytes = ring_bytes,
		.waits_by_switch = tier->waits_by_switch,
	};
	return programs_load(&config, &observe->programs, err);
}

static int choose_tier(struct observe *observe, const struct observe_config *config, struct error *err)
{
	struct tier_trial extras[8] = { 0 }, trial;
	char reasons[ERROR_MESSAGE_MAX] = "";
	size_t length = 0;
	int first = 0;

	for (size_t i = 0; i < tier_extra_count; i++)
		tier_extra_try(&tier_extras[i], &extras[i]);
	for (size_t i = 0; i < tier_count; i++) {
		struct error why = { 0 };
		if (config->tier && strcmp(config->tier, tiers[i].name))
			continue;
		int r = load_tier(observe, &tiers[i], extras, ring_size(config->ring_bytes), &why);
		if (r == 0) {
			observe->tier = &tiers[i];
			break;
		}
		/* Which of its programs it was. */
		tier_try(&tiers[i], &trial);
		if (!first)
			first = r;
		length += (size_t)snprintf(reasons + length, sizeof reasons - length, "%s%s: %s", length ? "; " : "",
					   tiers[i].name, trial.works ? why.message : trial.reason);
		if (length >= sizeof reasons)
			break;
	}
	if (!observe->tier)
		return error_set(err, first ? first : -EINVAL, "no_tier", "%s",
				 first ? reasons : "there is no tier of that name: fentry, kprobe, tp_btf");
	for (size_t i = 0; i < tier_extra_count; i++)
		if (!extras[i].works)
			lack(observe, tier_extras[i].what, extras[i].reason);
	return 0;
}

static int start(struct observe *observe, const struct observe_config *config, struct error *err)
{
	int r = choose_tier(observe, config, err);
	if (r < 0)
		return r;
	observe->stop_fd = eventfd(0, EFD_CLOEXEC);
	observe->joiner = joiner_new();
	observe->stamps = calloc(config->pagers ? config->pagers : 1, sizeof *observe->stamps);
	if (observe->stop_fd < 0 || !observe->joiner || !observe->stamps)
		return error_set(err, -ENOMEM, "no_memory", "out of memory or descriptors");
	for (; observe->stamp_count < config->pagers; observe->stamp_count++) {
		observe->stamps[observe->stamp_count] = stamp_ring_new();
		if (!observe->stamps[observe->stamp_count])
			return error_set(err, -ENOMEM, "no_memory", "out of memory");
	}
	observe->ring =
		ring_buffer__new(bpf_map__fd(observe->programs->skeleton->maps.events), take_event, observe, NULL);
	if (!observe->ring)
		return error_set(err, -errno, "no_tier", "can't map the ring of events: %m");
	observer_fill(observe);
	/* Before there is another thread: each has capabilities of its own. */
	if (config->drop_privileges) {
		r = privileges_drop(observe->programs, observe->kept_privileges, sizeof observe->kept_privileges);
		if (r < 0)
			return error_set(err, r, "no_privileges", "can't give up capabilities: %s", strerror(-r));
	}
	return 0;
}

int observe_new(const struct observe_config *config, struct observe **ret, struct error *err)
{
	struct observe *observe = calloc(1, sizeof *observe);

	if (!observe)
		return error_set(err, -ENOMEM, "no_memory", "out of memory");
	observe->stop_fd = -1;
	pthread_mutex_init(&observe->lock, NULL);
	pthread_mutex_init(&observe->attach_lock, NULL);
	int r = start(observe, config, err);
	if (r < 0) {
		observe_free(observe);
		return r;
	}
	*ret = observe;
	return 0;
}

void observe_free(struct observe *observe)
{
	if (!observe)
		return;
	atomic_store(&observe->stopping, true);
	if (observe->reader_runs) {
		eventfd_write(observe->stop_fd, 1);
		pthread_join(observe->reader, NULL);
	}
	pins_remove(&observe->pins);
	if (observe->programs) {
		uint64_t missed = programs_missed(observe->programs);
		if (missed)
			log_warning("observation",
				    "%llu events were missed, as a program was interrupted on its own CPU",
				    (unsigned long long)missed);
	}
	ring_buffer__free(observe->ring);
	programs_free(observe->programs);
	for (size_t i = 0; i < FORK_BUCKETS; i++)
		while (observe->forks[i]) {
			struct watched *next = observe->forks[i]->next;
			watched_free(observe->forks[i]);
			observe->forks[i] = next;
		}
	for (unsigned i = 0; i < observe->stamp_count; i++)
		stamp_ring_free(observe->stamps[i]);
	free(observe->stamps);
	joiner_free(observe->joiner);
	if (observe->stop_fd >= 0)
		close(observe->stop_fd);
	pthread_mutex_destroy(&observe->attach_lock);
	pthread_mutex_destroy(&observe->lock);
	free(observe);
}

int observe_pin(struct observe *observe, const char *run_dir, struct error *err)
{
	return pins_make(observe->programs, run_dir, observe->tier->name, &observe->pins, err);
}

struct programs *observe_programs(struct observe *observe)
{
	return observe->programs;
}

const char *observe_tier(const struct observe *observe)
{
	return observe->tier->name;
}

const char *observe_lacks(const struct observe *observe)
{
	return observe->lacks[0] ? observe->lacks : NULL;
}

const char *observe_kept_privileges(const struct observe *observe)
{
	return observe->kept_privileges[0] ? observe->kept_privileges : NULL;
}

const char *observe_pin_dir(const struct observe *observe)
{
	return observe->pins.dir[0] ? observe->pins.dir : NULL;
}

const struct observer *observe_observer(struct observe *observe)
{
	return &observe->observer;
}
