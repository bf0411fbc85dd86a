/*
 * Requests to the API: "METHOD TARGET\nBODY", of which the input's last byte is taken away to decide how the server behind it answers.
 * That server stands in for the real one: it checks that what reaches it is what src/serve/server.h says it may be given. Whatever the
 * request, there is one answer: good JSON or bytes, with a status that is documented for its error code.
 */
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "control/api_errors.h"
#include "control/routes.h"
#include "control/utf8.h"
#include "fuzz/fuzz.h"
#include "serve/server.h"

#define WAIT_MAX_S 86400

/* ---- the server behind the API ---- */

/* How it answers: 0 well, else with one of these. */
static const struct {
	int result;
	const char *code;
} failures[] = {
	{ -ENOENT, "fork_unknown" },	 { -EEXIST, "fork_exists" },   { -ETIMEDOUT, "timeout" },
	{ -EINVAL, "bad_name" },	 { -ENOMEM, "no_memory" },     { -ESHUTDOWN, "shutting_down" },
	{ -ENOENT, "template_unknown" }, { -EIO, "not_in_the_table" },
};

static struct server_behind {
	unsigned failure;   /* index in failures, plus one; 0: it succeeds */
	const char *remark; /* a part of the request, bad UTF-8 and all, that comes back in what it says */
	unsigned calls;
} server;

static int answer(struct error *err)
{
	server.calls++;
	if (!server.failure)
		return 0;
	return error_set(err, failures[server.failure - 1].result, failures[server.failure - 1].code, "no: %s",
			 server.remark);
}

static void check_word(const char *what, const char *text, bool required)
{
	PROMISE(text || !required, "%s is missing", what);
	PROMISE(!text || (*text && utf8_valid(text)), "%s is empty or not UTF-8", what);
}

static void check_path(const char *what, const char *path, bool required)
{
	check_word(what, path, required);
	PROMISE(!path || (*path == '/' && strlen(path) < PATH_MAX), "%s is no absolute path: %s", what, path);
}

static char *text_of(const char *text)
{
	char *copy = strdup(text);

	PROMISE(copy, "no memory");
	return copy;
}

void template_info_clear(struct template_info *info)
{
	free(info->memory);
	free(info->state);
	*info = (struct template_info){ 0 };
}

static void fill_template(struct template_info *ret)
{
	*ret = (struct template_info){ .name = "base", .memory = text_of("/memory"), .state = text_of(server.remark) };
}

static int answer_template(struct template_info *ret, struct error *err)
{
	int r = answer(err);

	if (r == 0)
		fill_template(ret);
	return r;
}

int server_template_add(struct server *s, const struct template_spec *spec, struct template_info *ret, struct error *err)
{
	(void)s;
	check_word("name", spec->name, true);
	check_path("memory", spec->memory, true);
	check_path("state", spec->state, false);
	check_path("hot_list", spec->hot_list, false);
	check_word("inject", spec->inject, false);
	return answer_template(ret, err);
}

int server_template_get(struct server *s, const char *name, struct template_info *ret, struct error *err)
{
	(void)s;
	check_word("name", name, true);
	return answer_template(ret, err);
}

int server_template_remove(struct server *s, const char *name, struct error *err)
{
	(void)s;
	check_word("name", name, true);
	return answer(err);
}

int server_template_list(struct server *s, struct template_info **ret, size_t *ret_count, struct error *err)
{
	int r = answer(err);

	(void)s;
	if (r < 0)
		return r;
	*ret = calloc(2, sizeof **ret);
	PROMISE(*ret, "no memory");
	for (size_t i = 0; i < 2; i++)
		fill_template(&(*ret)[i]);
	*ret_count = 2;
	return 0;
}

const char *fork_state_name(enum fork_state state)
{
	(void)state;
	return "waiting";
}

const char *prefetch_mode_name(enum prefetch_mode mode)
{
	return mode == PREFETCH_OFF ? "off" : "eager";
}

const char *prefetch_state_name(enum prefetch_state state)
{
	(void)state;
	return "none";
}

void fork_info_clear(struct fork_info *info)
{
	free(info->socket);
	free(info->error);
	free(info->regions);
	*info = (struct fork_info){ 0 };
}

static int answer_fork(struct fork_info *ret, struct error *err)
{
	int r = answer(err);

	if (r < 0)
		return r;
	*ret = (struct fork_info){
		.id = "a1", .template = "base", .socket = text_of("/run/a1.uffd"), .error = text_of(server.remark)
	};
	ret->regions = calloc(1, sizeof *ret->regions);
	PROMISE(ret->regions, "no memory");
	ret->region_count = 1;
	return 0;
}

int server_fork_create(struct server *s, const struct fork_spec *spec, struct fork_info *ret, struct error *err)
{
	(void)s;
	check_word("template", spec->template, true);
	check_word("id", spec->id, false);
	check_path("hot_list", spec->hot_list, false);
	check_path("dir", spec->dir, false);
	PROMISE(spec->prefetch == PREFETCH_OFF || spec->prefetch == PREFETCH_EAGER, "prefetch %d", spec->prefetch);
	return answer_fork(ret, err);
}

int server_fork_get(struct server *s, const char *id, struct fork_info *ret, struct error *err)
{
	(void)s;
	check_word("id", id, true);
	return answer_fork(ret, err);
}

int server_fork_list(struct server *s, struct fork_info **ret, size_t *ret_count, struct error *err)
{
	(void)s;
	*ret = calloc(1, sizeof **ret);
	PROMISE(*ret, "no memory");
	int r = answer_fork(*ret, err);
	if (r < 0) {
		free(*ret);
		*ret = NULL;
		return r;
	}
	*ret_count = 1;
	return 0;
}

int server_fork_wait(struct server *s, const char *id, enum fork_milestone milestone, uint64_t timeout_ns,
		     struct fork_info *ret, struct error *err)
{
	(void)s;
	check_word("id", id, true);
	PROMISE(milestone >= MILESTONE_CONNECTED && milestone <= MILESTONE_GONE, "milestone %d", milestone);
	PROMISE(timeout_ns <= WAIT_MAX_S * NSEC_PER_SEC, "a wait of %llu ns", (unsigned long long)timeout_ns);
	return answer_fork(ret, err);
}

int server_fork_ready(struct server *s, const char *id, struct fork_info *ret, struct error *err)
{
	return server_fork_get(s, id, ret, err);
}

int server_fork_prefetch(struct server *s, const char *id, const char *hot_list_path, struct fork_info *ret,
			 struct error *err)
{
	check_path("hot_list", hot_list_path, true);
	return server_fork_get(s, id, ret, err);
}

int server_fork_remove(struct server *s, const char *id, bool force, struct error *err)
{
	(void)force;
	return server_template_remove(s, id, err);
}

int server_fork_hot_list(struct server *s, const char *id, enum recording_source from, struct fork_recording *ret,
			 struct error *err)
{
	int r = server_template_remove(s, id, err);

	if (r < 0)
		return r;
	*ret = (struct fork_recording){ .list = hotlist_new(),
					.from = from == RECORDED_BEST ? RECORDED_BY_KERNEL : from,
					.why = "because" };
	PROMISE(ret->list && hotlist_add(ret->list, 0, 4096) == 0, "no memory");
	return 0;
}

const char *server_run_dir(const struct server *s)
{
	(void)s;
	return server.remark;
}

unsigned server_pager_count(const struct server *s)
{
	(void)s;
	return 2;
}

const char *server_observe_tier(const struct server *s)
{
	(void)s;
	return "tp_btf";
}

const char *recording_source_name(enum recording_source source)
{
	static const char *const names[] = { "best", "loop", "kernel" };

	return names[source];
}

void fork_recording_clear(struct fork_recording *recording)
{
	hotlist_free(recording->list);
}

/* Two touches, by a thread whose name is a part of the request. */
struct server_trace {
	unsigned reads;
};

int server_trace_open(struct server *s, const char *id, struct server_trace **ret, struct error *err)
{
	int r = server_template_remove(s, id, err);

	/* There are no forks of other names. */
	if (r >= 0 && id[strspn(id, "abcdefghijklmnopqrstuvwxyz0123456789-")])
		r = error_set(err, -ENOENT, "fork_unknown", "no such fork");
	if (r < 0)
		return r;
	*ret = calloc(1, sizeof **ret);
	PROMISE(*ret, "no memory");
	return 0;
}

ssize_t server_trace_read(struct server_trace *trace, struct observed_touch *ret, size_t max, uint64_t timeout_ns,
			  uint64_t *ret_lost)
{
	(void)timeout_ns;
	PROMISE(max >= 2, "no room");
	*ret_lost = trace->reads;
	if (trace->reads++ > 0)
		return -ESHUTDOWN;
	for (unsigned i = 0; i < 2; i++) {
		ret[i] = (struct observed_touch){
			.touch_ns = 1000, .run_ns = UINT64_MAX, .read_ns = i, .copied_ns = 5000, .demand = i
		};
		memcpy(ret[i].thread, server.remark, strnlen(server.remark, sizeof ret[i].thread));
	}
	return 2;
}

uint64_t server_trace_connected_ns(struct server_trace *trace)
{
	return trace->reads ? UINT64_MAX : 0;
}

void server_trace_close(struct server_trace *trace)
{
	free(trace);
}

/* ---- promises ---- */

/* A client that has gone: waits end at their first look. */
static int gone_client(void)
{
	static int fd = -1;
	int pair[2];

	if (fd < 0) {
		PROMISE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0, "no socket");
		close(pair[1]);
		fd = pair[0];
	}
	return fd;
}

static void check_error(const struct reply *reply)
{
	const char *code, *message;

	PROMISE(reply->json && !reply->data, "status %u without JSON", reply->status);
	PROMISE(json_unpack(reply->json, "{s:{s:s,s:s}}", "error", "code", &code, "message", &message) == 0,
		"status %u", reply->status);
	PROMISE(*message, "no message with %s", code);
	PROMISE(reply->status == api_error_status(code), "status %u for %s", reply->status, code);
	PROMISE(reply->status != 405 || reply->allow[0], "405 names no method");
}

static void check_lines(const struct reply_stream *stream)
{
	char text[4096];
	ssize_t n;
	unsigned lines = 0;

	while ((n = stream->read(stream->data, text, sizeof text - 1, 0, false)) >= 0) {
		text[n] = '\0';
		for (char *rest = text, *line; (line = strsep(&rest, "\n")) && *line; lines++) {
			json_t *json = json_loads(line, 0, NULL);

			PROMISE(json, "no JSON: %s", line);
			json_decref(json);
		}
	}
	PROMISE(lines == 5, "%u lines", lines);
}

static void check_reply(const struct reply *reply)
{
	if (reply->status >= 400) {
		check_error(reply);
	} else if (reply->stream.read) {
		PROMISE(reply->status == 200 && !reply->json && !reply->data && reply->stream.content_type,
			"a stream and more");
		check_lines(&reply->stream);
	} else if (reply->status == 204) {
		PROMISE(!reply->json && !reply->data, "status 204 with a body");
	} else {
		PROMISE(reply->status == 200 || reply->status == 201, "status %u", reply->status);
		PROMISE(!reply->json != !reply->data, "status %u with none of the two, or both", reply->status);
		PROMISE(!reply->data || reply->content_type, "bytes without a type");
	}
	if (reply->json) {
		char *text = json_dumps(reply->json, JSON_COMPACT | JSON_REAL_PRECISION(15));
		json_t *again = text ? json_loads(text, 0, NULL) : NULL;

		PROMISE(again && json_equal(again, reply->json), "an answer that is not JSON: %s", text ?: "none");
		json_decref(again);
		free(text);
	}
}

static void write_escaped(FILE *f, const char *text)
{
	for (; *text; text++)
		fprintf(f, "%%%02x", (unsigned char)*text);
}

/* Written with every byte escaped, a target means the same. */
static void check_target_again(const struct request *request)
{
	struct request again = { 0 };
	struct error err = { .message = "" };
	char *target = NULL;
	size_t size;
	FILE *f = open_memstream(&target, &size);

	PROMISE(f, "no memory");
	for (size_t i = 0; i < request->segment_count; i++) {
		fputc('/', f);
		write_escaped(f, request->segments[i]);
	}
	for (size_t i = 0; i < request->query_count; i++) {
		fputc(i ? '&' : '?', f);
		write_escaped(f, request->query[i].name);
		fputc('=', f);
		write_escaped(f, request->query[i].value);
	}
	fclose(f);
	if (size <= REQUEST_URI_MAX) {
		PROMISE(request_set_target(&again, target, &err) == 0, "%s: %s", target, err.message);
		PROMISE(again.segment_count == request->segment_count && again.query_count == request->query_count,
			"%s", target);
		for (size_t i = 0; i < request->segment_count; i++)
			PROMISE(!strcmp(again.segments[i], request->segments[i]), "segment %zu of %s", i, target);
		for (size_t i = 0; i < request->query_count; i++)
			PROMISE(!strcmp(again.query[i].name, request->query[i].name) &&
					!strcmp(again.query[i].value, request->query[i].value),
				"parameter %zu of %s", i, target);
		request_clear(&again);
	}
	free(target);
}

static void add_body(struct request *request, const char *body, size_t size, unsigned pieces)
{
	size_t step = size / pieces + 1;

	for (size_t at = 0; at < size; at += step) {
		size_t length = size - at < step ? size - at : step;
		char *piece = fuzz_exact_copy(body + at, length);

		PROMISE(request_add_body(request, piece, length) == 0, "no memory");
		free(piece);
	}
	PROMISE(request->body_size == size && (!size || !memcmp(request->body, body, size)), "the body came otherwise");
}

static void handle(struct request *request, const char *target, const char *body, size_t size, unsigned pieces,
		   struct reply *ret)
{
	struct error err = { .code = "" };

	if (request_set_target(request, target, &err) < 0) {
		PROMISE(!strcmp(err.code, "bad_uri") || !strcmp(err.code, "bad_query"), "%s", err.code);
		reply_error(ret, &err);
		return;
	}
	check_target_again(request);
	add_body(request, body, size, pieces);
	route_request(request, ret);
	PROMISE(server.calls <= 2, "%u calls", server.calls);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct request request = { .version = "0", .connection_fd = gone_client() };
	struct reply reply = { 0 };

	if (size == 0 || size > REQUEST_BODY_MAX)
		return 0;

	uint8_t decision = data[--size];
	const uint8_t *line_end = memchr(data, '\n', size);
	size_t line_size = line_end ? (size_t)(line_end - data) : size, body_at = line_end ? line_size + 1 : size;
	_cleanup_free_ char *line = strndup((const char *)data, line_size);
	_cleanup_free_ char *remark = line ? strdup(line) : NULL;
	char *target = line;

	PROMISE(remark, "no memory");
	server = (struct server_behind){ .failure = decision % (1 + sizeof failures / sizeof *failures),
					 .remark = remark };
	request.crowded = decision & 0x80;
	snprintf(request.method, sizeof request.method, "%s", strsep(&target, " "));
	handle(&request, target ?: "", (const char *)data + body_at, size - body_at, 1 + decision % 5, &reply);
	check_reply(&reply);
	reply_clear(&reply);
	request_clear(&request);
	return 0;
}
