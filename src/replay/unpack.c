#include "replay/unpack.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <zlib.h>

#include "base/cleanup.h"

#define PIECE_SIZE 65536

static bool is_gzip(const uint8_t *data, size_t size)
{
	return size >= 3 && data[0] == 0x1f && data[1] == 0x8b && data[2] == Z_DEFLATED;
}

/* zlib counts in unsigned int. */
static void feed(z_stream *stream, const uint8_t *data, size_t size, size_t *at)
{
	size_t n = size - *at < UINT_MAX ? size - *at : UINT_MAX;

	stream->next_in = (Bytef *)(data + *at);
	stream->avail_in = (uInt)n;
	*at += n;
}

static int damaged(const z_stream *stream, int status, struct error *err)
{
	if (status == Z_MEM_ERROR)
		return error_set(err, -ENOMEM, "no_memory", "there is not enough memory to unpack it");
	if (status == Z_BUF_ERROR)
		return error_set(err, -EBADMSG, "bad_gzip",
				 "its compressed data is cut off: copy the file again, or see 'gzip -t'");
	return error_set(err, -EBADMSG, "bad_gzip", "its compressed data is damaged (%s): see 'gzip -t'",
			 stream->msg ?: "it makes no sense");
}

static int inflate_all(z_stream *stream, const uint8_t *data, size_t size, unpack_sink sink, void *user,
		       struct error *err)
{
	char piece[PIECE_SIZE];
	size_t at = 0;

	for (;;) {
		stream->next_out = (Bytef *)piece;
		stream->avail_out = sizeof piece;
		if (!stream->avail_in)
			feed(stream, data, size, &at);

		int status = inflate(stream, Z_NO_FLUSH);
		if (status != Z_OK && status != Z_STREAM_END)
			return damaged(stream, status, err);

		int r = sink(user, piece, sizeof piece - stream->avail_out);
		if (r < 0)
			return r;
		if (status != Z_STREAM_END)
			continue;
		if (!stream->avail_in && at == size)
			return 0;
		/* A file may have several members, one after the other. */
		inflateReset(stream);
	}
}

int unpack(const void *data, size_t size, unpack_sink sink, void *user, struct error *err)
{
	enum { GZIP_ONLY = 16 };
	z_stream stream = { 0 };

	if (!is_gzip(data, size))
		return size ? sink(user, data, size) : 0;
	if (inflateInit2(&stream, MAX_WBITS + GZIP_ONLY) != Z_OK)
		return error_set(err, -ENOMEM, "no_memory", "there is not enough memory to unpack it");
	int r = inflate_all(&stream, data, size, sink, user, err);
	inflateEnd(&stream);
	return r;
}

static int unreadable(const char *path, int error, struct error *err)
{
	return error_set(err, -error, "bad_file", "cannot read %s: %s", path, strerror(error));
}

/* One byte more than allowed shows that there is more. */
static int read_whole(int fd, const char *path, size_t max, void **ret_data, size_t *ret_size, struct error *err)
{
	_cleanup_free_ char *data = NULL;
	size_t size = 0, capacity = 0;

	for (;;) {
		if (size == capacity) {
			capacity = capacity ? 2 * capacity : PIECE_SIZE;
			if (capacity > max + 1)
				capacity = max + 1;
			char *grown = realloc(data, capacity);
			if (!grown)
				return error_set(err, -ENOMEM, "no_memory", "there is not enough memory to read %s",
						 path);
			data = grown;
		}
		ssize_t n = read(fd, data + size, capacity - size);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return unreadable(path, errno, err);
		if (n == 0)
			break;
		size += (size_t)n;
		if (size > max)
			return error_set(err, -EFBIG, "bad_file",
					 "%s is larger than %zu MiB: that is no file of this kind", path, max >> 20);
	}
	*ret_data = TAKE_PTR(data);
	*ret_size = size;
	return 0;
}

int unpack_read_file(const char *path, size_t max, void **ret_data, size_t *ret_size, struct error *err)
{
	/* A pipe without a writer must not hold us up before it is known to be none. */
	_cleanup_close_ int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return unreadable(path, errno, err);
	if (!S_ISREG(st.st_mode) && !S_ISFIFO(st.st_mode))
		return error_set(err, -EINVAL, "bad_file", "cannot read %s: it is neither a file nor a pipe", path);
	if (fcntl(fd, F_SETFL, 0) < 0)
		return unreadable(path, errno, err);
	return read_whole(fd, path, max, ret_data, ret_size, err);
}
