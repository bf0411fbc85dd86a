/* Several threads change the states of the same pages: every change has exactly one winner, and no neighbour is disturbed. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "uffd/page_state.h"
#include "unit/hotlist_helpers.h"

#define THREADS 4
#define PAGES	(2 * 8192ull + 77)

struct shared {
	struct page_states *states;
	pthread_barrier_t barrier;
	_Atomic unsigned winners[3][PAGES];
	_Atomic uint64_t changed;
	_Atomic uint64_t failures; /* cmocka's assertions belong to the main thread */
};

struct worker {
	pthread_t thread;
	struct shared *shared;
	unsigned index;
};

static void run_threads(struct shared *shared, void *(*body)(void *))
{
	struct worker workers[THREADS];

	assert_int_equal(pthread_barrier_init(&shared->barrier, NULL, THREADS), 0);
	for (unsigned i = 0; i < THREADS; i++) {
		workers[i] = (struct worker){ .shared = shared, .index = i };
		assert_int_equal(pthread_create(&workers[i].thread, NULL, body, &workers[i]), 0);
	}
	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(pthread_join(workers[i].thread, NULL), 0);
	pthread_barrier_destroy(&shared->barrier);
	assert_int_equal(shared->failures, 0);
}

static int make(void **state)
{
	struct shared *shared = calloc(1, sizeof *shared);

	assert_non_null(shared);
	shared->states = page_states_new(PAGES);
	assert_non_null(shared->states);
	*state = shared;
	return 0;
}

static int unmake(void **state)
{
	struct shared *shared = *state;

	page_states_free(shared->states);
	free(shared);
	return 0;
}

/* A step that is coprime to PAGES gives each thread an order of its own. */
static uint64_t nth_page(const struct worker *worker, uint64_t i)
{
	static const uint64_t steps[THREADS] = { 1, 7919, 104729, 1 };
	uint64_t page = i * steps[worker->index] % PAGES;

	return worker->index == THREADS - 1 ? PAGES - 1 - page : page;
}

static void *contend(void *data)
{
	static const enum page_state chain[] = { PAGE_ABSENT, PAGE_COMING, PAGE_THERE, PAGE_REMOVED };
	struct worker *worker = data;
	struct shared *shared = worker->shared;

	pthread_barrier_wait(&shared->barrier);
	for (uint64_t i = 0; i < PAGES; i++) {
		uint64_t page = nth_page(worker, i);
		for (unsigned s = 0; s < 3; s++)
			if (page_states_change(shared->states, page, chain[s], chain[s + 1]) == 1)
				shared->winners[s][page]++;
	}
	return NULL;
}

static void test_every_change_has_one_winner(void **state)
{
	struct shared *shared = *state;

	run_threads(shared, contend);
	for (unsigned s = 0; s < 3; s++)
		for (uint64_t page = 0; page < PAGES; page++)
			assert_int_equal(shared->winners[s][page], 1);
	assert_int_equal(page_states_run(shared->states, 0, PAGES, PAGE_REMOVED), PAGES);
}

/* All set the same overlapping ranges to the same state: each page was changed by one of them. */
static void *set_ranges(void *data)
{
	struct worker *worker = data;
	struct shared *shared = worker->shared;
	struct random random = { .state = worker->index };
	uint64_t changed;

	pthread_barrier_wait(&shared->barrier);
	for (unsigned i = 0; i < 2000; i++) {
		uint64_t first = random_below(&random, PAGES), count = random_below(&random, 200);
		if (count > PAGES - first)
			count = PAGES - first;
		if (page_states_set(shared->states, first, count, PAGE_REMOVED, &changed) < 0 ||
		    page_states_run(shared->states, first, count, PAGE_REMOVED) != count)
			shared->failures++;
		shared->changed += changed;
	}
	if (page_states_set(shared->states, 0, PAGES, PAGE_REMOVED, &changed) < 0)
		shared->failures++;
	shared->changed += changed;
	return NULL;
}

static void test_sets_count_each_page_once(void **state)
{
	struct shared *shared = *state;

	run_threads(shared, set_ranges);
	assert_int_equal(shared->changed, PAGES);
	assert_int_equal(page_states_run(shared->states, 0, PAGES, PAGE_REMOVED), PAGES);
}

/*
 * Page numbers modulo THREADS belong to a thread each: 32 pages share a word, and what a neighbour does must not undo one's own. Few
 * words and many rounds, so that the threads do meet.
 */
static void *own_pages(void *data)
{
	static const enum page_state other[] = { PAGE_THERE, PAGE_REMOVED, PAGE_COMING, PAGE_ABSENT };
	struct worker *worker = data;
	struct shared *shared = worker->shared;

	pthread_barrier_wait(&shared->barrier);
	for (unsigned round = 0; round < 60000; round++)
		for (uint64_t page = worker->index; page < 64; page += THREADS) {
			enum page_state was = round ? other[(round - 1 + page) % 4] : PAGE_ABSENT,
					to = other[(round + page) % 4];
			uint64_t changed = 0;
			bool ok = round % 2 ? page_states_set(shared->states, page, 1, to, &changed) == 0 &&
						      changed == (was != to)
					    : page_states_change(shared->states, page, was, to) == 1;
			if (!ok || page_states_get(shared->states, page) != to)
				shared->failures++;
		}
	return NULL;
}

static void test_neighbours_are_left_alone(void **state)
{
	struct shared *shared = *state;

	run_threads(shared, own_pages);
}

/* As in the server: removals against supplies. Whatever the order, a removed page stays removed. */
static void *remove_or_supply(void *data)
{
	struct worker *worker = data;
	struct shared *shared = worker->shared;
	uint64_t changed;

	pthread_barrier_wait(&shared->barrier);
	for (uint64_t i = 0; i < PAGES; i++) {
		uint64_t page = nth_page(worker, i);
		if (worker->index == 0) {
			if (page_states_set(shared->states, page, 1, PAGE_REMOVED, &changed) < 0 || changed != 1)
				shared->failures++;
		} else if (page_states_change(shared->states, page, PAGE_ABSENT, PAGE_COMING) == 1) {
			page_states_change(shared->states, page, PAGE_COMING, PAGE_THERE);
		}
	}
	return NULL;
}

static void test_removed_stays_removed(void **state)
{
	struct shared *shared = *state;

	run_threads(shared, remove_or_supply);
	assert_int_equal(page_states_run(shared->states, 0, PAGES, PAGE_REMOVED), PAGES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_every_change_has_one_winner, make, unmake),
		cmocka_unit_test_setup_teardown(test_sets_count_each_page_once, make, unmake),
		cmocka_unit_test_setup_teardown(test_neighbours_are_left_alone, make, unmake),
		cmocka_unit_test_setup_teardown(test_removed_stays_removed, make, unmake),
	};

	return cmocka_run_group_tests_name("page_state_threads", tests, NULL, NULL);
}
