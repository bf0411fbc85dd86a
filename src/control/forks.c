/* The handlers of /v1/forks. */
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "base/clock.h"
#include "control/encode.h"
#include "control/routes.h"
#include "serve/server.h"

#define _cleanup_fork_info_	_cleanup_(fork_info_clear)
#define _cleanup_template_info_ _cleanup_(template_info_clear)

#define WAIT_DEFAULT_S 30
#define WAIT_MAX_S     86400 /* a day: a wait that nobody ends holds a thread no longer */

/* How often a wait looks whether its client is still there: a client that went away holds its thread no longer than this. */
#define WAIT_SLICE_NS (5 * NSEC_PER_SEC)

static int reply_fork(struct reply *reply, unsigned status, const struct fork_info *info, struct error *err)
{
	return reply_json(reply, status, encode_fork(info), err);
}

int handle_forks_list(struct request *request, struct reply *reply, struct error *err)
{
	struct fork_info *infos = NULL;
	size_t count = 0;
	int r = server_fork_list(request->server, &infos, &count, err);

	if (r < 0)
		return r;

	json_t *list = json_array();

	for (size_t i = 0; i < count; i++) {
		if (list && json_array_append_new(list, encode_fork(&infos[i])) < 0) {
			json_decref(list);
			list = NULL;
		}
		fork_info_clear(&infos[i]);
	}
	free(infos);
	return reply_json(reply, 200, list ? json_pack("{s:o}", "forks", list) : NULL, err);
}

/*
 * Where the request doesn't say: a fork prefetches if it names a hot list. It also does if its template has one, but not
 * while it records, since a recording sees none of the pages that were prefetched.
 */
static int default_prefetch(struct server *server, struct fork_spec *spec, struct error *err)
{
	_cleanup_template_info_ struct template_info info = { 0 };

	spec->prefetch = spec->hot_list ? PREFETCH_EAGER : PREFETCH_OFF;
	if (spec->hot_list || spec->record)
		return 0;

	int r = server_template_get(server, spec->template, &info, err);

	if (r >= 0 && info.hot_list)
		spec->prefetch = PREFETCH_EAGER;
	return r;
}

static int parse_prefetch(const char *word, enum prefetch_mode *ret, struct error *err)
{
	static const enum prefetch_mode modes[] = { PREFETCH_OFF, PREFETCH_EAGER, PREFETCH_STREAM };

	for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
		if (!strcmp(word, prefetch_mode_name(modes[i]))) {
			*ret = modes[i];
			return 0;
		}
	}
	return error_set(err, -EINVAL, "bad_member", "the member 'prefetch' is 'off', 'eager' or 'stream', not '%.64s'",
			 word);
}

#define NOT_SAID UINT64_MAX

static int set_window(struct fork_spec *spec, uint64_t timeout_ns, uint64_t settle_ns, struct error *err)
{
	if (timeout_ns == 0)
		return error_set(err, -EINVAL, "bad_member",
				 "the member 'window_timeout_s' is 0: a recording that ends as it begins has no pages");
	if (timeout_ns != NOT_SAID)
		spec->window_timeout_ns = timeout_ns;
	if (settle_ns != NOT_SAID)
		spec->window_settle_ns = settle_ns ?: UINT64_MAX;
	return 0;
}

int handle_forks_create(struct request *request, struct reply *reply, struct error *err)
{
	_cleanup_fork_info_ struct fork_info info = { 0 };
	struct fork_spec spec = { .uid = (uid_t)-1 };
	uint64_t timeout_ns = NOT_SAID, settle_ns = NOT_SAID;
	const char *prefetch = NULL;
	const struct member members[] = {
		{ "template", MEMBER_STRING, true, &spec.template },
		{ "id", MEMBER_STRING, false, &spec.id },
		{ "record", MEMBER_BOOL, false, &spec.record },
		{ "prefetch", MEMBER_STRING, false, &prefetch },
		{ "hot_list", MEMBER_PATH, false, &spec.hot_list },
		{ "prefetch_budget", MEMBER_BYTES, false, &spec.prefetch_budget },
		{ "dir", MEMBER_PATH, false, &spec.dir },
		{ "uid", MEMBER_UID, false, &spec.uid },
		{ "window_timeout_s", MEMBER_SECONDS, false, &timeout_ns },
		{ "settle_s", MEMBER_SECONDS, false, &settle_ns },
	};
	int r = request_read_body(request, members, sizeof members / sizeof *members, err);

	if (r >= 0)
		r = set_window(&spec, timeout_ns, settle_ns, err);
	if (r >= 0)
		r = prefetch ? parse_prefetch(prefetch, &spec.prefetch, err)
			     : default_prefetch(request->server, &spec, err);
	if (r >= 0)
		r = server_fork_create(request->server, &spec, &info, err);
	return r < 0 ? r : reply_fork(reply, 201, &info, err);
}

int handle_fork_get(struct request *request, struct reply *reply, struct error *err)
{
	_cleanup_fork_info_ struct fork_info info = { 0 };
	int r = server_fork_get(request->server, ROUTE_NAME(request), &info, err);

	return r < 0 ? r : reply_fork(reply, 200, &info, err);
}

int handle_fork_remove(struct request *request, struct reply *reply, struct error *err)
{
	static const char *const words[] = { "false", "true", NULL };
	int force = request_query_word(request, "force", words, 0, err);
	int r = force < 0 ? force : server_fork_remove(request->server, ROUTE_NAME(request), force == 1, err);

	if (r < 0)
		return r;
	reply->status = 204;
	return 0;
}

/* Closed at the other end, not merely done with sending. */
static bool client_is_gone(const struct request *request)
{
	struct pollfd p = { .fd = request->connection_fd };

	return poll(&p, 1, 0) == 1 && (p.revents & (POLLHUP | POLLERR));
}

/* Waits piece by piece, so that a client that went away is noticed. */
static int wait_in_slices(struct request *request, enum fork_milestone milestone, uint64_t timeout_ns,
			  struct fork_info *ret, struct error *err)
{
	uint64_t end = now_ns() + timeout_ns, left = timeout_ns;

	for (bool first = true;; first = false) {
		uint64_t slice = left < WAIT_SLICE_NS ? left : WAIT_SLICE_NS;
		int r = server_fork_wait(request->server, ROUTE_NAME(request), milestone, slice, ret, err);

		/* It was there when the wait began. */
		if (!first && r < 0 && !strcmp(err->code, "fork_unknown"))
			return error_set(err, r, "fork_removed", "fork %s was removed while it was waited for",
					 ROUTE_NAME(request));
		if (r != -ETIMEDOUT || client_is_gone(request))
			return r;

		uint64_t now = now_ns();

		if (now >= end)
			return error_set(err, -ETIMEDOUT, "timeout", "fork %s was not %s within %g s",
					 ROUTE_NAME(request), request_query(request, "for"),
					 (double)timeout_ns / (double)NSEC_PER_SEC);
		left = end - now;
	}
}

int handle_fork_wait(struct request *request, struct reply *reply, struct error *err)
{
	static const char *const words[] = { "connected", "prefetched", "ready", "gone", NULL };
	static const enum fork_milestone milestones[] = { MILESTONE_CONNECTED, MILESTONE_PREFETCHED, MILESTONE_READY,
							  MILESTONE_GONE };
	_cleanup_fork_info_ struct fork_info info = { 0 };
	uint64_t timeout_ns = 0;
	int word = request_query_word(request, "for", words, -ENODATA, err);

	if (word == -ENODATA)
		return error_set(err, -EINVAL, "bad_query",
				 "the query parameter 'for' is missing: connected, prefetched, ready or gone");
	int r = word < 0 ? word
			 : request_query_seconds(request, "timeout_s", WAIT_DEFAULT_S, WAIT_MAX_S, &timeout_ns, err);
	if (r >= 0)
		r = wait_in_slices(request, milestones[word], timeout_ns, &info, err);
	return r < 0 ? r : reply_fork(reply, 200, &info, err);
}

int handle_fork_ready(struct request *request, struct reply *reply, struct error *err)
{
	_cleanup_fork_info_ struct fork_info info = { 0 };
	int r = server_fork_ready(request->server, ROUTE_NAME(request), &info, err);

	return r < 0 ? r : reply_fork(reply, 200, &info, err);
}

int handle_fork_prefetch(struct request *request, struct reply *reply, struct error *err)
{
	_cleanup_fork_info_ struct fork_info info = { 0 };
	const char *hot_list = NULL;
	const struct member members[] = { { "hot_list", MEMBER_PATH, true, &hot_list } };
	int r = request_read_body(request, members, 1, err);

	if (r >= 0)
		r = server_fork_prefetch(request->server, ROUTE_NAME(request), hot_list, &info, err);
	return r < 0 ? r : reply_fork(reply, 200, &info, err);
}

int handle_fork_hot_list(struct request *request, struct reply *reply, struct error *err)
{
	static const char *const sources[] = { "best", "loop", "kernel", NULL };
	static const enum recording_source from[] = { RECORDED_BEST, RECORDED_BY_LOOP, RECORDED_BY_KERNEL };
	static const char *const formats[] = { "hpl2", "hpl1", "json", "csv", NULL };
	static const enum hotlist_format encodings[] = { HOTLIST_HPL2, HOTLIST_HPL1, HOTLIST_JSON, HOTLIST_CSV };
	static const char *const types[] = { "application/octet-stream", "application/octet-stream", "application/json",
					     "text/csv; charset=utf-8" };
	_cleanup_fork_recording_ struct fork_recording recording = { 0 };
	int source = request_query_word(request, "from", sources, 0, err);
	int format = source < 0 ? source : request_query_word(request, "format", formats, 0, err);
	int r = format < 0 ? format
			   : server_fork_hot_list(request->server, ROUTE_NAME(request), from[source], &recording, err);

	if (r >= 0)
		r = hotlist_encode(recording.list, encodings[format], &reply->data, &reply->size, err);
	if (r < 0)
		return r;
	reply->status = 200;
	reply->content_type = types[format];
	reply_add_header(reply, HEADER_RECORDED_BY, recording_source_name(recording.from));
	reply_add_header(reply, HEADER_RECORDED_WHY, recording.why);
	return 0;
}
