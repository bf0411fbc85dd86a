/* The server's end of what is said on a fork's socket after the handshake: to whom it listens, and that nonsense is no matter. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "integration/harness/list.h"
#include "integration/harness/peer.h"
#include "integration/harness/supplied.h"

#define IMAGE_SIZE (1ul << 20)

/* A VMM that makes its handshake by hand, and asks for answers if told so. */
static void start(struct vmm *vmm, struct client_self *self, const struct scene *scene, bool answers)
{
	const struct vmm_form form = { .json = VMM_FIRECRACKER, .fd = VMM_FIRECRACKER };
	char *text, *asking;

	vmm_init(vmm, self, &scene->image);
	vmm_add_region(vmm, IMAGE_SIZE, 0);
	vmm_make_uffd(vmm, form);
	vmm_connect(vmm, scene->socket);
	text = vmm_handshake_text(vmm, VMM_FIRECRACKER);
	client_require(self, asprintf(&asking, "[{\"answers\":true,%s", text + 2) > 0, "no memory");
	const char *sent = answers ? asking : text;
	client_require(self, peer_send(vmm->conn, sent, strlen(sent), &vmm->uffd, 1, 0) == 0, "sending failed");
	free(asking);
	free(text);
}

static void say(struct vmm *vmm, const char *text)
{
	client_require(vmm->self, send(vmm->conn, text, strlen(text), MSG_NOSIGNAL) == (ssize_t)strlen(text),
		       "send: %s", strerror(errno));
}

/* The next bytes are LINE, and no more. */
static void hear(struct vmm *vmm, const char *line)
{
	char text[1024];
	size_t length = strlen(line), got = 0;

	while (got < length) {
		struct pollfd p = { .fd = vmm->conn, .events = POLLIN };
		ssize_t n;

		client_require(vmm->self, poll(&p, 1, deadline_ms(deadline_in(WAIT_S))) == 1, "waited in vain for '%s'",
			       line);
		n = recv(vmm->conn, text + got, length - got, MSG_DONTWAIT);
		client_require(vmm->self, n > 0, "the server hung up instead of saying '%s'", line);
		got += (size_t)n;
	}
	client_require(vmm->self, memcmp(text, line, length) == 0, "heard '%.*s' instead of '%s'", (int)length, text,
		       line);
}

static void hear_nothing(struct vmm *vmm)
{
	struct pollfd p = { .fd = vmm->conn, .events = POLLIN | POLLRDHUP };

	client_require(vmm->self, poll(&p, 1, 0) == 0, "the server says something, or has hung up");
}

static void silent_body(struct client_self *self, void *data)
{
	struct vmm vmm;

	start(&vmm, self, data, false);
	say(&vmm, "ready\nwait prefetched\n");
	vmm_check_all(&vmm);
	client_say(self, 's');
	client_hear(self, 'q');
	hear_nothing(&vmm);
}

static void test_who_does_not_ask_is_not_answered(void **state)
{
	struct scene scene = scene_with_fork(*state, IMAGE_SIZE, "f", NULL);

	struct client *client = client_start("silent", silent_body, &scene);
	client_await(client, 's');
	/* The command comes after what was said. */
	command_fails(*state, ARGS("fork", "wait", "f", "--for", "ready", "--timeout", "0"), 5, NULL);
	client_tell(client, 'q');
	client_join(client);
}

static void lines_body(struct client_self *self, void *data)
{
	struct vmm vmm;
	char *rubbish = malloc(100000);

	start(&vmm, self, data, true);
	hear(&vmm, "ok connected\n");
	/* Nonsense, a line without an end, very much of it, zero bytes: no answer, no harm. */
	say(&vmm, "Ready\n");
	say(&vmm, "ready");
	say(&vmm, "ready \n");
	say(&vmm, "\n\n\n");
	memset(rubbish, '\n', 99999);
	rubbish[99999] = '\0';
	say(&vmm, rubbish);
	memset(rubbish, 'x', 99999);
	say(&vmm, rubbish);
	client_require(self, send(vmm.conn, "\0\0\n", 3, MSG_NOSIGNAL) == 3, "send: %s", strerror(errno));
	vmm_check_all(&vmm);
	client_say(self, 'n');
	client_hear(self, 'q');
	/* After all that it still listens, also to what comes in pieces. */
	say(&vmm, "wait prefet");
	say(&vmm, "ched\nready\n");
	hear(&vmm, "error not_prefetching ");
	client_say(self, 'r');
	client_hear(self, 'q');
	free(rubbish);
}

static void test_nonsense_is_ignored(void **state)
{
	struct scene scene = scene_with_fork(*state, IMAGE_SIZE, "f", NULL);

	struct client *client = client_start("lines", lines_body, &scene);
	client_await(client, 'n');
	command_fails(*state, ARGS("fork", "wait", "f", "--for", "ready", "--timeout", "0"), 5, NULL);
	client_tell(client, 'q');
	client_await(client, 'r');
	fork_wait(*state, "f", "ready");
	client_tell(client, 'q');
	client_join(client);
}

/* Asks until the socket is full of answers that it does not read: the server must not wait for it. */
static void deaf_body(struct client_self *self, void *data)
{
	struct vmm vmm;

	start(&vmm, self, data, true);
	hear(&vmm, "ok connected\n");
	for (unsigned i = 0; i < 20000; i++)
		say(&vmm, "wait prefetched\n");
	say(&vmm, "ready\n");
	vmm_check_all(&vmm);
	client_say(self, 's');
	client_hear(self, 'q');
}

static void test_who_does_not_listen_holds_nobody_up(void **state)
{
	struct scene scene = scene_with_fork(*state, IMAGE_SIZE, "f", NULL);

	struct client *client = client_start("deaf", deaf_body, &scene);
	client_await(client, 's');
	fork_wait(*state, "f", "ready");
	fork_check_good(*state, "t", "g", &scene.image);
	client_tell(client, 'q');
	client_join(client);
}

static void later_body(struct client_self *self, void *data)
{
	struct vmm vmm;

	start(&vmm, self, data, true);
	hear(&vmm, "ok connected\n");
	client_say(self, 'c');
	client_hear(self, 'p');
	say(&vmm, "wait prefetched\n");
	hear(&vmm, "ok prefetched\n");
	vmm_check_all(&vmm);
	hear_nothing(&vmm);
}

/* `fork prefetch` counts as well. */
static void test_a_prefetch_that_was_asked_for_later(void **state)
{
	struct test_server *server = *state;
	struct scene scene = scene_with_fork(server, IMAGE_SIZE, "f", NULL);
	struct list_entry entries[] = { { 0, 0 }, { 0, 8 * PAGE } };
	char list[120];

	snprintf(list, sizeof list, "%s/list.hpl1", server->dir);
	list_write(list, entries, 2);
	struct client *client = client_start("later", later_body, &scene);
	client_await(client, 'c');
	json_decref(command_ok(server, ARGS("fork", "prefetch", "f", list)));
	client_tell(client, 'p');
	client_join(client);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_who_does_not_ask_is_not_answered),
		SERVED(test_nonsense_is_ignored),
		SERVED(test_who_does_not_listen_holds_nobody_up),
		SERVED(test_a_prefetch_that_was_asked_for_later),
	};

	return harness_run(tests);
}
