/* The API's routes: one table that says what exists, and the way from a request to its reply. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "control/request.h"

/* What goes back. Either JSON, or bytes with their type, or neither (204). */
struct reply {
	unsigned status;
	json_t *json;
	void *data;
	size_t size;
	const char *content_type; /* of DATA */
	char allow[64];		  /* the methods there are, with 405 */
};

void reply_clear(struct reply *reply);

/* Finds the request's route and runs it. Whatever happens, REPLY is filled: errors have become JSON by then. */
void route_request(struct request *request, struct reply *ret);

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
int handle_fork_hot_list(struct request *request, struct reply *reply, struct error *err);
