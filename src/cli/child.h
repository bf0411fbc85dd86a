/*
 * A command that a subcommand starts beside itself, as `warmup` and `profile` do: in a process group of its own, ended with all that it
 * started, and never left behind.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/error.h"

struct child {
	pid_t pid;	  /* 0: none */
	int pidfd;	  /* readable once it has ended; -1: none */
	const char *name; /* of the command, for messages */
};
#define CHILD_NONE          \
	{                   \
		.pidfd = -1 \
	}

/* A variable to set for it. */
struct child_variable {
	const char *name, *value;
	bool keep; /* what the environment has already stays */
};

/*
 * Starts ARGV (ends with NULL; looked for in PATH), with VARIABLES (the last has no name). It reads nothing on stdin, and what it prints
 * goes to stderr, since stdout is ours. It is killed should this thread's process die. Codes: command_unknown, command_failed.
 */
int child_start(const char *const *argv, const struct child_variable *variables, struct child *ret, struct error *err);

/* For who does something to the new process before it becomes the command. */
struct child_hold {
	int (*held)(pid_t pid, void *data, struct error *err); /* while it waits; a failure is that of the start */
	void (*waiting)(void *data); /* every now and then until it is the command; may be NULL */
	void *data;
};
int child_start_held(const char *const *argv, const struct child_variable *variables, const struct child_hold *hold,
		     struct child *ret, struct error *err);

/*
 * Ends it and whatever else is in its group: SIGTERM, and SIGKILL after GRACE_S seconds or as soon as IMPATIENT (a descriptor; -1: none) is
 * readable. Returns its wait status. Does nothing without a child.
 */
int child_end(struct child *child, double grace_s, int impatient);

/* "exited with status 3", "was killed by signal 11 (Segmentation fault)". */
void child_describe(int status, char *buffer, size_t size);

/* What a shell would call it: its exit status, or 128 plus the signal. */
int child_exit_code(int status);
