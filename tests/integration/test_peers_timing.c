/* Peers that take their time, say nothing, come twice, or are somebody else's: nobody waits for them. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "integration/harness/chaos.h"
#include "integration/harness/client.h"
#include "integration/harness/peer.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"

#define PAGES 256ul

struct guest {
	char socket[SOCKET_PATH_MAX];
	struct test_image image;
	struct vmm_form form;
	const char *extra;
	uid_t uid;
	bool refused;
};

static void add_template(struct test_server *server, struct guest *guest)
{
	memset(guest, 0, sizeof *guest);
	test_image_make(&guest->image, server->dir, "base", PAGES * PAGE);
	template_add(server, "base", &guest->image);
}

static void good_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &guest->image);
	vmm_start(&vmm, guest->socket, guest->form);
	vmm_check_all(&vmm);
}

/* A byte a second: the pace is the point here, and the end of it is the server's. */
static void slow_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	uint64_t started = now_ns();
	struct vmm vmm;

	vmm_init(&vmm, self, &guest->image);
	vmm_add_region(&vmm, guest->image.size, 0);
	vmm_make_uffd(&vmm, guest->form);
	vmm_connect(&vmm, guest->socket);
	_cleanup_free_ char *text = vmm_handshake_text(&vmm, VMM_FIRECRACKER);
	for (size_t i = 0; i < 60; i++) {
		struct pollfd p = { .fd = vmm.conn, .events = POLLRDHUP };

		if (peer_send(vmm.conn, text + i, 1, &vmm.uffd, i == 0, 0) < 0)
			break;
		if (i == 1)
			client_say(self, 's');
		if (poll(&p, 1, 1000) > 0)
			break;
	}
	self->shared->counter[0] = now_ns() - started;
	client_require(self, peer_await_closed(vmm.conn, deadline_in(WAIT_S)), "the server takes any time");
}

static void silent_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	uint64_t started = now_ns();
	int conn = peer_connect(guest->socket);

	client_require(self, conn >= 0, "cannot connect: %s", strerror(-conn));
	client_say(self, 's');
	client_require(self, peer_await_closed(conn, deadline_in(WAIT_S)), "the server waits for ever");
	self->shared->counter[0] = now_ns() - started;
}

static void expect_about_ten_seconds(const struct client *client)
{
	double seconds = (double)client_counter(client, 0) / 1e9;

	if (seconds < 8 || seconds > 20)
		fail_msg("%s was turned away after %.1f s; 10 s are said", client->name, seconds);
}

static void test_slow_and_silent_peers_delay_nobody(void **state)
{
	struct test_server *server = *state;
	struct client *slow, *silent;
	struct guest guest;
	char id[32], slow_socket[SOCKET_PATH_MAX], silent_socket[SOCKET_PATH_MAX];

	add_template(server, &guest);
	fork_create(server, "base", "slow", NULL, slow_socket);
	fork_create(server, "base", "silent", NULL, silent_socket);
	strcpy(guest.socket, slow_socket);
	slow = client_start("slow", slow_body, &guest);
	strcpy(guest.socket, silent_socket);
	silent = client_start("silent", silent_body, &guest);
	client_await(slow, 's');
	client_await(silent, 's');

	/* Whole forks, from creation to the last page, while the two hold their connections: no one of them takes a second. */
	unsigned done = 0;
	while (!client_has_ended(slow) && !client_has_ended(silent) && done < 20) {
		uint64_t started = now_ns();

		snprintf(id, sizeof id, "good%u", done++);
		fork_check_good(server, "base", id, &guest.image);
		double took = (double)(now_ns() - started) / 1e9;
		if (took > (under_sanitizer() ? 8 : 4))
			fail_msg("a fork took %.1f s while others were slow with their handshakes", took);
	}
	if (done < (under_sanitizer() ? 2 : 5))
		fail_msg("only %u forks got through while others were slow with their handshakes", done);

	/* Both are turned away when their time is up. */
	client_await_counter(silent, 0, 1);
	expect_about_ten_seconds(silent);
	client_await_counter(slow, 0, 1);
	expect_about_ten_seconds(slow);
	client_join(slow);
	client_join(silent);
	fork_expect_error(server, "slow", "waiting", "10 s|time");
	fork_expect_error(server, "silent", "waiting", "10 s|time");

	/* The forks are still to be had. */
	strcpy(guest.socket, slow_socket);
	client_join(client_start("slow-again", good_body, &guest));
	strcpy(guest.socket, silent_socket);
	client_join(client_start("silent-again", good_body, &guest));
}

static void test_a_silent_peer_does_not_keep_the_vmm_out(void **state)
{
	struct test_server *server = *state;
	struct client *silent[4];
	struct guest guest;

	add_template(server, &guest);
	fork_create(server, "base", "shared", NULL, guest.socket);
	for (unsigned i = 0; i < 4; i++) {
		silent[i] = client_start("silent", silent_body, &guest);
		client_await(silent[i], 's');
	}
	client_join(client_start("vmm", good_body, &guest));
	/* The fork is taken: the others have nothing left to wait for. */
	for (unsigned i = 0; i < 4; i++)
		client_join(silent[i]);
	fork_wait(server, "shared", "gone");
}

/* ---- twice ---- */

static void steady_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct chaos chaos = { .threads = 2, .removals_of_100 = 3, .writes_of_100 = 3 };
	struct vmm vmm;

	vmm_init(&vmm, self, &guest->image);
	vmm_start(&vmm, guest->socket, guest->form);
	vmm_check_page(&vmm, &vmm.regions[0], 3);
	client_say(self, 'c');
	chaos_run_until(&vmm, &chaos, 'q');
	vmm_check_all(&vmm);
}

static void second_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &guest->image);
	vmm_add_region(&vmm, guest->image.size, 0);
	vmm_make_uffd(&vmm, guest->form);
	vmm.conn = peer_connect(guest->socket);
	if (vmm.conn < 0)
		return; /* turned away at the door */
	_cleanup_free_ char *text = vmm_handshake_text(&vmm, guest->form.json);
	int r = peer_send(vmm.conn, text, strlen(text), &vmm.uffd, 1, 0);
	client_require(self, r == 0 || r == -EPIPE || r == -ECONNRESET, "sending: %s", strerror(-r));
	client_require(self, peer_await_closed(vmm.conn, deadline_in(WAIT_S)), "two VMMs have one fork");
}

static void test_second_connection_to_a_taken_fork(void **state)
{
	struct test_server *server = *state;
	struct guest guest;

	add_template(server, &guest);
	fork_create(server, "base", "taken", NULL, guest.socket);
	struct client *first = client_start("first", steady_body, &guest);
	client_await(first, 'c');
	for (unsigned i = 0; i < 5; i++)
		client_join(client_start("second", second_body, &guest));
	assert_int_equal(fork_number(server, "taken", "pid"), first->pid);
	_cleanup_free_ char *is = fork_string(server, "taken", "state");
	assert_string_equal(is, "connected");
	client_tell(first, 'q');
	client_join(first);
	fork_wait(server, "taken", "gone");
	/* And after it: the fork is not to be had a second time. */
	client_join(client_start("after", second_body, &guest));
	fork_check_good(server, "base", "other", &guest.image);
}

static void talkative_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm, other;

	vmm_init(&vmm, self, &guest->image);
	vmm_start(&vmm, guest->socket, guest->form);
	vmm_check_page(&vmm, &vmm.regions[0], 0);
	vmm_init(&other, self, &guest->image);
	vmm_add_region(&other, guest->image.size, 0);
	vmm_make_uffd(&other, guest->form);
	other.conn = vmm.conn;
	for (unsigned i = 0; i < 50; i++) {
		_cleanup_free_ char *text = vmm_handshake_text(&other, guest->form.json);

		if (peer_send(vmm.conn, text, strlen(text), &other.uffd, 1, 0) < 0)
			break;
	}
	for (unsigned i = 0; i < 64; i++)
		if (peer_send(vmm.conn, guest->extra, strlen(guest->extra), NULL, 0, 0) < 0)
			break;
	vmm_check_all(&vmm);
	client_say(self, 'd');
	client_hear(self, 'q');
	vmm_remove(&vmm, &vmm.regions[0], 5, 5);
	vmm_check_all(&vmm);
}

static void test_second_handshake_on_the_same_connection(void **state)
{
	struct test_server *server = *state;
	struct guest guest;

	add_template(server, &guest);
	/* Served on, or stopped with a reason; never with another's bytes, and never with the server going round in circles. */
	guest.extra = "and what is more, ";
	fork_create(server, "base", "talkative", NULL, guest.socket);
	struct client *client = client_start("talkative", talkative_body, &guest);
	if (client_await_or_death(client, 'd')) {
		fork_check_good(server, "base", "beside", &guest.image);
		client_tell(client, 'q');
	}
	if (client_join_any(client))
		fork_expect_error(server, "talkative", "gone", NULL);
	fork_wait(server, "talkative", "gone");
	fork_check_good(server, "base", "after", &guest.image);
}

/* ---- somebody else's ---- */

static void other_user_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &guest->image);
	vmm_add_region(&vmm, guest->image.size, 0);
	vmm_make_uffd(&vmm, guest->form);
	client_require(self, setgid(guest->uid) == 0 && setuid(guest->uid) == 0, "cannot become user %u", guest->uid);
	if (!guest->refused) {
		vmm_connect(&vmm, guest->socket);
		vmm_handshake(&vmm, guest->form);
		vmm_check_all(&vmm);
		return;
	}
	vmm.conn = peer_connect(guest->socket);
	if (vmm.conn < 0) {
		self->shared->counter[0] = (uint64_t)-vmm.conn;
		return;
	}
	_cleanup_free_ char *text = vmm_handshake_text(&vmm, guest->form.json);
	peer_send(vmm.conn, text, strlen(text), &vmm.uffd, 1, 0);
	client_require(self, peer_await_closed(vmm.conn, deadline_in(WAIT_S)), "another user was served");
}

static void open_dir(struct test_server *server, struct guest *guest, const char *id, const char *uid)
{
	char dir[80];

	/* A directory that everyone may enter, so that it is the server that decides. */
	snprintf(dir, sizeof dir, "%s/open", server->dir);
	assert_true(mkdir(dir, 0755) == 0 || errno == EEXIST);
	assert_int_equal(chmod(server->dir, 0755), 0);
	char path[SOCKET_PATH_MAX];
	fork_create(server, "base", id, uid ? ARGS("--dir", dir, "--uid", (char *)uid) : ARGS("--dir", dir), path);
	snprintf(guest->socket, sizeof guest->socket, "%s/%s.uffd", dir, id);
}

static void test_wrong_user_is_refused(void **state)
{
	struct test_server *server = *state;
	struct guest guest;

	add_template(server, &guest);
	guest.uid = 12345;
	guest.refused = true;

	/* By the mode of the socket. */
	open_dir(server, &guest, "mine", NULL);
	struct client *client = client_start("stranger", other_user_body, &guest);
	client_await_counter(client, 0, 1);
	assert_int_equal(client_counter(client, 0), EACCES);
	client_join(client);

	/* By the peer's credentials, where somebody has opened the socket to all. */
	assert_int_equal(chmod(guest.socket, 0666), 0);
	client_join(client_start("stranger", other_user_body, &guest));
	fork_expect_error(server, "mine", "waiting", "user|uid");
	client_join(client_start("root", good_body, &guest));
	fork_wait(server, "mine", "gone");

	/* A fork for one user is not for another. */
	open_dir(server, &guest, "theirs", "23456");
	assert_int_equal(chmod(guest.socket, 0666), 0);
	client_join(client_start("stranger", other_user_body, &guest));
	fork_expect_error(server, "theirs", "waiting", "user|uid");
}

static void test_named_user_is_served(void **state)
{
	struct test_server *server = *state;
	struct guest guest;

	add_template(server, &guest);
	guest.uid = 12345;
	open_dir(server, &guest, "theirs", "12345");
	struct stat st;
	assert_int_equal(stat(guest.socket, &st), 0);
	assert_int_equal(st.st_uid, 12345);
	assert_int_equal(st.st_mode & 07777, 0600);
	client_join(client_start("owner", other_user_body, &guest));
	fork_wait(server, "theirs", "gone");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_slow_and_silent_peers_delay_nobody),
		SERVED(test_a_silent_peer_does_not_keep_the_vmm_out),
		SERVED(test_second_connection_to_a_taken_fork),
		SERVED(test_second_handshake_on_the_same_connection),
		SERVED(test_wrong_user_is_refused),
		SERVED(test_named_user_is_served),
	};

	return harness_run(tests);
}
