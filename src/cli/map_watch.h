/*
 * Being there when a command that was just started maps its guest's memory, before it touches any of it: the command and what it starts
 * are traced (ptrace) until then, and stopped after each system call that may have mapped something. Not thread-safe: tracing belongs to a thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/error.h"

struct map_watch {
	pid_t command;
	pid_t *threads; /* traced */
	size_t count, capacity;
	bool leaving;
};

/* For child_start_held: DATA is the watch. */
int map_watch_seize(pid_t pid, void *data, struct error *err);
void map_watch_wait(void *data);

/*
 * To be called after each SIGCHLD. MAPPED is called with a thread that stands still after such a call, and returns whether there is more to
 * be watched for; if not, the threads are let go.
 */
void map_watch_handle(struct map_watch *watch, bool (*mapped)(pid_t thread, void *data), void *data);

/* Lets go of those that are stopped, and of the others as they stop; handle has to be called on. */
void map_watch_leave(struct map_watch *watch);

/* Whether any is traced still. */
static inline bool map_watch_is_active(const struct map_watch *watch)
{
	return watch->count > 0;
}

void map_watch_clear(struct map_watch *watch);
