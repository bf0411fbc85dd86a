/* Traces: somebody reads the touches of a fork while it runs. One may be opened before the fork connects, to miss none. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "serve/internal.h"

/* Events that were lost before they came to any trace are known by a counter: it is looked at so often. */
#define LOSSES_EVERY_NS (250 * NSEC_PER_MSEC)

struct server_trace {
	struct server *server;
	/* Under server->lock until it has begun or failed; fixed from then on. */
	bool begun;
	int error;		   /* why it will never begin */
	struct fork *fork;	   /* that it waits for; NULL from then on */
	struct server_trace *next; /* of that fork's */
	struct session *session;   /* a reference */
	const struct observer *observer;
	void *stream; /* the observer's */
	/* The reader's alone. */
	uint64_t lost; /* by the observer's counter, as told so far */
	uint64_t looked_ns;
};

static uint64_t count_lost(const struct server_trace *trace)
{
	const struct session *s = trace->session;
	struct observed_figures figures;

	return s->observer->figures(s->observer->data, s->observed, &figures) == 0 ? figures.events_lost : trace->lost;
}

/* With server->lock held; the fork has a session. 0 or negative errno. */
static int begin(struct server_trace *trace, struct session *session)
{
	const struct observer *observer = session->observer;

	if (!observer)
		return -ENODATA;
	int r = observer->trace_open(observer->data, session->observed, &trace->stream);
	if (r < 0)
		return r;
	trace->observer = observer;
	trace->session = session_ref(session);
	trace->lost = count_lost(trace);
	trace->begun = true;
	return 0;
}

void fork_release_traces(struct fork *fork)
{
	while (fork->traces) {
		struct server_trace *trace = fork->traces;

		fork->traces = trace->next;
		trace->fork = NULL;
		trace->error = fork->session ? begin(trace, fork->session) : -ESHUTDOWN;
	}
}

static int check_can_trace(const struct server *server, const struct fork *fork, const char *id, struct error *err)
{
	if (server->stopping)
		return error_set(err, -ESHUTDOWN, "shutting_down", "the server is stopping");
	if (!fork)
		return fork_unknown(id, err);
	if (!server->observer || (fork->session && !fork->session->observer))
		return error_set(err, -ENODATA, "not_observed",
				 "fork '%s' can't be traced, as %s is not observed: 'faultline doctor' says what observation needs, and "
				 "the server's log what went wrong",
				 id, server->observer ? "it" : "what this server serves");
	if (fork->state == FORK_GONE)
		return error_set(err, -ESRCH, "fork_gone", "fork '%s' has ended: it touches nothing any more", id);
	if (server->trace_count >= TRACES_MAX)
		return error_set(err, -EBUSY, "busy",
				 "%d traces are open already, which is the most that are served: end one first",
				 TRACES_MAX);
	return 0;
}

int server_trace_open(struct server *server, const char *id, struct server_trace **ret, struct error *err)
{
	LOCK_SCOPE(&server->lock);
	struct fork *fork = server_find_fork(server, id);
	int r = check_can_trace(server, fork, id, err);
	if (r < 0)
		return r;

	_cleanup_free_ struct server_trace *trace = calloc(1, sizeof *trace);
	if (!trace)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	trace->server = server;
	if (fork->session) {
		r = begin(trace, fork->session);
		if (r < 0)
			return error_set(err, r, "io_error", "cannot trace fork '%s': %s", id, strerror(-r));
	} else {
		trace->fork = fork;
		trace->next = fork->traces;
		fork->traces = trace;
	}
	server->trace_count++;
	*ret = TAKE_PTR(trace);
	return 0;
}

/* 1: it has begun, 0: not within TIMEOUT_NS, negative errno: it won't. */
static int await_begin(struct server_trace *trace, uint64_t timeout_ns)
{
	struct server *server = trace->server;
	uint64_t until = now_ns() + timeout_ns;
	struct timespec ts = { .tv_sec = (time_t)(until / NSEC_PER_SEC), .tv_nsec = (long)(until % NSEC_PER_SEC) };

	LOCK_SCOPE(&server->lock);
	while (!trace->begun && !trace->error) {
		if (server->stopping)
			return -ESHUTDOWN;
		if (pthread_cond_timedwait(&server->changed, &server->lock, &ts) == ETIMEDOUT)
			return trace->begun ? 1 : trace->error;
	}
	return trace->begun ? 1 : trace->error;
}

/* How many more have been lost since the last look, which is some time ago or the LAST. */
static uint64_t new_losses(struct server_trace *trace, bool last)
{
	uint64_t now = now_ns();

	if (!last && now - trace->looked_ns < LOSSES_EVERY_NS)
		return 0;
	trace->looked_ns = now;
	uint64_t before = trace->lost;
	trace->lost = count_lost(trace);
	return trace->lost - before;
}

ssize_t server_trace_read(struct server_trace *trace, struct observed_touch *ret, size_t max, uint64_t timeout_ns,
			  uint64_t *ret_lost)
{
	int r = await_begin(trace, timeout_ns);

	*ret_lost = 0;
	if (r <= 0)
		return r;
	ssize_t n = trace->observer->trace_read(trace->stream, ret, max, timeout_ns, ret_lost);
	*ret_lost += new_losses(trace, n < 0);
	return n;
}

uint64_t server_trace_connected_ns(struct server_trace *trace)
{
	LOCK_SCOPE(&trace->server->lock);
	return trace->begun ? trace->session->connected_ns : 0;
}

void server_trace_close(struct server_trace *trace)
{
	if (!trace)
		return;
	pthread_mutex_lock(&trace->server->lock);
	for (struct server_trace **p = trace->fork ? &trace->fork->traces : NULL; p && *p; p = &(*p)->next)
		if (*p == trace) {
			*p = trace->next;
			break;
		}
	trace->server->trace_count--;
	pthread_mutex_unlock(&trace->server->lock);
	if (trace->begun)
		trace->observer->trace_close(trace->stream);
	session_unref(trace->session);
	free(trace);
}
