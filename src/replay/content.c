#include "replay/content.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/write.h"

#define BATCH_PAGES 256

/* The finalizer of splitmix64. */
static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

static uint64_t word_of(uint64_t base, unsigned word)
{
	return (base + word * 0xd1342543de82ef95ull) | 1;
}

static uint64_t base_of(uint64_t seed, uint64_t page)
{
	return mix(mix(seed + 0x9e3779b97f4a7c15ull) ^ (page + 1) * 0x9e3779b97f4a7c15ull);
}

uint64_t content_word(uint64_t seed, uint64_t page, unsigned word)
{
	return word_of(base_of(seed, page), word);
}

uint64_t content_expected(const struct trace_image *image, uint64_t seed, uint64_t page, unsigned word)
{
	return trace_image_has_data(image, page) ? content_word(seed, page, word) : 0;
}

static int write_failed(const char *path, int error, struct error *err)
{
	if (error == ENOSPC || error == EDQUOT)
		return error_set(err, -error, "disk_full",
				 "there is no room for the memory image %s: make some, or choose another place with TMPDIR",
				 path);
	return error_set(err, -error, "io_error", "cannot write the memory image %s: %s", path, strerror(error));
}

/* The pages with data, in as large pieces as they come. */
static int write_pages(int fd, const struct trace_image *image, uint64_t seed)
{
	_cleanup_free_ uint64_t *words = malloc(BATCH_PAGES * TRACE_PAGE);
	uint64_t page = 0;

	if (!words)
		return -ENOMEM;
	while (page < image->pages) {
		unsigned n = 0;

		for (; n < BATCH_PAGES && page + n < image->pages && trace_image_has_data(image, page + n); n++) {
			uint64_t base = base_of(seed, page + n);

			for (unsigned i = 0; i < CONTENT_WORDS; i++)
				words[n * CONTENT_WORDS + i] = word_of(base, i);
		}
		int r = n ? pwrite_fully(fd, words, n * TRACE_PAGE, page * TRACE_PAGE) : 0;
		if (r < 0)
			return r;
		page += n ?: 1;
	}
	return 0;
}

int content_make_template(const char *path, const struct trace_image *image, uint64_t seed, struct error *err)
{
	_cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	int r = fd < 0 ? -errno : 0;

	if (r < 0)
		return write_failed(path, -r, err);
	r = ftruncate(fd, (off_t)(image->pages * TRACE_PAGE)) < 0 ? -errno : write_pages(fd, image, seed);
	/* On the disk now, so that writing it back does not disturb what is measured. */
	if (r >= 0 && fsync(fd) < 0)
		r = -errno;
	if (r < 0) {
		unlink(path);
		return write_failed(path, -r, err);
	}
	return 0;
}

static bool is_page(const struct trace_image *image, uint64_t seed, uint64_t page, const uint64_t *memory)
{
	if (!trace_image_has_data(image, page))
		return false;
	for (unsigned i = 0; i < CONTENT_WORDS; i++)
		if (memory[i] != content_word(seed, page, i))
			return false;
	return true;
}

void content_describe(const struct trace_image *image, uint64_t seed, const uint64_t *memory, char *buffer, size_t size)
{
	unsigned zeros = 0;

	for (unsigned i = 0; i < CONTENT_WORDS; i++)
		zeros += !memory[i];
	if (zeros == CONTENT_WORDS) {
		snprintf(buffer, size, "the page is all zeros");
		return;
	}
	for (uint64_t page = 0; page < image->pages; page++)
		if (is_page(image, seed, page, memory)) {
			snprintf(buffer, size, "these are the bytes of page %" PRIu64, page);
			return;
		}
	snprintf(buffer, size, "it is no page of this image");
}
