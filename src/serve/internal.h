/*
 * What the files of the server share. One mutex, server->lock, guards templates, forks and peers; the main loop holds it while it handles an
 * event, requests while they look something up. It is no part of a page's way: pagers and prefetch workers take it never
 * and only at the end of a job, respectively. Order: server->lock, then session->lock.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "prefetch/engine.h"
#include "serve/handshake.h"
#include "serve/observing.h"
#include "serve/pager.h"
#include "serve/placement.h"
#include "serve/server.h"
#include "serve/session.h"
#include "template/template.h"

/* A fork that nobody asks about any more still holds its figures and recording: the oldest ended ones are dropped over this. */
#define ENDED_FORKS_MAX 4096
/* Sockets, pidfds and userfaultfds: three descriptors a fork, of at most a million or so. */
#define FORKS_MAX 100000

/* How long a peer may take from connecting to the last byte of its handshake. */
#define HANDSHAKE_TIMEOUT_NS (10 * NSEC_PER_SEC)
/* Peers of one fork that may be in the middle of a handshake: the VMM, and a few mistakes. */
#define PEERS_PER_FORK_MAX 8

/* What an epoll event is about. Embedded; the object lives until the end of the batch in which it was given up. */
enum watch_kind {
	WATCH_SIGNAL,
	WATCH_WAKE,
	WATCH_TIMER,
	WATCH_IMAGES,
	WATCH_LISTENER,
	WATCH_PEER,
	WATCH_SOCKET,
	WATCH_PROCESS
};
struct watch {
	enum watch_kind kind;
	void *object;
};

/* A connection on its way through the handshake. */
struct peer {
	struct watch watch;
	struct fork *fork;
	int fd;
	int uffd;     /* -1: not received yet */
	int surplus;  /* further descriptors received: a violation */
	bool answers; /* its handshake asked for answers */
	pid_t pid;
	uid_t uid;
	uint64_t deadline_ns;
	char *text;
	size_t size, capacity;
	struct handshake_scan scan;
	struct peer *next; /* in the fork's list, then in the list of the dead */
};

struct fork {
	uint64_t serial; /* never used twice, unlike ids */
	char id[NAME_MAX_LENGTH + 1];
	struct template *template;
	enum fork_state state;
	bool stopping;	/* its VMM has been told to stop by us */
	bool lingering; /* its VMM seems gone, but its memory is still mapped */
	bool removed;	/* no longer in the table; freed at the end of the batch */

	char *socket_path;
	int listener_fd; /* -1 once connected */
	struct watch listener_watch;
	struct peer *peers;
	unsigned peer_count;

	int socket_fd; /* the VMM's connection */
	struct watch socket_watch, process_watch;
	bool socket_spoke;	/* it has said something after the handshake that means nothing: logged once */
	bool answers;		/* it reads what is said on its socket: see vmm_talk.h */
	bool awaits_prefetched; /* it has asked to be told */
	char heard[24];		/* the line that it is saying, as far as it has come */
	size_t heard_length;	/* over the size of that: a line that is longer than any that means something */
	struct session *session;
	const char *handshake;
	struct fork_region_info *regions;
	size_t region_count;
	uint64_t removed_pages; /* as the session ended */
	pid_t pid;
	struct server_trace *traces; /* that wait for it to connect */
	bool refreshed;		     /* its template's list has heard of it, or will */

	bool record;
	struct recording_wish wish; /* its window */
	uid_t uid;
	enum prefetch_mode prefetch;
	enum prefetch_state prefetch_state;
	char *hot_list;
	uint64_t prefetched, prefetch_present, prefetch_removed, prefetch_ns, prefetch_started_ns;
	uint64_t prefetch_budget; /* bytes; 0: none */
	uint64_t prefetch_over;	  /* listed pages that were over it */
	bool prefetching;	  /* a job is under way */
	bool streamed;		  /* it has a stream; its figures, as they were when it ended */
	struct fork_stream_info stream;
	char *error;

	uint64_t created_ns, connected_ns, ready_ns, gone_ns;
	struct fork *next;
};

struct server {
	char *run_dir, *template_dir;
	int lock_fd;
	int epoll_fd, signal_fd, wake_fd, timer_fd;
	int spare_fd; /* given up for a moment to turn a peer away when descriptors have run out */
	struct watch signal_watch, wake_watch, timer_watch, images_watch;
	uint64_t host_page_size;
	uint64_t features; /* of this kernel's userfaultfd */

	pthread_mutex_t lock;
	pthread_cond_t changed; /* a fork's state, or the server's */
	bool stopping;
	struct template **templates; /* sorted by name */
	size_t template_count;
	struct fork *forks, **forks_tail; /* in order of creation */
	size_t fork_count;
	uint64_t next_serial;
	struct fork *dead_forks; /* to be freed after the batch */
	struct peer *dead_peers;

	struct keeper *keeper;
	struct pager **pagers;
	unsigned pager_count;
	struct placement *placement;
	struct prefetch_engine *engine;
	const struct observer *observer;
	struct packer *packer;
	struct refresher *refresher; /* NULL where nobody observes */
	unsigned trace_count;
	void (*on_stop)(void *);
	void *on_stop_data;
};

/* A counter that another thread writes. */
static inline uint64_t load(const _Atomic uint64_t *counter)
{
	return atomic_load_explicit(counter, memory_order_relaxed);
}

/* All of these with server->lock held. */

/* server.c */
int server_watch(struct server *server, int fd, struct watch *watch, enum watch_kind kind, void *object);
void server_unwatch(struct server *server, int fd);
/* Makes the main loop go round, so that it frees what is dead and looks at its timers. */
void server_wake(struct server *server);
void server_arm_timer(struct server *server);

/* templates.c */
struct template *server_find_template(struct server *server, const char *name);
int check_name(const char *name, const char *what, struct error *err);
/* At start: those of earlier servers on this run directory. */
void server_load_templates(struct server *server);

/* hot_lists.c */
/* hotlist_load; and the list must not have been recorded on another image than TEMPLATE's. Every failure has the code "bad_hot_list". */
int load_hot_list(const char *path, struct template *template, struct hotlist **ret, struct error *err);
/* The same, to see whether it can be done; without server->lock. 0 where there is no such template. */
int check_hot_list(struct server *server, const char *path, const char *template_name, struct error *err);

/* fork_info.c */
/* All but what the observer knows, ... */
void fork_fill_info(const struct fork *fork, struct fork_info *ret);
/* ... which is asked without server->lock, as it may take a while. */
void fork_info_observe(struct fork_info *info);

/* tracing.c */
/* It is connected and observed, or never will be: those who wait for that go on. */
void fork_release_traces(struct fork *fork);

/* forks.c */
struct fork *server_find_fork(struct server *server, const char *id);
/* The error for an id that no fork has; -ENOENT. */
int fork_unknown(const char *id, struct error *err);
void fork_set_error(struct fork *fork, const char *message);
/* The VMM has ended. */
void fork_end(struct server *server, struct fork *fork);
void fork_free(struct fork *fork);
void fork_drop(struct server *server, struct fork *fork);
/* The handshake is done and checked. */
void fork_connected(struct server *server, struct fork *fork);
/* It is connected, and says that its guest is ready; anything else is left as it is. */
void fork_set_ready(struct server *server, struct fork *fork);
/* fork_requests.c */
/* 1: it has got there, 0: not yet, negative errno: it never will. */
int fork_reached(const struct fork *fork, enum fork_milestone milestone, struct error *err);

/* prefetching.c */
/* Starts what `fork create --prefetch` asked for; failures end up in the fork. */
void fork_start_prefetch(struct server *server, struct fork *fork);
/* The fork is about to end: keeps the figures of its stream. */
void fork_keep_stream(struct fork *fork);
void fork_fill_stream(const struct fork *fork, struct fork_info *ret);

/* peer.c */
void fork_accept(struct server *server, struct fork *fork);
void peer_readable(struct server *server, struct peer *peer);
void peer_close(struct server *server, struct peer *peer);
void server_expire_peers(struct server *server, uint64_t now);
/* When the first peer runs out of time; 0: no peer. */
uint64_t server_next_deadline(const struct server *server);

/* session_start.c */
/* Turns a complete handshake of PEER into the fork's session. */
int fork_start_session(struct server *server, struct fork *fork, struct peer *peer, struct error *err);
/* Whether the VMM's process has ended. */
bool fork_process_ended(const struct fork *fork);
/* Whether any of the memory is still mapped and registered. */
bool fork_memory_mapped(const struct fork *fork);
