/* What is asked of a fork while it lives: waiting for it, that it is ready, that it goes. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "serve/internal.h"

/* `fork remove --force` kills; this is how long it waits for the end. */
#define REMOVE_TIMEOUT_NS (10 * NSEC_PER_SEC)

static int no_longer(const struct fork *fork, const char *what, struct error *err)
{
	return error_set(err, -ESRCH, "fork_gone", "fork '%s' has ended before it was %s%s%s", fork->id, what,
			 fork->error ? ": " : "", fork->error ?: "");
}

int fork_reached(const struct fork *fork, enum fork_milestone milestone, struct error *err)
{
	switch (milestone) {
	case MILESTONE_CONNECTED:
		return fork->state != FORK_WAITING;
	case MILESTONE_READY:
		if (fork->ready_ns)
			return 1;
		return fork->state == FORK_GONE ? no_longer(fork, "ready", err) : 0;
	case MILESTONE_GONE:
		return fork->state == FORK_GONE;
	case MILESTONE_PREFETCHED:
		break;
	}
	switch (fork->prefetch_state) {
	case PREFETCH_DONE:
		return 1;
	case PREFETCH_FAILED:
		if (fork->state == FORK_GONE)
			return no_longer(fork, "prefetched", err);
		return error_set(err, -EIO, "prefetch_failed", "prefetching for fork '%s' failed: %s", fork->id,
				 fork->error ?: "see the server's log");
	case PREFETCH_NONE:
		return error_set(err, -EINVAL, "not_prefetching",
				 "fork '%s' was created without prefetch, and no list has been given since: use 'fork prefetch'",
				 fork->id);
	default:
		return fork->state == FORK_GONE ? no_longer(fork, "prefetched", err) : 0;
	}
}

static int wait_for(struct server *server, const char *id, enum fork_milestone milestone, uint64_t timeout_ns,
		    struct fork_info *ret, struct error *err)
{
	static const char *const names[] = { "connected", "prefetched", "ready", "gone" };
	uint64_t until = now_ns() + timeout_ns, serial = 0;
	struct timespec ts = { .tv_sec = (time_t)(until / NSEC_PER_SEC), .tv_nsec = (long)(until % NSEC_PER_SEC) };

	LOCK_SCOPE(&server->lock);
	for (;;) {
		struct fork *fork = server_find_fork(server, id);

		if (!fork && serial == 0)
			return fork_unknown(id, err);
		if (!fork || (serial && fork->serial != serial))
			return error_set(err, -ENOENT, "fork_removed", "fork '%s' was removed before it was %s", id,
					 names[milestone]);
		serial = fork->serial;
		int r = fork_reached(fork, milestone, err);
		if (r < 0)
			return r;
		if (r > 0) {
			fork_fill_info(fork, ret);
			return 0;
		}
		if (server->stopping)
			return error_set(err, -ESHUTDOWN, "shutting_down", "the server is stopping");
		if (now_ns() >= until || pthread_cond_timedwait(&server->changed, &server->lock, &ts) == ETIMEDOUT) {
			fork = server_find_fork(server, id);
			if (fork && fork->serial == serial && fork_reached(fork, milestone, NULL) > 0)
				continue;
			return error_set(err, -ETIMEDOUT, "timeout", "fork '%s' was not %s after %.3g s", id,
					 names[milestone], (double)timeout_ns / NSEC_PER_SEC);
		}
	}
}

int server_fork_wait(struct server *server, const char *id, enum fork_milestone milestone, uint64_t timeout_ns,
		     struct fork_info *ret, struct error *err)
{
	int r = wait_for(server, id, milestone, timeout_ns, ret, err);

	if (r == 0)
		fork_info_observe(ret);
	return r;
}

static int set_ready(struct server *server, const char *id, struct fork_info *ret, struct error *err)
{
	LOCK_SCOPE(&server->lock);
	struct fork *fork = server_find_fork(server, id);

	if (!fork)
		return fork_unknown(id, err);
	if (fork->state == FORK_WAITING)
		return error_set(err, -ENOTCONN, "not_connected",
				 "no VMM has connected to fork '%s' yet, so it cannot be ready", id);
	if (fork->state == FORK_GONE && !fork->ready_ns)
		return error_set(err, -ESRCH, "fork_gone", "fork '%s' has ended", id);
	fork_set_ready(server, fork);
	if (ret)
		fork_fill_info(fork, ret);
	return 0;
}

int server_fork_ready(struct server *server, const char *id, struct fork_info *ret, struct error *err)
{
	int r = set_ready(server, id, ret, err);

	if (r == 0 && ret)
		fork_info_observe(ret);
	return r;
}

static int wait_until_gone(struct server *server, const char *id, uint64_t serial, struct error *err)
{
	uint64_t until = now_ns() + REMOVE_TIMEOUT_NS;
	struct timespec ts = { .tv_sec = (time_t)(until / NSEC_PER_SEC), .tv_nsec = (long)(until % NSEC_PER_SEC) };

	for (;;) {
		const struct fork *fork = server_find_fork(server, id);
		if (!fork || fork->serial != serial || fork->state == FORK_GONE)
			return 0;
		if (server->stopping)
			return error_set(err, -ESHUTDOWN, "shutting_down", "the server is stopping");
		if (pthread_cond_timedwait(&server->changed, &server->lock, &ts) == ETIMEDOUT)
			return error_set(err, -ETIMEDOUT, "fork_live",
					 "the VMM of fork '%s' (pid %d) has not ended %llu s after it was killed", id,
					 (int)fork->pid, (unsigned long long)(REMOVE_TIMEOUT_NS / NSEC_PER_SEC));
	}
}

int server_fork_remove(struct server *server, const char *id, bool force, struct error *err)
{
	LOCK_SCOPE(&server->lock);
	struct fork *fork = server_find_fork(server, id);

	if (!fork)
		return 0;
	uint64_t serial = fork->serial;
	bool live = fork->state == FORK_CONNECTED || fork->state == FORK_READY;
	/* Just ended, and the loop has not come to it yet? */
	if (live && fork_process_ended(fork) && !fork_memory_mapped(fork)) {
		fork_end(server, fork);
		live = false;
	}
	if (live && !force)
		return error_set(err, -EBUSY, "fork_live",
				 "the VMM of fork '%s' (pid %d) still runs, and would read wrong bytes or hang: end it first, or "
				 "say --force to kill it",
				 id, (int)fork->pid);
	if (live) {
		session_stop_vmm(fork->session, "the fork was removed by force");
		int r = wait_until_gone(server, id, serial, err);
		if (r < 0)
			return r;
		fork = server_find_fork(server, id);
		if (!fork || fork->serial != serial)
			return 0;
	}
	log_info(NULL, "fork %s: removed", fork->id);
	fork_drop(server, fork);
	server_wake(server);
	return 0;
}
