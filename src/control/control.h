/* The HTTP+JSON API of a server, on the Unix socket RUN_DIR/control.sock (mode 0600). docs/openapi.json describes it. */
#pragma once

#include "base/cleanup.h"
#include "base/error.h"

#define CONTROL_SOCKET_NAME "control.sock"

struct server;
struct control;

/* Starts answering on threads of its own. VERSION is what GET /v1/server tells. Codes: bad_run_dir, io_error, no_memory. */
int control_start(struct server *server, const char *version, struct control **ret, struct error *err);
/*
 * Takes no more requests, lets those under way end (the server's waits are over by then, see server_on_stop), joins the
 * threads and removes the socket. NULL is fine.
 */
void control_stop(struct control *control);
