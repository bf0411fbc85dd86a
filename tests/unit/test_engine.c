/*
 * What prefetch workers do with jobs as far as it needs no userfaultfd: turns, ends, counts, and pages that want nothing or can't be
 * had. Where a page would be put, the descriptor, which is none, says so.
 */
#include <semaphore.h>

#include "prefetch/engine.h"
#include "unit/image_helpers.h"

#define PAGES 5000ull

struct fork {
	struct prefetch_job job; /* first: the callbacks get its address */
	struct plan plan;
	struct plan_run runs[3];
	sem_t preparing, may_prepare, ended;
	int prepared; /* what prepare returns */
	int result;
	unsigned order; /* in which jobs ended, from 1 */
	_Atomic unsigned *ended_count;
};

static int prepare(struct prefetch_job *job)
{
	struct fork *fork = (struct fork *)job;

	sem_post(&fork->preparing);
	sem_wait(&fork->may_prepare);
	if (fork->prepared == 0)
		job->plan = &fork->plan;
	return fork->prepared;
}

static void done(struct prefetch_job *job, int result)
{
	struct fork *fork = (struct fork *)job;

	fork->result = result;
	fork->order = atomic_fetch_add(fork->ended_count, 1) + 1;
	sem_post(&fork->ended);
}

static _Atomic unsigned ended_count;
static struct keeper *keeper;

/* Two regions of PAGES pages each over one image, every page of which is SPEC's to spoil. No run yet. */
static struct fork *fork_new(const char *spec)
{
	struct region *regions = calloc(2, sizeof *regions);
	struct fork *fork = calloc(1, sizeof *fork);
	struct source *inner;

	assert_non_null(regions);
	assert_non_null(fork);
	for (uint64_t i = 0; i < 2; i++)
		regions[i] = (struct region){
			.address = (1 + i) << 30, .size = PAGES * PAGE, .page_size = PAGE, .first_page = i * PAGES
		};
	assert_int_equal(guest_memory_new(open("/dev/null", O_RDONLY | O_CLOEXEC), regions, 2, &fork->job.memory), 0);
	assert_int_equal(source_null_new(PAGES * PAGE, &inner, NULL), 0);
	assert_int_equal(source_inject_new(inner, spec, &fork->job.source, NULL), 0);
	sem_init(&fork->preparing, 0, 0);
	sem_init(&fork->may_prepare, 0, 0);
	sem_init(&fork->ended, 0, 0);
	fork->plan.runs = fork->runs;
	fork->job.plan = &fork->plan;
	fork->job.prepare = prepare;
	fork->job.done = done;
	fork->ended_count = &ended_count;
	return fork;
}

static void fork_free(struct fork *fork)
{
	guest_memory_free(fork->job.memory);
	source_close(fork->job.source);
	sem_destroy(&fork->preparing);
	sem_destroy(&fork->may_prepare);
	sem_destroy(&fork->ended);
	free(fork);
}

static void add_run(struct fork *fork, uint64_t page, uint64_t count)
{
	fork->runs[fork->plan.count++] = (struct plan_run){ .page = page, .count = count };
	fork->plan.pages += count;
}

/* From here on putting a page there is skipping it. */
static void unmap_all(struct fork *fork)
{
	fork->job.memory->fixed_map = false;
	assert_int_equal(address_map_unmap(&fork->job.memory->map, 0, UINT64_MAX), 0);
}

static void set_pages(struct fork *fork, uint64_t first, uint64_t count, enum page_state to)
{
	assert_int_equal(page_states_set(fork->job.memory->states, first, count, to, NULL), 0);
}

struct counts {
	uint64_t copied, present, removed, skipped, unreadable;
};

static void assert_counts(const struct fork *fork, struct counts expected)
{
	assert_int_equal(fork->job.copied, expected.copied);
	assert_int_equal(fork->job.present, expected.present);
	assert_int_equal(fork->job.removed, expected.removed);
	assert_int_equal(fork->job.skipped, expected.skipped);
	assert_int_equal(fork->job.unreadable, expected.unreadable);
}

static int make(void **state)
{
	struct prefetch_engine *engine;

	ended_count = 0;
	assert_int_equal(prefetch_engine_new(2, keeper, &engine, NULL), 0);
	*state = engine;
	return 0;
}

static int unmake(void **state)
{
	prefetch_engine_free(*state);
	return 0;
}

static int run(struct prefetch_engine *engine, struct fork *fork)
{
	prefetch_engine_submit(engine, &fork->job);
	sem_wait(&fork->ended);
	return fork->result;
}

static void test_empty_plan(void **state)
{
	struct fork *fork = fork_new("error=0+1");

	fork->job.copied = 7; /* left from an earlier use */
	assert_int_equal(run(*state, fork), 0);
	assert_counts(fork, (struct counts){ 0 });
	fork_free(fork);
}

/* Of pages that are there, coming or removed none is read: every read of this image fails. */
static void test_settled_pages_are_stepped_over(void **state)
{
	struct fork *fork = fork_new("error=0+0x7fffffffffffffff");

	set_pages(fork, 0, 100, PAGE_THERE);
	set_pages(fork, 100, 3, PAGE_COMING);
	set_pages(fork, 103, 897, PAGE_REMOVED);
	set_pages(fork, PAGES, 40, PAGE_REMOVED);
	set_pages(fork, PAGES + 40, 60, PAGE_THERE);
	add_run(fork, 0, 1000);
	add_run(fork, PAGES, 100);
	assert_int_equal(run(*state, fork), 0);
	assert_counts(fork, (struct counts){ .present = 163, .removed = 937 });
	for (uint64_t page = 103; page < 1000; page++)
		assert_int_equal(page_states_get(fork->job.memory->states, page), PAGE_REMOVED);
	fork_free(fork);
}

static void test_unmapped_pages_are_skipped(void **state)
{
	struct fork *fork = fork_new("delay=0us");

	unmap_all(fork);
	set_pages(fork, 500, 10, PAGE_REMOVED);
	add_run(fork, 0, PAGES);
	add_run(fork, PAGES + 3, 5);
	assert_int_equal(run(*state, fork), 0);
	assert_counts(fork, (struct counts){ .skipped = PAGES - 10 + 5, .removed = 10 });
	fork_free(fork);
}

/* Two bad pages cost themselves only, wherever the engine's own steps begin and end; the job ends with their error. */
static void test_unreadable_pages(void **state)
{
	struct fork *fork = fork_new("error=409600+1,error=1232895+2");

	unmap_all(fork);
	add_run(fork, 0, 1000);
	assert_int_equal(run(*state, fork), -EIO);
	assert_counts(fork, (struct counts){ .skipped = 997, .unreadable = 3 });
	fork_free(fork);
}

static void test_image_cut_short(void **state)
{
	struct scratch scratch;
	char path[128];

	scratch_new(&scratch);
	write_image(scratch_path(&scratch, "image", path), 100 * PAGE);
	struct fork *fork = fork_new("delay=0us");
	source_close(fork->job.source);
	assert_int_equal(source_file_new(open(path, O_RDONLY | O_CLOEXEC), &fork->job.source, NULL), 0);
	unmap_all(fork);
	add_run(fork, 0, 100);

	source_refresh(fork->job.source);
	assert_int_equal(run(*state, fork), 0);
	assert_counts(fork, (struct counts){ .skipped = 100 });

	assert_int_equal(truncate(path, 60 * PAGE + 1), 0);
	fork->job.source->changed = true; /* as the keeper would say; the mapping is not looked at any more */
	assert_int_equal(run(*state, fork), -ENODATA);
	assert_counts(fork, (struct counts){ .skipped = 60, .unreadable = 40 });
	fork_free(fork);
	scratch_remove(&scratch);
}

/* What can't be put in at all ends the job at once, with the reason. */
static void test_nowhere_to_put_pages(void **state)
{
	struct fork *fork = fork_new("delay=0us");

	add_run(fork, 0, PAGES);
	assert_int_equal(run(*state, fork), -ENOTTY);
	assert_counts(fork, (struct counts){ 0 });
	assert_int_equal(page_states_run(fork->job.memory->states, 0, PAGES, PAGE_ABSENT), PAGES);
	fork_free(fork);
}

static void test_prepared_on_a_worker(void **state)
{
	struct fork *fork = fork_new("error=0+1");

	fork->job.plan = NULL;
	set_pages(fork, 0, 10, PAGE_THERE);
	add_run(fork, 0, 10);
	sem_post(&fork->may_prepare);
	assert_int_equal(run(*state, fork), 0);
	assert_counts(fork, (struct counts){ .present = 10 });
	fork_free(fork);
}

static void test_prepare_fails(void **state)
{
	struct fork *fork = fork_new("error=0+1");

	fork->job.plan = NULL;
	fork->prepared = -EBADMSG;
	sem_post(&fork->may_prepare);
	assert_int_equal(run(*state, fork), -EBADMSG);
	assert_counts(fork, (struct counts){ 0 });
	assert_null(fork->job.plan);
	fork_free(fork);
}

/* A job is its maker's again when it is done: also to be submitted once more. */
static void test_submitted_again(void **state)
{
	struct fork *fork = fork_new("error=0+1");

	set_pages(fork, 0, 10, PAGE_THERE);
	add_run(fork, 0, 10);
	for (unsigned i = 0; i < 50; i++) {
		assert_int_equal(run(*state, fork), 0);
		assert_counts(fork, (struct counts){ .present = 10 });
	}
	fork_free(fork);
}

static void test_many_jobs(void **state)
{
	struct fork *forks[64];

	for (unsigned i = 0; i < 64; i++) {
		forks[i] = fork_new("delay=0us");
		unmap_all(forks[i]);
		add_run(forks[i], i, 1000 + i);
		add_run(forks[i], PAGES + i, 2000);
		prefetch_engine_submit(*state, &forks[i]->job);
	}
	for (unsigned i = 0; i < 64; i++) {
		sem_wait(&forks[i]->ended);
		assert_int_equal(forks[i]->result, 0);
		assert_counts(forks[i], (struct counts){ .skipped = 3000 + i });
		fork_free(forks[i]);
	}
	assert_int_equal(ended_count, 64);
}

/* One worker, a long job and then a short one: the short one does not wait for the long one's end. */
static void test_forks_take_turns(void **state)
{
	struct prefetch_engine *engine;
	struct fork *longer = fork_new("delay=0us"), *shorter = fork_new("delay=0us");

	(void)state;
	ended_count = 0;
	unmap_all(longer);
	unmap_all(shorter);
	add_run(longer, 0, PAGES);
	add_run(longer, PAGES, PAGES);
	add_run(shorter, 0, 10);
	longer->job.plan = NULL;
	assert_int_equal(prefetch_engine_new(1, keeper, &engine, NULL), 0);
	prefetch_engine_submit(engine, &longer->job);
	sem_wait(&longer->preparing);
	prefetch_engine_submit(engine, &shorter->job);
	sem_post(&longer->may_prepare);
	sem_wait(&longer->ended);
	sem_wait(&shorter->ended);
	assert_int_equal(shorter->order, 1);
	assert_int_equal(longer->order, 2);
	assert_counts(longer, (struct counts){ .skipped = 2 * PAGES });
	prefetch_engine_free(engine);
	fork_free(longer);
	fork_free(shorter);
}

/* A job under way, one that waits, and one whose plan is not made yet: all are done when the engine is gone. */
static void test_stopping_ends_every_job(void **state)
{
	struct prefetch_engine *engine;
	struct fork *forks[3];

	(void)state;
	assert_int_equal(prefetch_engine_new(1, keeper, &engine, NULL), 0);
	for (unsigned i = 0; i < 3; i++) {
		/* A hundred seconds, if it were let. */
		forks[i] = fork_new("delay=10ms,error=0+0x7fffffffffffffff");
		add_run(forks[i], 0, PAGES);
		if (i != 1)
			forks[i]->job.plan = NULL;
		sem_post(&forks[i]->may_prepare);
		prefetch_engine_submit(engine, &forks[i]->job);
	}
	sem_wait(&forks[0]->preparing);
	prefetch_engine_free(engine);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(sem_trywait(&forks[i]->ended), 0);
		assert_int_equal(forks[i]->result, -ECANCELED);
		fork_free(forks[i]);
	}
	prefetch_engine_free(NULL);
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, make, unmake)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_empty_plan),
		CASE(test_settled_pages_are_stepped_over),
		CASE(test_unmapped_pages_are_skipped),
		CASE(test_unreadable_pages),
		CASE(test_image_cut_short),
		CASE(test_nowhere_to_put_pages),
		CASE(test_prepared_on_a_worker),
		CASE(test_prepare_fails),
		CASE(test_submitted_again),
		CASE(test_many_jobs),
		cmocka_unit_test(test_forks_take_turns),
		cmocka_unit_test(test_stopping_ends_every_job),
	};

	if (keeper_new(NULL, NULL, &keeper, NULL) < 0)
		return 1;
	int failed = cmocka_run_group_tests_name("engine", tests, NULL, NULL);
	keeper_free(keeper);
	return failed;
}
