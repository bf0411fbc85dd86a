/* A fork's prefetch: list to plan or stream to engine, and what came of it. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "prefetch/budget.h"
#include "serve/hot_sets.h"
#include "serve/internal.h"
#include "serve/thread_stat.h"
#include "serve/vmm_talk.h"
#include "uffd/huge.h"

/* One job of the engine for one fork; freed when it is done. */
struct prefetch_request {
	struct prefetch_job job; /* first */
	struct server *server;
	struct session *session; /* a use */
	uint64_t serial;	 /* of the fork */
	bool streamed;
	char *path;
	uint64_t *hot_pages; /* the list as the image has it, where a packed hot set is to be made of it; or NULL */
	size_t hot_count;
	uint64_t budget;    /* bytes; 0: none */
	uint64_t over;	    /* pages of the list that are over it */
	struct error error; /* of making the plan */
};

static void request_free(struct prefetch_request *request)
{
	if (!request)
		return;
	plan_free(request->job.plan);
	if (request->session)
		session_unuse(request->session);
	free(request->path);
	free(request->hot_pages);
	free(request);
}

static int load_list(const char *path, struct template *template, struct hotlist **ret, struct error *err)
{
	int r = load_hot_list(path, template, ret, err);

	if (r < 0)
		return r;
	if ((*ret)->count == 0)
		log_warning(NULL, "the hot list '%s' is %s: nothing is prefetched", path,
			    access(path, F_OK) < 0 ? "not there" : "empty");
	return 0;
}

/* The request's list, as far as it is within the budget. What of that is not for the list is for neighbours. */
static int load_within_budget(struct prefetch_request *request, struct hotlist **ret, struct error *err)
{
	_cleanup_hotlist_ struct hotlist *list = NULL;
	struct session *s = request->session;
	const struct guest_memory *memory = s->memory;
	uint64_t used;
	int r = load_list(request->path, s->template, &list, err);

	if (r == 0 && request->budget > 0) {
		r = budget_cut(list, memory->regions, memory->region_count, request->budget, &used, &request->over, err);
		if (r < 0)
			return error_prefix(err, r, "%s: ", request->path);
		atomic_store(&s->spare, (int64_t)(request->budget - used));
	}
	if (r == 0)
		*ret = TAKE_PTR(list);
	return r;
}

static int make_plan(struct prefetch_request *request, struct plan **ret, struct error *err)
{
	_cleanup_hotlist_ struct hotlist *list = NULL;
	const char *path = request->path;
	const struct guest_memory *memory = request->session->memory;
	int r = load_within_budget(request, &list, err);

	if (r < 0)
		return r;
	r = plan_new(list, memory->regions, memory->region_count, ret, err);
	return r < 0 ? error_prefix(err, r, "%s: ", path) : 0;
}

/* Where the template has no set of its own list as that is now: the pages that one is to be made of at the end. */
static void note_hot_pages(struct prefetch_request *request, const struct stream *stream, const struct hot_set *set)
{
	size_t count = stream_count(stream);
	uint64_t *pages = stream_image_pages(stream);

	if (!pages || count == 0 || (set && hot_set_list(set) == hot_set_digest(pages, count))) {
		free(pages);
		return;
	}
	request->hot_pages = pages;
	request->hot_count = count;
}

/* The template's packed hot set, for STREAM; if it has none, or one of an older list, one is made at the end. */
static int find_hot_set(struct prefetch_request *request, const struct stream *stream)
{
	struct session *s = request->session;
	struct template *t = s->template;

	if (!t->packs || !stream_is_small(stream))
		return 0;
	struct hot_set *set = hot_set_of(t);
	/* A part of the list is no list to make a set of. */
	if (t->hot_list && !strcmp(request->path, t->hot_list) && request->over == 0)
		note_hot_pages(request, stream, set);
	request->job.hot = &s->hot;
	return hot_reader_init(&s->hot, set);
}

/* From the moment that pagers see it, whatever is asked for counts; and what has been asked for before is in the page states. */
static int make_stream(struct prefetch_request *request, struct error *err)
{
	_cleanup_hotlist_ struct hotlist *list = NULL;
	const struct guest_memory *memory = request->job.memory;
	struct stream *stream;
	int r = load_within_budget(request, &list, err);

	if (r < 0)
		return r;
	free(TAKE_PTR(list->touches)); /* the larger part of the list; only the order counts from here on */
	r = stream_new(list, memory->regions, memory->region_count, &stream, err);
	if (r < 0)
		return error_prefix(err, r, "%s: ", request->path);
	if (find_hot_set(request, stream) < 0) {
		stream_free(stream);
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	}
	atomic_store(&request->session->stream, stream);
	stream_begin(stream, memory->states);
	request->job.stream = stream;
	return 0;
}

static int prepare(struct prefetch_job *job)
{
	struct prefetch_request *request = (struct prefetch_request *)job;

	return request->streamed ? make_stream(request, &request->error)
				 : make_plan(request, &job->plan, &request->error);
}

static void find_cpus(struct prefetch_job *job, cpu_set_t *ret)
{
	struct prefetch_request *request = (struct prefetch_request *)job;
	struct session *s = request->session;
	int cpus[64];

	/* A guest that has all its pages has no faults to be placed by, and one that waits for them does not run. */
	thread_stat_add_running(s->pid, ret);
	if (!atomic_load_explicit(&s->placed, memory_order_relaxed))
		return;
	unsigned count = session_cpus(s, cpus, sizeof cpus / sizeof cpus[0]);
	for (unsigned i = 0; i < count; i++)
		CPU_SET((size_t)cpus[i], ret);
}

/* ---- figures ---- */

static void get_stream_info(struct session *session, const struct stream *stream, struct fork_stream_info *ret)
{
	struct stream_figures figures;

	stream_get_figures(stream, &figures);
	/* Every page that a demand fault brought is late or missing; late ones that the stream brought are not among them. */
	uint64_t copied = load(&session->copied), late = figures.late - figures.late_supplied;
	*ret = (struct fork_stream_info){
		.planned = figures.planned,
		.prefetched = figures.prefetched,
		.late = figures.late,
		.present = figures.present,
		.removed = figures.removed,
		.skipped = figures.skipped,
		.unreadable = figures.unreadable,
		.pending = figures.pending,
		.late_supplied = figures.late_supplied,
		.missing = copied > late ? copied - late : 0,
		.place = figures.place,
		.lead = figures.lead,
		.moves = figures.moves,
	};
}

void fork_keep_stream(struct fork *fork)
{
	const struct stream *stream = atomic_load(&fork->session->stream);

	fork->streamed = stream != NULL;
	if (stream)
		get_stream_info(fork->session, stream, &fork->stream);
}

void fork_fill_stream(const struct fork *fork, struct fork_info *ret)
{
	const struct stream *stream =
		fork->session && fork->state != FORK_GONE ? atomic_load(&fork->session->stream) : NULL;

	ret->streamed = stream || fork->streamed;
	ret->stream = fork->stream;
	if (stream)
		get_stream_info(fork->session, stream, &ret->stream);
}

/* ---- the end ---- */

static void describe_failure(const struct prefetch_request *request, int result, char *text, size_t size)
{
	uint64_t unreadable = load(&request->job.unreadable);

	if (request->error.message[0])
		snprintf(text, size, "%s", request->error.message);
	else if (result == -ESRCH)
		snprintf(text, size, "its VMM ended");
	else if (result == -ECANCELED)
		snprintf(text, size, "the server was stopped");
	else if (unreadable > 0)
		snprintf(text, size, "%" PRIu64 " pages of the image '%s' could not be read: %s", unreadable,
			 request->session->template->memory,
			 result == -ENODATA ? "it has become shorter" : strerror(-result));
	else if (load(&request->job.wanting) > 0)
		describe_no_memory(load(&request->job.wanting), text, size);
	else
		snprintf(text, size, "%s", strerror(-result));
}

static void lost(struct prefetch_job *job)
{
	struct prefetch_request *request = (struct prefetch_request *)job;

	session_stop_vmm(request->session,
			 "its template's image '%s' was cut short while pages were copied from it: one may be wrong",
			 request->session->template->memory);
}

/* What JOB has done, among the fork's figures. */
static void count_job(struct fork *fork, const struct prefetch_job *job)
{
	fork->prefetched += load(&job->copied);
	fork->prefetch_over += ((const struct prefetch_request *)job)->over;
	if (!job->stream) {
		fork->prefetch_present += load(&job->present);
		fork->prefetch_removed += load(&job->removed);
		return;
	}
	fork_keep_stream(fork);
	fork->prefetch_present += fork->stream.present + fork->stream.late - fork->stream.late_supplied;
	fork->prefetch_removed += fork->stream.removed;
}

static void log_done(const struct fork *fork, const struct prefetch_request *request)
{
	const struct prefetch_job *job = &request->job;
	double ms = (double)fork->prefetch_ns / 1e6;

	if (job->stream)
		log_info(request->session->name,
			 "streamed %" PRIu64 " of %" PRIu64 " listed pages in %.1f ms; %" PRIu64
			 " were asked for before they were there",
			 load(&job->copied), fork->stream.planned, ms, fork->stream.late);
	else
		log_info(request->session->name, "prefetched %" PRIu64 " of %" PRIu64 " listed pages in %.1f ms",
			 load(&job->copied), job->plan->pages, ms);
	if (request->over > 0)
		log_info(request->session->name,
			 "%" PRIu64 " listed pages were left out, as they are over the prefetch budget of %" PRIu64
			 " bytes",
			 request->over, request->budget);
}

static void done(struct prefetch_job *job, int result)
{
	struct prefetch_request *request = (struct prefetch_request *)job;
	struct server *server = request->server;
	struct session *s = request->session;
	struct fork *fork;

	/* Its memory may be let go long before the VM ends. */
	if (job->hot) {
		pthread_rwlock_wrlock(&s->hot_lock);
		hot_reader_clear(&s->hot);
		pthread_rwlock_unlock(&s->hot_lock);
	}

	pthread_mutex_lock(&server->lock);
	for (fork = server->forks; fork && fork->serial != request->serial; fork = fork->next)
		;
	if (fork) {
		fork->prefetching = false;
		count_job(fork, job);
		fork->prefetch_ns = now_ns() - fork->prefetch_started_ns;
		fork->prefetch_state = result == 0 ? PREFETCH_DONE : PREFETCH_FAILED;
		if (result < 0) {
			char text[ERROR_MESSAGE_MAX], message[ERROR_MESSAGE_MAX + 32];
			describe_failure(request, result, text, sizeof text);
			snprintf(message, sizeof message, "prefetch failed: %s", text);
			if (!fork->error)
				fork_set_error(fork, message);
			log_warning(request->session->name, "%s", message);
		} else {
			log_done(fork, request);
		}
		vmm_talk_prefetched(fork);
		pthread_cond_broadcast(&server->changed);
	}
	pthread_mutex_unlock(&server->lock);
	if (result == 0 && request->hot_pages)
		packer_build(server->packer, request->session->template, TAKE_PTR(request->hot_pages),
			     request->hot_count);
	request_free(request);
}

/* With server->lock held; the fork is connected and has no job under way. NULL: out of memory. */
static struct prefetch_request *request_new(struct server *server, struct fork *fork, const char *path)
{
	struct prefetch_request *request = calloc(1, sizeof *request);

	if (!request)
		return NULL;
	request->path = strdup(path);
	if (!request->path) {
		free(request);
		return NULL;
	}
	request->server = server;
	request->session = session_use(fork->session);
	request->serial = fork->serial;
	request->budget = fork->prefetch_budget;
	request->job.memory = fork->session->memory;
	request->job.source = fork->session->template->source;
	request->job.prepare = prepare;
	request->job.find_cpus = find_cpus;
	request->job.lost = lost;
	request->job.done = done;
	return request;
}

static void submit(struct fork *fork, struct prefetch_request *request)
{
	fork->prefetch_state = PREFETCH_RUNNING;
	fork->prefetch_started_ns = now_ns();
	prefetch_engine_submit(request->server->engine, &request->job);
}

void fork_start_prefetch(struct server *server, struct fork *fork)
{
	struct prefetch_request *request = request_new(server, fork, fork->hot_list);

	if (!request) {
		fork->prefetch_state = PREFETCH_FAILED;
		fork_set_error(fork, "prefetch failed: out of memory");
		return;
	}
	request->streamed = fork->prefetch == PREFETCH_STREAM;
	fork->prefetching = true;
	submit(fork, request);
}

static int check_can_prefetch(const struct fork *fork, const char *id, struct error *err)
{
	if (!fork)
		return fork_unknown(id, err);
	if (fork->state == FORK_WAITING)
		return error_set(err, -ENOTCONN, "not_connected",
				 "no VMM has connected to fork '%s' yet: prefetch after 'fork wait %s --for connected', or say "
				 "--prefetch eager when creating it",
				 id, id);
	if (fork->state == FORK_GONE)
		return error_set(err, -ESRCH, "fork_gone", "fork '%s' has ended", id);
	if (fork->prefetching)
		return error_set(err, -EBUSY, "prefetch_busy", "fork '%s' is being prefetched already: wait for that",
				 id);
	return 0;
}

int server_fork_prefetch(struct server *server, const char *id, const char *hot_list_path, struct fork_info *ret,
			 struct error *err)
{
	pthread_mutex_lock(&server->lock);
	struct fork *fork = server_find_fork(server, id);
	int r = check_can_prefetch(fork, id, err);
	struct prefetch_request *request = NULL;
	char *path = r < 0 ? NULL : strdup(hot_list_path);
	if (r == 0) {
		request = request_new(server, fork, hot_list_path);
		if (!request || !path)
			r = error_set(err, -ENOMEM, "io_error", "out of memory");
		else
			fork->prefetching = true;
	}
	uint64_t serial = fork ? fork->serial : 0;
	pthread_mutex_unlock(&server->lock);

	/* The whole list is read and checked before the first page is copied, on this thread, so that its mistakes are the answer. */
	bool claimed = r == 0;
	if (r == 0)
		r = make_plan(request, &request->job.plan, err);

	pthread_mutex_lock(&server->lock);
	fork = server_find_fork(server, id);
	bool same = fork && fork->serial == serial;
	if (r == 0 && !same)
		r = error_set(err, -ENOENT, "fork_removed", "fork '%s' was removed while its list was read", id);
	if (r < 0) {
		if (claimed && same)
			fork->prefetching = false;
		pthread_mutex_unlock(&server->lock);
		request_free(request);
		free(path);
		return r;
	}
	free(fork->hot_list);
	fork->hot_list = path;
	submit(fork, request);

	while (fork && fork->serial == serial && fork->prefetching && !server->stopping) {
		pthread_cond_wait(&server->changed, &server->lock);
		fork = server_find_fork(server, id);
	}
	if (!fork || fork->serial != serial)
		r = error_set(err, -ENOENT, "fork_removed", "fork '%s' was removed while it was prefetched", id);
	else if (fork->prefetching)
		r = error_set(err, -ESHUTDOWN, "shutting_down", "the server is stopping");
	else if (fork->prefetch_state == PREFETCH_FAILED && fork->state == FORK_GONE)
		r = error_set(err, -ESRCH, "fork_gone", "fork '%s' has ended while it was prefetched", id);
	else if (fork->prefetch_state == PREFETCH_FAILED)
		r = error_set(err, -EIO, "prefetch_failed", "%s", fork->error ?: "see the server's log");
	pthread_mutex_unlock(&server->lock);
	return r < 0 ? r : server_fork_get(server, id, ret, err);
}
