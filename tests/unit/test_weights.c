/* Which CPUs' pagers watch a fork: however many share its faults none is left unserved, and a CPU without faults is soon out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "serve/weights.h"

#define CPUS 1024

static unsigned wanted(const uint32_t *weights, unsigned count)
{
	uint32_t enough = weights_enough(weights, count);
	unsigned n = 0;

	for (unsigned i = 0; i < count; i++)
		n += enough > 0 && weights[i] >= enough;
	return n;
}

static void test_no_faults_no_answer(void **state)
{
	uint32_t weights[CPUS] = { 0 };

	(void)state;
	assert_int_equal(weights_enough(weights, 0), 0);
	assert_int_equal(weights_enough(weights, CPUS), 0);
	weights_add(&weights[0], 0);
	assert_int_equal(weights_enough(weights, CPUS), 0);
}

static void test_all_that_share_the_faults_alike_are_wanted(void **state)
{
	static const uint64_t each[] = { 1, 2, 7, 100, 1ull << 20, 1ull << 40, UINT64_MAX };
	uint32_t weights[CPUS];

	(void)state;
	for (unsigned count = 1; count <= CPUS; count++)
		for (unsigned k = 0; k < sizeof each / sizeof *each; k++) {
			memset(weights, 0, sizeof weights);
			for (unsigned i = 0; i < count; i++)
				weights_add(&weights[i], each[k]);
			assert_int_equal(wanted(weights, CPUS), count);
		}
}

static void test_a_few_faults_elsewhere_do_not_count(void **state)
{
	uint32_t weights[CPUS] = { 0 };

	(void)state;
	weights_add(&weights[3], 1000);
	for (unsigned i = 10; i < CPUS; i++)
		weights_add(&weights[i], 50);
	assert_int_equal(wanted(weights, CPUS), 1);
	weights_add(&weights[20], 200);
	assert_int_equal(wanted(weights, CPUS), 2);
	assert_true(weights[20] >= weights_enough(weights, CPUS));
}

/* A vCPU moves: its new CPU is wanted at the next look, the old one not for long. */
static void test_faults_that_move(void **state)
{
	(void)state;
	for (uint64_t before = 1; before < 1ull << 40; before *= 3)
		for (uint64_t after = 1; after < 1ull << 40; after *= 3) {
			uint32_t weights[2] = { 0 };
			unsigned looks = 0;

			for (unsigned i = 0; i < 20; i++) {
				weights_fade(weights, 2);
				weights_add(&weights[0], before);
			}
			assert_int_equal(wanted(weights, 2), 1);
			do {
				weights_fade(weights, 2);
				weights_add(&weights[1], after);
				looks++;
			} while (weights[0] >= weights_enough(weights, 2));
			assert_int_equal(wanted(weights, 2), 1);
			assert_in_range(looks, 1, 40);
			if (before == after)
				assert_in_range(looks, 1, 5);
		}
}

static void test_any_number_of_faults_can_be_added(void **state)
{
	uint32_t weights[2] = { 0 };

	(void)state;
	weights_add(&weights[1], 10);
	for (unsigned i = 0; i < 1000; i++) {
		uint32_t before = weights[0];
		weights_add(&weights[0], i % 2 ? UINT64_MAX : 1u << 24);
		assert_true(weights[0] >= before);
	}
	assert_int_equal(wanted(weights, 2), 1);
	assert_true(weights[0] >= weights_enough(weights, 2));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_no_faults_no_answer),
		cmocka_unit_test(test_all_that_share_the_faults_alike_are_wanted),
		cmocka_unit_test(test_a_few_faults_elsewhere_do_not_count),
		cmocka_unit_test(test_faults_that_move),
		cmocka_unit_test(test_any_number_of_faults_can_be_added),
	};

	return cmocka_run_group_tests_name("weights", tests, NULL, NULL);
}
