/* The server ends, in order or not, with forks live: no guest reads a wrong byte, and the directory can be used again. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/chaos.h"
#include "integration/harness/client.h"
#include "integration/harness/list.h"
#include "integration/harness/peer.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"

#define PAGES 8192ul
#define FORKS 8

struct guest {
	char socket[SOCKET_PATH_MAX];
	const struct test_image *image;
	struct vmm_form form;
	unsigned number;
	bool alone; /* keeps no userfaultfd of its own: the server's is the last */
};

static void busy_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct chaos chaos = { .threads = 3,
			       .removals_of_100 = 3,
			       .writes_of_100 = 5,
			       .salt = guest->number,
			       .progress = &self->shared->counter[0] };
	struct vmm vmm;

	vmm_init(&vmm, self, guest->image);
	vmm_start(&vmm, guest->socket, guest->form);
	vmm_check_page(&vmm, &vmm.regions[0], 0);
	self->shared->counter[1] = (uint64_t)vmm.uffd;
	if (guest->alone)
		close(vmm.uffd);
	client_say(self, 'c');
	chaos_run(&vmm, &chaos);
}

static void start_forks(struct test_server *server, struct test_image *image, struct client **clients, bool some_alone)
{
	struct guest guest = { .image = image };
	char id[16];

	test_image_make(image, server->dir, "base", PAGES * PAGE);
	template_add(server, "base", image);
	template_add_inject(server, "slow", image, "delay=30ms");
	for (unsigned i = 0; i < FORKS; i++) {
		guest.number = i;
		guest.alone = some_alone && (i & 1);
		guest.form = (struct vmm_form){ .json = i >> 1 & 1, .fd = i >> 1 & 1 };
		snprintf(id, sizeof id, "fork%u", i);
		/* Half of them have faults in flight at nearly all times. */
		fork_create(server, i < FORKS / 2 ? "base" : "slow", id, NULL, guest.socket);
		clients[i] = client_start(id, busy_body, &guest);
	}
	for (unsigned i = 0; i < FORKS; i++) {
		client_await(clients[i], 'c');
		client_await_counter(clients[i], 0, 10);
	}
}

static void silent_peer_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	int conn = peer_connect(guest->socket);

	client_require(self, conn >= 0, "cannot connect");
	client_require(self, peer_send(conn, "[{\"base", 7, NULL, 0, 0) == 0, "cannot send");
	client_say(self, 'h');
	client_require(self, peer_await_closed(conn, deadline_in(WAIT_S)), "the server did not hang up");
}

static void stop_with_forks_live(struct test_server *server, int signal_number)
{
	struct client *clients[FORKS], *half;
	struct test_image image = { 0 };
	struct guest guest = { .image = &image };
	struct test_command wait, prefetch;
	struct list_entry list[PAGES];
	char path[160];

	start_forks(server, &image, clients, true);
	/* And what else may be under way: half a handshake, a fork nobody came for, a wait, a prefetch. */
	fork_create(server, "base", "half", NULL, guest.socket);
	half = client_start("half", silent_peer_body, &guest);
	client_await(half, 'h');
	fork_create(server, "base", "nobody", NULL, guest.socket);
	command_start(&wait, server, ARGS("fork", "wait", "nobody", "--for", "connected", "--timeout", "100"));
	for (uint64_t i = 0; i < PAGES; i++)
		list[i] = (struct list_entry){ 0, i * PAGE };
	snprintf(path, sizeof path, "%s/all.hpl", server->dir);
	list_write(path, list, PAGES);
	command_start(&prefetch, server, ARGS("fork", "prefetch", "fork7", path));
	assert_true(fork_await_prefetching(server, "fork7", &prefetch));

	test_server_signal(server, signal_number);
	int status = test_server_wait_end(server);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	for (unsigned i = 0; i < FORKS; i++)
		client_join_killed(clients[i]);
	client_join(half);

	struct test_result result = command_wait(&wait);
	assert_int_not_equal(result.exit_code, 0);
	result_clear(&result);
	result = command_wait(&prefetch);
	result_clear(&result);
	test_server_check_log(server);
}

static void test_sigterm_stops_the_vmms_first(void **state)
{
	stop_with_forks_live(*state, SIGTERM);
}

static void test_sigint_does_the_same(void **state)
{
	stop_with_forks_live(*state, SIGINT);
}

static void test_killed_server_leaves_no_wrong_byte(void **state)
{
	struct test_server *server = *state;
	struct client *clients[FORKS];
	struct test_image image = { 0 };

	start_forks(server, &image, clients, false);
	test_server_signal(server, SIGKILL);
	int status = test_server_wait_end(server);
	assert_true(WIFSIGNALED(status));
	/* They hold the descriptor themselves, so each thread stands still in its next fault or removal. */
	for (unsigned i = 0; i < FORKS; i++) {
		client_await_still(clients[i], 0);
		client_kill(clients[i]);
	}

	/* The directory is free again, the templates are known, and what the dead left there is in nobody's way. */
	test_server_start(server);
	json_decref(command_ok(server, ARGS("template", "show", "slow")));
	fork_check_good(server, "base", "fork0", &image);
	fork_check_good(server, "base", "new", &image);
}

static void test_stopped_server_can_be_started_again(void **state)
{
	struct test_server *server = *state;
	struct test_image image = { 0 };

	test_image_make(&image, server->dir, "base", 50 * PAGE);
	template_add(server, "base", &image);
	fork_check_good(server, "base", "first", &image);
	for (unsigned i = 0; i < 3; i++) {
		test_server_signal(server, SIGTERM);
		int status = test_server_wait_end(server);
		assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
		command_fails(server, ARGS("fork", "list"), 3, NULL);
		test_server_start(server);
		json_decref(command_ok(server, ARGS("template", "show", "base")));
		fork_check_good(server, "base", "again", &image);
	}
}

static void test_second_server_is_refused(void **state)
{
	struct test_server *server = *state;
	struct test_image image = { 0 };

	test_image_make(&image, server->dir, "base", 50 * PAGE);
	template_add(server, "base", &image);
	command_fails(server, ARGS("serve"), 1, "another|lock|already");
	/* The first one's socket is still the first one's. */
	fork_check_good(server, "base", "still", &image);
}

static void expect_mode(const char *path, mode_t mode)
{
	struct stat st;

	if (lstat(path, &st) < 0)
		fail_msg("%s: %s", path, strerror(errno));
	if ((st.st_mode & 07777) != mode)
		fail_msg("%s has mode %o instead of %o", path, st.st_mode & 07777, mode);
}

static void test_modes_of_directory_and_sockets(void **state)
{
	struct test_server *server = *state;
	struct test_image image = { 0 };
	char path[SOCKET_PATH_MAX];

	test_image_make(&image, server->dir, "base", 50 * PAGE);
	template_add(server, "base", &image);
	expect_mode(server->run_dir, 0700);
	snprintf(path, sizeof path, "%s/control.sock", server->run_dir);
	expect_mode(path, 0600);
	expect_mode(fork_create(server, "base", "mine", NULL, path), 0600);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_sigterm_stops_the_vmms_first),	 SERVED(test_sigint_does_the_same),
		SERVED(test_killed_server_leaves_no_wrong_byte), SERVED(test_stopped_server_can_be_started_again),
		SERVED(test_second_server_is_refused),		 SERVED(test_modes_of_directory_and_sockets),
	};

	return harness_run(tests);
}
