#include "bench/image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/write.h"

#define WORDS	    (BENCH_PAGE / sizeof(uint64_t))
#define PAGES_WRITE 256 /* a call */

static void fill_page(uint64_t *words, uint64_t page)
{
	for (unsigned k = 0; k < WORDS; k++)
		words[k] = bench_image_word(page, k);
}

static int write_pages(int fd, uint64_t pages)
{
	_cleanup_free_ char *buffer = malloc(PAGES_WRITE * BENCH_PAGE);
	if (!buffer)
		return -ENOMEM;
	for (uint64_t page = 0; page < pages;) {
		uint64_t n = pages - page < PAGES_WRITE ? pages - page : PAGES_WRITE;
		for (uint64_t i = 0; i < n; i++)
			fill_page((uint64_t *)(buffer + i * BENCH_PAGE), page + i);
		int r = write_fully(fd, buffer, n * BENCH_PAGE);
		if (r < 0)
			return r;
		page += n;
	}
	return 0;
}

int bench_image_make(const char *dir, const char *name, uint64_t pages, uint64_t size, struct bench_image *ret,
		     struct error *err)
{
	struct bench_image image = { .pages = pages, .size = pages * BENCH_PAGE };

	if (image.size < size)
		image.size = size;
	if ((size_t)snprintf(image.path, sizeof image.path, "%s/%s", dir, name) >= sizeof image.path)
		return error_set(err, -ENAMETOOLONG, "bench_failed", "the path %s is too long: choose a shorter --dir",
				 dir);
	_cleanup_close_ int fd = open(image.path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int r = fd < 0 ? -errno : write_pages(fd, pages);
	if (r == 0 && (ftruncate(fd, (off_t)image.size) < 0 || fsync(fd) < 0))
		r = -errno;
	if (r < 0)
		return error_set(err, r, "bench_failed",
				 "can't write a memory image of %llu MiB to %s: %s; --dir names another place",
				 (unsigned long long)(pages * BENCH_PAGE >> 20), image.path, strerror(-r));
	*ret = image;
	return 0;
}

bool bench_page_is_right(const void *memory, uint64_t page)
{
	const uint64_t *words = memory;
	uint64_t wrong = 0;

	for (unsigned k = 0; k < WORDS; k++)
		wrong |= words[k] ^ bench_image_word(page, k);
	return wrong == 0;
}

uint64_t bench_random_next(struct bench_random *random)
{
	uint64_t z = random->state += 0x9e3779b97f4a7c15ull;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

uint64_t bench_random_below(struct bench_random *random, uint64_t bound)
{
	return (uint64_t)(((unsigned __int128)bench_random_next(random) * bound) >> 64);
}

uint64_t bench_random_geometric(struct bench_random *random, double mean)
{
	uint64_t n = 1, going_on = (uint64_t)((1 - 1 / mean) * (double)UINT32_MAX);

	while (bench_random_next(random) >> 32 < going_on)
		n++;
	return n;
}

void bench_shuffle(struct bench_random *random, uint64_t *items, uint64_t count)
{
	for (uint64_t i = count; i > 1; i--) {
		uint64_t k = bench_random_below(random, i), t = items[i - 1];
		items[i - 1] = items[k];
		items[k] = t;
	}
}
