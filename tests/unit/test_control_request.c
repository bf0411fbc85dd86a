/* What the API takes from a request line and a body, and what it refuses with which code. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "control/request.h"

/* ---- targets ---- */

static void assert_target_refused(const char *target, const char *code)
{
	struct request request = { 0 };
	struct error err = { 0 };

	assert_int_equal(request_set_target(&request, target, &err), -EINVAL);
	assert_string_equal(err.code, code);
	assert_true(strlen(err.message) > 10);
	request_clear(&request);
}

static void target_is_split(void **state)
{
	struct request request = { 0 };

	(void)state;
	assert_int_equal(request_set_target(&request, "/v1/forks/a%2Fb%25/wait?for=ready&timeout_s=0%2e5", NULL), 0);
	assert_int_equal(request.segment_count, 4);
	assert_string_equal(request.segments[0], "v1");
	assert_string_equal(request.segments[2], "a/b%");
	assert_string_equal(request.segments[3], "wait");
	assert_string_equal(request_query(&request, "for"), "ready");
	assert_string_equal(request_query(&request, "timeout_s"), "0.5");
	assert_null(request_query(&request, "from"));
	request_clear(&request);
}

static void trailing_slash_is_an_empty_segment(void **state)
{
	struct request request = { 0 };

	(void)state;
	assert_int_equal(request_set_target(&request, "/v1/", NULL), 0);
	assert_int_equal(request.segment_count, 2);
	assert_string_equal(request.segments[1], "");
	request_clear(&request);
}

static void bad_targets_are_refused(void **state)
{
	char long_target[REQUEST_URI_MAX + 2];

	(void)state;
	memset(long_target, 'a', sizeof long_target - 1);
	long_target[0] = '/';
	long_target[sizeof long_target - 1] = '\0';

	assert_target_refused("http://x/v1", "bad_uri");
	assert_target_refused("*", "bad_uri");
	assert_target_refused("/v1/%", "bad_uri");
	assert_target_refused("/v1/%4", "bad_uri");
	assert_target_refused("/v1/%zz", "bad_uri");
	assert_target_refused("/v1/%00", "bad_uri");
	assert_target_refused("/v1/%ff", "bad_uri");
	assert_target_refused("/v1/%c0%80", "bad_uri");
	assert_target_refused("/v1/%ed%a0%80", "bad_uri");
	assert_target_refused("/v1?a=%f4%90%80%80", "bad_uri");
	assert_target_refused("/1/2/3/4/5/6/7/8/9", "bad_uri");
	assert_target_refused(long_target, "bad_uri");
	assert_target_refused("/v1?force", "bad_query");
	assert_target_refused("/v1?a=&b=&c=&d=&e=&f=&g=&h=&i=", "bad_query");
}

/* ---- query parameters ---- */

static void unknown_and_repeated_parameters_are_refused(void **state)
{
	static const char *const allowed[] = { "for", NULL };
	struct request request = { 0 };
	struct error err = { 0 };

	(void)state;
	request_set_target(&request, "/v1?for=ready", NULL);
	assert_int_equal(request_check_query(&request, allowed, NULL), 0);
	assert_int_equal(request_check_query(&request, NULL, &err), -EINVAL);
	assert_string_equal(err.code, "bad_query");
	assert_non_null(strstr(err.message, "'for'"));
	request_clear(&request);

	request_set_target(&request, "/v1?for=ready&for=ready", NULL);
	assert_int_equal(request_check_query(&request, allowed, &err), -EINVAL);
	assert_string_equal(err.code, "bad_query");
	request_clear(&request);
}

static void words_are_matched_whole(void **state)
{
	static const char *const words[] = { "loop", "best", NULL };
	struct request request = { 0 };
	struct error err = { 0 };

	(void)state;
	request_set_target(&request, "/v1?a=best&b=bes&c=", NULL);
	assert_int_equal(request_query_word(&request, "a", words, 0, &err), 1);
	assert_int_equal(request_query_word(&request, "none", words, 7, &err), 7);
	assert_int_equal(request_query_word(&request, "b", words, 0, &err), -EINVAL);
	assert_non_null(strstr(err.message, "'loop', 'best'"));
	assert_int_equal(request_query_word(&request, "c", words, 0, &err), -EINVAL);
	request_clear(&request);
}

static int seconds(const char *text, uint64_t *ret)
{
	struct request request = { 0 };
	char target[128];

	snprintf(target, sizeof target, "/v1?t=%s", text);
	assert_int_equal(request_set_target(&request, target, NULL), 0);

	int r = request_query_seconds(&request, "t", 30, 100, ret, NULL);

	request_clear(&request);
	return r;
}

static void seconds_are_plain_decimals(void **state)
{
	static const char *const bad[] = { "",	  "-1", "+1", "1e1",  "0x1",   "inf",
					   "nan", "1.", ".5", "1.5s", "100.1", "%201" };
	uint64_t ns = 1;

	(void)state;
	assert_int_equal(seconds("0", &ns), 0);
	assert_int_equal(ns, 0);
	assert_int_equal(seconds("0.25", &ns), 0);
	assert_int_equal(ns, 250000000);
	assert_int_equal(seconds("100", &ns), 0);
	assert_int_equal(ns, 100000000000);
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		assert_int_equal(seconds(bad[i], &ns), -EINVAL);
	assert_int_equal(ns, 100000000000);
}

static void seconds_have_a_default(void **state)
{
	struct request request = { 0 };
	uint64_t ns;

	(void)state;
	assert_int_equal(request_query_seconds(&request, "t", 30, 100, &ns, NULL), 0);
	assert_int_equal(ns, 30000000000);
}

/* ---- bodies ---- */

struct body {
	const char *name, *path;
	bool flag;
	uid_t uid;
	uint64_t time_ns;
};

static int read_body(const char *text, size_t size, struct body *body, struct error *err)
{
	static struct request request;
	const struct member members[] = {
		{ "name", MEMBER_STRING, true, &body->name },	     { "path", MEMBER_PATH, false, &body->path },
		{ "flag", MEMBER_BOOL, false, &body->flag },	     { "uid", MEMBER_UID, false, &body->uid },
		{ "time_s", MEMBER_SECONDS, false, &body->time_ns },
	};

	request_clear(&request);
	assert_int_equal(request_add_body(&request, text, size), 0);

	int r = request_read_body(&request, members, sizeof members / sizeof *members, err);

	if (r < 0)
		request_clear(&request);
	return r;
}

static void assert_body_refused(const char *text, const char *code, const char *word)
{
	struct error err = { 0 };
	struct body body;

	assert_int_equal(read_body(text, strlen(text), &body, &err), -EINVAL);
	assert_string_equal(err.code, code);
	if (!strstr(err.message, word))
		fail_msg("'%s' is not in: %s", word, err.message);
}

static void good_body_is_read(void **state)
{
	static const char text[] =
		" {\"uid\": 4294967294, \"name\":\"n\\u00e4\", \"path\": \"/a b\", \"flag\": true, \"time_s\": 1.5}\n";
	struct body body = { 0 };

	(void)state;
	assert_int_equal(read_body(text, strlen(text), &body, NULL), 0);
	assert_string_equal(body.name, "nä");
	assert_string_equal(body.path, "/a b");
	assert_true(body.flag);
	assert_int_equal(body.uid, 4294967294);
	assert_int_equal(body.time_ns, 1500000000);
	assert_int_equal(read_body("{\"name\":\"n\",\"time_s\":86400}", 27, &body, NULL), 0);
	assert_int_equal(body.time_ns, 86400000000000);
	assert_int_equal(read_body("{\"name\":\"n\",\"time_s\":0}", 23, &body, NULL), 0);
	assert_int_equal(body.time_ns, 0);
	read_body("", 0, &body, NULL);
}

static void missing_members_leave_values_alone(void **state)
{
	struct body body = { .path = "/before", .uid = 7 };

	(void)state;
	assert_int_equal(read_body("{\"name\":\"n\"}", 12, &body, NULL), 0);
	assert_string_equal(body.path, "/before");
	assert_int_equal(body.uid, 7);
	read_body("", 0, &body, NULL);
}

static void bad_bodies_are_refused(void **state)
{
	char deep[2000], long_path[5000];

	(void)state;
	memset(deep, '[', sizeof deep - 1);
	deep[sizeof deep - 1] = '\0';
	memset(long_path, 'p', sizeof long_path);
	memcpy(long_path, "{\"name\":\"n\",\"path\":\"/", 21);
	strcpy(long_path + sizeof long_path - 3, "\"}");

	assert_body_refused("", "missing_body", "body");
	assert_body_refused("   ", "bad_json", "line 1");
	assert_body_refused("{\"name\":\"n\"", "bad_json", "line 1");
	assert_body_refused("{\"name\":\"n\"} x", "bad_json", "x");
	assert_body_refused("{\"name\":\"n\"}{}", "bad_json", "line 1");
	assert_body_refused("{\"name\":\"n\",\"name\":\"n\"}", "bad_json", "name");
	assert_body_refused("{\"name\":\"\xff\"}", "bad_json", "decode");
	assert_body_refused("{\"name\":\"a\\u0000b\"}", "bad_json", "line 1");
	assert_body_refused("{'name':1}", "bad_json", "line 1");
	assert_body_refused(deep, "bad_json", "brackets");
	assert_body_refused("[]", "bad_body", "object");
	assert_body_refused("\"name\"", "bad_json", "line 1");
	assert_body_refused("{}", "missing_member", "'name'");
	assert_body_refused("{\"name\":\"n\",\"nam\":1}", "unknown_member", "'nam'");
	assert_body_refused("{\"name\":1}", "bad_member", "an integer");
	assert_body_refused("{\"name\":null}", "bad_member", "null");
	assert_body_refused("{\"name\":\"\"}", "bad_member", "empty");
	assert_body_refused("{\"name\":\"n\",\"path\":\"a\"}", "bad_path", "'path'");
	assert_body_refused("{\"name\":\"n\",\"path\":\"\"}", "bad_path", "'path'");
	assert_body_refused("{\"name\":\"n\",\"path\":[]}", "bad_member", "an array");
	assert_body_refused(long_path, "bad_path", "longer");
	assert_body_refused("{\"name\":\"n\",\"flag\":1}", "bad_member", "'flag'");
	assert_body_refused("{\"name\":\"n\",\"flag\":\"true\"}", "bad_member", "a string");
	assert_body_refused("{\"name\":\"n\",\"time_s\":-0.1}", "bad_member", "'time_s'");
	assert_body_refused("{\"name\":\"n\",\"time_s\":86400.1}", "bad_member", "0 to 86400");
	assert_body_refused("{\"name\":\"n\",\"time_s\":1e300}", "bad_member", "0 to 86400");
	assert_body_refused("{\"name\":\"n\",\"time_s\":\"1\"}", "bad_member", "a string");
	assert_body_refused("{\"name\":\"n\",\"uid\":-1}", "bad_member", "'uid'");
	assert_body_refused("{\"name\":\"n\",\"uid\":4294967295}", "bad_member", "4294967295");
	assert_body_refused("{\"name\":\"n\",\"uid\":1.0}", "bad_member", "a fraction");
}

static void embedded_nul_is_refused(void **state)
{
	struct error err = { 0 };
	struct body body;

	(void)state;
	assert_int_equal(read_body("{\"name\":\"a\0b\"}", 14, &body, &err), -EINVAL);
	assert_string_equal(err.code, "bad_json");
	assert_int_equal(read_body("{\"name\":\"a\"}\0", 13, &body, &err), -EINVAL);
	assert_string_equal(err.code, "bad_json");
}

static void body_comes_in_pieces_and_is_bounded(void **state)
{
	struct request request = { 0 };
	char *piece = calloc(1, 300000);

	(void)state;
	assert_non_null(piece);
	for (int i = 0; i < 3; i++)
		assert_int_equal(request_add_body(&request, piece, 300000), 0);
	assert_int_equal(request.body_size, 900000);
	for (int i = 0; i < 100; i++)
		assert_int_equal(request_add_body(&request, piece, 300000), 0);
	assert_true(request.body_size > REQUEST_BODY_MAX);
	assert_true(request.body_capacity <= 2 * REQUEST_BODY_MAX);
	request_clear(&request);

	/* Exactly the limit still fits. */
	for (unsigned i = 0; i < REQUEST_BODY_MAX / 65536; i++)
		assert_int_equal(request_add_body(&request, piece, 65536), 0);
	assert_int_equal(request.body_size, REQUEST_BODY_MAX);
	request_clear(&request);
	free(piece);
}

/* Three bytes of text would become 200 of the parser's. Commas in strings are no values. */
static void bodies_of_many_values_are_refused(void **state)
{
	static char text[3 * REQUEST_VALUES_MAX + 100];
	size_t n = (size_t)sprintf(text, "{\"name\":[");

	(void)state;
	for (int i = 0; i < REQUEST_VALUES_MAX; i++)
		n += (size_t)sprintf(text + n, "%s{}", i ? "," : "");
	strcpy(text + n, "]}");
	assert_body_refused(text, "bad_json", "more than 256 values");

	n = (size_t)sprintf(text, "{\"name\":\"");
	memset(text + n, ',', 2 * REQUEST_VALUES_MAX);
	strcpy(text + n + 2 * REQUEST_VALUES_MAX, "\",\"path\":7}");
	assert_body_refused(text, "bad_member", "'path'");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(target_is_split),
		cmocka_unit_test(trailing_slash_is_an_empty_segment),
		cmocka_unit_test(bad_targets_are_refused),
		cmocka_unit_test(unknown_and_repeated_parameters_are_refused),
		cmocka_unit_test(words_are_matched_whole),
		cmocka_unit_test(seconds_are_plain_decimals),
		cmocka_unit_test(seconds_have_a_default),
		cmocka_unit_test(good_body_is_read),
		cmocka_unit_test(missing_members_leave_values_alone),
		cmocka_unit_test(bad_bodies_are_refused),
		cmocka_unit_test(bodies_of_many_values_are_refused),
		cmocka_unit_test(embedded_nul_is_refused),
		cmocka_unit_test(body_comes_in_pieces_and_is_bounded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
