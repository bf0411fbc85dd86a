#include "integration/harness/image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/check.h"

bool test_image_is_hole(const struct test_image *image, uint64_t page)
{
	if (image->hole_every && page % image->hole_every == image->hole_every - 1)
		return true;
	return image->data_every && page % image->data_every != 0;
}

uint64_t test_image_word(const struct test_image *image, uint64_t page, unsigned word)
{
	uint64_t at = page * PAGE + word * 8ull;

	if (at >= image->size || test_image_is_hole(image, page))
		return 0;
	/* Odd: a word with data is never zero, so a lost page is seen in each of its words. */
	uint64_t value = (mix64(image->seed ^ (page * 0x9e3779b97f4a7c15ull)) + word * 0xd1342543de82ef95ull) | 1;
	uint64_t left = image->size - at;
	return left >= 8 ? value : value & ((1ull << (left * 8)) - 1);
}

void test_image_make(struct test_image *image, const char *dir, const char *name, uint64_t size)
{
	snprintf(image->path, sizeof image->path, "%s/%s.mem", dir, name);
	image->size = size;
	if (!image->seed)
		image->seed = mix64(size ^ (uint64_t)name[0] << 32);

	_cleanup_close_ int fd = open(image->path, O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
		fail_msg("cannot make the image %s: %s", image->path, strerror(errno));

	for (uint64_t page = 0; page * PAGE < size; page++) {
		uint64_t words[PAGE / 8];
		size_t length = size - page * PAGE < PAGE ? size - page * PAGE : PAGE;

		if (test_image_is_hole(image, page))
			continue;
		for (unsigned i = 0; i < PAGE / 8; i++)
			words[i] = test_image_word(image, page, i);
		if (pwrite(fd, words, length, (off_t)(page * PAGE)) != (ssize_t)length)
			fail_msg("cannot write the image %s: %s", image->path, strerror(errno));
	}
}

void test_image_evict(const struct test_image *image)
{
	_cleanup_close_ int fd = open(image->path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || fsync(fd) < 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0)
		fail_msg("cannot evict %s from the page cache: %s", image->path, strerror(errno));
}

uint64_t test_image_sum(const struct test_image *image)
{
	_cleanup_close_ int fd = open(image->path, O_RDONLY | O_CLOEXEC);
	uint64_t words[PAGE / 8], sum = 0;
	ssize_t n;

	if (fd < 0)
		fail_msg("cannot open %s: %s", image->path, strerror(errno));
	while (memset(words, 0, sizeof words), (n = read(fd, words, sizeof words)) > 0)
		for (unsigned i = 0; i < PAGE / 8; i++)
			sum = mix64(sum + words[i]) + (uint64_t)n;
	return sum;
}
