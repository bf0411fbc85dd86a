#include "integration/harness/check.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "integration/harness/vmm.h"

#ifndef __has_feature
#define __has_feature(x) 0
#endif

bool under_sanitizer(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || __has_feature(address_sanitizer) || \
	__has_feature(thread_sanitizer)
	return true;
#else
	return false;
#endif
}

uint64_t deadline_in(double seconds)
{
	return now_ns() + (uint64_t)(seconds * (under_sanitizer() ? 3 : 1) * (double)NSEC_PER_SEC);
}

int deadline_ms(uint64_t deadline)
{
	uint64_t now = now_ns();

	if (now >= deadline)
		return 0;
	uint64_t ms = (deadline - now + NSEC_PER_MSEC - 1) / NSEC_PER_MSEC;
	return ms > INT_MAX ? INT_MAX : (int)ms;
}

unsigned scaled(unsigned count)
{
	const char *text = getenv("FAULTLINE_TEST_SCALE");
	double factor = text ? strtod(text, NULL) : 1;

	if (under_sanitizer())
		factor /= 4;
	double n = count * factor;
	return n < 1 ? 1 : (unsigned)n;
}

uint64_t mix64(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

struct random random_from(uint64_t salt)
{
	const char *text = getenv("FAULTLINE_TEST_SEED");
	uint64_t seed = text ? strtoull(text, NULL, 0) : 1;

	return (struct random){ .state = mix64(seed) ^ mix64(salt + 0x9e3779b97f4a7c15ull) };
}

uint64_t random_next(struct random *random)
{
	random->state += 0x9e3779b97f4a7c15ull;
	return mix64(random->state);
}

uint64_t random_below(struct random *random, uint64_t bound)
{
	return random_next(random) % bound;
}

void random_order(struct random *random, uint32_t *order, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		uint32_t j = (uint32_t)random_below(random, i + 1);

		if (j != i)
			order[i] = order[j];
		order[j] = i;
	}
}

static void skip_all(const char *reason)
{
	printf("skipped: %s\n", reason);
	exit(77);
}

void harness_require(void)
{
	const char *binary = getenv("FAULTLINE");

	if (getenv("FAULTLINE_TEST_FILTER"))
		cmocka_set_test_filter(getenv("FAULTLINE_TEST_FILTER"));
	/* A peer that is cut off while it writes wants an error, not the end of the test. */
	signal(SIGPIPE, SIG_IGN);
	setvbuf(stdout, NULL, _IOLBF, 0);

	if (!binary || access(binary, X_OK) < 0)
		skip_all("FAULTLINE does not name the faultline binary");
	if (geteuid() != 0)
		skip_all("needs root, for userfaultfd and for peers of other users");
	_cleanup_close_ int fd = vmm_new_uffd();
	if (fd < 0) {
		fprintf(stderr, "userfaultfd: %s\n", strerror(-fd));
		skip_all("this kernel or container has no userfaultfd");
	}
}
