/* Merging lists: places, confidence, rare pages, what may be merged at all, and lists that are kept fresh. */
#include "unit/simulated_run.h"

#include "hotlist/merge.h"
#include "hotlist/order.h"

#define MS UINT64_C(1000000)

struct page {
	unsigned number;	 /* of the page */
	unsigned raw, corrected; /* ms */
	unsigned seen;
};

static struct hotlist *list_from(const struct page *pages, size_t count, const struct hotlist_origin *origin)
{
	struct hotlist *list = hotlist_new();

	assert_non_null(list);
	for (size_t i = 0; i < count; i++) {
		const struct hot_touch touch = { .raw_ns = pages[i].raw * MS,
						 .corrected_ns = pages[i].corrected * MS,
						 .seen = pages[i].seen,
						 .vcpu = (uint16_t)(pages[i].number % 2),
						 .kind = HOT_READ };

		assert_int_equal(hotlist_add_touch(list, 0, pages[i].number * 4096ull, &touch), 0);
	}
	assert_int_equal(hotlist_set_origin(list, origin), 0);
	return list;
}

#define RUN(...)                                        \
	list_from((const struct page[]){ __VA_ARGS__ }, \
		  sizeof((const struct page[]){ __VA_ARGS__ }) / sizeof(struct page), &one_run)

static const struct hotlist_origin one_run = { .runs = 1, .tier = "fentry" };

static struct merge_result merge(const struct hotlist *const *lists, size_t count)
{
	static const char *const names[] = { "a", "b", "c", "d", "e", "f", "g", "h", "i", "j" };
	struct merge_result result;
	struct error err;

	if (merge_lists(lists, names, count, &result, &err) < 0)
		fail_msg("%s", err.message);
	return result;
}

#define MERGE(...)                                       \
	merge((const struct hotlist *[]){ __VA_ARGS__ }, \
	      sizeof((const struct hotlist *[]){ __VA_ARGS__ }) / sizeof(struct hotlist *))

static void assert_order(const struct hotlist *list, const unsigned *numbers, size_t count)
{
	assert_int_equal(list->count, count);
	for (size_t i = 0; i < count; i++)
		if (list->pages[i].offset != numbers[i] * 4096ull)
			fail_msg("place %zu has page %u instead of %u", i, (unsigned)(list->pages[i].offset / 4096),
				 numbers[i]);
}

#define ASSERT_ORDER(list, ...)                               \
	assert_order(list, (const unsigned[]){ __VA_ARGS__ }, \
		     sizeof((const unsigned[]){ __VA_ARGS__ }) / sizeof(unsigned))

static const struct hot_touch *touch_of(const struct hotlist *list, unsigned number)
{
	for (size_t i = 0; i < list->count; i++)
		if (list->pages[i].offset == number * 4096ull)
			return &list->touches[i];
	fail_msg("page %u is not in the list", number);
	return NULL;
}

static bool has(const struct hotlist *list, unsigned number)
{
	for (size_t i = 0; i < list->count; i++)
		if (list->pages[i].offset == number * 4096ull)
			return true;
	return false;
}

static void test_pages_stand_at_the_median_of_their_places(void **state)
{
	(void)state;
	/* Page 4 is first, last and third: third. */
	_cleanup_hotlist_ struct hotlist *a =
		RUN({ 4, 1, 1, 1 }, { 1, 2, 2, 1 }, { 2, 3, 3, 1 }, { 3, 4, 4, 1 }, { 5, 5, 5, 1 });
	_cleanup_hotlist_ struct hotlist *b =
		RUN({ 1, 10, 10, 1 }, { 2, 20, 20, 1 }, { 3, 30, 30, 1 }, { 5, 40, 40, 1 }, { 4, 50, 50, 1 });
	_cleanup_hotlist_ struct hotlist *c =
		RUN({ 1, 2, 2, 1 }, { 2, 3, 3, 1 }, { 4, 4, 4, 1 }, { 3, 5, 5, 1 }, { 5, 6, 6, 1 });
	struct merge_result result = MERGE(a, b, c);

	ASSERT_ORDER(result.list, 1, 2, 4, 3, 5);
	assert_int_equal(result.runs, 3);
	assert_int_equal(result.placed, 5);
	assert_int_equal(result.list->origin->runs, 3);
	assert_int_equal(result.list->format, HOTLIST_HPL2);
	assert_string_equal(result.list->origin->tier, "fentry");
	for (unsigned page = 1; page <= 5; page++)
		assert_int_equal(touch_of(result.list, page)->seen, 3);
	/* It moved by two places of five in most runs, page 2 by none or one. */
	assert_int_equal(touch_of(result.list, 4)->spread, 400000);
	assert_true(touch_of(result.list, 1)->spread <= 200000);
	assert_int_equal(touch_of(result.list, 4)->vcpu, 0);
	assert_int_equal(touch_of(result.list, 5)->vcpu, 1);
	/* Times are medians, and in the list's order. */
	for (size_t i = 1; i < result.list->count; i++)
		assert_true(result.list->touches[i].raw_ns >= result.list->touches[i - 1].raw_ns);
	hotlist_free(result.list);
}

static void test_one_list_stays_as_it_is(void **state)
{
	(void)state;
	_cleanup_hotlist_ struct hotlist *a = RUN({ 9, 1, 3, 1 }, { 2, 2, 2, 1 }, { 7, 3, 4, 1 });
	struct merge_result result = MERGE(a);

	/* Nothing speaks for either clock. */
	assert_int_equal(result.vote.reason, MERGE_TIED);
	assert_int_equal(result.vote.pairs, 0);
	ASSERT_ORDER(result.list, 9, 2, 7);
	for (size_t i = 0; i < 3; i++) {
		assert_int_equal(result.list->touches[i].raw_ns, a->touches[i].raw_ns);
		assert_int_equal(result.list->touches[i].corrected_ns, a->touches[i].corrected_ns);
		assert_int_equal(result.list->touches[i].spread, 0);
	}
	hotlist_free(result.list);

	_cleanup_hotlist_ struct hotlist *empty = hotlist_new();
	result = MERGE(empty, empty);
	assert_int_equal(result.list->count, 0);
	assert_int_equal(result.runs, 2);
	hotlist_free(result.list);
}

/* PAGES pages; those of vCPU 1 come LAG ms later by raw time. */
static struct hotlist *lagging(unsigned pages, unsigned lag, bool by_raw)
{
	struct hotlist *list = hotlist_new();

	for (unsigned i = 0; i < pages; i++) {
		const struct hot_touch touch = {
			.raw_ns = (i + (i % 2) * lag) * MS, .corrected_ns = i * MS, .seen = 1, .vcpu = (uint16_t)(i % 2)
		};
		const struct hot_touch turned = { .raw_ns = i * MS, .corrected_ns = (i + (i % 2) * lag) * MS, .seen = 1 };

		assert_int_equal(hotlist_add_touch(list, 0, i * 4096ull, by_raw ? &turned : &touch), 0);
	}
	assert_int_equal(hotlist_set_origin(list, &one_run), 0);
	return list;
}

static void test_the_clock_that_runs_agree_under_wins(void **state)
{
	(void)state;
	for (int by_raw = 0; by_raw < 2; by_raw++) {
		_cleanup_hotlist_ struct hotlist *a = lagging(400, 20, by_raw), *b = lagging(400, 150, by_raw),
						 *c = lagging(400, 60, by_raw);
		struct merge_result result = MERGE(a, b, c);

		assert_int_equal(result.vote.clock, by_raw ? HOT_CLOCK_RAW : HOT_CLOCK_CORRECTED);
		assert_int_equal(result.vote.reason, MERGE_AGREEMENT);
		assert_int_equal(result.vote.pairs, 3);
		double agreed = by_raw ? result.vote.agreement_raw : result.vote.agreement_corrected;
		double other = by_raw ? result.vote.agreement_corrected : result.vote.agreement_raw;
		assert_true(fabs(agreed - 1) < 1e-9);
		assert_true(other < 0.99);
		for (unsigned i = 0; i < 400; i++)
			assert_int_equal(result.list->pages[i].offset, i * 4096);
		assert_int_equal(result.list->origin->clock, result.vote.clock);
		assert_int_equal(by_raw ? result.list->origin->agreement_raw : result.list->origin->agreement_corrected,
				 2000000);
		hotlist_free(result.list);
	}
}

static void test_where_runs_agree_under_both_their_own_evidence_decides(void **state)
{
	struct hotlist_origin shown = one_run;

	(void)state;
	_cleanup_hotlist_ struct hotlist *a = lagging(400, 150, false), *b = lagging(400, 150, false);
	struct merge_result result = MERGE(a, b);
	assert_int_equal(result.vote.reason, MERGE_TIED);
	assert_int_equal(result.vote.clock, HOT_CLOCK_RAW);
	assert_true(result.vote.independence < 0);
	hotlist_free(result.list);

	shown.agreement_raw = 1100000;
	shown.agreement_corrected = 1900000;
	assert_int_equal(hotlist_set_origin(b, &shown), 0);
	result = MERGE(a, b);
	assert_int_equal(result.vote.reason, MERGE_EVIDENCE);
	assert_int_equal(result.vote.clock, HOT_CLOCK_CORRECTED);
	assert_true(fabs(result.vote.independence - 0.9) < 1e-9);
	/* And it still does when that list is merged again. */
	struct merge_result again = MERGE(result.list, a);
	assert_int_equal(again.vote.clock, HOT_CLOCK_CORRECTED);
	hotlist_free(again.list);
	hotlist_free(result.list);
}

static void test_rare_pages_go_to_the_end_or_leave(void **state)
{
	struct hotlist *runs[10];

	(void)state;
	/* Page 100 in one run of ten, 101 in two, 102 in four; all of them early. */
	for (unsigned run = 0; run < 10; run++) {
		runs[run] = hotlist_new();
		for (unsigned i = 0; i < 40; i++) {
			const struct hot_touch touch = { .raw_ns = (i + 1) * MS,
							 .corrected_ns = (i + 1) * MS,
							 .seen = 1 };
			unsigned rare = i - 5;
			unsigned often[] = { 1, 2, 4 };

			assert_int_equal(hotlist_add_touch(runs[run], 0, i * 4096ull, &touch), 0);
			if (rare < 3 && run < often[rare])
				assert_int_equal(hotlist_add_touch(runs[run], 0, (100 + rare) * 4096ull, &touch), 0);
		}
		assert_int_equal(hotlist_set_origin(runs[run], &one_run), 0);
	}
	struct merge_result result = merge((const struct hotlist *const *)runs, 10);
	assert_int_equal(result.placed, 41);
	assert_int_equal(result.tail, 1);
	assert_int_equal(result.dropped, 1);
	assert_false(has(result.list, 100));
	assert_int_equal(result.list->pages[41].offset, 101 * 4096);
	assert_int_equal(result.list->touches[41].seen, 2);
	assert_int_equal(touch_of(result.list, 102)->seen, 4);
	assert_true(result.list->pages[8].offset == 102 * 4096 || result.list->pages[9].offset == 102 * 4096);
	/* Its time is still that of its touches: merged again, it can come back. */
	assert_true(result.list->touches[41].raw_ns < 12 * MS);
	hotlist_free(result.list);
	for (unsigned run = 0; run < 10; run++)
		hotlist_free(runs[run]);
}

/* Runs that end early, or that saw misses only, put pages where they belong all the same. */
static void test_lists_of_unlike_lengths_are_laid_side_by_side(void **state)
{
	(void)state;
	_cleanup_hotlist_ struct hotlist *truth = hotlist_new();
	struct hotlist *whole = lagging(1000, 0, false), *early = lagging(300, 0, false), *misses = hotlist_new();
	for (unsigned i = 0; i < 1000; i++)
		assert_int_equal(hotlist_add(truth, 0, i * 4096ull), 0);
	for (unsigned i = 700; i < 1000; i += 3) {
		const struct hot_touch touch = { .raw_ns = i * MS, .corrected_ns = i * MS, .seen = 1 };

		assert_int_equal(hotlist_add_touch(misses, 0, i * 4096ull, &touch), 0);
	}
	struct merge_result result = MERGE(early, whole, misses);
	assert_int_equal(result.list->count, 1000);
	assert_true(order_rank_correlation(result.list, truth, NULL) > 0.99999);
	hotlist_free(result.list);
	hotlist_free(whole);
	hotlist_free(early);
	hotlist_free(misses);
}

static void test_a_fork_that_lived_too_long_does_not_swell_the_list(void **state)
{
	(void)state;
	struct hotlist *a = lagging(500, 0, false), *b = lagging(500, 0, false), *c = lagging(50000, 0, false);
	struct merge_result result = MERGE(a, b, c);

	assert_in_range(result.list->count, 500, 530);
	assert_int_equal(result.dropped + result.list->count, 50000);
	hotlist_free(result.list);
	hotlist_free(a);
	hotlist_free(b);
	hotlist_free(c);
}

static void test_merging_in_steps_comes_close_to_merging_at_once(void **state)
{
	(void)state;
	_cleanup_trace_ struct trace *first = sim_trace("redis-get.1"), *second = sim_trace("redis-get.2");
	_cleanup_hotlist_ struct hotlist *a =
		sim_list(&(struct sim){ .waiting = SIM_ALONE, .stalls = SIM_COLD, .vcpus = 2, .seed = 1 }, first);
	_cleanup_hotlist_ struct hotlist *b =
		sim_list(&(struct sim){ .waiting = SIM_ALONE, .stalls = SIM_WARM, .vcpus = 2, .seed = 2 }, first);
	_cleanup_hotlist_ struct hotlist *c =
		sim_list(&(struct sim){ .waiting = SIM_ALONE, .stalls = SIM_UNEVEN, .vcpus = 2, .seed = 3 }, second);
	struct merge_result at_once = MERGE(a, b, c), pair = MERGE(a, b), steps = MERGE(pair.list, c);

	assert_int_equal(at_once.vote.clock, steps.vote.clock);
	assert_int_equal(at_once.runs, steps.runs);
	assert_int_equal(at_once.vote.pairs, steps.vote.pairs);
	assert_int_equal(at_once.list->count, steps.list->count);
	size_t common;
	assert_true(order_rank_correlation(at_once.list, steps.list, &common) > 0.97);
	assert_int_equal(common, at_once.list->count);
	for (size_t i = 0; i < at_once.list->count; i++)
		assert_int_equal(at_once.list->touches[i].seen,
				 touch_of(steps.list, (unsigned)(at_once.list->pages[i].offset / 4096))->seen);
	hotlist_free(at_once.list);
	hotlist_free(pair.list);
	hotlist_free(steps.list);
}

static void test_sets_take_part_as_sets(void **state)
{
	(void)state;
	/* HPL1 has no order: page 3 is hot, and nobody knows when; but 1 and 2 are known. */
	_cleanup_hotlist_ struct hotlist *run = RUN({ 2, 1, 1, 1 }, { 1, 2, 2, 1 });
	_cleanup_hotlist_ struct hotlist *set = LIST({ 0, 4096 }, { 0, 8192 }, { 0, 12288 });
	struct merge_result result = MERGE(run, set);

	ASSERT_ORDER(result.list, 2, 1, 3);
	assert_int_equal(touch_of(result.list, 2)->seen, 2);
	assert_int_equal(touch_of(result.list, 3)->seen, 1);
	hotlist_free(result.list);
	/* An order without times counts too. */
	_cleanup_hotlist_ struct hotlist *ordered = LIST({ 0, 12288 }, { 0, 4096 }, { 0, 8192 });
	result = MERGE(ordered, ordered, set);
	ASSERT_ORDER(result.list, 3, 1, 2);
	assert_int_equal(result.vote.clock, HOT_CLOCK_UNKNOWN);
	hotlist_free(result.list);
}

/* ---- what may be merged ---- */

static void assert_refused(const struct hotlist *a, const struct hotlist *b, const char *code, const char *part)
{
	static const char *const names[] = { "a.hpl2", "b.hpl2" };
	struct merge_result result;
	struct error err;

	assert_int_equal(merge_lists((const struct hotlist *[]){ a, b }, names, 2, &result, &err), -EINVAL);
	assert_string_equal(err.code, code);
	assert_contains(err.message, "a.hpl2");
	assert_contains(err.message, "b.hpl2");
	assert_contains(err.message, part);
	assert_int_equal(merge_refresh(a, b, MERGE_SAW_AUTO, names, &result, &err), -EINVAL);
}

static void test_lists_of_other_templates_or_regions_are_refused(void **state)
{
	struct hotlist_region_size small = { .size = 1 << 20, .page_size = 4096 },
				   large = { .size = 2 << 20, .page_size = 4096 };
	struct hotlist_origin origin = {
		.runs = 1, .template_digest = { 1 }, .template_size = 1 << 20, .regions = &small, .region_count = 1
	};

	(void)state;
	_cleanup_hotlist_ struct hotlist *a = LIST({ 0, 4096 }), *b = LIST({ 0, 8192 }), *unbound = LIST({ 0, 8192 }),
					 *outside = LIST({ 0, 1 << 20 });
	assert_int_equal(hotlist_set_origin(a, &origin), 0);
	origin.template_digest[31] = 9;
	assert_int_equal(hotlist_set_origin(b, &origin), 0);
	assert_refused(a, b, "other_template", "different templates");
	origin.template_digest[31] = 0;
	origin.template_size = 2 << 20;
	assert_int_equal(hotlist_set_origin(b, &origin), 0);
	assert_refused(a, b, "other_template", "different templates");
	origin.template_size = 1 << 20;
	origin.regions = &large;
	assert_int_equal(hotlist_set_origin(b, &origin), 0);
	assert_refused(a, b, "other_regions", "different memory regions");
	/* A list that isn't bound is taken where its pages fit. */
	assert_refused(a, outside, "bad_offset", "does not fit");
	struct merge_result result = MERGE(a, unbound);
	assert_int_equal(result.list->origin->template_digest[0], 1);
	assert_int_equal(result.list->origin->region_count, 1);
	hotlist_free(result.list);
}

/* ---- keeping a list fresh ---- */

static struct merge_result refresh(const struct hotlist *old, const struct hotlist *run, enum merge_saw saw)
{
	static const char *const names[] = { "old", "run" };
	struct merge_result result;
	struct error err;

	if (merge_refresh(old, run, saw, names, &result, &err) < 0)
		fail_msg("%s", err.message);
	return result;
}

/* A run of a fork that had the list: pages FROM to TO, there already; and page EXTRA, demanded between 10 and 11. */
static struct hotlist *used(unsigned from, unsigned to, unsigned extra, unsigned salt)
{
	struct hotlist *list = hotlist_new();

	for (unsigned i = from; i < to; i++) {
		struct hot_touch touch = { .raw_ns = (i + 1) * MS + salt,
					   .corrected_ns = (i + 1) * MS + salt,
					   .seen = 1,
					   .flags = HOT_WAS_PRESENT };

		assert_int_equal(hotlist_add_touch(list, 0, i * 4096ull, &touch), 0);
		touch.flags = 0;
		touch.raw_ns = touch.corrected_ns = touch.raw_ns + MS / 2;
		if (extra && i == 10)
			assert_int_equal(hotlist_add_touch(list, 0, extra * 4096ull, &touch), 0);
	}
	assert_int_equal(hotlist_set_origin(list, &one_run), 0);
	return list;
}

static size_t place_of(const struct hotlist *list, unsigned number)
{
	for (size_t i = 0; i < list->count; i++)
		if (list->pages[i].offset == number * 4096ull)
			return i;
	return SIZE_MAX;
}

static void test_unused_pages_sink_and_leave_and_new_ones_enter(void **state)
{
	struct hotlist *list = used(0, 60, 0, 0);
	size_t tail_at = 0, left_at = 0;

	(void)state;
	/* The workload has changed: pages 0 to 4 are not touched any more, and page 200 is. */
	for (unsigned run = 1; run <= 60; run++) {
		_cleanup_hotlist_ struct hotlist *seen = used(5, 60, 200, run);
		struct merge_result result = refresh(list, seen, MERGE_SAW_AUTO);

		assert_true(result.complete);
		assert_true(result.runs <= MERGE_FRESH_RUNS);
		hotlist_free(list);
		list = result.list;
		/* Between 10 and 11 at once, and for good. */
		assert_int_equal(place_of(list, 200), place_of(list, 10) + 1);
		assert_int_equal(place_of(list, 200), place_of(list, 11) - 1);
		if (!tail_at && result.tail)
			tail_at = run;
		if (!left_at && !has(list, 0) && !has(list, 1) && !has(list, 2) && !has(list, 3) && !has(list, 4))
			left_at = run;
	}
	assert_int_equal(tail_at, 3);
	assert_int_equal(left_at, 5);
	assert_int_equal(list->count, 56);
	for (unsigned i = 5; i < 60; i++)
		assert_int_equal(touch_of(list, i)->seen, MERGE_FRESH_RUNS);
	hotlist_free(list);
}

/* RUN is merged into *LIST. */
static struct merge_result step(struct hotlist **list, struct hotlist *run, enum merge_saw saw)
{
	struct merge_result result = refresh(*list, run, saw);

	hotlist_free(*list);
	hotlist_free(run);
	*list = result.list;
	return result;
}

static void test_however_sure_a_list_is_of_a_page_five_runs_without_it_are_enough(void **state)
{
	(void)state;
	for (unsigned runs = 1; runs <= 40; runs++)
		for (unsigned seen = 1; seen <= runs; seen++) {
			struct hotlist_origin origin = { .runs = runs };
			struct hotlist *list = used(0, 60, 0, 0);

			for (unsigned i = 0; i < 60; i++)
				list->touches[i].seen = i < 5 ? seen : runs;
			assert_int_equal(hotlist_set_origin(list, &origin), 0);
			for (unsigned run = 1; run <= 5; run++)
				step(&list, used(5, 60, 0, run), MERGE_SAW_AUTO);
			assert_int_equal(list->count, 55);
			assert_false(has(list, 0));
			hotlist_free(list);
		}
}

/* Pages 0 to 4 are touched by every EVERYth run. */
static void test_pages_that_every_third_run_touches_stay(void **state)
{
	(void)state;
	for (unsigned every = 2; every <= 3; every++) {
		struct hotlist *list = used(5, 60, 0, 0);

		for (unsigned run = 0; run < 60; run++) {
			step(&list, used(run % every ? 5 : 0, 60, 0, run), MERGE_SAW_AUTO);
			for (unsigned page = 0; page < 5; page++) {
				assert_true(has(list, page));
				/* In its place where the last run touched it. */
				if (run % every == 0)
					assert_int_equal(place_of(list, page), page);
			}
		}
		hotlist_free(list);
	}
}

static void test_a_page_that_one_run_alone_touched_leaves_sooner(void **state)
{
	struct hotlist *list = used(0, 60, 0, 0);

	(void)state;
	step(&list, used(0, 60, 200, 1), MERGE_SAW_AUTO);
	assert_int_equal(touch_of(list, 200)->seen, MERGE_NEW_RUNS);
	for (unsigned run = 2; run <= 3; run++) {
		step(&list, used(0, 60, 0, run), MERGE_SAW_AUTO);
		assert_int_equal(place_of(list, 200), 60); /* at the end */
	}
	step(&list, used(0, 60, 0, 4), MERGE_SAW_AUTO);
	assert_false(has(list, 200));
	hotlist_free(list);
}

/* Wherever they were touched: at the beginning, between others, in another order than that of addresses, at the end. */
static void test_new_pages_enter_between_their_neighbours(void **state)
{
	struct hotlist *list = hotlist_new();
	struct hotlist *run = hotlist_new();
	unsigned expected[140], count = 0, old = 0;

	(void)state;
	for (unsigned i = 0; i < 120; i++) {
		/* The list has no page whose place is a multiple of 6. */
		unsigned page = 1000 + i * 7 % 120;
		struct hot_touch touch = { .raw_ns = (i + 1) * MS, .corrected_ns = (i + 1) * MS, .seen = 1 };

		if (i % 6)
			assert_int_equal(hotlist_add_touch(list, 0, page * 4096ull, &touch), 0);
		else
			old++;
		/* A slower guest. */
		touch.raw_ns = touch.corrected_ns = (i + 1) * 3 * MS;
		touch.flags = i % 6 ? HOT_WAS_PRESENT : 0;
		assert_int_equal(hotlist_add_touch(run, 0, page * 4096ull, &touch), 0);
		expected[count++] = page;
	}
	assert_int_equal(hotlist_set_origin(list, &one_run), 0);
	assert_int_equal(hotlist_set_origin(run, &one_run), 0);
	assert_int_equal(old, 20);
	struct merge_result result = step(&list, run, MERGE_SAW_AUTO);
	assert_true(result.complete);
	assert_order(list, expected, count);
	hotlist_free(list);
}

/* A run of two regions, of which only the second one's memory is shared. */
static struct hotlist *two_regions(bool both, uint8_t kind, unsigned salt)
{
	struct hotlist *list = hotlist_new();

	for (unsigned i = 0; i < 40; i++) {
		struct hot_touch touch = {
			.raw_ns = (i + 1) * MS + salt, .corrected_ns = (i + 1) * MS + salt, .seen = 1, .kind = kind
		};

		if (both)
			assert_int_equal(hotlist_add_touch(list, 0, i * 4096ull, &touch), 0);
		touch.flags = both ? 0 : HOT_WAS_PRESENT;
		if (both || i < 20)
			assert_int_equal(hotlist_add_touch(list, 1, i * 4096ull, &touch), 0);
	}
	assert_int_equal(hotlist_set_origin(list, &one_run), 0);
	return list;
}

static size_t count_of(const struct hotlist *list, uint64_t region)
{
	size_t count = 0;

	for (size_t i = 0; i < list->count; i++)
		count += list->pages[i].region == region;
	return count;
}

static void test_only_where_touches_are_seen_pages_are_unused(void **state)
{
	(void)state;
	/* Writes: each is seen. */
	struct hotlist *list = two_regions(true, HOT_WRITE, 0);
	for (unsigned run = 1; run <= 10; run++)
		assert_true(step(&list, two_regions(false, HOT_WRITE, run), MERGE_SAW_AUTO).complete);
	assert_int_equal(count_of(list, 0), 40);
	assert_int_equal(count_of(list, 1), 20);
	hotlist_free(list);

	/* Reads: the kernel maps 16 pages around. The last one read was page 19, so it can't be said before page 35. */
	list = two_regions(true, HOT_READ, 0);
	for (unsigned run = 1; run <= 10; run++)
		assert_true(step(&list, two_regions(false, HOT_READ, run), MERGE_SAW_AUTO).complete);
	assert_int_equal(count_of(list, 0), 40);
	assert_int_equal(count_of(list, 1), 35);
	/* Under KVM, all are seen. */
	for (unsigned run = 1; run <= 5; run++)
		step(&list, two_regions(false, HOT_READ, run), MERGE_SAW_ALL);
	assert_int_equal(count_of(list, 0), 0);
	assert_int_equal(count_of(list, 1), 20);
	hotlist_free(list);
}

/* As the runs of a template's forks are: mostly the same, and some that are nobody else's in each. */
static void test_stray_pages_do_not_heap_up(void **state)
{
	struct hotlist *list = used(0, 600, 0, 0);

	(void)state;
	for (unsigned run = 1; run <= 50; run++) {
		struct hotlist *seen = used(0, 600, 0, run);

		for (unsigned i = 0; i < 60; i++) {
			const struct hot_touch touch = { .raw_ns = (10 * i + 1) * MS,
							 .corrected_ns = (10 * i + 1) * MS,
							 .seen = 1 };

			assert_int_equal(hotlist_add_touch(seen, 0, (10000 + run * 100 + i) * 4096ull, &touch), 0);
		}
		struct merge_result result = step(&list, seen, MERGE_SAW_AUTO);
		assert_true(list->count <= 600 + 3 * 60);
		assert_true(result.placed == 660); /* the others stand at the end */
	}
	hotlist_free(list);
}

static void test_runs_that_saw_demand_faults_alone_make_nothing_sink(void **state)
{
	struct hotlist *list = used(0, 60, 0, 0);

	(void)state;
	for (unsigned run = 1; run <= 40; run++) {
		/* Page 200 is missed once, and then it is prefetched; page 201 never is. */
		_cleanup_hotlist_ struct hotlist *misses =
			RUN({ run > 1 ? 201 : 200, run > 1 ? 30 : 12, run > 1 ? 30 : 12, 1 }, { 201, 30, 30, 1 });
		misses->touches[0].raw_ns += run;
		struct merge_result result = refresh(list, misses, MERGE_SAW_AUTO);

		assert_false(result.complete);
		hotlist_free(list);
		list = result.list;
		assert_int_equal(result.tail, 0);
		assert_int_equal(list->count, 62);
		for (unsigned i = 0; i < 60; i++)
			assert_int_equal(touch_of(list, i)->seen, list->origin->runs);
		/* By their time: there is nothing else to go by. */
		assert_in_range(place_of(list, 200), 10, 13);
		assert_in_range(place_of(list, 201), 29, 33);
	}
	hotlist_free(list);
}

static void test_a_run_speaks_only_for_the_time_that_it_saw(void **state)
{
	struct hotlist_origin cut_short = { .runs = 1, .window_ns = 30 * MS };
	struct hotlist *list = used(0, 60, 0, 0);

	(void)state;
	for (unsigned run = 1; run <= 30; run++) {
		_cleanup_hotlist_ struct hotlist *seen = used(0, 29, 0, run);
		assert_int_equal(hotlist_set_origin(seen, &cut_short), 0);
		struct merge_result result = refresh(list, seen, MERGE_SAW_ALL);

		hotlist_free(list);
		list = result.list;
	}
	assert_int_equal(list->count, 59); /* page 29 is touched at 30 ms, and was not */
	for (unsigned i = 30; i < 60; i++)
		assert_int_equal(touch_of(list, i)->seen, list->origin->runs);
	hotlist_free(list);
}

/* A fork that had its pages prefetched is ready far sooner than one that was recorded: the time says nothing then. */
static void test_a_faster_run_that_got_as_far_speaks_for_all(void **state)
{
	static const uint32_t ends[] = { HOT_WINDOW_READY, HOT_WINDOW_SETTLED };

	(void)state;
	for (size_t end = 0; end < 2; end++) {
		struct hotlist_origin recorded = { .runs = 1, .window_ns = 61 * MS, .window_end = ends[end] };
		struct hotlist_origin fast = { .runs = 1, .window_ns = 31 * MS, .window_end = ends[end] };
		struct hotlist_origin slow = { .runs = 1, .window_ns = 201 * MS, .window_end = ends[end] };
		struct hotlist *list = used(0, 60, 0, 0);

		assert_int_equal(hotlist_set_origin(list, &recorded), 0);
		for (unsigned i = 1; i <= 5; i++) {
			struct hotlist *run = used(0, 30, 0, i);

			assert_int_equal(hotlist_set_origin(run, &fast), 0);
			step(&list, run, MERGE_SAW_ALL);
			assert_int_equal(list->count, i < 5 ? 60 : 30);
		}
		/* And a slower one brings in what it touched late. */
		struct hotlist *run = used(0, 200, 0, 9);
		assert_int_equal(hotlist_set_origin(run, &slow), 0);
		step(&list, run, MERGE_SAW_ALL);
		assert_int_equal(list->count, 200);
		assert_int_equal(list->origin->window_end, ends[end]);
		hotlist_free(list);
	}
}

/* Where runs end otherwise than the list's did, what may have come later is left alone. */
static void test_a_run_that_ended_sooner_speaks_for_what_it_came_to(void **state)
{
	struct hotlist_origin settled = { .runs = 1, .window_ns = 61 * MS, .window_end = HOT_WINDOW_SETTLED };
	struct hotlist_origin ready = { .runs = 1, .window_ns = 11 * MS, .window_end = HOT_WINDOW_READY };
	struct hotlist *list = used(0, 60, 0, 0);

	(void)state;
	assert_int_equal(hotlist_set_origin(list, &settled), 0);
	for (unsigned i = 1; i <= 10; i++) {
		/* Pages 20 to 39, in half the time. */
		struct hotlist *run = used(20, 40, 0, i);

		for (size_t k = 0; k < run->count; k++)
			run->touches[k].raw_ns = run->touches[k].corrected_ns = (k / 2 + 1) * MS;
		assert_int_equal(hotlist_set_origin(run, &ready), 0);
		step(&list, run, MERGE_SAW_ALL);
	}
	assert_int_equal(list->count, 40);
	for (unsigned page = 20; page < 60; page++)
		assert_true(has(list, page));
	hotlist_free(list);
}

static void test_what_comes_after_the_lists_window_stays_out(void **state)
{
	struct hotlist_origin window = { .runs = 1, .window_ns = 61 * MS };

	(void)state;
	_cleanup_hotlist_ struct hotlist *old = used(0, 60, 0, 0), *lived = used(0, 5000, 0, 1);
	assert_int_equal(hotlist_set_origin(old, &window), 0);
	struct merge_result result = refresh(old, lived, MERGE_SAW_AUTO);
	assert_int_equal(result.list->count, 60);
	assert_int_equal(result.list->origin->window_ns, 61 * MS);
	hotlist_free(result.list);

	/* But what the list has is used, however late it is touched. */
	struct hotlist *list = hotlist_copy(old);
	for (unsigned run = 1; run <= 6; run++) {
		struct hotlist *slow = used(0, 60, 0, 0);

		for (size_t i = 0; i < 60; i++)
			slow->touches[i].raw_ns = slow->touches[i].corrected_ns = (3 * i + 1) * MS + run;
		step(&list, slow, MERGE_SAW_AUTO);
		for (unsigned page = 0; page < 60; page++)
			assert_int_equal(touch_of(list, page)->seen, MERGE_FRESH_RUNS);
	}
	hotlist_free(list);
}

static void test_a_list_of_nothing_becomes_the_runs(void **state)
{
	(void)state;
	_cleanup_hotlist_ struct hotlist *empty = hotlist_new(), *run = used(0, 10, 0, 0);
	struct merge_result result = refresh(empty, run, MERGE_SAW_AUTO);

	assert_int_equal(result.runs, 1);
	assert_same_pages(result.list, run);
	hotlist_free(result.list);
	result = refresh(run, empty, MERGE_SAW_DEMAND);
	assert_same_pages(result.list, run);
	hotlist_free(result.list);
	/* A set, as HPL1 has it, is kept fresh as well. */
	_cleanup_hotlist_ struct hotlist *set = LIST({ 0, 0 }, { 0, 4096 }, { 0, 40960000 });
	result = refresh(set, run, MERGE_SAW_ALL);
	assert_int_equal(result.list->count, 11);
	hotlist_free(result.list);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_pages_stand_at_the_median_of_their_places),
		cmocka_unit_test(test_one_list_stays_as_it_is),
		cmocka_unit_test(test_the_clock_that_runs_agree_under_wins),
		cmocka_unit_test(test_where_runs_agree_under_both_their_own_evidence_decides),
		cmocka_unit_test(test_rare_pages_go_to_the_end_or_leave),
		cmocka_unit_test(test_lists_of_unlike_lengths_are_laid_side_by_side),
		cmocka_unit_test(test_a_fork_that_lived_too_long_does_not_swell_the_list),
		cmocka_unit_test(test_merging_in_steps_comes_close_to_merging_at_once),
		cmocka_unit_test(test_sets_take_part_as_sets),
		cmocka_unit_test(test_lists_of_other_templates_or_regions_are_refused),
		cmocka_unit_test(test_unused_pages_sink_and_leave_and_new_ones_enter),
		cmocka_unit_test(test_however_sure_a_list_is_of_a_page_five_runs_without_it_are_enough),
		cmocka_unit_test(test_pages_that_every_third_run_touches_stay),
		cmocka_unit_test(test_a_page_that_one_run_alone_touched_leaves_sooner),
		cmocka_unit_test(test_new_pages_enter_between_their_neighbours),
		cmocka_unit_test(test_only_where_touches_are_seen_pages_are_unused),
		cmocka_unit_test(test_stray_pages_do_not_heap_up),
		cmocka_unit_test(test_runs_that_saw_demand_faults_alone_make_nothing_sink),
		cmocka_unit_test(test_a_run_speaks_only_for_the_time_that_it_saw),
		cmocka_unit_test(test_a_faster_run_that_got_as_far_speaks_for_all),
		cmocka_unit_test(test_a_run_that_ended_sooner_speaks_for_what_it_came_to),
		cmocka_unit_test(test_what_comes_after_the_lists_window_stays_out),
		cmocka_unit_test(test_a_list_of_nothing_becomes_the_runs),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
