/* Forks that have no faults cost no CPU time: nobody in the server wakes up for them, whatever they did before. */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "integration/harness/client.h"
#include "integration/harness/cpus.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"

#define FORKS	    50
#define PAGES	    256ul
#define OBSERVED_NS (500 * NSEC_PER_MSEC)

struct guest {
	char socket[SOCKET_PATH_MAX];
	const struct test_image *image;
	struct vmm_form form;
	uint64_t number;
};

/* What all threads of the server have used so far. */
struct usage {
	unsigned threads;
	uint64_t run_ns, sleeps;
};

/* The number behind KEY at the start of a line. */
static bool read_number(const char *path, const char *key, uint64_t *ret)
{
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	char line[256];

	while (f && fgets(line, sizeof line, f))
		if (!strncmp(line, key, strlen(key))) {
			*ret = strtoull(line + strlen(key), NULL, 10);
			return true;
		}
	return false;
}

/* A sanitizer's own thread wakes up ten times a second. It has the program's name, as the main thread has. */
static bool is_of_sanitizer(const struct test_server *server, const char *tid)
{
	char path[128], name[32];

	if (!under_sanitizer() || atoi(tid) == server->pid)
		return false;
	snprintf(path, sizeof path, "/proc/%d/task/%.20s/comm", (int)server->pid, tid);
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	return f && fgets(name, sizeof name, f) && !strcmp(name, "faultline\n");
}

static struct usage usage_of(const struct test_server *server)
{
	struct usage usage = { 0 };
	char path[128];
	struct dirent *entry;

	snprintf(path, sizeof path, "/proc/%d/task", (int)server->pid);
	DIR *dir = opendir(path);
	if (!dir)
		fail_msg("%s: %s", path, strerror(errno));
	while ((entry = readdir(dir))) {
		uint64_t run_ns, sleeps;

		if (is_of_sanitizer(server, entry->d_name))
			continue;
		snprintf(path, sizeof path, "/proc/%d/task/%.20s/schedstat", (int)server->pid, entry->d_name);
		if (!read_number(path, "", &run_ns))
			continue;
		snprintf(path, sizeof path, "/proc/%d/task/%.20s/status", (int)server->pid, entry->d_name);
		if (!read_number(path, "voluntary_ctxt_switches:", &sleeps))
			continue;
		usage.threads++;
		usage.run_ns += run_ns;
		usage.sleeps += sleeps;
	}
	closedir(dir);
	return usage;
}

/* Waits for an interval in which no thread of the server has run. */
static void expect_calm(const struct test_server *server)
{
	struct timespec interval = { .tv_nsec = OBSERVED_NS };
	uint64_t deadline = deadline_in(WAIT_S);
	struct usage before = usage_of(server), after;

	/* Pagers, placement, the main loop at least: or the comparison says nothing. */
	assert_true(before.threads >= 3 && before.run_ns > 0 && before.sleeps > 0);
	for (;; before = after) {
		clock_nanosleep(CLOCK_MONOTONIC, 0, &interval, NULL);
		after = usage_of(server);
		if (after.run_ns == before.run_ns && after.sleeps == before.sleeps)
			return;
		if (!deadline_ms(deadline))
			fail_msg("the server does not come to rest: in %d ms it ran for %" PRIu64
				 " us, and its threads slept %" PRIu64 " times",
				 (int)(OBSERVED_NS / NSEC_PER_MSEC), (after.run_ns - before.run_ns) / 1000,
				 after.sleeps - before.sleeps);
	}
}

static void idle_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	vmm_init(&vmm, self, guest->image);
	vmm_start(&vmm, guest->socket, guest->form);
	vmm_check_all_shuffled(&vmm, 2, guest->number);
	for (unsigned round = 0; round < 2; round++) {
		client_say(self, 'd');
		client_hear(self, 'g');
		vmm_remove(&vmm, &vmm.regions[0], 0, PAGES / 2);
		vmm_check_all(&vmm);
	}
	client_say(self, 'd');
	client_hear(self, 'q');
	vmm_check_all(&vmm);
}

static void test_forks_at_rest_cost_nothing(void **state)
{
	struct test_server *server = *state;
	struct client *clients[FORKS];
	struct test_image image = { 0 };
	char id[16];

	expect_calm(server);
	test_image_make(&image, server->dir, "base", PAGES * PAGE);
	template_add(server, "base", &image);
	for (unsigned i = 0; i < FORKS; i++) {
		struct guest guest = { .image = &image, .form = { .json = i & 1, .fd = i & 1 }, .number = i };

		snprintf(id, sizeof id, "fork%u", i);
		fork_create(server, "base", id, NULL, guest.socket);
		clients[i] = client_start(id, idle_body, &guest);
	}
	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < FORKS; i++)
			client_await(clients[i], 'd');
		expect_calm(server);
		for (unsigned i = 0; i < FORKS; i++)
			client_tell(clients[i], round < 2 ? 'g' : 'q');
	}
	for (unsigned i = 0; i < FORKS; i++)
		client_join(clients[i]);
	for (unsigned i = 0; i < FORKS; i++) {
		snprintf(id, sizeof id, "fork%u", i);
		fork_wait(server, id, "gone");
	}
	expect_calm(server);
}

/* Threads that run and have no faults are not followed. */
static void busy_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	vmm_init(&vmm, self, guest->image);
	vmm_start(&vmm, guest->socket, guest->form);
	vmm_check_all(&vmm);
	client_say(self, 'd');
	while (!self->shared->counter[0])
		vmm_check_all(&vmm);
}

static void test_a_guest_that_runs_without_faults_costs_nothing(void **state)
{
	struct test_server *server = *state;
	struct test_image image = { 0 };
	struct guest guest = { .image = &image };

	test_image_make(&image, server->dir, "base", PAGES * PAGE);
	template_add(server, "base", &image);
	fork_create(server, "base", "busy", NULL, guest.socket);
	struct client *client = client_start("busy", busy_body, &guest);
	client_await(client, 'd');
	expect_calm(server);
	client->shared->counter[0] = 1;
	client_join(client);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_forks_at_rest_cost_nothing),
		SERVED(test_a_guest_that_runs_without_faults_costs_nothing),
	};

	return harness_run(tests);
}
