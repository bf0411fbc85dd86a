/* hotlist.h and result.h as their users meet them, linked with the static library. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "faultline/client.h"
#include "faultline/hotlist.h"

static const struct {
	uint64_t mapping, offset;
} unsorted[] = { { 2, 1 << 20 }, { 0, 4096 }, { 0, 0 }, { 0, 4096 } };

static struct faultline_hotlist *make_list(void)
{
	struct faultline_hotlist *list;

	assert_int_equal(faultline_hotlist_new(&list, NULL), FAULTLINE_OK);
	for (size_t i = 0; i < 4; i++)
		assert_int_equal(faultline_hotlist_add(list, unsorted[i].mapping, unsorted[i].offset, NULL),
				 FAULTLINE_OK);
	return list;
}

static void expect(const struct faultline_hotlist *list, size_t index, uint64_t mapping, uint64_t offset)
{
	uint64_t got_mapping, got_offset;

	assert_int_equal(faultline_hotlist_get(list, index, &got_mapping, &got_offset), FAULTLINE_OK);
	assert_int_equal(got_mapping, mapping);
	assert_int_equal(got_offset, offset);
}

static void test_a_list_goes_out_and_in(void **state)
{
	static const int formats[] = { FAULTLINE_HOTLIST_HPL1, FAULTLINE_HOTLIST_JSON, FAULTLINE_HOTLIST_CSV,
				       FAULTLINE_HOTLIST_HPL2 };
	struct faultline_hotlist *list = make_list();
	struct faultline_error error;

	(void)state;
	for (size_t i = 0; i < 4; i++) {
		struct faultline_hotlist *back;
		size_t size;
		void *data;

		assert_int_equal(faultline_hotlist_encode(list, formats[i], &data, &size, &error), FAULTLINE_OK);
		assert_int_equal(faultline_hotlist_decode(data, size, &back, &error), FAULTLINE_OK);
		assert_int_equal(faultline_hotlist_format(back), formats[i]);
		if (formats[i] == FAULTLINE_HOTLIST_HPL1) {
			static const unsigned char vector[] = "HPL1\x03\x00\x00\x00\x80\x20\x02\x80\x80\x40";
			assert_int_equal(size, sizeof vector - 1);
			assert_memory_equal(data, vector, size);
			assert_int_equal(faultline_hotlist_count(back), 3);
			expect(back, 1, 0, 4096);
		} else if (formats[i] == FAULTLINE_HOTLIST_HPL2) {
			/* In order, and the page that is there twice where it came first. */
			assert_int_equal(faultline_hotlist_count(back), 3);
			expect(back, 0, unsorted[0].mapping, unsorted[0].offset);
			expect(back, 1, unsorted[1].mapping, unsorted[1].offset);
		} else {
			assert_int_equal(faultline_hotlist_count(back), 4);
			for (size_t k = 0; k < 4; k++)
				expect(back, k, unsorted[k].mapping, unsorted[k].offset);
		}
		faultline_hotlist_free(back);
		free(data);
	}
	faultline_hotlist_sort(list);
	assert_int_equal(faultline_hotlist_count(list), 3);
	expect(list, 0, 0, 0);
	expect(list, 2, 2, 1 << 20);
	faultline_hotlist_free(list);
}

static void test_what_is_known_of_pages(void **state)
{
	const struct faultline_hotlist_touch touch = { .size = sizeof touch,
						       .raw_ns = UINT64_MAX,
						       .corrected_ns = 7,
						       .seen = 3,
						       .spread = 1000000,
						       .vcpu = 65534,
						       .kind = FAULTLINE_HOTLIST_FETCH,
						       .present = 1 };
	struct faultline_hotlist_touch got = { .size = sizeof got }, bad = touch;
	struct faultline_hotlist *list, *back;
	struct faultline_error error;
	size_t size;
	void *data;

	(void)state;
	assert_int_equal(faultline_hotlist_new(&list, NULL), FAULTLINE_OK);
	assert_int_equal(faultline_hotlist_add(list, 1, 8192, NULL), FAULTLINE_OK);
	assert_int_equal(faultline_hotlist_get_touch(list, 0, &got), FAULTLINE_OK);
	assert_int_equal(got.vcpu, FAULTLINE_HOTLIST_NO_VCPU);
	assert_int_equal(faultline_hotlist_add_touch(list, 0, 4096, &touch, &error), FAULTLINE_OK);
	assert_int_equal(faultline_hotlist_encode(list, FAULTLINE_HOTLIST_HPL2, &data, &size, &error), FAULTLINE_OK);
	assert_int_equal(faultline_hotlist_decode(data, size, &back, &error), FAULTLINE_OK);
	free(data);
	assert_int_equal(faultline_hotlist_format(back), FAULTLINE_HOTLIST_HPL2);
	assert_int_equal(faultline_hotlist_get_touch(back, 1, &got), FAULTLINE_OK);
	assert_memory_equal(&got, &touch, sizeof got);
	/* It moves with its page. */
	faultline_hotlist_sort(back);
	assert_int_equal(faultline_hotlist_get_touch(back, 0, &got), FAULTLINE_OK);
	assert_memory_equal(&got, &touch, sizeof got);
	assert_int_equal(faultline_hotlist_get_touch(back, 1, &got), FAULTLINE_OK);
	assert_int_equal(got.seen, 0);
	assert_int_equal(faultline_hotlist_get_touch(back, 2, &got), FAULTLINE_BAD_ARGUMENT);
	faultline_hotlist_free(back);

	got.size = 8;
	assert_int_equal(faultline_hotlist_get_touch(list, 0, &got), FAULTLINE_BAD_ARGUMENT);
	bad.vcpu = 65535;
	assert_int_equal(faultline_hotlist_add_touch(list, 0, 0, &bad, &error), FAULTLINE_BAD_ARGUMENT);
	bad = touch;
	bad.kind = 5;
	assert_int_equal(faultline_hotlist_add_touch(list, 0, 0, &bad, &error), FAULTLINE_BAD_ARGUMENT);
	bad = touch;
	bad.size = 0;
	assert_int_equal(faultline_hotlist_add_touch(list, 0, 0, &bad, &error), FAULTLINE_BAD_ARGUMENT);
	assert_int_equal(faultline_hotlist_add_touch(list, 0, 1, &touch, &error), FAULTLINE_BAD_ARGUMENT);
	assert_int_equal(faultline_hotlist_add_touch(list, 0, 1, NULL, &error), FAULTLINE_BAD_ARGUMENT);
	assert_int_equal(faultline_hotlist_count(list), 2);
	faultline_hotlist_free(list);
}

static void test_files(void **state)
{
	char dir[] = "/tmp/faultline-hotlist-XXXXXX", path[80], missing[120];
	struct faultline_hotlist *list = make_list(), *back;
	struct faultline_error error;

	(void)state;
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof path, "%s/list", dir);
	snprintf(missing, sizeof missing, "%s/no/such/place", dir);
	assert_int_equal(faultline_hotlist_load(path, &back, &error), FAULTLINE_OK);
	assert_int_equal(faultline_hotlist_count(back), 0);
	faultline_hotlist_free(back);
	assert_int_equal(faultline_hotlist_save(list, FAULTLINE_HOTLIST_CSV, path, &error), FAULTLINE_OK);
	assert_int_equal(faultline_hotlist_load(path, &back, &error), FAULTLINE_OK);
	assert_int_equal(faultline_hotlist_count(back), 4);
	faultline_hotlist_free(back);

	assert_int_equal(faultline_hotlist_save(list, FAULTLINE_HOTLIST_CSV, missing, &error), FAULTLINE_INPUT_OUTPUT);
	assert_non_null(strstr(error.what, "Make the directory first"));
	assert_int_equal(error.result, FAULTLINE_INPUT_OUTPUT);
	assert_int_equal(faultline_hotlist_load(dir, &back, &error), FAULTLINE_INPUT_OUTPUT);
	assert_non_null(strstr(error.what, "a directory"));
	if (geteuid() != 0) {
		assert_int_equal(chmod(path, 0), 0);
		assert_int_equal(faultline_hotlist_load(path, &back, &error), FAULTLINE_NO_PERMISSION);
	}
	unlink(path);
	rmdir(dir);
	faultline_hotlist_free(list);
}

static void test_bad_lists(void **state)
{
	struct faultline_hotlist *list;
	struct faultline_error error;

	(void)state;
	assert_int_equal(faultline_hotlist_decode("HPL1\x02\x00\x00", 7, &list, &error), FAULTLINE_BAD_LIST);
	assert_non_null(strstr(error.what, "truncated in entry 1"));
	assert_int_equal(error.system_error, 0);
	assert_int_equal(faultline_hotlist_decode(NULL, 0, &list, &error), FAULTLINE_BAD_LIST);
	assert_int_equal(faultline_hotlist_decode("HPL1\x02", 5, &list, NULL), FAULTLINE_BAD_LIST);
}

static void test_misuse(void **state)
{
	struct faultline_hotlist *list = make_list(), *other;
	struct faultline_error error;
	uint64_t mapping, offset = 77;
	void *data;
	size_t size;

	(void)state;
	assert_int_equal(faultline_hotlist_new(NULL, &error), FAULTLINE_BAD_ARGUMENT);
	assert_int_equal(faultline_hotlist_load(NULL, &other, &error), FAULTLINE_BAD_ARGUMENT);
	assert_int_equal(faultline_hotlist_load("x", NULL, &error), FAULTLINE_BAD_ARGUMENT);
	assert_int_equal(faultline_hotlist_decode(NULL, 1, &other, &error), FAULTLINE_BAD_ARGUMENT);
	assert_int_equal(faultline_hotlist_decode("", 0, NULL, &error), FAULTLINE_BAD_ARGUMENT);
	assert_int_equal(faultline_hotlist_save(NULL, FAULTLINE_HOTLIST_CSV, "x", &error), FAULTLINE_BAD_ARGUMENT);
	assert_int_equal(faultline_hotlist_save(list, FAULTLINE_HOTLIST_CSV, NULL, &error), FAULTLINE_BAD_ARGUMENT);
	assert_int_equal(faultline_hotlist_save(list, 0, "/nonexistent/x", &error), FAULTLINE_BAD_ARGUMENT);
	assert_int_equal(faultline_hotlist_encode(list, 5, &data, &size, &error), FAULTLINE_BAD_ARGUMENT);
	assert_non_null(strstr(error.what, "format 5"));
	assert_int_equal(faultline_hotlist_encode(list, 1, NULL, &size, &error), FAULTLINE_BAD_ARGUMENT);
	assert_int_equal(faultline_hotlist_add(NULL, 0, 0, &error), FAULTLINE_BAD_ARGUMENT);
	assert_int_equal(faultline_hotlist_add(list, 0, 4097, &error), FAULTLINE_BAD_ARGUMENT);
	assert_int_equal(faultline_hotlist_get(list, 4, &mapping, &offset), FAULTLINE_BAD_ARGUMENT);
	assert_int_equal(offset, 77);
	assert_int_equal(faultline_hotlist_get(NULL, 0, &mapping, &offset), FAULTLINE_BAD_ARGUMENT);
	assert_int_equal(faultline_hotlist_get(list, 0, NULL, &offset), FAULTLINE_BAD_ARGUMENT);
	assert_int_equal(faultline_hotlist_count(NULL), 0);
	assert_int_equal(faultline_hotlist_format(NULL), FAULTLINE_HOTLIST_HPL1);
	assert_int_equal(faultline_hotlist_check(list, NULL, &error), FAULTLINE_BAD_ARGUMENT);
	faultline_hotlist_sort(NULL);
	faultline_hotlist_free(NULL);
	faultline_hotlist_free(list);
}

static void test_against_a_client(void **state)
{
	struct faultline_hotlist *list = make_list();
	struct faultline_client *client;
	struct faultline_error error;
	void *address;

	(void)state;
	assert_int_equal(faultline_new(&client, &error), FAULTLINE_OK);
	assert_int_equal(faultline_hotlist_check(list, client, &error), FAULTLINE_BAD_LIST);
	assert_int_equal(faultline_map(client, 8192, 0, 4096, &address, &error), FAULTLINE_OK);
	assert_int_equal(faultline_map(client, 4096, 8192, 4096, &address, &error), FAULTLINE_OK);
	assert_int_equal(faultline_map(client, 1 << 20, 12288, 4096, &address, &error), FAULTLINE_OK);
	assert_int_equal(faultline_hotlist_check(list, client, &error), FAULTLINE_BAD_LIST);
	assert_non_null(strstr(error.what, "entry 0"));
	assert_int_equal(faultline_close(&client, &error), FAULTLINE_OK);

	assert_int_equal(faultline_new(&client, &error), FAULTLINE_OK);
	for (int i = 0; i < 3; i++)
		assert_int_equal(faultline_map(client, 2 << 20, 0, 4096, &address, &error), FAULTLINE_OK);
	assert_int_equal(faultline_hotlist_check(list, client, &error), FAULTLINE_OK);
	assert_int_equal(faultline_close(&client, &error), FAULTLINE_OK);
	faultline_hotlist_free(list);
}

static void test_each_result_has_a_sentence(void **state)
{
	const char *unknown = faultline_strerror(1);

	(void)state;
	for (int r = FAULTLINE_UNEXPECTED; r <= FAULTLINE_OK; r++) {
		assert_non_null(faultline_strerror(r));
		assert_string_not_equal(faultline_strerror(r), unknown);
		for (int other = r + 1; other <= FAULTLINE_OK; other++)
			assert_string_not_equal(faultline_strerror(r), faultline_strerror(other));
	}
	assert_string_equal(faultline_strerror(FAULTLINE_UNEXPECTED - 1), unknown);
	assert_true(faultline_version()[0] >= '0' && faultline_version()[0] <= '9');
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_list_goes_out_and_in),
		cmocka_unit_test(test_what_is_known_of_pages),
		cmocka_unit_test(test_files),
		cmocka_unit_test(test_bad_lists),
		cmocka_unit_test(test_misuse),
		cmocka_unit_test(test_against_a_client),
		cmocka_unit_test(test_each_result_has_a_sentence),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
