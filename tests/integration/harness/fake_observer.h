/*
 * A server with an observer of the test's own, in a child process: it notes what the server tells it, and answers as the test says. So the
 * server's side of observation is tested on any kernel, and to the last number.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "integration/harness/server.h"
#include "serve/observer.h"

#define FAKE_FORKS_MAX	 64
#define FAKE_REGIONS_MAX 16
#define FAKE_STAMPS_MAX	 65536
#define FAKE_PAGES_MAX	 4096

#define FAKE_TIER "fake"
/* What it says of each touch that it makes of a stamp: the touch came so long before the fault was read, the thread ran so long after. */
#define FAKE_QUEUE_NS 1000
#define FAKE_WAKE_NS  3000

/* The test's and the server's process share it. */
struct fake_observer {
	/* Set by the test, before the fork connects. */
	_Atomic int attach_result;
	struct observed_figures figures;
	struct hot_page pages[FAKE_PAGES_MAX]; /* of every fork's recording */
	_Atomic size_t page_count;
	_Atomic bool present; /* they were there when they were touched */
	_Atomic int window_end;
	_Atomic uint64_t events_lost;
	_Atomic uint64_t trace_lost; /* told once */
	unsigned pagers;	     /* as the server said */

	/* In the order in which they were attached; a fork's number is its place and 1. */
	_Atomic unsigned fork_count;
	struct fake_fork {
		char id[80];
		pid_t pid;
		bool had_uffd, record;
		uint64_t connected_ns, window_timeout_ns, window_settle_ns;
		struct observer_region regions[FAKE_REGIONS_MAX];
		_Atomic size_t region_count;
		_Atomic unsigned moves, ready, detached, released, traces;
		_Atomic uint64_t stamps;
	} forks[FAKE_FORKS_MAX];

	_Atomic uint64_t stamp_count;
	struct fake_stamp {
		struct observer_stamp stamp;
		unsigned pager;
		_Atomic bool written;
	} stamps[FAKE_STAMPS_MAX];
};

/* cmocka's setup; teardown is test_server_teardown. *state is a struct test_server, and the observer is fake_observer(). */
int fake_observer_setup(void **state);
struct fake_observer *fake_observer(void);

/* The fork of that id, attached by now. */
struct fake_fork *fake_fork(const char *id);
observed_fork fake_number(const struct fake_fork *fork);

#define OBSERVED(f) cmocka_unit_test_setup_teardown(f, fake_observer_setup, test_server_teardown)
