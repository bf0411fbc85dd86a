#include "serve/refresh.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "hotlist/merge.h"
#include "serve/recordings.h"

/* Forks of which the list hasn't heard yet. Where they end faster than that, those that are left out would change little. */
#define QUEUE_MAX 64

/*
 * A run that settled with fewer pages than one in so many of the list's may have waited all the time for what it was made for. One whose guest said that it was ready
 * is believed.
 */
#define SHORT_ONE_IN 4

struct refresh_job {
	struct notes notes;
	struct refresh_job *next;
};

struct refresher {
	pthread_t thread;
	pthread_mutex_t lock; /* what follows; taken inside server->lock */
	pthread_cond_t changed;
	struct refresh_job *queue, **tail;
	unsigned count;
	bool stopping;
};

static void job_free(struct refresh_job *job)
{
	notes_clear(&job->notes);
	free(job);
}

/* ---- one run into its template's list ---- */

static bool saw_present_pages(const struct hotlist *run)
{
	for (size_t i = 0; run->touches && i < run->count; i++)
		if (run->touches[i].flags & HOT_WAS_PRESENT)
			return true;
	return false;
}

/*
 * What the run's touches can tell. A page that was prefetched and isn't among them is unused only if its touch would have been seen. Under KVM each page's first touch
 * is. Elsewhere those of memory that is shared are, where the VMM has yet to map the page; those of anonymous memory, once prefetched, never are.
 */
static enum merge_saw what_it_saw(const struct notes *notes, const struct hotlist *run)
{
	const struct session *s = notes->session;
	struct observed_figures figures;

	if (s->observer->figures_lately(s->observer->data, s->observed, &figures) == 0 && figures.kvm_touches > 0)
		return MERGE_SAW_ALL;
	return saw_present_pages(run) ? MERGE_SAW_AUTO : MERGE_SAW_DEMAND;
}

/* Why the run is not to be believed, or NULL. */
static const char *why_not(const struct hotlist *old, const struct hotlist *run, enum merge_saw saw)
{
	if (run->origin->events_lost > 0)
		return "events of its recording were lost";
	if (run->origin->window_end != HOT_WINDOW_READY && run->origin->window_end != HOT_WINDOW_SETTLED)
		return "it ended before it was ready or had settled";
	if (run->count == 0 || (run->origin->window_end != HOT_WINDOW_READY && run->count < old->count / SHORT_ONE_IN))
		return "it touched too little";
	if (old->count > 0 && saw == MERGE_SAW_DEMAND)
		return "the kernel does not see touches of pages that are there, as it does under KVM; so it can't be said which pages "
		       "forks still use. 'faultline warmup' records a new list";
	return NULL;
}

static int save(const struct notes *notes, const struct hotlist *old, const struct merge_result *merged,
		struct error *err)
{
	struct hotlist_comparison change;

	if (hotlist_compare(old, merged->list, &change) < 0)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	size_t left = change.only_a->count, entered = change.only_b->count;
	hotlist_comparison_clear(&change);

	int r = hotlist_save(merged->list, HOTLIST_HPL2, notes->template->hot_list, err);
	if (r == 0)
		log_info(NULL,
			 "template %s: its hot list has learnt from fork %s: %zu pages, of which %zu are new; %zu stand at its end, as few forks "
			 "touched them lately; %zu have left",
			 notes->template->name, notes->id, merged->list->count, entered, merged->tail, left);
	return r;
}

static int refresh(const struct notes *notes, struct error *err)
{
	const char *path = notes->template->hot_list, *const names[2] = { path, notes->id };
	_cleanup_hotlist_ struct hotlist *old = NULL, *run = NULL;
	struct merge_result merged = { 0 };
	int r = load_hot_list(path, notes->template, &old, err);

	if (r == 0)
		r = notes_kernel_list(notes, &run, err);
	if (r < 0)
		return r;
	enum merge_saw saw = what_it_saw(notes, run);
	const char *why = why_not(old, run, saw);
	if (why) {
		log_info(NULL, "template %s: its hot list learns nothing from fork %s: %s", notes->template->name,
			 notes->id, why);
		return 0;
	}
	r = merge_refresh(old, run, saw, names, &merged, err);
	if (r == 0)
		r = save(notes, old, &merged, err);
	hotlist_free(merged.list);
	return r;
}

/* ---- the thread ---- */

/* NULL: it is to end. */
static struct refresh_job *next_job(struct refresher *refresher)
{
	LOCK_SCOPE(&refresher->lock);
	while (!refresher->queue && !refresher->stopping)
		pthread_cond_wait(&refresher->changed, &refresher->lock);
	if (refresher->stopping)
		return NULL;
	struct refresh_job *job = refresher->queue;
	refresher->queue = job->next;
	if (!refresher->queue)
		refresher->tail = &refresher->queue;
	refresher->count--;
	return job;
}

static void *refresh_main(void *data)
{
	struct refresh_job *job;
	struct error err;

	while ((job = next_job(data))) {
		if (refresh(&job->notes, &err) < 0)
			log_warning(NULL,
				    "template %s: its hot list stays as it is, and learns nothing from fork %s: %s",
				    job->notes.template->name, job->notes.id, err.message);
		job_free(job);
	}
	return NULL;
}

static void destroy(struct refresher *refresher)
{
	for (struct refresh_job *job = refresher->queue, *next; job; job = next) {
		next = job->next;
		job_free(job);
	}
	pthread_cond_destroy(&refresher->changed);
	pthread_mutex_destroy(&refresher->lock);
	free(refresher);
}

int refresher_new(struct refresher **ret, struct error *err)
{
	struct refresher *refresher = calloc(1, sizeof *refresher);
	if (!refresher)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	refresher->tail = &refresher->queue;
	pthread_mutex_init(&refresher->lock, NULL);
	pthread_cond_init(&refresher->changed, NULL);
	int r = pthread_create(&refresher->thread, NULL, refresh_main, refresher);
	if (r != 0) {
		destroy(refresher);
		return error_set(err, -r, "io_error", "cannot start a thread: %s", strerror(r));
	}
	pthread_setname_np(refresher->thread, "refresh");
	*ret = refresher;
	return 0;
}

void refresher_free(struct refresher *refresher)
{
	if (!refresher)
		return;
	pthread_mutex_lock(&refresher->lock);
	refresher->stopping = true;
	pthread_cond_signal(&refresher->changed);
	pthread_mutex_unlock(&refresher->lock);
	pthread_join(refresher->thread, NULL);
	destroy(refresher);
}

/* ---- its queue ---- */

bool refresh_wants(const struct fork *fork)
{
	const struct template *t = fork->template;

	return t->refresh && t->hot_list && fork->hot_list && strcmp(fork->hot_list, t->hot_list) == 0;
}

static bool enqueue(struct refresher *refresher, struct refresh_job *job)
{
	LOCK_SCOPE(&refresher->lock);
	if (refresher->count >= QUEUE_MAX)
		return false;
	*refresher->tail = job;
	refresher->tail = &job->next;
	refresher->count++;
	pthread_cond_signal(&refresher->changed);
	return true;
}

void refresh_take(struct server *server, struct fork *fork)
{
	if (fork->refreshed || !server->refresher || !refresh_wants(fork) || !fork->session->observer)
		return;
	fork->refreshed = true;
	struct refresh_job *job = calloc(1, sizeof *job);
	if (!job)
		return;
	bool noted = notes_take(server, fork, &job->notes) == 0;
	job->notes.recorded = true; /* by the observer, if not by the loop */
	if (!noted || !enqueue(server->refresher, job))
		job_free(job);
}
