/* A server's HTTP+JSON API from the client's side: one call, one answer, over RUN_DIR/control.sock. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/error.h"

#define API_DEFAULT_RUN_DIR "/run/faultline"

/* How long an ordinary call may take: the server answers those at once, so that only a stuck one takes longer. */
#define API_TIMEOUT_S 60
/* For calls that take as long as their work does. */
#define API_TIMEOUT_NONE 0

struct api_client;

/* What the server said. Filled where the server answered at all, also where it refused; freed by api_reply_clear. */
struct api_reply {
	long status; /* of HTTP; 0: nothing came */
	char *body;  /* ends with a NUL that SIZE does not count; NULL where there is none */
	size_t size;
	json_t *json; /* the body parsed, where it is JSON; else NULL */
	/* Of a hot list: who recorded it ("loop", "kernel"), and why it is this one; NULL where the server didn't say. */
	char *recorded_by, *recorded_why;
};

void api_reply_clear(struct api_reply *reply);

#define _cleanup_api_reply_ _cleanup_(api_reply_clear)

/* RUN_DIR: where the server is; NULL: $FAULTLINE_RUN_DIR, or else API_DEFAULT_RUN_DIR. Does not connect yet. */
int api_client_new(const char *run_dir, struct api_client **ret, struct error *err);
void api_client_free(struct api_client *client);
DEFINE_CLEANUP(struct api_client, api_client_free)
#define _cleanup_api_client_ _cleanup_(cleanup_api_client_free)

/*
 * Calls METHOD on PATH ("/v1/forks") with BODY (may be NULL) as JSON. Returns 0 for an answer of 2xx. Else negative, and ERR
 * has the server's own code and sentence, or one of: no_server (-ECONNREFUSED), no_permission (-EACCES), bad_run_dir,
 * no_answer (not in time), bad_answer.
 */
int api_call(struct api_client *client, const char *method, const char *path, const json_t *body, unsigned timeout_s,
	     struct api_reply *ret, struct error *err);

/* An answer that comes while it is read. */
struct api_stream {
	/* A piece of it. False: that is enough. */
	bool (*take)(void *data, const char *bytes, size_t size);
	void *data;
	int stop_fd;	      /* the stream is left as soon as this is readable; -1: there is none */
	uint64_t deadline_ns; /* or at this time of CLOCK_MONOTONIC; 0: never */
};

/* GET PATH. 0 once the answer has ended, or been left. Errors as of api_call. */
int api_stream(struct api_client *client, const char *path, const struct api_stream *stream, struct error *err);

/*
 * PREFIX, NAME and SUFFIX as one path, the name escaped so that whatever it is, the server sees it as one segment. An empty
 * name is refused with bad_name. The caller frees the path.
 */
int api_path(const char *prefix, const char *name, const char *suffix, char **ret, struct error *err);

/* The process's exit code for a failed api_call (enum exit_code in cli.h). */
int api_exit_code(const struct error *err);

/* PATH as the server must have it: made absolute against this process's working directory. The caller frees it. */
int api_absolute_path(const char *path, char **ret, struct error *err);
