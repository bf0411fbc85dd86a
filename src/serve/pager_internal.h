/* What the files of the pager share: pager.c (the thread), watcher.c (a fork that it watches), faults.c and slow_faults.c (one fault). */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "serve/pager.h"
#include "template/io.h"

/* Reads of pages that are not in memory, under way at once in one pager: enough to keep a fast disk busy. */
#define SLOW_FAULTS_MAX 128
/* And so much memory for their buffers: 16 huge pages keep a disk as busy, and 128 would take 256 MiB. */
#define SLOW_BYTES_MAX (32u << 20)

/* Largest page served. */
#define BUFFER_SIZE (2u << 20)

struct slow_fault;

struct pager {
	pthread_t thread;
	unsigned index; /* for the observer: whose stamps these are */
	int cpu;
	int epoll_fd;
	int mailbox_fd;
	struct keeper *keeper;
	struct lease_section leasing;
	struct io *io;
	void *buffer;
	uint64_t host_page_size;
	_Atomic unsigned sessions;

	enum wake wake;	      /* in the present batch */
	uint64_t to_wake[64]; /* pages of the present batch that have come and whose waiters sleep */
	unsigned to_wake_count;

	struct watcher *deferred; /* those with faults to try again */
	uint64_t retry_ns;

	unsigned slow_count;				      /* under way */
	size_t slow_bytes;				      /* of their buffers */
	struct slow_fault *slow_waiting, **slow_waiting_tail; /* more than the device may be asked for at once */
	struct slow_fault *slow_free;			      /* with buffers of one small page */

	pthread_mutex_t lock;	 /* innermost */
	struct watcher *mailbox; /* those that are to leave */
	bool stopping;
};

struct fault {
	uint64_t address; /* as the kernel said it */
	uint64_t read_ns; /* when the pager read it */
};

/* A fault that is being served: what it is about, and when it got how far. */
struct demand {
	struct pager *pager;
	struct watcher *watcher; /* NULL: it has left since. Instead of being deferred, whoever waits for the page faults again then */
	struct session *session;
	uint64_t page;
	uint64_t address; /* where the fault was, or where the page is now */
	uint64_t read_ns;
	bool unlisted;	    /* it is not in the list that is streamed to the fork */
	uint64_t source_ns; /* the page's bytes were at hand; as read_ns where nothing had to be fetched, or nobody asks */
};

/* One pager's part in serving one fork; several pagers may each have one. The pager's own where nothing else is said. */
struct watcher {
	struct pager *pager;
	struct session *session; /* a use */

	struct fault *deferred; /* faults to try again; the kernel will not deliver them a second time */
	size_t deferred_count, deferred_capacity;
	struct watcher *next_deferred;
	bool in_deferred_list;

	struct watcher *next;	   /* of the session's watchers; under session->lock */
	bool leaving, in_mailbox;  /* under session->lock */
	struct watcher *next_mail; /* under pager->lock */
};

static inline void bump(_Atomic uint64_t *counter)
{
	atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

/* watcher.c */
/* The session's userfaultfd has something to say; ALONE: no other does at this moment. */
void watcher_serve(struct watcher *watcher, uint32_t events, bool alone);
/* Once a round: all faults of the pager that were deferred. */
void pager_retry_deferred(struct pager *pager);
/* On the pager's thread, after a batch of events. Gives back what it has read and not served. */
void watcher_leave(struct watcher *watcher);
void watcher_defer(struct watcher *watcher, uint64_t address, uint64_t read_ns);
/* PAGE has come; who waits for it is woken at the end of the batch. */
void watcher_wake_later(struct watcher *watcher, uint64_t page);

/* Whether SESSION's demand faults get stamps; without that no clock is read for them. */
static inline bool is_stamped(const struct session *session)
{
	return session->observer != NULL;
}

/* faults.c; the gate is held shared */
void serve_fault(struct watcher *watcher, uint64_t address, uint64_t read_ns);
void supply_zero(const struct demand *demand);
void poison(const struct demand *demand, int error);
/* What a supply for a demand fault came to. */
void settle(const struct demand *demand, bool zero, const struct supply *supply);

/*
 * COUNT pages from PAGE on of D's fork, from BYTES of the image's mapping, SIZE at OFFSET: see supply_from_image. Negative errno: the VMM has been
 * stopped, and its session ended.
 */
int supply_mapped(const struct demand *d, uint64_t page, uint64_t count, const void *bytes, uint64_t size,
		  uint64_t offset, enum wake wake, struct supply *ret);

/* neighbours.c; the gate is held shared */
/* Pages that were read together. */
struct block {
	uint64_t first, count;
	const char *bytes;
};

/* The pages that D's had best come with, itself among them: more than one only where it is a small one that is not in the list streamed to its fork. */
void find_neighbours(const struct demand *d, uint64_t *ret_first, uint64_t *ret_count);
/* D's page has been supplied: those as well, from BLOCK, which has them all or D's page alone; or NULL: where they can be had at once. */
void bring_neighbours(const struct demand *d, const struct block *block);

/* slow_faults.c */
/* The page is absent and not in memory: asks the device, and goes on with other faults. */
void fetch(const struct demand *demand, size_t page_size);
void slow_faults_free(struct pager *pager);
