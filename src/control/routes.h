/* The API's routes: one table that says what exists, and the way from a request to its reply. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "control/request.h"

/* An answer that is made while it is read. It belongs to the connection's thread. */
struct reply_stream {
	/*
	 * Up to SIZE bytes, at least one unless SLICE_NS pass: 0 then, and it is asked again. STOPPING: the server is, so it should come
	 * to an end. Negative: that was all.
	 */
	ssize_t (*read)(void *data, char *ret, size_t size, uint64_t slice_ns, bool stopping);
	void (*close)(void *data);
	void *data;
	const char *content_type;
};

/* What goes back. Either JSON, or bytes with their type, or a stream, or nothing (204). */
struct reply {
	unsigned status;
	json_t *json;
	void *data;
	size_t size;
	const char *content_type; /* of DATA */
	struct reply_stream stream;
	char allow[64]; /* the methods there are, with 405 */
	struct reply_header {
		const char *name;
		char *value;
	} headers[2]; /* more of them */
	size_t header_count;
};

/* Closes a stream that nobody has taken. */
void reply_clear(struct reply *reply);

/* Finds the request's route and runs it. Whatever happens, REPLY is filled: errors have become JSON by then. */
void route_request(struct request *request, struct reply *ret);

/* What a hot list's answer says about itself besides: who recorded it (loop or kernel), and why this one. */
#define HEADER_RECORDED_BY  "Faultline-Recorded-By"
#define HEADER_RECORDED_WHY "Faultline-Recorded-Why"

/* NAME is a constant. What doesn't fit is left out. */
void reply_add_header(struct reply *reply, const char *name, const char *value);

/* ERR as a reply. */
void reply_error(struct reply *reply, const struct error *err);

/* A handler fills the reply and returns 0; or it returns a negative errno and fills ERR. */
typedef int (*route_handler)(struct request *request, struct reply *reply, struct error *err);

/* JSON (which it takes, NULL means that memory ran out) as the reply of a handler. */
int reply_json(struct reply *reply, unsigned status, json_t *json, struct error *err);

/* The path segment of the route that stands in braces: a template's name, or a fork's id. */
#define ROUTE_NAME(request) ((request)->segments[2])

int handle_templates_list(struct request *request, struct reply *reply, struct error *err);
int handle_templates_add(struct request *request, struct reply *reply, struct error *err);
int handle_template_get(struct request *request, struct reply *reply, struct error *err);
int handle_template_remove(struct request *request, struct reply *reply, struct error *err);
int handle_forks_list(struct request *request, struct reply *reply, struct error *err);
int handle_forks_create(struct request *request, struct reply *reply, struct error *err);
int handle_fork_get(struct request *request, struct reply *reply, struct error *err);
int handle_fork_remove(struct request *request, struct reply *reply, struct error *err);
int handle_fork_wait(struct request *request, struct reply *reply, struct error *err);
int handle_fork_ready(struct request *request, struct reply *reply, struct error *err);
int handle_fork_prefetch(struct request *request, struct reply *reply, struct error *err);
int handle_fork_trace(struct request *request, struct reply *reply, struct error *err);
int handle_fork_hot_list(struct request *request, struct reply *reply, struct error *err);
