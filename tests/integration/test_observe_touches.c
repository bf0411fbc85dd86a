/* Touches as they were: their order, their threads, sleeps between them, and those of pages that were there. */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <unistd.h>

#include "hotlist/order.h"
#include "integration/observed_guest.h"
#include "observe/internal.h"

#define PAGES	1600u
#define THREADS 8u

/* Pages in random order, dealt to threads in turn: who holds the turn reads the next one. */
struct deal {
	struct observed_guest *guest;
	uint32_t order[PAGES];
	pthread_mutex_t lock;
	pthread_cond_t moved;
	size_t next;
	_Atomic unsigned started;
};

struct player {
	struct deal *deal;
	unsigned number;
};

static void *play(void *data)
{
	struct player *player = data;
	struct deal *deal = player->deal;

	pthread_mutex_lock(&deal->lock);
	for (size_t i = player->number; i < PAGES; i += THREADS) {
		while (deal->next != i)
			pthread_cond_wait(&deal->moved, &deal->lock);
		observed_guest_read(deal->guest, deal->order[i], deal->order[i] + 1, 1);
		deal->next++;
		pthread_cond_broadcast(&deal->moved);
	}
	pthread_mutex_unlock(&deal->lock);
	return NULL;
}

static struct hotlist *kernel_list(struct observed_guest *guest)
{
	struct hotlist *list;
	struct error err = { 0 };

	if (guest->observer->hot_list(guest->observer->data, guest->fork, &list, &err) < 0)
		fail_msg("%s", err.message);
	return list;
}

static void eight_threads_are_recorded_in_their_order(void **state)
{
	struct observe *observe = observer_new(0);
	struct observed_guest guest;
	static struct deal deal = { .lock = PTHREAD_MUTEX_INITIALIZER, .moved = PTHREAD_COND_INITIALIZER };
	struct player players[THREADS];
	pthread_t threads[THREADS];
	struct random random = random_from(5);

	(void)state;
	deal.guest = &guest;
	deal.next = 0;
	random_order(&random, deal.order, PAGES);
	observed_guest_map(&guest, PAGES, -1);
	observed_guest_start(&guest, observe, "a", true);
	for (unsigned i = 0; i < THREADS; i++) {
		players[i] = (struct player){ &deal, i };
		pthread_create(&threads[i], NULL, play, &players[i]);
	}
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);

	struct observed_figures figures = observed_guest_wait_joined(&guest, PAGES);
	assert_int_equal(figures.faults, PAGES);
	assert_int_equal(figures.vcpus, THREADS);
	struct hotlist *list = kernel_list(&guest);
	assert_int_equal(list->count, PAGES);
	assert_string_equal(list->origin->tier, observe_tier(observe));
	/* As it happened, exactly. */
	static uint64_t raw_ns[PAGES];
	for (size_t i = 0; i < PAGES; i++)
		raw_ns[list->pages[i].offset / PAGE] = list->touches[i].raw_ns;
	for (size_t i = 1; i < PAGES; i++)
		assert_true(raw_ns[deal.order[i]] > raw_ns[deal.order[i - 1]]);
	/*
	 * In the guest's own time nearly so: they hand the turn over asleep, which joins their clocks, but one that was preempted on its way to sleep is
	 * not woken.
	 */
	struct hotlist *truth = hotlist_new();
	for (size_t i = 0; i < PAGES; i++)
		assert_int_equal(hotlist_add(truth, 0, deal.order[i] * PAGE), 0);
	size_t common;
	assert_true(order_rank_correlation(list, truth, &common) > 0.9);
	assert_int_equal(common, PAGES);
	hotlist_free(truth);
	hotlist_free(list);
	observed_guest_stop(&guest);
	observe_free(observe);
}

/* Who slept, and who woke it: what the clocks are joined by. */
static void sleeps_name_their_waker(void **state)
{
	struct observe *observe = observer_new(0);
	struct observed_guest guest;
	static struct deal deal = { .lock = PTHREAD_MUTEX_INITIALIZER, .moved = PTHREAD_COND_INITIALIZER };
	struct player players[THREADS];
	pthread_t threads[THREADS];

	(void)state;
	deal.guest = &guest;
	deal.next = 0;
	for (unsigned i = 0; i < PAGES; i++)
		deal.order[i] = i;
	observed_guest_map(&guest, PAGES, -1);
	observed_guest_start(&guest, observe, "a", true);
	for (unsigned i = 0; i < THREADS; i++) {
		players[i] = (struct player){ &deal, i };
		pthread_create(&threads[i], NULL, play, &players[i]);
	}
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	(void)observed_guest_figures(&guest);

	pthread_mutex_lock(&observe->lock);
	const struct recording *recording = &observe_find(observe, guest.fork)->recording;
	size_t by_another = 0;
	for (size_t i = 0; i < recording->sleep_count; i++) {
		const struct vcpu_sleep *sleep = &recording->sleeps[i];
		assert_true(sleep->sleep_ns <= sleep->wake_ns && sleep->wake_ns <= sleep->run_ns);
		assert_true(sleep->vcpu < THREADS);
		if (sleep->waker != VCPU_UNKNOWN) {
			assert_true(sleep->waker < THREADS);
			assert_int_not_equal(sleep->waker, sleep->vcpu);
			by_another++;
		}
	}
	print_message("%zu sleeps, %zu of them ended by another thread of the guest\n", recording->sleep_count,
		      by_another);
	assert_true(by_another > recording->sleep_count / 2);
	assert_true(by_another > 100);
	pthread_mutex_unlock(&observe->lock);
	observed_guest_stop(&guest);
	observe_free(observe);
}

/* Shared memory whose pages are in the page cache and not mapped: no userfault comes, and yet each touch is seen. */
static void touches_of_shared_memory_that_is_there_are_seen(void **state)
{
	struct observe *observe = observer_new(0);
	struct observed_guest guest;
	int memfd = memfd_create("guest", MFD_CLOEXEC);

	(void)state;
	assert_true(memfd >= 0);
	assert_int_equal(ftruncate(memfd, PAGES * PAGE), 0);
	/* Every other page is there; reads map neighbours too, so the guest writes. */
	for (size_t i = 0; i < PAGES; i += 2) {
		uint64_t content = observed_guest_content(i);
		assert_int_equal(pwrite(memfd, &content, sizeof content, (off_t)(i * PAGE)), sizeof content);
	}
	observed_guest_map(&guest, PAGES, memfd);
	observed_guest_start(&guest, observe, "a", true);
	for (size_t i = PAGES; i-- > 0;) {
		uint64_t content = observed_guest_content(i);
		guest.memory[i * PAGE + 64] = 'x';
		assert_memory_equal(guest.memory + i * PAGE, &content, sizeof content);
	}
	struct observed_figures figures = observed_guest_wait_joined(&guest, PAGES / 2);
	assert_int_equal(figures.faults, PAGES / 2);
	/* The last touch of a thread is told when it does something else, or is asked: with the list. */
	struct hotlist *list = kernel_list(&guest);
	assert_int_equal(list->count, PAGES);
	for (size_t i = 0; i < PAGES; i++) {
		assert_int_equal(list->pages[i].offset / PAGE, PAGES - 1 - i);
		assert_int_equal(list->touches[i].flags & HOT_WAS_PRESENT, i % 2 ? HOT_WAS_PRESENT : 0);
		assert_int_equal(list->touches[i].kind, HOT_WRITE);
	}
	hotlist_free(list);
	observed_guest_stop(&guest);
	close(memfd);
	observe_free(observe);
}

/* Reads pages 0 to 9, is ready or not, and reads pages 10 to 19. The list. */
static struct hotlist *list_of_twenty(uint64_t timeout_ns, bool ready)
{
	struct observe *observe = observer_new(0);
	struct observed_guest guest;

	observed_guest_map(&guest, PAGES, -1);
	guest.window_timeout_ns = timeout_ns;
	observed_guest_start(&guest, observe, "a", true);
	observed_guest_read(&guest, 0, 10, 1);
	if (ready)
		guest.observer->ready(guest.observer->data, guest.fork);
	observed_guest_read(&guest, 10, 20, 1);
	(void)observed_guest_wait_joined(&guest, 20);
	struct hotlist *list = kernel_list(&guest);
	/* Later ones are in no list, and so that a fork may live for days, they aren't kept either. */
	pthread_mutex_lock(&observe->lock);
	assert_int_equal(observe_find(observe, guest.fork)->recording.touch_count, list->count);
	pthread_mutex_unlock(&observe->lock);
	observed_guest_stop(&guest);
	observe_free(observe);
	return list;
}

static void what_comes_after_the_window_is_not_kept(void **state)
{
	_cleanup_hotlist_ struct hotlist *all = list_of_twenty(0, false), *until_ready = list_of_twenty(0, true);
	_cleanup_hotlist_ struct hotlist *none = list_of_twenty(1, false);
	_cleanup_hotlist_ struct hotlist *long_one = list_of_twenty(86400 * NSEC_PER_SEC, true);

	(void)state;
	assert_int_equal(all->count, 20);
	assert_int_equal(until_ready->count, 10);
	assert_int_equal(until_ready->origin->window_end, HOT_WINDOW_READY);
	assert_int_equal(none->count, 0);
	assert_int_equal(none->origin->window_end, HOT_WINDOW_TIMEOUT);
	assert_int_equal(none->origin->window_ns, 1);
	assert_int_equal(long_one->count, 10);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(eight_threads_are_recorded_in_their_order),
		cmocka_unit_test(sleeps_name_their_waker),
		cmocka_unit_test(touches_of_shared_memory_that_is_there_are_seen),
		cmocka_unit_test(what_comes_after_the_window_is_not_kept),
	};

	return harness_run(tests);
}
