#include "serve/pager.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "serve/pager_internal.h"

#define EPOLL_EVENTS 64

/* Last in a batch, so that no event of the batch is for a session that has gone. */
static bool empty_mailbox(struct pager *pager)
{
	eventfd_t ignored;

	eventfd_read(pager->mailbox_fd, &ignored);
	pthread_mutex_lock(&pager->lock);
	struct watcher *mail = TAKE_PTR(pager->mailbox);
	bool stopping = pager->stopping;
	pthread_mutex_unlock(&pager->lock);

	while (mail) {
		struct watcher *w = mail;
		mail = w->next_mail;
		watcher_leave(w);
	}
	return stopping;
}

static int wait_for_events(struct pager *pager, struct epoll_event *events)
{
	int n;

	if (pager->deferred) {
		struct timespec wait = { .tv_nsec = (long)pager->retry_ns };
		n = epoll_pwait2(pager->epoll_fd, events, EPOLL_EVENTS, &wait, NULL);
	} else {
		n = epoll_wait(pager->epoll_fd, events, EPOLL_EVENTS, -1);
	}
	return n < 0 ? 0 : n;
}

static void *pager_main(void *data)
{
	struct pager *pager = data;
	struct epoll_event events[EPOLL_EVENTS];
	bool stopping = false;

	while (!stopping) {
		bool mail = false;
		int n = wait_for_events(pager, events);

		for (int i = 0; i < n; i++) {
			if (events[i].data.ptr == pager)
				mail = true;
			else if (events[i].data.ptr == pager->io)
				io_reap(pager->io);
			else
				watcher_serve(events[i].data.ptr, events[i].events, n == 1);
		}
		if (pager->deferred)
			pager_retry_deferred(pager);
		if (mail)
			stopping = empty_mailbox(pager);
	}
	return NULL;
}

static int watch(struct pager *pager, int fd, uint32_t events, void *tag)
{
	struct epoll_event event = { .events = events, .data.ptr = tag };

	return epoll_ctl(pager->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static int start_thread(struct pager *pager)
{
	char name[16];
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET((size_t)pager->cpu, &cpus);
	snprintf(name, sizeof name, "pager/%d", pager->cpu);

	pthread_attr_t attr;
	pthread_attr_init(&attr);
	pthread_attr_setaffinity_np(&attr, sizeof cpus, &cpus);
	int r = pthread_create(&pager->thread, &attr, pager_main, pager);
	pthread_attr_destroy(&attr);
	if (r == 0)
		pthread_setname_np(pager->thread, name);
	return -r;
}

static void destroy(struct pager *pager)
{
	io_free(pager->io);
	slow_faults_free(pager);
	if (pager->buffer)
		munmap(pager->buffer, BUFFER_SIZE);
	cleanup_close(&pager->mailbox_fd);
	cleanup_close(&pager->epoll_fd);
	pthread_mutex_destroy(&pager->lock);
	free(pager);
}

int pager_new(unsigned index, int cpu, struct keeper *keeper, struct pager **ret, struct error *err)
{
	struct pager *pager = calloc(1, sizeof *pager);
	if (!pager)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	pager->index = index;
	pager->cpu = cpu;
	pager->keeper = keeper;
	pager->host_page_size = (uint64_t)sysconf(_SC_PAGESIZE);
	pager->slow_waiting_tail = &pager->slow_waiting;
	pthread_mutex_init(&pager->lock, NULL);
	pager->mailbox_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	pager->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	void *buffer = mmap(NULL, BUFFER_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pager->buffer = buffer == MAP_FAILED ? NULL : buffer;

	int r = pager->mailbox_fd < 0 || pager->epoll_fd < 0 || !pager->buffer ? -errno : 0;
	if (r == 0)
		r = io_new(SLOW_FAULTS_MAX, &pager->io, err);
	if (r == 0)
		r = watch(pager, pager->mailbox_fd, EPOLLIN, pager);
	if (r == 0)
		r = watch(pager, io_fd(pager->io), EPOLLIN, pager->io);
	if (r == 0)
		r = start_thread(pager);
	if (r < 0) {
		destroy(pager);
		return error_set(err, r, "io_error", "cannot start a pager on CPU %d: %s", cpu, strerror(-r));
	}
	keeper_add_section(keeper, &pager->leasing);
	*ret = pager;
	return 0;
}

void pager_free(struct pager *pager)
{
	if (!pager)
		return;
	pthread_mutex_lock(&pager->lock);
	pager->stopping = true;
	pthread_mutex_unlock(&pager->lock);
	eventfd_write(pager->mailbox_fd, 1);
	pthread_join(pager->thread, NULL);
	keeper_remove_section(pager->keeper, &pager->leasing);
	destroy(pager);
}

int pager_cpu(const struct pager *pager)
{
	return pager->cpu;
}

unsigned pager_sessions(const struct pager *pager)
{
	return atomic_load_explicit(&pager->sessions, memory_order_relaxed);
}
