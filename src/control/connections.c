/* Deadlines of connections: see connections.h. */
#include "control/connections.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"

/* Deadlines are kept this exactly: however many connections come and go, the watcher wakes no oftener. */
#define GRAIN_NS NSEC_PER_SEC

struct connection {
	struct connections *owner;
	int fd;
	uint64_t deadline_ns; /* 0: none */
	LIST_ENTRY(connection) link;
};

struct connections {
	pthread_mutex_t lock; /* protects all below, and the fds from being closed; a leaf */
	pthread_cond_t changed;
	LIST_HEAD(, connection) list;
	uint64_t wake_ns; /* when the watcher looks next */
	bool stop;
	pthread_t watcher;
};

/* Shuts down what is due. Returns the next deadline, 0 where there is none. */
static uint64_t expire(struct connections *connections, uint64_t now)
{
	uint64_t next = 0;

	for (struct connection *c = LIST_FIRST(&connections->list); c; c = LIST_NEXT(c, link)) {
		if (c->deadline_ns && c->deadline_ns <= now) {
			/* Its thread sees the end of the stream, and closes it. */
			shutdown(c->fd, SHUT_RDWR);
			c->deadline_ns = 0;
		}
		if (c->deadline_ns && (!next || c->deadline_ns < next))
			next = c->deadline_ns;
	}
	return next;
}

static void *watch(void *data)
{
	struct connections *connections = data;
	LOCK_SCOPE(&connections->lock);

	while (!connections->stop) {
		uint64_t now = now_ns(), next = expire(connections, now);

		if (!next) {
			connections->wake_ns = UINT64_MAX;
			pthread_cond_wait(&connections->changed, &connections->lock);
			continue;
		}
		connections->wake_ns = next > now + GRAIN_NS ? next : now + GRAIN_NS;

		struct timespec ts = {
			.tv_sec = (time_t)(connections->wake_ns / NSEC_PER_SEC),
			.tv_nsec = (long)(connections->wake_ns % NSEC_PER_SEC),
		};

		pthread_cond_timedwait(&connections->changed, &connections->lock, &ts);
	}
	return NULL;
}

int connections_new(struct connections **ret)
{
	struct connections *connections = calloc(1, sizeof *connections);
	pthread_condattr_t attr;

	if (!connections)
		return -ENOMEM;
	LIST_INIT(&connections->list);
	pthread_mutex_init(&connections->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&connections->changed, &attr);
	pthread_condattr_destroy(&attr);

	int r = pthread_create(&connections->watcher, NULL, watch, connections);

	if (r) {
		pthread_cond_destroy(&connections->changed);
		pthread_mutex_destroy(&connections->lock);
		free(connections);
		return -r;
	}
	*ret = connections;
	return 0;
}

void connections_free(struct connections *connections)
{
	if (!connections)
		return;
	pthread_mutex_lock(&connections->lock);
	connections->stop = true;
	pthread_cond_signal(&connections->changed);
	pthread_mutex_unlock(&connections->lock);
	pthread_join(connections->watcher, NULL);
	pthread_cond_destroy(&connections->changed);
	pthread_mutex_destroy(&connections->lock);
	free(connections);
}

static void set_deadline(struct connection *connection, uint64_t time_ns)
{
	connection->deadline_ns = time_ns ? now_ns() + time_ns : 0;
	if (time_ns && connection->deadline_ns < connection->owner->wake_ns)
		pthread_cond_signal(&connection->owner->changed);
}

struct connection *connection_add(struct connections *connections, int fd, uint64_t time_ns)
{
	struct connection *connection = calloc(1, sizeof *connection);

	if (!connection)
		return NULL;
	connection->owner = connections;
	connection->fd = fd;

	LOCK_SCOPE(&connections->lock);
	LIST_INSERT_HEAD(&connections->list, connection, link);
	set_deadline(connection, time_ns);
	return connection;
}

void connection_remove(struct connection *connection)
{
	if (!connection)
		return;

	pthread_mutex_t *lock = &connection->owner->lock;

	pthread_mutex_lock(lock);
	LIST_REMOVE(connection, link);
	pthread_mutex_unlock(lock);
	free(connection);
}

void connection_allow(struct connection *connection, uint64_t time_ns)
{
	if (!connection)
		return;

	LOCK_SCOPE(&connection->owner->lock);
	set_deadline(connection, time_ns);
}
