#include "template/hot_loader.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/read.h"

#define PAGE	     4096u
#define EXTENT_BYTES ((size_t)HOT_EXTENT * PAGE)

/* Reads under way at once. */
#define LOADERS 2
/* So many extents are asked for behind one that is wanted. */
#define AHEAD 2
/* Larger sets are read by way of the page cache; all together hold no more than four such. */
#define PAGES_MAX     ((uint64_t)16384)
#define ALL_PAGES_MAX (4 * PAGES_MAX)
/* How long a set stays in memory after the last fork that was given pages of it. */
#define LINGER_NS (10 * NSEC_PER_SEC)

enum extent_state { EMPTY, QUEUED, LOADING, LOADED, FAILED };

struct hot_memory {
	struct hot_loader *loader;
	int fd, direct_fd;
	uint64_t offset, pages;
	_Atomic uint64_t *marks;
	char *bytes; /* NULL: nothing is held; as long as there are readers it stays where it is */

	/* Under the loader's lock. */
	unsigned readers, loading;
	uint64_t idle_ns; /* since when it has no readers */
	int error;	  /* of an extent that has failed */
	struct hot_memory *next;
	_Atomic uint8_t states[]; /* an enum extent_state each; read without the lock, too */
};

struct hot_loader {
	pthread_t threads[LOADERS];
	unsigned thread_count;
	pthread_mutex_t lock;
	pthread_cond_t wanted;	/* something was queued */
	pthread_cond_t changed; /* an extent was loaded */
	struct hot_memory *memories;
	uint64_t pages_held;
	bool stopping;
};

static uint64_t extents_of(const struct hot_memory *m)
{
	return (m->pages + HOT_EXTENT - 1) / HOT_EXTENT;
}

static size_t size_of(const struct hot_memory *m)
{
	return extents_of(m) * EXTENT_BYTES;
}

static int load(const struct hot_memory *m, uint64_t extent)
{
	uint64_t first = extent * HOT_EXTENT;
	size_t pages = m->pages - first < HOT_EXTENT ? m->pages - first : HOT_EXTENT;
	char *to = m->bytes + extent * EXTENT_BYTES;
	int r = -EINVAL;

	if (m->direct_fd >= 0)
		r = pread_fully(m->direct_fd, to, pages * PAGE, m->offset + first * PAGE);
	/* Not every file system reads so, nor at every place. */
	return r == -EINVAL ? pread_fully(m->fd, to, pages * PAGE, m->offset + first * PAGE) : r;
}

static void let_go(struct hot_memory *m)
{
	munmap(m->bytes, size_of(m));
	m->bytes = NULL;
	for (uint64_t i = 0; i < extents_of(m); i++)
		m->states[i] = EMPTY;
	for (uint64_t i = 0; i <= m->pages / 64; i++)
		m->marks[i] = 0;
	m->loader->pages_held -= m->pages;
}

/* The next extent to be read; what has long had no readers is let go on the way. When that is due for the next is in RET_DUE. */
static struct hot_memory *next_queued(struct hot_loader *loader, uint64_t *ret_extent, uint64_t *ret_due)
{
	uint64_t now = now_ns();

	*ret_due = 0;
	for (struct hot_memory *m = loader->memories; m; m = m->next) {
		if (!m->bytes)
			continue;
		if (m->readers == 0 && m->loading == 0) {
			if (now >= m->idle_ns + LINGER_NS)
				let_go(m);
			else if (*ret_due == 0 || m->idle_ns + LINGER_NS < *ret_due)
				*ret_due = m->idle_ns + LINGER_NS;
			continue;
		}
		for (uint64_t i = 0; i < extents_of(m); i++)
			if (m->states[i] == QUEUED) {
				*ret_extent = i;
				return m;
			}
	}
	return NULL;
}

static void wait_until(struct hot_loader *loader, uint64_t due)
{
	struct timespec ts = { .tv_sec = (time_t)(due / NSEC_PER_SEC), .tv_nsec = (long)(due % NSEC_PER_SEC) };

	if (due)
		pthread_cond_timedwait(&loader->wanted, &loader->lock, &ts);
	else
		pthread_cond_wait(&loader->wanted, &loader->lock);
}

static void *loader_main(void *data)
{
	struct hot_loader *loader = data;

	pthread_mutex_lock(&loader->lock);
	while (!loader->stopping) {
		uint64_t extent = 0, due;
		struct hot_memory *m = next_queued(loader, &extent, &due);

		if (!m) {
			wait_until(loader, due);
			continue;
		}
		m->states[extent] = LOADING;
		m->loading++;
		pthread_mutex_unlock(&loader->lock);
		int r = load(m, extent);
		pthread_mutex_lock(&loader->lock);
		m->loading--;
		m->error = r < 0 ? r : m->error;
		atomic_store_explicit(&m->states[extent], r < 0 ? FAILED : LOADED, memory_order_release);
		pthread_cond_broadcast(&loader->changed);
	}
	pthread_mutex_unlock(&loader->lock);
	return NULL;
}

int hot_loader_new(struct hot_loader **ret, struct error *err)
{
	struct hot_loader *loader = calloc(1, sizeof *loader);
	pthread_condattr_t attr;

	if (!loader)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	pthread_mutex_init(&loader->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&loader->wanted, &attr);
	pthread_condattr_destroy(&attr);
	pthread_cond_init(&loader->changed, NULL);
	for (; loader->thread_count < LOADERS; loader->thread_count++) {
		int r = pthread_create(&loader->threads[loader->thread_count], NULL, loader_main, loader);
		if (r != 0) {
			hot_loader_free(loader);
			return error_set(err, -r, "io_error", "cannot start a thread that reads packed hot sets");
		}
		pthread_setname_np(loader->threads[loader->thread_count], "hot-loader");
	}
	*ret = loader;
	return 0;
}

void hot_loader_free(struct hot_loader *loader)
{
	if (!loader)
		return;
	pthread_mutex_lock(&loader->lock);
	loader->stopping = true;
	pthread_cond_broadcast(&loader->wanted);
	pthread_mutex_unlock(&loader->lock);
	for (unsigned i = 0; i < loader->thread_count; i++)
		pthread_join(loader->threads[i], NULL);
	pthread_cond_destroy(&loader->wanted);
	pthread_cond_destroy(&loader->changed);
	pthread_mutex_destroy(&loader->lock);
	free(loader);
}

struct hot_memory *hot_memory_new(struct hot_loader *loader, int fd, int direct_fd, uint64_t offset, uint64_t pages)
{
	struct hot_memory *m;

	if (pages == 0 || pages > PAGES_MAX)
		return NULL;
	m = calloc(1, sizeof *m + (pages + HOT_EXTENT - 1) / HOT_EXTENT * sizeof m->states[0]);
	if (m)
		m->marks = calloc(pages / 64 + 1, sizeof *m->marks);
	if (!m || !m->marks) {
		free(m);
		return NULL;
	}
	m->loader = loader;
	m->fd = fd;
	m->direct_fd = direct_fd;
	m->offset = offset;
	m->pages = pages;
	LOCK_SCOPE(&loader->lock);
	m->next = loader->memories;
	loader->memories = m;
	return m;
}

void hot_memory_free(struct hot_memory *m)
{
	if (!m)
		return;
	struct hot_loader *loader = m->loader;

	pthread_mutex_lock(&loader->lock);
	for (uint64_t i = 0; i < extents_of(m); i++)
		if (m->states[i] == QUEUED)
			m->states[i] = EMPTY;
	while (m->loading > 0)
		pthread_cond_wait(&loader->changed, &loader->lock);
	struct hot_memory **p = &loader->memories;
	while (*p != m)
		p = &(*p)->next;
	*p = m->next;
	if (m->bytes)
		let_go(m);
	pthread_mutex_unlock(&loader->lock);
	free(m->marks);
	free(m);
}

_Atomic uint64_t *hot_memory_marks(struct hot_memory *m)
{
	return m->marks;
}

int hot_memory_enter(struct hot_memory *m)
{
	struct hot_loader *loader = m->loader;

	LOCK_SCOPE(&loader->lock);
	if (!m->bytes) {
		if (loader->pages_held + m->pages > ALL_PAGES_MAX)
			return -ENOMEM;
		void *bytes = mmap(NULL, size_of(m), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (bytes == MAP_FAILED)
			return -ENOMEM;
		madvise(bytes, size_of(m), MADV_NOHUGEPAGE);
		m->bytes = bytes;
		loader->pages_held += m->pages;
	}
	m->readers++;
	return 0;
}

void hot_memory_leave(struct hot_memory *m)
{
	LOCK_SCOPE(&m->loader->lock);
	if (--m->readers == 0) {
		m->idle_ns = now_ns();
		pthread_cond_signal(&m->loader->wanted); /* there is a time now at which it is let go */
	}
}

static bool is_wanted(const struct hot_memory *m, uint64_t extent)
{
	return extent < extents_of(m) && atomic_load_explicit(&m->states[extent], memory_order_relaxed) == EMPTY;
}

void hot_memory_want(struct hot_memory *m, uint64_t index)
{
	uint64_t first = index / HOT_EXTENT;
	bool any = false;

	for (uint64_t i = first; i <= first + AHEAD; i++)
		any |= is_wanted(m, i);
	if (!any)
		return;
	LOCK_SCOPE(&m->loader->lock);
	for (uint64_t i = first; i <= first + AHEAD; i++)
		if (is_wanted(m, i))
			m->states[i] = QUEUED;
	pthread_cond_broadcast(&m->loader->wanted);
}

int hot_memory_find(struct hot_memory *m, uint64_t index, bool wait, const char **ret)
{
	_Atomic uint8_t *state = &m->states[index / HOT_EXTENT];

	if (atomic_load_explicit(state, memory_order_acquire) != LOADED) {
		hot_memory_want(m, index);
		LOCK_SCOPE(&m->loader->lock);
		while (wait && *state != LOADED && *state != FAILED)
			pthread_cond_wait(&m->loader->changed, &m->loader->lock);
		if (*state == FAILED)
			return m->error;
		if (*state != LOADED)
			return -EAGAIN;
	}
	*ret = m->bytes + index * PAGE;
	return 0;
}
