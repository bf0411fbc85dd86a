#include "integration/harness/fake_observer.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <systemd/sd-daemon.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "control/control.h"
#include "integration/harness/check.h"
#include "serve/server.h"

static struct fake_observer *fake;

struct fake_observer *fake_observer(void)
{
	return fake;
}

struct fake_fork *fake_fork(const char *id)
{
	for (unsigned i = 0; i < fake->fork_count; i++)
		if (!strcmp(fake->forks[i].id, id))
			return &fake->forks[i];
	fail_msg("fork %s was not attached", id);
	return NULL;
}

observed_fork fake_number(const struct fake_fork *fork)
{
	return (observed_fork)(fork - fake->forks) + 1;
}

/* ---- in the server's process ---- */

/* Whoever reads a trace waits for stamps here. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t stamped = PTHREAD_COND_INITIALIZER;

static void die(const char *why)
{
	fprintf(stderr, "Assertion of the fake observer: %s\n", why);
	abort();
}

static struct fake_fork *fork_of(observed_fork number)
{
	if (number == 0 || number > fake->fork_count)
		die("a fork that was never attached");
	struct fake_fork *fork = &fake->forks[number - 1];
	if (fork->released)
		die("a fork that was released");
	return fork;
}

static void copy_regions(struct fake_fork *fork, const struct observer_region *regions, size_t count)
{
	if (count > FAKE_REGIONS_MAX)
		die("too many regions");
	pthread_mutex_lock(&lock);
	memcpy(fork->regions, regions, count * sizeof *regions);
	fork->region_count = count;
	pthread_mutex_unlock(&lock);
}

static int attach(void *data, const struct observer_fork *told, observed_fork *ret)
{
	(void)data;
	if (fake->attach_result < 0)
		return fake->attach_result;
	if (fake->fork_count == FAKE_FORKS_MAX)
		die("too many forks");
	struct fake_fork *fork = &fake->forks[fake->fork_count];
	snprintf(fork->id, sizeof fork->id, "%s", told->id);
	fork->pid = told->pid;
	fork->had_uffd = told->uffd >= 0;
	fork->record = told->record;
	fork->window_timeout_ns = told->window_timeout_ns;
	fork->window_settle_ns = told->window_settle_ns;
	fork->connected_ns = told->connected_ns;
	copy_regions(fork, told->regions, told->region_count);
	*ret = ++fake->fork_count;
	return 0;
}

static void regions_changed(void *data, observed_fork number, const struct observer_region *regions, size_t count)
{
	struct fake_fork *fork = fork_of(number);

	(void)data;
	copy_regions(fork, regions, count);
	fork->moves++;
}

static void ready(void *data, observed_fork number)
{
	(void)data;
	fork_of(number)->ready++;
}

static void detach(void *data, observed_fork number)
{
	(void)data;
	pthread_mutex_lock(&lock);
	fork_of(number)->detached++;
	pthread_cond_broadcast(&stamped);
	pthread_mutex_unlock(&lock);
}

static void release(void *data, observed_fork number)
{
	(void)data;
	fork_of(number)->released++;
}

static void stamp(void *data, unsigned pager, const struct observer_stamp *told)
{
	uint64_t at = fake->stamp_count++;

	(void)data;
	if (at >= FAKE_STAMPS_MAX)
		die("too many stamps");
	if (pager >= fake->pagers)
		die("a pager that there is not");
	fake->stamps[at].stamp = *told;
	fake->stamps[at].pager = pager;
	fork_of(told->fork)->stamps++;
	pthread_mutex_lock(&lock);
	fake->stamps[at].written = true;
	pthread_cond_broadcast(&stamped);
	pthread_mutex_unlock(&lock);
}

static int figures(void *data, observed_fork number, struct observed_figures *ret)
{
	(void)data;
	fork_of(number);
	*ret = fake->figures;
	return 0;
}

static int hot_list(void *data, observed_fork number, struct hotlist **ret, struct error *err)
{
	struct hotlist *list = hotlist_new();

	(void)data;
	if (!fork_of(number)->record || !list) {
		hotlist_free(list);
		return -ENODATA;
	}
	for (size_t i = 0; i < fake->page_count; i++) {
		struct hot_touch touch = { .raw_ns = i + 1,
					   .corrected_ns = i + 1,
					   .seen = 1,
					   .vcpu = i & 1,
					   .flags = fake->present ? HOT_WAS_PRESENT : 0 };
		if (hotlist_add_touch(list, fake->pages[i].region, fake->pages[i].offset, &touch) < 0)
			die("out of memory");
	}
	struct hotlist_origin origin = { .runs = 1,
					 .events_lost = fake->events_lost,
					 .window_ns = UINT32_MAX,
					 .window_end = (uint32_t)fake->window_end,
					 .clock = HOT_CLOCK_CORRECTED,
					 .tier = FAKE_TIER };
	if (hotlist_set_origin(list, &origin) < 0)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	*ret = list;
	return 0;
}

/* ---- its traces: each stamp is a touch ---- */

struct fake_trace {
	observed_fork fork;
	uint64_t at;
};

static int trace_open(void *data, observed_fork number, void **ret)
{
	struct fake_trace *trace = calloc(1, sizeof *trace);

	(void)data;
	if (!trace)
		return -ENOMEM;
	trace->fork = number;
	trace->at = fake->stamp_count;
	fork_of(number)->traces++;
	*ret = trace;
	return 0;
}

static struct observed_touch touch_of(const struct fake_fork *fork, const struct observer_stamp *s)
{
	struct observed_touch touch = {
		.touch_ns = s->read_ns - FAKE_QUEUE_NS,
		.read_ns = s->read_ns,
		.source_ns = s->source_ns,
		.copied_ns = s->copied_ns,
		.run_ns = s->copied_ns + FAKE_WAKE_NS,
		.address = s->address + 8,
		.vcpu = s->address / PAGE % 2,
		.demand = s->address / PAGE % 8 != 7,
		.write = s->address / PAGE % 4 == 1,
	};

	touch.tid = 1000 + touch.vcpu;
	snprintf(touch.thread, sizeof touch.thread, "a \"vcpu\" %u", touch.vcpu);
	for (size_t i = 0; i < fork->region_count; i++) {
		const struct observer_region *region = &fork->regions[i];
		if (touch.address - region->address < region->size) {
			touch.region = region->region;
			touch.offset = touch.address - region->address + region->offset;
		}
	}
	return touch;
}

static ssize_t trace_read(void *data, struct observed_touch *ret, size_t max, uint64_t timeout_ns, uint64_t *ret_lost)
{
	struct fake_trace *trace = data;
	struct timespec until;
	size_t n = 0;
	bool last_look = false;

	clock_gettime(CLOCK_REALTIME, &until);
	uint64_t ns = (uint64_t)until.tv_nsec + timeout_ns;
	until.tv_sec += (time_t)(ns / NSEC_PER_SEC);
	until.tv_nsec = (long)(ns % NSEC_PER_SEC);

	struct fake_fork *fork = fork_of(trace->fork);
	pthread_mutex_lock(&lock);
	for (;;) {
		for (; n < max && trace->at < fake->stamp_count && fake->stamps[trace->at].written; trace->at++)
			if (fake->stamps[trace->at].stamp.fork == trace->fork)
				ret[n++] = touch_of(fork, &fake->stamps[trace->at].stamp);
		/* The VMM may have gone before the pager that served its last fault has stamped it. */
		if (fork->detached && !last_look) {
			last_look = true;
			clock_gettime(CLOCK_REALTIME, &until);
			until.tv_sec++;
		}
		if (n > 0 || pthread_cond_timedwait(&stamped, &lock, &until) == ETIMEDOUT)
			break;
	}
	bool over = n == 0 && fork->detached;
	pthread_mutex_unlock(&lock);
	*ret_lost = n > 0 ? atomic_exchange(&fake->trace_lost, 0) : 0;
	return over ? -ESHUTDOWN : (ssize_t)n;
}

static void trace_close(void *data)
{
	struct fake_trace *trace = data;

	fork_of(trace->fork)->traces--;
	free(trace);
}

static const struct observer observer = {
	.tier = FAKE_TIER,
	.attach = attach,
	.regions = regions_changed,
	.ready = ready,
	.detach = detach,
	.release = release,
	.stamp = stamp,
	.figures = figures,
	.figures_lately = figures,
	.hot_list = hot_list,
	.trace_open = trace_open,
	.trace_read = trace_read,
	.trace_close = trace_close,
};

static int make_observer(void *data, const char *run_dir, unsigned pagers, const struct observer **ret,
			 struct error *err)
{
	(void)data;
	(void)run_dir;
	(void)err;
	fake->pagers = pagers;
	*ret = &observer;
	return 0;
}

static void on_ready(void *data)
{
	(void)data;
	sd_notify(0, "READY=1");
}

static void on_stop(void *data)
{
	control_stop(data);
}

/* Instead of the binary: does not return. */
static void serve(void *data)
{
	const struct server_config config = { .run_dir = data, .observe = make_observer };
	struct server *server = NULL;
	struct control *control = NULL;
	struct error err;

	log_setup(LOG_LEVEL_INFO, false);
	if (server_new(&config, &server, &err) < 0 || control_start(server, "0", &control, &err) < 0) {
		log_error(NULL, "%s", err.message);
		exit(1);
	}
	server_on_stop(server, on_stop, control);
	int r = server_run(server, on_ready, NULL, &err);
	server_free(server);
	for (unsigned i = 0; i < fake->fork_count; i++)
		if (fake->forks[i].detached != 1 || fake->forks[i].released != 1 || fake->forks[i].traces)
			die("a fork was not given up in the right way");
	exit(r < 0);
}

int fake_observer_setup(void **state)
{
	struct test_server *server = malloc(sizeof *server);

	if (!fake)
		fake = mmap(NULL, sizeof *fake, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (fake == MAP_FAILED || !server)
		fail_msg("no memory: %s", strerror(errno));
	memset(fake, 0, sizeof *fake);
	*state = server;
	test_server_make_dir(server);
	test_server_start_as(server, ARGS(NULL), serve, server->run_dir);
	return 0;
}
