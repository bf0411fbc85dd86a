/* The identity of images: the same for the same bytes, another for others, and no trace of the looking. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "hotlist/identity.h"
#include "unit/image_helpers.h"

#define BIG_PAGES 20000u

struct identity {
	uint8_t bytes[IMAGE_IDENTITY_SIZE];
};

static struct identity identity_of(const char *path)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct identity identity;
	struct stat st;

	assert_true(fd >= 0 && fstat(fd, &st) == 0);
	assert_int_equal(image_identity(fd, (uint64_t)st.st_size, identity.bytes), 0);
	return identity;
}

static bool same(struct identity a, struct identity b)
{
	return memcmp(a.bytes, b.bytes, sizeof a.bytes) == 0;
}

static void put_byte(const char *path, uint64_t at, uint8_t byte)
{
	_cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);

	assert_true(fd >= 0 && pwrite(fd, &byte, 1, (off_t)at) == 1);
}

static void test_every_byte_of_a_small_image_counts(void **state)
{
	struct scratch scratch;
	char path[128];

	(void)state;
	scratch_new(&scratch);
	scratch_path(&scratch, "image", path);
	write_image(path, 1024 * PAGE - 5);
	struct identity first = identity_of(path);
	for (uint64_t at = 0; at < 1024 * PAGE - 5; at += 99991) {
		put_byte(path, at, 0);
		assert_false(same(first, identity_of(path)));
		put_byte(path, at, image_byte(at));
	}
	put_byte(path, 1024 * PAGE - 6, 0);
	assert_false(same(first, identity_of(path)));
	put_byte(path, 1024 * PAGE - 6, image_byte(1024 * PAGE - 6));
	assert_true(same(first, identity_of(path)));

	/* The size alone, by zeros at the end. */
	assert_int_equal(truncate(path, 1024 * PAGE - 4), 0);
	assert_false(same(first, identity_of(path)));
	scratch_remove(&scratch);
}

/* An empty image and a copy without its holes. */
static void test_copies_are_the_same(void **state)
{
	struct scratch scratch;
	char sparse[128], full[128];
	static const uint8_t zeros[PAGE];

	(void)state;
	scratch_new(&scratch);
	scratch_path(&scratch, "sparse", sparse);
	scratch_path(&scratch, "full", full);
	write_image(sparse, PAGE);
	write_image(full, PAGE);
	assert_int_equal(truncate(sparse, 3000 * PAGE), 0);
	_cleanup_close_ int fd = open(full, O_WRONLY | O_APPEND | O_CLOEXEC);
	for (int i = 1; i < 3000; i++)
		assert_int_equal(write(fd, zeros, PAGE), PAGE);
	assert_true(same(identity_of(sparse), identity_of(full)));

	assert_int_equal(truncate(sparse, 0), 0);
	(void)identity_of(sparse);
	scratch_remove(&scratch);
}

/* One page of a hundred is another: seen, wherever it begins and whatever regular distance. */
static void test_images_that_differ_a_little(void **state)
{
	static const unsigned distances[] = { 100, 64, 97, 16, 20 };
	struct scratch scratch;
	char path[128];

	(void)state;
	scratch_new(&scratch);
	scratch_path(&scratch, "image", path);
	write_image(path, PAGE);
	assert_int_equal(truncate(path, BIG_PAGES * PAGE), 0);
	struct identity first = identity_of(path);
	for (size_t i = 0; i < sizeof distances / sizeof *distances; i++) {
		for (unsigned page = 3; page < BIG_PAGES; page += distances[i])
			put_byte(path, page * PAGE + 17, 1);
		assert_false(same(first, identity_of(path)));
		for (unsigned page = 3; page < BIG_PAGES; page += distances[i])
			put_byte(path, page * PAGE + 17, 0);
	}
	assert_true(same(first, identity_of(path)));
	scratch_remove(&scratch);
}

/* Looking brings in no more than what is looked at: no readahead, which would push other images out of memory. */
static void test_only_the_sample_is_read(void **state)
{
	struct scratch scratch;
	char path[128];
	size_t resident = 0;

	(void)state;
	scratch_new(&scratch);
	scratch_path(&scratch, "image", path);
	write_image(path, BIG_PAGES * PAGE);
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_int_equal(fsync(fd), 0);
	assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	assert_int_equal(lseek(fd, 12345, SEEK_SET), 12345);

	unsigned char *in_memory = calloc(BIG_PAGES, 1);
	void *map = mmap(NULL, BIG_PAGES * PAGE, PROT_READ, MAP_SHARED, fd, 0);
	assert_true(in_memory && map != MAP_FAILED);
	assert_int_equal(mincore(map, BIG_PAGES * PAGE, in_memory), 0);
	for (size_t i = 0; i < BIG_PAGES; i++)
		resident += in_memory[i] & 1;
	/* On tmpfs the cache is all there is. */
	if (resident == 0) {
		struct identity identity;
		assert_int_equal(image_identity(fd, BIG_PAGES * PAGE, identity.bytes), 0);
		assert_int_equal(mincore(map, BIG_PAGES * PAGE, in_memory), 0);
		for (size_t i = 0; i < BIG_PAGES; i++)
			resident += in_memory[i] & 1;
		assert_in_range(resident, 1, 1024 + 64);
		assert_int_equal(lseek(fd, 0, SEEK_CUR), 12345);
	} else {
		print_message("skipped: %zu pages of %s stay in memory\n", resident, path);
	}
	munmap(map, BIG_PAGES * PAGE);
	free(in_memory);
	scratch_remove(&scratch);
}

static void test_failures(void **state)
{
	struct scratch scratch;
	struct identity identity;
	char path[128];

	(void)state;
	scratch_new(&scratch);
	scratch_path(&scratch, "image", path);
	write_image(path, 10 * PAGE);
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_int_equal(image_identity(fd, 11 * PAGE, identity.bytes), -ENODATA);
	_cleanup_close_ int dir = open(scratch.dir, O_RDONLY | O_CLOEXEC);
	assert_int_equal(image_identity(dir, PAGE, identity.bytes), -EISDIR);
	assert_int_equal(image_identity(-1, PAGE, identity.bytes), -EBADF);
	/* Without a name any more, it is still the same. */
	assert_int_equal(unlink(path), 0);
	assert_int_equal(image_identity(fd, 10 * PAGE, identity.bytes), 0);
	scratch_remove(&scratch);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_byte_of_a_small_image_counts),
		cmocka_unit_test(test_copies_are_the_same),
		cmocka_unit_test(test_images_that_differ_a_little),
		cmocka_unit_test(test_only_the_sample_is_read),
		cmocka_unit_test(test_failures),
	};

	return cmocka_run_group_tests_name("hotlist/identity", tests, NULL, NULL);
}
