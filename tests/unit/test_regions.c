/* The one check of what a peer says of its memory: everything that is refused, with the sentence that says why. */
#include <stdlib.h>

#include "uffd/regions.h"
#include "unit/hotlist_helpers.h"

#define PAGE  4096ull
#define HUGE_ (2ull << 20)
#define IMAGE (64ull << 20)
#define TOP   (1ull << 57) /* the first address that none has */

static struct region small(uint64_t address, uint64_t size, uint64_t offset)
{
	return (struct region){ .address = address, .size = size, .offset = offset, .page_size = PAGE };
}

static void assert_accepted(struct region *regions, size_t count, uint64_t image_size)
{
	struct error err = { .message = "" };

	if (regions_validate(regions, count, image_size, &err) < 0)
		fail_msg("refused: %s", err.message);
}

static void assert_refused(struct region *regions, size_t count, uint64_t image_size, const char *message)
{
	struct error err = { .code = "" };

	assert_int_equal(regions_validate(regions, count, image_size, &err), -EINVAL);
	assert_string_equal(err.code, "bad_region");
	assert_string_equal(err.message, message);
	assert_int_equal(regions_validate(regions, count, image_size, NULL), -EINVAL);
}

struct refusal {
	struct region region;
	uint64_t image_size;
	const char *message;
};

/* As the second of two regions, so that the number in the message is told from a constant. */
static void assert_all_refused(const struct refusal *refusals, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		struct region regions[] = { small(PAGE, PAGE, 0), refusals[i].region };
		assert_refused(regions, 2, refusals[i].image_size, refusals[i].message);
	}
}

#define REFUSED(...)                                                \
	assert_all_refused((const struct refusal[]){ __VA_ARGS__ }, \
			   sizeof((const struct refusal[]){ __VA_ARGS__ }) / sizeof(struct refusal))

static void test_page_sizes(void **state)
{
	(void)state;
	REFUSED({ { 0x100000, PAGE, 0, 0, 0 }, IMAGE, "region 1: page size 0 is neither 4096 nor 2097152 bytes" },
		{ { 0x100000, PAGE, 0, 4, 0 }, IMAGE, "region 1: page size 4 is neither 4096 nor 2097152 bytes" },
		{ { 0x100000, PAGE, 0, 4095, 0 }, IMAGE, "region 1: page size 4095 is neither 4096 nor 2097152 bytes" },
		{ { 0x100000, PAGE, 0, 8192, 0 }, IMAGE, "region 1: page size 8192 is neither 4096 nor 2097152 bytes" },
		{ { 1ull << 30, 1ull << 30, 0, 1ull << 30, 0 },
		  1ull << 30,
		  "region 1: page size 1073741824 is neither 4096 nor 2097152 bytes" },
		{ { 0x100000, PAGE, 0, UINT64_MAX, 0 },
		  IMAGE,
		  "region 1: page size 18446744073709551615 is neither 4096 nor 2097152 bytes" });
}

static void test_zero_size(void **state)
{
	(void)state;
	REFUSED({ small(0x100000, 0, 0), IMAGE, "region 1: its size is zero" });
}

static void test_misalignment(void **state)
{
	(void)state;
	REFUSED({ small(0x100001, PAGE, 0), IMAGE,
		  "region 1: address 0x100001, size 0x1000 and offset 0x0 must be multiples of its page size, 4096" },
		{ small(0x100000, PAGE + 512, 0), IMAGE,
		  "region 1: address 0x100000, size 0x1200 and offset 0x0 must be multiples of its page size, 4096" },
		{ small(0x100000, 1, 0), IMAGE,
		  "region 1: address 0x100000, size 0x1 and offset 0x0 must be multiples of its page size, 4096" },
		{ small(0x100000, PAGE, 7), IMAGE,
		  "region 1: address 0x100000, size 0x1000 and offset 0x7 must be multiples of its page size, 4096" },
		{ { HUGE_ + PAGE, HUGE_, 0, HUGE_, 0 },
		  IMAGE,
		  "region 1: address 0x201000, size 0x200000 and offset 0x0 must be multiples of its page size, 2097152" },
		{ { HUGE_, HUGE_ + PAGE, 0, HUGE_, 0 },
		  IMAGE,
		  "region 1: address 0x200000, size 0x201000 and offset 0x0 must be multiples of its page size, 2097152" },
		{ { HUGE_, HUGE_, PAGE, HUGE_, 0 },
		  IMAGE,
		  "region 1: address 0x200000, size 0x200000 and offset 0x1000 must be multiples of its page size, "
		  "2097152" });
}

static void test_address_space(void **state)
{
	const uint64_t last = UINT64_MAX - (PAGE - 1); /* the last page of 64 bits */

	(void)state;
	REFUSED({ small(0, PAGE, 0), IMAGE, "region 1: address 0x0 and size 0x1000 do not fit an address space" },
		{ small(TOP, PAGE, 0), IMAGE,
		  "region 1: address 0x200000000000000 and size 0x1000 do not fit an address space" },
		{ small(TOP - PAGE, 2 * PAGE, 0), IMAGE,
		  "region 1: address 0x1fffffffffff000 and size 0x2000 do not fit an address space" },
		{ small(last, PAGE, 0), /* the sum is 2^64 */
		  IMAGE, "region 1: address 0xfffffffffffff000 and size 0x1000 do not fit an address space" },
		{ small(last, 2 * PAGE, 0), /* and here it would be small again */
		  IMAGE, "region 1: address 0xfffffffffffff000 and size 0x2000 do not fit an address space" },
		{ small(2 * PAGE, last, 0), IMAGE,
		  "region 1: address 0x2000 and size 0xfffffffffffff000 do not fit an address space" });

	struct region top = small(TOP - PAGE, PAGE, 0);
	assert_accepted(&top, 1, PAGE);
}

static void test_past_the_image(void **state)
{
	const uint64_t last = UINT64_MAX - (PAGE - 1);

	(void)state;
	REFUSED({ small(0x100000, PAGE, IMAGE), IMAGE,
		  "region 1: offset 0x4000000 and size 0x1000 end past the memory image, which has 0x4000000 bytes" },
		{ small(0x100000, IMAGE, PAGE), IMAGE,
		  "region 1: offset 0x1000 and size 0x4000000 end past the memory image, which has 0x4000000 bytes" },
		{ small(0x100000, PAGE, last), /* the sum is 2^64 */
		  IMAGE,
		  "region 1: offset 0xfffffffffffff000 and size 0x1000 end past the memory image, which has 0x4000000 "
		  "bytes" },
		{ small(0x100000, 2 * PAGE, last), IMAGE,
		  "region 1: offset 0xfffffffffffff000 and size 0x2000 end past the memory image, which has 0x4000000 "
		  "bytes" },
		{ small(0x100000, 2 * PAGE, 0), PAGE,
		  "region 1: offset 0x0 and size 0x2000 end past the memory image, which has 0x1000 bytes" });
}

/* A last page that the image fills only in part is served, with zeros after the image's end; the page after it is not. */
static void test_tail_of_the_image(void **state)
{
	static const uint64_t tails[] = { 1, 511, PAGE - 1 };

	(void)state;
	for (size_t i = 0; i < 3; i++) {
		struct region fits = small(PAGE, 4 * PAGE, 0), too_long = small(PAGE, 5 * PAGE, 0),
			      tail = small(PAGE, PAGE, 3 * PAGE);
		assert_accepted(&fits, 1, 3 * PAGE + tails[i]);
		assert_accepted(&tail, 1, 3 * PAGE + tails[i]);
		assert_int_equal(regions_validate(&too_long, 1, 3 * PAGE + tails[i], NULL), -EINVAL);
	}
	struct region huge = { .address = HUGE_, .size = 2 * HUGE_, .page_size = HUGE_ };
	assert_accepted(&huge, 1, HUGE_ + 1);
	assert_int_equal(regions_validate(&huge, 1, HUGE_, NULL), -EINVAL);

	/* Rounding such an image's size up would overflow. */
	struct region first = small(PAGE, PAGE, 0);
	assert_int_equal(regions_validate(&first, 1, UINT64_MAX, NULL), -EINVAL);
	assert_accepted(&first, 1, UINT64_MAX - (PAGE - 1));
}

static void test_overlap_in_any_order(void **state)
{
	(void)state;
	struct region ascending[] = { small(0x10000, 4 * PAGE, 0), small(0x13000, 4 * PAGE, 0) };
	assert_refused(ascending, 2, IMAGE, "regions 0 and 1 overlap at address 0x13000");
	struct region descending[] = { small(0x13000, 4 * PAGE, 0), small(0x10000, 4 * PAGE, 0) };
	assert_refused(descending, 2, IMAGE, "regions 1 and 0 overlap at address 0x13000");
	struct region inside[] = { small(0x40000, PAGE, 0), small(0x12000, PAGE, 0), small(0x10000, 16 * PAGE, 0) };
	assert_refused(inside, 3, IMAGE, "regions 2 and 1 overlap at address 0x12000");

	struct region twice[] = { small(0x10000, PAGE, 0), small(0x20000, PAGE, 0), small(0x10000, PAGE, 0) };
	struct error err;
	assert_int_equal(regions_validate(twice, 3, IMAGE, &err), -EINVAL);
	assert_contains(err.message, "overlap at address 0x10000");

	struct region sizes[] = { { HUGE_, HUGE_, 0, HUGE_, 0 }, small(2 * HUGE_ - PAGE, 2 * PAGE, 0) };
	assert_refused(sizes, 2, IMAGE, "regions 0 and 1 overlap at address 0x3ff000");
}

static void test_neighbours_do_not_overlap(void **state)
{
	(void)state;
	struct region touching[] = { small(0x12000, PAGE, 0), small(0x10000, PAGE, 0), small(0x11000, PAGE, 0) };
	assert_accepted(touching, 3, IMAGE);
	/* Two views of the same bytes of the image are as good as two images. */
	struct region same_bytes[] = { small(0x10000, PAGE, PAGE), small(0x20000, PAGE, PAGE) };
	assert_accepted(same_bytes, 2, IMAGE);
}

/* N regions of one page each, backwards, with a page between them. */
static struct region *many(size_t count)
{
	struct region *regions = calloc(count, sizeof *regions);

	assert_non_null(regions);
	for (size_t i = 0; i < count; i++)
		regions[i] = small(PAGE * 2 * (count - i), PAGE, i * PAGE);
	return regions;
}

static void test_number_of_regions(void **state)
{
	(void)state;
	assert_refused(NULL, 0, IMAGE, "the handshake names no region");

	struct region *regions = many(REGIONS_MAX + 1);
	assert_refused(regions, REGIONS_MAX + 1, IMAGE, "the handshake names 1025 regions; at most 1024 are served");
	assert_accepted(regions, REGIONS_MAX, IMAGE);
	for (size_t i = 0; i < REGIONS_MAX; i++) {
		assert_int_equal(regions[i].first_page, i);
		assert_ptr_equal(regions_of_page(regions, REGIONS_MAX, i), &regions[i]);
	}
	regions[REGIONS_MAX - 1].address = regions[0].address;
	assert_int_equal(regions_validate(regions, REGIONS_MAX, IMAGE, NULL), -EINVAL);
	free(regions);
}

/* Pages are numbered in the handshake's order, whatever the addresses and the page sizes. */
static void test_page_numbers(void **state)
{
	struct region regions[] = {
		small(0x900000, 3 * PAGE, 0),
		{ .address = 4 * HUGE_, .size = 5 * HUGE_, .offset = HUGE_, .page_size = HUGE_, .first_page = 77 },
		small(0x10000, PAGE, PAGE),
		small(0x20000, 100 * PAGE, PAGE),
	};
	static const uint64_t first[] = { 0, 3, 8, 9, 109 };

	(void)state;
	regions[0].address = 0x90000;
	assert_accepted(regions, 4, IMAGE);
	assert_int_equal(regions_page_count(regions, 4), 109);
	for (size_t i = 0; i < 4; i++) {
		assert_int_equal(regions[i].first_page, first[i]);
		for (uint64_t page = first[i]; page < first[i + 1]; page++)
			assert_ptr_equal(regions_of_page(regions, 4, page), &regions[i]);
	}
	assert_int_equal(regions_page_count(regions, 1), 3);
	assert_ptr_equal(regions_of_page(regions, 1, 2), &regions[0]);
}

/* Accepted means, whatever the numbers: inside the address space and the image, aligned, disjoint. */
static void test_random_regions(void **state)
{
	static const uint64_t edges[] = { 0,	      1,	   PAGE,
					  2 * PAGE,   HUGE_,	   2 * HUGE_,
					  IMAGE,      TOP - HUGE_, UINT64_MAX - PAGE + 1,
					  UINT64_MAX, 1ull << 63 };
	const size_t edge_count = sizeof edges / sizeof *edges;
	struct random random = { .state = 11 };
	unsigned accepted = 0;

	(void)state;
	for (unsigned round = 0; round < 100000; round++) {
		struct region r[3];
		size_t count = 1 + random_below(&random, 3);
		uint64_t image = edges[random_below(&random, edge_count)];
		for (size_t i = 0; i < count; i++)
			r[i] = (struct region){
				.address = edges[2 + random_below(&random, edge_count - 2)],
				.size = edges[random_below(&random, 6)],
				.offset = edges[random_below(&random, random_below(&random, 2) ? 5 : edge_count)],
				.page_size = random_below(&random, 2) ? PAGE : HUGE_
			};
		if (regions_validate(r, count, image, NULL) < 0)
			continue;
		accepted++;
		for (size_t i = 0; i < count; i++) {
			__uint128_t end = (__uint128_t)r[i].address + r[i].size,
				    in_image = (__uint128_t)r[i].offset + r[i].size;
			assert_true(r[i].size > 0 && r[i].address > 0 && end <= TOP);
			assert_true(in_image < (__uint128_t)image + r[i].page_size);
			assert_int_equal((r[i].address | r[i].size | r[i].offset) % r[i].page_size, 0);
			for (size_t k = 0; k < i; k++)
				assert_true(end <= r[k].address || r[k].address + r[k].size <= r[i].address);
		}
	}
	assert_true(accepted > 100);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_page_sizes),	     cmocka_unit_test(test_zero_size),
		cmocka_unit_test(test_misalignment),	     cmocka_unit_test(test_address_space),
		cmocka_unit_test(test_past_the_image),	     cmocka_unit_test(test_tail_of_the_image),
		cmocka_unit_test(test_overlap_in_any_order), cmocka_unit_test(test_neighbours_do_not_overlap),
		cmocka_unit_test(test_number_of_regions),    cmocka_unit_test(test_page_numbers),
		cmocka_unit_test(test_random_regions),
	};

	return cmocka_run_group_tests_name("regions", tests, NULL, NULL);
}
