/* libfaultline and servers that refuse, say nothing, say nonsense, or go away: before, during and after the handshake. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/list.h"
#include "integration/harness/supplied.h"

#define IMAGE_SIZE (1ul << 20)
#define SLOW_SIZE  (32 * PAGE) /* each page of it takes its time */

/* ---- servers of the parent's own ---- */

/* Takes the connection and the whole handshake, and the userfaultfd too, which it keeps: a server may hold it for long. */
static int take_handshake(int listener, int *ret_uffd)
{
	char text[4096], control[256];
	struct iovec part = { text, sizeof text - 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = 256 };
	int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	ssize_t n = recvmsg(connection, &message, MSG_CMSG_CLOEXEC);

	assert_true(n > 0);
	text[n] = '\0';
	assert_int_equal(text[n - 1], ']');
	memcpy(ret_uffd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
	return connection;
}

/* What the parent, as the server, does with the connection. */
struct answer {
	const char *text; /* NULL: hangs up without a word */
	bool stays;	  /* keeps the connection open until the child has ended */
	unsigned piece;	  /* bytes at a time; 0: all */
	int expected;
	const char *word;
};

struct answered_scene {
	struct scene scene; /* first */
	struct answer answer;
};

static void answered_body(struct client_self *self, void *data)
{
	struct answered_scene *answered = data;
	struct scene *scene = &answered->scene;
	const struct answer *answer = &answered->answer;
	_cleanup_close_ int image = open(scene->image.path, O_RDONLY | O_CLOEXEC);
	struct faultline_error error;
	char *address;
	struct faultline_client *client = supplied_new(self, scene, &address);
	char *own = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	require_result(self, faultline_add(client, own, PAGE, 0, PAGE, &error), FAULTLINE_OK);
	require_error(self, faultline_connect(client, scene->socket, 300, 0, &error), answer->expected, &error,
		      answer->word);
	client_require(self, faultline_server_fd(client) == -1 && !faultline_server_gone(client), "it is connected");
	client_require(self, is_inaccessible(address), "it can be touched though nobody fills it");
	client_require(self, own[0] == 0, "memory that was handed over is not empty");
	if (answer->stays)
		require_error(self, faultline_connect(client, scene->socket, 300, 0, &error), FAULTLINE_BAD_STATE,
			      &error, "may still write");
	client_require(self, faultline_map_image(client, image, &error) == FAULTLINE_OK, "%s", error.what);
	supplied_check(self, scene, address, 0, IMAGE_SIZE);
	supplied_check(self, scene, own, 0, PAGE);
	supplied_close(self, client);
	client_require(self, is_inaccessible(address), "it is still there");
}

static void answer_with(const struct test_server *server, const struct scene *scene, const struct answer *answer)
{
	struct answered_scene answered = { *scene, *answer };
	_cleanup_close_ int listener = scene_listen(server, &answered.scene);
	int uffd;

	struct client *client = client_start("answered", answered_body, &answered);
	_cleanup_close_ int connection = take_handshake(listener, &uffd);
	size_t length = answer->text ? strlen(answer->text) : 0, piece = answer->piece ?: length;
	for (size_t sent = 0; sent < length; sent += piece)
		(void)!send(connection, answer->text + sent, length - sent < piece ? length - sent : piece,
			    MSG_NOSIGNAL);
	if (!answer->stays)
		close(TAKE_FD(connection));
	client_join(client);
	close(uffd);
}

static void test_answers_to_the_handshake(void **state)
{
	static char endless[2000];
	static const struct answer answers[] = {
		{ NULL, false, 0, FAULTLINE_SERVER_GONE, "hung up instead" },
		{ NULL, true, 0, FAULTLINE_TIMED_OUT, "UNANSWERED" },
		{ "ok conn", true, 0, FAULTLINE_TIMED_OUT, "not answered" },
		{ "ok conn", false, 0, FAULTLINE_SERVER_GONE, "hung up instead" },
		{ "error bad_region region 0: it is mine\n", false, 0, FAULTLINE_REFUSED, "region 0: it is mine" },
		{ "error bad_region region 0: it is mine\n", false, 1, FAULTLINE_REFUSED, "region 0: it is mine" },
		{ "HTTP/1.1 400 Bad Request\r\n\r\n", false, 0, FAULTLINE_UNEXPECTED, "HTTP/1.1" },
		{ "ok prefetched\n", false, 0, FAULTLINE_UNEXPECTED, "ok prefetched" },
		{ "error\n", false, 0, FAULTLINE_UNEXPECTED, "no sense" },
		{ "\n", false, 0, FAULTLINE_UNEXPECTED, "no sense" },
		{ endless, false, 0, FAULTLINE_UNEXPECTED, "no page server that" },
	};
	struct scene scene = scene_new(*state, IMAGE_SIZE);

	memset(endless, 'x', sizeof endless - 1);
	for (size_t i = 0; i < sizeof answers / sizeof *answers; i++)
		answer_with(*state, &scene, &answers[i]);
}

static void queue_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct faultline_error error;
	int taken = 0;
	char *memory;

	/* The queue of connections that nobody accepts fills up. */
	snprintf(address.sun_path, sizeof address.sun_path, "%s", scene->socket);
	for (;; taken++) {
		int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

		if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
			continue;
		client_require(self, errno == EAGAIN && taken > 0, "connect: %s", strerror(errno));
		break;
	}
	struct faultline_client *client = supplied_new(self, scene, &memory);
	require_error(self, faultline_connect(client, scene->socket, 50, 0, &error), FAULTLINE_TIMED_OUT, &error,
		      "takes no connections");
	/* It was given nothing: another attempt is fine, and as vain. */
	require_error(self, faultline_connect(client, scene->socket, 0, 0, &error), FAULTLINE_TIMED_OUT, &error,
		      "takes no connections");
	supplied_close(self, client);
}

static void test_a_socket_that_nobody_accepts_at(void **state)
{
	struct scene scene = scene_new(*state, IMAGE_SIZE);
	_cleanup_close_ int listener = scene_listen(*state, &scene);

	scene_run("queue", queue_body, &scene);
	assert_true(listener >= 0);
}

static void unanswered_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct faultline_error error;
	char *address;
	struct faultline_client *client = supplied_new(self, scene, &address);

	client_require(self,
		       faultline_connect(client, scene->socket, -1, FAULTLINE_CONNECT_UNANSWERED, &error) == FAULTLINE_OK,
		       "%s", error.what);
	require_error(self, faultline_ready(client, &error), FAULTLINE_BAD_STATE, &error, "UNANSWERED");
	require_error(self, faultline_wait_prefetched(client, -1, &error), FAULTLINE_BAD_STATE, &error, "UNANSWERED");
	if (scene->number)
		supplied_check(self, scene, address, 0, IMAGE_SIZE);
	supplied_close(self, client);
	client_require(self, is_inaccessible(address), "it is still there");
}

static void test_servers_that_never_answer(void **state)
{
	struct test_server *server = *state;
	struct scene scene = scene_new(server, IMAGE_SIZE);
	int uffd;

	/* Ours does not either, if it isn't asked. */
	fork_create(server, "t", "f", NULL, scene.socket);
	scene.number = 1;
	scene_run("unanswered", unanswered_body, &scene);
	fork_wait(server, "f", "gone");

	scene.number = 0;
	_cleanup_close_ int listener = scene_listen(server, &scene);
	struct client *client = client_start("unanswered", unanswered_body, &scene);
	_cleanup_close_ int connection = take_handshake(listener, &uffd);
	client_join(client);
	close(uffd);
	assert_true(connection >= 0);
}

/* ---- what is said afterwards ---- */

static void hear_line(int connection, const char *line)
{
	char text[64];
	ssize_t n = recv(connection, text, sizeof text - 1, 0);

	text[n > 0 ? n : 0] = '\0';
	assert_string_equal(text, line);
}

static void say_line(int connection, const char *line)
{
	assert_int_equal(send(connection, line, strlen(line), MSG_NOSIGNAL), strlen(line));
}

struct waiter {
	pthread_t thread;
	struct faultline_client *client;
	int result;
};

static void *waiter_main(void *data)
{
	struct waiter *waiter = data;

	waiter->result = faultline_wait_prefetched(waiter->client, -1, NULL);
	return NULL;
}

static void talking_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct faultline_error error;
	char *address;
	struct faultline_client *client = supplied_connect(self, scene, &address);
	struct waiter other = { .client = client };

	/* Of two that wait one gives up, which is no matter to the other. */
	client_require(self, pthread_create(&other.thread, NULL, waiter_main, &other) == 0, "no thread");
	require_error(self, faultline_wait_prefetched(client, 50, &error), FAULTLINE_TIMED_OUT, &error, "not answered");
	client_require(self, faultline_ready(client, &error) == FAULTLINE_OK, "%s", error.what);
	client_say(self, 'w');
	/* The question is still open: it is not asked again, and its answer counts. */
	pthread_join(other.thread, NULL);
	client_require(self, other.result == FAULTLINE_OK, "%s", faultline_strerror(other.result));
	client_say(self, 'p');
	require_error(self, faultline_wait_prefetched(client, -1, &error), FAULTLINE_PREFETCH_FAILED, &error, "no disk");
	require_error(self, faultline_wait_prefetched(client, -1, &error), FAULTLINE_UNEXPECTED, &error, "no sense");
	supplied_close(self, client);
	client_require(self, is_inaccessible(address), "it is still there");
	client_say(self, 'c');
}

static void test_talk_after_the_handshake(void **state)
{
	struct scene scene = scene_new(*state, IMAGE_SIZE);
	_cleanup_close_ int listener = scene_listen(*state, &scene);
	int uffd;
	char byte;

	struct client *client = client_start("talking", talking_body, &scene);
	_cleanup_close_ int connection = take_handshake(listener, &uffd);
	say_line(connection, "ok connected\n");
	client_await(client, 'w');
	hear_line(connection, "wait prefetched\nready\n");
	say_line(connection, "ok pre");
	say_line(connection, "fetched\n");
	client_await(client, 'p');
	hear_line(connection, "wait prefetched\n");
	say_line(connection, "error prefetch_failed there is no disk\n");
	hear_line(connection, "wait prefetched\n");
	say_line(connection, "ok ready\n");
	/* It says that it is done, and waits until we let go, since we might still write to its addresses. */
	assert_int_equal(recv(connection, &byte, 1, 0), 0);
	struct pollfd said = { .fd = client->talk, .events = POLLIN };
	assert_int_equal(poll(&said, 1, 100), 0);
	close(TAKE_FD(connection));
	client_await(client, 'c');
	client_join(client);
	close(uffd);
}

static void clinging_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct faultline_error error;
	char *address, *own = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct faultline_client *client = supplied_new(self, scene, &address);

	require_result(self, faultline_add(client, own, PAGE, 0, PAGE, &error), FAULTLINE_OK);
	client_require(self, faultline_connect(client, scene->socket, -1, 0, &error) == FAULTLINE_OK, "%s", error.what);
	require_error(self, faultline_close(&client, &error), FAULTLINE_TIMED_OUT, &error, "not answered");
	client_require(self, !client, "the pointer was left");
	client_require(self, is_inaccessible(address) && is_inaccessible(own), "it can still be touched");
	/* The addresses stay taken. */
	void *there = mmap(address, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	client_require(self, there == MAP_FAILED && errno == EEXIST, "its addresses are free");
}

/* Takes as long as faultline_close waits. */
static void test_a_server_that_does_not_let_go(void **state)
{
	struct scene scene = scene_new(*state, IMAGE_SIZE);
	_cleanup_close_ int listener = scene_listen(*state, &scene);
	int uffd;

	struct client *client = client_start("clinging", clinging_body, &scene);
	_cleanup_close_ int connection = take_handshake(listener, &uffd);
	say_line(connection, "ok connected\n");
	client_join(client);
	close(uffd);
}

/* ---- the real server ---- */

static void refused_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct faultline_client *client;
	struct faultline_error error;
	char *good;
	void *address;

	/* Reaches past the image: the reason is the server's. Then the same client with the right memory would do; here, another one. */
	require_result(self, faultline_new(&client, &error), FAULTLINE_OK);
	require_result(self, faultline_map(client, IMAGE_SIZE, PAGE, PAGE, &address, &error), FAULTLINE_OK);
	require_error(self, faultline_connect(client, scene->socket, -1, 0, &error), FAULTLINE_REFUSED, &error,
		      "past the memory image");
	require_error(self, faultline_connect(client, scene->socket, -1, 0, &error), FAULTLINE_REFUSED, &error,
		      "past the memory image");
	supplied_close(self, client);
	client = supplied_connect(self, scene, &good);
	supplied_check(self, scene, good, 0, IMAGE_SIZE);
	supplied_close(self, client);
}

static void test_refused_by_the_server(void **state)
{
	struct scene scene = scene_with_fork(*state, IMAGE_SIZE, "f", NULL);

	scene_run("refused", refused_body, &scene);
	fork_wait(*state, "f", "gone");
}

static void killed_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct faultline_error error;
	char *address;
	struct faultline_client *client = supplied_connect(self, scene, &address);
	struct pollfd server = { .fd = faultline_server_fd(client), .events = POLLRDHUP };

	supplied_check(self, scene, address, 0, IMAGE_SIZE / 2);
	client_require(self, poll(&server, 1, 0) == 0, "the server seems to be gone already");
	client_say(self, 'c');
	client_require(self, poll(&server, 1, deadline_ms(deadline_in(WAIT_S))) == 1, "its end was not seen");
	client_require(self, faultline_server_gone(client) == 1, "its end is not known");
	require_error(self, faultline_wait_prefetched(client, -1, &error), FAULTLINE_SERVER_GONE, &error, "hung up");
	require_error(self, faultline_ready(client, &error), FAULTLINE_SERVER_GONE, &error, "hung up");
	/* What was there stays, and closing waits for nobody. */
	supplied_check(self, scene, address, 0, IMAGE_SIZE / 2);
	supplied_close(self, client);
	client_require(self, is_inaccessible(address), "it is still there");
}

static void test_server_killed_after_the_handshake(void **state)
{
	struct test_server *server = *state;
	struct scene scene = scene_with_fork(server, IMAGE_SIZE, "f", NULL);

	struct client *client = client_start("killed", killed_body, &scene);
	client_await(client, 'c');
	test_server_signal(server, SIGKILL);
	client_join(client);
	test_server_wait_end(server);
}

/* ---- ready, and prefetched ---- */

static void prefetched_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct faultline_error error;
	struct waiter waiters[4];
	char *address;
	struct faultline_client *client = supplied_connect(self, scene, &address);

	/* The image is slow, so mostly not yet. */
	int r = faultline_wait_prefetched(client, 0, &error);
	client_require(self, r == FAULTLINE_TIMED_OUT || r == FAULTLINE_OK, "%s", error.what);
	for (size_t i = 0; i < 4; i++) {
		waiters[i].client = client;
		client_require(self, pthread_create(&waiters[i].thread, NULL, waiter_main, &waiters[i]) == 0,
			       "no thread");
	}
	/* They hold nobody up. */
	client_require(self, faultline_ready(client, &error) == FAULTLINE_OK, "%s", error.what);
	for (size_t i = 0; i < 4; i++) {
		pthread_join(waiters[i].thread, NULL);
		client_require(self, waiters[i].result == FAULTLINE_OK, "%s", faultline_strerror(waiters[i].result));
	}
	client_require(self, faultline_wait_prefetched(client, -1, &error) == FAULTLINE_OK, "%s", error.what);
	client_require(self, faultline_ready(client, &error) == FAULTLINE_OK, "%s", error.what);
	struct vmm vmm;
	vmm_init(&vmm, self, &scene->image);
	vmm_adopt_region(&vmm, address, SLOW_SIZE, 0, PAGE);
	for (uint64_t page = 0; page < 8; page++)
		client_require(self, vmm_is_present(&vmm, &vmm.regions[0], page * 3), "page %d is not there",
			       (int)page * 3);
	vmm_check_all(&vmm);
	client_say(self, 'r');
	client_hear(self, 'q');
	supplied_close(self, client);
}

static void test_ready_and_prefetched(void **state)
{
	struct test_server *server = *state;
	struct list_entry entries[8];
	char list[120];
	struct scene scene = { 0 };

	test_image_make(&scene.image, server->dir, "slow", SLOW_SIZE);
	template_add_inject(server, "slow", &scene.image, "delay=40ms");
	for (uint64_t i = 0; i < 8; i++)
		entries[i] = (struct list_entry){ 0, i * 3 * PAGE };
	snprintf(list, sizeof list, "%s/list.hpl1", server->dir);
	list_write(list, entries, 8);
	fork_create(server, "slow", "f", ARGS("--prefetch", "eager", "--hot-list", list), scene.socket);
	struct client *client = client_start("prefetched", prefetched_body, &scene);
	client_await(client, 'r');
	fork_wait(server, "f", "ready");
	client_tell(client, 'q');
	client_join(client);
	fork_wait(server, "f", "gone");
}

static void no_prefetch_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct faultline_error error;
	char *address;
	struct faultline_client *client = supplied_connect(self, scene, &address);

	if (scene->number)
		require_error(self, faultline_wait_prefetched(client, -1, &error), FAULTLINE_PREFETCH_FAILED, &error,
			      "region 7");
	else
		require_error(self, faultline_wait_prefetched(client, -1, &error), FAULTLINE_NOT_PREFETCHING, &error,
			      "without prefetch");
	supplied_check(self, scene, address, 0, IMAGE_SIZE);
	supplied_close(self, client);
}

static void test_no_prefetch_or_a_failed_one(void **state)
{
	struct test_server *server = *state;
	struct list_entry elsewhere = { 7, 0 };
	struct scene scene = scene_with_fork(server, IMAGE_SIZE, "f", NULL);
	char list[120];

	scene_run("no prefetch", no_prefetch_body, &scene);
	snprintf(list, sizeof list, "%s/list.hpl1", server->dir);
	list_write(list, &elsewhere, 1);
	fork_create(server, "t", "g", ARGS("--prefetch", "eager", "--hot-list", list), scene.socket);
	scene.number = 1;
	scene_run("failed prefetch", no_prefetch_body, &scene);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_answers_to_the_handshake),		SERVED(test_a_socket_that_nobody_accepts_at),
		SERVED(test_servers_that_never_answer),		SERVED(test_talk_after_the_handshake),
		SERVED(test_a_server_that_does_not_let_go),	SERVED(test_refused_by_the_server),
		SERVED(test_server_killed_after_the_handshake), SERVED(test_ready_and_prefetched),
		SERVED(test_no_prefetch_or_a_failed_one),
	};

	return harness_run(tests);
}
