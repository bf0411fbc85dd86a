/* Whose turn it is: forks in a row, as many workers as there are to be, and whoever waits for a disk is none. */
#include "prefetch/engine_internal.h"

/* How much of one fork before the next fork's turn, and what one worker takes of a plan while another takes the next. */
#define SLICE_BYTES (4u << 20)
/* The same while guests run that pages are streamed to: their windows are no larger. */
#define SLICE_BYTES_SHARED STREAM_WINDOW_BYTES

/* Lists are read and sorted beside the work, so many at a time. */
#define PREPARERS 2

void enqueue(struct prefetch_engine *engine, struct prefetch_job *job)
{
	job->queued = true;
	job->next = NULL;
	*engine->queue_tail = job;
	engine->queue_tail = &job->next;
}

/* Whether JOB may have one more worker: of a stream, one that does not wait is enough unless reads are all there is to it. */
static bool may_have_another(const struct prefetch_engine *engine, const struct prefetch_job *job)
{
	unsigned share = READERS / engine->jobs ?: 1;

	if (!job->stream)
		return job->working < engine->working_max;
	if (!job->slow)
		return job->working == job->waiting && job->working < share;
	unsigned most = source_can_advise(job->source) || is_packed(job) ? WINDOWS_ADVISED : READS_OF_STREAM;
	return job->working < (share < most ? share : most) && job->waiting_bytes < BYTES_OF_STREAM;
}

void enqueue_again(struct prefetch_engine *engine, struct prefetch_job *job)
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

bool has_turn(const struct prefetch_engine *engine)
{
	const struct prefetch_job *job = engine->queue;

	while (job && !may_have_turn(engine, job))
		job = job->next;
	return job != NULL;
}

struct prefetch_job *dequeue(struct prefetch_engine *engine)
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

/* Of a stream that has to be read, no more than one read, unless many can be started at once. */
void take_slice(const struct prefetch_engine *engine, struct prefetch_job *job, struct slice *slice)
{
	if (!job->stream) {
		take_slice_of_plan(engine, job, slice);
		return;
	}
	slice->whole = !job->slow || source_can_advise(job->source) || is_packed(job);
	job->dry = !stream_take(job->stream, job->memory->states, slice->whole, &slice->window);
	slice->runs = slice->window.runs;
	slice->left = slice->window.count;
}

/* Nobody has anything of SLICE any more but its next PAGES. */
static void keep_only(struct prefetch_job *job, struct slice *slice, uint64_t pages)
{
	unsigned end = slice->window.count - (unsigned)(slice->left - pages);

	stream_give_back(job->stream, &slice->window, end);
	slice->window.count = end;
	slice->left = pages;
	job->dry = false;
}

void leave_to_readers(struct worker *worker, struct prefetch_job *job, struct slice *slice)
{
	LOCK_SCOPE(&worker->engine->lock);
	job->slow = slice->waited = true;
	keep_only(job, slice, 0);
}

void begin_waiting(struct worker *worker, struct prefetch_job *job, struct slice *slice, uint64_t pages,
		   size_t page_size)
{
	struct prefetch_engine *engine = worker->engine;

	LOCK_SCOPE(&engine->lock);
	engine->working--;
	engine->waiting++;
	job->waiting++;
	job->waiting_bytes += pages * page_size;
	job->slow = slice->waited = true;
	if (job->stream && slice->left > pages && !slice->advised && !slice->packed)
		keep_only(job, slice, pages);
	enqueue_again(engine, job);
	if (has_turn(engine))
		pthread_cond_signal(&engine->wanted);
}

void end_waiting(struct worker *worker, struct prefetch_job *job, uint64_t bytes)
{
	struct prefetch_engine *engine = worker->engine;

	LOCK_SCOPE(&engine->lock);
	engine->working++;
	engine->waiting--;
	job->waiting--;
	job->waiting_bytes -= bytes;
	enqueue_again(engine, job);
	if (has_turn(engine))
		pthread_cond_signal(&engine->wanted);
}
