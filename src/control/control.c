/*
 * The control socket and its HTTP daemon. Each connection has a thread of its own, since `wait` and `prefetch` block; what a
 * client may take of them is bounded below. Handlers call the server object directly: its functions may be called from any thread.
 */
#include "control/control.h"

#include <errno.h>
#include <microhttpd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/clock.h"
#include "base/log.h"
#include "control/connections.h"
#include "control/request.h"
#include "control/routes.h"
#include "serve/server.h"

/* 1,000 forks may each have somebody waiting for them, and more than one. Beyond this no request may wait, ... */
#define REQUESTS_MAX 4096
/* ... so that others, which may end the waits, still find room. Beyond this, connections are closed unheard. */
#define CONNECTIONS_MAX (REQUESTS_MAX + 512)
/* For a burst of clients: connecting without waiting (as libcurl does) fails where the queue is full. */
#define LISTEN_BACKLOG CONNECTIONS_MAX
/* Address space, not memory: what is not touched costs nothing. The sanitizers' frames are the largest. */
#define THREAD_STACK_SIZE (512u << 10)
/* Of one connection, for its headers and pieces of its body; a request line is at most REQUEST_URI_MAX. */
#define CONNECTION_MEMORY (16u << 10)

#define REQUEST_TIME_NS (10 * NSEC_PER_SEC) /* for a client to send its request */
#define REPLY_TIME_NS	(60 * NSEC_PER_SEC) /* for it to read the answer: a hot list may be large */
#define IDLE_TIME_NS	(60 * NSEC_PER_SEC) /* between requests */
#define DRAIN_TIME_NS	(3 * NSEC_PER_SEC)  /* for requests under way to end when the server stops */

struct control {
	struct server *server;
	char *version;
	char *socket_path;
	int listen_fd;
	struct MHD_Daemon *daemon;
	struct connections *connections;

	pthread_mutex_t lock; /* protects the rest; a leaf */
	pthread_cond_t drained;
	unsigned active; /* requests that are complete and whose answer isn't read yet */
	bool stopping;
};

/* One request and its answer, owned by its connection's thread. */
struct exchange {
	struct control *control;
	struct request request;
	struct error error;
	int target_error; /* of a request line that can't be taken apart; then the error is filled */
	bool headers_done;
	bool active; /* counted in control->active */
};

static void control_free(struct control *control)
{
	if (!control)
		return;
	connections_free(control->connections);
	cleanup_close(&control->listen_fd);
	pthread_cond_destroy(&control->drained);
	pthread_mutex_destroy(&control->lock);
	free(control->socket_path);
	free(control->version);
	free(control);
}
DEFINE_CLEANUP(struct control, control_free)

static bool is_stopping(struct control *control)
{
	LOCK_SCOPE(&control->lock);
	return control->stopping;
}

/* Counts a request in. -ESHUTDOWN: there shall be no more of them. */
static int begin_active(struct exchange *exchange)
{
	struct control *control = exchange->control;
	LOCK_SCOPE(&control->lock);

	exchange->active = true;
	exchange->request.crowded = ++control->active > REQUESTS_MAX;
	if (control->stopping)
		return error_set(&exchange->error, -ESHUTDOWN, "shutting_down",
				 "the server is stopping: start it again first");
	return 0;
}

static void end_active(struct control *control)
{
	LOCK_SCOPE(&control->lock);
	if (!--control->active)
		pthread_cond_signal(&control->drained);
}

/* ---- answers ---- */

static struct MHD_Response *take_bytes(void *data, size_t size, const char *content_type)
{
	struct MHD_Response *response = MHD_create_response_from_buffer(size, data, MHD_RESPMEM_MUST_FREE);

	if (!response) {
		free(data);
		return NULL;
	}
	if (content_type)
		MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, content_type);
	return response;
}

static struct connection *connection_of(struct MHD_Connection *connection)
{
	const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);

	return info ? info->socket_context : NULL;
}

/* ---- streams ---- */

/* How often a stream that has nothing to tell looks whether anybody still listens, and whether the server is stopping. */
#define STREAM_SLICE_NS (250 * NSEC_PER_MSEC)
#define STREAM_BLOCK	(32u << 10)

struct stream {
	struct control *control;
	struct connection *connection;
	int fd;
	struct reply_stream source;
};

static bool peer_is_gone(int fd)
{
	struct pollfd p = { .fd = fd };

	return poll(&p, 1, 0) == 1 && (p.revents & (POLLHUP | POLLERR));
}

/* A client may take as long as it likes between events, but each piece has to be read in time. */
static ssize_t read_stream(void *data, uint64_t position, char *buffer, size_t size)
{
	struct stream *stream = data;
	ssize_t n;

	(void)position;
	connection_allow(stream->connection, 0);
	do {
		n = stream->source.read(stream->source.data, buffer, size, STREAM_SLICE_NS,
					is_stopping(stream->control));
	} while (n == 0 && !peer_is_gone(stream->fd));
	connection_allow(stream->connection, REPLY_TIME_NS);
	return n > 0 ? n : MHD_CONTENT_READER_END_OF_STREAM;
}

static void close_stream(void *data)
{
	struct stream *stream = data;

	stream->source.close(stream->source.data);
	free(stream);
}

/* Takes the reply's stream. */
static struct MHD_Response *build_stream(struct exchange *exchange, struct connection *connection, struct reply *reply)
{
	struct stream *stream = calloc(1, sizeof *stream);

	if (!stream)
		return NULL;
	stream->control = exchange->control;
	stream->connection = connection;
	stream->fd = exchange->request.connection_fd;
	stream->source = reply->stream;

	struct MHD_Response *response =
		MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK, read_stream, stream, close_stream);

	if (!response) {
		free(stream);
		return NULL;
	}
	reply->stream = (struct reply_stream){ 0 };
	MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, stream->source.content_type);
	return response;
}

static struct MHD_Response *build_response(struct reply *reply)
{
	if (!reply->json)
		return take_bytes(TAKE_PTR(reply->data), reply->size, reply->content_type);

	_cleanup_free_ char *text = json_dumps(reply->json, JSON_COMPACT | JSON_REAL_PRECISION(15));
	char *line = NULL;
	int n = text ? asprintf(&line, "%s\n", text) : -1;

	return n < 0 ? NULL : take_bytes(line, (size_t)n, "application/json");
}

static enum MHD_Result send_reply(struct MHD_Connection *connection, struct exchange *exchange, struct reply *reply)
{
	struct MHD_Response *response =
		reply->stream.read ? build_stream(exchange, connection_of(connection), reply) : build_response(reply);

	/* Without memory for an answer, the connection ends. */
	if (!response)
		return MHD_NO;
	for (size_t i = 0; i < reply->header_count; i++)
		MHD_add_response_header(response, reply->headers[i].name, reply->headers[i].value);
	if (reply->status == 405)
		MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, reply->allow);
	if (is_stopping(exchange->control))
		MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close");
	MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");

	enum MHD_Result result = MHD_queue_response(connection, reply->status, response);

	MHD_destroy_response(response);
	return result;
}

static void find_reply(struct exchange *exchange, struct reply *ret)
{
	int r = begin_active(exchange);

	*ret = (struct reply){ 0 };
	if (r >= 0 && exchange->target_error < 0)
		r = exchange->target_error;
	if (r >= 0 && exchange->request.body_size > REQUEST_BODY_MAX)
		r = error_set(&exchange->error, -EMSGSIZE, "body_too_large",
			      "the body is larger than %u bytes: a hot list is named by its path, not sent",
			      REQUEST_BODY_MAX);
	if (r < 0)
		reply_error(ret, &exchange->error);
	else
		route_request(&exchange->request, ret);
}

/* ---- libmicrohttpd's callbacks ---- */

static int fd_of(struct MHD_Connection *connection)
{
	const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);

	return info ? info->connect_fd : -1;
}

static void on_connection(void *data, struct MHD_Connection *connection, void **context,
			  enum MHD_ConnectionNotificationCode code)
{
	struct control *control = data;

	if (code == MHD_CONNECTION_NOTIFY_STARTED) {
		*context = connection_add(control->connections, fd_of(connection), REQUEST_TIME_NS);
	} else {
		connection_remove(*context);
		*context = NULL;
	}
}

/* The request line is there: TARGET as the client wrote it. What is returned becomes the request's context. */
static void *on_request_line(void *data, const char *target, struct MHD_Connection *connection)
{
	struct control *control = data;
	struct exchange *exchange = calloc(1, sizeof *exchange);

	if (!exchange)
		return NULL;
	exchange->control = control;
	exchange->request.server = control->server;
	exchange->request.version = control->version;
	exchange->request.connection_fd = fd_of(connection);
	exchange->target_error = request_set_target(&exchange->request, target, &exchange->error);
	connection_allow(connection_of(connection), REQUEST_TIME_NS);
	return exchange;
}

static void on_completed(void *data, struct MHD_Connection *connection, void **context,
			 enum MHD_RequestTerminationCode code)
{
	struct control *control = data;
	struct exchange *exchange = *context;

	(void)code;
	if (!exchange)
		return;
	connection_allow(connection_of(connection), IDLE_TIME_NS);
	if (exchange->active)
		end_active(control);
	request_clear(&exchange->request);
	free(exchange);
	*context = NULL;
}

/* Called once with the headers, then for each piece of the body, then once more. */
static enum MHD_Result on_request(void *data, struct MHD_Connection *connection, const char *url, const char *method,
				  const char *http_version, const char *upload, size_t *upload_size, void **context)
{
	struct exchange *exchange = *context;
	struct reply reply;

	(void)data;
	(void)url; /* decoded by the library, so that "%2F" and "/" are one: the raw target is used instead */
	(void)http_version;
	if (!exchange)
		return MHD_NO;
	if (!exchange->headers_done) {
		exchange->headers_done = true;
		snprintf(exchange->request.method, sizeof exchange->request.method, "%s", method);
		return MHD_YES;
	}
	if (*upload_size) {
		int r = request_add_body(&exchange->request, upload, *upload_size);

		*upload_size = 0;
		return r < 0 ? MHD_NO : MHD_YES;
	}

	connection_allow(connection_of(connection), 0);
	find_reply(exchange, &reply);
	connection_allow(connection_of(connection), REPLY_TIME_NS);

	enum MHD_Result result = send_reply(connection, exchange, &reply);

	reply_clear(&reply);
	return result;
}

/* The library's complaints are about single clients that went away or talked nonsense. */
static void __attribute__((format(printf, 2, 0))) on_library_message(void *data, const char *format, va_list ap)
{
	char message[512];

	(void)data;
	vsnprintf(message, sizeof message, format, ap);
	message[strcspn(message, "\n")] = '\0';
	log_debug("control", "libmicrohttpd: %s", message);
}

/* ---- start and stop ---- */

/* A socket that is left over belongs to a dead server: this one holds the run directory's lock. */
static int remove_stale_socket(const char *path, struct error *err)
{
	struct stat st;

	if (lstat(path, &st) < 0)
		return errno == ENOENT ? 0 : error_set(err, -errno, "io_error", "can't look at %s: %m", path);
	if (!S_ISSOCK(st.st_mode))
		return error_set(err, -EEXIST, "bad_run_dir",
				 "%s is in the way of the control socket and is no socket: remove it", path);
	if (unlink(path) < 0)
		return error_set(err, -errno, "io_error", "can't remove the stale socket %s: %m", path);
	return 0;
}

static int listen_at(const char *path, int *ret, struct error *err)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	_cleanup_close_ int fd = -1;
	size_t length = strlen(path);

	if (length >= sizeof address.sun_path)
		return error_set(err, -ENAMETOOLONG, "bad_run_dir",
				 "%s is %zu bytes too long a path for a socket: choose a shorter run directory", path,
				 length - sizeof address.sun_path + 1);
	memcpy(address.sun_path, path, length + 1);

	int r = remove_stale_socket(path, err);

	if (r < 0)
		return r;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	/* The mode of an unbound socket is the one that its file is made with: there is no moment with another. */
	if (fd < 0 || fchmod(fd, 0600) < 0 ||
	    bind(fd, (struct sockaddr *)&address, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + 1)) < 0 ||
	    listen(fd, LISTEN_BACKLOG) < 0)
		return error_set(err, -errno, "io_error", "can't listen on %s: %m", path);
	*ret = TAKE_FD(fd);
	return 0;
}

static struct MHD_Daemon *start_daemon(struct control *control)
{
	unsigned flags = MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_THREAD_PER_CONNECTION | MHD_USE_POLL | MHD_USE_ITC |
			 MHD_USE_ERROR_LOG;

	/* The logger comes first, so that it hears of what is wrong with the rest. */
	return MHD_start_daemon(flags, 0, NULL, NULL, on_request, control, MHD_OPTION_EXTERNAL_LOGGER,
				on_library_message, NULL, MHD_OPTION_LISTEN_SOCKET, control->listen_fd,
				MHD_OPTION_CONNECTION_LIMIT, CONNECTIONS_MAX, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
				(size_t)CONNECTION_MEMORY, MHD_OPTION_THREAD_STACK_SIZE, (size_t)THREAD_STACK_SIZE,
				MHD_OPTION_NOTIFY_CONNECTION, on_connection, control, MHD_OPTION_URI_LOG_CALLBACK,
				on_request_line, control, MHD_OPTION_NOTIFY_COMPLETED, on_completed, control,
				MHD_OPTION_END);
}

/* The threads must leave SIGTERM to the main loop, so they start with every signal blocked. */
static int start_threads(struct control *control, struct error *err)
{
	sigset_t all, old;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);

	int r = connections_new(&control->connections);

	if (r >= 0) {
		control->daemon = start_daemon(control);
		r = control->daemon ? 0 : -EAGAIN;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r < 0)
		return error_set(err, r, "io_error",
				 "can't start the threads that answer on %s: %s; the limits on processes and open files may "
				 "be too low",
				 control->socket_path, strerror(-r));
	return 0;
}

static struct control *control_new(struct server *server, const char *version)
{
	struct control *control = calloc(1, sizeof *control);
	pthread_condattr_t attr;

	if (!control)
		return NULL;
	control->server = server;
	control->listen_fd = -1;
	pthread_mutex_init(&control->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&control->drained, &attr);
	pthread_condattr_destroy(&attr);

	control->version = strdup(version);
	if (asprintf(&control->socket_path, "%s/" CONTROL_SOCKET_NAME, server_run_dir(server)) < 0)
		control->socket_path = NULL;
	if (control->version && control->socket_path)
		return control;
	control_free(control);
	return NULL;
}

int control_start(struct server *server, const char *version, struct control **ret, struct error *err)
{
	_cleanup_(cleanup_control_free) struct control *control = control_new(server, version);

	if (!control)
		return error_set(err, -ENOMEM, "no_memory", "there is no memory for the control socket");
	/* Seeded before there are threads: the first use would seed it from any of them. */
	json_object_seed(0);

	int r = listen_at(control->socket_path, &control->listen_fd, err);

	if (r < 0)
		return r;
	r = start_threads(control, err);
	if (r < 0) {
		unlink(control->socket_path);
		return r;
	}
	*ret = TAKE_PTR(control);
	return 0;
}

/* New requests are refused from here on; those under way get DRAIN_TIME_NS to have their answers read. */
static void drain(struct control *control)
{
	uint64_t end = now_ns() + DRAIN_TIME_NS;
	struct timespec ts = { .tv_sec = (time_t)(end / NSEC_PER_SEC), .tv_nsec = (long)(end % NSEC_PER_SEC) };
	LOCK_SCOPE(&control->lock);

	control->stopping = true;
	while (control->active && pthread_cond_timedwait(&control->drained, &control->lock, &ts) != ETIMEDOUT)
		;
}

void control_stop(struct control *control)
{
	if (!control)
		return;
	unlink(control->socket_path);
	/* The library has the socket until its thread is joined; then it is ours again, to be closed by control_free. */
	MHD_quiesce_daemon(control->daemon);
	drain(control);
	MHD_stop_daemon(control->daemon);
	control_free(control);
}
