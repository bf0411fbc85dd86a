/* An image in a file: zeros after its end, and never zeros for bytes that it should have had. */
#include <sys/mman.h>

#include "base/clock.h"
#include "unit/image_helpers.h"

#define SIZE (8 * PAGE + 1000)

struct image {
	struct scratch scratch;
	char path[128];
	int fd; /* another one on the same file, to change it */
	struct source *source;
	struct io *io;
};

static int make(void **state)
{
	struct image *image = calloc(1, sizeof *image);

	assert_non_null(image);
	scratch_new(&image->scratch);
	write_image(scratch_path(&image->scratch, "image", image->path), SIZE);
	image->fd = open(image->path, O_RDWR | O_CLOEXEC);
	assert_true(image->fd >= 0);
	assert_int_equal(source_file_new(open(image->path, O_RDONLY | O_CLOEXEC), &image->source, NULL), 0);
	assert_int_equal(io_new(4, &image->io, NULL), 0);
	*state = image;
	return 0;
}

static int unmake(void **state)
{
	struct image *image = *state;

	io_free(image->io);
	source_close(image->source);
	close(image->fd);
	scratch_remove(&image->scratch);
	free(image);
	return 0;
}

struct waited_read {
	struct io_read read; /* first: done gets its address */
	size_t left;
	int result;
};

static void note_end(struct io_read *read, int result)
{
	struct waited_read *waited = (struct waited_read *)read;

	waited->result = result;
	waited->left--;
}

static int submit_and_wait(struct image *image, void *buffer, size_t length, uint64_t offset)
{
	struct waited_read waited = { .read = { .buffer = buffer, .length = length, .offset = offset, .done = note_end },
				      .left = 1 };

	assert_int_equal(source_submit(image->source, image->io, &waited.read), 0);
	reap_until_none(image->io, &waited.left);
	return waited.result;
}

/* By each of the three ways. read_now may say that it would have to wait. */
static void assert_reads(struct image *image, size_t length, uint64_t offset)
{
	uint8_t *buffer = malloc(length);

	assert_non_null(buffer);
	memset(buffer, 0xee, length);
	assert_int_equal(source_read(image->source, buffer, length, offset), 0);
	assert_image(buffer, length, offset, SIZE);

	memset(buffer, 0xee, length);
	int r = source_read_now(image->source, buffer, length, offset);
	if (r == 0)
		assert_image(buffer, length, offset, SIZE);
	else
		assert_int_equal(r, -EAGAIN);

	memset(buffer, 0xee, length);
	assert_int_equal(submit_and_wait(image, buffer, length, offset), 0);
	assert_image(buffer, length, offset, SIZE);
	free(buffer);
}

static void assert_fails(struct image *image, size_t length, uint64_t offset)
{
	uint8_t *buffer = malloc(length);

	assert_non_null(buffer);
	assert_int_equal(source_read(image->source, buffer, length, offset), -ENODATA);
	assert_int_equal(submit_and_wait(image, buffer, length, offset), -ENODATA);
	int r = source_read_now(image->source, buffer, length, offset);
	assert_true(r == -ENODATA || r == -EAGAIN);
	free(buffer);
}

static const void *peek(struct image *image, size_t length, uint64_t offset)
{
	return source_peek(image->source, length, offset, now_ns());
}

static void test_whole_pages(void **state)
{
	struct image *image = *state;

	assert_int_equal(image->source->size, SIZE);
	assert_true(source_intact(image->source, SIZE, 0));
	for (uint64_t page = 0; page < 8; page++)
		assert_reads(image, PAGE, page * PAGE);
	assert_reads(image, 8 * PAGE, 0);
}

static void test_zeros_after_the_end(void **state)
{
	struct image *image = *state;

	assert_reads(image, PAGE, 8 * PAGE);	 /* the tail */
	assert_reads(image, 4 * PAGE, 6 * PAGE); /* from within to past it */
	assert_reads(image, 2 * PAGE, SIZE - 1);
	assert_reads(image, 12 * PAGE, 0);
}

static void test_wholly_past_the_end(void **state)
{
	struct image *image = *state;

	assert_reads(image, PAGE, SIZE);
	assert_reads(image, PAGE, 9 * PAGE);
	assert_reads(image, PAGE, 1ull << 62);
}

/* Cut within page 2. What the image should have had is missing, the bytes of its former tail too. */
static void test_truncated_within_a_page(void **state)
{
	struct image *image = *state;

	assert_int_equal(ftruncate(image->fd, 2 * PAGE + 100), 0);
	assert_false(source_intact(image->source, PAGE, 2 * PAGE));
	assert_false(source_intact(image->source, 4 * PAGE, 0));
	assert_true(source_intact(image->source, 2 * PAGE, 0));
	assert_true(source_intact(image->source, PAGE, 3 * PAGE)); /* gone whole: it can't have been zeroed in part */
	assert_reads(image, 2 * PAGE, 0);
	assert_fails(image, PAGE, 2 * PAGE);
	assert_fails(image, 2 * PAGE, PAGE);
	assert_fails(image, PAGE, 3 * PAGE);
	assert_fails(image, PAGE, 8 * PAGE);
	assert_fails(image, 10 * PAGE, 0);
	assert_reads(image, PAGE, 9 * PAGE); /* was never there */
}

static void test_truncated_at_a_page(void **state)
{
	struct image *image = *state;

	assert_int_equal(ftruncate(image->fd, 8 * PAGE), 0);
	assert_true(source_intact(image->source, PAGE, 7 * PAGE));
	assert_false(source_intact(image->source, 2 * PAGE, 7 * PAGE));
	assert_reads(image, PAGE, 7 * PAGE);
	assert_fails(image, PAGE, 8 * PAGE);
	assert_fails(image, 2 * PAGE, 7 * PAGE);
}

static void test_truncated_to_nothing(void **state)
{
	struct image *image = *state;

	assert_int_equal(ftruncate(image->fd, 0), 0);
	for (uint64_t page = 0; page < 9; page++)
		assert_fails(image, PAGE, page * PAGE);
}

/* One that grew has its bytes still; what came after its end is no part of it. */
static void test_grown(void **state)
{
	struct image *image = *state;
	uint8_t more[2 * PAGE];

	memset(more, 0xaa, sizeof more);
	assert_int_equal(pwrite(image->fd, more, sizeof more, SIZE), sizeof more);
	assert_true(source_intact(image->source, PAGE, 7 * PAGE));
	assert_reads(image, 3 * PAGE, 7 * PAGE);
	assert_int_equal(image->source->size, SIZE);
}

static void test_peek_needs_a_look(void **state)
{
	struct image *image = *state;

	assert_false(image->source->stale);
	assert_null(peek(image, PAGE, 0));
	assert_true(image->source->stale);
	source_refresh(image->source);
	assert_false(image->source->stale);
}

static void test_peek_after_refresh(void **state)
{
	struct image *image = *state;
	uint8_t buffer[SIZE];

	/* The page cache may have lost them; now it hasn't. */
	assert_int_equal(source_read(image->source, buffer, SIZE, 0), 0);
	source_refresh(image->source);
	for (uint64_t page = 0; page < 8; page++) {
		const void *bytes = peek(image, PAGE, page * PAGE);
		assert_non_null(bytes);
		assert_image(bytes, PAGE, page * PAGE, SIZE);
		assert_ptr_equal(source_peek(image->source, PAGE, page * PAGE, now_ns()), bytes);
	}
	const void *bytes = peek(image, 8 * PAGE, 0);
	assert_non_null(bytes);
	assert_image(bytes, 8 * PAGE, 0, SIZE);
	assert_false(image->source->stale);
}

/* The tail would need zeros behind it, which are not the file's to give. */
static void test_peek_past_the_end(void **state)
{
	struct image *image = *state;

	source_refresh(image->source);
	assert_null(peek(image, PAGE, 8 * PAGE));
	assert_null(peek(image, 2 * PAGE, 7 * PAGE));
	assert_null(peek(image, PAGE, 9 * PAGE));
	assert_null(peek(image, PAGE, SIZE));
	assert_null(peek(image, PAGE, UINT64_MAX - PAGE + 1));
	assert_null(source_peek(image->source, PAGE, 8 * PAGE, now_ns()));
	assert_non_null(peek(image, 1000, 8 * PAGE));
}

static void test_peek_when_truncated(void **state)
{
	struct image *image = *state;

	source_refresh(image->source);
	assert_non_null(peek(image, PAGE, 0));
	assert_int_equal(ftruncate(image->fd, 2 * PAGE + 100), 0);
	for (uint64_t page = 0; page < 8; page++)
		assert_int_equal(source_intact(image->source, PAGE, page * PAGE), page != 2);
	image->source->changed = true; /* the keeper's word: nothing of such an image is peeked at */
	for (uint64_t page = 0; page < 8; page++)
		assert_null(peek(image, PAGE, page * PAGE));
	source_refresh(image->source);
	assert_null(peek(image, PAGE, 0));
}

/* A view that nobody has renewed for long is not believed. */
static void test_peek_grows_stale(void **state)
{
	struct image *image = *state;

	source_refresh(image->source);
	assert_non_null(peek(image, PAGE, 0));
	assert_null(source_peek(image->source, PAGE, 0, now_ns() + 60 * NSEC_PER_SEC));
	assert_true(image->source->stale);
	source_refresh(image->source);
	assert_false(image->source->stale);
	assert_non_null(peek(image, PAGE, 0));
}

static bool drop_from_memory(int fd)
{
	unsigned char resident[9] = { 0 };
	size_t there = 0;

	assert_int_equal(fsync(fd), 0);
	assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	void *view = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(view, MAP_FAILED);
	assert_int_equal(mincore(view, SIZE, resident), 0);
	munmap(view, SIZE);
	for (size_t i = 0; i < 9; i++)
		there += resident[i] & 1;
	return there == 0;
}

static void test_not_in_memory(void **state)
{
	struct image *image = *state;
	uint8_t buffer[PAGE];

	if (!drop_from_memory(image->fd)) {
		print_message("the file system of /tmp keeps files in memory: what is not there can't be tested here\n");
		skip();
	}
	source_refresh(image->source);
	assert_null(peek(image, PAGE, 4 * PAGE));
	assert_false(image->source->stale); /* somebody has looked; it is just not there */
	assert_int_equal(source_read_now(image->source, buffer, PAGE, 4 * PAGE), -EAGAIN);
	assert_int_equal(submit_and_wait(image, buffer, PAGE, 4 * PAGE), 0);
	assert_image(buffer, PAGE, 4 * PAGE, SIZE);
	assert_int_equal(source_read_now(image->source, buffer, PAGE, 4 * PAGE), 0);
	assert_image(buffer, PAGE, 4 * PAGE, SIZE);
	source_refresh(image->source);
	assert_non_null(peek(image, PAGE, 4 * PAGE));
}

/* Bytes of a file of 1 MiB that are in memory. */
static uint64_t count_resident(int fd)
{
	unsigned char resident[256];
	uint64_t count = 0;

	void *view = mmap(NULL, 256 * PAGE, PROT_READ, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(view, MAP_FAILED);
	assert_int_equal(mincore(view, 256 * PAGE, resident), 0);
	munmap(view, 256 * PAGE);
	for (size_t i = 0; i < 256; i++)
		count += resident[i] & 1;
	return count * PAGE;
}

static void test_pages_around_come_as_well(void **state)
{
	struct image *image = *state;
	char path[128];
	uint8_t *buffer = malloc(256 * PAGE);
	struct source *source;

	int fd = open(scratch_path(&image->scratch, "around", path), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_non_null(buffer);
	fill_image(buffer, 256 * PAGE, 0);
	assert_int_equal(write(fd, buffer, 256 * PAGE), 256 * PAGE);
	assert_int_equal(fsync(fd), 0);
	assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	if (count_resident(fd)) {
		print_message("the file system of /tmp keeps files in memory: what is not there can't be tested here\n");
		skip();
	}
	assert_int_equal(source_file_new(fd, &source, NULL), 0);
	struct image around = { .source = source, .io = image->io };
	/* In the middle, at the beginning and at the end, where there is less around. */
	for (uint64_t page = 128; page != 1; page = page == 128 ? 0 : page == 0 ? 255 : 1) {
		uint64_t before = count_resident(fd);

		assert_int_equal(submit_and_wait(&around, buffer, PAGE, page * PAGE), 0);
		assert_image(buffer, PAGE, page * PAGE, 256 * PAGE);
		uint64_t more = count_resident(fd) - before;
		assert_true(more > PAGE && more <= 256u << 10);
	}
	source_close(source);
	free(buffer);
}

/* memfd and tmpfs, where some kernels refuse RWF_NOWAIT: nothing waits for a device there. */
static void test_image_in_memory(void **state)
{
	struct image *image = *state;
	int fd = memfd_create("image", MFD_CLOEXEC);
	uint8_t buffer[SIZE];
	struct source *source;

	assert_true(fd >= 0);
	fill_image(buffer, SIZE, 0);
	assert_int_equal(write(fd, buffer, SIZE), SIZE);
	assert_int_equal(source_file_new(fd, &source, NULL), 0);
	struct image in_memory = { .source = source, .io = image->io };
	memset(buffer, 0xee, PAGE);
	assert_int_equal(source_read_now(source, buffer, PAGE, 8 * PAGE), 0);
	assert_image(buffer, PAGE, 8 * PAGE, SIZE);
	assert_reads(&in_memory, 3 * PAGE, 7 * PAGE);
	source_refresh(source);
	assert_non_null(peek(&in_memory, PAGE, 0));
	assert_int_equal(ftruncate(fd, PAGE + 1), 0);
	assert_fails(&in_memory, PAGE, PAGE);
	assert_true(source_intact(source, PAGE, 0));
	assert_false(source_intact(source, PAGE, PAGE));
	source_close(source);
}

/* Pages that were never written: zeros that the image really has. */
static void test_holes(void **state)
{
	struct image *image = *state;
	uint8_t buffer[PAGE], zeros[PAGE] = { 0 };
	struct source *source;
	char path[128];

	int fd = open(scratch_path(&image->scratch, "sparse", path), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 1ll << 30), 0);
	assert_int_equal(pwrite(fd, "x", 1, (1ll << 30) - 1), 1);
	assert_int_equal(source_file_new(fd, &source, NULL), 0);
	memset(buffer, 0xee, PAGE);
	assert_int_equal(source_read(source, buffer, PAGE, 512ull << 20), 0);
	assert_memory_equal(buffer, zeros, PAGE);
	assert_int_equal(source_read(source, buffer, PAGE, (1ull << 30) - PAGE), 0);
	assert_int_equal(buffer[PAGE - 1], 'x');
	source_close(source);
}

static void test_null_source(void **state)
{
	uint8_t buffer[3 * PAGE], zeros[3 * PAGE] = { 0 };
	struct source *source;

	(void)state;
	assert_int_equal(source_null_new(2 * PAGE + 5, &source, NULL), 0);
	assert_int_equal(source->size, 2 * PAGE + 5);
	memset(buffer, 0xee, sizeof buffer);
	assert_int_equal(source_read_now(source, buffer, sizeof buffer, 0), 0);
	assert_memory_equal(buffer, zeros, sizeof buffer);
	memset(buffer, 0xee, sizeof buffer);
	assert_int_equal(source_read(source, buffer, sizeof buffer, PAGE), 0);
	assert_memory_equal(buffer, zeros, sizeof buffer);
	assert_null(source_peek(source, PAGE, 0, now_ns()));
	assert_true(source_intact(source, PAGE, 0));
	source_refresh(source);
	source_close(source);
	source_close(NULL);
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, make, unmake)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_whole_pages),
		CASE(test_zeros_after_the_end),
		CASE(test_wholly_past_the_end),
		CASE(test_truncated_within_a_page),
		CASE(test_truncated_at_a_page),
		CASE(test_truncated_to_nothing),
		CASE(test_grown),
		CASE(test_peek_needs_a_look),
		CASE(test_peek_after_refresh),
		CASE(test_peek_past_the_end),
		CASE(test_peek_when_truncated),
		CASE(test_peek_grows_stale),
		CASE(test_not_in_memory),
		CASE(test_pages_around_come_as_well),
		CASE(test_image_in_memory),
		CASE(test_holes),
		cmocka_unit_test(test_null_source),
	};

	return cmocka_run_group_tests_name("source_file", tests, NULL, NULL);
}
