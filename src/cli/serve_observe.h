/* `faultline serve --observe`: the observer that the server gets, and what is said of it. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "cli/options.h"
#include "serve/observer.h"

struct observe;

struct serve_observe {
	bool off;
	bool require; /* no tier: the server doesn't start */
	size_t ring_bytes;
	struct observe *observe;
	const char *summary; /* for the first line of the log */
	char text[80];
};

/* --observe and --observe-ring. EXIT_OK, or what to exit with: a usage error was printed. */
int serve_observe_parse(const struct cli_args *args, struct serve_observe *ret);
/* For server_config.observe; DATA is a struct serve_observe. */
int serve_observe_start(void *data, const char *run_dir, unsigned pagers, const struct observer **ret,
			struct error *err);
/* After the server. */
void serve_observe_stop(struct serve_observe *observing);
