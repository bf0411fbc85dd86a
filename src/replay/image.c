/* The bitmap of a memory image: which of its pages held data. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "replay/trace.h"
#include "replay/unpack.h"

#define BYTES_MAX (TRACE_PAGES_MAX / 8)

#define BAD_BITMAP(err, ...) error_set(err, -EBADMSG, "bad_bitmap", __VA_ARGS__)

struct bits {
	uint8_t *data;
	size_t size, capacity;
	struct error *err;
};

static int take_bits(void *user, const char *bytes, size_t size)
{
	struct bits *bits = user;

	if (!size)
		return 0;
	if (size > BYTES_MAX - bits->size)
		return BAD_BITMAP(bits->err, "it has more than %llu bits, one for each page of an image of 1 TiB",
				  TRACE_PAGES_MAX);
	if (bits->size + size > bits->capacity) {
		size_t capacity = 2 * (bits->size + size);
		uint8_t *data = realloc(bits->data, capacity);

		if (!data)
			return error_set(bits->err, -ENOMEM, "no_memory", "there is not enough memory for its bits");
		bits->data = data;
		bits->capacity = capacity;
	}
	memcpy(bits->data + bits->size, bytes, size);
	bits->size += size;
	return 0;
}

static void clear_bits(struct bits *bits)
{
	free(bits->data);
}

int trace_image_parse(const void *data, size_t size, struct trace_image **ret, struct error *err)
{
	_cleanup_trace_image_ struct trace_image *image = calloc(1, sizeof *image);
	_cleanup_(clear_bits) struct bits bits = { .err = err };

	if (!image)
		return error_set(err, -ENOMEM, "no_memory", "there is not enough memory to parse it");
	int r = unpack(data, size, take_bits, &bits, err);
	if (r < 0)
		return r;
	if (!bits.size)
		return BAD_BITMAP(err, "it is empty: it must have a bit for each page of the memory image");
	image->bits = TAKE_PTR(bits.data);
	image->pages = bits.size * 8ull;
	for (size_t i = 0; i < bits.size; i++)
		image->nonzero += (unsigned)__builtin_popcount(image->bits[i]);
	*ret = TAKE_PTR(image);
	return 0;
}

int trace_image_load(const char *path, struct trace_image **ret, struct error *err)
{
	_cleanup_free_ void *data = NULL;
	size_t size;
	int r = unpack_read_file(path, BYTES_MAX + 4096, &data, &size, err);

	if (r < 0)
		return error_prefix(err, r,
				    "the bitmap of pages with data is missing (--nonzero names one elsewhere): ");
	r = trace_image_parse(data, size, ret, err);
	return r < 0 ? error_prefix(err, r, "%s is no bitmap of a memory image: ", path) : 0;
}

void trace_image_free(struct trace_image *image)
{
	if (!image)
		return;
	free(image->bits);
	free(image);
}

int trace_check_image(const struct trace *trace, const struct trace_image *image, struct error *err)
{
	for (size_t i = 0; i < trace->count; i++)
		if (trace->touches[i].page >= image->pages)
			return error_set(err, -EINVAL, "bad_bitmap",
					 "line %zu of the trace touches page %u, but the bitmap has only %" PRIu64
					 " pages: it belongs to another trace",
					 i + 2, trace->touches[i].page, image->pages);
	return 0;
}

static bool take_suffix(const char *path, size_t *length, const char *suffix)
{
	size_t n = strlen(suffix);

	if (*length <= n || memcmp(path + *length - n, suffix, n) != 0)
		return false;
	*length -= n;
	return true;
}

char *trace_image_path(const char *trace_path)
{
	size_t length = strlen(trace_path);
	char *path = NULL;

	take_suffix(trace_path, &length, ".gz");
	take_suffix(trace_path, &length, ".csv");
	if (asprintf(&path, "%.*s.nonzero.gz", (int)length, trace_path) < 0)
		return NULL;
	return path;
}
