/* Lists as sets of pages: sorting, the check against a fork's regions, summaries, comparing two. */
#include "unit/hotlist_helpers.h"

static void test_sort(void **state)
{
	(void)state;
	_cleanup_hotlist_ struct hotlist *list = LIST({ 1, 0 }, { 0, 8192 }, { 1, 0 }, { 0, 4096 }, { 0, 8192 });
	_cleanup_hotlist_ struct hotlist *expected = LIST({ 0, 4096 }, { 0, 8192 }, { 1, 0 });

	assert_false(hotlist_is_sorted(list));
	hotlist_sort(list);
	assert_same_pages(list, expected);
	assert_true(hotlist_is_sorted(list));
	hotlist_sort(list);
	assert_same_pages(list, expected);

	_cleanup_hotlist_ struct hotlist *empty = hotlist_new();
	hotlist_sort(empty);
	assert_int_equal(empty->count, 0);

	_cleanup_hotlist_ struct hotlist *same = LIST({ 0, 4096 }, { 0, 4096 });
	assert_false(hotlist_is_sorted(same));
	hotlist_sort(same);
	assert_int_equal(same->count, 1);
}

static void test_copy_stands_alone(void **state)
{
	(void)state;
	_cleanup_hotlist_ struct hotlist *list = LIST({ 1, 0 }, { 0, 8192 });
	_cleanup_hotlist_ struct hotlist *copy = hotlist_copy(list);

	assert_same_pages(list, copy);
	hotlist_sort(copy);
	assert_int_equal(list->pages[0].region, 1);
	assert_int_equal(hotlist_add(copy, 5, 0), 0);
	assert_int_equal(list->count, 2);

	_cleanup_hotlist_ struct hotlist *empty = hotlist_new();
	_cleanup_hotlist_ struct hotlist *copy_of_empty = hotlist_copy(empty);
	assert_int_equal(copy_of_empty->count, 0);
}

static void test_check(void **state)
{
	static const struct hotlist_region regions[] = { { 1 << 20, 4096 }, { 4 << 20, 2 << 20 } };
	struct error err;

	(void)state;
	_cleanup_hotlist_ struct hotlist *good =
		LIST({ 0, 0 }, { 0, (1 << 20) - 4096 }, { 1, (4 << 20) - 4096 }, { 0, 0 });
	assert_int_equal(hotlist_check(good, regions, 2, &err), 0);

	_cleanup_hotlist_ struct hotlist *region = LIST({ 0, 0 }, { 2, 0 }, { 7, 0 });
	assert_int_equal(hotlist_check(region, regions, 2, &err), -EINVAL);
	assert_string_equal(err.code, "bad_region");
	assert_contains(err.message, "entry 1 of the list is in region 2,");
	assert_contains(err.message, "there are only 2:");

	_cleanup_hotlist_ struct hotlist *past = LIST({ 0, 0 }, { 1, 4096 }, { 0, 1 << 20 });
	assert_int_equal(hotlist_check(past, regions, 2, &err), -EINVAL);
	assert_string_equal(err.code, "bad_offset");
	assert_contains(err.message, "entry 2 of the list is at offset 1048576 of region 0, which ends at 1048576");

	_cleanup_hotlist_ struct hotlist *odd = LIST({ 1, 2048 });
	assert_int_equal(hotlist_check(odd, regions, 2, &err), -EINVAL);
	assert_string_equal(err.code, "bad_offset");
	assert_contains(err.message,
			"entry 0 of the list is at offset 2048 of region 1, which is not a multiple of 4096");

	_cleanup_hotlist_ struct hotlist *huge = LIST({ UINT64_MAX, UINT64_MAX & ~4095ull });
	assert_int_equal(hotlist_check(huge, regions, 2, &err), -EINVAL);
	_cleanup_hotlist_ struct hotlist *far = LIST({ 0, UINT64_MAX & ~4095ull });
	assert_int_equal(hotlist_check(far, regions, 2, &err), -EINVAL);

	/* An empty list fits everywhere, and no other list fits nothing. */
	_cleanup_hotlist_ struct hotlist *empty = hotlist_new();
	assert_int_equal(hotlist_check(empty, NULL, 0, &err), 0);
	assert_int_equal(hotlist_check(good, NULL, 0, &err), -EINVAL);
}

static void test_summary(void **state)
{
	struct hotlist_summary summary;

	(void)state;
	/* Runs: region 0: 0-2, 5; region 4: 0, 7-8. One page is listed twice. */
	_cleanup_hotlist_ struct hotlist *list = LIST({ 4, 8 * 4096 }, { 0, 4096 }, { 0, 0 }, { 0, 2 * 4096 }, { 4, 0 },
						      { 4, 7 * 4096 }, { 0, 5 * 4096 }, { 0, 4096 });
	assert_int_equal(hotlist_summarize(list, 4096, &summary), 0);
	assert_int_equal(summary.pages, 7);
	assert_int_equal(summary.duplicates, 1);
	assert_int_equal(summary.runs, 4);
	assert_int_equal(summary.longest_run, 3);
	assert_false(summary.sorted);
	assert_int_equal(summary.region_count, 2);
	assert_int_equal(summary.regions[0].region, 0);
	assert_int_equal(summary.regions[0].pages, 4);
	assert_int_equal(summary.regions[0].runs, 2);
	assert_int_equal(summary.regions[0].lowest, 0);
	assert_int_equal(summary.regions[0].highest, 5 * 4096);
	assert_int_equal(summary.regions[1].region, 4);
	assert_int_equal(summary.regions[1].pages, 3);
	assert_int_equal(summary.regions[1].runs, 2);
	assert_int_equal(summary.regions[1].highest, 8 * 4096);
	hotlist_summary_clear(&summary);
	assert_null(summary.regions);

	/* With pages of 8 KiB other pages are neighbours: 0-2 in region 0 at most. */
	assert_int_equal(hotlist_summarize(list, 8192, &summary), 0);
	assert_int_equal(summary.longest_run, 1);
	hotlist_summary_clear(&summary);

	/* The next offset, but in another region, is no neighbour. */
	_cleanup_hotlist_ struct hotlist *apart = LIST({ 0, 4096 }, { 1, 8192 });
	assert_int_equal(hotlist_summarize(apart, 4096, &summary), 0);
	assert_int_equal(summary.runs, 2);
	assert_int_equal(summary.longest_run, 1);
	hotlist_summary_clear(&summary);

	/* The list is as it was. */
	assert_int_equal(list->count, 8);
	assert_int_equal(list->pages[0].region, 4);

	_cleanup_hotlist_ struct hotlist *empty = hotlist_new();
	assert_int_equal(hotlist_summarize(empty, 4096, &summary), 0);
	assert_int_equal(summary.pages, 0);
	assert_int_equal(summary.runs, 0);
	assert_int_equal(summary.region_count, 0);
	assert_true(summary.sorted);
	hotlist_summary_clear(&summary);
}

static void test_summary_of_many_regions(void **state)
{
	struct hotlist_summary summary;

	(void)state;
	_cleanup_hotlist_ struct hotlist *list = hotlist_new();
	for (uint64_t i = 0; i < 1000; i++)
		assert_int_equal(hotlist_add(list, 999 - i, 0), 0);
	assert_int_equal(hotlist_summarize(list, 4096, &summary), 0);
	assert_int_equal(summary.region_count, 1000);
	for (uint64_t i = 0; i < 1000; i++)
		assert_int_equal(summary.regions[i].region, i);
	hotlist_summary_clear(&summary);
}

static void assert_compares(const struct hotlist *a, const struct hotlist *b, size_t only_a, size_t only_b, size_t both,
			    double jaccard)
{
	struct hotlist_comparison comparison;

	assert_int_equal(hotlist_compare(a, b, &comparison), 0);
	assert_int_equal(comparison.only_a->count, only_a);
	assert_int_equal(comparison.only_b->count, only_b);
	assert_int_equal(comparison.both, both);
	assert_true(hotlist_jaccard(&comparison) == jaccard);
	hotlist_comparison_clear(&comparison);
	assert_null(comparison.only_a);
}

static void test_compare(void **state)
{
	(void)state;
	_cleanup_hotlist_ struct hotlist *a = LIST({ 1, 0 }, { 0, 8192 }, { 0, 4096 }, { 0, 4096 });
	_cleanup_hotlist_ struct hotlist *b = LIST({ 0, 4096 }, { 0, 12288 }, { 1, 0 }, { 2, 0 }, { 2, 4096 });
	_cleanup_hotlist_ struct hotlist *empty = hotlist_new();

	assert_compares(a, b, 1, 3, 2, 2.0 / 6);
	assert_compares(b, a, 3, 1, 2, 2.0 / 6);
	assert_compares(a, a, 0, 0, 3, 1);
	assert_compares(a, empty, 3, 0, 0, 0);
	assert_compares(empty, b, 0, 5, 0, 0);
	assert_compares(empty, empty, 0, 0, 0, 1);

	struct hotlist_comparison comparison;
	_cleanup_hotlist_ struct hotlist *only_b = LIST({ 0, 12288 }, { 2, 0 }, { 2, 4096 });
	assert_int_equal(hotlist_compare(a, b, &comparison), 0);
	assert_same_pages(comparison.only_b, only_b);
	hotlist_comparison_clear(&comparison);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sort),	cmocka_unit_test(test_copy_stands_alone),
		cmocka_unit_test(test_check),	cmocka_unit_test(test_summary),
		cmocka_unit_test(test_compare), cmocka_unit_test(test_summary_of_many_regions),
	};

	return cmocka_run_group_tests_name("hotlist/sets", tests, NULL, NULL);
}
