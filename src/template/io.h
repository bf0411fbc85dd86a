/*
 * Reads that complete later, for one thread: by io_uring, or by a few helper threads where io_uring is refused. All functions
 * are called by the owning thread.
 */
#pragma once

#include <linux/time_types.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct io;

/* One read. The submitter keeps it, and its buffer, until DONE has been called. */
struct io_read {
	int fd;
	void *buffer;
	size_t length;
	uint64_t offset;
	uint64_t delay_ns; /* wait so long first */
	uint64_t around_offset,
		around_length; /* the device is told to bring this into the page cache as well; length 0: nothing */
	int inject;	       /* negative errno to end with instead, or 0 */
	void (*done)(struct io_read *read,
		     int result); /* from io_reap; 0, or negative errno (-ENODATA: the file ends before) */

	size_t got; /* io's own from here on */
	int result;
	struct __kernel_timespec wait;
	struct io_read *next;
};

/* DEPTH: reads under way at once. */
int io_new(unsigned depth, struct io **ret, struct error *err);
/* Waits for the reads under way (their DONE is called), then frees. NULL is fine. */
void io_free(struct io *io);

/* Readable when io_reap has something to do. Not to be read from. */
int io_fd(const struct io *io);
bool io_is_uring(const struct io *io);

/* 0, or -EBUSY where DEPTH reads are under way: try again after io_reap. */
int io_submit(struct io *io, struct io_read *read);
/* Ends what has completed. */
void io_reap(struct io *io);
