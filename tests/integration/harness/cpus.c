#include "integration/harness/cpus.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "integration/harness/check.h"

void cpus_require(int *cpus, unsigned count)
{
	cpu_set_t allowed;
	unsigned n = 0;

	if (sched_getaffinity(0, sizeof allowed, &allowed) < 0)
		CPU_ZERO(&allowed);
	for (int cpu = 0; cpu < CPU_SETSIZE && n < count; cpu++)
		if (CPU_ISSET(cpu, &allowed))
			cpus[n++] = cpu;
	if (n < count) {
		printf("skipped: needs %u CPUs, and may run on %u\n", count, n);
		exit(77);
	}
}

int cpu_pin(pid_t tid, int cpu)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET((size_t)cpu, &one);
	return sched_setaffinity(tid, sizeof one, &one) < 0 ? -errno : 0;
}

/* ---- what is said of pagers ---- */

static bool is_one_of(json_int_t cpu, const int *cpus, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		if (cpus[i] == cpu)
			return true;
	return false;
}

static bool shows_pagers(const json_t *fork, const int *cpus, unsigned count)
{
	json_t *list = json_object_get(fork, "pager_cpus"), *cpu;
	size_t i;

	if (!json_is_array(list))
		fail_msg("a fork has no pager_cpus");
	json_array_foreach(list, i, cpu) {
		if (!is_one_of(json_integer_value(cpu), cpus, count))
			return false;
		for (size_t k = 0; k < i; k++)
			if (json_equal(json_array_get(list, k), cpu))
				fail_msg("CPU %lld is twice among a fork's pager_cpus",
					 (long long)json_integer_value(cpu));
	}
	return json_array_size(list) == count;
}

bool fork_has_pagers(const struct test_server *server, const char *id, const int *cpus, unsigned count)
{
	json_t *fork = fork_show(server, id);
	bool has = shows_pagers(fork, cpus, count);

	json_decref(fork);
	return has;
}

void fork_await_pagers(const struct test_server *server, const char *id, const int *cpus, unsigned count)
{
	uint64_t deadline = deadline_in(WAIT_S);

	while (!fork_has_pagers(server, id, cpus, count)) {
		if (deadline_ms(deadline))
			continue;
		json_t *fork = fork_show(server, id);
		char *text = json_dumps(json_object_get(fork, "pager_cpus"), JSON_ENCODE_ANY);
		fail_msg("fork %s: its pagers are on CPUs %s, not on those %u from %d on, after %d s", id, text, count,
			 cpus[0], WAIT_S);
	}
}

static int by_number(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

unsigned server_pager_cpus(const struct test_server *server, int *cpus, unsigned max)
{
	char path[128], name[32];
	struct dirent *entry;
	unsigned count = 0;

	snprintf(path, sizeof path, "/proc/%d/task", (int)server->pid);
	DIR *dir = opendir(path);
	if (!dir)
		fail_msg("%s: %s", path, strerror(errno));
	while ((entry = readdir(dir))) {
		int cpu;
		snprintf(path, sizeof path, "/proc/%d/task/%.20s/comm", (int)server->pid, entry->d_name);
		_cleanup_fclose_ FILE *f = fopen(path, "re");
		if (f && fgets(name, sizeof name, f) && sscanf(name, "pager/%d", &cpu) == 1 && count < max)
			cpus[count++] = cpu;
	}
	closedir(dir);
	qsort(cpus, count, sizeof cpus[0], by_number);
	return count;
}

/* ---- guests that roam ---- */

enum { ORDER_REST = -1, ORDER_END = -2 };

void roamers_init(struct roamers *roamers, unsigned count)
{
	roamers->count = count;
	for (unsigned i = 0; i < count; i++)
		if (pipe(roamers->orders[i]) < 0)
			fail_msg("pipe: %s", strerror(errno));
}

void roamers_clear(struct roamers *roamers)
{
	for (unsigned i = 0; i < roamers->count; i++) {
		close(roamers->orders[i][0]);
		close(roamers->orders[i][1]);
	}
	roamers->count = 0;
}

static void order(struct roamers *roamers, unsigned index, int what)
{
	if (write(roamers->orders[index][1], &what, sizeof what) != sizeof what)
		fail_msg("an order for a guest thread: %s", strerror(errno));
}

void roamer_go(struct roamers *roamers, unsigned index, int cpu)
{
	order(roamers, index, cpu);
}

void roamer_rest(struct roamers *roamers, unsigned index)
{
	order(roamers, index, ORDER_REST);
}

void roamers_end(struct roamers *roamers)
{
	for (unsigned i = 0; i < roamers->count; i++)
		order(roamers, i, ORDER_END);
}

/* The latest order, which one that rests waits for. */
static int hear_order(struct vmm *vmm, int fd, int current)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	int what;

	while (poll(&p, 1, current == ORDER_REST ? -1 : 0) > 0) {
		client_require(vmm->self, read(fd, &what, sizeof what) == sizeof what, "a broken order");
		if (what >= 0) {
			int r = cpu_pin(0, what);
			client_require(vmm->self, r == 0, "cannot run on CPU %d: %s", what, strerror(-r));
		}
		current = what;
		if (current == ORDER_END)
			break;
	}
	return current;
}

static void roam(struct vmm *vmm, unsigned index, void *data)
{
	struct roamers *roamers = data;
	struct vmm_region *region = &vmm->regions[0];
	uint64_t share = vmm_pages(region) / roamers->count, first = share * index;
	int current = ORDER_REST;

	client_require(vmm->self, share > 0, "too little memory for so many threads");
	for (;;) {
		for (uint64_t page = first; page < first + share; page++) {
			current = hear_order(vmm, roamers->orders[index][0], current);
			if (current == ORDER_END)
				return;
			vmm_check_page(vmm, region, page);
		}
		vmm_remove(vmm, region, first, share);
		/*
		 * A guest that never rests, and a pager that is woken by it and wakes it, on both CPUs of a machine of two, kept Linux 6.18 from
		 * running anything else for half a minute now and then.
		 */
		poll(NULL, 0, 1);
	}
}

void roamers_run(struct vmm *vmm, struct roamers *roamers)
{
	vmm_threads(vmm, roamers->count, roam, roamers);
}

/* ---- chaos on the CPUs ---- */

static void move_threads(const struct cpu_choice *choice, struct random *random, bool together)
{
	unsigned where = (unsigned)random_below(random, 2);
	DIR *dir = opendir("/proc/self/task");
	struct dirent *entry;

	while (dir && (entry = readdir(dir))) {
		pid_t tid = (pid_t)atoi(entry->d_name);
		if (!together)
			where = (unsigned)random_below(random, 2);
		/* It may have ended by now. */
		if (tid > 0)
			cpu_pin(tid, choice->cpus[where]);
	}
	if (dir)
		closedir(dir);
}

void migrate_all_threads(struct vmm *vmm, const struct cpu_choice *choice, uint64_t salt)
{
	struct random random = random_from(salt);

	while (!atomic_load(&vmm->stop)) {
		/* All on one CPU, so that the other's pager leaves, or anywhere; for as long as the server needs to see it, or less. */
		struct timespec pause = { .tv_nsec = (long)random_below(&random, 40 * NSEC_PER_MSEC) };

		move_threads(choice, &random, random_below(&random, 3) > 0);
		clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
	}
}
