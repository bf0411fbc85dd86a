/* A fork's pagers are those of the CPUs on which its threads have faults, and follow them; where there is no such pager another serves. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/client.h"
#include "integration/harness/cpus.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"

#define PAGES 512ul

static int cpus[2];

struct guest {
	char socket[SOCKET_PATH_MAX];
	struct test_image image;
	struct vmm_form form;
	struct roamers roamers;
};

static void roaming_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &guest->image);
	vmm_start(&vmm, guest->socket, guest->form);
	client_say(self, 'c');
	roamers_run(&vmm, &guest->roamers);
	vmm_check_all(&vmm);
}

static struct client *start_roaming(struct test_server *server, struct guest *guest, const char *id, unsigned threads)
{
	if (!guest->image.size) {
		test_image_make(&guest->image, server->dir, "base", PAGES * PAGE);
		template_add(server, "base", &guest->image);
	}
	fork_create(server, "base", id, NULL, guest->socket);
	roamers_init(&guest->roamers, threads);
	struct client *client = client_start(id, roaming_body, guest);
	client_await(client, 'c');
	fork_wait(server, id, "connected");
	return client;
}

static void end_roaming(struct guest *guest, struct client *client)
{
	roamers_end(&guest->roamers);
	client_join(client);
	roamers_clear(&guest->roamers);
}

static void test_the_pager_follows_a_vcpu(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { 0 };
	struct client *client = start_roaming(server, &guest, "fork", 1);

	for (unsigned i = 0; i < 2 * scaled(10); i++) {
		roamer_go(&guest.roamers, 0, cpus[i % 2]);
		fork_await_pagers(server, "fork", &cpus[i % 2], 1);
	}
	end_roaming(&guest, client);
}

static void test_two_vcpus_have_two_pagers(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { 0 };
	struct client *client = start_roaming(server, &guest, "fork", 2);

	for (unsigned i = 0; i < scaled(8); i++) {
		roamer_go(&guest.roamers, 0, cpus[0]);
		roamer_go(&guest.roamers, 1, cpus[1]);
		fork_await_pagers(server, "fork", cpus, 2);
		/* One has no more faults: the other's pager alone goes on. */
		roamer_rest(&guest.roamers, (i + 1) % 2);
		fork_await_pagers(server, "fork", &cpus[i % 2], 1);
	}
	end_roaming(&guest, client);
}

static void test_forks_have_pagers_of_their_own(void **state)
{
	struct test_server *server = *state;
	struct guest guests[2] = { 0 };
	struct client *clients[2];

	clients[0] = start_roaming(server, &guests[0], "a", 1);
	guests[1].image = guests[0].image;
	clients[1] = start_roaming(server, &guests[1], "b", 1);
	for (unsigned i = 0; i < 2 * scaled(5); i++) {
		/* Past each other. */
		roamer_go(&guests[0].roamers, 0, cpus[i % 2]);
		roamer_go(&guests[1].roamers, 0, cpus[(i + 1) % 2]);
		fork_await_pagers(server, "a", &cpus[i % 2], 1);
		fork_await_pagers(server, "b", &cpus[(i + 1) % 2], 1);
	}
	for (unsigned i = 0; i < 2; i++)
		end_roaming(&guests[i], clients[i]);
}

/* ---- servers that may not run everywhere ---- */

static int unstarted_setup(void **state)
{
	struct test_server *server = malloc(sizeof *server);

	*state = server;
	test_server_make_dir(server);
	return 0;
}

#define UNSTARTED(f) cmocka_unit_test_setup_teardown(f, unstarted_setup, test_server_teardown)

static void expect_only_pager(struct test_server *server, int cpu)
{
	int pagers[8];

	assert_int_equal(server_pager_cpus(server, pagers, 8), 1);
	assert_int_equal(pagers[0], cpu);
}

/* As many as all of the guest's pages. */
static void await_faults(const struct test_server *server)
{
	long long until = fork_number(server, "fork", "faults") + (long long)PAGES;
	uint64_t deadline = deadline_in(WAIT_S);

	while (fork_number(server, "fork", "faults") < until)
		if (!deadline_ms(deadline))
			fail_msg("its faults are no longer served");
}

/* A guest on both CPUs, one after the other and at once, has the one pager there is. */
static void served_by_one(struct test_server *server, int cpu)
{
	struct guest guest = { 0 };
	struct client *client = start_roaming(server, &guest, "fork", 2);

	expect_only_pager(server, cpu);
	for (unsigned i = 0; i < 6; i++) {
		roamer_go(&guest.roamers, 0, cpus[i & 1]);
		roamer_go(&guest.roamers, 1, cpus[i >> 1 & 1]);
		await_faults(server);
		assert_true(fork_has_pagers(server, "fork", &cpu, 1));
	}
	end_roaming(&guest, client);
	expect_only_pager(server, cpu);
}

static void test_cpus_says_where_pagers_are(void **state)
{
	struct test_server *server = *state;
	char list[16];

	for (unsigned i = 0; i < 2; i++) {
		snprintf(list, sizeof list, "%d", cpus[i]);
		test_server_start_as(server, ARGS("--cpus", list), NULL, NULL);
		served_by_one(server, cpus[i]);
		json_decref(command_ok(server, ARGS("fork", "remove", "fork", "--force")));
		json_decref(command_ok(server, ARGS("template", "remove", "base")));
		test_server_signal(server, SIGTERM);
		assert_int_equal(test_server_wait_end(server), 0);
	}
}

static void stay_on_second_cpu(void *data)
{
	(void)data;
	if (cpu_pin(0, cpus[1]) < 0)
		_exit(126);
}

static void test_affinity_of_one_cpu(void **state)
{
	struct test_server *server = *state;

	test_server_start_as(server, ARGS(NULL), stay_on_second_cpu, NULL);
	served_by_one(server, cpus[1]);
}

/* ---- cpusets ---- */

/* The test's cpuset, or "". */
static char cpuset[200];

static bool write_file(const char *dir, const char *name, const char *text)
{
	char path[300];

	snprintf(path, sizeof path, "%s/%s", dir, name);
	_cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);
	return fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
}

static bool read_file(const char *dir, const char *name, char *text, size_t size)
{
	char path[300];

	snprintf(path, sizeof path, "%s/%s", dir, name);
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);
	text[n > 0 ? n : 0] = '\0';
	return n >= 0;
}

/* Makes one, of either version, or skips the test where the machine or container gives none. */
static void cpuset_make(void)
{
	static const char *const roots[] = { "/sys/fs/cgroup/cpuset", "/sys/fs/cgroup" };
	char text[256];

	for (unsigned i = 0; i < 2; i++) {
		/* In version 2 it must be there for children, which is for the machine's owner to say. */
		if (i == 1 &&
		    (!read_file(roots[i], "cgroup.subtree_control", text, sizeof text) || !strstr(text, "cpuset")))
			continue;
		snprintf(cpuset, sizeof cpuset, "%s/faultline-test-%d", roots[i], (int)getpid());
		if (mkdir(cpuset, 0755) < 0)
			continue;
		if (i == 1 ||
		    (read_file(roots[i], "cpuset.mems", text, sizeof text) && write_file(cpuset, "cpuset.mems", text)))
			return;
		rmdir(cpuset);
	}
	cpuset[0] = '\0';
	print_message("skipped: no cpuset can be made here\n");
	skip();
}

static void cpuset_allow(int first, int second)
{
	char text[32];

	snprintf(text, sizeof text, "%d,%d", first, second);
	if (!write_file(cpuset, "cpuset.cpus", text))
		fail_msg("cannot set %s to CPUs %s: %s", cpuset, text, strerror(errno));
}

static void join_cpuset(void *data)
{
	(void)data;
	if (!write_file(cpuset, "cgroup.procs", "0"))
		_exit(126);
}

/* After the server: a cpuset with a process in it stays. */
static int cpuset_teardown(void **state)
{
	int r = test_server_teardown(state);

	if (cpuset[0] && rmdir(cpuset) < 0) {
		print_error("cannot remove %s: %s\n", cpuset, strerror(errno));
		r = -1;
	}
	cpuset[0] = '\0';
	return r;
}

#define IN_CPUSET(f) cmocka_unit_test_setup_teardown(f, unstarted_setup, cpuset_teardown)

static void test_cpuset_of_one_cpu(void **state)
{
	struct test_server *server = *state;

	cpuset_make();
	cpuset_allow(cpus[1], cpus[1]);
	test_server_start_as(server, ARGS(NULL), join_cpuset, NULL);
	served_by_one(server, cpus[1]);
}

/* Its pagers' CPUs are taken away from a server that runs, and given back: wherever the kernel puts the pagers then, they serve. */
static void test_cpuset_that_changes(void **state)
{
	static const int allowed[][2] = { { 0, 0 }, { 1, 1 }, { 0, 1 } };
	struct test_server *server = *state;
	struct guest guest = { 0 };

	cpuset_make();
	cpuset_allow(cpus[0], cpus[1]);
	test_server_start_as(server, ARGS(NULL), join_cpuset, NULL);
	struct client *client = start_roaming(server, &guest, "fork", 2);
	for (unsigned i = 0; i < 12; i++) {
		roamer_go(&guest.roamers, 0, cpus[i & 1]);
		roamer_go(&guest.roamers, 1, cpus[i >> 1 & 1]);
		cpuset_allow(cpus[allowed[i % 3][0]], cpus[allowed[i % 3][1]]);
		await_faults(server);
	}
	end_roaming(&guest, client);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_the_pager_follows_a_vcpu),	     SERVED(test_two_vcpus_have_two_pagers),
		SERVED(test_forks_have_pagers_of_their_own), UNSTARTED(test_cpus_says_where_pagers_are),
		UNSTARTED(test_affinity_of_one_cpu),	     IN_CPUSET(test_cpuset_of_one_cpu),
		IN_CPUSET(test_cpuset_that_changes),
	};

	cpus_require(cpus, 2);
	return harness_run(tests);
}
