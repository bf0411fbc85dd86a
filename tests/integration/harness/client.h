/*
 * A VMM as a process of its own, so that the server may kill it: the test starts a function in a child, speaks with it in
 * single letters, and reads its counters and its reason for failing from shared memory. No wait is without an end.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define CLIENT_COUNTERS 16

/* What parent and child share. */
struct client_shared {
	atomic_int failed; /* set by whoever writes the message */
	char message[900];
	_Atomic uint64_t counter[CLIENT_COUNTERS];
	_Atomic uint64_t value_count; /* of values */
	uint64_t values[];
};

struct client {
	char name[48];
	pid_t pid;
	int pidfd;
	int talk; /* the parent's end */
	struct client_shared *shared;
	size_t shared_size;
	struct client *next;
};

/* The child's view. Its end of the conversation closes when the test goes away; the child is then killed as well. */
struct client_self {
	int talk;
	struct client_shared *shared;
};

/* Runs BODY(self, data) in a child and exits 0 when it returns. DATA is the child's own copy of the parent's memory. */
struct client *client_start(const char *name, void (*body)(struct client_self *, void *), void *data);
/* The same with room for VALUES numbers in shared memory. */
struct client *client_start_sized(const char *name, size_t values, void (*body)(struct client_self *, void *),
				  void *data);

/* Child: says a letter, waits for one. */
void client_say(struct client_self *self, char letter);
void client_hear(struct client_self *self, char letter);
/* Child: reports the first reason for failing and exits with 1, from any thread. */
void client_fail(struct client_self *self, const char *format, ...) __attribute__((format(printf, 2, 3), noreturn));
#define client_require(self, condition, ...)            \
	do {                                            \
		if (!(condition))                       \
			client_fail(self, __VA_ARGS__); \
	} while (0)

/* Parent: waits until the child says LETTER. A child that failed, ended or said something else fails the test. */
void client_await(struct client *client, char letter);
/* The same for a child that may die first: false if it did. */
bool client_await_or_death(struct client *client, char letter);
void client_tell(struct client *client, char letter);

uint64_t client_counter(const struct client *client, unsigned index);
/* Waits until the counter is at least VALUE. */
void client_await_counter(struct client *client, unsigned index, uint64_t value);

/* Waits for the end, good or bad, which stays to be told by client_join. */
void client_await_end(struct client *client);
/* Waits for the end and expects exit 0. Frees the client. */
void client_join(struct client *client);
/* Waits for the end by SIGKILL. Frees the client. */
void client_join_killed(struct client *client);
/* Waits for the end, which must be exit 0 or SIGKILL; true for SIGKILL. Frees the client. */
bool client_join_any(struct client *client);
/* SIGKILL by the test itself, and the end. Frees the client. */
void client_kill(struct client *client);
/* Whether it has ended already. */
bool client_has_ended(struct client *client);

/* Kills whatever the test has left over. */
void client_kill_all(void);

/*
 * Waits until COUNT threads of the process hang in faults of its userfaultfd number FD, as /proc says: that is when the
 * server has stopped answering. WITHIN is in seconds; false if that did not come about.
 */
bool client_await_stuck(struct client *client, int fd, unsigned count, double within);
/* Waits until all of its threads sleep and its counter INDEX stands still: nobody answers its faults and removals. */
void client_await_still(struct client *client, unsigned index);
/* "pending" and "total" of a userfaultfd as /proc/PID/fdinfo shows them; false where it can't be read. */
bool uffd_waiters(pid_t pid, int fd, unsigned *ret_pending, unsigned *ret_total);
