/* One warm-up run: a recorded fork, the command as its VMM, the end of the recording's window, and the list. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "cli/child.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/fork_watch.h"
#include "cli/warmup.h"

/* How often the fork's faults are counted, to see whether it has settled and to show that something happens. */
#define SAMPLE_MS 250
/* A guest that still has this share of its faults within the settling time hasn't settled: stray ones never end. */
#define SETTLED_SHARE 100

/* One run under way. */
struct run {
	struct warmup_job *job;
	struct warmup_run *result;
	unsigned number;
	char id[80]; /* of the fork; "": none */
	char *socket;
	struct child child;
	struct fork_watch watch;
	uint64_t connected_ns;
	uint64_t faults, mark_faults,
		mark_ns; /* as counted last; when they last grew by more than SETTLED_SHARE allows */
};

/* What a wait ended with. */
enum event { EVENT_ANSWER, EVENT_CHILD, EVENT_SAMPLE, EVENT_SIGNAL };

static int next_event(const struct run *run, int timeout_ms)
{
	struct pollfd p[] = {
		{ .fd = run->job->signals, .events = POLLIN },
		{ .fd = run->watch.done, .events = POLLIN },
		{ .fd = run->child.pidfd, .events = POLLIN },
	};
	int n;

	do
		n = poll(p, 3, timeout_ms);
	while (n < 0 && errno == EINTR);
	if (p[0].revents)
		return EVENT_SIGNAL;
	if (p[1].revents)
		return EVENT_ANSWER;
	return p[2].revents ? EVENT_CHILD : EVENT_SAMPLE;
}

/* Takes the signal, so that only another one makes us impatient. */
static int interrupted(struct run *run, struct error *err)
{
	run->job->interrupted_by = warmup_read_signal(run->job);
	return error_set(err, -EINTR, "interrupted", "interrupted");
}

static int failed(const struct client_call *call, struct error *err)
{
	*err = call->err;
	return call->result;
}

/* ---- the fork ---- */

static int create_fork(struct run *run, struct error *err)
{
	_cleanup_client_call_ struct client_call call = { .args = run->job->args };

	client_add_string(&call, "template", warmup_template_name(run->job));
	client_add_string(&call, "prefetch", "off");
	client_add(&call, "record", json_true());
	/* The server finds the exact place in the recording, by the same rules. */
	client_add(&call, "window_timeout_s", json_real(run->job->window_s));
	client_add(&call, "settle_s", json_real(run->job->settle_s));
	if (client_call(&call, "POST", "/v1/forks", API_TIMEOUT_S) < 0)
		return failed(&call, err);
	snprintf(run->id, sizeof run->id, "%s", client_string(call.reply.json, "id", ""));
	run->socket = strdup(client_string(call.reply.json, "socket", ""));
	return run->socket ? 0 : warmup_no_memory(err);
}

static void forget_fork(struct run *run)
{
	_cleanup_client_call_ struct client_call call = { .args = run->job->args };

	if (!run->id[0])
		return;
	if (client_call_named(&call, "DELETE", "/v1/forks/", run->id, "?force=true", API_TIMEOUT_S) < 0 &&
	    strcmp(call.err.code, "no_server") != 0)
		cli_error("fork %s could not be removed, ignoring: %s", run->id, call.err.message);
	run->id[0] = '\0';
}

/* What `fork show` says of it, for RET_ERROR too: why it or its last peer was refused; "": nothing. */
static int look_at_fork(struct run *run, bool *ret_connected, char *ret_error, size_t error_size, struct error *err)
{
	_cleanup_client_call_ struct client_call call = { .args = run->job->args };

	if (client_call_named(&call, "GET", "/v1/forks/", run->id, "", API_TIMEOUT_S) < 0)
		return failed(&call, err);
	run->faults = (uint64_t)client_number(call.reply.json, "faults");
	*ret_connected = json_is_number(json_object_get(call.reply.json, "connected_ms"));
	snprintf(ret_error, error_size, "%s", client_string(call.reply.json, "error", ""));
	return 0;
}

static int fetch_list(struct run *run, struct error *err)
{
	_cleanup_client_call_ struct client_call call = { .args = run->job->args };

	if (client_call_named(&call, "GET", "/v1/forks/", run->id, "/hot-list?from=best&format=hpl2",
			      API_TIMEOUT_NONE) < 0)
		return failed(&call, err);
	int r = hotlist_decode(call.reply.body, call.reply.size, &run->result->list, err);
	if (r < 0)
		return error_prefix(err, r, "the server's list of fork %s can't be read: ", run->id);
	if (!run->result->list->count)
		return error_set(err, -ENODATA, "no_pages",
				 "run %u touched no page before its window ended: does the guest run at all?",
				 run->number + 1);
	/* As the server saw it, where it did: it knew sooner of the connection. */
	if (run->result->list->origin && run->result->list->origin->window_ns)
		run->result->window_s = (double)run->result->list->origin->window_ns / NSEC_PER_SEC;
	return 0;
}

/* ---- the command ---- */

static int start_command(struct run *run, struct error *err)
{
	const struct child_variable variables[] = {
		{ .name = "FAULTLINE_SOCKET", .value = run->socket },
		{ .name = "FAULTLINE_FORK", .value = run->id },
		{ .name = "FAULTLINE_RUN_DIR", .value = run->job->run_dir },
		/* For the preload library, which is to know the image when it sees it. */
		{ .name = "FAULTLINE_MEMORY", .value = run->job->memory, .keep = true },
		{ 0 },
	};

	return child_start(run->job->command, variables, &run->child, err);
}

/* The command has ended by itself. 0 where that was all right. */
static int check_exit(struct run *run, const char *when, struct error *err)
{
	char how[120];
	int status = child_end(&run->child, 0, -1);

	if (status == 0)
		return 0;
	child_describe(status, how, sizeof how);
	return error_set(err, -ECHILD, "command_failed", "run %u: '%s' %s %s", run->number + 1, run->job->command[0],
			 how, when);
}

/* ---- waiting ---- */

static int never_connected(struct run *run, const char *what, struct error *err)
{
	char refused[ERROR_MESSAGE_MAX / 2];
	struct error ignored;
	bool connected;

	if (look_at_fork(run, &connected, refused, sizeof refused, &ignored) < 0)
		refused[0] = '\0';
	if (refused[0])
		return error_set(err, -ETIMEDOUT, "not_connected", "run %u: %s; the server refused its last try: %s",
				 run->number + 1, what, refused);
	return error_set(err, -ETIMEDOUT, "not_connected",
			 "run %u: %s: the VMM must hand its memory to the socket that $FAULTLINE_SOCKET names",
			 run->number + 1, what);
}

/* The command may have ended just after its VMM had connected, or that may be gone already. */
static int ended_before_connected(struct run *run, struct error *err)
{
	char how[120], what[240], refused[8];
	bool connected = false;
	int r = look_at_fork(run, &connected, refused, sizeof refused, err);

	if (r < 0 || connected)
		return r;
	child_describe(child_end(&run->child, 0, -1), how, sizeof how);
	snprintf(what, sizeof what, "'%.80s' %s before a VMM had connected", run->job->command[0], how);
	return never_connected(run, what, err);
}

static int await_connected(struct run *run, struct error *err)
{
	char what[120];
	int r = fork_watch_start(&run->watch, run->job->args->run_dir, run->id, "connected", run->job->connect_s, err);

	if (r < 0)
		return r;
	switch (next_event(run, -1)) {
	case EVENT_SIGNAL:
		return interrupted(run, err);
	case EVENT_CHILD:
		r = ended_before_connected(run, err);
		break;
	default:
		r = fork_watch_take(&run->watch, err);
		if (r < 0 && !strcmp(err->code, "timeout")) {
			snprintf(what, sizeof what, "no VMM connected within %g s", run->job->connect_s);
			return never_connected(run, what, err);
		}
		/* It has come and gone, which the window's wait will find as well. */
		if (r < 0 && !strcmp(err->code, "fork_gone"))
			r = 0;
	}
	if (r >= 0)
		fork_watch_end(&run->watch);
	run->connected_ns = run->mark_ns = now_ns();
	return r;
}

static void show_progress(const struct run *run)
{
	if (run->job->progress)
		fprintf(stderr, "\r\033[Krun %u of %u: %llu faults, %.1f s ", run->number + 1, run->job->runs,
			(unsigned long long)run->faults, (double)(now_ns() - run->connected_ns) / NSEC_PER_SEC);
}

static void clear_progress(const struct run *run)
{
	if (run->job->progress)
		fputs("\r\033[K", stderr);
}

/* Counts the faults. 1: they have all but ceased for as long as it takes. */
static int has_settled(struct run *run, struct error *err)
{
	uint64_t now = now_ns();
	char refused[8];
	bool connected;
	int r = look_at_fork(run, &connected, refused, sizeof refused, err);

	if (r < 0)
		return r;
	show_progress(run);
	if (run->faults == 0 || run->faults - run->mark_faults > run->faults / SETTLED_SHARE) {
		run->mark_faults = run->faults;
		run->mark_ns = now;
	}
	return run->job->settle_s > 0 && (double)(now - run->mark_ns) >= run->job->settle_s * NSEC_PER_SEC;
}

/* The answer of the wait for readiness, as an end of the window. */
static int end_by_answer(struct run *run, struct error *err)
{
	int r = fork_watch_take(&run->watch, err);

	if (r >= 0)
		run->result->end = HOT_WINDOW_READY;
	else if (!strcmp(err->code, "timeout"))
		run->result->end = HOT_WINDOW_TIMEOUT;
	else if (!strcmp(err->code, "fork_gone"))
		run->result->end = HOT_WINDOW_GONE;
	else
		return r;
	return 0;
}

static int await_window(struct run *run, struct error *err)
{
	int r = fork_watch_start(&run->watch, run->job->args->run_dir, run->id, "ready", run->job->window_s, err);

	while (r >= 0 && run->result->end == HOT_WINDOW_UNKNOWN) {
		switch (next_event(run, SAMPLE_MS)) {
		case EVENT_SIGNAL:
			return interrupted(run, err);
		case EVENT_ANSWER:
			r = end_by_answer(run, err);
			break;
		case EVENT_CHILD:
			r = check_exit(run, "before its window had ended", err);
			run->result->end = HOT_WINDOW_GONE;
			break;
		default:
			r = has_settled(run, err);
			if (r > 0)
				run->result->end = HOT_WINDOW_SETTLED;
		}
	}
	run->result->window_s = (double)(now_ns() - run->connected_ns) / NSEC_PER_SEC;
	return r;
}

/* The server would look for an end of its own in the recording. Where the guest has settled, it is to: it finds the exact place. */
static void end_recording(struct run *run)
{
	_cleanup_client_call_ struct client_call call = { .args = run->job->args };

	if (run->result->end == HOT_WINDOW_TIMEOUT)
		client_call_named(&call, "POST", "/v1/forks/", run->id, "/ready", API_TIMEOUT_S);
}

/* Where the VMM is gone, the command is about to end and has a status to tell; or it is to be waited for anyway. */
static int await_command(struct run *run, struct error *err)
{
	bool gone = run->result->end == HOT_WINDOW_GONE;
	struct pollfd p[] = {
		{ .fd = run->job->signals, .events = POLLIN },
		{ .fd = run->child.pidfd, .events = POLLIN },
	};
	int n;

	if (!run->child.pid || (!gone && !run->job->wait))
		return 0;
	do
		n = poll(p, 2, run->job->wait ? -1 : (int)(run->job->grace_s * 1000));
	while (n < 0 && errno == EINTR);
	if (p[0].revents)
		return interrupted(run, err);
	return p[1].revents ? check_exit(run, gone ? "when its VM was gone" : "after its window had ended", err) : 0;
}

static int run_through(struct run *run, struct error *err)
{
	int r = create_fork(run, err);

	if (r >= 0)
		r = start_command(run, err);
	if (r >= 0)
		r = await_connected(run, err);
	if (r >= 0)
		r = await_window(run, err);
	/* While the VM still runs: what it touches on its way out isn't hot. */
	if (r >= 0)
		end_recording(run);
	if (r >= 0)
		r = fetch_list(run, err);
	return r < 0 ? r : await_command(run, err);
}

int warmup_run_once(struct warmup_job *job, unsigned number, struct error *err)
{
	struct run run = {
		.job = job, .result = &job->done[number], .number = number, .child = CHILD_NONE, .watch = FORK_WATCH_NONE
	};
	snprintf(run.result->name, sizeof run.result->name, "run %u", number + 1);
	int r = run_through(&run, err);

	clear_progress(&run);
	child_end(&run.child, job->grace_s, job->signals);
	forget_fork(&run);
	fork_watch_end(&run.watch);
	free(run.socket);
	return r;
}
