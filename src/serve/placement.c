#include "serve/placement.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/background.h"
#include "base/clock.h"
#include "serve/thread_stat.h"
#include "serve/weights.h"

/* A fork with faults is looked at so often: at once after a change, then less and less. */
#define LOOK_MIN_NS (1 * NSEC_PER_MSEC)
#define LOOK_MAX_NS (16 * NSEC_PER_MSEC)

/* Looking takes at most one part in so many of one CPU's time, however many forks have faults. */
#define LOOK_SHARE 50

/* Without a fault for so long, a fork is not looked at; without any such fork the thread sleeps. */
#define CALM_NS (100 * NSEC_PER_MSEC)

#define THREADS_MAX 4096

struct vm_thread {
	pid_t tid;
	struct thread_stat stat;
};

/* One fork. The placement thread's own, but for GONE. */
struct place {
	struct session *session; /* a reference; it may be used while it isn't closed */
	bool gone;		 /* under placement->lock */
	uint64_t faults_seen, active_ns, look_ns, interval_ns;
	struct vm_thread *threads; /* by tid */
	size_t thread_count;
	uint32_t *weights; /* faults lately, for each pager's CPU */
	struct place *next;
};

struct placement {
	_Atomic bool asleep; /* first: placement_note_faults */
	pthread_t thread;
	bool started;
	struct pager *const *pagers;
	unsigned pager_count;
	unsigned next_pager; /* for forks whose CPU has none */

	pthread_mutex_t lock; /* innermost, but for a session's */
	pthread_cond_t wanted;
	bool stopping, woken;
	struct place *places;
};

static void place_free(struct place *place)
{
	session_unref(place->session);
	free(place->threads);
	free(place->weights);
	free(place);
}

/* ---- looking ---- */

static int by_tid(const void *a, const void *b)
{
	const struct vm_thread *x = a, *y = b;

	return (x->tid > y->tid) - (x->tid < y->tid);
}

/* All threads of a process, sorted by tid. Their number, or negative errno. */
static int64_t read_threads(pid_t pid, struct vm_thread **ret)
{
	char path[64];
	struct vm_thread *threads = NULL;
	size_t count = 0, capacity = 0;

	snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
	DIR *dir = opendir(path);
	if (!dir)
		return -errno;
	for (struct dirent *entry; count < THREADS_MAX && (entry = readdir(dir));) {
		struct vm_thread thread = { .tid = (pid_t)atoi(entry->d_name) };
		if (thread.tid <= 0 || thread_stat_read(pid, thread.tid, &thread.stat) < 0)
			continue;
		if (count == capacity) {
			capacity = capacity ? 2 * capacity : 16;
			struct vm_thread *more = realloc(threads, capacity * sizeof *more);
			if (!more)
				break;
			threads = more;
		}
		threads[count++] = thread;
	}
	closedir(dir);
	if (threads)
		qsort(threads, count, sizeof *threads, by_tid);
	*ret = threads;
	return (int64_t)count;
}

static const struct vm_thread *find_thread(const struct place *place, pid_t tid)
{
	const struct vm_thread key = { .tid = tid };

	return place->threads ? bsearch(&key, place->threads, place->thread_count, sizeof key, by_tid) : NULL;
}

static int pager_of_cpu(const struct placement *placement, int cpu)
{
	for (unsigned i = 0; i < placement->pager_count; i++)
		if (pager_cpu(placement->pagers[i]) == cpu)
			return (int)i;
	return -1;
}

/* A thread's faults and ticks since the last look. One that is new has all of them; so has one with the number of another that has ended. */
static struct thread_stat since_last_look(const struct place *place, const struct vm_thread *thread)
{
	const struct vm_thread *before = find_thread(place, thread->tid);
	struct thread_stat news = thread->stat;

	if (before && before->stat.faults <= news.faults && before->stat.ticks <= news.ticks) {
		news.faults -= before->stat.faults;
		news.ticks -= before->stat.ticks;
	}
	return news;
}

/*
 * Adds to each CPU's weight the faults of the threads that ran there last. Where no thread had one (under KVM a kernel thread may take
 * them in a vCPU's name) the threads that used the CPU count. False: nothing new is known.
 */
static bool weigh(struct placement *placement, struct place *place, const struct vm_thread *threads, size_t count)
{
	uint64_t faults = 0, ticks = 0;

	for (size_t i = 0; i < count; i++) {
		struct thread_stat news = since_last_look(place, &threads[i]);
		faults += news.faults;
		ticks += news.ticks;
	}
	/* The first look sees a whole life, and tells nothing of what is now. */
	if (!place->threads || (faults == 0 && ticks == 0))
		return false;

	weights_fade(place->weights, placement->pager_count);
	for (size_t i = 0; i < count; i++) {
		struct thread_stat news = since_last_look(place, &threads[i]);
		int pager = pager_of_cpu(placement, news.cpu);
		if (pager >= 0)
			weights_add(&place->weights[pager], faults ? news.faults : news.ticks);
	}
	return true;
}

/* Lets the pagers of the CPUs with faults watch, and no others; where none has any, those who do go on. True: there was a change. */
static bool assign(struct placement *placement, struct place *place)
{
	uint32_t enough = weights_enough(place->weights, placement->pager_count);
	bool served = false, changed = false;
	int cpus[64];

	if (enough == 0)
		return false;
	/* First those to come, so that the fork is never without. */
	for (unsigned i = 0; i < placement->pager_count; i++)
		if (place->weights[i] >= enough) {
			int r = pager_watch(placement->pagers[i], place->session);
			served |= r >= 0;
			changed |= r > 0;
		}
	if (!served)
		return false; /* no memory, say: better from afar than not at all */
	atomic_store_explicit(&place->session->placed, true, memory_order_relaxed);

	unsigned n = session_cpus(place->session, cpus, sizeof cpus / sizeof cpus[0]);
	for (unsigned k = 0; k < n; k++) {
		int i = pager_of_cpu(placement, cpus[k]);
		if (i >= 0 && place->weights[i] < enough) {
			pager_unwatch(placement->pagers[i], place->session);
			changed = true;
		}
	}
	return changed;
}

static void look(struct placement *placement, struct place *place, uint64_t now)
{
	struct vm_thread *threads = NULL;
	int64_t count = read_threads(place->session->pid, &threads);

	if (count >= 0) {
		bool first = !place->threads, changed = false;
		if (weigh(placement, place, threads, (size_t)count))
			changed = assign(placement, place);
		free(place->threads);
		place->threads = threads;
		place->thread_count = (size_t)count;
		if (first || changed)
			place->interval_ns = LOOK_MIN_NS;
		else if (place->interval_ns < LOOK_MAX_NS)
			place->interval_ns *= 2;
	}
	place->look_ns = now + place->interval_ns;
}

/* ---- the thread ---- */

/* One round: looks at the forks whose time has come. When the next one's comes; 0: no fork has had faults lately. */
static uint64_t round_of_looks(struct placement *placement)
{
	uint64_t now = now_ns(), next = 0, spent = 0;

	/* Places are only added at the head, and only this thread takes one out. */
	pthread_mutex_lock(&placement->lock);
	struct place **p = &placement->places;
	while (*p) {
		struct place *place = *p;
		if (place->gone) {
			*p = place->next;
			place_free(place);
			continue;
		}
		uint64_t faults = atomic_load_explicit(&place->session->faults, memory_order_relaxed);
		if (faults != place->faults_seen) {
			if (now - place->active_ns > CALM_NS) {
				place->interval_ns = LOOK_MIN_NS;
				place->look_ns = now;
			}
			place->faults_seen = faults;
			place->active_ns = now;
		}
		if (place->active_ns && now - place->active_ns <= CALM_NS) {
			if (place->look_ns <= now) {
				pthread_mutex_unlock(&placement->lock);
				uint64_t start = now_ns();
				look(placement, place, now);
				spent += now_ns() - start;
				pthread_mutex_lock(&placement->lock);
				/* Heads may have been added meanwhile. */
				for (p = &placement->places; *p != place; p = &(*p)->next)
					;
			}
			if (next == 0 || place->look_ns < next)
				next = place->look_ns;
		}
		p = &place->next;
	}
	pthread_mutex_unlock(&placement->lock);

	uint64_t earliest = now + spent * LOOK_SHARE;
	return next && next < earliest ? earliest : next;
}

static void wait_until(struct placement *placement, uint64_t until)
{
	struct timespec ts = { .tv_sec = (time_t)(until / NSEC_PER_SEC), .tv_nsec = (long)(until % NSEC_PER_SEC) };

	pthread_mutex_lock(&placement->lock);
	if (until == 0)
		atomic_store(&placement->asleep, true);
	while (!placement->stopping && !placement->woken) {
		if (until == 0)
			pthread_cond_wait(&placement->wanted, &placement->lock);
		else if (pthread_cond_timedwait(&placement->wanted, &placement->lock, &ts) == ETIMEDOUT)
			break;
	}
	placement->woken = false;
	atomic_store(&placement->asleep, false);
	pthread_mutex_unlock(&placement->lock);
}
static void *placement_main(void *data)
{
	struct placement *placement = data;

	run_in_background();
	for (;;) {
		pthread_mutex_lock(&placement->lock);
		bool stopping = placement->stopping;
		pthread_mutex_unlock(&placement->lock);
		if (stopping)
			return NULL;
		wait_until(placement, round_of_looks(placement));
	}
}

void placement_wake(struct placement *placement)
{
	pthread_mutex_lock(&placement->lock);
	placement->woken = true;
	pthread_cond_signal(&placement->wanted);
	pthread_mutex_unlock(&placement->lock);
}

/* ---- sessions ---- */

static struct pager *first_pager(struct placement *placement, pid_t pid)
{
	struct thread_stat stat;
	int i = thread_stat_read(pid, pid, &stat) == 0 ? pager_of_cpu(placement, stat.cpu) : -1;
	if (i >= 0)
		return placement->pagers[i];

	struct pager *best = placement->pagers[0];
	for (unsigned k = 1; k < placement->pager_count; k++)
		if (pager_sessions(placement->pagers[k]) < pager_sessions(best))
			best = placement->pagers[k];
	return best;
}

int placement_add(struct placement *placement, struct session *session)
{
	struct place *place = calloc(1, sizeof *place);
	if (!place)
		return -ENOMEM;
	place->weights = calloc(placement->pager_count, sizeof place->weights[0]);
	if (!place->weights) {
		free(place);
		return -ENOMEM;
	}
	place->session = session_ref(session);
	place->interval_ns = LOOK_MIN_NS;
	session->placement = placement;

	int r = pager_watch(first_pager(placement, session->pid), session);
	if (r < 0) {
		place_free(place);
		return r;
	}
	/* A first look at once, against which the first faults will stand out. */
	pthread_mutex_lock(&placement->lock);
	place->active_ns = now_ns();
	place->next = placement->places;
	placement->places = place;
	placement->woken = true;
	pthread_cond_signal(&placement->wanted);
	pthread_mutex_unlock(&placement->lock);
	return 0;
}

void placement_remove(struct placement *placement, struct session *session)
{
	session_close(session);
	pthread_mutex_lock(&placement->lock);
	for (struct place *place = placement->places; place; place = place->next)
		if (place->session == session)
			place->gone = true;
	placement->woken = true;
	pthread_cond_signal(&placement->wanted);
	pthread_mutex_unlock(&placement->lock);
}

int placement_new(struct pager *const *pagers, unsigned count, struct placement **ret, struct error *err)
{
	struct placement *placement = calloc(1, sizeof *placement);
	if (!placement)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	placement->pagers = pagers;
	placement->pager_count = count;
	pthread_mutex_init(&placement->lock, NULL);
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&placement->wanted, &attr);
	pthread_condattr_destroy(&attr);

	int r = pthread_create(&placement->thread, NULL, placement_main, placement);
	if (r != 0) {
		placement_free(placement);
		return error_set(err, -r, "io_error", "cannot start the placement thread: %s", strerror(r));
	}
	placement->started = true;
	pthread_setname_np(placement->thread, "placement");
	*ret = placement;
	return 0;
}

void placement_free(struct placement *placement)
{
	if (!placement)
		return;
	if (placement->started) {
		pthread_mutex_lock(&placement->lock);
		placement->stopping = true;
		pthread_cond_signal(&placement->wanted);
		pthread_mutex_unlock(&placement->lock);
		pthread_join(placement->thread, NULL);
	}
	while (placement->places) {
		struct place *place = placement->places;
		placement->places = place->next;
		place_free(place);
	}
	pthread_cond_destroy(&placement->wanted);
	pthread_mutex_destroy(&placement->lock);
	free(placement);
}
