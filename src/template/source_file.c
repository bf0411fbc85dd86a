/* An image in a file: from the page cache at once, else by io_uring. */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/read.h"
#include "template/resident.h"
#include "template/source.h"

/* What the kernel reads around a page of a mapping, by default. */
#define AROUND_BYTES (128ull << 10)
#define AROUND_ALIGN 4096

struct source_file {
	struct source source;
	int fd;
	bool memory_backed;	    /* tmpfs and the like: reading never waits for a device */
	struct resident_view *view; /* NULL: none */
};

static int read_now(struct source *source, void *buffer, size_t length, uint64_t offset)
{
	struct source_file *file = (struct source_file *)source;
	struct iovec iov = { .iov_base = buffer, .iov_len = length };
	ssize_t n = preadv2(file->fd, &iov, 1, (off_t)offset, RWF_NOWAIT);

	if (n < 0 && errno == EOPNOTSUPP && file->memory_backed)
		n = preadv2(file->fd, &iov, 1, (off_t)offset, 0);
	if (n == (ssize_t)length)
		return 0;
	if (n == 0)
		return -ENODATA; /* the image has become shorter */
	/* A part: only that is in memory, or the file ends there now. The slow way finds out. */
	return n > 0 || errno == EOPNOTSUPP || errno == EINTR ? -EAGAIN : -errno;
}

static int read_waiting(struct source *source, void *buffer, size_t length, uint64_t offset)
{
	return pread_fully(((struct source_file *)source)->fd, buffer, length, offset);
}

static void advise(struct source *source, size_t length, uint64_t offset)
{
	posix_fadvise(((struct source_file *)source)->fd, (off_t)offset, (off_t)length, POSIX_FADV_WILLNEED);
}

/* A page alone costs the device nearly as much time as so many around it, and a guest that has touched one touches others there soon. */
static void read_around(const struct source_file *file, struct io_read *read)
{
	uint64_t middle = read->offset + read->length / 2, size = file->source.size;
	uint64_t from = middle > AROUND_BYTES / 2 ? middle - AROUND_BYTES / 2 : 0;

	from -= from % AROUND_ALIGN;
	read->around_offset = from;
	read->around_length = size - from < AROUND_BYTES ? size - from : AROUND_BYTES;
}

static int submit(struct source *source, struct io *io, struct io_read *read)
{
	struct source_file *file = (struct source_file *)source;

	read->fd = file->fd;
	read->around_length = 0;
	if (read->length > 0 && read->length < AROUND_BYTES && !file->memory_backed)
		read_around(file, read);
	return io_submit(io, read);
}

static const void *peek(struct source *source, size_t length, uint64_t offset, uint64_t now)
{
	const struct source_file *file = (const struct source_file *)source;
	bool stale;

	if (!file->view)
		return NULL;
	const void *bytes = resident_view_find(file->view, length, offset, now, &stale);
	if (stale)
		atomic_store_explicit(&source->stale, true, memory_order_relaxed);
	return bytes;
}

/*
 * A page that a truncation ends in stays mapped, and its rest becomes zero some microseconds after the size has changed: if the image did
 * not end within the bytes after they had been copied, they are right. Pages that are cut off whole keep theirs, or can't be copied.
 */
static bool intact(struct source *source, size_t length, uint64_t offset)
{
	const struct source_file *file = (const struct source_file *)source;
	off_t end = lseek(file->fd, 0, SEEK_END);

	return end >= 0 && ((uint64_t)end <= offset || (uint64_t)end >= offset + length);
}

static void refresh(struct source *source)
{
	struct source_file *file = (struct source_file *)source;

	if (file->view)
		resident_view_refresh(file->view);
	atomic_store_explicit(&source->stale, false, memory_order_relaxed);
}

static void close_file(struct source *source)
{
	struct source_file *file = (struct source_file *)source;

	resident_view_free(file->view);
	close(file->fd);
	free(file);
}

static const struct source_ops file_ops = {
	.name = "file",
	.read_now = read_now,
	.read = read_waiting,
	.advise = advise,
	.submit = submit,
	.peek = peek,
	.intact = intact,
	.refresh = refresh,
	.close = close_file,
};

int source_file_new(int fd, struct source **ret, struct error *err)
{
	struct stat st;
	struct statfs fs;

	if (fstat(fd, &st) < 0 || fstatfs(fd, &fs) < 0)
		return error_set(err, -errno, "io_error", "cannot examine the memory image: %s", strerror(errno));

	struct source_file *file = calloc(1, sizeof *file);
	if (!file)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	file->source = (struct source){ .ops = &file_ops, .size = (uint64_t)st.st_size };
	file->fd = fd;
	file->memory_backed = fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC || fs.f_type == HUGETLBFS_MAGIC;
	file->view = resident_view_new(fd, file->source.size);
	*ret = &file->source;
	return 0;
}
