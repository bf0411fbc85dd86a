/* The file of a packed hot set, for those who read and write it: see hot_set.h. */
#pragma once

#include <stdint.h>
#include <string.h>
#include <xxhash.h>

#include "template/hot_set.h"

#define HOT_SET_MAGIC	"FLHOTSET"
#define HOT_SET_VERSION 1u
/* In the table: all zeros, and not in the file. */
#define HOT_SET_ZERO (1ull << 63)
/* Page numbers have 32 bits, of which the last is no page's. */
#define HOT_SET_PAGES_MAX ((uint64_t)UINT32_MAX)

struct hot_set_header {
	char magic[8];
	uint32_t version, page_size;
	uint64_t count, stored; /* pages, and those of them that are in the file */
	struct image_stamp image;
	uint64_t list;	       /* hot_set_digest of the list */
	uint64_t table_digest; /* XXH3 of table and chunk digests */
	uint64_t digest;       /* XXH3 of this header, with zero here */
	uint8_t reserved[4096 - 8 - 2 * 4 - 2 * 8 - sizeof(struct image_stamp) - 3 * 8];
};
_Static_assert(sizeof(struct hot_set_header) == 4096, "the header is a page");

static inline uint64_t hot_set_header_digest(const struct hot_set_header *header)
{
	struct hot_set_header copy;

	memcpy(&copy, header, sizeof copy);
	copy.digest = 0;
	return XXH3_64bits(&copy, sizeof copy);
}

static inline uint64_t hot_set_data_offset(const struct hot_set_header *header)
{
	uint64_t words = header->count + (header->stored + HOT_SET_CHUNK - 1) / HOT_SET_CHUNK;

	return (sizeof *header + words * 8 + HOT_SET_PAGE - 1) / HOT_SET_PAGE * HOT_SET_PAGE;
}
