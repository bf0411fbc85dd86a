/* The keeper tells of every change to a guarded image, and looks again at what is in memory when it is asked to. */
#include <pthread.h>
#include <semaphore.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "template/keeper.h"
#include "unit/image_helpers.h"

#define SIZE (4 * PAGE)

struct world {
	struct scratch scratch;
	char path[128];
	int fd; /* to change the image */
	struct keeper *keeper;
	struct template *template;
	unsigned changes;
	const struct template *changed; /* the last one */
};

static void note_change(void *data, const struct template *template)
{
	struct world *world = data;

	world->changes++;
	world->changed = template;
}

static struct template *open_template(const char *name, const char *path)
{
	struct template *template;
	struct error err = { .message = "" };

	if (template_open(name, path, NULL, NULL, NULL, &template, &err) < 0)
		fail_msg("%s", err.message);
	return template;
}

static int make(void **state)
{
	struct world *world = calloc(1, sizeof *world);

	assert_non_null(world);
	scratch_new(&world->scratch);
	write_image(scratch_path(&world->scratch, "image", world->path), SIZE);
	world->fd = open(world->path, O_RDWR | O_CLOEXEC);
	assert_true(world->fd >= 0);
	assert_int_equal(keeper_new(note_change, world, &world->keeper, NULL), 0);
	world->template = open_template("base", world->path);
	*state = world;
	return 0;
}

static int unmake(void **state)
{
	struct world *world = *state;

	keeper_unguard(world->keeper, world->template);
	keeper_free(world->keeper);
	template_unref(world->template);
	close(world->fd);
	scratch_remove(&world->scratch);
	free(world);
	return 0;
}

static bool readable(const struct world *world)
{
	struct pollfd pollfd = { .fd = keeper_fd(world->keeper), .events = POLLIN };

	return poll(&pollfd, 1, 0) == 1;
}

/* The word of a change is there before the call that made it has returned. */
static void assert_told(struct world *world, unsigned changes)
{
	assert_true(readable(world));
	keeper_look(world->keeper);
	assert_int_equal(world->changes, changes);
}

static void guard(struct world *world)
{
	keeper_guard(world->keeper, world->template);
	assert_true(world->template->source->guarded);
	assert_false(readable(world));
}

static void test_unguarded_at_first(void **state)
{
	struct world *world = *state;

	assert_false(world->template->source->guarded);
	assert_int_equal(pwrite(world->fd, "x", 1, 0), 1);
	assert_false(readable(world));
	keeper_look(world->keeper);
	assert_int_equal(world->changes, 0);
}

static void test_a_look_at_nothing_changes_nothing(void **state)
{
	struct world *world = *state;

	guard(world);
	keeper_look(world->keeper);
	assert_true(world->template->source->guarded);
	assert_int_equal(world->changes, 0);
	keeper_guard(world->keeper, world->template); /* again is fine */
	assert_true(world->template->source->guarded);
}

static void test_write(void **state)
{
	struct world *world = *state;

	guard(world);
	assert_int_equal(pwrite(world->fd, "x", 1, PAGE), 1);
	assert_told(world, 1);
	assert_ptr_equal(world->changed, world->template);
	assert_false(world->template->source->guarded);
	keeper_look(world->keeper);
	assert_int_equal(world->changes, 1);
}

static void test_truncate(void **state)
{
	struct world *world = *state;

	guard(world);
	assert_int_equal(ftruncate(world->fd, PAGE), 0);
	assert_told(world, 1);
	assert_false(world->template->source->guarded);
}

static void test_truncate_by_name(void **state)
{
	struct world *world = *state;

	guard(world);
	assert_int_equal(truncate(world->path, SIZE + 1), 0);
	assert_told(world, 1);
	assert_false(world->template->source->guarded);
}

static void test_opened_with_truncation(void **state)
{
	struct world *world = *state;

	guard(world);
	int fd = open(world->path, O_WRONLY | O_TRUNC | O_CLOEXEC);
	assert_true(fd >= 0);
	close(fd);
	assert_told(world, 1);
	assert_false(world->template->source->guarded);
}

static void test_hole_punched(void **state)
{
	struct world *world = *state;

	guard(world);
	if (fallocate(world->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE) < 0) {
		print_message("the file system of /tmp punches no holes\n");
		skip();
	}
	assert_told(world, 1);
	assert_false(world->template->source->guarded);
}

/* Reading, linking and closing are no changes. */
static void test_harmless(void **state)
{
	struct world *world = *state;
	uint8_t buffer[PAGE];
	char path[128];

	guard(world);
	assert_int_equal(pread(world->fd, buffer, PAGE, 0), PAGE);
	assert_int_equal(link(world->path, scratch_path(&world->scratch, "link", path)), 0);
	assert_int_equal(chmod(world->path, 0400), 0);
	assert_int_equal(unlink(world->path), 0);
	keeper_look(world->keeper);
	assert_int_equal(world->changes, 0);
	assert_true(world->template->source->guarded);
}

static void test_changed_before_guarding(void **state)
{
	struct world *world = *state;

	assert_int_equal(pwrite(world->fd, "x", 1, PAGE), 1);
	keeper_guard(world->keeper, world->template);
	assert_false(world->template->source->guarded);
	assert_int_equal(world->template->watch, -1);

	/* Nobody watches it either: what more is written wakes nobody. */
	assert_int_equal(pwrite(world->fd, "y", 1, PAGE), 1);
	keeper_look(world->keeper);
	assert_false(readable(world));
	assert_int_equal(world->changes, 0);
}

static void test_not_guarded_again_after_a_change(void **state)
{
	struct world *world = *state;

	guard(world);
	assert_int_equal(pwrite(world->fd, "x", 1, PAGE), 1);
	assert_told(world, 1);
	keeper_guard(world->keeper, world->template);
	assert_false(world->template->source->guarded);
	keeper_look(world->keeper);
	assert_false(world->template->source->guarded);
	assert_int_equal(world->changes, 1);
}

/* A writer that goes on writes to an image that nobody believes any more: it must not wake every pager each time. */
static void test_quiet_after_a_change(void **state)
{
	struct world *world = *state;

	guard(world);
	assert_int_equal(pwrite(world->fd, "x", 1, PAGE), 1);
	assert_told(world, 1);
	keeper_look(world->keeper); /* takes what the end of the watch itself may have left */
	assert_int_equal(pwrite(world->fd, "y", 1, PAGE), 1);
	assert_false(readable(world));
}

static void test_unguard(void **state)
{
	struct world *world = *state;

	guard(world);
	keeper_unguard(world->keeper, world->template);
	assert_false(world->template->source->guarded);
	keeper_look(world->keeper);
	assert_int_equal(pwrite(world->fd, "x", 1, PAGE), 1);
	assert_false(readable(world));
	keeper_look(world->keeper);
	assert_int_equal(world->changes, 0);
	assert_false(world->template->source->guarded);
	keeper_unguard(world->keeper, world->template); /* twice is fine */
}

/* A change that was on its way when its template went is nobody's. */
static void test_unguard_with_a_change_unread(void **state)
{
	struct world *world = *state;

	guard(world);
	assert_int_equal(pwrite(world->fd, "x", 1, PAGE), 1);
	keeper_unguard(world->keeper, world->template);
	keeper_look(world->keeper);
	assert_int_equal(world->changes, 0);
	assert_false(world->template->source->guarded);
}

static void test_two_templates_on_one_image(void **state)
{
	struct world *world = *state;
	_cleanup_template_ struct template *other = open_template("other", world->path);

	guard(world);
	keeper_guard(world->keeper, other);
	assert_true(other->source->guarded);
	assert_int_equal(pwrite(world->fd, "x", 1, PAGE), 1);
	assert_told(world, 2);
	assert_false(world->template->source->guarded);
	assert_false(other->source->guarded);
}

/* They share a watch, which the one that stays still needs. */
static void test_one_of_two_leaves(void **state)
{
	struct world *world = *state;
	struct template *other = open_template("other", world->path);

	guard(world);
	keeper_guard(world->keeper, other);
	keeper_unguard(world->keeper, other);
	assert_false(other->source->guarded);
	assert_true(world->template->source->guarded);
	template_unref(other);
	assert_int_equal(pwrite(world->fd, "x", 1, PAGE), 1);
	assert_told(world, 1);
	assert_ptr_equal(world->changed, world->template);
	assert_false(world->template->source->guarded);
}

/* A second template that is refused a guard must not take the first one's watch along. */
static void test_refused_beside_a_guarded_one(void **state)
{
	struct world *world = *state;
	_cleanup_template_ struct template *other = open_template("other", world->path);

	guard(world);
	other->size++; /* as if the image had been another when it was opened */
	keeper_guard(world->keeper, other);
	assert_false(other->source->guarded);
	assert_int_equal(pwrite(world->fd, "x", 1, PAGE), 1);
	assert_told(world, 1);
	assert_false(world->template->source->guarded);
}

static void test_other_images_are_not_concerned(void **state)
{
	struct world *world = *state;
	char path[128];

	write_image(scratch_path(&world->scratch, "second", path), SIZE);
	struct template *second = open_template("second", path);
	guard(world);
	keeper_guard(world->keeper, second);
	assert_int_equal(truncate(path, 0), 0);
	assert_told(world, 1);
	assert_ptr_equal(world->changed, second);
	assert_false(second->source->guarded);
	assert_true(world->template->source->guarded);
	template_unref(second);
	assert_int_equal(pwrite(world->fd, "x", 1, PAGE), 1);
	assert_told(world, 2);
}

/* More words than the kernel keeps: it says so, and then every image may have changed. */
static void test_lost_words(void **state)
{
	struct world *world = *state;
	char path[128];
	unsigned limit = 16384;

	_cleanup_fclose_ FILE *f = fopen("/proc/sys/fs/inotify/max_queued_events", "re");
	if (f && fscanf(f, "%u", &limit) == 1 && limit > 200000) {
		print_message("fs.inotify.max_queued_events is too large to be reached quickly\n");
		skip();
	}
	write_image(scratch_path(&world->scratch, "second", path), SIZE);
	struct template *second = open_template("second", path);
	_cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);
	char third_path[128];
	write_image(scratch_path(&world->scratch, "third", third_path), SIZE);
	struct template *third = open_template("third", third_path);
	guard(world);
	keeper_guard(world->keeper, second);
	keeper_guard(world->keeper, third);
	/* In turn, for the kernel folds a word into one just like it before it. */
	for (unsigned i = 0; i < limit / 2 + 10; i++) {
		assert_int_equal(pwrite(fd, "x", 1, 0), 1);
		assert_int_equal(pwrite(world->fd, "x", 1, 0), 1);
	}
	assert_true(readable(world));
	keeper_look(world->keeper);
	assert_int_equal(world->changes, 3);
	assert_false(third->source->guarded);
	keeper_unguard(world->keeper, second);
	keeper_unguard(world->keeper, third);
	template_unref(second);
	template_unref(third);
}

/* ---- looking again ---- */

/* Stands in front of a template's source, so that the test sees each refresh, and can hold it up. */
struct observed {
	struct source source;
	struct source *inner;
	sem_t begun, go_on;
	unsigned refreshes;
};

static void observed_refresh(struct source *source)
{
	struct observed *observed = (struct observed *)source;

	sem_post(&observed->begun);
	sem_wait(&observed->go_on);
	source_refresh(observed->inner);
	observed->refreshes++;
	sem_post(&observed->begun);
}

static void observed_close(struct source *source)
{
	struct observed *observed = (struct observed *)source;

	source_close(observed->inner);
	sem_destroy(&observed->begun);
	sem_destroy(&observed->go_on);
	free(observed);
}

static const struct source_ops observed_ops = { .name = "observed",
						.refresh = observed_refresh,
						.close = observed_close };

static struct observed *observe(struct template *template)
{
	struct observed *observed = calloc(1, sizeof *observed);

	assert_non_null(observed);
	observed->source = (struct source){ .ops = &observed_ops, .size = template->source->size };
	observed->inner = template->source;
	sem_init(&observed->begun, 0, 0);
	sem_init(&observed->go_on, 0, 0);
	template->source = &observed->source;
	return observed;
}

static void test_ask_refreshes(void **state)
{
	struct world *world = *state;
	struct observed *observed = observe(world->template);
	uint8_t buffer[SIZE];

	assert_int_equal(pread(world->fd, buffer, SIZE, 0), SIZE);
	assert_null(source_peek(observed->inner, PAGE, 0, now_ns()));
	assert_true(observed->inner->stale);
	keeper_ask(world->keeper, world->template);
	sem_wait(&observed->begun);
	sem_post(&observed->go_on);
	sem_wait(&observed->begun);
	assert_false(observed->inner->stale);
	const void *bytes = source_peek(observed->inner, PAGE, PAGE, now_ns());
	assert_non_null(bytes);
	assert_image(bytes, PAGE, PAGE, SIZE);
}

/* The first is held up; whoever is asked for meanwhile stands in line once, and is not lost. */
static void test_in_line_once(void **state)
{
	struct world *world = *state;
	struct template *second = open_template("second", world->path), *third = open_template("third", world->path);
	struct observed *a = observe(world->template), *b = observe(second), *c = observe(third);

	keeper_ask(world->keeper, world->template);
	sem_wait(&a->begun);
	for (unsigned i = 0; i < 5; i++) {
		keeper_ask(world->keeper, second);
		keeper_ask(world->keeper, third);
		keeper_ask(world->keeper, world->template);
	}
	sem_post(&a->go_on);
	sem_post(&b->go_on);
	sem_post(&c->go_on);
	sem_wait(&a->begun);
	for (unsigned i = 0; i < 2; i++) {
		sem_wait(&b->begun);
		sem_wait(&c->begun);
	}
	assert_int_equal(a->refreshes, 1);
	assert_int_equal(b->refreshes, 1);
	assert_int_equal(c->refreshes, 1);
	template_unref(second);
	template_unref(third);
}

/* The line holds the templates, whatever becomes of those who asked; who stops does not look any more, and lets go of them. */
static void test_freed_with_a_line(void **state)
{
	struct world *world = *state;
	struct template *second = open_template("second", world->path);
	struct observed *observed = observe(world->template);
	int fd = second->memory_fd;

	keeper_ask(world->keeper, world->template);
	sem_wait(&observed->begun);
	keeper_ask(world->keeper, second);
	template_unref(second);
	assert_true(fcntl(fd, F_GETFD) >= 0);
	sem_post(&observed->go_on);
	keeper_free(world->keeper);
	assert_int_equal(fcntl(fd, F_GETFD), -1);
	assert_int_equal(observed->refreshes, 1);
	assert_int_equal(keeper_new(note_change, world, &world->keeper, NULL), 0);
	keeper_free(NULL);
}

/* Threads ask, look, guard and unguard at once, as pagers and the main loop do. */
struct crowd {
	struct world *world;
	struct template *own;
};

static void *take_part(void *data)
{
	struct crowd *crowd = data;

	for (unsigned i = 0; i < 300; i++) {
		keeper_guard(crowd->world->keeper, crowd->own);
		keeper_ask(crowd->world->keeper, crowd->own);
		keeper_ask(crowd->world->keeper, crowd->world->template);
		keeper_look(crowd->world->keeper);
		keeper_unguard(crowd->world->keeper, crowd->own);
	}
	return NULL;
}

static void test_many_threads(void **state)
{
	struct world *world = *state;
	struct crowd crowds[3];
	pthread_t threads[3];

	keeper_guard(world->keeper, world->template);
	for (unsigned i = 0; i < 3; i++) {
		crowds[i] = (struct crowd){ .world = world, .own = open_template("own", world->path) };
		assert_int_equal(pthread_create(&threads[i], NULL, take_part, &crowds[i]), 0);
	}
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(pthread_join(threads[i], NULL), 0);
	keeper_look(world->keeper);
	assert_int_equal(world->changes, 0);
	assert_true(world->template->source->guarded);
	assert_int_equal(pwrite(world->fd, "x", 1, PAGE), 1);
	assert_told(world, 1);
	for (unsigned i = 0; i < 3; i++)
		template_unref(crowds[i].own);
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, make, unmake)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_unguarded_at_first),
		CASE(test_a_look_at_nothing_changes_nothing),
		CASE(test_write),
		CASE(test_truncate),
		CASE(test_truncate_by_name),
		CASE(test_opened_with_truncation),
		CASE(test_hole_punched),
		CASE(test_harmless),
		CASE(test_changed_before_guarding),
		CASE(test_not_guarded_again_after_a_change),
		CASE(test_quiet_after_a_change),
		CASE(test_unguard),
		CASE(test_unguard_with_a_change_unread),
		CASE(test_two_templates_on_one_image),
		CASE(test_one_of_two_leaves),
		CASE(test_refused_beside_a_guarded_one),
		CASE(test_other_images_are_not_concerned),
		CASE(test_lost_words),
		CASE(test_ask_refreshes),
		CASE(test_in_line_once),
		CASE(test_freed_with_a_line),
		CASE(test_many_threads),
	};

	return cmocka_run_group_tests_name("keeper", tests, NULL, NULL);
}
