/*
 * SHA-256 over a label, the size, and a sample: the image is cut into as many equal parts as pages are looked at, and of each part one page is
 * taken, at a place that a fixed formula picks, so that what repeats at regular distances (page tables, zeros between allocations) doesn't fool it.
 * The first and the last page are always in. docs/hotlist-format.md has the formula: it is part of the HPL2 format.
 */
#include "hotlist/identity.h"

#include <errno.h>
#include <fcntl.h>
#include <nettle/sha2.h>
#include <stdio.h>
#include <unistd.h>

#include "base/cleanup.h"

#define LABEL	  "faultline-image-1" /* with its NUL */
#define PAGE	  HOTLIST_PAGE_SIZE
#define PAGES_MAX 1024u

/* The finalizer of splitmix64. */
static uint64_t mix(uint64_t n)
{
	n = (n ^ n >> 30) * 0xbf58476d1ce4e5b9;
	n = (n ^ n >> 27) * 0x94d049bb133111eb;
	return n ^ n >> 31;
}

/* Of PAGES pages, the one that is looked at in part PART of COUNT. */
static uint64_t sample(uint64_t part, uint64_t count, uint64_t pages)
{
	uint64_t first = (uint64_t)((unsigned __int128)pages * part / count);
	uint64_t end = (uint64_t)((unsigned __int128)pages * (part + 1) / count);

	if (part == 0)
		return 0;
	return part == count - 1 ? pages - 1 : first + mix(part) % (end - first);
}

static uint64_t bytes_at(uint64_t page, uint64_t size)
{
	uint64_t rest = size - page * PAGE;

	return rest < PAGE ? rest : PAGE;
}

static int read_page(int fd, uint64_t page, uint8_t *data, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t n = pread(fd, data + done, size - done, (off_t)(page * PAGE + done));
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -ENODATA;
		done += (size_t)n;
	}
	return 0;
}

/* An open of its own, so that the advice is given for it alone; without one (no /proc) FD has to do, without advice. */
static int open_again(int fd)
{
	char path[32];

	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	int again = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (again >= 0)
		posix_fadvise(again, 0, 0, POSIX_FADV_RANDOM);
	return again;
}

int image_identity(int fd, uint64_t size, uint8_t ret[static IMAGE_IDENTITY_SIZE])
{
	uint64_t pages = size / PAGE + !!(size % PAGE);
	uint64_t count = pages < PAGES_MAX ? pages : PAGES_MAX;
	_cleanup_close_ int own = open_again(fd);
	uint8_t data[PAGE], number[8];
	struct sha256_ctx context;

	if (own >= 0) {
		fd = own;
		/* All are on their way before the first is waited for. */
		for (uint64_t i = 0; i < count; i++)
			posix_fadvise(fd, (off_t)(sample(i, count, pages) * PAGE), (off_t)PAGE, POSIX_FADV_WILLNEED);
	}
	for (size_t i = 0; i < sizeof number; i++)
		number[i] = (uint8_t)(size >> 8 * i);
	sha256_init(&context);
	sha256_update(&context, sizeof LABEL, (const uint8_t *)LABEL);
	sha256_update(&context, sizeof number, number);
	for (uint64_t i = 0; i < count; i++) {
		uint64_t page = sample(i, count, pages);
		size_t bytes = (size_t)bytes_at(page, size);
		int r = read_page(fd, page, data, bytes);
		if (r < 0)
			return r;
		sha256_update(&context, bytes, data);
	}
	sha256_digest(&context, IMAGE_IDENTITY_SIZE, ret);
	return 0;
}
