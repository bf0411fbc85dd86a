/* The wrapper that makes images slow or broken: its little language, and what it does to reads. */
#include "base/clock.h"
#include "unit/image_helpers.h"

#define SIZE (16 * PAGE)

struct image {
	struct scratch scratch;
	struct source *inner;
	struct io *io;
};

static int make(void **state)
{
	struct image *image = calloc(1, sizeof *image);
	char path[128];

	assert_non_null(image);
	scratch_new(&image->scratch);
	write_image(scratch_path(&image->scratch, "image", path), SIZE);
	assert_int_equal(source_file_new(open(path, O_RDONLY | O_CLOEXEC), &image->inner, NULL), 0);
	assert_int_equal(io_new(4, &image->io, NULL), 0);
	*state = image;
	return 0;
}

/* INNER belongs to the wrapper where there is one: wrapped() takes it. */
static int unmake(void **state)
{
	struct image *image = *state;

	source_close(image->inner);
	io_free(image->io);
	scratch_remove(&image->scratch);
	free(image);
	return 0;
}

static struct source *wrapped(struct image *image, const char *spec)
{
	struct error err = { .message = "" };
	struct source *source;

	if (source_inject_new(image->inner, spec, &source, &err) < 0)
		fail_msg("%s", err.message);
	image->inner = source; /* for unmake, which closes both with it */
	return source;
}

static void test_good_specs(void **state)
{
	static const char *const specs[] = { "delay=0us",
					     "delay=5us",
					     "delay=20ms",
					     "delay=1s",
					     "delay=18446744073s",
					     "rate=1kB/s",
					     "rate=100MB/s",
					     "rate=18GB/s",
					     "error=0+1",
					     "error=0x1000+0x2000",
					     "error=4096+4096",
					     "error=0+18446744073709551615",
					     "delay=5ms,rate=1MB/s,error=1+2,error=3+4",
					     "error=1+2,delay=5ms" };
	struct image *image = *state;

	for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
		struct source *inner, *source;
		struct error err = { .message = "" };
		assert_int_equal(source_null_new(SIZE + i, &inner, NULL), 0);
		if (source_inject_new(inner, specs[i], &source, &err) < 0)
			fail_msg("%s", err.message);
		assert_int_equal(source->size, SIZE + i);
		source_close(source);
	}
	(void)image;
}

static void assert_refused(struct source *inner, const char *spec, const char *part)
{
	struct error err = { .code = "" };
	struct source *source = NULL;
	char expected[256];

	if (source_inject_new(inner, spec, &source, &err) != -EINVAL)
		fail_msg("'%s' was accepted", spec);
	assert_null(source);
	assert_string_equal(err.code, "bad_inject");
	snprintf(expected, sizeof expected,
		 "'%s' is not understood: say delay=5ms, rate=100MB/s, error=0x1000+0x2000 or only=FILE (a bit for each page), "
		 "with commas between them",
		 part);
	assert_string_equal(err.message, expected);
}

static void test_bad_specs(void **state)
{
	static const char *const specs[] = {
		"slow",
		"delay",
		"delay=",
		"delay=5",
		"delay=ms",
		"delay=-5ms",
		"delay=+5ms",
		"delay= 5ms",
		"delay=5 ms",
		"delay=5msx",
		"delay=0x5ms",
		"delay=1.5ms",
		"delay=5h",
		"delay=5MB/s",
		"Delay=5ms",
		" delay=5ms",
		"delay=18446744073709551616us",
		"delay=18446744073709551615us",
		"delay=18446744074s",
		"rate",
		"rate=",
		"rate=100",
		"rate=0kB/s",
		"rate=5ms",
		"rate=MB/s",
		"rate=-1MB/s",
		"rate=100mb/s",
		"rate=100MB",
		"rate=18446744074GB/s",
		"error",
		"error=",
		"error=0",
		"error=+",
		"error=0+",
		"error=+5",
		"error=-1+5",
		"error=0+-5",
		"error=0++5",
		"error=0x+1",
		"error=1+2x",
		"error=1 +2",
		"error=1+ 2",
		"error=a+b",
		"error=18446744073709551615+1",
		"error=0xffffffffffffffff+0x2",
		"error=18446744073709551616+0",
		"error=0+18446744073709551616",
		"error=99999999999999999999999+1",
		"error=5+0",
		"only",
		"only=",
		"only=/nonexistent",
		"only=/dev/null",
		"only=/",
		"inject=1",
		"=",
	};
	struct image *image = *state;

	for (size_t i = 0; i < sizeof specs / sizeof *specs; i++)
		assert_refused(image->inner, specs[i], specs[i]);
	/* The image is still the caller's, and whole. */
	uint8_t buffer[PAGE];
	assert_int_equal(source_read(image->inner, buffer, PAGE, 0), 0);
	assert_image(buffer, PAGE, 0, SIZE);
}

/* The message names the part that is wrong. */
static void test_bad_part_among_good_ones(void **state)
{
	struct image *image = *state;

	assert_refused(image->inner, "delay=5ms,rate=fast,error=0+1", "rate=fast");
	assert_refused(image->inner, "delay=5ms,error=1", "error=1");
	assert_refused(image->inner, "delay=5ms;error=1+1", "delay=5ms;error=1+1");
}

/* A bound on ranges, so that looking at them costs nothing. */
static void test_number_of_ranges(void **state)
{
	struct image *image = *state;
	char spec[512] = "";

	for (unsigned i = 0; i < 17; i++)
		snprintf(spec + strlen(spec), sizeof spec - strlen(spec), "%serror=%u+1", i ? "," : "", i * 4096);
	assert_refused(image->inner, spec, "error=65536+1");
	*strrchr(spec, ',') = 0;
	struct source *source = wrapped(image, spec);
	uint8_t buffer[PAGE];
	for (unsigned i = 0; i < 16; i++)
		assert_int_equal(source_read(source, buffer, PAGE, i * PAGE), -EIO);
}

struct waited_read {
	struct io_read read; /* first: done gets its address */
	size_t *left;
	int result;
	uint8_t buffer[2 * PAGE];
};

static void note_end(struct io_read *read, int result)
{
	struct waited_read *waited = (struct waited_read *)read;

	waited->result = result;
	--*waited->left;
}

static void submit(struct image *image, struct waited_read *waited, size_t length, uint64_t offset, size_t *left)
{
	/* What an earlier use left in it does not count. */
	waited->read = (struct io_read){ .buffer = waited->buffer,
					 .length = length,
					 .offset = offset,
					 .done = note_end,
					 .delay_ns = 1ull << 60,
					 .inject = -7 };
	waited->left = left;
	assert_int_equal(source_submit(image->inner, image->io, &waited->read), 0);
}

static int submit_and_wait(struct image *image, struct waited_read *waited, size_t length, uint64_t offset)
{
	size_t left = 1;

	submit(image, waited, length, offset, &left);
	reap_until_none(image->io, &left);
	return waited->result;
}

static void assert_both(struct image *image, size_t length, uint64_t offset, int expected)
{
	struct waited_read waited;

	assert_int_equal(source_read(image->inner, waited.buffer, length, offset), expected);
	if (expected == 0)
		assert_image(waited.buffer, length, offset, SIZE);
	memset(waited.buffer, 0xee, sizeof waited.buffer);
	assert_int_equal(submit_and_wait(image, &waited, length, offset), expected);
	if (expected == 0)
		assert_image(waited.buffer, length, offset, SIZE);
}

static void test_error_ranges(void **state)
{
	struct image *image = *state;

	wrapped(image, "error=0x1000+0x1000,error=20480+1");
	assert_both(image, PAGE, 0, 0);
	assert_both(image, PAGE, PAGE, -EIO);
	assert_both(image, PAGE, 2 * PAGE, 0);
	assert_both(image, 1, PAGE - 1, 0);
	assert_both(image, 2, PAGE - 1, -EIO);
	assert_both(image, 1, 2 * PAGE - 1, -EIO);
	assert_both(image, 1, 2 * PAGE, 0);
	assert_both(image, 2 * PAGE, 0, -EIO);
	assert_both(image, PAGE, 5 * PAGE, -EIO);
	assert_both(image, PAGE, 5 * PAGE + 1, 0);
	assert_both(image, 2 * PAGE, 15 * PAGE, 0); /* the image's end is as ever */
	assert_both(image, PAGE, 20 * PAGE, 0);
}

static void test_nothing_is_in_memory(void **state)
{
	struct image *image = *state;
	uint8_t buffer[PAGE];

	source_refresh(image->inner);
	assert_non_null(source_peek(image->inner, PAGE, 0, now_ns()));
	struct source *source = wrapped(image, "delay=0us");
	source_refresh(source);
	assert_null(source_peek(source, PAGE, 0, now_ns()));
	assert_int_equal(source_read_now(source, buffer, PAGE, 0), -EAGAIN);
	assert_true(source_intact(source, PAGE, 0));
}

static void test_delay(void **state)
{
	struct image *image = *state;
	struct waited_read reads[4];
	size_t left = 4;

	struct source *source = wrapped(image, "delay=30ms");
	uint64_t start = now_ns();
	assert_int_equal(source_read(source, reads[0].buffer, PAGE, 0), 0);
	assert_true(now_ns() - start >= 30 * NSEC_PER_MSEC);

	start = now_ns();
	for (size_t i = 0; i < 4; i++)
		submit(image, &reads[i], PAGE, i * PAGE, &left);
	reap_until_none(image->io, &left);
	assert_true(now_ns() - start >= 30 * NSEC_PER_MSEC);
	for (size_t i = 0; i < 4; i++) {
		assert_int_equal(reads[i].result, 0);
		assert_image(reads[i].buffer, PAGE, i * PAGE, SIZE);
	}
}

/* An error takes as long as a read: a failing disk is rarely quick about it. */
static void test_delayed_error(void **state)
{
	struct image *image = *state;
	struct waited_read waited;
	uint64_t start = now_ns();

	wrapped(image, "delay=20ms,error=0+1");
	assert_int_equal(submit_and_wait(image, &waited, PAGE, 0), -EIO);
	assert_true(now_ns() - start >= 20 * NSEC_PER_MSEC);
	start = now_ns();
	assert_int_equal(source_read(image->inner, waited.buffer, PAGE, 0), -EIO);
	assert_true(now_ns() - start >= 20 * NSEC_PER_MSEC);
}

/* One line for all: what is submitted at once goes through one after the other. 4096 bytes at 200 kB/s take 20.48 ms. */
static void test_rate(void **state)
{
	struct image *image = *state;
	struct waited_read reads[4];
	size_t left = 4;
	uint64_t start = now_ns();

	wrapped(image, "rate=200kB/s");
	for (size_t i = 0; i < 4; i++)
		submit(image, &reads[i], PAGE, i * PAGE, &left);
	reap_until_none(image->io, &left);
	assert_true(now_ns() - start >= 4 * 20480 * NSEC_PER_USEC);
	for (size_t i = 0; i < 4; i++)
		assert_image(reads[i].buffer, PAGE, i * PAGE, SIZE);

	start = now_ns();
	assert_int_equal(source_read(image->inner, reads[0].buffer, PAGE, 0), 0);
	assert_true(now_ns() - start >= 20480 * NSEC_PER_USEC);
}

/* A read that found no room has not gone through, and those after it need not wait for it. */
static void test_rate_leaves_out_what_found_no_room(void **state)
{
	struct image *image = *state;
	struct waited_read reads[4], more = { .result = 1 };
	size_t left = 4;

	wrapped(image, "rate=4MB/s");
	for (size_t i = 0; i < 4; i++)
		submit(image, &reads[i], PAGE, i * PAGE, &left);
	for (unsigned i = 0; i < 20000; i++) {
		more.read = (struct io_read){ .buffer = more.buffer, .length = PAGE, .done = note_end };
		assert_int_equal(source_submit(image->inner, image->io, &more.read), -EBUSY);
	}
	reap_until_none(image->io, &left);
	/* Twenty seconds' worth was refused. */
	left = 1;
	submit(image, &more, PAGE, 0, &left);
	assert_true(more.read.delay_ns < NSEC_PER_SEC);
	reap_until_none(image->io, &left);
	assert_int_equal(more.result, 0);
}

/* The second page of four alone is slow: it is never in memory, the others are as they were. */
static void test_only_some_pages(void **state)
{
	struct image *image = *state;
	char path[128], spec[160], twice[320];
	uint8_t buffer[3 * PAGE];
	struct error err;
	struct source *source = NULL;
	FILE *file;

	file = fopen(scratch_path(&image->scratch, "only", path), "we");
	assert_non_null(file);
	assert_int_equal(fputc(0x40, file), 0x40);
	fclose(file);
	snprintf(spec, sizeof spec, "delay=1us,only=%s", path);
	snprintf(twice, sizeof twice, "%s,only=%s", spec, path);
	assert_int_equal(source_inject_new(image->inner, twice, &source, &err), -EINVAL);

	source = wrapped(image, spec);
	assert_int_equal(source_read_now(source, buffer, PAGE, 0), 0);
	assert_image(buffer, PAGE, 0, SIZE);
	assert_int_equal(source_read_now(source, buffer, PAGE, PAGE), -EAGAIN);
	assert_int_equal(source_read_now(source, buffer, 2 * PAGE, 0), -EAGAIN);
	assert_int_equal(source_read_now(source, buffer, 2 * PAGE, PAGE), -EAGAIN);
	assert_int_equal(source_read_now(source, buffer, PAGE / 2, 2 * PAGE - 1), -EAGAIN);
	assert_int_equal(source_read_now(source, buffer, PAGE, 2 * PAGE), 0);
	assert_image(buffer, PAGE, 2 * PAGE, SIZE);
	/* Behind the bitmap's end, pages are fast. */
	assert_int_equal(source_read_now(source, buffer, PAGE, 9 * PAGE), 0);
	assert_image(buffer, PAGE, 9 * PAGE, SIZE);
	assert_int_equal(source_read(source, buffer, 3 * PAGE, 0), 0);
	assert_image(buffer, 3 * PAGE, 0, SIZE);
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, make, unmake)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_good_specs),
		CASE(test_bad_specs),
		CASE(test_only_some_pages),
		CASE(test_bad_part_among_good_ones),
		CASE(test_number_of_ranges),
		CASE(test_error_ranges),
		CASE(test_nothing_is_in_memory),
		CASE(test_delay),
		CASE(test_delayed_error),
		CASE(test_rate),
		CASE(test_rate_leaves_out_what_found_no_room),
	};

	return cmocka_run_group_tests_name("source_inject", tests, NULL, NULL);
}
