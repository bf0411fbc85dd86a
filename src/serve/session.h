/*
 * A connected fork as the threads see it that move its pages: memory, image, counters. Born at the handshake; it outlives the VMM,
 * so that its figures and its recording can still be asked for, but its memory and image go once nobody moves pages any more.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/histogram.h"
#include "prefetch/stream.h"
#include "serve/observer.h"
#include "template/hot_set.h"
#include "template/template.h"
#include "uffd/guest_memory.h"

struct watcher;
struct placement;

/* A page that a demand fault brought. */
struct recorded_page {
	uint64_t page;	  /* number */
	uint64_t time_ns; /* when its fault was read, since the handshake: the nearest to its touch that is known here */
};

struct session {
	_Atomic unsigned refs;	/* of this structure */
	_Atomic unsigned users; /* of memory and template */

	char name[80]; /* "fork ID", for the log */
	int pidfd;     /* owned */
	pid_t pid;

	struct guest_memory *memory; /* NULL once the last user is gone */
	struct template *template;

	/* Set before any pager knows of the session. NULL: nobody observes it. */
	const struct observer *observer;
	observed_fork observed; /* its observer's name for it, from attach until the session is freed */
	uint64_t connected_ns;	/* its handshake was complete; set before, too */

	struct placement *placement; /* whose pagers watch it */
	_Atomic bool placed;	     /* its pagers are those of the CPUs that it has faulted on */
	_Atomic bool ended;	     /* nothing more is supplied */
	_Atomic unsigned watcher_count;
	_Atomic unsigned strays; /* faults outside the regions since the last event */
	_Atomic unsigned made_blocking;

	/* A list that is streamed to it; set once, and freed with the memory. */
	_Atomic(struct stream *) stream;
	pthread_rwlock_t hot_lock; /* held exclusively only to end it */
	struct hot_reader hot; /* of its template's packed hot set, from before there is a stream until it has ended */

	/* Bytes that may come unasked besides the list's pages: what is left of its budget. */
	_Atomic int64_t spare;

	_Atomic uint64_t faults, copied, zeroed, neighbours, poisoned, deferrals, slow;
	struct histogram stall;

	_Atomic bool recording;
	pthread_mutex_t lock;	  /* what follows; only a pager's lock is taken inside it */
	struct watcher *watchers; /* pagers that serve it */
	bool closed;		  /* no pager is added any more */
	int orphans[4]; /* userfaultfds of children of the VMM that could not be refused in a better way; -1: none */
	struct recorded_page *record; /* in the order of service */
	size_t record_count, record_capacity;
	bool record_lost;     /* out of memory: the list would have holes */
	uint8_t *given_zeros; /* a bit for each page that was given as zeros while recording; NULL: none was */
	char reason[256];     /* why the server stopped the VMM, or "" */
	char trouble[256];    /* what its VMM could live with, such as a page that can't be read, or "" */
};

/* Takes PIDFD and MEMORY, and a reference on TEMPLATE, on success. The caller holds the first reference and is the first user. */
int session_new(const char *fork_id, pid_t pid, int pidfd, struct guest_memory *memory, struct template *template,
		bool record, struct session **ret);
struct session *session_ref(struct session *session);
void session_unref(struct session *session);

/* A user may use memory and template until session_unuse; it also holds a reference. Only an existing user may add another. */
struct session *session_use(struct session *session);
void session_unuse(struct session *session);

static inline bool session_ended(const struct session *session)
{
	return atomic_load_explicit(&session->ended, memory_order_relaxed);
}
/* Nothing more is supplied from now on. True: it was so far. */
bool session_end(struct session *session);

/* Keeps CHILD open until the session's memory goes. -ENOSPC: there are too many. */
int session_keep_orphan(struct session *session, int child);

/* PAGE, which is absent, was demanded; the gate is held. True: a list is streamed to the fork, and has no such page. */
static inline bool session_note_demand(struct session *session, uint64_t page)
{
	struct stream *stream = atomic_load_explicit(&session->stream, memory_order_acquire);

	return stream && !stream_ask(stream, page);
}

/* Kills the VMM: the way out wherever going on could give the guest wrong bytes, or hang it. The first reason is kept. */
void session_stop_vmm(struct session *session, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Keeps what the VMM goes on in spite of, for who asks about the fork; the first is kept. True: this was it. */
bool session_note_trouble(struct session *session, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Notes that the server copied PAGE for a demand fault that was read at NS. */
void session_record(struct session *session, uint64_t page, uint64_t ns);
/* Notes that it was given as zeros. Its memory is in use. */
void session_record_zero(struct session *session, uint64_t page);
