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

/* Small pages that one read brings at most; one of a huge page brings that. */
#define READ_SIZE (1u << 20)

/* Pages a call: the pager waits for at most one call, so steps are small while the guest asks for pages, larger when it does not. */
#define STEP_MIN 16
#define STEP_MAX 256

/* How much of one fork before the next fork's turn, and what one worker takes of a plan while another takes the next. */
#define SLICE_BYTES (4u << 20)
/* The same while guests run that pages are streamed to: their windows are no larger. */
#define SLICE_BYTES_SHARED STREAM_WINDOW_BYTES

/*
 * Threads for reads that wait, besides the workers: so forks whose pages are in memory never find all threads waiting for others' disks. One
 * fork may have so many reads under way as keep a disk busy, and no more than its share.
 */
#define READERS	      14
#define READS_OF_FORK 8

/* Lists are read and sorted beside the work, so many at a time. */
#define PREPARERS 2

/* A guest that is changing its memory map lets nothing in; it does not say when that is over. */
#define RETRY_NS (1 * NSEC_PER_MSEC)

struct prefetch_engine {
	pthread_mutex_t lock;
	pthread_cond_t wanted;
	struct prefetch_job *queue,
		**queue_tail;	/* under lock, as what follows: those with slices to take, or to be prepared */
	unsigned jobs, streams; /* that have not ended; streams once they are prepared */
	unsigned working, waiting, preparing; /* workers, and what they do */
	unsigned working_max;
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

/* A part of a plan, or of a stream, that one worker has taken. */
struct slice {
	const struct plan_run *runs;
	size_t run; /* where it stands, with AT */
	uint64_t at;
	uint64_t left; /* pages */
	uint64_t step; /* pages a call */
	uint64_t demands_seen;
	bool waited;
	struct stream_window window; /* of a stream: RUNS are its */
};

/* ---- whose turn it is; the engine's lock is held ---- */

static bool is_stopping(const struct prefetch_engine *engine)
{
	return atomic_load_explicit(&engine->stopping, memory_order_relaxed);
}

static bool is_unprepared(const struct prefetch_job *job)
{
	return !job->plan && !job->stream;
}

static void enqueue(struct prefetch_engine *engine, struct prefetch_job *job)
{
	job->queued = true;
	job->next = NULL;
	*engine->queue_tail = job;
	engine->queue_tail = &job->next;
	pthread_cond_signal(&engine->wanted);
}

/* Whether JOB may have one more worker: of a stream, one that does not wait is enough unless reads are all there is to it. */
static bool may_have_another(const struct prefetch_engine *engine, const struct prefetch_job *job)
{
	unsigned share = READERS / engine->jobs ?: 1;

	if (job->stream && !job->slow && job->working > job->waiting)
		return false;
	return job->working < (share < READS_OF_FORK ? share : READS_OF_FORK);
}

/* Puts JOB in line for another turn, where there is something left for one. */
static void enqueue_again(struct prefetch_engine *engine, struct prefetch_job *job)
{
	bool over = job->stream ? job->dry : !job->plan || job->run == job->plan->count;

	if (!job->queued && !over && job->result == 0 && may_have_another(engine, job))
		enqueue(engine, job);
}

static bool may_have_turn(const struct prefetch_engine *engine, const struct prefetch_job *job)
{
	if (is_unprepared(job))
		return engine->preparing < PREPARERS;
	if (job->slow && engine->waiting >= READERS)
		return false;
	return engine->working < engine->working_max;
}

/* The first job that may have a turn now, and out of line with it; or NULL. */
static struct prefetch_job *dequeue(struct prefetch_engine *engine)
{
	struct prefetch_job **p = &engine->queue;

	while (*p && !may_have_turn(engine, *p))
		p = &(*p)->next;
	struct prefetch_job *job = *p;
	if (job) {
		*p = job->next;
		if (!*p)
			engine->queue_tail = p;
		job->queued = false;
	}
	return job;
}

/* Of the plan, what no worker has taken yet: as much as one slice is. */
static void take_slice_of_plan(const struct prefetch_engine *engine, struct prefetch_job *job, struct slice *slice)
{
	const struct guest_memory *memory = job->memory;
	const struct plan *plan = job->plan;
	uint64_t budget = engine->streams > 0 ? SLICE_BYTES_SHARED : SLICE_BYTES;

	slice->runs = plan->runs;
	slice->run = job->run;
	slice->at = job->at;
	while (budget > 0 && job->run < plan->count) {
		const struct plan_run *run = &plan->runs[job->run];
		uint64_t size = regions_of_page(memory->regions, memory->region_count, run->page)->page_size;
		uint64_t rest = run->count - job->at, most = budget / size ?: 1;
		uint64_t take = rest < most ? rest : most;

		slice->left += take;
		budget -= take * size < budget ? take * size : budget;
		job->at += take;
		if (take == rest) {
			job->run++;
			job->at = 0;
		}
	}
}

/* Of a stream that has to be read, no more than one read. */
static void take_slice(const struct prefetch_engine *engine, struct prefetch_job *job, struct slice *slice)
{
	if (!job->stream) {
		take_slice_of_plan(engine, job, slice);
		return;
	}
	job->dry = !stream_take(job->stream, job->memory->states, !job->slow, &slice->window);
	slice->runs = slice->window.runs;
	slice->left = slice->window.count;
}

/* The slice's next PAGES have to be waited for: lets others work, also on what is behind these pages in a stream. */
static void begin_waiting(struct worker *worker, struct prefetch_job *job, struct slice *slice, uint64_t pages)
{
	struct prefetch_engine *engine = worker->engine;

	LOCK_SCOPE(&engine->lock);
	engine->working--;
	engine->waiting++;
	job->waiting++;
	job->slow = slice->waited = true;
	if (job->stream && slice->left > pages) {
		unsigned here = slice->window.count - (unsigned)(slice->left - pages);
		stream_give_back(job->stream, &slice->window, here);
		slice->window.count = here;
		slice->left = pages;
		job->dry = false;
	}
	enqueue_again(engine, job);
	if (engine->queue)
		pthread_cond_signal(&engine->wanted);
}

static void end_waiting(struct worker *worker, struct prefetch_job *job)
{
	struct prefetch_engine *engine = worker->engine;

	LOCK_SCOPE(&engine->lock);
	engine->working++;
	engine->waiting--;
	job->waiting--;
	if (engine->queue)
		pthread_cond_signal(&engine->wanted);
}

/* ---- pages ---- */

static void count(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* What became of the slice's next pages, which lie in its current run. */
static void tally(struct prefetch_job *job, struct slice *slice, const struct stream_outcome *outcome)
{
	uint64_t pages = outcome->copied + outcome->present + outcome->removed + outcome->skipped + outcome->unreadable;

	count(&job->copied, outcome->copied);
	count(&job->present, outcome->present);
	count(&job->removed, outcome->removed);
	count(&job->skipped, outcome->skipped);
	count(&job->unreadable, outcome->unreadable);
	if (job->stream)
		stream_settle(job->stream, &slice->window, slice->window.count - (unsigned)slice->left, outcome);

	slice->left -= pages;
	slice->at += pages;
	if (slice->at == slice->runs[slice->run].count) {
		slice->run++;
		slice->at = 0;
	}
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

/* Of PAGES from PAGE on, those at the beginning that need nothing are counted. Whether there were any. */
static bool skip_settled(struct prefetch_job *job, struct slice *slice, uint64_t page, uint64_t pages)
{
	const struct page_states *states = job->memory->states;
	enum page_state state = page_states_get(states, page);

	if (state == PAGE_ABSENT)
		return false;
	uint64_t n = page_states_run(states, page, pages, state);
	struct stream_outcome outcome = { .removed = state == PAGE_REMOVED ? n : 0,
					  .present = state == PAGE_REMOVED ? 0 : n };
	tally(job, slice, &outcome);
	return true;
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

/* Puts in as many of PAGES as are still absent without a gap. 0, or negative errno. */
static int put(struct worker *worker, struct prefetch_job *job, struct slice *slice, uint64_t page, uint64_t pages,
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

	tally(job, slice,
	      &(struct stream_outcome){ .copied = supply.copied, .present = supply.present, .skipped = supply.skipped });
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
		return 0;
	}
}

/* From the image's mapping, where the pages are known to be in memory. -EAGAIN: they are not. */
static int put_mapped(struct worker *worker, struct prefetch_job *job, struct slice *slice, uint64_t page,
		      uint64_t pages, size_t size, uint64_t offset)
{
	struct bytes bytes = { .mapped = true, .length = size, .offset = offset };

	bytes.data = source_peek(job->source, size, offset, now_ns());
	if (!bytes.data)
		return -EAGAIN;
	int r = put(worker, job, slice, page, pages, &bytes);
	return r == -EFAULT ? -EAGAIN : r;
}

static int read_pages(struct worker *worker, struct prefetch_job *job, struct slice *slice, uint64_t pages,
		      size_t page_size, uint64_t offset)
{
	int r = source_read_now(job->source, worker->buffer, pages * page_size, offset);

	if (r != -EAGAIN)
		return r;
	begin_waiting(worker, job, slice, pages);
	r = source_read(job->source, worker->buffer, pages * page_size, offset);
	end_waiting(worker, job);
	return r;
}

/* One read, as long as the buffer lets it be; but the guest's own faults never wait for more than STEP pages of it. */
static int put_read(struct worker *worker, struct prefetch_job *job, struct slice *slice, uint64_t page, uint64_t pages,
		    size_t page_size, uint64_t offset)
{
	int r = read_pages(worker, job, slice, pages, page_size, offset);
	if (r < 0 && pages > 1) {
		/* Which of them is it? The others are still wanted. */
		pages = 1;
		r = read_pages(worker, job, slice, pages, page_size, offset);
	}
	if (r < 0) {
		int none = 0;
		atomic_compare_exchange_strong(&job->first_error, &none, r);
		tally(job, slice, &(struct stream_outcome){ .unreadable = 1 });
		return 0;
	}

	uint64_t end = slice->left - pages;
	while (slice->left > end) {
		uint64_t left = slice->left, rest = left - end, most = choose_step(job, slice, page_size);
		const char *data = (const char *)worker->buffer + (pages - rest) * page_size;

		r = put(worker, job, slice, page + pages - rest, rest < most ? rest : most,
			&(struct bytes){ .data = data });
		if (r < 0 || slice->left == left)
			return r;
	}
	return 0;
}

/* One call's worth of pages in memory, or one read. 0, or negative errno: the job is given up. */
static int step(struct worker *worker, struct prefetch_job *job, struct slice *slice)
{
	struct guest_memory *memory = job->memory;
	const struct plan_run *run = &slice->runs[slice->run];
	uint64_t rest = run->count - slice->at < slice->left ? run->count - slice->at : slice->left;
	uint64_t page = run->page + slice->at;

	if (skip_settled(job, slice, page, rest))
		return 0;
	const struct region *region = regions_of_page(memory->regions, memory->region_count, page);
	uint64_t most = choose_step(job, slice, region->page_size);
	uint64_t pages = page_states_run(memory->states, page, rest, PAGE_ABSENT), few = pages < most ? pages : most;
	if (pages == 0)
		return 0; /* it has just been settled */

	uint64_t offset = region_image_offset(region, page), fits = READ_SIZE / region->page_size ?: 1;
	int r = put_mapped(worker, job, slice, page, few, few * region->page_size, offset);
	return r == -EAGAIN ? put_read(worker, job, slice, page, pages < fits ? pages : fits, region->page_size, offset)
			    : r;
}

static int work_on(struct worker *worker, struct prefetch_job *job, struct slice *slice)
{
	int r = 0;

	while (slice->left > 0 && r == 0)
		r = is_stopping(worker->engine) ? -ECANCELED : step(worker, job, slice);
	return r;
}

/* ---- workers ---- */

/* One turn for JOB: its preparation, or a slice. True: it has ended, and no other worker has anything to do with it. */
static bool give_turn(struct worker *worker, struct prefetch_job *job)
{
	struct prefetch_engine *engine = worker->engine;
	struct slice slice = { .step = STEP_MIN };
	bool preparing = is_unprepared(job);
	int r;

	job->working++;
	*(preparing ? &engine->preparing : &engine->working) += 1;
	if (!preparing && job->result == 0) {
		take_slice(engine, job, &slice);
		enqueue_again(engine, job);
	}
	pthread_mutex_unlock(&engine->lock);
	r = preparing ? job->prepare(job) : work_on(worker, job, &slice);
	pthread_mutex_lock(&engine->lock);

	*(preparing ? &engine->preparing : &engine->working) -= 1;
	job->working--;
	if (r < 0 && job->result == 0)
		job->result = r;
	if (preparing)
		engine->streams += job->stream != NULL;
	else if (!slice.waited)
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
	job->slow = job->dry = false;
	job->result = 0;
	job->first_error = 0;

	pthread_mutex_lock(&engine->lock);
	engine->jobs++;
	engine->streams += job->stream != NULL;
	enqueue(engine, job);
	pthread_mutex_unlock(&engine->lock);
}
