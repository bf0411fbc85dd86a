#include "prefetch/engine.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "prefetch/from_image.h"

/* A worker's buffer: one huge page, or many small ones. */
#define BUFFER_SIZE (2u << 20)

/* Pages a call: the pager waits for at most one call, so steps are small while the guest asks for pages, larger when it does not. */
#define STEP_MIN 16
#define STEP_MAX 256

/* How much of one fork before the next fork's turn, and what one worker takes of a plan while another takes the next. */
#define SLICE_BYTES (4u << 20)

/* A guest that is changing its memory map lets nothing in; it does not say when that is over. */
#define RETRY_NS (1 * NSEC_PER_MSEC)

struct prefetch_engine {
	pthread_mutex_t lock;
	pthread_cond_t wanted;
	struct prefetch_job *queue, **queue_tail; /* under lock: those with slices to take, or to be prepared */
	_Atomic bool stopping;
	struct keeper *keeper;
	unsigned worker_count;
	struct worker {
		pthread_t thread;
		struct prefetch_engine *engine;
		void *buffer;
		struct lease_section leasing;
	} workers[];
};

/* A part of a plan that one worker has taken. */
struct slice {
	size_t run; /* where it stands, with AT */
	uint64_t at;
	uint64_t left; /* pages */
	uint64_t step; /* pages a call */
	uint64_t demands_seen;
};

static void count(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* Pages of the current run that one call may take, chosen by whether the guest has asked for pages since the last. */
static uint64_t choose_step(const struct prefetch_job *job, struct slice *slice, uint64_t page_size)
{
	uint64_t demands = atomic_load_explicit(&job->memory->demands, memory_order_relaxed);

	if (demands != slice->demands_seen)
		slice->step = STEP_MIN;
	else if (slice->step < STEP_MAX)
		slice->step *= 2;
	slice->demands_seen = demands;

	uint64_t fits = BUFFER_SIZE / page_size;
	return slice->step < fits ? slice->step : fits;
}

/* Of PAGES from PAGE on, those at the beginning that need nothing; counts them. */
static uint64_t skip_settled(struct prefetch_job *job, uint64_t page, uint64_t pages)
{
	const struct page_states *states = job->memory->states;
	enum page_state state = page_states_get(states, page);

	if (state == PAGE_ABSENT)
		return 0;
	uint64_t n = page_states_run(states, page, pages, state);
	count(state == PAGE_REMOVED ? &job->removed : &job->present, n);
	return n;
}

/* Where pages' bytes come from: a buffer, or the image's own mapping, which a truncation may be cutting short. */
struct bytes {
	const void *data;
	bool mapped;
	size_t length;
	uint64_t offset; /* in the image */
};

/* Copies absent pages. -ESTALE: one of them may have zeros for an end, and the fork is lost. */
static int copy_absent(struct worker *worker, struct prefetch_job *job, uint64_t page, uint64_t pages,
		       const struct bytes *bytes, struct supply *ret)
{
	if (!bytes->mapped) {
		*ret = guest_memory_supply(job->memory, page, pages, bytes->data, WAKE_NOW);
		return 0;
	}
	int r = supply_from_image(job->memory, job->source, &worker->leasing, page, pages, bytes->data, bytes->length,
				  bytes->offset, WAKE_NOW, ret);
	if (r < 0)
		job->lost(job);
	return r;
}

/* Puts in as many of PAGES as are still absent without a gap. Pages dealt with, or negative errno. */
static int64_t put(struct worker *worker, struct prefetch_job *job, uint64_t page, uint64_t pages,
		   const struct bytes *bytes)
{
	struct guest_memory *memory = job->memory;
	struct supply supply = { .outcome = SUPPLY_DONE };
	uint64_t seen = guest_memory_events(memory);
	int r = 0;

	guest_memory_enter(memory);
	uint64_t absent = page_states_run(memory->states, page, pages, PAGE_ABSENT);
	if (absent > 0)
		r = copy_absent(worker, job, page, absent, bytes, &supply);
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
		atomic_store(&job->wanting, regions_of_page(memory->regions, memory->region_count, page)->page_size);
		return supply.error;
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
static int64_t put_mapped(struct worker *worker, struct prefetch_job *job, uint64_t page, uint64_t pages, size_t size,
			  uint64_t offset)
{
	struct bytes bytes = { .mapped = true, .length = size, .offset = offset };

	bytes.data = source_peek(job->source, size, offset, now_ns());
	if (!bytes.data)
		return -EAGAIN;
	int64_t done = put(worker, job, page, pages, &bytes);
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
		int none = 0;
		atomic_compare_exchange_strong(&job->first_error, &none, r);
		count(&job->unreadable, 1);
		return 1;
	}
	return put(worker, job, page, pages, &(struct bytes){ .data = worker->buffer });
}

/* One call's worth. 0, or negative errno: the job is given up. */
static int step(struct worker *worker, struct prefetch_job *job, struct slice *slice)
{
	const struct plan_run *run = &job->plan->runs[slice->run];
	uint64_t rest = run->count - slice->at < slice->left ? run->count - slice->at : slice->left;
	uint64_t page = run->page + slice->at;

	int64_t done = (int64_t)skip_settled(job, page, rest);
	if (done == 0) {
		struct guest_memory *memory = job->memory;
		const struct region *region = regions_of_page(memory->regions, memory->region_count, page);
		uint64_t most = choose_step(job, slice, region->page_size);
		uint64_t pages = page_states_run(memory->states, page, most < rest ? most : rest, PAGE_ABSENT);
		if (pages == 0)
			return 0; /* it has just been settled */

		uint64_t offset = region->offset + (page - region->first_page) * region->page_size;
		done = put_mapped(worker, job, page, pages, pages * region->page_size, offset);
		if (done == -EAGAIN)
			done = put_read(worker, job, page, pages, region->page_size, offset);
		if (done < 0)
			return (int)done;
	}
	slice->left -= (uint64_t)done;
	slice->at += (uint64_t)done;
	if (slice->at == run->count) {
		slice->run++;
		slice->at = 0;
	}
	return 0;
}

static bool is_stopping(const struct prefetch_engine *engine)
{
	return atomic_load_explicit(&engine->stopping, memory_order_relaxed);
}

static int work_on(struct worker *worker, struct prefetch_job *job, struct slice *slice)
{
	int r = 0;

	while (slice->left > 0 && r == 0)
		r = is_stopping(worker->engine) ? -ECANCELED : step(worker, job, slice);
	return r;
}

/* ---- turns; the engine's lock is held ---- */

static void enqueue(struct prefetch_engine *engine, struct prefetch_job *job)
{
	job->queued = true;
	job->next = NULL;
	*engine->queue_tail = job;
	engine->queue_tail = &job->next;
	pthread_cond_signal(&engine->wanted);
}

static struct prefetch_job *dequeue(struct prefetch_engine *engine)
{
	struct prefetch_job *job = engine->queue;

	if (job) {
		engine->queue = job->next;
		if (!engine->queue)
			engine->queue_tail = &engine->queue;
		job->queued = false;
	}
	return job;
}

/* Of the plan, what no worker has taken yet: as much as one slice is. */
static struct slice take_slice(struct prefetch_job *job)
{
	const struct guest_memory *memory = job->memory;
	const struct plan *plan = job->plan;
	struct slice slice = { .run = job->run, .at = job->at, .step = STEP_MIN };
	uint64_t budget = SLICE_BYTES;

	while (budget > 0 && job->run < plan->count) {
		const struct plan_run *run = &plan->runs[job->run];
		uint64_t size = regions_of_page(memory->regions, memory->region_count, run->page)->page_size;
		uint64_t rest = run->count - job->at, most = budget / size ?: 1;
		uint64_t take = rest < most ? rest : most;

		slice.left += take;
		budget -= take * size < budget ? take * size : budget;
		job->at += take;
		if (take == rest) {
			job->run++;
			job->at = 0;
		}
	}
	return slice;
}

/* One turn for JOB: its preparation, or a slice. True: it has ended, and no other worker has anything to do with it. */
static bool give_turn(struct worker *worker, struct prefetch_job *job)
{
	struct prefetch_engine *engine = worker->engine;
	struct slice slice = { 0 };
	bool preparing = !job->plan;
	int r;

	job->working++;
	if (!preparing && job->result == 0) {
		slice = take_slice(job);
		if (job->run < job->plan->count)
			enqueue(engine, job);
	}
	pthread_mutex_unlock(&engine->lock);
	r = preparing ? job->prepare(job) : work_on(worker, job, &slice);
	pthread_mutex_lock(&engine->lock);

	job->working--;
	if (r < 0 && job->result == 0)
		job->result = r;
	if (preparing && r == 0)
		enqueue(engine, job);
	return job->working == 0 && !job->queued;
}

static void *worker_main(void *data)
{
	struct worker *worker = data;
	struct prefetch_engine *engine = worker->engine;

	pthread_mutex_lock(&engine->lock);
	for (;;) {
		while (!engine->queue && !is_stopping(engine))
			pthread_cond_wait(&engine->wanted, &engine->lock);
		struct prefetch_job *job = dequeue(engine);
		if (!job)
			break;
		if (!give_turn(worker, job))
			continue;
		pthread_mutex_unlock(&engine->lock);
		job->done(job, job->result ?: atomic_load(&job->first_error));
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
	keeper_add_section(engine->keeper, &worker->leasing);
	return 0;
}

int prefetch_engine_new(unsigned workers, struct keeper *keeper, struct prefetch_engine **ret, struct error *err)
{
	struct prefetch_engine *engine = calloc(1, sizeof *engine + workers * sizeof engine->workers[0]);
	if (!engine)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	pthread_mutex_init(&engine->lock, NULL);
	pthread_cond_init(&engine->wanted, NULL);
	engine->queue_tail = &engine->queue;
	engine->keeper = keeper;

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
	job->result = 0;
	job->first_error = 0;

	pthread_mutex_lock(&engine->lock);
	enqueue(engine, job);
	pthread_mutex_unlock(&engine->lock);
}
