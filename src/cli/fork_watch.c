/* A thread that waits for a fork: see fork_watch.h. */
#include "cli/fork_watch.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "cli/api_client.h"

/* Above the server's own time-out, which has the better message. */
#define ANSWER_GRACE_S 15

static int ask(const struct fork_watch *watch, struct error *err)
{
	_cleanup_api_client_ struct api_client *client = NULL;
	_cleanup_api_reply_ struct api_reply reply = { 0 };
	_cleanup_free_ char *path = NULL;
	char suffix[80];

	snprintf(suffix, sizeof suffix, "/wait?for=%s&timeout_s=%.3f", watch->milestone, watch->timeout_s);
	int r = api_path("/v1/forks/", watch->id, suffix, &path, err);
	if (r >= 0)
		r = api_client_new(watch->run_dir, &client, err);
	if (r >= 0)
		r = api_call(client, "GET", path, NULL, (unsigned)watch->timeout_s + ANSWER_GRACE_S, &reply, err);
	return r;
}

static void *wait_for_answer(void *data)
{
	struct fork_watch *watch = data;

	watch->result = ask(watch, &watch->err);
	eventfd_write(watch->done, 1);
	return NULL;
}

int fork_watch_start(struct fork_watch *watch, const char *run_dir, const char *id, const char *milestone,
		     double timeout_s, struct error *err)
{
	sigset_t all, before;

	*watch = (struct fork_watch){
		.done = eventfd(0, EFD_CLOEXEC), .run_dir = run_dir, .milestone = milestone, .timeout_s = timeout_s
	};
	snprintf(watch->id, sizeof watch->id, "%s", id);
	if (watch->done < 0)
		return error_set(err, -errno, "no_memory", "cannot wait for fork %s: %s", id, strerror(errno));
	/* Signals are the main thread's. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int error = pthread_create(&watch->thread, NULL, wait_for_answer, watch);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error) {
		close(TAKE_FD(watch->done));
		return error_set(err, -error, "no_memory", "cannot wait for fork %s: %s", id, strerror(error));
	}
	watch->started = true;
	return 0;
}

int fork_watch_take(struct fork_watch *watch, struct error *err)
{
	if (watch->started)
		pthread_join(watch->thread, NULL);
	watch->started = false;

	int r = watch->result;

	if (r < 0)
		*err = watch->err;
	fork_watch_end(watch);
	return r;
}

void fork_watch_end(struct fork_watch *watch)
{
	if (watch->started)
		pthread_join(watch->thread, NULL);
	cleanup_close(&watch->done);
	*watch = (struct fork_watch)FORK_WATCH_NONE;
}
