/* HPL2 holds all that a list has, in little room; what other formats hold comes back from it unchanged. */
#include <malloc.h>

#include "unit/hpl2_helpers.h"

static void test_every_field_comes_back(void **state)
{
	_cleanup_hotlist_ struct hotlist *list = full_list();

	(void)state;
	_cleanup_hotlist_ struct hotlist *again = through(list, HOTLIST_HPL2);
	assert_same_lists(list, again);
}

static void test_json_holds_all_of_it(void **state)
{
	_cleanup_hotlist_ struct hotlist *list = full_list();

	(void)state;
	_cleanup_hotlist_ struct hotlist *json = through(list, HOTLIST_JSON);
	assert_same_lists(list, json);
	_cleanup_hotlist_ struct hotlist *again = through(json, HOTLIST_HPL2);
	assert_same_lists(list, again);
}

static void test_csv_holds_all_but_the_origin(void **state)
{
	_cleanup_hotlist_ struct hotlist *list = full_list();

	(void)state;
	_cleanup_hotlist_ struct hotlist *csv = through(list, HOTLIST_CSV);
	assert_null(csv->origin);
	assert_same_pages(list, csv);
	assert_same_touches(list, csv);
}

static void test_lists_with_less(void **state)
{
	_cleanup_hotlist_ struct hotlist *empty = hotlist_new(), *plain = LIST({ 2, 4096 }, { 0, 8192 }, { 2, 0 });

	(void)state;
	_cleanup_hotlist_ struct hotlist *empty_again = through(empty, HOTLIST_HPL2);
	assert_same_lists(empty, empty_again);
	_cleanup_hotlist_ struct hotlist *plain_again = through(plain, HOTLIST_HPL2);
	assert_same_lists(plain, plain_again);
	assert_null(plain_again->touches);

	/* An origin of which nothing is known, and touches that say nothing. */
	assert_int_equal(hotlist_set_origin(plain, &(struct hotlist_origin){ .runs = 0 }), 0);
	assert_int_equal(hotlist_add_touch(plain, 9, 0, &HOT_TOUCH_NOTHING), 0);
	_cleanup_hotlist_ struct hotlist *with_origin = through(plain, HOTLIST_HPL2);
	assert_same_lists(plain, with_origin);
	assert_non_null(with_origin->origin);
	assert_null(with_origin->touches);
}

static void test_hpl1_comes_back_to_the_byte(void **state)
{
	static const enum hotlist_format others[] = { HOTLIST_HPL2, HOTLIST_JSON, HOTLIST_CSV };
	struct random random = { 201 };

	(void)state;
	for (int round = 0; round < 300; round++) {
		_cleanup_hotlist_ struct hotlist *list = hotlist_new();
		_cleanup_free_ void *before = NULL, *after = NULL;
		size_t size, size_after;

		for (uint64_t n = random_below(&random, 200); n > 0; n--)
			hotlist_add(list, random_below(&random, 3),
				    (random_u64(&random) >> random_below(&random, 64)) & ~4095ull);
		assert_int_equal(hotlist_encode(list, HOTLIST_HPL1, &before, &size, NULL), 0);
		_cleanup_hotlist_ struct hotlist *hpl1 = decode(before, size);
		_cleanup_hotlist_ struct hotlist *other = through(hpl1, others[round % 3]);
		assert_null(other->touches);
		assert_int_equal(hotlist_encode(other, HOTLIST_HPL1, &after, &size_after, NULL), 0);
		assert_int_equal(size, size_after);
		assert_memory_equal(before, after, size);
	}
}

static void test_random_lists_come_back(void **state)
{
	struct random random = { 202 };

	(void)state;
	for (int round = 0; round < 300; round++) {
		_cleanup_hotlist_ struct hotlist *list = hotlist_new();
		uint64_t page = 0;

		for (uint64_t n = random_below(&random, 500); n > 0; n--) {
			struct hot_touch touch = {
				.raw_ns = random_u64(&random) >> random_below(&random, 64),
				.corrected_ns = random_u64(&random) >> random_below(&random, 64),
				.seen = (uint32_t)(random_u64(&random) >> random_below(&random, 64)),
				.spread = (uint32_t)(random_u64(&random) >> random_below(&random, 64)),
				.vcpu = (uint16_t)random_u64(&random),
				.kind = (uint8_t)random_below(&random, HOT_WALK + 1),
				.flags = (uint8_t)random_below(&random, 2),
			};
			page = (page + 1 + random_below(&random, 1ull << random_below(&random, 52))) &
			       ((1ull << 52) - 1);
			add_touch(list, random_below(&random, 3) ? 0 : random_u64(&random), page * 4096, touch);
		}
		assert_int_equal(hotlist_dedupe(list), 0);
		_cleanup_hotlist_ struct hotlist *hpl2 = through(list, HOTLIST_HPL2);
		assert_same_lists(list, hpl2);
		_cleanup_hotlist_ struct hotlist *json = through(list, HOTLIST_JSON);
		assert_same_lists(list, json);
		_cleanup_hotlist_ struct hotlist *csv = through(list, HOTLIST_CSV);
		assert_same_lists(list, csv);
	}
}

static void test_a_page_listed_twice_is_written_where_it_came_first(void **state)
{
	_cleanup_hotlist_ struct hotlist *list = hotlist_new();

	(void)state;
	add_touch(list, 0, 8192, (struct hot_touch){ .raw_ns = 1 });
	add_touch(list, 0, 0, (struct hot_touch){ .raw_ns = 2 });
	add_touch(list, 0, 8192, (struct hot_touch){ .raw_ns = 3 });
	_cleanup_hotlist_ struct hotlist *again = through(list, HOTLIST_HPL2);
	assert_int_equal(list->count, 3);
	assert_int_equal(again->count, 2);
	assert_int_equal(again->pages[0].offset, 8192);
	assert_int_equal(again->touches[0].raw_ns, 1);
	assert_int_equal(again->touches[1].raw_ns, 2);
}

static void refuse_to_write(const struct hotlist *list, const char *code, const char *part)
{
	struct error err = { .code = "" };
	void *data = NULL;
	size_t size;

	assert_int_equal(hotlist_encode(list, HOTLIST_HPL2, &data, &size, &err), -EINVAL);
	assert_null(data);
	assert_string_equal(err.code, code);
	assert_contains(err.message, part);
}

static void test_what_cannot_be_is_not_written(void **state)
{
	_cleanup_hotlist_ struct hotlist *odd = LIST({ 0, 0 }, { 0, 100 }), *list = LIST({ 0, 0 });

	(void)state;
	refuse_to_write(odd, "bad_offset", "entry 1 of the list is at offset 100");
	add_touch(list, 0, 4096, (struct hot_touch){ .kind = HOT_WALK + 1 });
	refuse_to_write(list, "bad_hot_list", "entry 1 of the list has a kind");
	list->touches[1] = (struct hot_touch){ .flags = 2 };
	refuse_to_write(list, "bad_hot_list", "entry 1 of the list has a kind of touch or a flag");
	list->touches[1] = (struct hot_touch){ .flags = 1 };
	assert_int_equal(hotlist_set_origin(list, &(struct hotlist_origin){ .page_size = 100 }), 0);
	refuse_to_write(list, "bad_hot_list", "bad page size");
	*list->origin = (struct hotlist_origin){ .tier = "a\"b" };
	refuse_to_write(list, "bad_hot_list", "bad tier");
	*list->origin = (struct hotlist_origin){ .agreement_raw = 2000001 };
	refuse_to_write(list, "bad_hot_list", "bad agreement of the raw times");
	*list->origin = (struct hotlist_origin){ .clock = 3 };
	refuse_to_write(list, "bad_hot_list", "bad clock");
}

/* A million pages: in runs of neighbours, as a guest touches them, or all in a row, which zlib would make a thousand times smaller. */
static struct hotlist *big_list(bool touches)
{
	struct random random = { 203 };
	struct hotlist *list = hotlist_new();
	uint64_t page = 0, raw = 0, stalls = 0;

	for (size_t i = 0; i < 1000000; i++) {
		if (touches && random_below(&random, 8) == 0)
			page = random_below(&random, 1 << 22);
		raw += random_below(&random, 40000);
		stalls += random_below(&random, 20000);
		struct hot_touch touch = { raw,
					   raw - stalls / 2,
					   (uint32_t)random_below(&random, 10),
					   (uint32_t)random_below(&random, 5000),
					   (uint16_t)random_below(&random, 2),
					   HOT_READ,
					   0 };
		if (touches)
			add_touch(list, 0, page++ * 4096, touch);
		else
			assert_int_equal(hotlist_add(list, 0, page++ * 4096), 0);
	}
	assert_int_equal(hotlist_dedupe(list), 0);
	return list;
}

static void test_big_lists_are_small(void **state)
{
	(void)state;
	for (int touches = 0; touches < 2; touches++) {
		_cleanup_hotlist_ struct hotlist *list = big_list(touches);
		_cleanup_free_ void *data = NULL;
		size_t size;

		assert_int_equal(hotlist_encode(list, HOTLIST_HPL2, &data, &size, NULL), 0);
		/* Without touches a bit a page is what Huffman codes alone can do; with them a page takes less than half of what it does in memory. */
		assert_in_range(size, list->count / 16, touches ? list->count * 16 : list->count / 4);

		/* What is held of it afterwards. */
		size_t before = mallinfo2().uordblks + mallinfo2().hblkhd;
		struct hotlist *again = decode(data, size);
		size_t held = mallinfo2().uordblks + mallinfo2().hblkhd - before;
		assert_same_lists(list, again);
		/* A sanitizer's allocator counts elsewhere. */
		if (held)
			assert_in_range(held, again->count * 16, again->count * 48 + (1 << 20));
		hotlist_free(again);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_field_comes_back),
		cmocka_unit_test(test_json_holds_all_of_it),
		cmocka_unit_test(test_csv_holds_all_but_the_origin),
		cmocka_unit_test(test_lists_with_less),
		cmocka_unit_test(test_hpl1_comes_back_to_the_byte),
		cmocka_unit_test(test_random_lists_come_back),
		cmocka_unit_test(test_a_page_listed_twice_is_written_where_it_came_first),
		cmocka_unit_test(test_what_cannot_be_is_not_written),
		cmocka_unit_test(test_big_lists_are_small),
	};

	return cmocka_run_group_tests_name("hotlist/hpl2", tests, NULL, NULL);
}
