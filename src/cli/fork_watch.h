/*
 * Waiting for a fork's milestone beside other things: the API's answer blocks, so a thread of its own waits for it and makes a descriptor
 * readable when it is there.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>

#include "base/error.h"

struct fork_watch {
	pthread_t thread;
	bool started;
	int done; /* readable: the answer is there; -1: no watch */
	const char *run_dir, *milestone;
	char id[72]; /* an id has 64 characters at most */
	double timeout_s;
	int result; /* the thread's, as long as it runs */
	struct error err;
};
#define FORK_WATCH_NONE    \
	{                  \
		.done = -1 \
	}

/* RUN_DIR (may be NULL) must outlive the watch. MILESTONE as of `fork wait`. Must not move while it is started. */
int fork_watch_start(struct fork_watch *watch, const char *run_dir, const char *id, const char *milestone,
		     double timeout_s, struct error *err);

/* The answer, once DONE is readable: 0, or negative with ERR as the API said it. Ends the watch. */
int fork_watch_take(struct fork_watch *watch, struct error *err);

/* Returns once the answer is there; forget the fork first, where that is not to take long. */
void fork_watch_end(struct fork_watch *watch);
