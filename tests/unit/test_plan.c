/*
 * A hot list laid against regions: sorted runs of neighbours that never cross a region's end, then huge pages in list order; or a refusal of
 * the whole list.
 */
#include <stdlib.h>

#include "prefetch/plan.h"
#include "unit/hotlist_helpers.h"

#define PAGE  4096ull
#define HUGE_ (2ull << 20)

/* 16 small pages (0–15), 8 small pages (16–23), 4 huge ones (24–27), a single small one (28). */
static const struct region regions[] = {
	{ .address = 0x100000, .size = 16 * PAGE, .offset = 0, .page_size = PAGE, .first_page = 0 },
	{ .address = 0x110000, .size = 8 * PAGE, .offset = 16 * PAGE, .page_size = PAGE, .first_page = 16 },
	{ .address = 1ull << 30, .size = 4 * HUGE_, .offset = 0, .page_size = HUGE_, .first_page = 24 },
	{ .address = 0x200000, .size = PAGE, .offset = 0, .page_size = PAGE, .first_page = 28 },
};
#define REGIONS (sizeof regions / sizeof *regions)

static void assert_plan(struct hotlist *list, const struct plan_run *runs, size_t count)
{
	_cleanup_plan_ struct plan *plan = NULL;
	struct error err = { .message = "" };
	uint64_t pages = 0;

	if (plan_new(list, regions, REGIONS, &plan, &err) < 0)
		fail_msg("refused: %s", err.message);
	assert_int_equal(plan->count, count);
	for (size_t i = 0; i < count; i++) {
		assert_int_equal(plan->runs[i].page, runs[i].page);
		assert_int_equal(plan->runs[i].count, runs[i].count);
		pages += runs[i].count;
	}
	assert_int_equal(plan->pages, pages);
	hotlist_free(list);
}

#define ASSERT_PLAN(list, ...)                                      \
	assert_plan(list, (const struct plan_run[]){ __VA_ARGS__ }, \
		    sizeof((const struct plan_run[]){ __VA_ARGS__ }) / sizeof(struct plan_run))

static void assert_refused(struct hotlist *list, const char *code, const char *part)
{
	struct plan *plan = NULL;
	struct error err = { .code = "" };
	struct hotlist *before = hotlist_copy(list);

	assert_non_null(before);
	assert_int_equal(plan_new(list, regions, REGIONS, &plan, &err), -EINVAL);
	assert_null(plan);
	assert_string_equal(err.code, code);
	assert_contains(err.message, part);
	assert_same_pages(before, list); /* the whole list was looked at before anything was done with it */
	hotlist_free(before);
	hotlist_free(list);
}

static void test_empty(void **state)
{
	_cleanup_hotlist_ struct hotlist *list = hotlist_new();
	_cleanup_plan_ struct plan *plan = NULL;

	(void)state;
	assert_int_equal(plan_new(list, regions, REGIONS, &plan, NULL), 0);
	assert_int_equal(plan->count, 0);
	assert_int_equal(plan->pages, 0);
	plan_free(NULL);
}

static void test_single_pages(void **state)
{
	(void)state;
	ASSERT_PLAN(LIST({ 0, 0 }), { 0, 1 });
	ASSERT_PLAN(LIST({ 1, 7 * PAGE }), { 23, 1 });
	ASSERT_PLAN(LIST({ 3, 0 }), { 28, 1 });
}

static void test_neighbours_are_merged(void **state)
{
	(void)state;
	ASSERT_PLAN(LIST({ 0, 0 }, { 0, PAGE }, { 0, 2 * PAGE }, { 0, 5 * PAGE }, { 0, 6 * PAGE }), { 0, 3 }, { 5, 2 });
}

static void test_sorted_whatever_the_order(void **state)
{
	(void)state;
	ASSERT_PLAN(LIST({ 3, 0 }, { 1, PAGE }, { 0, 2 * PAGE }, { 0, 0 }, { 1, 0 }, { 0, PAGE }), { 0, 3 }, { 16, 2 },
		    { 28, 1 });
}

static void test_duplicates(void **state)
{
	(void)state;
	ASSERT_PLAN(LIST({ 0, PAGE }, { 0, PAGE }, { 0, 0 }, { 0, PAGE }, { 0, 0 }), { 0, 2 });
}

/* The last page of one region and the first of the next have neighbouring numbers, and neither addresses nor bytes in common. */
static void test_runs_end_with_their_region(void **state)
{
	(void)state;
	ASSERT_PLAN(LIST({ 0, 14 * PAGE }, { 0, 15 * PAGE }, { 1, 0 }, { 1, PAGE }), { 14, 2 }, { 16, 2 });
	ASSERT_PLAN(LIST({ 1, 7 * PAGE }, { 2, 0 }, { 2, 3 * HUGE_ }, { 3, 0 }), { 23, 1 }, { 28, 1 }, { 24, 1 },
		    { 27, 1 });
}

/* A list that was recorded with small pages, on huge ones: each is wanted once, however many of its parts were touched. */
static void test_small_pages_on_huge_ones(void **state)
{
	(void)state;
	ASSERT_PLAN(LIST({ 2, 5 * PAGE }, { 2, 0 }, { 2, 6 * PAGE }, { 2, HUGE_ - PAGE }), { 24, 1 });
	ASSERT_PLAN(LIST({ 2, HUGE_ - PAGE }, { 2, HUGE_ }, { 2, HUGE_ + PAGE }, { 2, 3 * HUGE_ + PAGE }), { 24, 2 },
		    { 27, 1 });
	ASSERT_PLAN(LIST({ 2, 2 * HUGE_ }, { 2, 4 * HUGE_ - PAGE }), { 26, 2 });
}

/* Each of them takes a call of its own: the one that will be touched first comes first. */
static void test_huge_pages_keep_the_order_of_the_list(void **state)
{
	(void)state;
	ASSERT_PLAN(LIST({ 2, 4 * HUGE_ - PAGE }, { 2, 2 * HUGE_ }), { 27, 1 }, { 26, 1 });
	ASSERT_PLAN(LIST({ 2, 2 * HUGE_ + PAGE }, { 2, PAGE }, { 2, 3 * HUGE_ }, { 2, 2 * HUGE_ }, { 2, HUGE_ },
			 { 2, 0 }),
		    { 26, 1 }, { 24, 1 }, { 27, 1 }, { 25, 1 });
	/* Small ones go in by neighbours, and before. */
	ASSERT_PLAN(LIST({ 2, HUGE_ }, { 1, 0 }, { 2, 0 }, { 0, 15 * PAGE }, { 3, 0 }, { 0, 14 * PAGE }), { 14, 2 },
		    { 16, 1 }, { 28, 1 }, { 25, 1 }, { 24, 1 });
}

/* The only bad entry is the last one. */
static void test_whole_list_is_checked_first(void **state)
{
	(void)state;
	assert_refused(LIST({ 1, 0 }, { 0, 0 }, { 4, 0 }), "bad_region", "entry 2 ");
	assert_refused(LIST({ 1, 0 }, { 0, 0 }, { UINT64_MAX, 0 }), "bad_region", "entry 2 ");
	assert_refused(LIST({ 1, 0 }, { 0, 0 }, { 0, 16 * PAGE }), "bad_offset", "entry 2 ");
	assert_refused(LIST({ 1, 0 }, { 0, 0 }, { 0, UINT64_MAX - PAGE + 1 }), "bad_offset", "entry 2 ");
	assert_refused(LIST({ 1, 0 }, { 0, 0 }, { 0, 512 }), "bad_offset", "multiple of 4096");
	assert_refused(LIST({ 1, 0 }, { 0, 0 }, { 2, 4 * HUGE_ }), "bad_offset", "entry 2 ");
	assert_refused(LIST({ 3, PAGE }, { 9, 0 }), "bad_offset", "entry 0 "); /* the first of two */
}

/* Whether run B may come right after run A: they lie in order, and could not have been one. */
static bool follows(const struct plan_run *a, const struct plan_run *b)
{
	const struct region *first = regions_of_page(regions, REGIONS, a->page);
	const struct region *second = regions_of_page(regions, REGIONS, b->page);

	if (first == second && b->page == a->page + a->count)
		return false;
	if (first->page_size != second->page_size)
		return first->page_size == PAGE;
	return first->page_size != PAGE || b->page > a->page;
}

/* Against a naive mark on every wanted page. */
static void test_random_lists(void **state)
{
	struct random random = { .state = 5 };

	(void)state;
	for (unsigned round = 0; round < 3000; round++) {
		bool wanted[30] = { false };
		size_t left = 0;
		_cleanup_hotlist_ struct hotlist *list = hotlist_new();
		_cleanup_plan_ struct plan *plan = NULL;
		for (uint64_t n = random_below(&random, 40); n > 0; n--) {
			uint64_t region = random_below(&random, REGIONS);
			uint64_t offset = random_below(&random, regions[region].size / PAGE) * PAGE;
			uint64_t page = regions[region].first_page + offset / regions[region].page_size;
			assert_int_equal(hotlist_add(list, region, offset), 0);
			left += !wanted[page];
			wanted[page] = true;
		}
		assert_int_equal(plan_new(list, regions, REGIONS, &plan, NULL), 0);
		assert_int_equal(plan->pages, left);

		for (size_t i = 0; i < plan->count; i++) {
			const struct plan_run *run = &plan->runs[i];
			assert_true(run->count > 0);
			assert_ptr_equal(regions_of_page(regions, REGIONS, run->page),
					 regions_of_page(regions, REGIONS, run->page + run->count - 1));
			assert_true(i == 0 || follows(run - 1, run));
			for (uint64_t page = run->page; page < run->page + run->count; page++, left--) {
				assert_true(wanted[page]); /* and not for a second time */
				wanted[page] = false;
			}
		}
		assert_int_equal(left, 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_empty),
		cmocka_unit_test(test_single_pages),
		cmocka_unit_test(test_neighbours_are_merged),
		cmocka_unit_test(test_sorted_whatever_the_order),
		cmocka_unit_test(test_duplicates),
		cmocka_unit_test(test_runs_end_with_their_region),
		cmocka_unit_test(test_small_pages_on_huge_ones),
		cmocka_unit_test(test_huge_pages_keep_the_order_of_the_list),
		cmocka_unit_test(test_whole_list_is_checked_first),
		cmocka_unit_test(test_random_lists),
	};

	return cmocka_run_group_tests_name("plan", tests, NULL, NULL);
}
