/* The gate: alone is alone, shared holders are side by side, who wants it alone comes first, and nobody who sleeps is forgotten. */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "uffd/gate.h"

#define THREADS 6
#define ROUNDS	20000

/* A wake-up that is lost is a hang: SIGALRM ends it, and the test program. */
#define DEADLINE_S 200

struct shared {
	struct gate gate;
	pthread_barrier_t barrier;

	/* No atomics: the gate is what keeps them whole, and a sanitizer would see where it doesn't. */
	uint64_t first, second;

	_Atomic unsigned sharing, alone; /* who is inside */
	_Atomic unsigned most_sharing;
	_Atomic uint64_t alone_count, failures; /* cmocka's assertions belong to the main thread */
	_Atomic unsigned turn;
};

struct worker {
	pthread_t thread;
	struct shared *shared;
	unsigned index, turn;
	uint64_t random;
};

static uint64_t next_random(struct worker *worker)
{
	worker->random ^= worker->random << 13;
	worker->random ^= worker->random >> 7;
	worker->random ^= worker->random << 17;
	return worker->random;
}

static void start(struct worker *worker, struct shared *shared, unsigned index, void *(*body)(void *))
{
	*worker = (struct worker){ .shared = shared, .index = index, .random = index * 7919 + 1 };
	assert_int_equal(pthread_create(&worker->thread, NULL, body, worker), 0);
}

static void join(struct worker *workers, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		assert_int_equal(pthread_join(workers[i].thread, NULL), 0);
}

static void run_threads(struct shared *shared, void *(*body)(void *))
{
	struct worker workers[THREADS];

	assert_int_equal(pthread_barrier_init(&shared->barrier, NULL, THREADS), 0);
	for (unsigned i = 0; i < THREADS; i++)
		start(&workers[i], shared, i, body);
	join(workers, THREADS);
	pthread_barrier_destroy(&shared->barrier);
	assert_int_equal(shared->failures, 0);
}

static int make(void **state)
{
	*state = calloc(1, sizeof(struct shared));
	assert_non_null(*state);
	alarm(DEADLINE_S);
	return 0;
}

/* Open and forgotten by all: as it was at first. */
static int unmake(void **state)
{
	struct shared *shared = *state;

	alarm(0);
	bool open = shared->gate.state == 0 && shared->gate.sleepers == 0;
	free(shared);
	return open ? 0 : -1;
}

static void await_sleepers(struct shared *shared, unsigned count)
{
	while (atomic_load(&shared->gate.sleepers) < count)
		sched_yield();
}

/* ---- what goes on inside ---- */

static void check(struct shared *shared, bool fine)
{
	if (!fine)
		atomic_fetch_add(&shared->failures, 1);
}

/* Longer than anybody spins, so that the others go to sleep. */
static void dawdle(struct worker *worker)
{
	struct timespec ts = { .tv_nsec = (long)(next_random(worker) % 200000) };

	if (next_random(worker) % 64 == 0)
		nanosleep(&ts, NULL);
	else if (next_random(worker) % 8 == 0)
		sched_yield();
}

static void be_alone(struct worker *worker)
{
	struct shared *shared = worker->shared;

	check(shared, atomic_fetch_add(&shared->alone, 1) == 0 && atomic_load(&shared->sharing) == 0);
	shared->first++;
	dawdle(worker);
	shared->second++;
	atomic_fetch_add(&shared->alone_count, 1);
	check(shared, atomic_fetch_sub(&shared->alone, 1) == 1 && atomic_load(&shared->sharing) == 0);
}

static void be_one_of_many(struct worker *worker)
{
	struct shared *shared = worker->shared;
	unsigned here = atomic_fetch_add(&shared->sharing, 1) + 1, most = atomic_load(&shared->most_sharing);

	while (here > most && !atomic_compare_exchange_weak(&shared->most_sharing, &most, here))
		;
	uint64_t seen = shared->first;
	check(shared, seen == shared->second && atomic_load(&shared->alone) == 0);
	dawdle(worker);
	check(shared, seen == shared->first && seen == shared->second && atomic_load(&shared->alone) == 0);
	atomic_fetch_sub(&shared->sharing, 1);
}

/* ---- tests ---- */

static void *mix(void *data)
{
	struct worker *worker = data;
	struct shared *shared = worker->shared;

	pthread_barrier_wait(&shared->barrier);
	for (unsigned i = 0; i < ROUNDS; i++)
		switch (next_random(worker) % 4) {
		case 0:
			gate_enter_alone(&shared->gate);
			be_alone(worker);
			gate_leave_alone(&shared->gate);
			break;
		case 1: {
			gate_enter_alone(&shared->gate);
			be_alone(worker);
			uint64_t mine = shared->first;
			gate_share(&shared->gate);
			/* Nobody was alone in between. */
			check(shared, mine == shared->first);
			be_one_of_many(worker);
			check(shared, mine == shared->first);
			gate_leave(&shared->gate);
			break;
		}
		default:
			gate_enter(&shared->gate);
			be_one_of_many(worker);
			gate_leave(&shared->gate);
		}
	return NULL;
}

static void test_alone_keeps_all_others_out(void **state)
{
	struct shared *shared = *state;

	run_threads(shared, mix);
	assert_true(shared->alone_count > 0);
	assert_int_equal(shared->first, shared->alone_count);
	assert_int_equal(shared->second, shared->alone_count);
	/* And shared is shared: with so many rounds some have met. */
	assert_true(shared->most_sharing > 1);
}

static void *meet(void *data)
{
	struct worker *worker = data;
	struct shared *shared = worker->shared;

	for (unsigned i = 0; i < 500; i++) {
		if (i % THREADS == worker->index) {
			gate_enter_alone(&shared->gate);
			shared->first++;
			atomic_store(&shared->turn, i + 1);
			/* The others find it closed, and in every other round they sleep before it opens. */
			if (i & 1)
				await_sleepers(shared, THREADS - 1);
			gate_share(&shared->gate);
		} else {
			while (atomic_load(&shared->turn) <= i)
				sched_yield();
			gate_enter(&shared->gate);
		}
		/* All of them are inside at once, or nobody ever gets past this. */
		pthread_barrier_wait(&shared->barrier);
		check(shared, shared->first == i + 1);
		gate_leave(&shared->gate);
		pthread_barrier_wait(&shared->barrier);
	}
	return NULL;
}

static void test_who_shares_lets_all_others_in_beside_it(void **state)
{
	run_threads(*state, meet);
}

static void *take_turn_alone(void *data)
{
	struct worker *worker = data;
	struct shared *shared = worker->shared;

	gate_enter_alone(&shared->gate);
	worker->turn = atomic_fetch_add(&shared->turn, 1);
	gate_leave_alone(&shared->gate);
	return NULL;
}

static void *take_turn_shared(void *data)
{
	struct worker *worker = data;
	struct shared *shared = worker->shared;

	gate_enter(&shared->gate);
	worker->turn = atomic_fetch_add(&shared->turn, 1);
	gate_leave(&shared->gate);
	return NULL;
}

/* One waits to be alone since before the others came: it comes first, though they could have shared with the one who was there. */
static void test_alone_comes_first(void **state)
{
	struct shared *shared = *state;
	struct worker workers[THREADS];

	for (unsigned round = 0; round < 200; round++) {
		shared->turn = 0;
		gate_enter(&shared->gate);
		start(&workers[0], shared, 0, take_turn_alone);
		while (!(atomic_load(&shared->gate.state) & GATE_WANTED))
			sched_yield();
		for (unsigned i = 1; i < THREADS; i++)
			start(&workers[i], shared, i, take_turn_shared);
		if (round & 1)
			await_sleepers(shared, THREADS);
		assert_int_equal(shared->turn, 0);
		gate_leave(&shared->gate);
		join(workers, THREADS);
		assert_int_equal(workers[0].turn, 0);
	}
}

/* Whoever leaves, and however: all who sleep get in. */
static void test_sleepers_are_woken(void **state)
{
	static void *(*const bodies[])(void *) = { take_turn_shared, take_turn_alone };
	struct shared *shared = *state;
	struct worker workers[THREADS];

	for (unsigned round = 0; round < 300; round++) {
		shared->turn = 0;
		if (round % 3 == 0)
			gate_enter(&shared->gate);
		else
			gate_enter_alone(&shared->gate);
		/* Those who share must have something to wait for. */
		start(&workers[0], shared, 0, take_turn_alone);
		while (!(atomic_load(&shared->gate.state) & GATE_WANTED))
			sched_yield();
		for (unsigned i = 1; i < THREADS; i++)
			start(&workers[i], shared, i, bodies[(round >> i) & 1]);
		await_sleepers(shared, THREADS);
		assert_int_equal(shared->turn, 0);
		if (round % 3 == 1)
			gate_share(&shared->gate);
		if (round % 3 == 2)
			gate_leave_alone(&shared->gate);
		else
			gate_leave(&shared->gate);
		join(workers, THREADS);
		assert_int_equal(shared->turn, THREADS);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_alone_keeps_all_others_out, make, unmake),
		cmocka_unit_test_setup_teardown(test_who_shares_lets_all_others_in_beside_it, make, unmake),
		cmocka_unit_test_setup_teardown(test_alone_comes_first, make, unmake),
		cmocka_unit_test_setup_teardown(test_sleepers_are_woken, make, unmake),
	};

	return cmocka_run_group_tests_name("gate", tests, NULL, NULL);
}
