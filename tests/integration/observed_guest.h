/*
 * A guest in this process with a pager of its own, for tests of the observer alone: memory behind a userfaultfd, threads that touch it, a
 * thread that serves them and stamps what it did, as the server would.
 */
#pragma once

#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "base/clock.h"
#include "integration/harness/check.h"
#include "observe/observe.h"
#include "serve/observer.h"

/* Guests that are served at once in a test. */
#define OBSERVED_GUEST_PAGERS	8u
#define OBSERVED_GUEST_HELD_MAX 64u

struct observed_guest {
	const struct observer *observer;
	observed_fork fork;
	int uffd, stop_fd;
	char *memory;
	size_t pages;
	pthread_t pager;
	uint64_t window_timeout_ns; /* of its recording; 0: the usual one */
	uint64_t slow_ns;	    /* added to each fault's source */
	size_t hold;		    /* faults are served when so many have come; at most OBSERVED_GUEST_HELD_MAX */
	_Atomic uint64_t served;
};

/* What page PAGE holds: at its beginning. */
static inline uint64_t observed_guest_content(size_t page)
{
	return mix64(page + 1);
}

static inline void observed_guest_serve_fault(struct observed_guest *g, unsigned pager, uint64_t fault_address)
{
	char page[PAGE] __attribute__((aligned(PAGE))) = { 0 };
	uint64_t read_ns = now_ns(), source_ns = read_ns;
	uint64_t address = fault_address & ~(PAGE - 1);
	uint64_t content = observed_guest_content((address - (uintptr_t)g->memory) / PAGE);

	memcpy(page, &content, sizeof content);
	while (g->slow_ns && source_ns < read_ns + g->slow_ns)
		source_ns = now_ns();
	struct uffdio_copy copy = { .dst = address, .src = (uintptr_t)page, .len = PAGE };
	if (ioctl(g->uffd, UFFDIO_COPY, &copy) < 0 && errno == EEXIST) {
		struct uffdio_range range = { .start = address, .len = PAGE };
		ioctl(g->uffd, UFFDIO_WAKE, &range);
	}
	g->served++;
	g->observer->stamp(g->observer->data, pager,
			   &(struct observer_stamp){ .fork = g->fork,
						     .address = address,
						     .read_ns = read_ns,
						     .source_ns = source_ns,
						     .copied_ns = now_ns() });
}

static inline void *observed_guest_serve(void *data)
{
	struct observed_guest *g = data;
	struct pollfd polls[] = { { .fd = g->uffd, .events = POLLIN }, { .fd = g->stop_fd, .events = POLLIN } };
	uint64_t held[OBSERVED_GUEST_HELD_MAX];
	struct uffd_msg message;
	size_t count = 0;
	static _Atomic unsigned last_pager;
	unsigned pager = last_pager++ % OBSERVED_GUEST_PAGERS; /* each thread's stamps go their own way */

	while (poll(polls, 2, -1) >= 0 && !(polls[1].revents & POLLIN)) {
		while (count < OBSERVED_GUEST_HELD_MAX && read(g->uffd, &message, sizeof message) == sizeof message) {
			held[count++] = message.arg.pagefault.address;
			if (count < g->hold)
				continue;
			while (count)
				observed_guest_serve_fault(g, pager, held[--count]);
		}
	}
	return NULL;
}

static inline struct observer_region observed_guest_region(const struct observed_guest *g)
{
	return (struct observer_region){ .address = (uintptr_t)g->memory, .size = g->pages * PAGE, .page_size = PAGE };
}

/* Memory of PAGES pages behind a userfaultfd, anonymous or of MEMFD (-1: anonymous). */
static inline void observed_guest_map(struct observed_guest *g, size_t pages, int memfd)
{
	*g = (struct observed_guest){ .pages = pages, .stop_fd = eventfd(0, EFD_CLOEXEC) };
	g->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	assert_true(g->uffd >= 0);
	assert_int_equal(ioctl(g->uffd, UFFDIO_API, &(struct uffdio_api){ .api = UFFD_API }), 0);
	int flags = memfd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	g->memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, flags, memfd, 0);
	assert_ptr_not_equal(g->memory, MAP_FAILED);
	madvise(g->memory, pages * PAGE, MADV_NOHUGEPAGE);
	struct uffdio_register all = { .range = { .start = (uintptr_t)g->memory, .len = pages * PAGE },
				       .mode = UFFDIO_REGISTER_MODE_MISSING };
	assert_int_equal(ioctl(g->uffd, UFFDIO_REGISTER, &all), 0);
}

/* Attached under ID, and served from now on. */
static inline void observed_guest_start(struct observed_guest *g, struct observe *observe, const char *id, bool record)
{
	struct observer_region region = observed_guest_region(g);
	struct observer_fork fork = { .id = id,
				      .pid = getpid(),
				      .uffd = g->uffd,
				      .record = record,
				      .window_timeout_ns = g->window_timeout_ns,
				      .connected_ns = now_ns(),
				      .regions = &region,
				      .region_count = 1 };

	g->observer = observe_observer(observe);
	assert_int_equal(g->observer->attach(g->observer->data, &fork, &g->fork), 0);
	assert_int_equal(pthread_create(&g->pager, NULL, observed_guest_serve, g), 0);
}

/* Reads pages FIRST to LAST - 1 by STEP, and compares them. */
static inline void observed_guest_read(struct observed_guest *g, size_t first, size_t last, size_t step)
{
	for (size_t page = first; page < last; page += step) {
		uint64_t content;
		memcpy(&content, g->memory + page * PAGE, sizeof content);
		assert_int_equal(content, observed_guest_content(page));
	}
}

static inline struct observed_figures observed_guest_figures(struct observed_guest *g)
{
	struct observed_figures figures;

	assert_int_equal(g->observer->figures(g->observer->data, g->fork, &figures), 0);
	return figures;
}

/* Whether each fault's stamp has come by now isn't known: until the joined ones are as many. */
static inline struct observed_figures observed_guest_wait_joined(struct observed_guest *g, uint64_t count)
{
	struct observed_figures figures;
	uint64_t until = deadline_in(WAIT_S);

	do {
		figures = observed_guest_figures(g);
		poll(NULL, 0, 5);
	} while (figures.queue.count + figures.unjoined + figures.events_lost < count && deadline_ms(until) > 0);
	return figures;
}

static inline void observed_guest_stop(struct observed_guest *g)
{
	eventfd_write(g->stop_fd, 1);
	pthread_join(g->pager, NULL);
	g->observer->release(g->observer->data, g->fork);
	munmap(g->memory, g->pages * PAGE);
	close(g->uffd);
	close(g->stop_fd);
}

/* The best tier, or the one that FAULTLINE_OBSERVE_TIER names; the test fails without. */
static inline struct observe *observer_new(size_t ring_bytes)
{
	struct observe *observe = NULL;
	struct error err = { 0 };
	struct observe_config config = { .ring_bytes = ring_bytes,
					 .pagers = OBSERVED_GUEST_PAGERS,
					 .tier = getenv("FAULTLINE_OBSERVE_TIER") };

	if (observe_new(&config, &observe, &err) < 0)
		fail_msg("%s", err.message);
	return observe;
}
