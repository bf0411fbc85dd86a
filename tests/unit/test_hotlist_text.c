/* Lists as JSON and CSV: what is written, what is read, and where each error says that it is. */
#include <stdlib.h>

#include <jansson.h>

#include "unit/hotlist_helpers.h"

static struct hotlist *decode_text(const char *text)
{
	return decode(text, strlen(text));
}

struct malformed {
	const char *text, *message;
};

static void assert_all_malformed(const struct malformed *cases, size_t count)
{
	for (size_t i = 0; i < count; i++)
		assert_malformed(cases[i].text, strlen(cases[i].text), cases[i].message);
}

static void assert_encodes_to(const struct hotlist *list, enum hotlist_format format, const char *expected)
{
	void *data;
	size_t size;
	struct error err;

	assert_int_equal(hotlist_encode(list, format, &data, &size, &err), 0);
	assert_int_equal(size, strlen(expected));
	assert_memory_equal(data, expected, size);
	free(data);
}

/* ---- JSON ---- */

#define START "{\"format\":\"faultline-hotlist\",\"version\":1,\"pages\":["

static void test_json_written(void **state)
{
	(void)state;
	_cleanup_hotlist_ struct hotlist *empty = hotlist_new();
	assert_encodes_to(empty, HOTLIST_JSON, START "]}\n");

	/* Order and duplicates stay. */
	_cleanup_hotlist_ struct hotlist *list = LIST({ 1, 4096 }, { 0, 0 }, { 1, 4096 });
	assert_encodes_to(list, HOTLIST_JSON,
			  START "\n{\"region\":1,\"offset\":4096},\n{\"region\":0,\"offset\":0},\n"
				"{\"region\":1,\"offset\":4096}\n]}\n");
}

/* A parser that is not ours agrees about what was written. */
static void test_json_written_is_json(void **state)
{
	(void)state;
	_cleanup_hotlist_ struct hotlist *list = LIST({ 3, 8192 }, { 0, INT64_MAX });
	void *data;
	size_t size;
	struct error err;
	assert_int_equal(hotlist_encode(list, HOTLIST_JSON, &data, &size, &err), 0);

	json_t *root = json_loadb(data, size, JSON_REJECT_DUPLICATES, NULL), *pages = NULL;
	const char *format;
	json_int_t version, region, offset;
	assert_int_equal(json_unpack_ex(root, NULL, JSON_STRICT, "{s:s,s:I,s:o}", "format", &format, "version",
					&version, "pages", &pages),
			 0);
	assert_string_equal(format, "faultline-hotlist");
	assert_int_equal(version, 1);
	assert_int_equal(json_array_size(pages), 2);
	assert_int_equal(json_unpack_ex(json_array_get(pages, 1), NULL, JSON_STRICT, "{s:I,s:I}", "region", &region,
					"offset", &offset),
			 0);
	assert_int_equal(offset, INT64_MAX);
	json_decref(root);
	free(data);
}

static void test_json_read(void **state)
{
	static const char *const texts[] = {
		START "{\"region\":1,\"offset\":8192},{\"region\":0,\"offset\":0}]}",
		/* Any order of keys, blanks and line ends, and a byte order mark. */
		"\xef\xbb\xbf \r\n{ \"pages\" : [ { \"offset\" : 8192 , \"region\" : 1 } ,\n\t"
		"{\"offset\":0,\"region\":0} ] ,\n\"version\":1, \"format\":\"faultline-hotlist\" }\n\n",
		/* What is not known is passed over, whatever it holds. */
		"{\"made_by\":{\"a\":[1,-2.5e+3,{}],\"b\":\"\\\"]}\"},\"format\":\"faultline-hotlist\",\"version\":1,\"pages\":"
		"[{\"region\":1,\"seem\":[[],null,true],\"offset\":8192,\"first_touch_ns\":null},{\"region\":0,\"offset\":0}],"
		"\"a key that is much longer than any of ours could ever be\":false}",
		/* Escapes in keys and values. */
		"{\"form\\u0061t\":\"faultline\\u002dhotlist\",\"version\":1,\"p\\u0061ges\":[{\"r\\u0065gion\":1,\"offset\":8192},"
		"{\"region\":0,\"offset\":0}],\"\\u00e9\\ud83d\\ude00\\n\\/\":\"\xc3\xa9\"}",
	};

	(void)state;
	_cleanup_hotlist_ struct hotlist *expected = LIST({ 1, 8192 }, { 0, 0 });
	for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
		_cleanup_hotlist_ struct hotlist *list = decode_text(texts[i]);
		assert_same_pages(expected, list);
		assert_int_equal(list->format, HOTLIST_JSON);
	}
}

static void test_json_largest_numbers(void **state)
{
	(void)state;
	_cleanup_hotlist_ struct hotlist *list = LIST({ UINT64_MAX, UINT64_MAX });
	assert_encodes_to(list, HOTLIST_JSON,
			  START "\n{\"region\":18446744073709551615,\"offset\":18446744073709551615}\n]}\n");
	_cleanup_hotlist_ struct hotlist *decoded =
		decode_text(START "{\"region\":18446744073709551615,\"offset\":18446744073709551615}]}");
	assert_same_pages(list, decoded);
}

static void test_json_malformed(void **state)
{
	static const struct malformed cases[] = {
		{ "{", "line 1, column 2: the text ends where '\"' is needed" },
		{ "[]", "line 1, column 1: '{' is needed here" },
		{ "{}", "line 1, column 3: the object has no \"format\"" },
		{ "{\"format\":\"faultline-hotlist\"}", "line 1, column 31: the object has no \"version\"" },
		{ "{\"format\":\"faultline-hotlist\",\"version\":1}", "line 1, column 43: the object has no \"pages\"" },
		{ "{\"format\":\"other\"}", "line 1, column 18: \"format\" must be \"faultline-hotlist\"" },
		{ "{\"version\":2}", "line 1, column 13: version 2 of the format; this faultline reads version 1" },
		{ "{\"version\":\"1\"}", "line 1, column 12: \"version\" must be a whole number of 0 or more" },
		{ "{\"pages\":{}}", "line 1, column 10: '[' is needed here" },
		{ "{\"pages\":[1]}", "line 1, column 11: '{' is needed here" },
		{ "{\"pages\":[\n {\"region\":0,\"offset\":0},\n {\"region\":0}]}",
		  "line 3, column 14: the page has no \"offset\"" },
		{ "{\"pages\":[{\"offset\":0}]}", "line 1, column 23: the page has no \"region\"" },
		{ "{\"pages\":[{\"region\":0,\"region\":1,\"offset\":0}]}",
		  "line 1, column 32: \"region\" is there twice" },
		{ "{\"pages\":[],\"pages\":[]}", "line 1, column 21: \"pages\" is there twice" },
		{ "{\"pages\":[{\"region\":-1,\"offset\":0}]}",
		  "line 1, column 21: \"region\" must be a whole number of 0 or more" },
		{ "{\"pages\":[{\"region\":0,\"offset\":4096.0}]}",
		  "line 1, column 36: \"offset\" must be a whole number of 0 or more" },
		{ "{\"pages\":[{\"region\":0,\"offset\":4e3}]}",
		  "line 1, column 33: \"offset\" must be a whole number of 0 or more" },
		{ "{\"pages\":[{\"region\":0,\"offset\":010}]}", "line 1, column 35: \"offset\" has a leading zero" },
		{ "{\"pages\":[{\"region\":0,\"offset\":18446744073709551616}]}",
		  "line 1, column 51: \"offset\" is over 64 bits" },
		{ "{\"pages\":[{\"region\":0,\"offset\":null}]}",
		  "line 1, column 32: \"offset\" must be a whole number of 0 or more" },
		{ "{\"pages\":[{\"region\":0 \"offset\":0}]}", "line 1, column 23: ',' or '}' is needed here" },
		{ "{\"pages\":[{\"region\":0,}]}", "line 1, column 23: '\"' is needed here" },
		{ "{\"pages\":[],}", "line 1, column 13: '\"' is needed here" },
		{ "{\"pages\" []}", "line 1, column 10: ':' is needed here" },
		{ "{\"pages\":[", "line 1, column 11: the text ends where '{' is needed" },
		{ "{\"pages\":[]", "line 1, column 12: the text ends where ',' or '}' is needed" },
		{ "{\"pag", "line 1, column 6: the text ends within a string" },
		{ "{\"a\\", "line 1, column 5: the text ends within a string" },
		{ "{\"a\\q\":1}", "line 1, column 5: a backslash stands before something that JSON does not escape" },
		{ "{\"a\\u12g4\":1}", "line 1, column 5: four hexadecimal digits are needed after \\u" },
		{ "{\"a\\u12", "line 1, column 5: four hexadecimal digits are needed after \\u" },
		{ "{\"a\nb\":1}", "line 1, column 4: a control character within a string" },
		{ "{\"a\":nul}", "line 1, column 6: a value is needed here" },
		{ "{\"a\":", "line 1, column 6: the text ends where a value is needed" },
		{ "{\"a\":-}", "line 1, column 7: a digit is needed here" },
		{ "{\"a\":1.}", "line 1, column 8: a digit is needed here" },
		{ "{\"a\":1e+}", "line 1, column 9: a digit is needed here" },
		{ "{\"a\":01}", "line 1, column 7: ',' or '}' is needed here" },
		{ "{\"a\":[1,]}", "line 1, column 9: a value is needed here" },
		{ START "]}\nx", "line 2, column 1: something follows the end of the list" },
		{ START "]}{}", "line 1, column 54: something follows the end of the list" },
	};

	(void)state;
	assert_all_malformed(cases, sizeof cases / sizeof *cases);
	assert_malformed(START "]}\0", sizeof START "]}", "line 1, column 54: something follows the end of the list");
}

/* Deep nesting must not eat the stack: here a million arrays within each other. */
static void test_json_depth_is_bounded(void **state)
{
	enum { DEPTH = 1000000 };
	char *text = malloc(DEPTH + 5);

	(void)state;
	assert_non_null(text);
	memcpy(text, "{\"a\":", 5);
	memset(text + 5, '[', DEPTH);
	assert_malformed(text, DEPTH + 5, "line 1, column 38: more than 32 values within each other");
	free(text);
}

static void test_json_cut_at_every_byte(void **state)
{
	static const char text[] = START "\n{\"region\":1,\"offset\":8192,\"x\":[\"\\u0041\",{\"y\":-1.5e3},true]}\n]}";

	(void)state;
	_cleanup_hotlist_ struct hotlist *whole = decode_text(text);
	assert_int_equal(whole->count, 1);
	for (size_t size = 1; size < sizeof text - 1; size++) {
		struct hotlist *list = NULL;
		struct error err;

		assert_int_equal(hotlist_decode(text, size, &list, &err), -EBADMSG);
		assert_contains(err.message, "line ");
	}
}

/* ---- CSV ---- */

#define CSV_HEADER "region,offset,first_touch_ns,seen,corrected_ns,vcpu,kind,spread,present\n"

static void test_csv_written(void **state)
{
	(void)state;
	_cleanup_hotlist_ struct hotlist *empty = hotlist_new();
	assert_encodes_to(empty, HOTLIST_CSV, CSV_HEADER);

	_cleanup_hotlist_ struct hotlist *list = LIST({ 1, 4096 }, { 0, 0 }, { 1, UINT64_MAX });
	assert_encodes_to(list, HOTLIST_CSV, CSV_HEADER "1,4096,,1,,,,,\n0,0,,1,,,,,\n1,18446744073709551615,,1,,,,,\n");
}

static void test_csv_read(void **state)
{
	static const char *const texts[] = {
		"region,offset,first_touch_ns,seen\n1,8192,,1\n0,0,123,2\n",
		"region,offset\n1,8192\n0,0",
		/* Columns in any order, those not known passed over. */
		"vcpu,offset,kind,region\n0,8192,r,1\n1,0,w,0\n",
		/* What spreadsheets write: byte order mark, CR LF, quotes, empty lines, blanks. */
		"\xef\xbb\xbf\"region\",\"offset\",\"note\"\r\n\r\n\"1\", \"8192\" ,\"a, \"\"b\"\"\r\nc\"\r\n 0 ,\t0\t,\r\n\r\n",
		"\n\nregion , offset\n  \n01,0008192\n\n0,0\n\n",
	};

	(void)state;
	_cleanup_hotlist_ struct hotlist *expected = LIST({ 1, 8192 }, { 0, 0 });
	for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
		_cleanup_hotlist_ struct hotlist *list = decode_text(texts[i]);
		assert_same_pages(expected, list);
		assert_int_equal(list->format, HOTLIST_CSV);
	}
	_cleanup_hotlist_ struct hotlist *empty = decode_text("offset,region");
	assert_int_equal(empty->count, 0);
}

static void test_csv_malformed(void **state)
{
	static const struct malformed cases[] = {
		{ "region,ofset\n0,0\n", "line 1: the header has no column \"offset\"" },
		{ "\noffset\n0\n", "line 2: the header has no column \"region\"" },
		{ "region,offset\n0\n", "line 2: 1 fields, where the header has 2" },
		{ "region,offset\n0,0\n\n0,4096,1\n", "line 4: 3 fields, where the header has 2" },
		{ "region,offset\n,0\n", "line 2: region is empty" },
		{ "region,offset\n0,\n", "line 2: offset is empty" },
		{ "region,offset\n0,\"\"\n", "line 2: offset is empty" },
		{ "region,offset\n-1,0\n", "line 2: region must be a whole number of 0 or more" },
		{ "region,offset\n0,0x1000\n", "line 2: offset must be a whole number of 0 or more" },
		{ "region,offset\n0,4 096\n", "line 2: offset must be a whole number of 0 or more" },
		{ "region,offset\n0,4096.0\n", "line 2: offset must be a whole number of 0 or more" },
		{ "region,offset\n0,18446744073709551616\n", "line 2: offset is over 64 bits" },
		{ "region,offset\n0,99999999999999999999999999999999999999999999\n", "line 2: offset is over 64 bits" },
		{ "region,offset,note\n0,0,\"a\nb\"\n0,x,\"\"\n", "line 4: offset must be a whole number of 0 or more" },
		{ "region,offset\n0,\"4096\n", "line 2: a quoted field does not end" },
		{ "region,offset\n0,\"4096\"1\n", "line 2: something follows the closing quote of a field" },
	};

	(void)state;
	assert_all_malformed(cases, sizeof cases / sizeof *cases);
	assert_malformed("region,offset\n0,1\0", 18, "line 2: offset must be a whole number of 0 or more");
}

/* A header that names a column twice is no list of ours either: nobody could say which one counts. */
static void test_csv_column_twice(void **state)
{
	struct hotlist *list = NULL;
	struct error err;
	static const char text[] = "region,offset,region\n0,0,1\n";

	(void)state;
	assert_int_equal(hotlist_decode(text, sizeof text - 1, &list, &err), -EBADMSG);
	assert_string_equal(err.message, "line 1: the column \"region\" is there twice");
}

/* ---- both ---- */

static void test_random_round_trips(void **state)
{
	static const enum hotlist_format formats[] = { HOTLIST_JSON, HOTLIST_CSV };
	struct random random = { 2 };

	(void)state;
	for (int round = 0; round < 200; round++) {
		_cleanup_hotlist_ struct hotlist *list = hotlist_new();
		size_t count = random_below(&random, 200);

		for (size_t i = 0; i < count; i++)
			assert_int_equal(hotlist_add(list, random_u64(&random) >> random_below(&random, 64),
						     random_u64(&random) >> random_below(&random, 64)),
					 0);
		for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
			void *data;
			size_t size;
			struct error err;

			assert_int_equal(hotlist_encode(list, formats[i], &data, &size, &err), 0);
			_cleanup_hotlist_ struct hotlist *decoded = decode(data, size);
			assert_same_pages(list, decoded);
			assert_int_equal(decoded->format, formats[i]);
			free(data);
		}
	}
}

static void test_format_names(void **state)
{
	enum hotlist_format format = HOTLIST_HPL1;
	struct error err;

	(void)state;
	assert_int_equal(hotlist_format_parse("csv", &format, &err), 0);
	assert_int_equal(format, HOTLIST_CSV);
	assert_string_equal(hotlist_format_name(HOTLIST_JSON), "json");
	assert_int_equal(hotlist_format_parse("CSV", &format, &err), -EINVAL);
	assert_int_equal(hotlist_format_parse("", &format, &err), -EINVAL);
	assert_int_equal(format, HOTLIST_CSV);
	assert_string_equal(err.message, "no list format \"\": use hpl1, hpl2, json or csv");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_json_written),
		cmocka_unit_test(test_json_written_is_json),
		cmocka_unit_test(test_json_read),
		cmocka_unit_test(test_json_largest_numbers),
		cmocka_unit_test(test_json_malformed),
		cmocka_unit_test(test_json_depth_is_bounded),
		cmocka_unit_test(test_json_cut_at_every_byte),
		cmocka_unit_test(test_csv_written),
		cmocka_unit_test(test_csv_read),
		cmocka_unit_test(test_csv_malformed),
		cmocka_unit_test(test_csv_column_twice),
		cmocka_unit_test(test_random_round_trips),
		cmocka_unit_test(test_format_names),
	};

	return cmocka_run_group_tests_name("hotlist/text", tests, NULL, NULL);
}
