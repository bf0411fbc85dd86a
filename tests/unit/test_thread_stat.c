/* A thread's line of /proc/PID/task/TID/stat: names that look like what follows them, lines that end early, and real ones. */
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "serve/thread_stat.h"

#define LAST_FIELD 52

/* Field n is 100 + n, but for the processor, which is CPU. */
static size_t make_line(char *line, size_t size, const char *name, long long cpu)
{
	size_t at = (size_t)snprintf(line, size, "4711 (%s) S", name);

	for (int field = 4; field <= LAST_FIELD; field++)
		at += (size_t)snprintf(line + at, size - at, " %lld", field == 39 ? cpu : 100 + field);
	at += (size_t)snprintf(line + at, size - at, "\n");
	assert_true(at < size);
	return at;
}

static void assert_parses(const char *line, int cpu)
{
	struct thread_stat stat = { 0 };

	assert_int_equal(thread_stat_parse(line, &stat), 0);
	assert_int_equal(stat.faults, 110 + 112);
	assert_int_equal(stat.ticks, 114 + 115);
	assert_int_equal(stat.cpu, cpu);
}

/* And the result is as it was. */
static void assert_refused(const char *line)
{
	struct thread_stat stat = { .faults = 7, .ticks = 8, .cpu = 9 };

	if (thread_stat_parse(line, &stat) != -EBADMSG)
		fail_msg("taken: '%s'", line);
	assert_int_equal(stat.faults, 7);
	assert_int_equal(stat.ticks, 8);
	assert_int_equal(stat.cpu, 9);
}

static void test_names_that_hold_anything(void **state)
{
	static const char *const names[] = {
		"vcpu0",
		"",
		"fc_vcpu 0",
		")",
		"(",
		"((",
		"))",
		") S 1 2 3",
		"a) R 1 (b",
		"a\nb",
		"\n",
		") S\n4711 (x",
		"\t 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15",
		"\xff\xfe\x80",
		"CPU 0/KVM",
	};
	char line[1024];

	(void)state;
	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		make_line(line, sizeof line, names[i], (int)i);
		assert_parses(line, (int)i);
	}
}

static void test_numbers_of_any_size(void **state)
{
	struct thread_stat stat;
	char line[1024];

	(void)state;
	/* Some fields are negative, and not those that count. */
	snprintf(line, sizeof line,
		 "1 (x) R 1 1 1 0 -1 4194560 1 0 18446744073709551613 0 9000000000 3 -5 -6 20 -2 1 0 55 18446744073709551615 "
		 "0 18446744073709551615 0 0 0 0 0 0 0 0 0 0 0 0 17 127 0 0 0 0 0\n");
	assert_int_equal(thread_stat_parse(line, &stat), 0);
	assert_true(stat.faults == 18446744073709551614ull);
	assert_true(stat.ticks == 9000000003ull);
	assert_int_equal(stat.cpu, 127);
}

static void test_lines_that_end_early(void **state)
{
	char line[1024], part[1024];
	struct thread_stat stat;

	(void)state;
	size_t size = make_line(line, sizeof line, "a b) c", 6);
	/* The processor's only digit is the last that is needed. */
	size_t needed = (size_t)(strstr(line, " 138 6 140") - line) + 6;
	assert_true(needed < size);
	for (size_t length = 0; length < size; length++) {
		memcpy(part, line, length);
		part[length] = '\0';
		if (length < needed)
			assert_refused(part);
		else
			assert_int_equal(thread_stat_parse(part, &stat), 0);
		/* The same with a newline where it ends. */
		memcpy(part + length, "\n", 2);
		if (length < needed)
			assert_refused(part);
	}
}

static void test_garbage(void **state)
{
	static const char *const lines[] = {
		"",
		"\n",
		")",
		") ",
		") R",
		"))))",
		"1 (x",
		"1 x R 1 2 3",
		"1 (x)R 1 1 1",
		"1 (x) R one two three",
		"1 (x) R 1 1 1 0 -1 0x10 1 0 1 0 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
		"1 (x) R 1 1 1 0 -1 1.5 1 0 1 0 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
	};
	char line[1024];

	(void)state;
	for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
		assert_refused(lines[i]);

	/* Processors that none can be. */
	make_line(line, sizeof line, "x", -1);
	assert_refused(line);
	make_line(line, sizeof line, "x", 9999999999);
	assert_refused(line);
}

/* ---- real ones ---- */

struct sleeper {
	pthread_t thread;
	const char *name;
	pid_t tid;
	pthread_barrier_t *barrier;
};

static void *sleep_with_name(void *data)
{
	struct sleeper *sleeper = data;

	prctl(PR_SET_NAME, sleeper->name);
	sleeper->tid = (pid_t)syscall(SYS_gettid);
	pthread_barrier_wait(sleeper->barrier);
	pthread_barrier_wait(sleeper->barrier);
	return NULL;
}

static void test_every_thread_of_this_process(void **state)
{
	struct sleeper sleepers[] = {
		{ .name = ") R 1 2 3 4 5 6" }, { .name = "a\nb (c) d" }, { .name = "\\n\\)" }, { .name = "" }
	};
	unsigned count = sizeof sleepers / sizeof *sleepers, seen = 0;
	pthread_barrier_t barrier;
	struct thread_stat stat;
	struct dirent *entry;

	(void)state;
	assert_int_equal(pthread_barrier_init(&barrier, NULL, count + 1), 0);
	for (unsigned i = 0; i < count; i++) {
		sleepers[i].barrier = &barrier;
		assert_int_equal(pthread_create(&sleepers[i].thread, NULL, sleep_with_name, &sleepers[i]), 0);
	}
	pthread_barrier_wait(&barrier);

	DIR *dir = opendir("/proc/self/task");
	assert_non_null(dir);
	while ((entry = readdir(dir))) {
		pid_t tid = (pid_t)atoi(entry->d_name);
		if (tid <= 0)
			continue;
		assert_int_equal(thread_stat_read(getpid(), tid, &stat), 0);
		assert_in_range(stat.cpu, 0, sysconf(_SC_NPROCESSORS_CONF) - 1);
		seen++;
	}
	closedir(dir);
	assert_true(seen >= count + 1); /* a sanitizer has one of its own */

	pthread_barrier_wait(&barrier);
	for (unsigned i = 0; i < count; i++)
		pthread_join(sleepers[i].thread, NULL);
	pthread_barrier_destroy(&barrier);
	/* The kernel takes a moment to take an ended thread out of /proc. */
	for (unsigned i = 0; i < count; i++)
		while (thread_stat_read(getpid(), sleepers[i].tid, &stat) == 0)
			sched_yield();
	assert_true(thread_stat_read(getpid(), 1, &stat) < 0);
}

static uint64_t faults_so_far(void)
{
	struct rusage usage;

	assert_int_equal(getrusage(RUSAGE_THREAD, &usage), 0);
	return (uint64_t)usage.ru_minflt + (uint64_t)usage.ru_majflt;
}

static void test_what_it_says_is_so(void **state)
{
	cpu_set_t allowed, one;
	struct thread_stat stat, later;
	struct timespec used;

	(void)state;
	assert_int_equal(sched_getaffinity(0, sizeof allowed, &allowed), 0);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &allowed))
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
		assert_int_equal(thread_stat_read(getpid(), (pid_t)syscall(SYS_gettid), &stat), 0);
		assert_int_equal(stat.cpu, cpu);
	}
	assert_int_equal(sched_setaffinity(0, sizeof allowed, &allowed), 0);

	uint64_t before = faults_so_far();
	assert_int_equal(thread_stat_read(getpid(), (pid_t)syscall(SYS_gettid), &stat), 0);
	assert_in_range(stat.faults, before, faults_so_far());
	do
		clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
	while (used.tv_sec == 0 && used.tv_nsec < (long)(50 * NSEC_PER_MSEC));
	do
		assert_int_equal(thread_stat_read(getpid(), (pid_t)syscall(SYS_gettid), &later), 0);
	while (later.ticks == 0);
	assert_true(later.ticks >= stat.ticks);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_names_that_hold_anything),     cmocka_unit_test(test_numbers_of_any_size),
		cmocka_unit_test(test_lines_that_end_early),	     cmocka_unit_test(test_garbage),
		cmocka_unit_test(test_every_thread_of_this_process), cmocka_unit_test(test_what_it_says_is_so),
	};

	return cmocka_run_group_tests_name("thread_stat", tests, NULL, NULL);
}
