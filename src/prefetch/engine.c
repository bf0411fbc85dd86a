#include "prefetch/engine.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"

/* A worker's buffer: one huge page, or many small ones. */
#define BUFFER_SIZE (2u << 20)

/* Pages a call: the pager waits for at most one call, so steps are small while the guest asks for pages, larger when it does not. */
#define STEP_MIN 16
#define STEP_MAX 256

/* How much of one fork before the next fork's turn. */
#define SLICE_BYTES (4u << 20)

/* A guest that is changing its memory map lets nothing in; it does not say when that is over. */
#define RETRY_NS (1 * NSEC_PER_MSEC)

struct prefetch_engine {
	pthread_mutex_t lock;
	pthread_cond_t wanted;
	struct prefetch_job *queue, **queue_tail; /* under lock */
	_Atomic bool stopping;
	unsigned worker_count;
	struct worker {
		pthread_t thread;
		struct prefetch_engine *engine;
		void *buffer;
	} workers[];
};

static void count(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* Pages of the current run that one call may take, chosen by whether the guest has asked for pages since the last. */
static uint64_t choose_step(struct prefetch_job *job, uint64_t page_size)
{
	uint64_t demands = atomic_load_explicit(&job->memory->demands, memory_order_relaxed);

	if (demands != job->demands_seen)
		job->step = STEP_MIN;
	else if (job->step < STEP_MAX)
		job->step *= 2;
	job->demands_seen = demands;

	uint64_t fits = BUFFER_SIZE / page_size;
	return job->step < fits ? job->step : fits;
}

/* Skips pages that need nothing from the place where the job stands, and counts them. */
static uint64_t skip_settled(struct prefetch_job *job, const struct plan_run *run)
{
	uint64_t page = run->page + job->at;

	switch (page_states_get(job->memory->states, page)) {
	case PAGE_REMOVED: {
		uint64_t n = page_states_run(job->memory->states, page, run->count - job->at, PAGE_REMOVED);
		count(&job->removed, n);
		return n;
	}
	case PAGE_THERE: {
		uint64_t n = page_states_run(job->memory->states, page, run->count - job->at, PAGE_THERE);
		count(&job->present, n);
		return n;
	}
	case PAGE_COMING:
		count(&job->present, 1);
		return 1;
	default:
		return 0;
	}
}

/* Where pages' bytes come from: a buffer, or the image's own mapping, which a truncation may be cutting short. */
struct bytes {
	const void *data;
	bool mapped;
	size_t length;
	uint64_t offset; /* in the image */
};

/* Copies COUNT absent pages. -ESTALE: one of them may have zeros for an end; who waits for it has not been woken. */
static int copy_absent(struct prefetch_job *job, uint64_t page, uint64_t pages, const struct bytes *bytes,
		       struct supply *ret)
{
	struct guest_memory *memory = job->memory;

	if (!bytes->mapped) {
		*ret = guest_memory_supply(memory, page, pages, bytes->data);
		return 0;
	}
	*ret = guest_memory_supply_held(memory, page, pages, bytes->data);
	if (ret->copied > 0 && !source_intact(job->source, bytes->length, bytes->offset)) {
		job->lost(job);
		return -ESTALE;
	}
	guest_memory_wake(memory, page, pages);
	return 0;
}

/* Puts in as many of PAGES as are still absent without a gap. Pages dealt with, or negative errno. */
static int64_t put(struct prefetch_job *job, uint64_t page, uint64_t pages, const struct bytes *bytes)
{
	struct guest_memory *memory = job->memory;
	struct supply supply = { .outcome = SUPPLY_DONE };
	uint64_t seen = guest_memory_events(memory);
	int r = 0;

	guest_memory_enter(memory);
	uint64_t absent = page_states_run(memory->states, page, pages, PAGE_ABSENT);
	if (absent > 0)
		r = copy_absent(job, page, absent, bytes, &supply);
	guest_memory_leave(memory);

	count(&job->copied, supply.copied);
	count(&job->present, supply.present);
	count(&job->skipped, supply.skipped);
	if (r < 0)
		return r;
	switch (supply.outcome) {
	case SUPPLY_GONE:
		return -ESRCH;
	case SUPPLY_NO_MEMORY:
	case SUPPLY_FAILED:
		return supply.error;
	case SUPPLY_RETRY:
		guest_memory_wait_event(memory, seen, RETRY_NS);
		/* fall through */
	default:
		return (int64_t)(supply.copied + supply.present + supply.skipped);
	}
}

/* From the image's mapping, where the pages are known to be in memory. -EAGAIN: they are not. */
static int64_t put_mapped(struct prefetch_job *job, uint64_t page, uint64_t pages, size_t size, uint64_t offset)
{
	struct bytes bytes = { .mapped = true, .length = size, .offset = offset };

	bytes.data = source_peek(job->source, size, offset, now_ns());
	if (!bytes.data)
		return -EAGAIN;
	int64_t done = put(job, page, pages, &bytes);
	return done == -EFAULT ? -EAGAIN : done;
}

static int64_t put_read(struct worker *worker, struct prefetch_job *job, uint64_t page, uint64_t pages,
			size_t page_size, uint64_t offset)
{
	int r = source_read(job->source, worker->buffer, pages * page_size, offset);
	if (r < 0 && pages > 1) {
		/* Which of them is it? The others are still wanted. */
		pages = 1;
		r = source_read(job->source, worker->buffer, page_size, offset);
	}
	if (r < 0) {
		job->first_error = job->first_error ?: r;
		count(&job->unreadable, 1);
		return 1;
	}
	return put(job, page, pages, &(struct bytes){ .data = worker->buffer });
}

/* One call's worth. 1: more to do, 0: the plan is through, negative errno: given up. */
static int step(struct worker *worker, struct prefetch_job *job, uint64_t *budget)
{
	if (job->run == job->plan->count)
		return 0;

	const struct plan_run *run = &job->plan->runs[job->run];
	if (job->at == run->count) {
		job->run++;
		job->at = 0;
		return 1;
	}
	uint64_t settled = skip_settled(job, run);
	if (settled > 0) {
		job->at += settled;
		return 1;
	}

	struct guest_memory *memory = job->memory;
	const struct region *region = regions_of_page(memory->regions, memory->region_count, run->page);
	uint64_t page = run->page + job->at, most = choose_step(job, region->page_size);
	if (most > run->count - job->at)
		most = run->count - job->at;
	uint64_t pages = page_states_run(memory->states, page, most, PAGE_ABSENT);
	if (pages == 0)
		return 1; /* it has just been settled */

	uint64_t offset = region->offset + (page - region->first_page) * region->page_size;
	int64_t done = put_mapped(job, page, pages, pages * region->page_size, offset);
	if (done == -EAGAIN)
		done = put_read(worker, job, page, pages, region->page_size, offset);
	if (done < 0)
		return (int)done;
	job->at += (uint64_t)done;
	uint64_t bytes = pages * region->page_size;
	*budget = *budget > bytes ? *budget - bytes : 0;
	return 1;
}

static void work_on(struct worker *worker, struct prefetch_job *job)
{
	struct prefetch_engine *engine = worker->engine;
	uint64_t budget = SLICE_BYTES;
	int r = 1;

	if (!job->plan) {
		int prepared = job->prepare(job);
		if (prepared < 0)
			r = prepared;
	}
	while (r > 0 && budget > 0) {
		if (atomic_load_explicit(&engine->stopping, memory_order_relaxed))
			r = -ECANCELED;
		else
			r = step(worker, job, &budget);
	}
	if (r <= 0) {
		job->done(job, r ?: job->first_error);
		return;
	}
	pthread_mutex_lock(&engine->lock);
	job->next = NULL;
	*engine->queue_tail = job;
	engine->queue_tail = &job->next;
	pthread_mutex_unlock(&engine->lock);
}

static void *worker_main(void *data)
{
	struct worker *worker = data;
	struct prefetch_engine *engine = worker->engine;

	pthread_mutex_lock(&engine->lock);
	for (;;) {
		while (!engine->queue && !engine->stopping)
			pthread_cond_wait(&engine->wanted, &engine->lock);
		struct prefetch_job *job = engine->queue;
		if (!job)
			break;
		engine->queue = job->next;
		if (!engine->queue)
			engine->queue_tail = &engine->queue;
		pthread_mutex_unlock(&engine->lock);

		work_on(worker, job);

		pthread_mutex_lock(&engine->lock);
	}
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
	int r = pthread_create(&worker->thread, NULL, worker_main, worker);
	if (r != 0) {
		munmap(buffer, BUFFER_SIZE);
		return -r;
	}
	pthread_setname_np(worker->thread, "prefetch");
	return 0;
}

int prefetch_engine_new(unsigned workers, struct prefetch_engine **ret, struct error *err)
{
	struct prefetch_engine *engine = calloc(1, sizeof *engine + workers * sizeof engine->workers[0]);
	if (!engine)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	pthread_mutex_init(&engine->lock, NULL);
	pthread_cond_init(&engine->wanted, NULL);
	engine->queue_tail = &engine->queue;

	for (; engine->worker_count < workers; engine->worker_count++) {
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
		munmap(worker->buffer, BUFFER_SIZE);
	}
	pthread_cond_destroy(&engine->wanted);
	pthread_mutex_destroy(&engine->lock);
	free(engine);
}

void prefetch_engine_submit(struct prefetch_engine *engine, struct prefetch_job *job)
{
	job->copied = job->present = job->removed = job->skipped = job->unreadable = 0;
	job->run = 0;
	job->at = 0;
	job->step = STEP_MIN;
	job->demands_seen = 0;
	job->first_error = 0;
	job->next = NULL;

	pthread_mutex_lock(&engine->lock);
	*engine->queue_tail = job;
	engine->queue_tail = &job->next;
	pthread_cond_signal(&engine->wanted);
	pthread_mutex_unlock(&engine->lock);
}
