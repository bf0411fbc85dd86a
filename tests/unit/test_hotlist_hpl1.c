/* HPL1 to the byte: vectors, every malformed case with its offset, cuts at every byte, random round trips, bounded memory. */
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/varint.h"
#include "unit/hotlist_helpers.h"

/* gcc defines a macro, clang has a feature. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED
#endif
#endif

#define BYTES(literal) (literal), sizeof(literal) - 1

/* {(0,0), (0,4096), (2,1 MiB)} */
static const char three_pages[] = "HPL1\x03\x00\x00\x00\x80\x20\x02\x80\x80\x40";
#define THREE_PAGES_SIZE (sizeof three_pages - 1)

static void assert_encodes_to(const struct hotlist *list, const char *expected, size_t expected_size)
{
	void *data;
	size_t size;
	struct error err;

	assert_int_equal(hotlist_encode(list, HOTLIST_HPL1, &data, &size, &err), 0);
	assert_int_equal(size, expected_size);
	assert_memory_equal(data, expected, size);
	free(data);
}

static void test_empty_list(void **state)
{
	(void)state;
	_cleanup_hotlist_ struct hotlist *list = hotlist_new();
	assert_encodes_to(list, BYTES("HPL1\x00"));

	_cleanup_hotlist_ struct hotlist *decoded = decode(BYTES("HPL1\x00"));
	assert_int_equal(decoded->count, 0);
	assert_int_equal(decoded->format, HOTLIST_HPL1);
}

static void test_three_pages(void **state)
{
	(void)state;
	_cleanup_hotlist_ struct hotlist *list = LIST({ 0, 0 }, { 0, 4096 }, { 2, 1 << 20 });
	assert_encodes_to(list, three_pages, THREE_PAGES_SIZE);

	_cleanup_hotlist_ struct hotlist *decoded = decode(three_pages, THREE_PAGES_SIZE);
	assert_same_pages(list, decoded);
}

static void test_writing_sorts_and_drops_duplicates(void **state)
{
	(void)state;
	_cleanup_hotlist_ struct hotlist *list =
		LIST({ 2, 1 << 20 }, { 0, 4096 }, { 0, 0 }, { 0, 4096 }, { 2, 1 << 20 });
	assert_encodes_to(list, three_pages, THREE_PAGES_SIZE);

	/* The list itself keeps its order. */
	assert_int_equal(list->count, 5);
	assert_int_equal(list->pages[0].region, 2);
}

static void test_reading_accepts_any_order_and_duplicates(void **state)
{
	(void)state;
	_cleanup_hotlist_ struct hotlist *expected = LIST({ 1, 8192 }, { 0, 0 }, { 1, 8192 });
	_cleanup_hotlist_ struct hotlist *decoded = decode(BYTES("HPL1\x03\x01\x80\x40\x00\x00\x01\x80\x40"));
	assert_same_pages(expected, decoded);
}

static void test_largest_numbers(void **state)
{
	(void)state;
	_cleanup_hotlist_ struct hotlist *list = LIST({ UINT64_MAX, UINT64_MAX });
	static const char bytes[] = "HPL1\x01"
				    "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
				    "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01";
	assert_encodes_to(list, BYTES(bytes));
	_cleanup_hotlist_ struct hotlist *decoded = decode(BYTES(bytes));
	assert_same_pages(list, decoded);
}

/* As all LEB128 readers do: 0 in three bytes, 1 in ten. */
static void test_padded_varints_are_accepted(void **state)
{
	(void)state;
	_cleanup_hotlist_ struct hotlist *expected = LIST({ 0, 1 });
	_cleanup_hotlist_ struct hotlist *decoded =
		decode(BYTES("HPL1\x81\x00\x80\x80\x00\x81\x80\x80\x80\x80\x80\x80\x80\x80\x00"));
	assert_same_pages(expected, decoded);
}

static void test_malformed(void **state)
{
#define OVER	"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"     /* 2^65 - 1 */
#define LONG	"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00" /* 0, in eleven bytes */
#define NO_LIST ". This is no hot list: neither \"HPL1\", nor a JSON object, nor CSV with the columns region and offset"
	static const struct {
		const char *data;
		size_t size;
		const char *message;
	} cases[] = {
		{ BYTES(""), "shorter than the magic: the file ends at byte 0, within the 4 bytes \"HPL1\"" },
		{ BYTES("HPL"), "shorter than the magic: the file ends at byte 3, within the 4 bytes \"HPL1\"" },
		{ BYTES("XXXX\x00"), "bad magic at byte 0: 58 58 58 58" NO_LIST },
		{ BYTES("hpl1\x00"), "bad magic at byte 0: 68 70 6c 31" NO_LIST },
		{ BYTES("\0\0\0\0"), "bad magic at byte 0: 00 00 00 00" NO_LIST },
		{ BYTES("HPL3\x00"),
		  "bad magic at byte 0: \"HPL3\", a format that this version of faultline cannot read" },
		{ BYTES("HPL1"), "bad count at byte 4: the file ends at byte 4, within it" },
		{ BYTES("HPL1\x80\x80"), "bad count at byte 4: the file ends at byte 6, within it" },
		{ BYTES("HPL1" OVER), "bad count at byte 4: varint over 64 bits" },
		{ BYTES("HPL1" LONG), "bad count at byte 4: varint over 64 bits" },
		{ BYTES("HPL1\x02\x00\x00"), "bad count at byte 4: 2 entries do not fit in the 2 bytes that follow; "
					     "truncated in entry 1 (region) at byte 7: the file ends at byte 7" },
		{ BYTES("HPL1\x01\x80\x80"), "truncated in entry 0 (region) at byte 5: the file ends at byte 7" },
		{ BYTES("HPL1\x01\x00\x80\x80"), "truncated in entry 0 (offset) at byte 6: the file ends at byte 8" },
		{ BYTES("HPL1\x02\x00\x00\x81\x01"), "truncated in entry 1 (offset) at byte 9: the file ends at byte 9" },
		{ BYTES("HPL1\x01" OVER "\x00"), "varint over 64 bits in entry 0 (region) at byte 5" },
		{ BYTES("HPL1\x01" LONG "\x00"), "varint over 64 bits in entry 0 (region) at byte 5" },
		{ BYTES("HPL1\x02\x00\x00\x01" OVER), "varint over 64 bits in entry 1 (offset) at byte 8" },
		{ BYTES("HPL1\x00\x00"), "1 trailing byte at byte 5, after the last of 0 entries" },
		{ BYTES("HPL1\x01\x00\x00HPL1\x00"), "5 trailing bytes at byte 7, after the last of 1 entries" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
		assert_malformed(cases[i].data, cases[i].size, cases[i].message);
}

/* Every cut of a valid list is an error which names the field where it was cut. */
static void test_cut_at_every_byte(void **state)
{
	static const struct {
		const char *field;
		size_t at, end;
	} fields[] = {
		{ "bad count at byte 4", 4, 5 },
		{ "truncated in entry 0 (region) at byte 5:", 5, 6 },
		{ "truncated in entry 0 (offset) at byte 6:", 6, 7 },
		{ "truncated in entry 1 (region) at byte 7:", 7, 8 },
		{ "truncated in entry 1 (offset) at byte 8:", 8, 10 },
		{ "truncated in entry 2 (region) at byte 10:", 10, 11 },
		{ "truncated in entry 2 (offset) at byte 11:", 11, 14 },
	};
	char ends[64];

	(void)state;
	for (size_t size = 0; size < THREE_PAGES_SIZE; size++) {
		struct hotlist *list = NULL;
		struct error err;

		assert_int_equal(hotlist_decode(three_pages, size, &list, &err), -EBADMSG);
		assert_null(list);
		snprintf(ends, sizeof ends, "the file ends at byte %zu", size);
		assert_contains(err.message, ends);
		if (size < 4)
			assert_contains(err.message, "shorter than the magic");
		for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
			if (size >= fields[i].at && size < fields[i].end)
				assert_contains(err.message, fields[i].field);
	}
}

static uint64_t random_number(struct random *random)
{
	return random_u64(random) >> random_below(random, 64);
}

static void test_random_round_trips(void **state)
{
	struct random random = { 1 };

	(void)state;
	for (int round = 0; round < 300; round++) {
		_cleanup_hotlist_ struct hotlist *list = hotlist_new();
		size_t count = random_below(&random, 300);

		for (size_t i = 0; i < count; i++) {
			assert_int_equal(hotlist_add(list, random_number(&random), random_number(&random)), 0);
			if (random_below(&random, 10) == 0) {
				const struct hot_page *again = &list->pages[random_below(&random, list->count)];
				assert_int_equal(hotlist_add(list, again->region, again->offset), 0);
			}
		}

		void *data;
		size_t size;
		struct error err;
		assert_int_equal(hotlist_encode(list, HOTLIST_HPL1, &data, &size, &err), 0);
		_cleanup_hotlist_ struct hotlist *decoded = decode(data, size);
		hotlist_sort(list);
		assert_same_pages(list, decoded);
		/* What was decoded encodes to the same bytes. */
		assert_encodes_to(decoded, data, size);
		free(data);
	}
}

static void test_varint_boundaries(void **state)
{
	(void)state;
	for (int bit = 0; bit <= 64; bit++) {
		for (int less = 0; less < 2; less++) {
			uint64_t n = (bit == 64 ? 0 : 1ull << bit) - (uint64_t)less, decoded = 0;
			uint8_t bytes[UVARINT_MAX_BYTES];
			size_t length = uvarint_encode(n, bytes);
			size_t bits = n ? 64 - (size_t)__builtin_clzll(n) : 1;

			assert_int_equal(length, (bits + 6) / 7);
			assert_int_equal(uvarint_decode(bytes, length, &decoded), length);
			assert_int_equal(decoded, n);
			assert_int_equal(uvarint_decode(bytes, length - 1, &decoded), -ENODATA);
		}
	}
}

static void put_count(char *list, size_t *size, uint64_t count)
{
	memcpy(list, "HPL1", 4);
	*size = 4 + uvarint_encode(count, (uint8_t *)list + 4);
}

static void test_count_that_the_file_cannot_hold(void **state)
{
	static const uint64_t counts[] = { 11, 1ull << 28, 1ull << 32, 1ull << 60, UINT64_MAX };
	char list[64] = "", expected[200];

	(void)state;
	for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
		size_t size, first;

		put_count(list, &first, counts[i]);
		size = first + 21; /* ten entries of two bytes, and one more byte */
		memset(list + first, 0, 21);
		snprintf(expected, sizeof expected,
			 "bad count at byte 4: %llu entries do not fit in the 21 bytes that follow; truncated in entry 10 (offset) at "
			 "byte %zu: the file ends at byte %zu",
			 (unsigned long long)counts[i], size, size);
		assert_malformed(list, size, expected);
	}
}

/* A count alone must not make the reader take memory: in a process that may have only a little more, the answer is the same. */
static void test_count_is_bounded_before_memory_is_taken(void **state)
{
	(void)state;
#ifdef SANITIZED
	print_message("skipped: a sanitizer's shadow memory does not fit under a limit on memory\n");
	skip();
#else
	pid_t child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		const struct rlimit limit = { .rlim_cur = 64 << 20, .rlim_max = 64 << 20 };
		struct hotlist *list;
		char data[32] = "";
		size_t size;

		if (setrlimit(RLIMIT_AS, &limit) < 0)
			_exit(2);
		/* 256 MiB of entries would be refused with -ENOMEM, were they asked for. */
		put_count(data, &size, 1 << 24);
		if (hotlist_decode(data, size + 4, &list, NULL) != -EBADMSG)
			_exit(3);
		put_count(data, &size, 1ull << 60);
		if (hotlist_decode(data, size + 4, &list, NULL) != -EBADMSG)
			_exit(4);
		/* The limit does bite. */
		void *volatile block = malloc(256 << 20);
		_exit(block ? 5 : 0);
	}
	int status;
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
#endif
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_empty_list),
		cmocka_unit_test(test_three_pages),
		cmocka_unit_test(test_writing_sorts_and_drops_duplicates),
		cmocka_unit_test(test_reading_accepts_any_order_and_duplicates),
		cmocka_unit_test(test_largest_numbers),
		cmocka_unit_test(test_padded_varints_are_accepted),
		cmocka_unit_test(test_malformed),
		cmocka_unit_test(test_cut_at_every_byte),
		cmocka_unit_test(test_random_round_trips),
		cmocka_unit_test(test_varint_boundaries),
		cmocka_unit_test(test_count_that_the_file_cannot_hold),
		cmocka_unit_test(test_count_is_bounded_before_memory_is_taken),
	};

	return cmocka_run_group_tests_name("hotlist/hpl1", tests, NULL, NULL);
}
