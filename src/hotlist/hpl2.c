/* HPL2: header, origin, compressed pages, checksum. What the header claims is held against the file's size before anything is allocated. */
#include "hotlist/hpl2.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC	   "HPL2"
#define MAGIC_SIZE 4

/* Numbers of fixed size are little-endian. */
static uint32_t get(const uint8_t *data, size_t bytes)
{
	uint32_t n = 0;

	for (size_t i = 0; i < bytes; i++)
		n |= (uint32_t)data[i] << 8 * i;
	return n;
}

static void put(uint8_t *data, size_t bytes, uint32_t n)
{
	for (size_t i = 0; i < bytes; i++)
		data[i] = (uint8_t)(n >> 8 * i);
}

bool hpl2_detect(const void *data, size_t size)
{
	return size >= MAGIC_SIZE && !memcmp(data, MAGIC, MAGIC_SIZE);
}

static int read_header(const uint8_t *data, size_t size, struct hpl2_header *ret, struct error *err)
{
	if (size >= 6 && get(data + 4, 2) != HPL2_VERSION)
		return BAD_LIST(err, "bad version at byte 4: %u; this faultline reads version %d of hpl2",
				get(data + 4, 2), HPL2_VERSION);
	if (size < HPL2_HEADER_SIZE)
		return BAD_LIST(err, "truncated: the file ends at byte %zu, within its header of %d bytes", size,
				HPL2_HEADER_SIZE);
	struct hpl2_header header = {
		.flags = (uint16_t)get(data + 6, 2),
		.origin_size = get(data + 8, 4),
		.pages = get(data + 12, 4),
		.body_size = get(data + 16, 4),
		.packed_size = get(data + 20, 4),
	};
	if (header.flags & ~HPL2_FLAGS)
		return BAD_LIST(err, "unknown flags at byte 6: 0x%04x; this faultline knows 0x%04x", header.flags,
				HPL2_FLAGS);
	if (!(header.flags & HPL2_HAS_ORIGIN) && header.origin_size)
		return BAD_LIST(err, "bad size of the origin at byte 8: %u bytes, and the flags say that there is none",
				header.origin_size);
	*ret = header;
	return 0;
}

static int check_file(const uint8_t *data, size_t size, const struct hpl2_header *header, struct error *err)
{
	uint64_t whole = (uint64_t)HPL2_HEADER_SIZE + header->origin_size + header->packed_size + HPL2_CHECKSUM_SIZE;

	if (size < whole)
		return BAD_LIST(err,
				"truncated: the file ends at byte %zu, and its header says at bytes 8 and 20 that it has %" PRIu64,
				size, whole);
	if (size > whole)
		return BAD_LIST(err,
				"%" PRIu64 " trailing bytes at byte %" PRIu64 ", after the end that the header tells",
				size - whole, whole);
	uint32_t said = get(data + size - HPL2_CHECKSUM_SIZE, 4);
	uint32_t is = (uint32_t)crc32_z(0, data, size - HPL2_CHECKSUM_SIZE);
	if (said != is)
		return BAD_LIST(err,
				"bad checksum at byte %zu: %08x, and that of the bytes before is %08x: the file is damaged",
				size - HPL2_CHECKSUM_SIZE, said, is);
	return 0;
}

int hpl2_decode(const void *data, size_t size, struct hotlist *list, struct error *err)
{
	const uint8_t *bytes = data;
	struct hpl2_header header;
	int r = read_header(bytes, size, &header, err);

	if (r == 0)
		r = check_file(bytes, size, &header, err);
	if (r == 0 && header.flags & HPL2_HAS_ORIGIN)
		r = hpl2_origin_decode(bytes + HPL2_HEADER_SIZE, header.origin_size, HPL2_HEADER_SIZE, list, err);
	if (r < 0)
		return r;
	size_t at = HPL2_HEADER_SIZE + header.origin_size;
	return hpl2_pages_decode(&header, bytes + at, at, list, err);
}

static void write_header(const struct hpl2_header *header, uint8_t *data)
{
	memcpy(data, MAGIC, MAGIC_SIZE);
	put(data + 4, 2, HPL2_VERSION);
	put(data + 6, 2, header->flags);
	put(data + 8, 4, header->origin_size);
	put(data + 12, 4, header->pages);
	put(data + 16, 4, header->body_size);
	put(data + 20, 4, header->packed_size);
}

/* The parts one behind the other. */
static int assemble(const struct hpl2_header *header, const uint8_t *origin, const uint8_t *packed, void **ret_data,
		    size_t *ret_size)
{
	size_t size = (size_t)HPL2_HEADER_SIZE + header->origin_size + header->packed_size + HPL2_CHECKSUM_SIZE;
	uint8_t *data = malloc(size);

	if (!data)
		return -ENOMEM;
	write_header(header, data);
	size_t at = HPL2_HEADER_SIZE;
	if (header->origin_size)
		memcpy(data + at, origin, header->origin_size);
	at += header->origin_size;
	memcpy(data + at, packed, header->packed_size);
	at += header->packed_size;
	put(data + at, 4, (uint32_t)crc32_z(0, data, at));
	*ret_data = data;
	*ret_size = size;
	return 0;
}

int hpl2_encode(const struct hotlist *list, void **ret_data, size_t *ret_size, struct error *err)
{
	_cleanup_free_ uint8_t *origin = NULL, *packed = NULL;
	bool touches = hotlist_has_touches(list);
	struct hpl2_header header = {
		.flags = (uint16_t)((list->origin ? HPL2_HAS_ORIGIN : 0) | (touches ? HPL2_HAS_TOUCHES : 0)),
	};
	size_t origin_size = 0;
	int r = list->origin ? hpl2_origin_encode(list->origin, &origin, &origin_size, err) : 0;

	if (r == 0)
		r = hpl2_pages_encode(list, touches, &packed, &header, err);
	if (r < 0)
		return r;
	header.origin_size = (uint32_t)origin_size;
	return assemble(&header, origin, packed, ret_data, ret_size);
}
