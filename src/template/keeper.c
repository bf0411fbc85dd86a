#include "template/keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "base/background.h"

struct keeper {
	pthread_t thread;
	int inotify_fd;
	void (*on_change)(void *data, const struct template *template);
	void *data;

	pthread_mutex_t lock; /* innermost but for the log */
	pthread_cond_t asked;
	struct template *line, **line_tail; /* under lock; each holds a reference */
	struct template *guarded;	    /* under lock; no references: they leave before they go */
	struct template *leased;	    /* under lock; likewise */
	struct lease_section *sections;	    /* under lock */
	bool stopping;			    /* under lock */
};

static void *keeper_main(void *data)
{
	struct keeper *keeper = data;

	run_in_background();
	pthread_mutex_lock(&keeper->lock);
	for (;;) {
		while (!keeper->line && !keeper->stopping)
			pthread_cond_wait(&keeper->asked, &keeper->lock);
		struct template *t = keeper->line;
		if (!t)
			break;
		keeper->line = t->next_in_line;
		if (!keeper->line)
			keeper->line_tail = &keeper->line;
		bool stopping = keeper->stopping;
		pthread_mutex_unlock(&keeper->lock);

		if (!stopping)
			source_refresh(t->source);
		atomic_store(&t->in_line, false);
		template_unref(t);

		pthread_mutex_lock(&keeper->lock);
	}
	pthread_mutex_unlock(&keeper->lock);
	return NULL;
}

int keeper_new(void (*on_change)(void *data, const struct template *template), void *data, struct keeper **ret,
	       struct error *err)
{
	struct keeper *keeper = calloc(1, sizeof *keeper);
	if (!keeper)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	pthread_mutex_init(&keeper->lock, NULL);
	pthread_cond_init(&keeper->asked, NULL);
	keeper->on_change = on_change;
	keeper->data = data;
	keeper->line_tail = &keeper->line;
	keeper->inotify_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	int r = keeper->inotify_fd < 0 ? errno : pthread_create(&keeper->thread, NULL, keeper_main, keeper);
	if (r != 0) {
		cleanup_close(&keeper->inotify_fd);
		free(keeper);
		return error_set(err, -r, "io_error",
				 "cannot watch over images: %s (fs.inotify.max_user_instances limits how many programs may)",
				 strerror(r));
	}
	pthread_setname_np(keeper->thread, "keeper");
	*ret = keeper;
	return 0;
}

void keeper_free(struct keeper *keeper)
{
	if (!keeper)
		return;
	pthread_mutex_lock(&keeper->lock);
	keeper->stopping = true;
	pthread_cond_signal(&keeper->asked);
	pthread_mutex_unlock(&keeper->lock);
	pthread_join(keeper->thread, NULL);
	close(keeper->inotify_fd);
	pthread_cond_destroy(&keeper->asked);
	pthread_mutex_destroy(&keeper->lock);
	free(keeper);
}

void keeper_ask(struct keeper *keeper, struct template *t)
{
	if (atomic_exchange(&t->in_line, true))
		return;
	template_ref(t);
	pthread_mutex_lock(&keeper->lock);
	t->next_in_line = NULL;
	*keeper->line_tail = t;
	keeper->line_tail = &t->next_in_line;
	pthread_cond_signal(&keeper->asked);
	pthread_mutex_unlock(&keeper->lock);
}

/* ---- guarding ---- */

/* Two templates may stand on one image: they share a watch. */
static void drop_watch(struct keeper *keeper, int watch)
{
	for (const struct template *t = keeper->guarded; t; t = t->next_guarded)
		if (t->watch == watch)
			return;
	inotify_rm_watch(keeper->inotify_fd, watch);
}

void keeper_guard(struct keeper *keeper, struct template *t)
{
	char path[64];

	pthread_mutex_lock(&keeper->lock);
	if (t->watch < 0) {
		snprintf(path, sizeof path, "/proc/self/fd/%d", t->memory_fd);
		t->watch = inotify_add_watch(keeper->inotify_fd, path, IN_MODIFY);
		/* A change from before the watch is not told. */
		if (t->watch >= 0 && template_check_unchanged(t, NULL) == 0) {
			t->next_guarded = keeper->guarded;
			keeper->guarded = t;
			atomic_store(&t->source->guarded, true);
		} else if (t->watch >= 0) {
			drop_watch(keeper, t->watch);
			t->watch = -1;
		}
	}
	pthread_mutex_unlock(&keeper->lock);
}

static void leave(struct keeper *keeper, struct template **p)
{
	struct template *t = *p;
	int watch = t->watch;

	*p = t->next_guarded;
	t->watch = -1;
	atomic_store(&t->source->guarded, false);
	drop_watch(keeper, watch);
}

/* ---- leases ---- */

void keeper_lease(struct keeper *keeper, struct template *t)
{
	pthread_mutex_lock(&keeper->lock);
	/* The process is to get the signal, whichever thread this is; it may have ended by then. */
	if (!t->in_leased && fcntl(t->memory_fd, F_SETOWN, getpid()) == 0 &&
	    fcntl(t->memory_fd, F_SETSIG, KEEPER_SIGNAL) == 0 && fcntl(t->memory_fd, F_SETLEASE, F_RDLCK) == 0) {
		t->in_leased = true;
		t->next_leased = keeper->leased;
		keeper->leased = t;
		atomic_store(&t->source->leased, true);
	}
	pthread_mutex_unlock(&keeper->lock);
}

static void give_back(struct keeper *keeper, struct template **p)
{
	struct template *t = *p;

	*p = t->next_leased;
	t->in_leased = false;
	atomic_store(&t->source->leased, false);
	/* A section lasts as long as a page takes to copy. One that begins now sees that there is no lease. */
	for (struct lease_section *section = keeper->sections; section; section = section->next)
		while (atomic_load(&section->busy))
			sched_yield();
	fcntl(t->memory_fd, F_SETLEASE, F_UNLCK);
}

void keeper_break(struct keeper *keeper)
{
	pthread_mutex_lock(&keeper->lock);
	for (struct template **p = &keeper->leased; *p;) {
		/* While somebody waits, this tells what the lease has to become. */
		if (fcntl((*p)->memory_fd, F_GETLEASE) != F_RDLCK)
			give_back(keeper, p);
		else
			p = &(*p)->next_leased;
	}
	pthread_mutex_unlock(&keeper->lock);
}

void keeper_add_section(struct keeper *keeper, struct lease_section *section)
{
	pthread_mutex_lock(&keeper->lock);
	section->next = keeper->sections;
	keeper->sections = section;
	pthread_mutex_unlock(&keeper->lock);
}

void keeper_remove_section(struct keeper *keeper, struct lease_section *section)
{
	pthread_mutex_lock(&keeper->lock);
	for (struct lease_section **p = &keeper->sections; *p; p = &(*p)->next)
		if (*p == section) {
			*p = section->next;
			break;
		}
	pthread_mutex_unlock(&keeper->lock);
}

/* ---- changes ---- */

void keeper_unguard(struct keeper *keeper, struct template *t)
{
	pthread_mutex_lock(&keeper->lock);
	for (struct template **p = &keeper->guarded; *p; p = &(*p)->next_guarded)
		if (*p == t) {
			leave(keeper, p);
			break;
		}
	for (struct template **p = &keeper->leased; *p; p = &(*p)->next_leased)
		if (*p == t) {
			give_back(keeper, p);
			break;
		}
	pthread_mutex_unlock(&keeper->lock);
}

int keeper_fd(const struct keeper *keeper)
{
	return keeper->inotify_fd;
}

/* WATCH < 0: words were lost, so every image may have changed. */
static void note_change(struct keeper *keeper, int watch)
{
	for (struct template **p = &keeper->guarded; *p;) {
		struct template *t = *p;
		if (watch >= 0 && t->watch != watch) {
			p = &t->next_guarded;
			continue;
		}
		leave(keeper, p); /* once told is enough: a writer may go on writing */
		atomic_store(&t->source->changed, true);
		keeper->on_change(keeper->data, t);
	}
}

void keeper_look(struct keeper *keeper)
{
	_Alignas(struct inotify_event) char buffer[16 * (sizeof(struct inotify_event) + NAME_MAX + 1)];

	pthread_mutex_lock(&keeper->lock);
	for (;;) {
		ssize_t n = read(keeper->inotify_fd, buffer, sizeof buffer);
		if (n <= 0)
			break;
		for (ssize_t at = 0; at < n;) {
			struct inotify_event event;
			memcpy(&event, buffer + at, sizeof event);
			if (event.mask & (IN_MODIFY | IN_Q_OVERFLOW))
				note_change(keeper, event.mask & IN_Q_OVERFLOW ? -1 : event.wd);
			at += (ssize_t)(sizeof event + event.len);
		}
	}
	pthread_mutex_unlock(&keeper->lock);
}
