/* What VMMs say when they connect, in both forms, whole and in pieces, right and wrong. */
#include <jansson.h>
#include <stdlib.h>

#include "serve/handshake.h"
#include "unit/hotlist_helpers.h"

#define HOST_PAGE 4096

#define ONE \
	"{\"base_host_virt_addr\":140000000000000,\"size\":8192,\"offset\":4096,\"page_size\":4096,\"page_size_kib\":4096}"
#define TWO \
	"{\"base_host_virt_addr\":4194304,\"size\":2097152,\"offset\":0,\"page_size\":2097152,\"page_size_kib\":2097152}"
#define BARE "{\"base_host_virt_addr\":1,\"size\":2,\"offset\":3}"

static enum handshake_progress scan_all(const char *text)
{
	struct handshake_scan scan = { 0 };

	return handshake_scan(&scan, text, strlen(text));
}

/* The text stands in a block of exactly its size, so that a sanitizer sees a read past the end. */
static int parse(const char *text, size_t size, struct handshake *ret, struct error *err)
{
	char *copy = malloc(size ?: 1);

	assert_non_null(copy);
	memcpy(copy, text, size);
	int r = handshake_parse(copy, size, HOST_PAGE, ret, err);
	free(copy);
	return r;
}

static struct handshake parsed(const char *text)
{
	struct handshake handshake;
	struct error err = { .message = "" };

	assert_int_equal(scan_all(text), HANDSHAKE_COMPLETE);
	if (parse(text, strlen(text), &handshake, &err) < 0)
		fail_msg("refused: %s", err.message);
	return handshake;
}

/* The whole message where EXPECTED is one; where it ends in "…" only its beginning, for the rest is the JSON library's. */
static void assert_refused(const char *text, size_t size, const char *expected)
{
	struct handshake handshake = { .kind = "untouched" };
	struct error err = { .code = "" };
	const char *more = strstr(expected, "…");

	assert_int_equal(parse(text, size, &handshake, &err), -EBADMSG);
	assert_string_equal(err.code, "bad_handshake");
	if (more && strncmp(err.message, expected, (size_t)(more - expected)) != 0)
		fail_msg("\"%s\" does not begin as \"%s\"", err.message, expected);
	else if (!more)
		assert_string_equal(err.message, expected);
	assert_string_equal(handshake.kind, "untouched");
	assert_int_equal(parse(text, size, &handshake, NULL), -EBADMSG);
}

static void refused(const char *text, const char *expected)
{
	assert_refused(text, strlen(text), expected);
}

static void assert_region(const struct region *region, uint64_t address, uint64_t size, uint64_t offset,
			  uint64_t page_size)
{
	assert_int_equal(region->address, address);
	assert_int_equal(region->size, size);
	assert_int_equal(region->offset, offset);
	assert_int_equal(region->page_size, page_size);
}

static void assert_page_size(const char *members, uint64_t page_size)
{
	char text[512];

	snprintf(text, sizeof text, "[{\"base_host_virt_addr\":1,\"size\":2,\"offset\":3%s}]", members);
	struct handshake handshake = parsed(text);
	assert_int_equal(handshake.region_count, 1);
	assert_region(&handshake.regions[0], 1, 2, 3, page_size);
	free(handshake.regions);
}

static void test_firecracker(void **state)
{
	(void)state;
	struct handshake handshake = parsed("[" ONE "," TWO "]");
	assert_string_equal(handshake.kind, "firecracker");
	assert_int_equal(handshake.region_count, 2);
	assert_region(&handshake.regions[0], 140000000000000, 8192, 4096, 4096);
	assert_region(&handshake.regions[1], 4194304, 2097152, 0, 2097152);
	free(handshake.regions);
}

static void test_hypeman(void **state)
{
	(void)state;
	struct handshake handshake = parsed("{\"mappings\":[" BARE "]}");
	assert_string_equal(handshake.kind, "hypeman");
	assert_int_equal(handshake.region_count, 1);
	assert_region(&handshake.regions[0], 1, 2, 3, HOST_PAGE);
	free(handshake.regions);
}

/* Older Firecrackers send page_size_kib alone, in bytes; page_size, where it is said, has the last word. */
static void test_page_size(void **state)
{
	(void)state;
	assert_page_size("", HOST_PAGE);
	assert_page_size(",\"page_size\":2097152", 2097152);
	assert_page_size(",\"page_size\":0", 0); /* for regions_validate to refuse */
	assert_page_size(",\"page_size_kib\":2097152", 2097152);
	assert_page_size(",\"page_size_kib\":4096", 4096);
	assert_page_size(",\"page_size_kib\":4", HOST_PAGE);
	assert_page_size(",\"page_size_kib\":0", HOST_PAGE);
	assert_page_size(",\"page_size_kib\":2097152,\"page_size\":4096", 4096);
	assert_page_size(",\"page_size\":4096,\"page_size_kib\":2097152", 4096);
	assert_page_size(",\"page_size\":2097152,\"page_size_kib\":2048", 2097152);
}

static void test_unknown_keys(void **state)
{
	static const char text[] =
		"{\"version\":[1,{\"a\":null}],\"mappings\":[{\"fd\":\"]}\\\"[{\\\\\",\"size\":2,"
		"\"base_host_virt_addr\":1,\"x\":[[1.5e3,true]],\"offset\":3,\"page_size\":4096,\"\":{}}],"
		"\"z\":\"\\u00e9\"}";

	(void)state;
	struct handshake handshake = parsed(text);
	assert_int_equal(handshake.region_count, 1);
	assert_region(&handshake.regions[0], 1, 2, 3, 4096);
	free(handshake.regions);
}

static void test_white_space(void **state)
{
	(void)state;
	struct handshake handshake =
		parsed(" \t\r\n[ { \"base_host_virt_addr\" :1 ,\n\"size\": 2,\t\"offset\":3 }\r\n] \n\t ");
	assert_region(&handshake.regions[0], 1, 2, 3, HOST_PAGE);
	free(handshake.regions);
}

static void test_numbers(void **state)
{
	(void)state;
	struct handshake handshake =
		parsed("[{\"base_host_virt_addr\":9223372036854775807,\"size\":0,\"offset\":9223372036854775807}]");
	assert_region(&handshake.regions[0], INT64_MAX, 0, INT64_MAX, HOST_PAGE);
	free(handshake.regions);

	refused("[{\"base_host_virt_addr\":-1,\"size\":2,\"offset\":3}]",
		"region 0: 'base_host_virt_addr' is not an unsigned integer");
	refused("[" BARE ",{\"base_host_virt_addr\":1,\"size\":-4096,\"offset\":3}]",
		"region 1: 'size' is not an unsigned integer");
	refused("[{\"base_host_virt_addr\":1,\"size\":2,\"offset\":-9223372036854775808}]",
		"region 0: 'offset' is not an unsigned integer");
	refused("[{\"base_host_virt_addr\":1,\"size\":2,\"offset\":3,\"page_size\":-4096}]",
		"region 0: 'page_size' is not an unsigned integer");
	refused("[{\"base_host_virt_addr\":1,\"size\":2,\"offset\":3,\"page_size_kib\":-1}]",
		"region 0: 'page_size_kib' is not an unsigned integer");

	/* No address or file offset that a kernel gives out is this large. */
	refused("[{\"base_host_virt_addr\":9223372036854775808,\"size\":2,\"offset\":3}]",
		"the handshake is not valid JSON, at byte …");
	refused("[{\"base_host_virt_addr\":1,\"size\":18446744073709551615,\"offset\":3}]",
		"the handshake is not valid JSON, at byte …");
	refused("[{\"base_host_virt_addr\":1,\"size\":2,\"offset\":99999999999999999999999999}]",
		"the handshake is not valid JSON, at byte …");
}

static void test_wrong_types(void **state)
{
	static const char *const values[] = { "null", "true", "\"4096\"", "4096.0", "4.096e3", "[4096]", "{}" };
	static const char *const keys[] = { "base_host_virt_addr", "size", "offset", "page_size", "page_size_kib" };
	char text[512], expected[128];

	(void)state;
	for (size_t k = 0; k < 5; k++)
		for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
			size_t n = 0;
			for (size_t i = 0; i < 5; i++)
				n += (size_t)snprintf(text + n, sizeof text - n, "%s\"%s\":%s", i ? "," : "[{", keys[i],
						      i == k ? values[v] : "4096");
			snprintf(text + n, sizeof text - n, "}]");
			snprintf(expected, sizeof expected, "region 0: '%s' is not an unsigned integer", keys[k]);
			refused(text, expected);
		}
	refused("[7]", "region 0 is not an object");
	refused("[" BARE ",[]]", "region 1 is not an object");
	refused("[null]", "region 0 is not an object");
}

static void test_missing_members(void **state)
{
	(void)state;
	refused("[{}]", "region 0 lacks 'base_host_virt_addr'");
	refused("[{\"size\":2,\"offset\":3}]", "region 0 lacks 'base_host_virt_addr'");
	refused("[" BARE ",{\"base_host_virt_addr\":1,\"offset\":3}]", "region 1 lacks 'size'");
	refused("{\"mappings\":[{\"base_host_virt_addr\":1,\"size\":2}]}", "region 0 lacks 'offset'");
}

static void test_neither_form(void **state)
{
	static const char neither[] =
		"the handshake is neither an array of regions nor an object with an array 'mappings'";

	(void)state;
	refused("{}", neither);
	refused("{\"mappings\":{}}", neither);
	refused("{\"mappings\":null}", neither);
	refused("{\"regions\":[" BARE "]}", neither);
	refused(BARE, neither);
}

static void test_not_json(void **state)
{
	static const char comma_at_end[] = "[" BARE ",]";
	static const char two_without_comma[] = "[" BARE " " BARE "]";
	static const char *const texts[] = { "",   " ",	  "[",	      "]",	    "{",
					     "[}", "{]",  "nonsense", comma_at_end, two_without_comma,
					     "7",  "[,]", "[01]",     "[\"\xff\"]", "['a']",
					     "[\"" };

	(void)state;
	for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
		refused(texts[i], "the handshake is not valid JSON, at byte …");
}

/* A reader that takes the first or the last of two sizes is a reader that can be made to disagree with another one. */
static void test_duplicate_keys(void **state)
{
	(void)state;
	refused("[{\"base_host_virt_addr\":1,\"size\":2,\"size\":2,\"offset\":3}]",
		"the handshake is not valid JSON, at byte …");
	refused("{\"mappings\":[" BARE "],\"mappings\":[]}", "the handshake is not valid JSON, at byte …");
}

static void test_trailing_bytes(void **state)
{
	static const char *const texts[] = { "[" BARE "]x", "[" BARE "][" BARE "]", "[" BARE "] ]",
					     "{\"mappings\":[" BARE "]}{}", "[]," };

	(void)state;
	for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
		assert_int_equal(scan_all(texts[i]), HANDSHAKE_MALFORMED);
		refused(texts[i], "the handshake is not valid JSON, at byte …");
	}
	/* A zero byte too: some peers send the one that ends a C string. */
	struct handshake_scan scan = { 0 };
	assert_int_equal(handshake_scan(&scan, "[" BARE "]", sizeof "[" BARE "]"), HANDSHAKE_MALFORMED);
	assert_refused("[" BARE "]", sizeof "[" BARE "]", "the handshake is not valid JSON, at byte …");
}

static char *many_regions(size_t count, const char *before, const char *after)
{
	char *text = malloc(count * sizeof BARE + strlen(before) + strlen(after) + 8), *p = text;

	assert_non_null(text);
	p = stpcpy(p, before);
	for (size_t i = 0; i < count; i++) {
		p = stpcpy(p, i ? "," : "");
		p = stpcpy(p, BARE);
	}
	stpcpy(p, after);
	return text;
}

static void test_number_of_regions(void **state)
{
	(void)state;
	refused("[]", "the handshake names no region");
	refused("{\"mappings\":[]}", "the handshake names no region");

	char *most = many_regions(REGIONS_MAX, "[", "]"),
	     *one_more = many_regions(REGIONS_MAX + 1, "{\"mappings\":[", "]}");
	struct handshake handshake = parsed(most);
	assert_int_equal(handshake.region_count, REGIONS_MAX);
	assert_region(&handshake.regions[REGIONS_MAX - 1], 1, 2, 3, HOST_PAGE);
	refused(one_more, "the handshake names 1025 regions; at most 1024 are served");
	free(handshake.regions);
	free(most);
	free(one_more);
}

/* Wherever the stream is cut: incomplete until the last bracket is there, complete with it. */
static void assert_complete_at_every_cut(const char *text)
{
	size_t size = strlen(text);

	for (size_t cut = 0; cut <= size; cut++) {
		struct handshake_scan scan = { 0 };
		assert_int_equal(handshake_scan(&scan, text, cut),
				 cut == size ? HANDSHAKE_COMPLETE : HANDSHAKE_INCOMPLETE);
		assert_int_equal(handshake_scan(&scan, text + cut, size - cut), HANDSHAKE_COMPLETE);
	}
	struct handshake_scan scan = { 0 };
	for (size_t i = 0; i < size; i++)
		assert_int_equal(handshake_scan(&scan, text + i, 1),
				 i + 1 == size ? HANDSHAKE_COMPLETE : HANDSHAKE_INCOMPLETE);
	/* White space may follow, and nothing else. */
	assert_int_equal(handshake_scan(&scan, " \r\n\t", 4), HANDSHAKE_COMPLETE);
	assert_int_equal(handshake_scan(&scan, "", 0), HANDSHAKE_COMPLETE);
	assert_int_equal(handshake_scan(&scan, "1", 1), HANDSHAKE_MALFORMED);
}

static void test_scan_in_pieces(void **state)
{
	(void)state;
	assert_complete_at_every_cut("[" ONE "," TWO "]");
	assert_complete_at_every_cut("{\"mappings\":[" BARE "]}");
	assert_complete_at_every_cut("  \n[]");
	assert_complete_at_every_cut("{}");
}

static void test_scan_strings(void **state)
{
	(void)state;
	assert_complete_at_every_cut("[\"]\"]");
	assert_complete_at_every_cut("[\"}]}]\",{\"[\":\"{{{[[[[[[[[[[[[[[[[[[[[\"}]");
	assert_complete_at_every_cut("[\"\\\"]\"]");	     /* an escaped quote does not end it */
	assert_complete_at_every_cut("[\"\\\\\"]");	     /* an escaped backslash escapes nothing */
	assert_complete_at_every_cut("[\"\\\\\\\"]\\\\\"]"); /* three, a quote, and two */
	assert_complete_at_every_cut("[\" \\u005d\\\\u\"]");
	assert_int_equal(scan_all("[\"]"), HANDSHAKE_INCOMPLETE);
	assert_int_equal(scan_all("[\"\\\"]"), HANDSHAKE_INCOMPLETE);
}

static void test_scan_depth(void **state)
{
	char text[65] = "";

	(void)state;
	for (unsigned depth = 1; depth <= 32; depth++) {
		memset(text, depth % 2 ? '[' : '{', depth);
		text[depth] = 0;
		assert_int_equal(scan_all(text), depth <= 8 ? HANDSHAKE_INCOMPLETE : HANDSHAKE_MALFORMED);
	}
	assert_complete_at_every_cut("[[[[[[[[]]]]]]]]");
	/* Wide is not deep. */
	assert_complete_at_every_cut("[[],[],[[]],[],[],[[],[]],{},{},[],[],[],[]]");
	assert_int_equal(scan_all("[[[[[[[[[]]]]]]]]]"), HANDSHAKE_MALFORMED);
}

static void test_scan_wrong_beginnings(void **state)
{
	static const char *const texts[] = { "]", "}", "\"a\"", "7", "null", "  x", ",[", ":", "\\", "\xef\xbb\xbf[]" };

	(void)state;
	for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
		assert_int_equal(scan_all(texts[i]), HANDSHAKE_MALFORMED);
	assert_int_equal(scan_all(""), HANDSHAKE_INCOMPLETE);
	assert_int_equal(scan_all(" \n"), HANDSHAKE_INCOMPLETE);
}

/* What the JSON library holds; the size of each block stands in front of it. */
static size_t held, held_most;

static void *counting_malloc(size_t size)
{
	max_align_t *block = malloc(sizeof *block + size);

	assert_non_null(block);
	*(size_t *)block = size;
	held += size;
	if (held > held_most)
		held_most = held;
	return block + 1;
}

static void counting_free(void *data)
{
	max_align_t *block = (max_align_t *)data - 1;

	if (!data)
		return;
	held -= *(size_t *)block;
	free(block);
}

/* "[{},{},…{}]" of COUNT values. The caller frees. */
static char *many_values(size_t count)
{
	char *text = malloc(3 * count + 2);

	assert_non_null(text);
	for (size_t i = 0; i < count; i++)
		memcpy(text + 3 * i, ",{}", 3);
	text[0] = '[';
	strcpy(text + 3 * count, "]");
	return text;
}

/* Three bytes of text become 200 of the parser's: a text of 1 MiB must not become 80. */
static void memory_for_a_handshake_is_bounded(void **state)
{
	const size_t counts[] = { HANDSHAKE_MAX_BYTES / 3 - 1, HANDSHAKE_MAX_VALUES, HANDSHAKE_MAX_VALUES / 2 };
	json_malloc_t old_malloc;
	json_free_t old_free;

	(void)state;
	json_get_alloc_funcs(&old_malloc, &old_free);
	json_set_alloc_funcs(counting_malloc, counting_free);
	for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
		char *text = many_values(counts[i]);

		held_most = 0;
		if (2 * counts[i] > HANDSHAKE_MAX_VALUES) {
			refused(text,
				"the handshake holds more than 17408 values; 1024 regions, which is the most that are served, need "
				"fewer");
			assert_int_equal(held_most, 0);
		} else {
			refused(text, "the handshake names 8704 regions; at most 1024 are served");
			assert_in_range(held_most, 1, 4 << 20);
		}
		assert_int_equal(held, 0);
		free(text);
	}
	json_set_alloc_funcs(old_malloc, old_free);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_firecracker),	  cmocka_unit_test(test_hypeman),
		cmocka_unit_test(test_page_size),	  cmocka_unit_test(test_unknown_keys),
		cmocka_unit_test(test_white_space),	  cmocka_unit_test(test_numbers),
		cmocka_unit_test(test_wrong_types),	  cmocka_unit_test(test_missing_members),
		cmocka_unit_test(test_neither_form),	  cmocka_unit_test(test_not_json),
		cmocka_unit_test(test_duplicate_keys),	  cmocka_unit_test(test_trailing_bytes),
		cmocka_unit_test(test_number_of_regions), cmocka_unit_test(memory_for_a_handshake_is_bounded),
		cmocka_unit_test(test_scan_in_pieces),	  cmocka_unit_test(test_scan_strings),
		cmocka_unit_test(test_scan_depth),	  cmocka_unit_test(test_scan_wrong_beginnings),
	};

	return cmocka_run_group_tests_name("handshake", tests, NULL, NULL);
}
