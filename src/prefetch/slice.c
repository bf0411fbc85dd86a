/* One turn's pages: which of them are still absent, where their bytes come from, and putting them in. */
#include <errno.h>

#include "base/clock.h"
#include "prefetch/engine_internal.h"
#include "prefetch/from_image.h"

/*
 * Pages a call: the pager waits for at most one call, so calls are short while the guest asks for pages, longer when it does not. Beside a guest
 * that runs, how many pages that is follows from what a page has lately taken here.
 */
#define STEP_MIN	16
#define STEP_MAX	256
#define STREAM_CALL_NS	(10 * NSEC_PER_USEC)
#define STREAM_STEP_MAX 16

/* A guest that is changing its memory map lets nothing in; it does not say when that is over. */
#define RETRY_NS (1 * NSEC_PER_MSEC)

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

/* How many small pages go in within NS, as far as is known; at least one. */
static uint64_t pages_in(const _Atomic uint64_t *page_ns, uint64_t ns)
{
	uint64_t cost = atomic_load_explicit(page_ns, memory_order_relaxed);
	uint64_t pages = ns / (cost ?: 1);

	return pages == 0 ? 1 : pages > STREAM_STEP_MAX ? STREAM_STEP_MAX : pages;
}

/* COPIED small pages have taken NS. Workers overwrite each other's news, which is no loss. */
static void learn_page_ns(_Atomic uint64_t *page_ns, uint64_t copied, uint64_t ns)
{
	uint64_t before = atomic_load_explicit(page_ns, memory_order_relaxed);

	atomic_store_explicit(page_ns, (before * 15 + ns / copied) / 16, memory_order_relaxed);
}

/* Pages of the current run that one call may take, chosen by whether the guest has asked for pages since the last. */
static uint64_t choose_step(const struct worker *worker, const struct prefetch_job *job, struct slice *slice,
			    uint64_t page_size)
{
	uint64_t demands = atomic_load_explicit(&job->memory->demands, memory_order_relaxed);

	uint64_t least = job->stream ? pages_in(&worker->engine->page_ns, STREAM_CALL_NS) : STEP_MIN;
	uint64_t most = job->stream ? STREAM_STEP_MAX : STEP_MAX;
	if (slice->step == 0 || demands != slice->demands_seen)
		slice->step = least;
	else if (slice->step < most)
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

	uint64_t start = now_ns();
	guest_memory_enter(memory);
	uint64_t absent = page_states_run(memory->states, page, pages, PAGE_ABSENT);
	if (absent > 0)
		r = copy_absent(worker, job, page, absent, bytes, &supply);
	guest_memory_leave(memory);
	if (supply.copied > 1 &&
	    regions_of_page(memory->regions, memory->region_count, page)->page_size == HOTLIST_PAGE_SIZE)
		learn_page_ns(&worker->engine->page_ns, supply.copied, now_ns() - start);

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

/* Starts the reads of PAGES, but for those that are zeros. */
static void advise_run(struct source *source, uint64_t pages, size_t page_size, uint64_t offset)
{
	while (pages > 0) {
		uint64_t alike = source_count_alike(source, pages, page_size, offset);

		if (!source_is_zero(source, page_size, offset))
			source_advise(source, alike * page_size, offset);
		pages -= alike;
		offset += alike * page_size;
	}
}

/* Starts the reads of all that is left of the slice; then its pages come together, in whatever order the device likes. */
static void advise_rest(struct prefetch_job *job, struct slice *slice)
{
	uint64_t at = slice->at, left = slice->left;

	slice->advised = true;
	for (size_t i = slice->run; left > 0; i++, at = 0) {
		const struct plan_run *run = &slice->runs[i];
		const struct region *region =
			regions_of_page(job->memory->regions, job->memory->region_count, run->page);
		uint64_t pages = run->count - at < left ? run->count - at : left;

		advise_run(job->source, pages, region->page_size, region_image_offset(region, run->page + at));
		left -= pages;
	}
}

/* To the worker's buffer. -EAGAIN: that would take time, and is not for this slice. */
static int read_pages(struct worker *worker, struct prefetch_job *job, struct slice *slice, uint64_t pages,
		      size_t page_size, uint64_t offset)
{
	int r = source_read_now(job->source, worker->buffer, pages * page_size, offset);

	if (r == -EAGAIN && !slice->advised && source_can_advise(job->source))
		advise_rest(job, slice);
	if (r != -EAGAIN || (slice->whole && !slice->advised && !slice->packed))
		return r;
	begin_waiting(worker, job, slice, pages, page_size);
	r = source_read(job->source, worker->buffer, pages * page_size, offset);
	end_waiting(worker, job, pages * page_size);
	return r;
}

static int put_read(struct worker *worker, struct prefetch_job *job, struct slice *slice, uint64_t page, uint64_t pages,
		    size_t page_size, uint64_t offset)
{
	pages = source_count_alike(job->source, pages, page_size, offset);
	int r = read_pages(worker, job, slice, pages, page_size, offset);
	if (r == -EAGAIN && slice->whole && !slice->advised && !slice->packed) {
		leave_to_readers(worker, job, slice);
		return 0;
	}
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
	return put(worker, job, slice, page, pages, &(struct bytes){ .data = worker->buffer });
}

/* ---- from the packed hot set ---- */

/* Zeros for pages that are zeros there. */
#define ZERO_PAGES 16
static const char zeros[ZERO_PAGES * HOT_SET_PAGE] __attribute__((aligned(HOT_SET_PAGE)));

/* A window whose pages are far from each other in the set had better come from the image: each takes a chunk's reading and checking. */
#define CHUNKS_OF_WINDOW 8

static bool find_packed(const struct prefetch_job *job, uint64_t page, uint64_t most, struct hot_run *ret)
{
	const struct region *region = regions_of_page(job->memory->regions, job->memory->region_count, page);

	return region->page_size == HOT_SET_PAGE &&
	       hot_set_find(job->hot->set, region_image_offset(region, page) / HOT_SET_PAGE, most, ret);
}

struct chunks {
	uint64_t seen[CHUNKS_OF_WINDOW];
	unsigned count;
};

/* False: there are too many. */
static bool add_chunk(struct chunks *chunks, uint64_t chunk)
{
	for (unsigned i = 0; i < chunks->count; i++)
		if (chunks->seen[i] == chunk)
			return true;
	if (chunks->count == CHUNKS_OF_WINDOW)
		return false;
	chunks->seen[chunks->count++] = chunk;
	return true;
}

/* Whether the slice's window is to be had from the set: most of it is there, and close together. */
static bool is_window_packed(const struct prefetch_job *job, const struct stream_window *window)
{
	struct chunks chunks = { 0 };
	unsigned missing = 0;

	for (unsigned i = 0; i < window->run_count; i++) {
		struct hot_run run;

		for (uint64_t at = 0; at < window->runs[i].count; at += run.count) {
			if (!find_packed(job, window->runs[i].page + at, window->runs[i].count - at, &run)) {
				missing++;
				run.count = 1;
			} else if (!run.zero && !add_chunk(&chunks, run.index / HOT_SET_CHUNK)) {
				return false;
			}
		}
	}
	return missing * 4 <= window->count;
}

static int read_packed(struct worker *worker, struct prefetch_job *job, struct slice *slice, const struct hot_run *run,
		       const void **ret)
{
	hot_reader_advise(job->hot, run->index);
	int r = hot_reader_read(job->hot, run, false, worker->buffer, ret);
	if (r != -EAGAIN)
		return r;
	begin_waiting(worker, job, slice, HOT_SET_CHUNK, HOT_SET_PAGE);
	r = hot_reader_read(job->hot, run, true, worker->buffer, ret);
	end_waiting(worker, job, (uint64_t)HOT_SET_CHUNK * HOT_SET_PAGE);
	return r;
}

/* -EAGAIN: it does not have the page, or can't be relied on. */
static int put_packed(struct worker *worker, struct prefetch_job *job, struct slice *slice, uint64_t page,
		      uint64_t pages)
{
	struct hot_run run;
	const void *data = zeros;

	if (!slice->packed || !find_packed(job, page, pages, &run))
		return -EAGAIN;
	if (run.zero)
		run.count = run.count < ZERO_PAGES ? run.count : ZERO_PAGES;
	else if (read_packed(worker, job, slice, &run, &data) < 0)
		return -EAGAIN;
	return put(worker, job, slice, page, run.count, &(struct bytes){ .data = data });
}

/* One call's worth. 0, or negative errno: the job is given up. */
static int step(struct worker *worker, struct prefetch_job *job, struct slice *slice)
{
	struct guest_memory *memory = job->memory;
	const struct plan_run *run = &slice->runs[slice->run];
	uint64_t rest = run->count - slice->at < slice->left ? run->count - slice->at : slice->left;
	uint64_t page = run->page + slice->at;

	if (skip_settled(job, slice, page, rest))
		return 0;
	const struct region *region = regions_of_page(memory->regions, memory->region_count, page);
	uint64_t most = choose_step(worker, job, slice, region->page_size);
	uint64_t pages = page_states_run(memory->states, page, most < rest ? most : rest, PAGE_ABSENT);
	if (pages == 0)
		return 0; /* it has just been settled */

	uint64_t offset = region_image_offset(region, page);
	int r = put_mapped(worker, job, slice, page, pages, pages * region->page_size, offset);
	if (r == -EAGAIN)
		r = put_packed(worker, job, slice, page, pages);
	return r == -EAGAIN ? put_read(worker, job, slice, page, pages, region->page_size, offset) : r;
}

int work_on(struct worker *worker, struct prefetch_job *job, struct slice *slice)
{
	int r = 0;

	slice->packed = is_packed(job) && is_window_packed(job, &slice->window);
	while (slice->left > 0 && r == 0)
		r = is_stopping(worker->engine) ? -ECANCELED : step(worker, job, slice);
	return r;
}
