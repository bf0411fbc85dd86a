/* The API's client side, over libcurl: see api_client.h. */
#include "cli/api_client.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/clock.h"
#include "cli/cli.h"

/* No answer of ours is larger: a hot list of every page of a very large guest. More is not our server. */
#define ANSWER_MAX (1ull << 30)

/* A server that runs accepts at once; it may take a moment, and more than one try, where very many connect together. */
#define CONNECT_TIMEOUT_S 30
#define CONNECT_TRIES	  100

struct api_client {
	CURL *curl;
	char *run_dir;
	char *socket_path;
};

void api_reply_clear(struct api_reply *reply)
{
	free(reply->body);
	json_decref(reply->json);
	free(reply->recorded_by);
	free(reply->recorded_why);
	*reply = (struct api_reply){ 0 };
}

void api_client_free(struct api_client *client)
{
	if (!client)
		return;
	if (client->curl)
		curl_easy_cleanup(client->curl);
	free(client->run_dir);
	free(client->socket_path);
	free(client);
}

int api_client_new(const char *run_dir, struct api_client **ret, struct error *err)
{
	_cleanup_api_client_ struct api_client *client = calloc(1, sizeof *client);

	if (!run_dir || !*run_dir)
		run_dir = getenv("FAULTLINE_RUN_DIR");
	if (!run_dir || !*run_dir)
		run_dir = API_DEFAULT_RUN_DIR;
	if (!client || !(client->run_dir = strdup(run_dir)) ||
	    asprintf(&client->socket_path, "%s/control.sock", run_dir) < 0 || !(client->curl = curl_easy_init()))
		return error_set(err, -ENOMEM, "no_memory", "there is not enough memory to talk to a server");
	if (strlen(client->socket_path) >= sizeof(((struct sockaddr_un *)NULL)->sun_path))
		return error_set(err, -ENAMETOOLONG, "bad_run_dir",
				 "the run directory %s is too long a path for a socket in it: choose one of at most %zu bytes",
				 run_dir, sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1 - strlen("/control.sock"));
	*ret = TAKE_PTR(client);
	return 0;
}

/* ---- one call ---- */

struct answer {
	struct api_reply *reply;
	size_t capacity;
};

static size_t receive(char *data, size_t one, size_t count, void *user)
{
	struct answer *answer = user;
	struct api_reply *reply = answer->reply;
	size_t size = one * count;

	if (size > ANSWER_MAX - reply->size)
		return 0;
	if (reply->size + size + 1 > answer->capacity) {
		size_t capacity = 2 * (reply->size + size + 1);
		char *body = realloc(reply->body, capacity);

		if (!body)
			return 0;
		reply->body = body;
		answer->capacity = capacity;
	}
	memcpy(reply->body + reply->size, data, size);
	reply->size += size;
	reply->body[reply->size] = '\0';
	return size;
}

/* Keeps the value of a header called NAME in RET, if LINE ("Name: value\r\n") is one. */
static void keep_header(const char *line, size_t size, const char *name, char **ret)
{
	size_t length = strlen(name);

	if (size <= length || strncasecmp(line, name, length) || line[length] != ':' || *ret)
		return;
	line += length + 1;
	size -= length + 1;
	while (size > 0 && *line == ' ') {
		line++;
		size--;
	}
	*ret = strndup(line, size);
	if (*ret)
		(*ret)[strcspn(*ret, "\r\n")] = '\0';
}

static size_t receive_header(char *line, size_t one, size_t count, void *user)
{
	struct api_reply *reply = user;

	keep_header(line, one * count, "Faultline-Recorded-By", &reply->recorded_by);
	keep_header(line, one * count, "Faultline-Recorded-Why", &reply->recorded_why);
	return one * count;
}

/*
 * Why the connection failed. libcurl does not wait where the socket's queue is full, and does not tell that from a socket
 * that nobody listens on: so this connects once more, and waits. Returns 0 where that went well, and the call is worth
 * another try.
 */
static int diagnose_connection(struct api_client *client, struct error *err)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct timeval timeout = { .tv_sec = CONNECT_TIMEOUT_S };
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	memcpy(address.sun_path, client->socket_path, strlen(client->socket_path));
	if (fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout) >= 0 &&
	    connect(fd, (struct sockaddr *)&address, sizeof address) >= 0)
		return 0;
	if (errno == EACCES || errno == EPERM)
		return error_set(err, -EACCES, "no_permission",
				 "%s can't be used by this user: run the command as the user that runs the server (often root)",
				 client->socket_path);
	if (errno == EAGAIN)
		return error_set(err, -EAGAIN, "no_answer",
				 "the server at %s takes no connections: too many clients wait for it, or it is stuck",
				 client->socket_path);
	return error_set(err, -ECONNREFUSED, "no_server",
			 "no faultline server answers at %s: start one with 'faultline serve --run-dir %s', or name another "
			 "directory with --run-dir",
			 client->socket_path, client->run_dir);
}

static int perform(struct api_client *client, CURLcode *ret, struct error *err)
{
	for (int tries = 0; tries < CONNECT_TRIES; tries++) {
		*ret = curl_easy_perform(client->curl);
		if (*ret != CURLE_COULDNT_CONNECT)
			return 0;

		int r = diagnose_connection(client, err);

		if (r < 0)
			return r;
	}
	return error_set(err, -EAGAIN, "no_answer",
			 "the server at %s is too busy to take a connection: try again later", client->socket_path);
}

/* Why nothing answered, in the user's terms. */
static int transport_error(struct api_client *client, CURLcode code, const char *detail, struct error *err)
{
	if (code == CURLE_OPERATION_TIMEDOUT)
		return error_set(err, -ETIMEDOUT, "no_answer",
				 "the server at %s did not answer in time: look at its log, it may be stuck",
				 client->socket_path);
	if (code == CURLE_GOT_NOTHING || code == CURLE_RECV_ERROR || code == CURLE_SEND_ERROR ||
	    code == CURLE_PARTIAL_FILE)
		return error_set(err, -ECONNRESET, "no_answer",
				 "the server at %s closed the connection without a whole answer: look at its log, it may have "
				 "stopped",
				 client->socket_path);
	return error_set(err, -EIO, "bad_answer", "the call to %s failed: %s", client->socket_path,
			 *detail ? detail : curl_easy_strerror(code));
}

/* Turns {"error":{"code":…,"message":…}} into ERR. */
static int refusal(struct api_client *client, const struct api_reply *reply, struct error *err)
{
	const char *code, *message;

	if (json_unpack(reply->json, "{s:{s:s,s:s}}", "error", "code", &code, "message", &message))
		return error_set(err, -EPROTO, "bad_answer",
				 "what answers at %s (HTTP status %ld) is not a faultline server of this version",
				 client->socket_path, reply->status);
	return error_set(err, -EREMOTEIO, code, "%s", message);
}

/* The body in text, and the headers for it. */
static int prepare_body(struct api_client *client, const json_t *body, char **ret_text, struct curl_slist **ret_headers,
			struct error *err)
{
	*ret_text = json_dumps(body, JSON_COMPACT);
	*ret_headers = curl_slist_append(NULL, "Content-Type: application/json");
	if (!*ret_text || !*ret_headers)
		return error_set(err, -ENOMEM, "no_memory", "there is not enough memory for the request");
	curl_easy_setopt(client->curl, CURLOPT_POSTFIELDS, *ret_text);
	curl_easy_setopt(client->curl, CURLOPT_HTTPHEADER, *ret_headers);
	return 0;
}

static void cleanup_slist(struct curl_slist **list)
{
	curl_slist_free_all(*list);
}

static void set_up(struct api_client *client, const char *url, char *detail)
{
	CURL *curl = client->curl;

	curl_easy_reset(curl);
	curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, client->socket_path);
	curl_easy_setopt(curl, CURLOPT_URL, url);
	/* A name like ".." must reach the server as it is. */
	curl_easy_setopt(curl, CURLOPT_PATH_AS_IS, 1L);
	curl_easy_setopt(curl, CURLOPT_PROXY, "");
	curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, detail);
}

int api_call(struct api_client *client, const char *method, const char *path, const json_t *body, unsigned timeout_s,
	     struct api_reply *ret, struct error *err)
{
	_cleanup_free_ char *url = NULL, *text = NULL;
	_cleanup_(cleanup_slist) struct curl_slist *headers = NULL;
	char detail[CURL_ERROR_SIZE] = "";
	struct answer answer = { .reply = ret };
	CURL *curl = client->curl;

	*ret = (struct api_reply){ 0 };
	if (asprintf(&url, "http://faultline%s", path) < 0)
		return error_set(err, -ENOMEM, "no_memory", "there is not enough memory for the request");

	set_up(client, url, detail);
	curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, receive_header);
	curl_easy_setopt(curl, CURLOPT_HEADERDATA, ret);
	curl_easy_setopt(curl, CURLOPT_TIMEOUT, (long)timeout_s);
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, receive);
	curl_easy_setopt(curl, CURLOPT_WRITEDATA, &answer);
	curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);

	CURLcode code = CURLE_OK;
	int r = body ? prepare_body(client, body, &text, &headers, err) : 0;

	if (r >= 0)
		r = perform(client, &code, err);
	if (r < 0)
		return r;
	if (code != CURLE_OK)
		return transport_error(client, code, detail, err);
	curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &ret->status);

	/* Bytes that aren't JSON (a list as HPL1) simply don't parse. */
	if (ret->size)
		ret->json = json_loadb(ret->body, ret->size, 0, NULL);
	if (ret->status < 200 || ret->status > 299)
		return refusal(client, ret, err);
	return 0;
}

/* ---- streams ---- */

struct streaming {
	CURL *curl;
	const struct api_stream *stream;
	struct answer refused; /* what came with a status that isn't 200 */
	bool left;
};

static size_t receive_piece(char *data, size_t one, size_t count, void *user)
{
	struct streaming *streaming = user;
	long status = 0;

	curl_easy_getinfo(streaming->curl, CURLINFO_RESPONSE_CODE, &status);
	if (status != 200)
		return receive(data, one, count, &streaming->refused);
	if (streaming->stream->take(streaming->stream->data, data, one * count))
		return one * count;
	streaming->left = true;
	return 0;
}

/* Until something comes, or it is time to leave: true. */
static bool wait_for_piece(CURLM *multi, const struct api_stream *stream)
{
	struct curl_waitfd stop = { .fd = stream->stop_fd, .events = CURL_WAIT_POLLIN };
	uint64_t now = now_ns(), left = stream->deadline_ns > now ? stream->deadline_ns - now : 0;
	uint64_t ms = stream->deadline_ns ? (left + NSEC_PER_MSEC - 1) / NSEC_PER_MSEC : 60000;

	curl_multi_poll(multi, &stop, stream->stop_fd >= 0, ms < 60000 ? (int)ms : 60000, NULL);
	return (stop.revents & CURL_WAIT_POLLIN) || (stream->deadline_ns && now_ns() >= stream->deadline_ns);
}

static int run_stream(CURLM *multi, struct streaming *streaming, CURLcode *ret)
{
	int running = 1, queued;

	*ret = CURLE_OK;
	while (running > 0) {
		if (curl_multi_perform(multi, &running) != CURLM_OK)
			return -EIO;
		if (running > 0 && wait_for_piece(multi, streaming->stream)) {
			streaming->left = true;
			return 0;
		}
	}
	for (CURLMsg *message; (message = curl_multi_info_read(multi, &queued));)
		if (message->msg == CURLMSG_DONE)
			*ret = message->data.result;
	return 0;
}

static int stream_once(struct api_client *client, struct streaming *streaming, CURLcode *ret, struct error *err)
{
	CURLM *multi = curl_multi_init();

	if (!multi || curl_multi_add_handle(multi, client->curl) != CURLM_OK) {
		curl_multi_cleanup(multi);
		return error_set(err, -ENOMEM, "no_memory", "there is not enough memory for the request");
	}
	int r = run_stream(multi, streaming, ret);
	curl_multi_remove_handle(multi, client->curl);
	curl_multi_cleanup(multi);
	return r < 0 ? error_set(err, r, "bad_answer", "the call to %s failed", client->socket_path) : 0;
}

int api_stream(struct api_client *client, const char *path, const struct api_stream *stream, struct error *err)
{
	_cleanup_free_ char *url = NULL;
	_cleanup_api_reply_ struct api_reply reply = { 0 };
	char detail[CURL_ERROR_SIZE] = "";
	struct streaming streaming = { .curl = client->curl, .stream = stream, .refused = { .reply = &reply } };
	CURLcode code = CURLE_OK;

	if (asprintf(&url, "http://faultline%s", path) < 0)
		return error_set(err, -ENOMEM, "no_memory", "there is not enough memory for the request");
	set_up(client, url, detail);
	curl_easy_setopt(client->curl, CURLOPT_WRITEFUNCTION, receive_piece);
	curl_easy_setopt(client->curl, CURLOPT_WRITEDATA, &streaming);
	for (int tries = 0; tries < CONNECT_TRIES; tries++) {
		int r = stream_once(client, &streaming, &code, err);
		if (r == 0 && code == CURLE_COULDNT_CONNECT)
			r = diagnose_connection(client, err);
		if (r < 0)
			return r;
		if (code != CURLE_COULDNT_CONNECT)
			break;
	}
	if (streaming.left)
		return 0;
	if (code != CURLE_OK)
		return transport_error(client, code, detail, err);
	curl_easy_getinfo(client->curl, CURLINFO_RESPONSE_CODE, &reply.status);
	if (reply.status == 200)
		return 0;
	if (reply.size)
		reply.json = json_loadb(reply.body, reply.size, 0, NULL);
	return refusal(client, &reply, err);
}

int api_path(const char *prefix, const char *name, const char *suffix, char **ret, struct error *err)
{
	if (!*name)
		return error_set(err, -EINVAL, "bad_name",
				 "a name is empty: template names and fork ids have 1 to 64 of A-Z a-z 0-9 . _ -");

	char *escaped = curl_easy_escape(NULL, name, 0);
	int n = escaped ? asprintf(ret, "%s%s%s", prefix, escaped, suffix) : -1;

	curl_free(escaped);
	if (n < 0)
		return error_set(err, -ENOMEM, "no_memory", "there is not enough memory for the request");
	return 0;
}

int api_exit_code(const struct error *err)
{
	static const struct {
		const char *code;
		enum exit_code exit_code;
	} table[] = {
		{ "usage", EXIT_USAGE },	  { "no_server", EXIT_NO_SERVER }, { "template_unknown", EXIT_UNKNOWN },
		{ "fork_unknown", EXIT_UNKNOWN }, { "timeout", EXIT_TIMEOUT },
	};

	for (size_t i = 0; i < sizeof table / sizeof *table; i++)
		if (!strcmp(err->code, table[i].code))
			return table[i].exit_code;
	return EXIT_FAILED;
}

int api_absolute_path(const char *path, char **ret, struct error *err)
{
	_cleanup_free_ char *directory = NULL;

	if (!*path)
		return error_set(err, -EINVAL, "bad_path", "a path is empty: name a file or directory");
	if (*path != '/' && !(directory = getcwd(NULL, 0)))
		return error_set(err, -errno, "bad_path",
				 "the working directory has no path (%s), so %s can't be made absolute: give an absolute path",
				 strerror(errno), path);
	while (directory && !strncmp(path, "./", 2))
		path += 2 + strspn(path + 2, "/");
	if (!strcmp(path, "."))
		path = "";

	bool slash = directory && *path && strcmp(directory, "/");

	if (asprintf(ret, "%s%s%s", directory ?: "", slash ? "/" : "", path) < 0)
		return error_set(err, -ENOMEM, "no_memory", "there is not enough memory for the path %s", path);
	return 0;
}
