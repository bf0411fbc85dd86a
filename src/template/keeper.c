#include "template/keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

struct keeper {
	pthread_t thread;
	int wake_fd, signal_fd;
	void (*on_writer)(void *data, const struct template *template);
	void *data;

	pthread_mutex_t lock; /* innermost */
	struct template *line, **line_tail; /* under lock; each holds a reference */
	struct template *guarded;	    /* under lock; no references: they leave before they go */
	struct peek_section *sections;	    /* under lock */
	bool stopping;			    /* under lock */
};

static void refresh_line(struct keeper *keeper)
{
	for (;;) {
		pthread_mutex_lock(&keeper->lock);
		struct template *t = keeper->line;
		if (t) {
			keeper->line = t->next_in_line;
			if (!keeper->line)
				keeper->line_tail = &keeper->line;
		}
		bool stopping = keeper->stopping;
		pthread_mutex_unlock(&keeper->lock);
		if (!t)
			return;

		if (!stopping)
			source_refresh(t->source);
		atomic_store(&t->in_line, false);
		template_unref(t);
	}
}

/* Nobody copies from the image's mapping by the old rules any more. The lock is held; sections are short. */
static void wait_for_sections(struct keeper *keeper)
{
	for (const struct peek_section *section = keeper->sections; section; section = section->next)
		while (atomic_load(&section->busy))
			sched_yield();
}

/* During a break, F_GETLEASE tells what the lease has to become. */
static void let_writers_in(struct keeper *keeper)
{
	pthread_mutex_lock(&keeper->lock);
	for (struct template **p = &keeper->guarded; *p;) {
		struct template *t = *p;

		if (fcntl(t->memory_fd, F_GETLEASE) == F_RDLCK) {
			p = &t->next_guarded;
			continue;
		}
		*p = t->next_guarded;
		t->in_guarded = false;
		atomic_store(&t->source->guarded, false);
		wait_for_sections(keeper);
		fcntl(t->memory_fd, F_SETLEASE, F_UNLCK);
		keeper->on_writer(keeper->data, t);
	}
	pthread_mutex_unlock(&keeper->lock);
}

static void *keeper_main(void *data)
{
	struct keeper *keeper = data;
	struct pollfd fds[] = { { .fd = keeper->wake_fd, .events = POLLIN }, { .fd = keeper->signal_fd, .events = POLLIN } };

	for (;;) {
		if (poll(fds, 2, -1) < 0)
			continue;
		if (fds[1].revents) {
			struct signalfd_siginfo info;
			while (read(keeper->signal_fd, &info, sizeof info) == sizeof info)
				;
			let_writers_in(keeper);
		}
		if (fds[0].revents) {
			eventfd_t ignored;
			eventfd_read(keeper->wake_fd, &ignored);
			refresh_line(keeper);
		}
		pthread_mutex_lock(&keeper->lock);
		bool stopping = keeper->stopping;
		pthread_mutex_unlock(&keeper->lock);
		if (stopping)
			return NULL;
	}
}

int keeper_new(void (*on_writer)(void *data, const struct template *template), void *data, struct keeper **ret,
	       struct error *err)
{
	struct keeper *keeper = calloc(1, sizeof *keeper);
	sigset_t signals;

	if (!keeper)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	sigemptyset(&signals);
	sigaddset(&signals, KEEPER_SIGNAL);
	sigaddset(&signals, SIGIO); /* comes instead when the queue of real-time signals is full */
	pthread_mutex_init(&keeper->lock, NULL);
	keeper->on_writer = on_writer;
	keeper->data = data;
	keeper->line_tail = &keeper->line;
	keeper->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	keeper->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	int r = keeper->wake_fd < 0 || keeper->signal_fd < 0 ? errno
							     : pthread_create(&keeper->thread, NULL, keeper_main, keeper);
	if (r != 0) {
		cleanup_close(&keeper->wake_fd);
		cleanup_close(&keeper->signal_fd);
		free(keeper);
		return error_set(err, -r, "io_error", "cannot start a thread: %s", strerror(r));
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
	pthread_mutex_unlock(&keeper->lock);
	eventfd_write(keeper->wake_fd, 1);
	pthread_join(keeper->thread, NULL);
	refresh_line(keeper);
	close(keeper->wake_fd);
	close(keeper->signal_fd);
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
	pthread_mutex_unlock(&keeper->lock);
	eventfd_write(keeper->wake_fd, 1);
}

void keeper_guard(struct keeper *keeper, struct template *t)
{
	pthread_mutex_lock(&keeper->lock);
	if (!t->in_guarded && fcntl(t->memory_fd, F_SETSIG, KEEPER_SIGNAL) == 0 &&
	    fcntl(t->memory_fd, F_SETLEASE, F_RDLCK) == 0) {
		t->in_guarded = true;
		t->next_guarded = keeper->guarded;
		keeper->guarded = t;
		atomic_store(&t->source->guarded, true);
	}
	pthread_mutex_unlock(&keeper->lock);
}

void keeper_unguard(struct keeper *keeper, struct template *t)
{
	pthread_mutex_lock(&keeper->lock);
	for (struct template **p = &keeper->guarded; *p; p = &(*p)->next_guarded)
		if (*p == t) {
			*p = t->next_guarded;
			t->in_guarded = false;
			atomic_store(&t->source->guarded, false);
			wait_for_sections(keeper);
			fcntl(t->memory_fd, F_SETLEASE, F_UNLCK);
			break;
		}
	pthread_mutex_unlock(&keeper->lock);
}

void keeper_add_section(struct keeper *keeper, struct peek_section *section)
{
	pthread_mutex_lock(&keeper->lock);
	section->next = keeper->sections;
	keeper->sections = section;
	pthread_mutex_unlock(&keeper->lock);
}

void keeper_remove_section(struct keeper *keeper, struct peek_section *section)
{
	pthread_mutex_lock(&keeper->lock);
	for (struct peek_section **p = &keeper->sections; *p; p = &(*p)->next)
		if (*p == section) {
			*p = section->next;
			break;
		}
	pthread_mutex_unlock(&keeper->lock);
}
