/*
 * Child processes of a measurement: servers, clients and floors. Each can be told things and asked things in single letters, and says in
 * shared memory what it found, or why it failed. A signal that ends the run (SIGINT and the like) ends every wait here.
 */
#pragma once

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/cleanup.h"
#include "base/error.h"

/* In a child: its end of the conversation, and from here on the descriptors that it was given, in their order. */
#define CHILD_TALK 3
#define CHILD_FDS  4

/* How long a wait for a child may take before it counts as hung. Sanitizers and 1,000 forks fit in well. */
#define CHILD_PATIENCE_S 300

#define CHILD_RESULT_MAX 128

struct child_shared {
	struct error error;
	char result[CHILD_RESULT_MAX] __attribute__((aligned(8)));
};

struct process {
	char name[40];
	pid_t pid;
	int talk;    /* the parent's end */
	bool steady; /* others wait for what it does: its end ends every wait */
	struct child_shared *shared;
	struct process *next;
};

/* All that run. Owned by the one thread of the run. */
struct processes {
	struct process *list;
	sigset_t before; /* the signal mask outside the run */
	int stop_fd;	 /* readable once a signal has come that ends the run */
};

/* Blocks the signals; processes_close undoes it, and then a signal that came is delivered. */
int processes_open(struct processes *all, struct error *err);
/* Kills and reaps what still runs. */
void processes_kill(struct processes *all);
void processes_close(struct processes *all);

/* 0, or -EINTR with code "interrupted" where the run is to end. */
int processes_check_stop(struct processes *all, struct error *err);
/* 0, or the end of a steady process, as an error. */
int processes_check_steady(struct processes *all, struct error *err);
/* Waits until FD is readable or at its end. -EINTR as above; -ETIMEDOUT. A negative FD: until the time is over, which is then no error. A steady process's end is one. */
int processes_wait(struct processes *all, int fd, uint64_t timeout_ns, struct error *err);

/*
 * Runs BODY(data, shared->result, error) in a child, which then exits. DATA is the child's own copy. It keeps none of the parent's
 * descriptors but FDS and 0 to 2, and is killed when the parent ends.
 */
typedef int child_body(const void *data, void *result, struct error *err);
int process_start(struct processes *all, const char *name, const int *fds, unsigned fd_count, child_body *body,
		  const void *data, struct process **ret, struct error *err);
/* Starts the program ARGV[0], which gets SIGTERM when the parent ends; ENVIRONMENT is one more "NAME=VALUE". It talks not. */
int process_start_program(struct processes *all, const char *name, char *const argv[], char *environment,
			  struct process **ret, struct error *err);

/* The same without an addition to its environment; what it prints goes to OUTPUT. */
int process_start_writer(struct processes *all, const char *name, char *const argv[], int output, struct process **ret,
			 struct error *err);

/* Parent: waits until the child says LETTER. Its failure, or its end, is a failure of the caller's. */
int process_await(struct processes *all, struct process *process, char letter, struct error *err);
int process_tell(struct process *process, char letter, struct error *err);
/* Closes the conversation, waits for the end, which must be exit 0, and frees the process. */
int process_join(struct processes *all, struct process *process, struct error *err);
/* Reaps one that has ended, or is about to, which must be with exit 0; frees it. */
int process_reap(struct processes *all, struct process *process, struct error *err);
/* Waits until it has ended, however, and frees it. RET is its exit status; of one that a signal ended, 128 and the signal's number. */
int process_await_end(struct processes *all, struct process *process, int *ret_status, struct error *err);
/* SIGKILL, and the end. Frees the process. NULL is fine. */
void process_kill(struct processes *all, struct process *process);

/* Child: says a letter; waits for one. False: the parent has gone or says something else. */
bool child_say(char letter);
bool child_hear(char letter);
