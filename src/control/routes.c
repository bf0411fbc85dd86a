/* The route table and its dispatch: see routes.h. */
#include "control/routes.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "control/api_errors.h"
#include "control/encode.h"
#include "control/utf8.h"
#include "serve/server.h"

static int handle_routes(struct request *request, struct reply *reply, struct error *err);
static int handle_server(struct request *request, struct reply *reply, struct error *err);

struct route {
	const char *method;
	const char *path; /* a segment in braces is a name */
	route_handler handler;
	bool has_body;		  /* the handler reads it; else there must be none */
	bool blocks;		  /* the handler may take as long as it likes */
	const char *const *query; /* parameters that may be there */
};

static const char *const remove_query[] = { "force", NULL };
static const char *const wait_query[] = { "for", "timeout_s", NULL };
static const char *const hot_list_query[] = { "from", "format", NULL };

static const struct route routes[] = {
	{ "GET", "/v1", handle_routes, false, false, NULL },
	{ "GET", "/v1/server", handle_server, false, false, NULL },
	{ "GET", "/v1/templates", handle_templates_list, false, false, NULL },
	{ "POST", "/v1/templates", handle_templates_add, true, false, NULL },
	{ "GET", "/v1/templates/{name}", handle_template_get, false, false, NULL },
	{ "DELETE", "/v1/templates/{name}", handle_template_remove, false, false, NULL },
	{ "GET", "/v1/forks", handle_forks_list, false, false, NULL },
	{ "POST", "/v1/forks", handle_forks_create, true, false, NULL },
	{ "GET", "/v1/forks/{id}", handle_fork_get, false, false, NULL },
	{ "DELETE", "/v1/forks/{id}", handle_fork_remove, false, false, remove_query },
	{ "GET", "/v1/forks/{id}/wait", handle_fork_wait, false, true, wait_query },
	{ "POST", "/v1/forks/{id}/ready", handle_fork_ready, false, false, NULL },
	{ "POST", "/v1/forks/{id}/prefetch", handle_fork_prefetch, true, true, NULL },
	{ "GET", "/v1/forks/{id}/hot-list", handle_fork_hot_list, false, false, hot_list_query },
	{ "GET", "/v1/forks/{id}/trace", handle_fork_trace, false, true, NULL },
};

#define ROUTE_COUNT (sizeof routes / sizeof *routes)

void reply_clear(struct reply *reply)
{
	if (reply->stream.close)
		reply->stream.close(reply->stream.data);
	json_decref(reply->json);
	free(reply->data);
	for (size_t i = 0; i < reply->header_count; i++)
		free(reply->headers[i].value);
	*reply = (struct reply){ 0 };
}

void reply_add_header(struct reply *reply, const char *name, const char *value)
{
	char *copy = reply->header_count < sizeof reply->headers / sizeof reply->headers[0] ? strdup(value) : NULL;

	if (copy)
		reply->headers[reply->header_count++] = (struct reply_header){ name, copy };
}

int reply_json(struct reply *reply, unsigned status, json_t *json, struct error *err)
{
	if (!json)
		return error_set(err, -ENOMEM, "no_memory", "the server has no memory for its answer: try again later");
	reply->status = status;
	reply->json = json;
	return 0;
}

void reply_error(struct reply *reply, const struct error *err)
{
	reply->status = api_error_status(err->code);
	reply->json = json_pack("{s:{s:s,s:o}}", "error", "code", err->code, "message", utf8_json(err->message));
}

/* ---- matching ---- */

static bool match_path(const char *path, const struct request *request)
{
	size_t i = 0;

	while (*path == '/') {
		const char *segment = path + 1;
		size_t length = strcspn(segment, "/");

		if (i == request->segment_count)
			return false;

		const char *given = request->segments[i++];

		if (*segment == '{' ? !*given : strlen(given) != length || memcmp(segment, given, length))
			return false;
		path = segment + length;
	}
	return i == request->segment_count;
}

/* The route, or NULL with the methods that its path has in ALLOW ("": there is no such path). */
static const struct route *find_route(const struct request *request, char *allow, size_t allow_size)
{
	size_t n = 0;

	*allow = '\0';
	for (size_t i = 0; i < ROUTE_COUNT; i++) {
		if (!match_path(routes[i].path, request))
			continue;
		if (!strcmp(routes[i].method, request->method))
			return &routes[i];
		n += (size_t)snprintf(allow + n, allow_size - n, "%s%s", n ? ", " : "", routes[i].method);
	}
	return NULL;
}

static int run_route(struct request *request, struct reply *reply, struct error *err)
{
	const struct route *route = find_route(request, reply->allow, sizeof reply->allow);

	if (!route && reply->allow[0])
		return error_set(err, -EOPNOTSUPP, "method_not_allowed", "this path has no method %s, only %s",
				 request->method, reply->allow);
	if (!route)
		return error_set(err, -ENOENT, "route_unknown",
				 "the API has no such path: GET /v1 lists those that there are");

	int r = request_check_query(request, route->query, err);

	if (r >= 0 && !route->has_body)
		r = request_check_no_body(request, err);
	if (r >= 0 && route->blocks && request->crowded)
		r = error_set(err, -EBUSY, "busy",
			      "as many requests wait already as the server lets wait: try again later");
	return r < 0 ? r : route->handler(request, reply, err);
}

void route_request(struct request *request, struct reply *ret)
{
	struct error err = { .code = "internal", .message = "the server failed without saying why: this is a bug" };

	*ret = (struct reply){ 0 };
	if (run_route(request, ret, &err) < 0)
		reply_error(ret, &err);
}

/* ---- the API about itself ---- */

static json_t *list_routes(void)
{
	json_t *list = json_array();

	for (size_t i = 0; i < ROUTE_COUNT; i++) {
		json_t *query = json_array();

		for (const char *const *q = routes[i].query; q && *q; q++)
			json_array_append_new(query, json_string(*q));
		json_array_append_new(list, json_pack("{s:s,s:s,s:o}", "method", routes[i].method, "path",
						      routes[i].path, "query", query));
	}
	return list;
}

static json_t *list_errors(void)
{
	json_t *list = json_array();

	for (size_t i = 0; i < api_error_table_size; i++)
		json_array_append_new(list, json_pack("{s:s,s:i}", "code", api_error_table[i].code, "status",
						      (int)api_error_table[i].status));
	return list;
}

static int handle_routes(struct request *request, struct reply *reply, struct error *err)
{
	(void)request;
	return reply_json(reply, 200, json_pack("{s:o,s:o}", "routes", list_routes(), "errors", list_errors()), err);
}

static int handle_server(struct request *request, struct reply *reply, struct error *err)
{
	return reply_json(reply, 200,
			  json_pack("{s:s,s:i,s:o,s:i,s:s}", "version", request->version, "pid", (int)getpid(),
				    "run_dir", utf8_json(server_run_dir(request->server)), "pagers",
				    (int)server_pager_count(request->server), "observe_tier",
				    server_observe_tier(request->server)),
			  err);
}
