/*
 * A list that is streamed: in which order its pages are taken, where a demand fault moves that, and that each page is counted once whatever
 * becomes of it.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "prefetch/stream.h"
#include "unit/hotlist_helpers.h"

#define PAGE  4096ull
#define HUGE_ (2ull << 20)

/* 10,000 small pages, 100 more that lie right behind them by number alone, 4 huge ones. */
#define SMALL	 10000ull
#define BEHIND	 100ull
#define HUGES	 4ull
#define ALL	 (SMALL + BEHIND + HUGES)
#define HUGE_ONE (SMALL + BEHIND)

static const struct region regions[] = {
	{ .address = 1ull << 30, .size = SMALL * PAGE, .page_size = PAGE, .first_page = 0 },
	{ .address = 1ull << 31, .size = BEHIND * PAGE, .offset = SMALL * PAGE, .page_size = PAGE, .first_page = SMALL },
	{ .address = 1ull << 32, .size = HUGES * HUGE_, .page_size = HUGE_, .first_page = HUGE_ONE },
};
#define REGIONS (sizeof regions / sizeof *regions)

struct scene {
	struct stream *stream;
	struct page_states *states;
	struct stream_window window;
};

static void add_page(struct hotlist *list, uint64_t page)
{
	const struct region *region = regions_of_page(regions, REGIONS, page);

	assert_int_equal(hotlist_add(list, (uint64_t)(region - regions), (page - region->first_page) * region->page_size),
			 0);
}

static void begin(struct scene *scene, struct hotlist *list)
{
	struct error err = { .message = "" };

	*scene = (struct scene){ .states = page_states_new(ALL) };
	assert_non_null(scene->states);
	if (stream_new(list, regions, REGIONS, &scene->stream, &err) < 0)
		fail_msg("refused: %s", err.message);
	hotlist_free(list); /* it is not needed any more */
}

static void end(struct scene *scene)
{
	stream_free(scene->stream);
	page_states_free(scene->states);
}

/* COUNT pages from FIRST on, STEP apart. */
static struct hotlist *row(uint64_t first, uint64_t count, int64_t step)
{
	struct hotlist *list = hotlist_new();

	assert_non_null(list);
	for (uint64_t i = 0; i < count; i++)
		add_page(list, first + i * (uint64_t)step);
	return list;
}

static bool take(struct scene *scene)
{
	return stream_take(scene->stream, scene->states, true, &scene->window);
}

/* All of the window has been copied. */
static void copied(struct scene *scene)
{
	stream_settle(scene->stream, &scene->window, 0, &(struct stream_outcome){ .copied = scene->window.count });
}

static struct stream_figures figures(const struct scene *scene)
{
	struct stream_figures f;

	stream_get_figures(scene->stream, &f);
	assert_int_equal(f.planned,
			 f.prefetched + f.late + f.present + f.removed + f.skipped + f.unreadable + f.pending);
	return f;
}

static void assert_runs(const struct scene *scene, const struct plan_run *runs, unsigned count)
{
	assert_int_equal(scene->window.run_count, count);
	for (unsigned i = 0; i < count; i++) {
		assert_int_equal(scene->window.runs[i].page, runs[i].page);
		assert_int_equal(scene->window.runs[i].count, runs[i].count);
	}
}

#define ASSERT_RUNS(scene, ...)                                      \
	assert_runs(scene, (const struct plan_run[]){ __VA_ARGS__ }, \
		    sizeof((const struct plan_run[]){ __VA_ARGS__ }) / sizeof(struct plan_run))

static void test_empty(void **state)
{
	struct scene scene;

	(void)state;
	begin(&scene, hotlist_new());
	stream_begin(scene.stream, scene.states);
	stream_ask(scene.stream, 5);
	assert_false(take(&scene));
	assert_int_equal(scene.window.count, 0);
	assert_int_equal(figures(&scene).planned, 0);
	end(&scene);
	stream_free(NULL);
}

static void test_bad_lists_are_refused_whole(void **state)
{
	struct stream *stream = NULL;
	struct error err;
	struct hotlist *list = LIST({ 0, 0 }, { 3, 0 });

	(void)state;
	assert_int_equal(stream_new(list, regions, REGIONS, &stream, &err), -EINVAL);
	assert_string_equal(err.code, "bad_region");
	hotlist_free(list);
	list = LIST({ 0, 0 }, { 0, SMALL * PAGE });
	assert_int_equal(stream_new(list, regions, REGIONS, &stream, &err), -EINVAL);
	assert_string_equal(err.code, "bad_offset");
	hotlist_free(list);
	assert_null(stream);
}

/* Backwards through the list, window by window; inside one by address, and in one piece. */
static void test_windows_follow_the_list(void **state)
{
	struct scene scene;

	(void)state;
	begin(&scene, row(999, 1000, -1));
	for (uint64_t left = 1000; left > 0; left -= scene.window.count) {
		uint64_t expected = left < STREAM_WINDOW ? left : STREAM_WINDOW;
		assert_true(take(&scene));
		ASSERT_RUNS(&scene, { left - expected, expected });
		for (unsigned i = 0; i < scene.window.count; i++)
			assert_int_equal(scene.window.places[i], 999 - (left - expected + i));
		copied(&scene);
	}
	assert_false(take(&scene));
	assert_int_equal(figures(&scene).prefetched, 1000);
	assert_int_equal(figures(&scene).pending, 0);
	assert_int_equal(figures(&scene).place, 1000);
	end(&scene);
}

static void test_duplicates_and_neighbours(void **state)
{
	struct scene scene;

	(void)state;
	begin(&scene, LIST({ 0, 7 * PAGE }, { 0, 3 * PAGE }, { 0, 7 * PAGE }, { 0, 4 * PAGE }, { 0, 3 * PAGE },
			   { 1, 0 }, { 0, (SMALL - 1) * PAGE }));
	assert_true(take(&scene));
	/* The last page of one region and the first of the next have nothing in common but their numbers. */
	ASSERT_RUNS(&scene, { 3, 2 }, { 7, 1 }, { SMALL - 1, 1 }, { SMALL, 1 });
	assert_int_equal(figures(&scene).planned, 5);
	copied(&scene);
	assert_false(take(&scene));
	end(&scene);
}

/* Each is a window of its own, at its place among the small ones, however many of its parts are listed. */
static void test_huge_pages(void **state)
{
	struct scene scene;

	(void)state;
	begin(&scene,
	      LIST({ 0, PAGE }, { 2, 3 * HUGE_ + PAGE }, { 2, 3 * HUGE_ }, { 2, 0 }, { 2, HUGE_ - PAGE }, { 0, 0 }));
	assert_int_equal(figures(&scene).planned, 4);
	take(&scene);
	ASSERT_RUNS(&scene, { 1, 1 });
	take(&scene);
	ASSERT_RUNS(&scene, { HUGE_ONE + 3, 1 });
	take(&scene);
	ASSERT_RUNS(&scene, { HUGE_ONE, 1 });
	take(&scene);
	ASSERT_RUNS(&scene, { 0, 1 });
	assert_false(take(&scene));
	end(&scene);
}

static void test_a_demand_fault_far_ahead_moves_the_place(void **state)
{
	struct scene scene;

	(void)state;
	begin(&scene, row(0, 1000, 2)); /* no neighbours: place n is page 2 n */
	take(&scene);
	copied(&scene);
	stream_ask(scene.stream, 1400);
	take(&scene);
	assert_int_equal(scene.window.runs[0].page, 1402);
	assert_int_equal(scene.window.places[0], 701);
	copied(&scene);
	assert_int_equal(figures(&scene).moves, 1);
	assert_int_equal(figures(&scene).late, 1);
	assert_int_equal(figures(&scene).lead, STREAM_WINDOW);
	assert_int_equal(figures(&scene).place, 701 + STREAM_WINDOW);
	/* A fault for what comes next anyway moves nothing. */
	stream_ask(scene.stream, 2 * (701 + STREAM_WINDOW));
	take(&scene);
	copied(&scene);
	assert_int_equal(figures(&scene).moves, 1);
	end(&scene);
}

/* One odd fault must not cost the guest all that lies between. */
static void test_the_next_fault_calls_it_back(void **state)
{
	struct scene scene;

	(void)state;
	begin(&scene, row(0, 1000, 2));
	stream_ask(scene.stream, 2 * 900);
	take(&scene);
	assert_int_equal(scene.window.places[0], 901);
	copied(&scene);
	stream_ask(scene.stream, 2 * 10);
	take(&scene);
	assert_int_equal(scene.window.places[0], 11);
	copied(&scene);
	assert_int_equal(figures(&scene).moves, 2);
	end(&scene);
}

/* What was passed over comes after the list's end, and nothing comes twice. */
static void test_what_was_passed_over_comes_last(void **state)
{
	uint32_t expected = 501, n = 0;
	struct scene scene;

	(void)state;
	begin(&scene, row(0, 1000, 2));
	stream_ask(scene.stream, 2 * 500);
	while (take(&scene)) {
		for (unsigned i = 0; i < scene.window.count; i++, n++) {
			assert_int_equal(scene.window.places[i], expected);
			expected = expected == 999 ? 0 : expected + 1;
		}
		copied(&scene);
	}
	assert_int_equal(n, 999);
	assert_int_equal(figures(&scene).prefetched, 999);
	assert_int_equal(figures(&scene).late, 1);
	assert_int_equal(figures(&scene).pending, 0);
	end(&scene);
}

static void test_pages_that_need_nothing_are_passed_over(void **state)
{
	struct scene scene;

	(void)state;
	begin(&scene, row(0, 9000, 1));
	page_states_set(scene.states, 0, 100, PAGE_THERE, NULL);
	page_states_set(scene.states, 100, 1, PAGE_COMING, NULL);
	page_states_set(scene.states, 101, 4, PAGE_REMOVED, NULL);
	stream_begin(scene.stream, scene.states);
	assert_int_equal(figures(&scene).late, 101); /* asked for before it began */
	assert_true(take(&scene));
	ASSERT_RUNS(&scene, { 105, STREAM_WINDOW });
	assert_int_equal(figures(&scene).removed, 4);

	/* Most of it removed at once: no take looks at all of them, and none is forgotten. */
	page_states_set(scene.states, 105 + STREAM_WINDOW, 8800, PAGE_REMOVED, NULL);
	unsigned takes = 0;
	while (take(&scene) && scene.window.count == 0)
		takes++;
	assert_true(takes > 0);
	ASSERT_RUNS(&scene, { 105 + STREAM_WINDOW + 8800, 9000 - 8905 - STREAM_WINDOW });
	assert_int_equal(figures(&scene).removed, 8804);
	assert_int_equal(figures(&scene).pending, 9000 - 8905);
	end(&scene);
}

/* Where pages have to be read: the one that comes next, and what lies beside it. */
static void test_one_run_at_a_time(void **state)
{
	struct scene scene;
	static const uint64_t expected[][2] = { { 40, 3 }, { 7, 1 }, { 9, 2 }, { 100, 1 } };

	(void)state;
	begin(&scene, LIST({ 0, 41 * PAGE }, { 0, 7 * PAGE }, { 0, 10 * PAGE }, { 0, 40 * PAGE }, { 0, 100 * PAGE },
			   { 0, 42 * PAGE }, { 0, 9 * PAGE }));
	for (unsigned i = 0; i < 4; i++) {
		assert_true(stream_take(scene.stream, scene.states, false, &scene.window));
		ASSERT_RUNS(&scene, { expected[i][0], expected[i][1] });
		copied(&scene);
	}
	assert_false(stream_take(scene.stream, scene.states, false, &scene.window));
	assert_int_equal(figures(&scene).pending, 0);
	end(&scene);
}

static void test_given_back_and_taken_again(void **state)
{
	struct scene scene;
	struct stream_window first;

	(void)state;
	begin(&scene, row(0, 1000, 2));
	take(&scene);
	first = scene.window;
	stream_give_back(scene.stream, &first, 10);
	take(&scene);
	assert_int_equal(scene.window.places[0], 10);
	/* Not where the guest has gone elsewhere: then it waits for its turn. */
	first = scene.window;
	stream_ask(scene.stream, 2 * 500);
	take(&scene);
	stream_give_back(scene.stream, &first, 0);
	copied(&scene);
	take(&scene);
	assert_int_equal(scene.window.places[0], 501 + STREAM_WINDOW);
	copied(&scene);
	/* The last of them given back when all else is taken. */
	while (take(&scene)) {
		first = scene.window;
		copied(&scene);
	}
	struct stream_figures f = figures(&scene);
	assert_int_equal(f.pending, 10); /* the first ten were never settled */
	assert_int_equal(f.prefetched, 1000 - 10 - 1);
	end(&scene);
}

/* Pages of a window that were asked for on their way: by whom they came, and each counted once. */
static void test_asked_for_on_their_way(void **state)
{
	struct scene scene;

	(void)state;
	begin(&scene, row(0, 64, 2));
	take(&scene);
	for (uint64_t page = 0; page < 10; page++)
		stream_ask(scene.stream, 2 * page);
	/* Of the first twenty a pager was quicker with four. */
	stream_settle(scene.stream, &scene.window, 0, &(struct stream_outcome){ .copied = 15, .present = 5 });
	assert_int_equal(figures(&scene).late, 10);
	assert_int_equal(figures(&scene).late_supplied, 5);
	assert_int_equal(figures(&scene).prefetched, 10);
	assert_int_equal(figures(&scene).present, 0);
	stream_ask(scene.stream, 2 * 20);
	stream_settle(scene.stream, &scene.window, 20, &(struct stream_outcome){ .present = 3 });
	assert_int_equal(figures(&scene).present, 2);
	stream_settle(scene.stream, &scene.window, 23,
		      &(struct stream_outcome){ .removed = 1, .skipped = 2, .unreadable = 4 });
	assert_int_equal(figures(&scene).removed, 1);
	assert_int_equal(figures(&scene).skipped, 2);
	assert_int_equal(figures(&scene).unreadable, 4);
	assert_int_equal(figures(&scene).pending, 64 - 30);
	/* Again: it is counted already. */
	stream_ask(scene.stream, 2 * 20);
	stream_ask(scene.stream, 2 * 0);
	stream_ask(scene.stream, 1); /* not in the list */
	assert_int_equal(figures(&scene).late, 11);
	end(&scene);
}

/* ---- against a naive one ---- */

static struct hotlist *random_list(struct random *random, size_t count)
{
	struct hotlist *list = hotlist_new();

	assert_non_null(list);
	for (size_t i = 0; i < count; i++) {
		uint64_t page = random_below(random, 4) ? random_below(random, ALL) : random_below(random, 50);
		for (uint64_t n = 1 + random_below(random, 4); n > 0 && page < ALL; n--, page++)
			add_page(list, page);
	}
	return list;
}

struct naive {
	uint64_t pages[ALL];
	bool listed[ALL], done[ALL]; /* by page */
	uint32_t place[ALL];
	size_t count;
};

static void naive_fill(struct naive *naive, const struct hotlist *list)
{
	memset(naive, 0, sizeof *naive);
	for (size_t i = 0; i < list->count; i++) {
		const struct region *region = &regions[list->pages[i].region];
		uint64_t page = region->first_page + list->pages[i].offset / region->page_size;
		if (naive->listed[page])
			continue;
		naive->listed[page] = true;
		naive->place[page] = (uint32_t)naive->count;
		naive->pages[naive->count++] = page;
	}
}

/* What a window must be whatever came before; its pages are taken off. */
static void check_window(struct naive *naive, const struct stream_window *window)
{
	unsigned at = 0;
	uint64_t bytes = 0;

	for (unsigned r = 0; r < window->run_count; r++) {
		const struct plan_run *run = &window->runs[r];
		const struct region *region = regions_of_page(regions, REGIONS, run->page);
		assert_ptr_equal(region, regions_of_page(regions, REGIONS, run->page + run->count - 1));
		assert_true(r == 0 || run->page >= run[-1].page + run[-1].count);
		for (uint64_t page = run->page; page < run->page + run->count; page++, at++) {
			assert_true(naive->listed[page]);
			assert_false(naive->done[page]);
			assert_int_equal(naive->place[page], window->places[at]);
			naive->done[page] = true;
			bytes += region->page_size;
		}
	}
	assert_int_equal(at, window->count);
	assert_true(at <= STREAM_WINDOW);
	assert_true(at <= 1 || bytes <= STREAM_WINDOW_BYTES);
}

static void ask_naive(struct naive *naive, struct scene *scene, uint64_t page)
{
	if (page_states_get(scene->states, page) != PAGE_ABSENT)
		return;
	stream_ask(scene->stream, page);
	page_states_set(scene->states, page, 1, PAGE_THERE, NULL);
	if (naive->listed[page])
		naive->done[page] = true;
}

static void test_random_lists_and_guests(void **state)
{
	struct random random = { .state = 11 };
	struct naive *naive = malloc(sizeof *naive);

	(void)state;
	assert_non_null(naive);
	for (unsigned round = 0; round < 300; round++) {
		struct hotlist *list = random_list(&random, random_below(&random, round % 10 == 0 ? 5000 : 300));
		struct scene scene;
		naive_fill(naive, list);
		begin(&scene, list);
		while (stream_take(scene.stream, scene.states, random_below(&random, 2), &scene.window)) {
			check_window(naive, &scene.window);
			if (scene.window.count > 1 && random_below(&random, 5) == 0) {
				unsigned from = 1 + (unsigned)random_below(&random, scene.window.count - 1);
				stream_give_back(scene.stream, &scene.window, from);
				uint64_t at = 0;
				for (unsigned r = 0; r < scene.window.run_count; r++)
					for (uint64_t i = 0; i < scene.window.runs[r].count; i++, at++)
						if (at >= from)
							naive->done[scene.window.runs[r].page + i] = false;
				scene.window.count = from;
			}
			copied(&scene);
			for (unsigned i = 0; i < scene.window.count; i++)
				page_states_set(scene.states, naive->pages[scene.window.places[i]], 1, PAGE_THERE, NULL);
			for (uint64_t n = random_below(&random, 3); n > 0; n--)
				ask_naive(naive, &scene, random_below(&random, ALL));
		}
		for (uint64_t page = 0; page < ALL; page++)
			assert_int_equal(naive->done[page], naive->listed[page]);
		assert_int_equal(figures(&scene).planned, naive->count);
		assert_int_equal(figures(&scene).pending, 0);
		end(&scene);
	}
	free(naive);
}

/* ---- threads ---- */

#define ASKERS 3

struct crowd {
	struct scene scene;
	pthread_mutex_t turns;
	_Atomic unsigned next;
	_Atomic uint64_t supplied, demanded;
};

/* Puts pages in as a pager or a worker does: whoever is first. */
static bool put(struct crowd *crowd, uint64_t page)
{
	return page_states_change(crowd->scene.states, page, PAGE_ABSENT, PAGE_THERE) == 1;
}

static void ask_around(struct crowd *crowd, uint64_t seed)
{
	struct random random = { .state = seed };

	for (unsigned i = 0; i < 3000; i++) {
		uint64_t page = random_below(&random, SMALL);
		if (page_states_get(crowd->scene.states, page) != PAGE_ABSENT)
			continue;
		stream_ask(crowd->scene.stream, page);
		if (put(crowd, page))
			atomic_fetch_add(&crowd->demanded, 1);
	}
}

static void supply(struct crowd *crowd)
{
	struct stream_window window;

	for (;;) {
		pthread_mutex_lock(&crowd->turns);
		bool more = stream_take(crowd->scene.stream, crowd->scene.states, true, &window);
		pthread_mutex_unlock(&crowd->turns);
		if (!more)
			return;
		for (unsigned i = 0, r = 0; r < window.run_count; r++)
			for (uint64_t k = 0; k < window.runs[r].count; k++, i++) {
				struct stream_outcome outcome = { 0 };
				bool mine = put(crowd, window.runs[r].page + k);
				atomic_fetch_add(&crowd->supplied, mine);
				*(mine ? &outcome.copied : &outcome.present) = 1;
				stream_settle(crowd->scene.stream, &window, i, &outcome);
			}
	}
}

static void *crowd_thread(void *data)
{
	struct crowd *crowd = data;
	unsigned index = atomic_fetch_add(&crowd->next, 1);

	if (index < ASKERS)
		ask_around(crowd, index);
	else
		supply(crowd);
	return NULL;
}

static void test_counted_once_among_threads(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 10; round++) {
		struct crowd crowd = { .turns = PTHREAD_MUTEX_INITIALIZER };
		pthread_t threads[ASKERS + 2];

		begin(&crowd.scene, row(round, 4000, 2));
		for (unsigned i = 0; i < ASKERS + 2; i++)
			assert_int_equal(pthread_create(&threads[i], NULL, crowd_thread, &crowd), 0);
		for (unsigned i = 0; i < ASKERS + 2; i++)
			pthread_join(threads[i], NULL);
		struct stream_figures f = figures(&crowd.scene);
		assert_int_equal(f.pending, 0);
		assert_int_equal(f.present, 0); /* whatever was there had been asked for */
		assert_int_equal(f.prefetched + f.late_supplied, crowd.supplied);
		assert_int_equal(f.prefetched + f.late, 4000);
		end(&crowd.scene);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_empty),
		cmocka_unit_test(test_bad_lists_are_refused_whole),
		cmocka_unit_test(test_windows_follow_the_list),
		cmocka_unit_test(test_duplicates_and_neighbours),
		cmocka_unit_test(test_huge_pages),
		cmocka_unit_test(test_a_demand_fault_far_ahead_moves_the_place),
		cmocka_unit_test(test_the_next_fault_calls_it_back),
		cmocka_unit_test(test_what_was_passed_over_comes_last),
		cmocka_unit_test(test_pages_that_need_nothing_are_passed_over),
		cmocka_unit_test(test_one_run_at_a_time),
		cmocka_unit_test(test_given_back_and_taken_again),
		cmocka_unit_test(test_asked_for_on_their_way),
		cmocka_unit_test(test_random_lists_and_guests),
		cmocka_unit_test(test_counted_once_among_threads),
	};

	return cmocka_run_group_tests_name("stream", tests, NULL, NULL);
}
