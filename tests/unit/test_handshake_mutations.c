/*
 * Hundreds of thousands of damaged handshakes, the same on every run. Whatever the bytes, they are refused with a reason or give
 * regions that the check of regions can judge; and it makes no difference in what pieces they came.
 */
#include <stdlib.h>

#include "serve/handshake.h"
#include "unit/hotlist_helpers.h"

#define ROUNDS		 200000
#define SIZE_MAX_MUTATED 1024
#define IMAGE		 (1ull << 30)

static const char *const seeds[] = {
	("[{\"base_host_virt_addr\":140000000000000,\"size\":8192,\"offset\":4096,\"page_size\":4096,\"page_size_kib\":4096},"
	 "{\"base_host_virt_addr\":4194304,\"size\":2097152,\"offset\":0,\"page_size\":2097152}]"),
	"{\"mappings\":[{\"base_host_virt_addr\":65536,\"size\":8192,\"offset\":0}]}",
	"{\"a\":\"]}\\\"[{\\\\\",\"mappings\":[{\"size\":4096,\"base_host_virt_addr\":65536,\"offset\":0,\"x\":[[1.5,true]]}]}",
	" [ ] ",
	"[[[[[[[[]]]]]]]]",
};

static size_t mutate_once(struct random *random, char *text, size_t size)
{
	static const char telling[] = "[]{}\"\\,:-+.eE0189 \t\n\0\x7f\x80\xc3\xff/u";
	size_t at = random_below(random, size), length = 1 + random_below(random, 16);
	char piece[16];

	switch (random_below(random, 5)) {
	case 0:
		text[at] ^= (char)(1u << random_below(random, 8));
		return size;
	case 1:
		text[at] = telling[random_below(random, sizeof telling - 1)];
		return size;
	case 2:
		return random_below(random, 4) ? size : at;
	case 3: /* something goes */
		if (length > size - at)
			length = size - at;
		memmove(text + at, text + at + length, size - at - length);
		return size - length;
	default: /* something comes again elsewhere */
		if (length > size - at)
			length = size - at;
		if (size + length > SIZE_MAX_MUTATED)
			return size;
		memcpy(piece, text + at, length);
		at = random_below(random, size + 1);
		memmove(text + at + length, text + at, size - at);
		memcpy(text + at, piece, length);
		return size + length;
	}
}

/* The answer to the whole text, and the answer to it in pieces. */
static enum handshake_progress scan_both_ways(struct random *random, const char *text, size_t size)
{
	struct handshake_scan whole = { 0 }, pieces = { 0 };
	enum handshake_progress expected = handshake_scan(&whole, text, size), got = HANDSHAKE_INCOMPLETE;

	for (size_t at = 0, length; at < size && got != HANDSHAKE_MALFORMED; at += length) {
		length = 1 + random_below(random, 40);
		if (length > size - at)
			length = size - at;
		got = handshake_scan(&pieces, text + at, length);
	}
	assert_int_equal(got, expected);
	return expected;
}

/* Returns whether it was a handshake. */
static bool try_parse(const char *text, size_t size, enum handshake_progress progress)
{
	struct handshake handshake = { 0 };
	struct error err = { .code = "" };
	int r = handshake_parse(text, size, 4096, &handshake, &err);

	if (r < 0) {
		assert_int_equal(r, -EBADMSG);
		assert_string_equal(err.code, "bad_handshake");
		assert_true(strlen(err.message) > 0);
		assert_null(handshake.regions);
		return false;
	}
	/* What the parser takes, the scanner lets through. */
	assert_int_equal(progress, HANDSHAKE_COMPLETE);
	assert_true(handshake.region_count > 0 && handshake.region_count <= REGIONS_MAX);
	if (regions_validate(handshake.regions, handshake.region_count, IMAGE, &err) < 0)
		assert_string_equal(err.code, "bad_region");
	else
		assert_true(regions_page_count(handshake.regions, handshake.region_count) <= IMAGE / 4096 * REGIONS_MAX);
	free(handshake.regions);
	return true;
}

static void test_mutations(void **state)
{
	struct random random = { .state = 20240229 };
	unsigned accepted = 0, complete = 0;

	(void)state;
	for (unsigned round = 0; round < ROUNDS; round++) {
		char text[SIZE_MAX_MUTATED];
		const char *seed = seeds[random_below(&random, sizeof seeds / sizeof *seeds)];
		size_t size = strlen(seed);

		memcpy(text, seed, size);
		for (uint64_t n = 1 + random_below(&random, 4); n > 0 && size > 0; n--)
			size = mutate_once(&random, text, size);

		char *exact = malloc(size ?: 1);
		assert_non_null(exact);
		memcpy(exact, text, size);
		enum handshake_progress progress = scan_both_ways(&random, exact, size);
		complete += progress == HANDSHAKE_COMPLETE;
		accepted += try_parse(exact, size, progress);
		free(exact);
	}
	/* Both ways out were taken often, or the mutations are too kind or too cruel to tell anything. */
	assert_true(accepted > ROUNDS / 50 && accepted < ROUNDS / 2);
	assert_true(complete > accepted);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_mutations),
	};

	return cmocka_run_group_tests_name("handshake_mutations", tests, NULL, NULL);
}
