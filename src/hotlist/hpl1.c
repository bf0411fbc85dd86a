/* HPL1: "HPL1", the number of pages, then region and offset of each, all numbers as uvarints. */
#include "hotlist/format.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/varint.h"

#define MAGIC	   "HPL1"
#define MAGIC_SIZE 4
#define ENTRY_MIN  2 /* bytes: two uvarints of one byte each */

struct reader {
	const uint8_t *data;
	size_t size;
	size_t at;
};

static int check_magic(const uint8_t *data, size_t size, struct error *err)
{
	if (size < MAGIC_SIZE)
		return BAD_LIST(err,
				"shorter than the magic: the file ends at byte %zu, within the 4 bytes \"" MAGIC "\"",
				size);
	if (!memcmp(data, MAGIC, MAGIC_SIZE))
		return 0;
	if (!memcmp(data, "HPL", 3) && data[3] >= '3' && data[3] <= '9')
		return BAD_LIST(err,
				"bad magic at byte 0: \"HPL%c\", a format that this version of faultline cannot read",
				data[3]);
	return BAD_LIST(err,
			"bad magic at byte 0: %02x %02x %02x %02x. This is no hot list: neither \"" MAGIC
			"\", nor a JSON object, nor CSV with the columns region and offset",
			data[0], data[1], data[2], data[3]);
}

/* The next number, or -ENODATA or -EOVERFLOW with the reader still at its first byte. */
static int next(struct reader *reader, uint64_t *ret)
{
	int r = uvarint_decode(reader->data + reader->at, reader->size - reader->at, ret);

	if (r > 0)
		reader->at += (size_t)r;
	return r;
}

static int decode_count(struct reader *reader, uint64_t *ret, struct error *err)
{
	int r = next(reader, ret);

	if (r == -EOVERFLOW)
		return BAD_LIST(err, "bad count at byte %zu: varint over 64 bits", reader->at);
	if (r < 0)
		return BAD_LIST(err, "bad count at byte %zu: the file ends at byte %zu, within it", reader->at,
				reader->size);
	return 0;
}

/* COUNT entries were announced at MAGIC_SIZE; FIRST is where they begin. */
static int bad_entry(const struct reader *reader, int r, uint64_t i, const char *field, uint64_t count, size_t first,
		     struct error *err)
{
	if (r == -EOVERFLOW)
		return BAD_LIST(err, "varint over 64 bits in entry %" PRIu64 " (%s) at byte %zu", i, field, reader->at);

	BAD_LIST(err, "truncated in entry %" PRIu64 " (%s) at byte %zu: the file ends at byte %zu", i, field,
		 reader->at, reader->size);
	size_t rest = reader->size - first;
	if (count > rest / ENTRY_MIN)
		return error_prefix(err, -EBADMSG,
				    "bad count at byte %d: %" PRIu64
				    " entries do not fit in the %zu bytes that follow; ",
				    MAGIC_SIZE, count, rest);
	return -EBADMSG;
}

int hpl1_decode(const void *data, size_t size, struct hotlist *list, struct error *err)
{
	struct reader reader = { .data = data, .size = size, .at = MAGIC_SIZE };
	uint64_t count;
	int r;

	r = check_magic(data, size, err);
	if (r < 0)
		return r;
	r = decode_count(&reader, &count, err);
	if (r < 0)
		return r;

	/* The count is only a claim: what the file's bytes can hold bounds the memory taken. */
	size_t first = reader.at, fits = (size - first) / ENTRY_MIN;
	r = hotlist_reserve(list, count < fits ? (size_t)count : fits);
	if (r < 0)
		return r;

	for (uint64_t i = 0; i < count; i++) {
		uint64_t region, offset;

		r = next(&reader, &region);
		if (r < 0)
			return bad_entry(&reader, r, i, "region", count, first, err);
		r = next(&reader, &offset);
		if (r < 0)
			return bad_entry(&reader, r, i, "offset", count, first, err);
		r = hotlist_add(list, region, offset);
		if (r < 0)
			return r;
	}
	if (reader.at < size)
		return BAD_LIST(err, "%zu trailing byte%s at byte %zu, after the last of %" PRIu64 " entries",
				size - reader.at, size - reader.at == 1 ? "" : "s", reader.at, count);
	return 0;
}

int hpl1_encode(const struct hotlist *list, void **ret_data, size_t *ret_size)
{
	uint64_t room;

	/* The longest that it can be; shrunk to what it is at the end. */
	if (!checked_mul(list->count, 2 * UVARINT_MAX_BYTES, &room) ||
	    !checked_add(room, MAGIC_SIZE + UVARINT_MAX_BYTES, &room))
		return -ENOMEM;
	_cleanup_free_ uint8_t *data = malloc(room);
	if (!data)
		return -ENOMEM;

	memcpy(data, MAGIC, MAGIC_SIZE);
	size_t at = MAGIC_SIZE;
	at += uvarint_encode(list->count, data + at);
	for (size_t i = 0; i < list->count; i++) {
		at += uvarint_encode(list->pages[i].region, data + at);
		at += uvarint_encode(list->pages[i].offset, data + at);
	}

	uint8_t *shrunk = realloc(data, at);
	if (shrunk)
		data = shrunk;
	*ret_data = TAKE_PTR(data);
	*ret_size = at;
	return 0;
}
