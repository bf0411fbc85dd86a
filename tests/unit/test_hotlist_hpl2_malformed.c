/* HPL2 that is wrong in one place is refused with that place; nothing of it is used, and nothing is allocated for what it only claims. */
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "unit/hpl2_helpers.h"

static void refuse_file(const struct parts *parts, const char *expected)
{
	size_t size;
	_cleanup_free_ uint8_t *file = file_of(parts, &size);

	assert_malformed(file, size, expected);
}

/* A body of four pages, 0 to 3 of region 0. */
static const uint8_t four[] = { 0, 0, 0, 0 };

static void refuse_body(const void *body, size_t size, uint32_t pages, uint16_t flags, const char *expected)
{
	refuse_file(&(struct parts){ .flags = flags, .pages = pages, .body = body, .body_size = size }, expected);
}

#define BODY(...) (const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ })
#define ONES	  0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff

static void test_header(void **state)
{
	size_t size;
	_cleanup_free_ uint8_t *file =
		file_of(&(struct parts){ .pages = 4, .body = four, .body_size = sizeof four }, &size);

	(void)state;
	hotlist_free(decode(file, size));
	assert_malformed(file, 5, "truncated: the file ends at byte 5, within its header of 24 bytes");
	assert_malformed(file, 23, "truncated: the file ends at byte 23, within its header of 24 bytes");
	assert_malformed("HPL3\0\0", 6,
			 "bad magic at byte 0: \"HPL3\", a format that this version of faultline cannot read");
	refuse_file(&(struct parts){ .version = 2, .body = four, .body_size = 4, .pages = 4 },
		    "bad version at byte 4: 2; this faultline reads version 1 of hpl2");
	refuse_file(&(struct parts){ .flags = 4, .body = four, .body_size = 4, .pages = 4 },
		    "unknown flags at byte 6: 0x0004; this faultline knows 0x0003");
	refuse_file(&(struct parts){ .flags = 0x8000, .body = four, .body_size = 4, .pages = 4 },
		    "unknown flags at byte 6: 0x8000; this faultline knows 0x0003");
	refuse_file(&(struct parts){ .origin = "x", .origin_size = 1, .body = four, .body_size = 4, .pages = 4 },
		    "bad size of the origin at byte 8: 1 bytes, and the flags say that there is none");
}

static void test_size_of_the_file(void **state)
{
	size_t size;
	_cleanup_free_ uint8_t *file =
		file_of(&(struct parts){ .pages = 4, .body = four, .body_size = sizeof four }, &size);
	uint8_t longer[128];

	(void)state;
	assert_int_equal(size, 43);
	assert_malformed(file, 42,
			 "truncated: the file ends at byte 42, and its header says at bytes 8 and 20 that it has 43");
	memcpy(longer, file, size);
	longer[size] = 0;
	assert_malformed(longer, size + 1, "1 trailing bytes at byte 43, after the end that the header tells");

	put_u32(file + AT_PACKED_SIZE, UINT32_MAX);
	put_u32(file + AT_ORIGIN_SIZE, UINT32_MAX);
	file[AT_FLAGS] = 1;
	seal(file, size);
	assert_malformed(file, size,
			 "truncated: the file ends at byte 43, and its header says at bytes 8 and 20 that it has 8589934618");
}

static void test_checksum(void **state)
{
	size_t size;
	_cleanup_free_ uint8_t *file =
		file_of(&(struct parts){ .pages = 4, .body = four, .body_size = sizeof four }, &size);
	char expected[120];

	(void)state;
	uint32_t right = get_u32(file + size - 4);
	file[size - 1] ^= 0x80;
	snprintf(expected, sizeof expected,
		 "bad checksum at byte 39: %08x, and that of the bytes before is %08x: the file is damaged",
		 right ^ 0x80000000, right);
	assert_malformed(file, size, expected);
}

static void test_claims(void **state)
{
	static uint8_t zeros[1 << 20];

	(void)state;
	refuse_body(four, 4, 5, 0, "bad count at byte 12: 5 pages do not fit in the 4 bytes that they are inflated");
	refuse_body(four, 4, 1, 2, "bad count at byte 12: 1 pages do not fit in the 4 bytes that they are inflated");
	refuse_body(four, 4, UINT32_MAX, 0, "bad count at byte 12: 4294967295 pages, and a list has at most 67108864");
	refuse_file(&(struct parts){ .pages = 4, .body = four, .body_size = 4, .body_size_said = 268435457 },
		    "bad size of the pages at byte 16: 268435457 bytes inflated, and at most 268435456 are read");
	refuse_file(&(struct parts){ .pages = 4, .body = four, .body_size = 4, .body_size_said = 65536 + 15 * 16 + 1 },
		    "bad size of the pages at byte 16: 65777 bytes out of 15 compressed ones are more than 16 times as many");
	refuse_file(&(struct parts){ .pages = 4, .body = four, .body_size = 4, .body_size_said = 5 },
		    "bad size of the pages at byte 16: they were to be 5 bytes, and are 4");
	refuse_file(&(struct parts){ .pages = 4, .body = zeros, .body_size = 200000, .body_size_said = 4 },
		    "bad size of the pages at byte 16: they were to be 4 bytes, and the zlib stream at byte 24 goes on after that");
}

/* However much a file claims, no more is allocated than its own size allows: two megabytes here. */
static void test_bombs(void **state)
{
	enum { BODY_SIZE = 64 << 20 };
	uint8_t *zeros = calloc(1, BODY_SIZE);
	char expected[160];
	size_t size;

	(void)state;
	/* The body as it is said to be: a thousand times the file. */
	_cleanup_free_ uint8_t *honest =
		file_of(&(struct parts){ .pages = BODY_SIZE, .body = zeros, .body_size = BODY_SIZE }, &size);
	snprintf(expected, sizeof expected,
		 "bad size of the pages at byte 16: 67108864 bytes out of %u compressed ones are more than 16 times as many",
		 get_u32(honest + AT_PACKED_SIZE));
	assert_malformed(honest, size, expected);

	/* And one that lies about it: no more of it is inflated than the window holds. */
	_cleanup_free_ uint8_t *lying =
		file_of(&(struct parts){ .pages = 65536, .body = zeros, .body_size = BODY_SIZE, .body_size_said = 65536 },
			&size);
	free(zeros);
	pid_t child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		/* A sanitizer's shadow memory does not fit under a limit. */
		const struct rlimit limit = { .rlim_cur = 32 << 20, .rlim_max = 32 << 20 };
		const char *sanitizer = getenv("FAULTLINE_SANITIZE");
		if ((!sanitizer || !*sanitizer) && setrlimit(RLIMIT_DATA, &limit) < 0)
			_exit(2);
		struct hotlist *list;
		_exit(hotlist_decode(lying, size, &list, NULL) == -EBADMSG ? 0 : 3);
	}
	int status;
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	assert_malformed(lying, size,
			 "bad size of the pages at byte 16: they were to be 65536 bytes, and the zlib stream at byte 24 goes on "
			 "after that");
}

static void test_entries(void **state)
{
	(void)state;
	refuse_body(BODY(0, 0, 0, 0x80), 4, 0,
		    "the inflated pages end at byte 4, within or before entry 3 (place) at byte 3");
	refuse_body(BODY(0, 1, 1, 0x80), 3, 0,
		    "the inflated pages end at byte 4, within or before entry 2 (place) at byte 3");
	refuse_body(BODY(0, 0, 1, 0x80), 3, 0,
		    "the inflated pages end at byte 4, within or before entry 2 (region) at byte 3");
	refuse_body(BODY(0, ONES, 2), 2, 0, "varint over 64 bits in entry 1 (place) at byte 1 of the inflated pages");
	refuse_body(BODY(1, ONES, 2), 1, 0, "varint over 64 bits in entry 0 (region) at byte 1 of the inflated pages");
	/* To a page before the first, and beyond the last. */
	refuse_body(BODY(0, 6), 2, 0,
		    "bad place in entry 1 at byte 1 of the inflated pages: it leads out of the 64 bits of an offset");
	refuse_body(BODY(0, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40), 3, 0,
		    "bad place in entry 2 at byte 2 of the inflated pages: it leads out of the 64 bits of an offset");
	refuse_body(BODY(0, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1), 2, 0,
		    "bad place in entry 1 at byte 1 of the inflated pages: it leads out of the 64 bits of an offset");
	refuse_body(BODY(0, 0, 6), 3, 0, "duplicate: entry 2 at byte 2 of the inflated pages is the page of entry 0");
	refuse_body(BODY(0, 1, 1, 1, 0), 3, 0,
		    "duplicate: entry 2 at byte 3 of the inflated pages is the page of entry 0");
	refuse_body(BODY(0, 0, 0), 2, 0, "trailing bytes at byte 2 of the inflated pages, after the last of them");
	refuse_body(BODY(0), 0, 0, "trailing bytes at byte 0 of the inflated pages, after the last of them");
}

static void test_touches(void **state)
{
	(void)state;
	hotlist_free(({
		size_t size;
		_cleanup_free_ uint8_t *file =
			file_of(&(struct parts){ .flags = 2, .pages = 1, .body = "\0\0\0\1\0\xc", .body_size = 6 },
				&size);
		decode(file, size);
	}));
	refuse_body(BODY(0, 0, 0, 1, 0, 5), 1, 2, "bad kind in entry 0 at byte 5 of the inflated pages: 5");
	refuse_body(BODY(0, 0, 0, 1, 0, 7), 1, 2, "bad kind in entry 0 at byte 5 of the inflated pages: 7");
	refuse_body(BODY(0, 0, 0, 1, 0, 0x80, 0x80, 0x40), 1, 2,
		    "bad vCPU in entry 0 at byte 5 of the inflated pages: 1048576, and at most 1048575 is known");
	refuse_body(BODY(0, 0, 0, 0x80, 0x80, 0x80, 0x80, 0x10, 0, 0), 1, 2,
		    "bad times seen in entry 0 at byte 3 of the inflated pages: 4294967296, and at most 4294967295 is known");
	refuse_body(BODY(0, 0, 0, 1, 0x80, 0x80, 0x80, 0x80, 0x10, 0), 1, 2,
		    "bad spread in entry 0 at byte 4 of the inflated pages: 4294967296, and at most 4294967295 is known");
	refuse_body(BODY(0, ONES, 2, 0, 1, 0, 0), 1, 2,
		    "varint over 64 bits in entry 0 (raw time) at byte 1 of the inflated pages");
	refuse_body(BODY(0, 0, ONES, 2, 1, 0, 0), 1, 2,
		    "varint over 64 bits in entry 0 (corrected time) at byte 2 of the inflated pages");
	refuse_body(BODY(0, 0, 0x80, 0x80, 0x80, 0x80), 1, 2,
		    "the inflated pages end at byte 6, within or before entry 0 (corrected time) at byte 2");
	refuse_body(BODY(0, 0, 0, 0x80, 0x80, 0x80), 1, 2,
		    "the inflated pages end at byte 6, within or before entry 0 (times seen) at byte 3");
	refuse_body(BODY(0, 0, 0, 0, 0x80, 0x80), 1, 2,
		    "the inflated pages end at byte 6, within or before entry 0 (spread) at byte 4");
	refuse_body(BODY(0, 0, 0, 0, 0, 0x80), 1, 2,
		    "the inflated pages end at byte 6, within or before entry 0 (vCPU) at byte 5");
}

static void test_compression(void **state)
{
	size_t size;
	_cleanup_free_ uint8_t *file =
		file_of(&(struct parts){ .pages = 4, .body = four, .body_size = sizeof four }, &size);
	uint8_t bad[64];

	(void)state;
	memcpy(bad, file, size);
	bad[24] = 0x79;
	seal(bad, size);
	assert_malformed(bad, size, "the compressed pages are damaged at byte 26: incorrect header check");
	memcpy(bad, file, size);
	bad[size - 5] ^= 1;
	seal(bad, size);
	assert_malformed(bad, size, "the compressed pages are damaged at byte 39: incorrect data check");
	/* The stream cut off within what the header gives it. */
	put_u32(file + AT_PACKED_SIZE, get_u32(file + AT_PACKED_SIZE) - 2);
	seal(file, size - 2);
	assert_malformed(file, size - 2, "the compressed pages are damaged at byte 37: the zlib stream is cut short");
	refuse_file(&(struct parts){ .pages = 4, .body = four, .body_size = 4, .after_stream = 3 },
		    "3 trailing bytes at byte 39, after the end of the zlib stream");
}

/* ---- the origin ---- */

static void refuse_origin(const void *origin, size_t size, const char *expected)
{
	refuse_file(&(struct parts){ .flags = 1,
				     .origin = origin,
				     .origin_size = size,
				     .pages = 4,
				     .body = four,
				     .body_size = 4 },
		    expected);
}

/* Nothing known: page size, runs, lost, window, its end, clock, two agreements, tier, image, identity, regions. */
#define NOTHING 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
#define EIGHT	0, 0, 0, 0, 0, 0, 0, 0

static void test_origin(void **state)
{
	static const char *const fields[] = {
		"page size",
		"number of runs",
		"number of lost events",
		"length of the window",
		"end of the window",
		"clock",
		"agreement of the raw times",
		"agreement of the corrected times",
		"length of the tier",
		"size of the image",
		"mark whether there is an identity",
		"number of regions",
	};
	const uint8_t nothing[] = { NOTHING };
	size_t size;
	char expected[160];

	(void)state;
	_cleanup_free_ uint8_t *file = file_of(&(struct parts){ .flags = 1,
								.origin = nothing,
								.origin_size = sizeof nothing,
								.pages = 4,
								.body = four,
								.body_size = 4 },
					       &size);
	_cleanup_hotlist_ struct hotlist *list = decode(file, size);
	assert_same_origin(list->origin, &(struct hotlist_origin){ .runs = 0 });

	/* Cut off before each of its fields, and each of them over 64 bits. */
	assert_int_equal(sizeof fields / sizeof *fields, sizeof nothing);
	for (size_t i = 0; i < sizeof nothing; i++) {
		const uint8_t ones[] = { ONES, 2 };
		uint8_t origin[32] = { 0 };

		snprintf(expected, sizeof expected, "the origin ends at byte %zu, within or before its %s at byte %zu",
			 24 + i, fields[i], 24 + i);
		refuse_origin(nothing, i, expected);
		memcpy(origin + i, ones, sizeof ones);
		snprintf(expected, sizeof expected, "varint over 64 bits in the origin (%s) at byte %zu", fields[i],
			 24 + i);
		refuse_origin(origin, i + sizeof ones, expected);
	}
	refuse_origin(BODY(NOTHING, 0), "trailing bytes at byte 36, after the origin, which was to end at byte 37");
}

static void test_values_of_the_origin(void **state)
{
	(void)state;
	refuse_origin(BODY(1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), "bad page size in the origin, which begins at byte 24");
	refuse_origin(BODY(0, 0x80, 0x80, 0x80, 0x80, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
		      "bad number of runs in the origin at byte 25: 4294967296, and at most 4294967295 is known");
	refuse_origin(BODY(0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0),
		      "bad end of the window in the origin at byte 28: 5, and at most 4 is known");
	refuse_origin(BODY(0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0),
		      "bad clock in the origin at byte 29: 3, and at most 2 is known");
	refuse_origin(BODY(0, 0, 0, 0, 0, 0, 0x81, 0x89, 0x7a, 0, 0, 0, 0, 0),
		      "bad agreement of the raw times in the origin at byte 30: 2000001, and at most 2000000 is known");
	refuse_origin(BODY(0, 0, 0, 0, 0, 0, 0, 0x81, 0x89, 0x7a, 0, 0, 0, 0),
		      "bad agreement of the corrected times in the origin at byte 31: 2000001, and at most 2000000 is known");
	refuse_origin(BODY(EIGHT, 16, 0, 0, 0),
		      "bad length of the tier in the origin at byte 32: 16, and at most 15 is known");
	refuse_origin(BODY(EIGHT, 4, 'l', 'o', 'o'), "the origin ends at byte 36, within or before its tier at byte 33");
	refuse_origin(BODY(EIGHT, 1, '"', 0, 0, 0), "bad tier in the origin, which begins at byte 24");
	refuse_origin(BODY(EIGHT, 2, 'a', 0, 0, 0, 0), "bad tier in the origin at byte 33: it holds a NUL");
	refuse_origin(BODY(EIGHT, 0, 9, 2, 0),
		      "bad mark whether there is an identity in the origin at byte 34: 2, and at most 1 is known");
	refuse_origin(BODY(EIGHT, 0, 9, 1, 1, 2, 3),
		      "the origin ends at byte 38, within or before its identity of the image at byte 35");
	refuse_origin(BODY(EIGHT, 0, 9, 1, EIGHT, EIGHT, EIGHT, EIGHT, 0),
		      "bad identity of the image in the origin at byte 33: all zeros stand for none");
	refuse_origin(BODY(EIGHT, 0, 0, 0, 2, 0, 0, 0, 0, 0),
		      "bad number of regions in the origin: 2 do not fit in the 5 bytes from byte 36 on");
	refuse_origin(BODY(EIGHT, 0, 0, 0, 0x81, 8),
		      "bad number of regions in the origin at byte 35: 1025, and at most 1024 is known");
	refuse_origin(BODY(EIGHT, 0, 0, 0, 1, 0, 0, 0x80),
		      "the origin ends at byte 39, within or before its page size of a region at byte 38");
	refuse_origin(BODY(EIGHT, 0, 0, 0, 1, 0, 0, 1),
		      "bad page size of a region in the origin, which begins at byte 24");
	refuse_origin(BODY(EIGHT, 0, 0, 0, 1, ONES, 1, 1, 0),
		      "bad size of a region in the origin, which begins at byte 24");
}

/* ---- as a whole ---- */

static void test_cut_off_anywhere(void **state)
{
	_cleanup_hotlist_ struct hotlist *list = full_list();
	_cleanup_free_ void *data = NULL;
	size_t size;

	(void)state;
	assert_int_equal(hotlist_encode(list, HOTLIST_HPL2, &data, &size, NULL), 0);
	for (size_t cut = 0; cut < size; cut++) {
		struct hotlist *got = NULL;
		struct error err = { .code = "" };
		_cleanup_free_ void *part = malloc(cut ?: 1);

		memcpy(part, data, cut);
		assert_int_equal(hotlist_decode(part, cut, &got, &err), -EBADMSG);
		assert_null(got);
		assert_contains(err.message, cut < 4 ? "shorter than the magic" : "truncated");
	}
}

static void test_any_bit_flipped(void **state)
{
	_cleanup_hotlist_ struct hotlist *list = full_list();
	_cleanup_free_ uint8_t *data = NULL;
	size_t size;

	(void)state;
	assert_int_equal(hotlist_encode(list, HOTLIST_HPL2, (void **)&data, &size, NULL), 0);
	for (size_t bit = 0; bit < size * 8; bit++) {
		struct hotlist *got = NULL;
		struct error err = { .code = "" };

		data[bit / 8] ^= (uint8_t)(1u << bit % 8);
		assert_int_equal(hotlist_decode(data, size, &got, &err), -EBADMSG);
		assert_null(got);
		assert_string_equal(err.code, "bad_hot_list");
		assert_contains(err.message, "at byte ");
		data[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_header),
		cmocka_unit_test(test_size_of_the_file),
		cmocka_unit_test(test_checksum),
		cmocka_unit_test(test_claims),
		cmocka_unit_test(test_bombs),
		cmocka_unit_test(test_entries),
		cmocka_unit_test(test_touches),
		cmocka_unit_test(test_compression),
		cmocka_unit_test(test_origin),
		cmocka_unit_test(test_values_of_the_origin),
		cmocka_unit_test(test_cut_off_anywhere),
		cmocka_unit_test(test_any_bit_flipped),
	};

	return cmocka_run_group_tests_name("hotlist/hpl2_malformed", tests, NULL, NULL);
}
