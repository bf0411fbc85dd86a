/*
 * What is said on the fork's socket after the handshake: lines of text, described in docs/client.md. The one side that reads is whoever
 * calls talk_wait; results and ERROR are as in the public API.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "faultline/result.h"

/* "error CODE SENTENCE" at its longest. */
#define TALK_LINE_MAX 640

struct talk {
	int socket; /* not owned */
	pthread_mutex_t lock;
	pthread_cond_t idle;
	bool reading; /* under the lock: a thread waits for an answer, and what follows is its own */
	char line[TALK_LINE_MAX];
	size_t length;	  /* bytes of LINE so far */
	bool outstanding; /* "wait prefetched" has been said and not been answered */
};

void talk_init(struct talk *talk, int socket);
void talk_clear(struct talk *talk);

/* Waits for the answer to the handshake. */
int talk_wait_connected(struct talk *talk, uint64_t deadline, struct faultline_error *error);
/* Asks for the prefetch's end, and waits for it. Any number of threads may. */
int talk_wait_prefetched(struct talk *talk, uint64_t deadline, struct faultline_error *error);
/* Never waits. */
int talk_say_ready(struct talk *talk, struct faultline_error *error);
/* Says that nothing more will come, and waits until the server has hung up. */
int talk_finish(struct talk *talk, uint64_t deadline, struct faultline_error *error);
/* Whether the server has hung up. */
bool talk_is_over(const struct talk *talk);
