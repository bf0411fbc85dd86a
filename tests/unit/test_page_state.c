/* Page states against an array of one byte a page: each transition, and ranges across words and chunks. */
#include <stdlib.h>

#include "uffd/page_state.h"
#include "unit/hotlist_helpers.h"

#define WORD  32ull
#define CHUNK 8192ull
/* Three chunks and the beginning of a fourth, which ends within a word. */
#define PAGES (3 * CHUNK + 3 * WORD + 5)

static const enum page_state all_states[] = { PAGE_ABSENT, PAGE_COMING, PAGE_THERE, PAGE_REMOVED };

struct pair {
	struct page_states *states;
	uint8_t model[PAGES];
};

static int make(void **state)
{
	struct pair *pair = calloc(1, sizeof *pair);

	assert_non_null(pair);
	pair->states = page_states_new(PAGES);
	assert_non_null(pair->states);
	*state = pair;
	return 0;
}

static int unmake(void **state)
{
	struct pair *pair = *state;

	page_states_free(pair->states);
	free(pair);
	return 0;
}

static void assert_same(const struct pair *pair)
{
	for (uint64_t page = 0; page < PAGES; page++)
		if (page_states_get(pair->states, page) != (enum page_state)pair->model[page])
			fail_msg("page %llu is %d and should be %d", (unsigned long long)page,
				 page_states_get(pair->states, page), pair->model[page]);
}

static void set_both(struct pair *pair, uint64_t first, uint64_t count, enum page_state to)
{
	uint64_t changed = ~0ull, expected = 0;

	assert_int_equal(page_states_set(pair->states, first, count, to, &changed), 0);
	for (uint64_t i = first; i < first + count; i++) {
		expected += pair->model[i] != to;
		pair->model[i] = (uint8_t)to;
	}
	assert_int_equal(changed, expected);
}

static void change_both(struct pair *pair, uint64_t page, enum page_state from, enum page_state to)
{
	bool matches = pair->model[page] == from;

	assert_int_equal(page_states_change(pair->states, page, from, to), matches);
	if (matches)
		pair->model[page] = (uint8_t)to;
}

static void assert_run(const struct pair *pair, uint64_t first, uint64_t max, enum page_state wanted)
{
	uint64_t expected = 0;

	while (expected < max && pair->model[first + expected] == wanted)
		expected++;
	assert_int_equal(page_states_run(pair->states, first, max, wanted), expected);
}

static void test_starts_absent(void **state)
{
	struct pair *pair = *state;

	assert_same(pair);
	assert_int_equal(page_states_run(pair->states, 0, PAGES, PAGE_ABSENT), PAGES);
	assert_int_equal(page_states_run(pair->states, 0, PAGES, PAGE_THERE), 0);
	assert_int_equal(page_states_run(pair->states, PAGES - 1, 1, PAGE_ABSENT), 1);
	assert_int_equal(page_states_run(pair->states, 0, 0, PAGE_ABSENT), 0);
}

/* From what it is, from what it claims to be, to what it becomes: all 64, at the places where words and chunks meet. */
static void test_every_transition(void **state)
{
	static const uint64_t places[] = { 0, 1, WORD - 1, WORD, CHUNK - 1, CHUNK, 2 * CHUNK - 1, PAGES - 1 };
	struct pair *pair = *state;

	for (size_t p = 0; p < sizeof places / sizeof *places; p++)
		for (unsigned i = 0; i < 64; i++) {
			set_both(pair, places[p], 1, all_states[i / 16]);
			change_both(pair, places[p], all_states[i / 4 % 4], all_states[i % 4]);
		}
	assert_same(pair);
}

/* Every range with its ends up to two pages from where words and chunks meet. */
static void test_ranges_at_boundaries(void **state)
{
	static const uint64_t places[] = { 2, WORD, 2 * WORD, CHUNK, CHUNK + WORD, 2 * CHUNK, PAGES - 2 };
	struct pair *pair = *state;
	const size_t n = sizeof places / sizeof *places;
	unsigned turn = 0;

	for (size_t i = 0; i < n * 5; i++)
		for (size_t k = 0; k < n * 5; k++) {
			uint64_t first = places[i / 5] + i % 5 - 2, end = places[k / 5] + k % 5 - 2;
			if (end < first || end > PAGES)
				continue;
			enum page_state to = all_states[turn++ % 4];
			set_both(pair, first, end - first, to);
			for (size_t s = 0; s < 4; s++)
				assert_run(pair, first, PAGES - first, all_states[s]);
			if (first > 0) {
				assert_run(pair, first - 1, end - first + 1, to);
				assert_int_equal(page_states_get(pair->states, first - 1), pair->model[first - 1]);
			}
			if (end < PAGES)
				assert_int_equal(page_states_get(pair->states, end), pair->model[end]);
		}
	assert_same(pair);
}

static void test_set_counts_what_changed(void **state)
{
	struct pair *pair = *state;
	uint64_t changed;

	assert_int_equal(page_states_set(pair->states, 10, 100, PAGE_REMOVED, &changed), 0);
	assert_int_equal(changed, 100);
	assert_int_equal(page_states_set(pair->states, 0, 200, PAGE_REMOVED, &changed), 0);
	assert_int_equal(changed, 100);
	assert_int_equal(page_states_set(pair->states, 0, 200, PAGE_REMOVED, &changed), 0);
	assert_int_equal(changed, 0);
	assert_int_equal(page_states_set(pair->states, 0, 0, PAGE_THERE, &changed), 0);
	assert_int_equal(changed, 0);
	assert_int_equal(page_states_set(pair->states, 0, PAGES, PAGE_ABSENT, NULL), 0);
	assert_int_equal(page_states_run(pair->states, 0, PAGES, PAGE_ABSENT), PAGES);
}

/* Runs that begin in a chunk that does not exist and end in one that does, and the other way round. */
static void test_runs_over_missing_chunks(void **state)
{
	struct pair *pair = *state;

	set_both(pair, 2 * CHUNK, 1, PAGE_THERE); /* the first page of a chunk, seen from within the one before */
	assert_int_equal(page_states_run(pair->states, CHUNK + 5, PAGES - CHUNK - 5, PAGE_ABSENT), CHUNK - 5);
	assert_int_equal(page_states_run(pair->states, 5, PAGES - 5, PAGE_ABSENT), 2 * CHUNK - 5);
	set_both(pair, 2 * CHUNK, 1, PAGE_ABSENT);

	set_both(pair, CHUNK + 100, 1, PAGE_THERE);
	assert_int_equal(page_states_run(pair->states, 5, PAGES - 5, PAGE_ABSENT), CHUNK + 95);
	assert_int_equal(page_states_run(pair->states, 5, 50, PAGE_ABSENT), 50);
	assert_int_equal(page_states_run(pair->states, CHUNK + 101, PAGES - CHUNK - 101, PAGE_ABSENT),
			 PAGES - CHUNK - 101);

	set_both(pair, CHUNK, CHUNK, PAGE_THERE);
	assert_int_equal(page_states_run(pair->states, CHUNK, PAGES - CHUNK, PAGE_THERE), CHUNK);
	assert_int_equal(page_states_run(pair->states, CHUNK - 1, 10, PAGE_THERE), 0);
}

/* A length that is mostly short, at times long. */
static uint64_t random_length(struct random *random, uint64_t most)
{
	uint64_t length = random_u64(random) >> 48 >> random_below(random, 16);

	return length < most ? length : most;
}

static uint64_t random_page(struct random *random)
{
	static const uint64_t near[] = { WORD, CHUNK, CHUNK + WORD, 2 * CHUNK, PAGES - 9 };

	return random_below(random, 2) ? random_below(random, PAGES)
				       : near[random_below(random, 5)] - 8 + random_below(random, 16);
}

static void random_operation(struct pair *pair, struct random *random)
{
	uint64_t page = random_page(random), length = random_length(random, PAGES - page);
	enum page_state a = all_states[random_below(random, 4)], b = all_states[random_below(random, 4)];

	switch (random_below(random, 4)) {
	case 0:
		set_both(pair, page, length, a);
		break;
	case 1:
		change_both(pair, page, a, b);
		break;
	default:
		assert_run(pair, page, random_below(random, 2) ? length : PAGES - page,
			   random_below(random, 2) ? pair->model[page] : a);
	}
}

static void test_random_operations(void **state)
{
	struct random random = { .state = 42 };

	for (unsigned i = 0; i < 20000; i++) {
		random_operation(*state, &random);
		if (i % 1000 == 0)
			assert_same(*state);
	}
	assert_same(*state);
}

/* The same while most chunks do not exist yet. */
static void test_random_beginnings(void **state)
{
	struct random random = { .state = 43 };

	(void)state;
	for (unsigned round = 0; round < 200; round++) {
		void *pair;
		make(&pair);
		for (unsigned i = 0; i < 12; i++)
			random_operation(pair, &random);
		assert_same(pair);
		unmake(&pair);
	}
}

static void test_sizes(void **state)
{
	static const uint64_t sizes[] = { 0, 1, WORD - 1, WORD, CHUNK - 1, CHUNK, CHUNK + 1 };
	uint64_t changed;

	(void)state;
	for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
		struct page_states *states = page_states_new(sizes[i]);
		assert_non_null(states);
		assert_int_equal(page_states_set(states, 0, sizes[i], PAGE_THERE, &changed), 0);
		assert_int_equal(changed, sizes[i]);
		assert_int_equal(page_states_run(states, 0, sizes[i], PAGE_THERE), sizes[i]);
		page_states_free(states);
	}
	page_states_free(NULL);
}

/* A terabyte of 4 KiB pages of which a handful were touched. */
static void test_huge_is_sparse(void **state)
{
	const uint64_t pages = 1ull << 28;
	struct page_states *states = page_states_new(pages);

	(void)state;
	assert_non_null(states);
	assert_int_equal(page_states_change(states, pages - 1, PAGE_ABSENT, PAGE_THERE), 1);
	assert_int_equal(page_states_run(states, 0, pages, PAGE_ABSENT), pages - 1);
	assert_int_equal(page_states_get(states, pages - 1), PAGE_THERE);
	page_states_free(states);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_starts_absent, make, unmake),
		cmocka_unit_test_setup_teardown(test_every_transition, make, unmake),
		cmocka_unit_test_setup_teardown(test_ranges_at_boundaries, make, unmake),
		cmocka_unit_test_setup_teardown(test_set_counts_what_changed, make, unmake),
		cmocka_unit_test_setup_teardown(test_runs_over_missing_chunks, make, unmake),
		cmocka_unit_test_setup_teardown(test_random_operations, make, unmake),
		cmocka_unit_test(test_random_beginnings),
		cmocka_unit_test(test_sizes),
		cmocka_unit_test(test_huge_is_sparse),
	};

	return cmocka_run_group_tests_name("page_state", tests, NULL, NULL);
}
