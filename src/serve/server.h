/*
 * The page server as its control side sees it: templates and forks by name. All functions may be called from any thread but
 * those named otherwise, return 0 or a negative errno, and on failure fill ERR with a stable code and a sentence.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "hotlist/hotlist.h"
#include "serve/observer.h"

#define NAME_MAX_LENGTH 64 /* template names and fork ids: 1-64 of A-Z a-z 0-9 . _ -, not starting with . or - */

/* What stands where an observer's tier would, if there is none. */
#define OBSERVE_TIER_NONE "none"

struct server;

struct server_config {
	const char *run_dir; /* made with mode 0700 where it is missing */
	const char *cpus;    /* list of CPUs that pagers stand on ("0,2-3"); NULL: all that the process may run on */
	/*
	 * Makes who sees what the kernel does for forks; NULL, or one that gives none: nobody does. Called once, with the run directory locked and before
	 * any thread is started, so that rights that only this takes can be given up in it. PAGERS: how many threads will give stamps. The observer
	 * outlives the server. An error is server_new's.
	 */
	int (*observe)(void *data, const char *run_dir, unsigned pagers, const struct observer **ret, struct error *err);
	void *observe_data;
};

/* Takes the run directory's lock, loads the templates known there, starts the pagers. -EBUSY: another server has the lock. */
int server_new(const struct server_config *config, struct server **ret, struct error *err);

/* Runs the main loop on this thread until SIGTERM or SIGINT; ON_READY is called once it serves. Stops live forks' VMMs at the end. */
int server_run(struct server *server, void (*on_ready)(void *), void *data, struct error *err);
void server_free(struct server *server);

const char *server_run_dir(const struct server *server);
unsigned server_pager_count(const struct server *server);
/* How forks are observed: "fentry", "kprobe", "tp_btf", or "none". */
const char *server_observe_tier(const struct server *server);

/* Lets waiters of server_fork_wait return with -ESHUTDOWN, so that the control side can stop before the server does. Called
 * by server_run when it stops; ON_STOP (may be NULL) is called on the main thread right after. */
void server_on_stop(struct server *server, void (*on_stop)(void *), void *data);

/* ---- templates ---- */

struct template_spec {
	const char *name;
	const char *memory;    /* absolute path of the memory image */
	const char *state;     /* absolute path of the VMM's state, or NULL: kept for the user, never read */
	const char *hot_list;  /* absolute path of the list that its forks prefetch by default, or NULL */
	bool refresh_hot_list; /* it learns from what its forks touch */
	bool no_hot_set;       /* its hot pages are not packed into a file beside the image */
	bool no_zero_map;      /* nobody looks which of its pages are zeros */
	const char *inject;    /* test wrapper around the image ("delay=5ms,error=0x1000+0x2000"), or NULL */
};

struct template_info {
	char name[NAME_MAX_LENGTH + 1];
	char *memory, *state, *hot_list, *inject; /* NULL where unset; freed by template_info_clear */
	bool refresh_hot_list;
	uint64_t memory_size;	   /* bytes */
	unsigned forks_live;	   /* forks of it whose VMM is connected */
	unsigned forks_waiting;	   /* created, VMM not yet there */
	const char *hot_set_state; /* of the packed hot set: "off", "none", "building", "ready" or "failed" */
	uint64_t hot_set_pages, hot_set_bytes;
	const char *zero_map_state; /* "off", "building" or "ready" */
	uint64_t zero_pages;	    /* of 4 KiB, known to be zeros so far */
	char *hot_set_error;	    /* why it failed, or NULL; freed likewise */
};

void template_info_clear(struct template_info *info);

/* Codes: bad_name, template_exists, bad_memory, bad_state, bad_hot_list, bad_inject, io_error. */
int server_template_add(struct server *server, const struct template_spec *spec, struct template_info *ret,
			struct error *err);
/* Code: template_unknown. */
int server_template_get(struct server *server, const char *name, struct template_info *ret, struct error *err);
/* Sorted by name; the caller clears each and frees the array. */
int server_template_list(struct server *server, struct template_info **ret, size_t *ret_count, struct error *err);
/* Codes: template_unknown, template_in_use (forks wait or live). The image itself is never touched. */
int server_template_remove(struct server *server, const char *name, struct error *err);

/* ---- forks ---- */

enum fork_state {
	FORK_WAITING,	/* its socket exists, no VMM has made a valid handshake yet */
	FORK_CONNECTED, /* faults are served */
	FORK_READY,	/* as connected; `fork ready` has been said */
	FORK_GONE,	/* the VMM has ended (or was stopped: see error) */
};
const char *fork_state_name(enum fork_state state); /* "waiting" "connected" "ready" "gone" */

enum prefetch_mode { PREFETCH_OFF, PREFETCH_EAGER, PREFETCH_STREAM };
const char *prefetch_mode_name(enum prefetch_mode mode); /* "off" "eager" "stream" */

enum prefetch_state { PREFETCH_NONE, PREFETCH_PENDING, PREFETCH_RUNNING, PREFETCH_DONE, PREFETCH_FAILED };
const char *prefetch_state_name(enum prefetch_state state); /* "none" "pending" "running" "done" "failed" */

struct fork_spec {
	const char *template;
	const char *id; /* NULL: made up */
	bool record;
	/* When the kernel's recording ends, if its guest doesn't say before that it is ready; 0: the usual. SETTLE: after so long a quiet; UINT64_MAX: not for that. */
	uint64_t window_timeout_ns, window_settle_ns;
	enum prefetch_mode prefetch;
	uint64_t prefetch_budget; /* bytes that prefetch may take for it; 0: as the list says */
	const char *hot_list;	  /* absolute path; NULL: the template's own */
	const char *dir;	  /* absolute path of the directory for the socket; NULL: the run directory */
	uid_t uid; /* who besides root may connect; the socket is given to this user. (uid_t)-1: the server's own user */
};

struct fork_region_info {
	uint64_t address;		  /* in the VMM's address space */
	uint64_t size, offset, page_size; /* bytes */
};

/* Of a list that is streamed to a fork. PLANNED is the sum of what follows it, up to PENDING. */
struct fork_stream_info {
	uint64_t planned;    /* pages of the list, each counted once */
	uint64_t prefetched; /* supplied before the guest asked for them */
	uint64_t late;	     /* asked for before they were there */
	uint64_t present;    /* there without the server having been asked */
	uint64_t removed;    /* removed by the guest, so not brought back */
	uint64_t skipped;    /* no longer mapped */
	uint64_t unreadable;
	uint64_t pending; /* none of these yet */

	uint64_t late_supplied; /* late, but on their way already, and not read again */
	uint64_t missing;	/* pages that demand faults brought, and that are not in the list */
	uint64_t place;		/* in the list, from 0: what comes next */
	uint64_t lead; /* from the guest's last known place on, so many of the list's pages follow each other that are dealt with */
	uint64_t moves; /* times that a demand fault has moved the place */
};

/* Of the pagers that watch a fork, so many are told. */
#define FORK_PAGERS_TOLD 64

struct fork_info {
	char id[NAME_MAX_LENGTH + 1];
	char template[NAME_MAX_LENGTH + 1];
	enum fork_state state;
	char *socket; /* path */
	pid_t pid;    /* 0 before the handshake */
	bool record;
	enum prefetch_mode prefetch;
	enum prefetch_state prefetch_state;
	char *hot_list; /* NULL: none */
	char *error;	/* why it failed or was stopped, or why the last peer was refused; NULL: nothing to say */
	const char *handshake;		  /* "firecracker", "hypeman", NULL before */
	int pager_cpus[FORK_PAGERS_TOLD]; /* CPUs of the pagers that watch it now */
	unsigned pager_count;

	uint64_t faults;		     /* demand faults read */
	uint64_t copied_pages;		     /* by demand faults */
	uint64_t zeroed_pages;		     /* by demand faults on removed pages */
	uint64_t neighbour_pages;	     /* that came unasked, beside pages that the list did not have */
	uint64_t prefetched_pages;	     /* supplied by prefetch */
	uint64_t prefetch_present_pages;     /* listed, but there already */
	uint64_t prefetch_removed_pages;     /* listed, but removed by the guest, so not brought back */
	uint64_t prefetch_budget;	     /* bytes; 0: none */
	uint64_t prefetch_over_budget_pages; /* listed, but left out for it */
	uint64_t prefetch_ns;		     /* from the start of the last prefetch to its end */
	uint64_t removed_pages;
	uint64_t recorded_pages;
	uint64_t poisoned_pages;  /* not readable: the guest gets SIGBUS there */
	uint64_t deferred_faults; /* put off because the guest was changing its memory map */
	uint64_t slow_faults;	  /* whose page had to be read from the device */
	uint64_t stall_ns;	  /* sum over demand faults: read by the pager to page supplied */
	uint64_t stall_p50_ns, stall_p99_ns, stall_max_ns; /* of the same */
	uint64_t connected_ns, ready_ns, gone_ns;	   /* since the fork was created; 0: not yet */

	const char *observe_tier; /* "none": it isn't, or not yet */
	bool observed;		  /* then there are ... */
	struct observed_figures figures;
	struct session *session; /* the server's own */

	bool streamed; /* it has a stream, with these figures */
	struct fork_stream_info stream;

	struct fork_region_info *regions;
	size_t region_count;
};

void fork_info_clear(struct fork_info *info);

/* Codes: bad_name, fork_exists, template_unknown, template_changed, bad_hot_list, bad_dir, bad_prefetch, too_many_forks, io_error, shutting_down. */
int server_fork_create(struct server *server, const struct fork_spec *spec, struct fork_info *ret, struct error *err);
/* Code: fork_unknown. */
int server_fork_get(struct server *server, const char *id, struct fork_info *ret, struct error *err);
/* In order of creation; the caller clears each and frees the array. */
int server_fork_list(struct server *server, struct fork_info **ret, size_t *ret_count, struct error *err);

enum fork_milestone { MILESTONE_CONNECTED, MILESTONE_PREFETCHED, MILESTONE_READY, MILESTONE_GONE };

/*
 * Blocks until the fork has reached the milestone (or had reached it before). Codes: fork_unknown, timeout (-ETIMEDOUT),
 * fork_gone (it ended without), prefetch_failed, not_prefetching (none was asked for), fork_removed, shutting_down.
 */
int server_fork_wait(struct server *server, const char *id, enum fork_milestone milestone, uint64_t timeout_ns,
		     struct fork_info *ret, struct error *err);
/* Says that the guest is ready; recording stops there. Saying it again is fine. Codes: fork_unknown, not_connected, fork_gone. */
int server_fork_ready(struct server *server, const char *id, struct fork_info *ret, struct error *err);
/*
 * Supplies the list's pages and returns when done. Codes: fork_unknown, not_connected, fork_gone, bad_hot_list, bad_region, bad_offset,
 * prefetch_busy, prefetch_failed.
 */
int server_fork_prefetch(struct server *server, const char *id, const char *hot_list_path, struct fork_info *ret,
			 struct error *err);
/* An unknown fork is fine. A live one: code fork_live, unless FORCE, which stops its VMM (SIGKILL) first. */
int server_fork_remove(struct server *server, const char *id, bool force, struct error *err);
/* Who recorded what a fork touched. */
enum recording_source {
	RECORDED_BEST,	    /* whichever is better */
	RECORDED_BY_LOOP,   /* the pagers: pages that demand faults brought, in the order of service */
	RECORDED_BY_KERNEL, /* the observer: every first touch, as it happened */
};
const char *recording_source_name(enum recording_source source); /* "best" "loop" "kernel" */

struct fork_recording {
	struct hotlist *list;
	enum recording_source from; /* not RECORDED_BEST */
	char why[240];		    /* half a sentence: why this one, where the choice was ours */
};

void fork_recording_clear(struct fork_recording *recording);
#define _cleanup_fork_recording_ _cleanup_(fork_recording_clear)

/*
 * What the fork has touched so far. Codes: fork_unknown, not_recorded, not_observed (the kernel's recording was asked for, and there is
 * none), io_error.
 */
int server_fork_hot_list(struct server *server, const char *id, enum recording_source from, struct fork_recording *ret,
			 struct error *err);

/* ---- traces ---- */

/* Each holds a reader of events, a thread and a connection. */
#define TRACES_MAX 16

struct server_trace;

/*
 * Touches of a fork from now on; of one whose VMM is yet to connect, from the first. Codes: fork_unknown, fork_gone, not_observed, busy (TRACES_MAX
 * are open), shutting_down, io_error.
 */
int server_trace_open(struct server *server, const char *id, struct server_trace **ret, struct error *err);
/*
 * Up to MAX touches, at least one unless TIMEOUT_NS pass: 0 then. RET_LOST counts those that came too fast since the last call, also with -ESHUTDOWN: that was all.
 * Another error: it never began, as the fork can't be observed.
 */
ssize_t server_trace_read(struct server_trace *trace, struct observed_touch *ret, size_t max, uint64_t timeout_ns,
			  uint64_t *ret_lost);
/* CLOCK_MONOTONIC at which the fork connected; 0: it has not yet. */
uint64_t server_trace_connected_ns(struct server_trace *trace);
/* NULL is fine. */
void server_trace_close(struct server_trace *trace);
