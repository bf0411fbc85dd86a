/*
 * What prefetch workers do with streams as far as it needs no userfaultfd: an image that says what is read of it, and when, and memory that is
 * unmapped, so that every page that arrives is counted as skipped.
 */
#include <pthread.h>
#include <semaphore.h>

#include "prefetch/engine.h"
#include "unit/image_helpers.h"

#define PAGES	8192ull
#define READS	16 /* of one fork under way at once */
#define WINDOWS 4  /* the same, where all reads of a window can be started */

/* An image of which nothing is in memory, or all; reads of it may be held up. */
struct held_source {
	struct source source;
	pthread_mutex_t lock;
	uint64_t offsets[PAGES], lengths[PAGES]; /* as they were read */
	size_t reads;
	unsigned reading, most; /* now, and at once so far */
	bool held;
	bool in_memory;
	uint8_t advised[PAGES]; /* how often */
	bool unadvised;		/* a page was waited for that nobody had started to read */
	sem_t begun, let_go;	/* each read, where they are held */
};

static void hold(struct held_source *held)
{
	pthread_mutex_lock(&held->lock);
	bool wait = held->held;
	pthread_mutex_unlock(&held->lock);
	if (wait) {
		sem_post(&held->begun);
		sem_wait(&held->let_go);
	}
}

static int held_read_now(struct source *source, void *buffer, size_t length, uint64_t offset)
{
	struct held_source *held = (struct held_source *)source;

	(void)offset;
	if (!held->in_memory)
		return -EAGAIN;
	hold(held);
	memset(buffer, 1, length);
	return 0;
}

static int held_read(struct source *source, void *buffer, size_t length, uint64_t offset)
{
	struct held_source *held = (struct held_source *)source;

	pthread_mutex_lock(&held->lock);
	held->offsets[held->reads] = offset;
	held->lengths[held->reads++] = length;
	held->reading++;
	held->most = held->reading > held->most ? held->reading : held->most;
	pthread_mutex_unlock(&held->lock);
	hold(held);
	memset(buffer, 1, length);
	pthread_mutex_lock(&held->lock);
	held->reading--;
	pthread_mutex_unlock(&held->lock);
	return 0;
}

static void held_advise(struct source *source, size_t length, uint64_t offset)
{
	struct held_source *held = (struct held_source *)source;

	pthread_mutex_lock(&held->lock);
	for (uint64_t page = offset / PAGE; page < (offset + length) / PAGE; page++)
		held->advised[page]++;
	pthread_mutex_unlock(&held->lock);
}

static int advised_read(struct source *source, void *buffer, size_t length, uint64_t offset)
{
	struct held_source *held = (struct held_source *)source;

	pthread_mutex_lock(&held->lock);
	for (uint64_t page = offset / PAGE; page < (offset + length) / PAGE; page++)
		held->unadvised |= !held->advised[page];
	pthread_mutex_unlock(&held->lock);
	return held_read(source, buffer, length, offset);
}

static void held_close(struct source *source)
{
	struct held_source *held = (struct held_source *)source;

	pthread_mutex_destroy(&held->lock);
	sem_destroy(&held->begun);
	sem_destroy(&held->let_go);
	free(held);
}

static const struct source_ops held_ops = {
	.name = "held",
	.read_now = held_read_now,
	.read = held_read,
	.close = held_close,
};

static const struct source_ops advised_ops = {
	.name = "advised",
	.read_now = held_read_now,
	.read = advised_read,
	.advise = held_advise,
	.close = held_close,
};

struct fork {
	struct prefetch_job job; /* first: the callbacks get its address */
	struct held_source *image;
	sem_t ended;
	int result;
	unsigned order; /* in which jobs ended */
};

static _Atomic unsigned ended;

static void done(struct prefetch_job *job, int result)
{
	struct fork *fork = (struct fork *)job;

	fork->result = result;
	fork->order = ++ended;
	sem_post(&fork->ended);
}

static struct keeper *keeper;

/* A fork to which PAGES are streamed; LIST is freed. */
static struct fork *fork_new(struct hotlist *list)
{
	struct region *region = calloc(1, sizeof *region);
	struct fork *fork = calloc(1, sizeof *fork);
	struct held_source *image = calloc(1, sizeof *image);

	assert_non_null(region);
	assert_non_null(fork);
	assert_non_null(image);
	*region = (struct region){ .address = 1 << 30, .size = PAGES * PAGE, .page_size = PAGE };
	assert_int_equal(guest_memory_new(open("/dev/null", O_RDONLY | O_CLOEXEC), region, 1, &fork->job.memory), 0);
	fork->job.memory->fixed_map = false;
	assert_int_equal(address_map_unmap(&fork->job.memory->map, 0, UINT64_MAX), 0);
	image->source = (struct source){ .ops = &held_ops, .size = PAGES * PAGE };
	pthread_mutex_init(&image->lock, NULL);
	sem_init(&image->begun, 0, 0);
	sem_init(&image->let_go, 0, 0);
	fork->image = image;
	fork->job.source = &image->source;
	sem_init(&fork->ended, 0, 0);
	assert_int_equal(stream_new(list, region, 1, &fork->job.stream, NULL), 0);
	hotlist_free(list);
	fork->job.done = done;
	return fork;
}

static void fork_free(struct fork *fork)
{
	stream_free(fork->job.stream);
	guest_memory_free(fork->job.memory);
	source_close(fork->job.source);
	sem_destroy(&fork->ended);
	free(fork);
}

/* Page numbers FIRST, FIRST + STEP … */
static struct hotlist *row(uint64_t first, uint64_t count, int64_t step)
{
	struct hotlist *list = hotlist_new();

	assert_non_null(list);
	for (uint64_t i = 0; i < count; i++)
		assert_int_equal(hotlist_add(list, 0, (first + i * (uint64_t)step) * PAGE), 0);
	return list;
}

static struct stream_figures figures(const struct fork *fork)
{
	struct stream_figures f;

	stream_get_figures(fork->job.stream, &f);
	assert_int_equal(f.planned,
			 f.prefetched + f.late + f.present + f.removed + f.skipped + f.unreadable + f.pending);
	return f;
}

/* Nothing stays held for good. */
static void let_all_go(struct fork *fork)
{
	pthread_mutex_lock(&fork->image->lock);
	fork->image->held = false;
	pthread_mutex_unlock(&fork->image->lock);
	for (unsigned i = 0; i < 100; i++)
		sem_post(&fork->image->let_go);
}

static void await(struct fork *fork)
{
	sem_wait(&fork->ended);
	assert_int_equal(fork->result, 0);
	assert_int_equal(figures(fork).pending, 0);
}

static struct prefetch_engine *engine_new(unsigned workers)
{
	struct prefetch_engine *engine;

	assert_int_equal(prefetch_engine_new(workers, keeper, &engine, NULL), 0);
	return engine;
}

static void test_every_page_in_memory(void **state)
{
	struct prefetch_engine *engine = engine_new(2);
	struct fork *fork = fork_new(row(PAGES - 1, PAGES, -1));

	(void)state;
	fork->image->in_memory = true;
	prefetch_engine_submit(engine, &fork->job);
	await(fork);
	assert_int_equal(figures(fork).skipped, PAGES);
	assert_int_equal(fork->job.skipped, PAGES);
	prefetch_engine_free(engine);
	fork_free(fork);
}

/*
 * Single pages, far from each other, so that each is a read: so many are under way at once, and none is begun before one that stands more
 * than these before it in the list.
 */
static void test_reads_follow_the_list(void **state)
{
	struct prefetch_engine *engine = engine_new(2);
	struct fork *fork = fork_new(row(PAGES - 2, PAGES / 2, -2));
	struct held_source *image = fork->image;

	(void)state;
	image->held = true;
	prefetch_engine_submit(engine, &fork->job);
	for (unsigned i = 0; i < READS; i++)
		sem_wait(&image->begun);
	for (uint64_t i = READS; i < PAGES / 2; i++) {
		sem_post(&image->let_go);
		sem_wait(&image->begun);
	}
	let_all_go(fork);
	await(fork);
	assert_int_equal(image->reads, PAGES / 2);
	assert_int_equal(image->most, READS);
	for (size_t i = 0; i < image->reads; i++) {
		assert_true((PAGES - 2 - image->offsets[i] / PAGE) / 2 < i + READS);
		assert_int_equal(image->lengths[i], PAGE);
	}
	prefetch_engine_free(engine);
	fork_free(fork);
}

/* Neighbours in the list come by one read, whatever their order there. */
static void test_neighbours_are_one_read(void **state)
{
	struct prefetch_engine *engine = engine_new(2);
	struct hotlist *list = hotlist_new();

	(void)state;
	for (uint64_t i = 0; i < 100; i++)
		for (uint64_t k = 4; k-- > 0;)
			assert_int_equal(hotlist_add(list, 0, ((99 - i) * 10 + k) * PAGE), 0);
	struct fork *fork = fork_new(list);
	prefetch_engine_submit(engine, &fork->job);
	await(fork);
	assert_int_equal(fork->image->reads, 100);
	for (size_t i = 0; i < fork->image->reads; i++)
		assert_int_equal(fork->image->lengths[i], 4 * PAGE);
	prefetch_engine_free(engine);
	fork_free(fork);
}

/* A source that can start reads gets those of a whole window before any of them is waited for, and few windows at a time. */
static void test_reads_of_a_window_are_started_together(void **state)
{
	struct prefetch_engine *engine = engine_new(2);
	struct fork *fork = fork_new(row(PAGES - 2, PAGES / 2, -2));
	struct held_source *image = fork->image;

	(void)state;
	image->source.ops = &advised_ops;
	image->held = true;
	prefetch_engine_submit(engine, &fork->job);
	for (unsigned i = 0; i < WINDOWS; i++)
		sem_wait(&image->begun);
	pthread_mutex_lock(&image->lock);
	unsigned started = 0;
	for (uint64_t page = 0; page < PAGES; page++)
		started += image->advised[page];
	pthread_mutex_unlock(&image->lock);
	assert_int_equal(started, WINDOWS * STREAM_WINDOW);
	/* Not to the end: there is less under way there. */
	for (uint64_t i = WINDOWS; i < PAGES / 2 - WINDOWS * STREAM_WINDOW; i++) {
		sem_post(&image->let_go);
		sem_wait(&image->begun);
	}
	let_all_go(fork);
	await(fork);
	assert_false(image->unadvised);
	assert_int_equal(image->most, WINDOWS);
	for (uint64_t page = 0; page < PAGES; page++)
		assert_int_equal(image->advised[page], page % 2 ? 0 : 1);
	assert_int_equal(figures(fork).skipped, PAGES / 2);
	prefetch_engine_free(engine);
	fork_free(fork);
}

/* While reads are held up, a demand fault far ahead decides what is read next. */
static void test_a_demand_fault_moves_what_is_read(void **state)
{
	struct prefetch_engine *engine = engine_new(2);
	struct fork *fork = fork_new(row(0, 1000, 2));
	struct held_source *image = fork->image;

	(void)state;
	image->held = true;
	prefetch_engine_submit(engine, &fork->job);
	sem_wait(&image->begun);
	stream_ask(fork->job.stream, 2 * 700);
	page_states_set(fork->job.memory->states, 2 * 700, 1, PAGE_THERE, NULL);
	/* Those that were taken before it are some of the first; whoever is let go takes what lies behind it. */
	for (unsigned i = 0; i < 20; i++) {
		sem_post(&image->let_go);
		sem_wait(&image->begun);
	}
	pthread_mutex_lock(&image->lock);
	uint64_t first_far = 0, near = 0;
	for (size_t i = 0; i < image->reads; i++) {
		uint64_t place = image->offsets[i] / PAGE / 2;
		assert_true(place < 20 || (place > 700 && place < 740));
		near += place < 20;
		first_far = first_far ?: place > 700 ? place : 0;
	}
	pthread_mutex_unlock(&image->lock);
	assert_true(near < 20);
	assert_true(first_far > 700);
	let_all_go(fork);
	await(fork);
	assert_int_equal(figures(fork).moves, 1);
	assert_int_equal(figures(fork).late, 1);
	assert_int_equal(figures(fork).skipped, 999);
	prefetch_engine_free(engine);
	fork_free(fork);
}

/* However many forks wait for their disks, whoever's pages are in memory gets them. */
static void test_slow_forks_hold_up_no_other(void **state)
{
	struct prefetch_engine *engine = engine_new(2);
	struct fork *slow[40], *fast[3];

	(void)state;
	for (unsigned i = 0; i < 40; i++) {
		slow[i] = fork_new(row(0, 20, 2));
		slow[i]->image->held = true;
		prefetch_engine_submit(engine, &slow[i]->job);
		if (i == 0)
			sem_wait(&slow[i]->image->begun);
	}
	for (unsigned i = 0; i < 3; i++) {
		fast[i] = fork_new(row(0, PAGES, 1));
		fast[i]->image->in_memory = true;
	}
	/* One at a time finds all threads that may wait for disks waiting. */
	for (unsigned i = 0; i < 3; i++) {
		prefetch_engine_submit(engine, &fast[i]->job);
		await(fast[i]);
		fork_free(fast[i]);
	}
	for (unsigned i = 0; i < 40; i++)
		let_all_go(slow[i]);
	for (unsigned i = 0; i < 40; i++) {
		await(slow[i]);
		assert_int_equal(figures(slow[i]).skipped, 20);
	}
	prefetch_engine_free(engine);
	for (unsigned i = 0; i < 40; i++)
		fork_free(slow[i]);
}

/* A long stream and a short one, that are in memory: the short one does not wait for the long one's end. */
static void test_streams_take_turns(void **state)
{
	struct prefetch_engine *engine = engine_new(1);
	struct fork *longer = fork_new(row(0, PAGES, 1)), *shorter = fork_new(row(0, 10, 1));

	(void)state;
	ended = 0;
	longer->image->in_memory = shorter->image->in_memory = true;
	longer->image->held = true; /* in its first turn, until the other is in line */
	prefetch_engine_submit(engine, &longer->job);
	sem_wait(&longer->image->begun);
	prefetch_engine_submit(engine, &shorter->job);
	let_all_go(longer);
	await(shorter);
	await(longer);
	assert_int_equal(shorter->order, 1);
	assert_int_equal(longer->order, 2);
	prefetch_engine_free(engine);
	fork_free(longer);
	fork_free(shorter);
}

static void *stop(void *engine)
{
	prefetch_engine_free(engine);
	return NULL;
}

static void test_stopping_ends_streams(void **state)
{
	struct prefetch_engine *engine = engine_new(2);
	struct fork *forks[30];

	(void)state;
	for (unsigned i = 0; i < 30; i++) {
		forks[i] = fork_new(row(0, 4000, 2));
		forks[i]->image->held = true;
		prefetch_engine_submit(engine, &forks[i]->job);
	}
	sem_wait(&forks[0]->image->begun);
	for (unsigned i = 0; i < 30; i++)
		for (unsigned n = 0; n < 50; n++)
			sem_post(&forks[i]->image->let_go); /* so many reads, and no more until the engine is to stop */
	pthread_t thread;
	assert_int_equal(pthread_create(&thread, NULL, stop, engine), 0);
	for (unsigned i = 0; i < 30; i++)
		let_all_go(forks[i]);
	pthread_join(thread, NULL);
	for (unsigned i = 0; i < 30; i++) {
		assert_int_equal(sem_trywait(&forks[i]->ended), 0);
		assert_true(forks[i]->result == -ECANCELED || figures(forks[i]).pending == 0);
		(void)figures(forks[i]); /* they add up all the same */
		fork_free(forks[i]);
	}
}

/* A job whose stream was made on a worker, and one whose stream could not be. */
static struct stream *prepared;

static int prepare(struct prefetch_job *job)
{
	job->stream = prepared;
	return prepared ? 0 : -EBADMSG;
}

static void test_prepared_on_a_worker(void **state)
{
	struct prefetch_engine *engine = engine_new(2);
	struct fork *fork = fork_new(row(0, 100, 1));

	(void)state;
	fork->image->in_memory = true;
	prepared = fork->job.stream;
	fork->job.stream = NULL;
	fork->job.prepare = prepare;
	prefetch_engine_submit(engine, &fork->job);
	await(fork);
	fork->job.stream = NULL;
	stream_free(TAKE_PTR(prepared));
	prefetch_engine_submit(engine, &fork->job);
	sem_wait(&fork->ended);
	assert_int_equal(fork->result, -EBADMSG);
	prefetch_engine_free(engine);
	fork_free(fork);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_page_in_memory),
		cmocka_unit_test(test_reads_follow_the_list),
		cmocka_unit_test(test_neighbours_are_one_read),
		cmocka_unit_test(test_reads_of_a_window_are_started_together),
		cmocka_unit_test(test_a_demand_fault_moves_what_is_read),
		cmocka_unit_test(test_slow_forks_hold_up_no_other),
		cmocka_unit_test(test_streams_take_turns),
		cmocka_unit_test(test_stopping_ends_streams),
		cmocka_unit_test(test_prepared_on_a_worker),
	};

	if (keeper_new(NULL, NULL, &keeper, NULL) < 0)
		return 1;
	int failed = cmocka_run_group_tests_name("engine_streams", tests, NULL, NULL);
	keeper_free(keeper);
	return failed;
}
