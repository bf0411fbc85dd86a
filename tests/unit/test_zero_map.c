/* Zero maps: holes and zeros are found, nothing else is; a map is kept in a file, and one that is not whole is refused. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "template/zero_map.h"

#define PAGE  4096ul
#define PAGES 700ul
/* More than a megabyte, and it ends inside its last page. */
#define SIZE (PAGES * PAGE - 1000)

struct scene {
	char dir[64], image[96], file[96];
	int fd;
	bool zero[PAGES];
	struct image_stamp stamp;
};

static int scene_new(void **state)
{
	struct scene *scene = calloc(1, sizeof *scene);
	char page[PAGE];

	assert_non_null(scene);
	snprintf(scene->dir, sizeof scene->dir, "/tmp/zero-map-XXXXXX");
	assert_non_null(mkdtemp(scene->dir));
	snprintf(scene->image, sizeof scene->image, "%s/image", scene->dir);
	snprintf(scene->file, sizeof scene->file, "%s/map", scene->dir);
	scene->fd = open(scene->image, O_RDWR | O_CREAT | O_EXCL, 0600);
	assert_true(scene->fd >= 0);
	assert_int_equal(ftruncate(scene->fd, SIZE), 0);
	for (size_t i = 0; i < PAGES; i++) {
		size_t length = i == PAGES - 1 ? SIZE % PAGE : PAGE;

		memset(page, 0, sizeof page);
		scene->zero[i] = i % 5 == 0 || i % 7 == 3 || (i > 300 && i < 400) || i == PAGES - 1;
		/* A single byte, at the page's beginning or at its end, tells it from zeros. */
		if (!scene->zero[i])
			page[i % 2 ? 0 : length - 1] = 1;
		/* Every fifth is a hole. */
		if (i % 5 != 0)
			assert_int_equal(pwrite(scene->fd, page, length, (off_t)(i * PAGE)), length);
	}
	scene->stamp = (struct image_stamp){ .size = SIZE, .modified_s = 5, .identity = { 7 } };
	*state = scene;
	return 0;
}

static int scene_free(void **state)
{
	struct scene *scene = *state;

	close(scene->fd);
	unlink(scene->image);
	unlink(scene->file);
	rmdir(scene->dir);
	free(scene);
	return 0;
}

static bool never(void *data)
{
	(void)data;
	return false;
}

static bool at_once(void *data)
{
	(void)data;
	return true;
}

static struct zero_map *scan(const struct scene *scene)
{
	struct zero_map *map = zero_map_new(SIZE);

	assert_non_null(map);
	assert_int_equal(zero_map_scan(map, scene->fd, never, NULL), 0);
	return map;
}

static void assert_right(const struct scene *scene, const struct zero_map *map)
{
	uint64_t zeros = 0;

	for (size_t i = 0; i < PAGES; i++) {
		assert_int_equal(zero_map_covers(map, PAGE, i * PAGE), scene->zero[i]);
		zeros += scene->zero[i];
	}
	assert_int_equal(zero_map_pages(map), zeros);
}

static void finds_holes_and_zeros(void **state)
{
	_cleanup_zero_map_ struct zero_map *map = scan(*state);

	assert_right(*state, map);
}

static size_t count_resident(const struct scene *scene)
{
	unsigned char there[PAGES];
	void *p = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, scene->fd, 0);
	size_t count = 0;

	assert_true(p != MAP_FAILED);
	assert_int_equal(mincore(p, SIZE, there), 0);
	for (size_t i = 0; i < PAGES; i++)
		count += there[i] & 1;
	munmap(p, SIZE);
	return count;
}

/* What is not in memory is not brought there by looking; only on a disk can it be somewhere else. */
static void leaves_the_page_cache_alone(void **state)
{
	const struct scene *scene = *state;

	assert_int_equal(fsync(scene->fd), 0);
	assert_int_equal(posix_fadvise(scene->fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	size_t before = count_resident(scene);
	_cleanup_zero_map_ struct zero_map *map = scan(scene);
	assert_right(scene, map);
	assert_int_equal(count_resident(scene), before);
}

static void a_range_is_zeros_where_all_of_it_is(void **state)
{
	_cleanup_zero_map_ struct zero_map *map = scan(*state);

	assert_true(zero_map_covers(map, 99 * PAGE, 301 * PAGE));
	assert_false(zero_map_covers(map, 100 * PAGE, 301 * PAGE + 1000));
	assert_false(zero_map_covers(map, 3 * PAGE, 300 * PAGE - PAGE));
	/* Past its end an image has nothing. */
	assert_true(zero_map_covers(map, 10 * PAGE, (PAGES - 1) * PAGE));
	assert_false(zero_map_covers(map, PAGE, PAGES * PAGE));
	assert_false(zero_map_covers(map, 0, 0));
}

static void knows_nothing_before_it_has_looked(void **state)
{
	_cleanup_zero_map_ struct zero_map *map = zero_map_new(SIZE);
	const struct scene *scene = *state;

	assert_false(zero_map_covers(map, PAGE, 0));
	/* Holes are found at once, however early it is stopped. */
	assert_int_equal(zero_map_scan(map, scene->fd, at_once, NULL), -ECANCELED);
	for (size_t i = 0; i < PAGES; i++)
		assert_true(scene->zero[i] || !zero_map_covers(map, PAGE, i * PAGE));
}

static void is_kept_in_a_file(void **state)
{
	struct scene *scene = *state;
	_cleanup_zero_map_ struct zero_map *map = scan(scene), *again = zero_map_new(SIZE);
	struct error err;

	assert_int_equal(zero_map_save(map, scene->file, &scene->stamp, &err), 0);
	assert_int_equal(zero_map_load(again, scene->file, &scene->stamp, &err), 0);
	assert_right(scene, again);
}

static void refuses(const struct scene *scene, const struct image_stamp *stamp, const char *code)
{
	_cleanup_zero_map_ struct zero_map *map = zero_map_new(SIZE);
	struct error err;

	assert_true(zero_map_load(map, scene->file, stamp, &err) < 0);
	assert_string_equal(err.code, code);
	assert_int_equal(zero_map_pages(map), 0);
}

static void is_bound_to_its_image(void **state)
{
	struct scene *scene = *state;
	_cleanup_zero_map_ struct zero_map *map = scan(scene);
	struct image_stamp other = scene->stamp;

	refuses(scene, &scene->stamp, "zero_map_missing");
	assert_int_equal(zero_map_save(map, scene->file, &scene->stamp, NULL), 0);
	other.identity[31] = 1;
	refuses(scene, &other, "zero_map_stale");
	other = scene->stamp;
	other.modified_ns++;
	refuses(scene, &other, "zero_map_stale");
}

static void every_damaged_byte_is_noticed(void **state)
{
	struct scene *scene = *state;
	_cleanup_zero_map_ struct zero_map *map = scan(scene);
	struct stat st;

	assert_int_equal(zero_map_save(map, scene->file, &scene->stamp, NULL), 0);
	_cleanup_close_ int fd = open(scene->file, O_RDWR);
	assert_int_equal(fstat(fd, &st), 0);
	for (off_t at = 0; at < st.st_size; at += at < 160 || at > 4090 ? 1 : 97) {
		uint8_t byte, other;

		assert_int_equal(pread(fd, &byte, 1, at), 1);
		other = byte ^ 0x10;
		assert_int_equal(pwrite(fd, &other, 1, at), 1);
		refuses(scene, &scene->stamp, "zero_map_damaged");
		assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	}
	assert_int_equal(ftruncate(fd, st.st_size - 8), 0);
	refuses(scene, &scene->stamp, "zero_map_damaged");
	assert_int_equal(ftruncate(fd, 100), 0);
	refuses(scene, &scene->stamp, "zero_map_damaged");
}

static void others_may_not_write_to_it(void **state)
{
	struct scene *scene = *state;
	_cleanup_zero_map_ struct zero_map *map = scan(scene);
	char real[120];

	assert_int_equal(zero_map_save(map, scene->file, &scene->stamp, NULL), 0);
	assert_int_equal(chmod(scene->file, 0622), 0);
	refuses(scene, &scene->stamp, "zero_map_damaged");
	assert_int_equal(chmod(scene->file, 0600), 0);
	snprintf(real, sizeof real, "%s.real", scene->file);
	assert_int_equal(rename(scene->file, real), 0);
	assert_int_equal(symlink(real, scene->file), 0);
	refuses(scene, &scene->stamp, "zero_map_damaged");
	assert_int_equal(unlink(real), 0);
}

static void a_place_that_cannot_be_written_to_is_named(void **state)
{
	_cleanup_zero_map_ struct zero_map *map = scan(*state);
	const struct scene *scene = *state;
	struct error err;

	assert_true(zero_map_save(map, "/nowhere/map", &scene->stamp, &err) < 0);
	assert_string_equal(err.code, "io_error");
	assert_non_null(strstr(err.message, "/nowhere/map"));
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, scene_new, scene_free)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(finds_holes_and_zeros),
		TEST(leaves_the_page_cache_alone),
		TEST(a_range_is_zeros_where_all_of_it_is),
		TEST(knows_nothing_before_it_has_looked),
		TEST(is_kept_in_a_file),
		TEST(is_bound_to_its_image),
		TEST(every_damaged_byte_is_noticed),
		TEST(others_may_not_write_to_it),
		TEST(a_place_that_cannot_be_written_to_is_named),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
