/* Forks, templates and error codes as the API shows them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "control/api_errors.h"
#include "control/encode.h"
#include "control/routes.h"
#include "control/utf8.h"

static double number(const json_t *object, const char *name)
{
	const json_t *value = json_object_get(object, name);

	assert_true(json_is_number(value));
	return json_number_value(value);
}

static void fork_before_its_handshake_has_nulls(void **state)
{
	static const char *const nulls[] = { "pid",	 "error",   "handshake", "connected_ms",
					     "ready_ms", "gone_ms", "hot_list" };
	struct fork_info info = { .id = "a1", .template = "base", .socket = "/run/a1.uffd" };
	json_t *fork = encode_fork(&info);

	(void)state;
	assert_non_null(fork);
	assert_string_equal(json_string_value(json_object_get(fork, "state")), "waiting");
	assert_string_equal(json_string_value(json_object_get(fork, "observe_tier")), "none");
	for (size_t i = 0; i < sizeof nulls / sizeof *nulls; i++)
		assert_true(json_is_null(json_object_get(fork, nulls[i])));
	assert_int_equal(json_array_size(json_object_get(fork, "regions")), 0);
	json_decref(fork);
}

static void numbers_of_a_fork_have_their_units(void **state)
{
	struct fork_region_info region = {
		.address = 0x7f0000000000, .size = 1 << 30, .offset = 1 << 20, .page_size = 4096
	};
	struct fork_info info = {
		.id = "a1",
		.template = "base",
		.state = FORK_READY,
		.socket = "/s",
		.pid = 42,
		.pager_cpus = { 3, 1 },
		.pager_count = 2,
		.faults = 7,
		.prefetch_ns = 12345678,
		.stall_ns = 1500,
		.stall_p50_ns = 9504,
		.connected_ns = 2000000,
		.regions = &region,
		.region_count = 1,
	};
	json_t *fork = encode_fork(&info);

	(void)state;
	assert_non_null(fork);
	assert_true(number(fork, "faults") == 7);
	assert_true(number(fork, "pid") == 42);
	json_t *cpus = json_object_get(fork, "pager_cpus");
	assert_int_equal(json_array_size(cpus), 2);
	assert_int_equal(json_integer_value(json_array_get(cpus, 0)), 3);
	assert_int_equal(json_integer_value(json_array_get(cpus, 1)), 1);
	assert_true(number(fork, "prefetch_ms") == 12.346);
	assert_true(number(fork, "stall_ms") == 0.002);
	assert_true(number(fork, "stall_p50_us") == 9.504);
	assert_true(number(fork, "connected_ms") == 2);

	const json_t *row = json_array_get(json_object_get(fork, "regions"), 0);

	assert_int_equal(json_integer_value(json_object_get(row, "address")), 0x7f0000000000);
	assert_int_equal(json_integer_value(json_object_get(row, "offset")), 1 << 20);
	json_decref(fork);
}

static void template_has_its_paths(void **state)
{
	struct template_info info = {
		.name = "base",
		.memory = "/m",
		.memory_size = 1ull << 40,
		.forks_live = 3,
		.hot_set_state = "ready",
		.hot_set_pages = 7,
		.hot_set_bytes = 40960,
	};
	json_t *template = encode_template(&info);

	(void)state;
	assert_non_null(template);
	assert_string_equal(json_string_value(json_object_get(template, "memory")), "/m");
	assert_true(json_is_null(json_object_get(template, "state")));
	assert_int_equal(json_integer_value(json_object_get(template, "memory_size")), 1ll << 40);
	assert_int_equal(json_integer_value(json_object_get(template, "forks_live")), 3);
	const json_t *hot_set = json_object_get(template, "hot_set");
	assert_string_equal(json_string_value(json_object_get(hot_set, "state")), "ready");
	assert_true(number(hot_set, "pages") == 7);
	assert_true(number(hot_set, "bytes") == 40960);
	assert_true(json_is_null(json_object_get(hot_set, "error")));
	json_decref(template);
}

static void text_that_is_not_utf8_still_becomes_json(void **state)
{
	json_t *text = utf8_json("a\xff\xc3\xa4\xc3");

	(void)state;
	assert_string_equal(json_string_value(text), "a?ä?");
	json_decref(text);
	assert_true(json_is_null(utf8_json(NULL)));
}

static void cut_error_messages_still_become_json(void **state)
{
	struct error err;
	struct reply reply = { 0 };
	char text[2 * ERROR_MESSAGE_MAX];

	(void)state;
	/* An odd number of bytes before two-byte characters: the cut goes through one of them. */
	text[0] = 'x';
	for (size_t i = 1; i + 2 < sizeof text; i += 2)
		memcpy(text + i, "ä", 2);
	text[sizeof text - 1 - (sizeof text % 2 == 0)] = '\0';
	error_set(&err, 0, "io_error", "%s", text);
	reply_error(&reply, &err);
	assert_int_equal(reply.status, 500);
	assert_non_null(reply.json);
	reply_clear(&reply);
}

static void error_table_is_sorted_and_complete(void **state)
{
	(void)state;
	for (size_t i = 1; i < api_error_table_size; i++)
		assert_true(strcmp(api_error_table[i - 1].code, api_error_table[i].code) < 0);
	for (size_t i = 0; i < api_error_table_size; i++) {
		assert_int_equal(api_error_status(api_error_table[i].code), api_error_table[i].status);
		assert_in_range(api_error_table[i].status, 400, 599);
	}
	assert_int_equal(api_error_status("fork_unknown"), 404);
	assert_int_equal(api_error_status("no such code"), 500);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(fork_before_its_handshake_has_nulls),
		cmocka_unit_test(numbers_of_a_fork_have_their_units),
		cmocka_unit_test(template_has_its_paths),
		cmocka_unit_test(text_that_is_not_utf8_still_becomes_json),
		cmocka_unit_test(cut_error_messages_still_become_json),
		cmocka_unit_test(error_table_is_sorted_and_complete),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
