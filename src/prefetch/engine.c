#include "prefetch/engine_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"

/* Where a guest runs is asked often at first, as it has only just begun, and then less and less. */
#define LOOK_MIN_NS (NSEC_PER_MSEC / 4)
#define LOOK_MAX_NS (16 * NSEC_PER_MSEC)

/* Whether this turn is to find out where JOB's guest runs; with the engine's lock held. Others need not at the same time. */
static bool begin_look(struct prefetch_job *job)
{
	uint64_t now;

	if (!job->stream || !job->find_cpus || (now = now_ns()) < job->cpus.look_ns)
		return false;
	job->cpus.look_ns = now + LOOK_MAX_NS;
	return true;
}

/* Takes its time, and the lock at the end. */
static void look(struct prefetch_engine *engine, struct prefetch_job *job)
{
	cpu_set_t found;

	CPU_ZERO(&found);
	job->find_cpus(job, &found);
	LOCK_SCOPE(&engine->lock);
	job->cpus.interval_ns =
		CPU_EQUAL(&found, &job->cpus.set) && job->cpus.interval_ns ? 2 * job->cpus.interval_ns : LOOK_MIN_NS;
	if (job->cpus.interval_ns > LOOK_MAX_NS)
		job->cpus.interval_ns = LOOK_MAX_NS;
	job->cpus.look_ns = now_ns() + job->cpus.interval_ns;
	prefetch_cpus_move(&engine->cpus, &job->cpus, &found);
}

/* Goes where the worker had best be for JOB's next slice. */
static void take_place(struct worker *worker, struct prefetch_job *job, bool looks)
{
	struct prefetch_engine *engine = worker->engine;
	cpu_set_t cpus;

	if (looks)
		look(engine, job);
	pthread_mutex_lock(&engine->lock);
	cpus = engine->cpus.allowed;
	if (job->stream)
		prefetch_cpus_choose(&engine->cpus, &job->cpus, &cpus);
	pthread_mutex_unlock(&engine->lock);
	if (CPU_COUNT(&cpus) > 0 && !CPU_EQUAL(&cpus, &worker->cpus) && sched_setaffinity(0, sizeof cpus, &cpus) == 0)
		worker->cpus = cpus;
}

static void forget_cpus(struct prefetch_engine *engine, struct prefetch_job *job)
{
	cpu_set_t none;

	CPU_ZERO(&none);
	prefetch_cpus_move(&engine->cpus, &job->cpus, &none);
}

/* One turn for JOB: its preparation, or a slice. True: it has ended, and no other worker has anything to do with it. */
static bool give_turn(struct worker *worker, struct prefetch_job *job)
{
	struct prefetch_engine *engine = worker->engine;
	struct slice slice = { 0 };
	bool preparing = is_unprepared(job), empty = true;
	int r;

	job->working++;
	*(preparing ? &engine->preparing : &engine->working) += 1;
	if (!preparing && job->result == 0) {
		take_slice(engine, job, &slice);
		empty = slice.left == 0;
		enqueue_again(engine, job);
	}
	/* This worker is at work now, and takes the next turn when it is done: another is only wanted for one that is there already. */
	if (has_turn(engine))
		pthread_cond_signal(&engine->wanted);
	bool looks = begin_look(job);
	pthread_mutex_unlock(&engine->lock);
	if (!preparing)
		take_place(worker, job, looks);
	r = preparing ? job->prepare(job) : work_on(worker, job, &slice);
	pthread_mutex_lock(&engine->lock);

	*(preparing ? &engine->preparing : &engine->working) -= 1;
	job->working--;
	if (r < 0 && job->result == 0)
		job->result = r;
	if (preparing)
		engine->streams += job->stream != NULL;
	else if (!slice.waited && !empty)
		job->slow = false;
	enqueue_again(engine, job);
	return job->working == 0 && !job->queued;
}

static void *worker_main(void *data)
{
	struct worker *worker = data;
	struct prefetch_engine *engine = worker->engine;

	pthread_mutex_lock(&engine->lock);
	for (;;) {
		struct prefetch_job *job;

		while (!(job = dequeue(engine)) && !(is_stopping(engine) && !engine->queue))
			pthread_cond_wait(&engine->wanted, &engine->lock);
		if (!job)
			break;
		if (!give_turn(worker, job))
			continue;
		engine->jobs--;
		engine->streams -= job->stream != NULL;
		forget_cpus(engine, job);
		pthread_mutex_unlock(&engine->lock);
		job->done(job, job->result ?: atomic_load(&job->first_error));
		pthread_mutex_lock(&engine->lock);
	}
	/* The others wait for the same. */
	pthread_cond_broadcast(&engine->wanted);
	pthread_mutex_unlock(&engine->lock);
	return NULL;
}

static int start_worker(struct prefetch_engine *engine, struct worker *worker)
{
	void *buffer = mmap(NULL, BUFFER_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (buffer == MAP_FAILED)
		return -errno;

	worker->engine = engine;
	worker->buffer = buffer;
	worker->cpus = engine->cpus.allowed;
	int r = pthread_create(&worker->thread, NULL, worker_main, worker);
	if (r != 0) {
		munmap(buffer, BUFFER_SIZE);
		return -r;
	}
	pthread_setname_np(worker->thread, "prefetch");
	keeper_add_section(engine->keeper, &worker->leasing);
	return 0;
}

int prefetch_engine_new(unsigned workers, struct keeper *keeper, struct prefetch_engine **ret, struct error *err)
{
	unsigned threads = workers + READERS;
	struct prefetch_engine *engine = calloc(1, sizeof *engine + threads * sizeof engine->workers[0]);
	if (!engine)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	pthread_mutex_init(&engine->lock, NULL);
	pthread_cond_init(&engine->wanted, NULL);
	engine->queue_tail = &engine->queue;
	engine->page_ns = PAGE_NS_GUESS;
	prefetch_cpus_init(&engine->cpus);
	engine->working_max = workers;
	engine->keeper = keeper;

	for (; engine->worker_count < threads; engine->worker_count++) {
		int r = start_worker(engine, &engine->workers[engine->worker_count]);
		if (r < 0) {
			prefetch_engine_free(engine);
			return error_set(err, r, "io_error", "cannot start a prefetch thread: %s", strerror(-r));
		}
	}
	*ret = engine;
	return 0;
}

void prefetch_engine_free(struct prefetch_engine *engine)
{
	if (!engine)
		return;
	pthread_mutex_lock(&engine->lock);
	engine->stopping = true;
	pthread_cond_broadcast(&engine->wanted);
	pthread_mutex_unlock(&engine->lock);
	for (unsigned i = 0; i < engine->worker_count; i++) {
		struct worker *worker = &engine->workers[i];
		pthread_join(worker->thread, NULL);
		keeper_remove_section(engine->keeper, &worker->leasing);
		munmap(worker->buffer, BUFFER_SIZE);
	}
	pthread_cond_destroy(&engine->wanted);
	pthread_mutex_destroy(&engine->lock);
	free(engine);
}

void prefetch_engine_submit(struct prefetch_engine *engine, struct prefetch_job *job)
{
	job->copied = job->present = job->removed = job->skipped = job->unreadable = job->wanting = 0;
	job->run = 0;
	job->at = 0;
	job->working = 0;
	job->waiting = 0;
	job->waiting_bytes = 0;
	job->slow = job->dry = false;
	job->cpus = (struct guest_cpus){ 0 };
	job->result = 0;
	job->first_error = 0;

	pthread_mutex_lock(&engine->lock);
	engine->jobs++;
	engine->streams += job->stream != NULL;
	enqueue(engine, job);
	pthread_cond_signal(&engine->wanted);
	pthread_mutex_unlock(&engine->lock);
}
