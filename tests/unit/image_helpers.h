/* What the tests of images share: a scratch directory, and files whose bytes tell where they stand. */
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "template/io.h"
#include "template/source.h"
#include "unit/hotlist_helpers.h"

#define PAGE 4096ull

/* The byte at OFFSET of every image: never zero, and another one a page, a word or a byte further on. */
static inline uint8_t image_byte(uint64_t offset)
{
	uint64_t mixed = (offset + 1) * 0x9e3779b97f4a7c15;

	return (uint8_t)(mixed >> 56) | 1;
}

static inline void fill_image(uint8_t *buffer, size_t length, uint64_t offset)
{
	for (size_t i = 0; i < length; i++)
		buffer[i] = image_byte(offset + i);
}

/* BUFFER holds what an image of SIZE bytes has at OFFSET, with zeros past its end. */
static inline void assert_image(const uint8_t *buffer, size_t length, uint64_t offset, uint64_t size)
{
	for (size_t i = 0; i < length; i++) {
		uint8_t expected = offset + i < size ? image_byte(offset + i) : 0;
		if (buffer[i] != expected)
			fail_msg("byte %llu is %u and should be %u", (unsigned long long)(offset + i), buffer[i],
				 expected);
	}
}

struct scratch {
	char dir[64];
};

static inline void scratch_new(struct scratch *scratch)
{
	strcpy(scratch->dir, "/tmp/faultline-unit-XXXXXX");
	assert_non_null(mkdtemp(scratch->dir));
}

static inline const char *scratch_path(const struct scratch *scratch, const char *name, char ret[static 128])
{
	snprintf(ret, 128, "%s/%s", scratch->dir, name);
	return ret;
}

/* Flat directories only: tests make no others. */
static inline void scratch_remove(struct scratch *scratch)
{
	char command[128];

	snprintf(command, sizeof command, "rm -rf -- '%s'", scratch->dir);
	assert_int_equal(system(command), 0);
}

/* An image of SIZE bytes in the file PATH, changed last in the past: file systems tell times no finer than a clock tick apart. */
static inline void write_image(const char *path, uint64_t size)
{
	_cleanup_close_ int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	uint8_t buffer[PAGE];

	assert_true(fd >= 0);
	for (uint64_t at = 0; at < size; at += sizeof buffer) {
		size_t length = size - at < sizeof buffer ? (size_t)(size - at) : sizeof buffer;
		fill_image(buffer, length, at);
		assert_int_equal(write(fd, buffer, length), length);
	}
	const struct timespec past[2] = { { .tv_sec = 1000000000 }, { .tv_sec = 1000000000, .tv_nsec = 7 } };
	assert_int_equal(futimens(fd, past), 0);
}

/* Waits until *LEFT, which the reads' done counts down, is zero. */
static inline void reap_until_none(struct io *io, const size_t *left)
{
	while (*left > 0) {
		struct pollfd pollfd = { .fd = io_fd(io), .events = POLLIN };
		assert_int_equal(poll(&pollfd, 1, -1), 1);
		io_reap(io);
	}
}
