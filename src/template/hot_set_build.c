/* Writing a packed hot set: beside its place, and then put there whole. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/write.h"
#include "template/beside.h"
#include "template/hot_set_file.h"

#define CHUNK_BYTES ((size_t)HOT_SET_CHUNK * HOT_SET_PAGE)

struct builder {
	int fd, image_fd;
	struct hot_set_header *header;
	uint64_t *table, *digests;
	char *chunk;	   /* pages on their way to the file */
	unsigned in_chunk; /* so many of them */
	uint64_t chunks;
};

static int by_number(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

/* A page of the image; past its end there are zeros. */
static int read_page(int fd, uint64_t page, char *ret)
{
	size_t got = 0;

	while (got < HOT_SET_PAGE) {
		ssize_t n = pread(fd, ret + got, HOT_SET_PAGE - got, (off_t)(page * HOT_SET_PAGE + got));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		got += (size_t)n;
	}
	memset(ret + got, 0, HOT_SET_PAGE - got);
	return 0;
}

static bool is_zero(const char *page)
{
	return page[0] == 0 && memcmp(page, page + 1, HOT_SET_PAGE - 1) == 0;
}

static int flush(struct builder *b, uint64_t data_offset)
{
	size_t length = (size_t)b->in_chunk * HOT_SET_PAGE;

	if (length == 0)
		return 0;
	b->digests[b->chunks] = XXH3_64bits(b->chunk, length);
	int r = pwrite_fully(b->fd, b->chunk, length, data_offset + b->chunks * CHUNK_BYTES);
	b->chunks++;
	b->in_chunk = 0;
	return r;
}

/* Where the pages begin depends on how many there are: the first round only counts. */
static int count_stored(struct builder *b, const uint64_t *pages, size_t count, const _Atomic bool *stopping)
{
	for (size_t i = 0; i < count; i++) {
		int r = *stopping ? -ECANCELED : read_page(b->image_fd, pages[i], b->chunk);

		if (r < 0)
			return r;
		b->table[i] = pages[i] | (is_zero(b->chunk) ? HOT_SET_ZERO : 0);
		b->header->stored += !(b->table[i] & HOT_SET_ZERO);
	}
	return 0;
}

static int write_pages(struct builder *b, size_t count, const _Atomic bool *stopping)
{
	uint64_t data_offset = hot_set_data_offset(b->header);
	int r = 0;

	for (size_t i = 0; i < count && r == 0; i++) {
		if (b->table[i] & HOT_SET_ZERO)
			continue;
		r = *stopping ? -ECANCELED
			      : read_page(b->image_fd, b->table[i], b->chunk + (size_t)b->in_chunk * HOT_SET_PAGE);
		if (r == 0 && ++b->in_chunk == HOT_SET_CHUNK)
			r = flush(b, data_offset);
	}
	return r < 0 ? r : flush(b, data_offset);
}

static int write_all(struct builder *b, uint64_t *pages, size_t count, const _Atomic bool *stopping)
{
	struct hot_set_header *h = b->header;

	h->list = hot_set_digest(pages, count);
	for (size_t at = 0; at < count; at += HOT_SET_WINDOW)
		qsort(pages + at, count - at < HOT_SET_WINDOW ? count - at : HOT_SET_WINDOW, sizeof *pages, by_number);
	int r = count_stored(b, pages, count, stopping);
	if (r == 0)
		r = write_pages(b, count, stopping);
	if (r < 0)
		return r;
	memcpy(b->table + count, b->digests, b->chunks * sizeof *b->digests);
	size_t length = (count + b->chunks) * sizeof *b->table;
	h->table_digest = XXH3_64bits(b->table, length);
	h->digest = hot_set_header_digest(h);
	r = pwrite_fully(b->fd, b->table, length, sizeof *h);
	if (r == 0)
		r = pwrite_fully(b->fd, h, sizeof *h, 0);
	/* Without a page behind the table the file ends there. */
	uint64_t size = hot_set_data_offset(h) + h->stored * HOT_SET_PAGE;
	if (r == 0 && ftruncate(b->fd, (off_t)size) < 0)
		r = -errno;
	return r == 0 && fsync(b->fd) < 0 ? -errno : r;
}

int hot_set_build(const char *path, int image_fd, const struct image_stamp *image, uint64_t *pages, size_t count,
		  const _Atomic bool *stopping, struct error *err)
{
	size_t chunks = count / HOT_SET_CHUNK + 1;
	_cleanup_free_ struct hot_set_header *header = calloc(1, sizeof *header);
	_cleanup_free_ uint64_t *table = calloc(count + chunks, sizeof *table);
	_cleanup_free_ uint64_t *digests = calloc(chunks, sizeof *digests);
	_cleanup_free_ char *chunk = malloc(CHUNK_BYTES), *tmp = NULL;

	if (!header || !table || !digests || !chunk || asprintf(&tmp, "%s.tmp", path) < 0)
		return error_set(err, -ENOMEM, "io_error", "out of memory for a packed hot set of %zu pages", count);
	memcpy(header->magic, HOT_SET_MAGIC, sizeof header->magic);
	header->version = HOT_SET_VERSION;
	header->page_size = HOT_SET_PAGE;
	header->count = count;
	header->image = *image;

	_cleanup_close_ int fd = beside_create(tmp);
	struct builder b = {
		.fd = fd, .image_fd = image_fd, .header = header, .table = table, .digests = digests, .chunk = chunk
	};
	int r = fd < 0 ? fd : write_all(&b, pages, count, stopping);
	if (r == 0 && rename(tmp, path) < 0)
		r = -errno;
	if (r == 0)
		return 0;
	if (fd >= 0)
		unlink(tmp);
	if (r == -ECANCELED)
		return r;
	return error_set(err, r, r == -ENOSPC || r == -EDQUOT ? "disk_full" : "io_error",
			 "cannot write the packed hot set '%s': %s", path, strerror(-r));
}
