/*
 * Hundreds of thousands of damaged lists, the same on every run. Whatever the bytes, the reader says what is wrong or gives a list
 * that its own writer and reader agree about; a sanitizer build sees whether it read past the end.
 */
#include "unit/hpl2_helpers.h"

#define ROUNDS_PER_FORMAT 120000
#define SIZE_MAX_MUTATED  4096

static size_t flip_bit(struct random *random, uint8_t *data, size_t size)
{
	data[random_below(random, size)] ^= (uint8_t)(1u << random_below(random, 8));
	return size;
}

/* Bytes on which formats turn: ends of varints, signs, quotes, brackets. */
static size_t put_byte(struct random *random, uint8_t *data, size_t size)
{
	static const uint8_t telling[] = "\x00\x01\x02\x7f\x80\x81\xfe\xff\"\\{}[],:\n\r\t -+.eE0123456789untrue";

	data[random_below(random, size)] = telling[random_below(random, sizeof telling - 1)];
	return size;
}

static size_t cut(struct random *random, uint8_t *data, size_t size)
{
	(void)data;
	return random_below(random, size + 1);
}

static size_t remove_some(struct random *random, uint8_t *data, size_t size)
{
	size_t at = random_below(random, size), length = 1 + random_below(random, 8);

	if (length > size - at)
		length = size - at;
	memmove(data + at, data + at + length, size - at - length);
	return size - length;
}

/* Copies a piece to somewhere else, between what is there. */
static size_t repeat_some(struct random *random, uint8_t *data, size_t size)
{
	size_t from = random_below(random, size), at = random_below(random, size + 1),
	       length = 1 + random_below(random, 24);
	uint8_t piece[24];

	if (length > size - from)
		length = size - from;
	if (size + length > SIZE_MAX_MUTATED)
		return size;
	memcpy(piece, data + from, length);
	memmove(data + at + length, data + at, size - at);
	memcpy(data + at, piece, length);
	return size + length;
}

static size_t (*const mutations[])(struct random *random, uint8_t *data, size_t size) = {
	flip_bit, put_byte, cut, remove_some, repeat_some,
};

static size_t mutate(struct random *random, uint8_t *data, size_t size)
{
	for (uint64_t n = 1 + random_below(random, 4); n > 0 && size > 0; n--)
		size = mutations[random_below(random, sizeof mutations / sizeof *mutations)](random, data, size);
	return size;
}

/* A decoded list must survive being written and read again. */
static void assert_list_is_sound(const struct hotlist *list, enum hotlist_format format)
{
	void *data;
	size_t size;
	struct error err;

	assert_true(list->count <= list->capacity || !list->count);
	assert_int_equal(hotlist_encode(list, format, &data, &size, &err), 0);
	_cleanup_hotlist_ struct hotlist *again = decode(data, size);
	if (format == HOTLIST_HPL1) {
		_cleanup_hotlist_ struct hotlist *sorted = hotlist_copy(list);
		hotlist_sort(sorted);
		assert_same_pages(sorted, again);
	} else {
		assert_same_pages(list, again);
		assert_same_touches(list, again);
		if (format != HOTLIST_CSV)
			assert_same_origin(list->origin, again->origin);
	}
	free(data);
}

/* Returns whether it was a list. */
static bool try_decode(const uint8_t *bytes, size_t size)
{
	_cleanup_hotlist_ struct hotlist *list = NULL;
	struct error err = { .code = "" };
	uint8_t *exact = malloc(size ?: 1);

	assert_non_null(exact);
	memcpy(exact, bytes, size);
	int r = hotlist_decode(exact, size, &list, &err);
	free(exact);
	if (r == 0) {
		/* Two bytes are the least that a page takes in the formats that aren't compressed. */
		assert_true(list->count <= (list->format == HOTLIST_HPL2 ? 65536 + 16 * size : size / 2));
		assert_list_is_sound(list, list->format);
		return true;
	}
	assert_int_equal(r, -EBADMSG);
	assert_null(list);
	assert_string_equal(err.code, "bad_hot_list");
	assert_true(strstr(err.message, "byte ") || strstr(err.message, "line "));
	return false;
}

static size_t random_list(struct random *random, enum hotlist_format format, uint8_t *ret)
{
	_cleanup_hotlist_ struct hotlist *list = hotlist_new();
	size_t count = random_below(random, 12), size;
	struct error err;
	void *data;

	for (size_t i = 0; i < count; i++)
		assert_int_equal(hotlist_add(list, random_below(random, 4),
					     random_u64(random) >> random_below(random, 64)),
				 0);
	assert_int_equal(hotlist_encode(list, format, &data, &size, &err), 0);
	assert_true(size <= SIZE_MAX_MUTATED);
	memcpy(ret, data, size);
	free(data);
	return size;
}

static void mutate_format(enum hotlist_format format, uint64_t seed)
{
	struct random random = { seed };
	uint8_t bytes[SIZE_MAX_MUTATED];
	unsigned long good = 0;

	for (int round = 0; round < ROUNDS_PER_FORMAT; round++) {
		size_t size = random_list(&random, format, bytes);
		size = mutate(&random, bytes, size);
		good += try_decode(bytes, size);
	}
	/* Mutations that never, or always, leave a list would test only half of the reader. */
	assert_in_range(good, ROUNDS_PER_FORMAT / 100, ROUNDS_PER_FORMAT / 2);
}

static void test_hpl1(void **state)
{
	(void)state;
	mutate_format(HOTLIST_HPL1, 101);
}

static void test_json(void **state)
{
	(void)state;
	mutate_format(HOTLIST_JSON, 102);
}

static void test_csv(void **state)
{
	(void)state;
	mutate_format(HOTLIST_CSV, 103);
}

/* What is random about a list's origin; the texts and the image are of a few kinds. */
static void random_origin(struct random *random, struct hotlist *list)
{
	struct hotlist_region_size regions[4];
	struct hotlist_origin origin = {
		.page_size = random_below(random, 2) ? 4096 : 0,
		.regions = regions,
		.region_count = random_below(random, 4),
		.template_size = random_u64(random) >> random_below(random, 64),
		.runs = (uint32_t)random_below(random, 20),
		.events_lost = random_u64(random) >> random_below(random, 64),
		.window_ns = random_u64(random) >> random_below(random, 64),
		.window_end = (uint32_t)random_below(random, HOT_WINDOW_GONE + 1),
		.clock = (enum hot_clock)random_below(random, HOT_CLOCK_CORRECTED + 1),
		.agreement_raw = (uint32_t)random_below(random, HOT_AGREEMENT_MAX + 1),
	};

	snprintf(origin.tier, sizeof origin.tier, "%s", random_below(random, 2) ? "kprobe" : "");
	memset(origin.template_digest, (int)random_below(random, 2), sizeof origin.template_digest);
	for (size_t i = 0; i < origin.region_count; i++)
		regions[i] = (struct hotlist_region_size){ random_u64(random) >> 1, random_u64(random) >> 2, 2 << 20 };
	assert_int_equal(hotlist_set_origin(list, &origin), 0);
}

static size_t random_full_list(struct random *random, enum hotlist_format format, uint8_t *ret)
{
	_cleanup_hotlist_ struct hotlist *list = hotlist_new();
	_cleanup_free_ void *data = NULL;
	size_t size;

	for (uint64_t n = random_below(random, 12); n > 0; n--)
		add_touch(list, random_below(random, 3), random_u64(random) >> random_below(random, 64) & ~4095ull,
			  (struct hot_touch){ random_u64(random) >> random_below(random, 64),
					      random_below(random, 1 << 30), (uint32_t)random_below(random, 5),
					      (uint32_t)random_below(random, 1 << 20), (uint16_t)random_below(random, 4),
					      HOT_WRITE, (uint8_t)random_below(random, 2) });
	if (random_below(random, 2))
		random_origin(random, list);
	assert_int_equal(hotlist_encode(list, format, &data, &size, NULL), 0);
	assert_true(size <= SIZE_MAX_MUTATED);
	memcpy(ret, data, size);
	return size;
}

static void mutate_full(enum hotlist_format format, uint64_t seed, bool sealed)
{
	struct random random = { seed };
	uint8_t bytes[SIZE_MAX_MUTATED];
	unsigned long good = 0, rounds = ROUNDS_PER_FORMAT / 4;

	for (unsigned long round = 0; round < rounds; round++) {
		size_t size = random_full_list(&random, format, bytes);
		size = mutate(&random, bytes, size);
		if (sealed && size >= HEADER_SIZE + 4)
			seal(bytes, size);
		good += try_decode(bytes, size);
	}
	/* A list that is cut to nothing else than it was, or whose change was taken back by the next, is rare but there. */
	assert_in_range(good, rounds / 1000, rounds / 2);
}

/* With the checksum made right again, so that what is behind it is met. */
static void test_hpl2(void **state)
{
	(void)state;
	mutate_full(HOTLIST_HPL2, 105, true);
}

static void test_json_with_touches(void **state)
{
	(void)state;
	mutate_full(HOTLIST_JSON, 106, false);
}

static void test_csv_with_touches(void **state)
{
	(void)state;
	mutate_full(HOTLIST_CSV, 107, false);
}

/* The body before it is compressed: zlib's own checksum hides it from the mutations of a file. */
static void test_hpl2_pages(void **state)
{
	struct random random = { 108 };
	unsigned long good = 0, rounds = ROUNDS_PER_FORMAT / 2;

	(void)state;
	for (unsigned long round = 0; round < rounds; round++) {
		uint8_t body[64];
		size_t size, length = random_below(&random, sizeof body);

		for (size_t i = 0; i < length; i++)
			body[i] = (uint8_t)(random_u64(&random) >> (56 + random_below(&random, 8)));
		uint16_t flags = random_below(&random, 2) ? 2 : 0;
		/* About as many pages as the bytes can be, so that some of them are all right. */
		uint32_t pages =
			(uint32_t)(length / (flags ? 6 + random_below(&random, 3) : 1 + random_below(&random, 2)));
		_cleanup_free_ uint8_t *file =
			file_of(&(struct parts){ .flags = flags, .pages = pages, .body = body, .body_size = length },
				&size);
		good += try_decode(file, size);
	}
	assert_in_range(good, rounds / 100, rounds / 2);
}

/* Bytes that never were a list, with each format's beginning in front of some of them. */
static void test_noise(void **state)
{
	static const char *const starts[] = { "", "HPL1", "{\"pages\":[", "region,offset\n", "HPL2\1\0\3" };
	struct random random = { 104 };
	uint8_t bytes[80];

	(void)state;
	for (int round = 0; round < ROUNDS_PER_FORMAT; round++) {
		const char *start = starts[round % 5];
		size_t length = strlen(start), size = length + random_below(&random, 60);

		memcpy(bytes, start, length);
		for (size_t i = length; i < size; i++)
			bytes[i] = (uint8_t)random_u64(&random);
		try_decode(bytes, size);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_hpl1),
		cmocka_unit_test(test_json),
		cmocka_unit_test(test_csv),
		cmocka_unit_test(test_hpl2),
		cmocka_unit_test(test_hpl2_pages),
		cmocka_unit_test(test_json_with_touches),
		cmocka_unit_test(test_csv_with_touches),
		cmocka_unit_test(test_noise),
	};

	return cmocka_run_group_tests_name("hotlist/mutations", tests, NULL, NULL);
}
