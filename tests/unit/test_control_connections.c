/* Deadlines of connections: who is late is shut down, who is in time is not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <poll.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "control/connections.h"

struct pair {
	int ours, theirs;
	struct connection *connection;
};

static struct pair open_pair(struct connections *connections, uint64_t time_ns)
{
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);

	struct pair pair = { .ours = fds[0], .theirs = fds[1] };

	pair.connection = connection_add(connections, pair.ours, time_ns);
	assert_non_null(pair.connection);
	return pair;
}

static void close_pair(struct pair *pair)
{
	connection_remove(pair->connection);
	close(pair->ours);
	close(pair->theirs);
}

/* Whether the other end sees the end of the stream within TIMEOUT_MS. */
static bool is_shut_down(const struct pair *pair, int timeout_ms)
{
	struct pollfd p = { .fd = pair->theirs, .events = POLLIN };
	char byte;

	return poll(&p, 1, timeout_ms) == 1 && read(pair->theirs, &byte, 1) == 0;
}

static void late_connections_are_shut_down(void **state)
{
	struct connections *connections;

	(void)state;
	assert_int_equal(connections_new(&connections), 0);

	struct pair patient = open_pair(connections, 0), slow = open_pair(connections, 100 * NSEC_PER_SEC);
	struct pair late = open_pair(connections, 50 * NSEC_PER_MSEC);

	assert_true(is_shut_down(&late, 20000));
	assert_false(is_shut_down(&patient, 0));
	assert_false(is_shut_down(&slow, 0));

	/* Each deadline replaces the one before, to an earlier time and to none. */
	connection_allow(slow.connection, NSEC_PER_MSEC);
	assert_true(is_shut_down(&slow, 20000));
	close_pair(&late);
	close_pair(&slow);
	close_pair(&patient);
	connections_free(connections);
}

static void working_connections_have_no_deadline(void **state)
{
	struct connections *connections;

	(void)state;
	assert_int_equal(connections_new(&connections), 0);

	struct pair working = open_pair(connections, 300 * NSEC_PER_MSEC), late;

	connection_allow(working.connection, 0);
	late = open_pair(connections, 500 * NSEC_PER_MSEC);
	assert_true(is_shut_down(&late, 20000));
	assert_false(is_shut_down(&working, 0));
	close_pair(&working);
	close_pair(&late);
	connections_free(connections);
}

static void nothing_is_fine(void **state)
{
	(void)state;
	connection_allow(NULL, 1);
	connection_remove(NULL);
	connections_free(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(late_connections_are_shut_down),
		cmocka_unit_test(working_connections_have_no_deadline),
		cmocka_unit_test(nothing_is_fine),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
