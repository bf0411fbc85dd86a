/*
 * What every integration test needs first: cmocka, deadlines instead of sleeps, loop counts that fit the build, a seeded
 * random number generator, and the reason for a skip.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define PAGE 4096ul

/*
 * How long a single wait may take before the test fails; far over what a healthy server needs, and over what machines have been seen to stand
 * still. Grows under sanitizers.
 */
#define WAIT_S 90

/* A point in time SECONDS from now, for deadline_ms. Sanitizer builds get more. */
uint64_t deadline_in(double seconds);
/* Milliseconds until then, for poll; 0 once it has passed. */
int deadline_ms(uint64_t deadline);

/* COUNT rounds of work, fewer under sanitizers; FAULTLINE_TEST_SCALE (a factor, 1 by default) multiplies. At least 1. */
unsigned scaled(unsigned count);
bool under_sanitizer(void);

/* splitmix64. The seed is FAULTLINE_TEST_SEED or fixed, so that a failure can be had again. */
struct random {
	uint64_t state;
};
struct random random_from(uint64_t salt);
uint64_t random_next(struct random *random);
/* 0 to BOUND - 1. */
uint64_t random_below(struct random *random, uint64_t bound);
/* Fills ORDER with 0 to COUNT - 1, shuffled. */
void random_order(struct random *random, uint32_t *order, uint32_t count);

uint64_t mix64(uint64_t x);

/*
 * Runs the group, or those of its tests that FAULTLINE_TEST_FILTER (a pattern with '*') names; exits with 77 and a reason
 * where root, userfaultfd or the binary is not there.
 */
#define harness_run(tests) (harness_require(), cmocka_run_group_tests(tests, NULL, NULL))
void harness_require(void);

/* A test that has a server of its own (see server.h). */
#define SERVED(f) cmocka_unit_test_setup_teardown(f, test_server_setup, test_server_teardown)
