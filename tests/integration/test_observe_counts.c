/* What the observer counts is exact: every fault once, none of anybody else's, and what it lost said. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "integration/observed_guest.h"
#include "observe/internal.h"

#define PAGES  4000u
#define ROUNDS 20u

static void each_fault_is_counted_once(void **state)
{
	struct observe *observe = observer_new(0);
	struct observed_guest guest;

	(void)state;
	observed_guest_map(&guest, PAGES, -1);
	observed_guest_start(&guest, observe, "a", false);
	observed_guest_read(&guest, 0, PAGES, 1);
	struct observed_figures figures = observed_guest_wait_joined(&guest, PAGES);
	assert_int_equal(figures.faults, PAGES);
	assert_int_equal(figures.total.count, PAGES);
	assert_int_equal(figures.events_lost, 0);
	assert_int_equal(figures.unjoined, 0);
	assert_int_equal(figures.present, 0);
	assert_int_equal(figures.vcpus, 1);

	/* Pages that are there cost nothing, and are none. */
	observed_guest_read(&guest, 0, PAGES, 1);
	assert_int_equal(observed_guest_figures(&guest).faults, PAGES);
	observed_guest_stop(&guest);
	observe_free(observe);
}

static void forks_in_one_process_are_told_apart(void **state)
{
	struct observe *observe = observer_new(0);
	struct observed_guest a, b, stranger;

	(void)state;
	observed_guest_map(&a, PAGES, -1);
	observed_guest_map(&b, PAGES, -1);
	observed_guest_map(&stranger, PAGES, -1);
	observed_guest_start(&a, observe, "a", true);
	observed_guest_start(&b, observe, "b", true);
	observed_guest_start(&stranger, observe, "stranger", true);
	stranger.observer->detach(stranger.observer->data, stranger.fork);
	for (size_t i = 0; i < PAGES; i++) {
		observed_guest_read(&a, i, i + 1, 1);
		observed_guest_read(&stranger, i, i + 1, 1);
		if (i % 2)
			observed_guest_read(&b, i, i + 1, 1);
	}
	assert_int_equal(observed_guest_wait_joined(&a, PAGES).faults, PAGES);
	assert_int_equal(observed_guest_wait_joined(&b, PAGES / 2).faults, PAGES / 2);
	assert_int_equal(observed_guest_figures(&stranger).faults, 0);
	observed_guest_stop(&a);
	observed_guest_stop(&b);
	observed_guest_stop(&stranger);
	observe_free(observe);
}

/* The reader is held up, so that the smallest ring overflows: the kernel counts on, and says what it could not tell. */
static void seen_and_lost_are_what_happened(void **state)
{
	struct observe *observe = observer_new(OBSERVE_RING_MIN);
	struct observed_guest guest;

	(void)state;
	observed_guest_map(&guest, PAGES, -1);
	observed_guest_start(&guest, observe, "a", true);
	pthread_mutex_lock(&observe->lock);
	observed_guest_read(&guest, 0, PAGES / 2, 1);
	pthread_mutex_unlock(&observe->lock);
	(void)observed_guest_figures(&guest); /* empties the ring */
	observed_guest_read(&guest, PAGES / 2, PAGES / 2 + 10, 1);

	struct observed_figures figures = observed_guest_wait_joined(&guest, PAGES / 2 + 10);
	/* Where a fault is known by its sleep, one whose page came before that counts as a touch, if the event is lost too. */
	assert_int_equal(figures.faults + figures.present, PAGES / 2 + 10);
	assert_true(figures.events_lost > PAGES / 4);
	assert_true(figures.total.count > 10);
	/* The first event was the thread's name, and not lost. */
	assert_int_equal(figures.total.count + figures.events_lost, PAGES / 2 + 10);
	print_message("a ring of %u bytes: %llu seen, %llu lost\n", OBSERVE_RING_MIN,
		      (unsigned long long)figures.total.count, (unsigned long long)figures.events_lost);

	struct hotlist *list;
	struct error err = { 0 };
	assert_int_equal(guest.observer->hot_list(guest.observer->data, guest.fork, &list, &err), 0);
	assert_int_equal(list->origin->events_lost, figures.events_lost);
	assert_int_equal(list->count, figures.total.count);
	hotlist_free(list);
	observed_guest_stop(&guest);
	observe_free(observe);
}

/* Each fault's phases are four pieces of its stall. */
static void phases_are_where_the_time_went(void **state)
{
	struct observe *observe = observer_new(0);
	struct observed_guest guest;
	void *trace;
	struct observed_touch touches[64];
	uint64_t lost;
	size_t seen = 0;

	(void)state;
	observed_guest_map(&guest, 200, -1);
	guest.slow_ns = 300 * NSEC_PER_USEC;
	observed_guest_start(&guest, observe, "a", false);
	assert_int_equal(guest.observer->trace_open(guest.observer->data, guest.fork, &trace), 0);
	observed_guest_read(&guest, 0, 200, 1);
	while (seen < 200) {
		ssize_t n = guest.observer->trace_read(trace, touches, 64, WAIT_S * NSEC_PER_SEC, &lost);
		assert_true(n > 0);
		assert_int_equal(lost, 0);
		for (ssize_t i = 0; i < n; i++, seen++) {
			const struct observed_touch *t = &touches[i];
			assert_true(t->demand);
			assert_true(t->touch_ns <= t->read_ns && t->read_ns <= t->source_ns &&
				    t->source_ns <= t->copied_ns && t->copied_ns <= t->run_ns);
			assert_true(t->source_ns - t->read_ns >= guest.slow_ns);
			assert_int_equal(t->offset / PAGE, seen);
		}
	}
	struct observed_figures figures = observed_guest_wait_joined(&guest, 200);
	assert_int_equal(figures.queue.count, 200);
	assert_true(figures.source.p50_ns >= guest.slow_ns);
	assert_true(figures.total.p50_ns >= figures.source.p50_ns);
	assert_true(figures.stall_ns >= 200 * guest.slow_ns);
	guest.observer->trace_close(trace);
	observed_guest_stop(&guest);
	observe_free(observe);
}

/* A system call of the VMM's that writes to guest memory waits as the guest would. */
static void faults_of_system_calls_count_too(void **state)
{
	struct observe *observe = observer_new(0);
	struct observed_guest guest;
	int ends[2];

	(void)state;
	observed_guest_map(&guest, 100, -1);
	observed_guest_start(&guest, observe, "a", true);
	assert_int_equal(pipe(ends), 0);
	for (size_t i = 0; i < 100; i++) {
		uint64_t content = observed_guest_content(i);
		assert_int_equal(write(ends[1], "x", 1), 1);
		assert_int_equal(read(ends[0], guest.memory + i * PAGE + 100, 1), 1);
		assert_memory_equal(guest.memory + i * PAGE, &content, sizeof content);
		assert_int_equal(guest.memory[i * PAGE + 100], 'x');
	}
	struct observed_figures figures = observed_guest_wait_joined(&guest, 100);
	assert_int_equal(figures.faults, 100);
	assert_int_equal(figures.present, 0);
	close(ends[0]);
	close(ends[1]);
	observed_guest_stop(&guest);
	observe_free(observe);
}

struct toucher {
	struct observed_guest *guest;
	size_t first;
};

static void *touch_all(void *data)
{
	const struct toucher *toucher = data;

	for (size_t i = 0; i < ROUNDS; i++)
		observed_guest_read(toucher->guest, toucher->first + i, toucher->first + i + 1, 1);
	return NULL;
}

/* More threads wait at once than the kernel has return probes for: it says nothing of the returns of the rest. */
static void many_wait_at_once(void **state)
{
	struct observe *observe = observer_new(0);
	struct observed_guest guest;
	struct toucher touchers[OBSERVED_GUEST_HELD_MAX];
	pthread_t threads[OBSERVED_GUEST_HELD_MAX];
	uint64_t faults = (uint64_t)OBSERVED_GUEST_HELD_MAX * ROUNDS;

	(void)state;
	observed_guest_map(&guest, faults, -1);
	guest.hold = OBSERVED_GUEST_HELD_MAX;
	observed_guest_start(&guest, observe, "a", true);
	for (size_t i = 0; i < OBSERVED_GUEST_HELD_MAX; i++) {
		touchers[i] = (struct toucher){ &guest, i * ROUNDS };
		assert_int_equal(pthread_create(&threads[i], NULL, touch_all, &touchers[i]), 0);
	}
	for (size_t i = 0; i < OBSERVED_GUEST_HELD_MAX; i++)
		pthread_join(threads[i], NULL);

	struct observed_figures figures = observed_guest_wait_joined(&guest, faults);
	assert_int_equal(figures.faults, faults);
	assert_int_equal(figures.total.count, faults);
	assert_int_equal(figures.present, 0);
	assert_int_equal(figures.unjoined, 0);
	assert_int_equal(figures.events_lost, 0);
	observed_guest_stop(&guest);
	observe_free(observe);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_fault_is_counted_once),
		cmocka_unit_test(forks_in_one_process_are_told_apart),
		cmocka_unit_test(seen_and_lost_are_what_happened),
		cmocka_unit_test(phases_are_where_the_time_went),
		cmocka_unit_test(faults_of_system_calls_count_too),
		cmocka_unit_test(many_wait_at_once),
	};

	return harness_run(tests);
}
