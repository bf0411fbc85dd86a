/* What the subcommands that talk to a server have in common: one call, its body, its answer. */
#pragma once

#include <jansson.h>

#include "cli/api_client.h"
#include "cli/options.h"

/* Start with { .args = args }. The first thing that goes wrong is kept in err; what follows it does nothing. */
struct client_call {
	const struct cli_args *args;
	json_t *body;
	struct api_reply reply;
	struct error err;
	int result; /* of the first step that failed; 0 so far */
};

void client_call_clear(struct client_call *call);
#define _cleanup_client_call_ _cleanup_(client_call_clear)

/* A member for the body. A NULL value adds none; a path is made absolute. */
void client_add_string(struct client_call *call, const char *name, const char *value);
void client_add_path(struct client_call *call, const char *name, const char *value);
void client_add(struct client_call *call, const char *name, json_t *value);

/* Makes the call at the server that --run-dir names. 0, or negative with call->err filled. */
int client_call(struct client_call *call, const char *method, const char *path, unsigned timeout_s);
/* The same, with a name or id in the middle of the path: see api_path. */
int client_call_named(struct client_call *call, const char *method, const char *prefix, const char *name,
		      const char *suffix, unsigned timeout_s);

/* Prints call->err, and returns the exit code for it. */
int client_fail(const struct client_call *call);
/* Prints the answer as it came. Returns the exit code. */
int client_print_reply(const struct client_call *call);

/* The member KEY of each object in ARRAY, one a line: for scripts and for completion. */
void client_print_names(const json_t *array, const char *key);

/* A member of an answer; FALLBACK, or 0, where it is null or missing. */
const char *client_string(const json_t *object, const char *name, const char *fallback);
double client_number(const json_t *object, const char *name);
