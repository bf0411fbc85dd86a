/* The body of an HPL2 file, inflated or deflated through a window: never held as a whole, whatever its size. */
#include "hotlist/hpl2.h"

#include <stdlib.h>
#include <string.h>

/* Quick, and within a few percent of the best on columns of differences. */
#define LEVEL	  6
#define MEM_LEVEL 8

int hpl2_reader_start(struct hpl2_reader *reader, const void *data, size_t size, uint64_t body_size)
{
	memset(&reader->stream, 0, sizeof reader->stream);
	reader->size = body_size;
	reader->taken = 0;
	reader->at = reader->end = 0;
	reader->over = false;
	/* zlib does not write there. */
	reader->stream.next_in = (Bytef *)(uintptr_t)data;
	reader->stream.avail_in = (uInt)size;
	return inflateInit(&reader->stream) == Z_OK ? 0 : -ENOMEM;
}

void hpl2_reader_end(struct hpl2_reader *reader)
{
	inflateEnd(&reader->stream);
}

static int damaged(const struct hpl2_reader *reader, size_t file_at, struct error *err)
{
	return BAD_LIST(err, "the compressed pages are damaged at byte %zu: %s",
			file_at + (size_t)reader->stream.total_in,
			reader->stream.msg ? reader->stream.msg : "the zlib stream is cut short");
}

int hpl2_reader_fill(struct hpl2_reader *reader, size_t wanted, size_t file_at, struct error *err)
{
	if (reader->end - reader->at >= wanted || reader->over)
		return 0;

	memmove(reader->window, reader->window + reader->at, reader->end - reader->at);
	reader->end -= reader->at;
	reader->at = 0;
	while (reader->end < sizeof reader->window && !reader->over) {
		reader->stream.next_out = reader->window + reader->end;
		reader->stream.avail_out = (uInt)(sizeof reader->window - reader->end);
		int z = inflate(&reader->stream, Z_NO_FLUSH);
		if (z == Z_MEM_ERROR)
			return -ENOMEM;
		if (z != Z_OK && z != Z_STREAM_END)
			return damaged(reader, file_at, err);
		reader->end = sizeof reader->window - reader->stream.avail_out;
		reader->over = z == Z_STREAM_END;
		if (reader->stream.total_out > reader->size)
			return BAD_LIST(err,
					"bad size of the pages at byte 16: they were to be %" PRIu64
					" bytes, and the zlib stream at byte %zu goes on after that",
					reader->size, file_at);
	}
	return 0;
}

int hpl2_reader_finish(struct hpl2_reader *reader, size_t file_at, struct error *err)
{
	/* One more byte shows whether there is one, and lets zlib check its own sum. */
	int r = hpl2_reader_fill(reader, 1, file_at, err);
	if (r < 0)
		return r;
	if (reader->at < reader->end)
		return BAD_LIST(err, "trailing bytes at byte %" PRIu64 " of the inflated pages, after the last of them",
				reader->taken);
	if (reader->taken < reader->size)
		return BAD_LIST(err,
				"bad size of the pages at byte 16: they were to be %" PRIu64 " bytes, and are %" PRIu64,
				reader->size, reader->taken);
	if (reader->stream.avail_in)
		return BAD_LIST(err, "%u trailing bytes at byte %zu, after the end of the zlib stream",
				reader->stream.avail_in, file_at + (size_t)reader->stream.total_in);
	return 0;
}

int hpl2_writer_start(struct hpl2_writer *writer, int strategy)
{
	memset(&writer->stream, 0, sizeof writer->stream);
	writer->data = NULL;
	writer->size = writer->capacity = 0;
	writer->written = 0;
	writer->end = 0;
	return deflateInit2(&writer->stream, LEVEL, Z_DEFLATED, MAX_WBITS, MEM_LEVEL, strategy) == Z_OK ? 0 : -ENOMEM;
}

/* Passes the window on. */
static int pack(struct hpl2_writer *writer, int flush)
{
	int z;

	writer->stream.next_in = writer->window;
	writer->stream.avail_in = (uInt)writer->end;
	do {
		if (writer->size == writer->capacity) {
			size_t capacity = writer->capacity + writer->capacity / 2 + 4096;
			uint8_t *grown = realloc(writer->data, capacity);
			if (!grown)
				return -ENOMEM;
			writer->data = grown;
			writer->capacity = capacity;
		}
		size_t room = writer->capacity - writer->size;
		writer->stream.next_out = writer->data + writer->size;
		writer->stream.avail_out = (uInt)(room < UINT32_MAX ? room : UINT32_MAX);
		uInt before = writer->stream.avail_out;
		z = deflate(&writer->stream, flush);
		writer->size += before - writer->stream.avail_out;
	} while (writer->stream.avail_in || (flush == Z_FINISH && z != Z_STREAM_END));
	writer->end = 0;
	return 0;
}

int hpl2_writer_put(struct hpl2_writer *writer, const void *data, size_t size)
{
	if (size > sizeof writer->window - writer->end) {
		int r = pack(writer, Z_NO_FLUSH);
		if (r < 0)
			return r;
	}
	memcpy(writer->window + writer->end, data, size);
	writer->end += size;
	writer->written += size;
	return 0;
}

int hpl2_writer_finish(struct hpl2_writer *writer)
{
	return pack(writer, Z_FINISH);
}

void hpl2_writer_end(struct hpl2_writer *writer)
{
	deflateEnd(&writer->stream);
	free(writer->data);
}
