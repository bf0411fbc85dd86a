/* HPL2 on the inside: what its parts (hpl2.c, hpl2_origin.c, hpl2_pages.c, hpl2_stream.c) share. docs/hotlist-format.md is the format. */
#pragma once

#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <zlib.h>

#include "base/varint.h"
#include "hotlist/format.h"

#define HPL2_VERSION	   1
#define HPL2_HAS_ORIGIN	   1u
#define HPL2_HAS_TOUCHES   2u
#define HPL2_FLAGS	   (HPL2_HAS_ORIGIN | HPL2_HAS_TOUCHES)
#define HPL2_HEADER_SIZE   24
#define HPL2_CHECKSUM_SIZE 4

/* 256 GiB of guest memory: more than that isn't hot. Bounds what a list takes in memory, with HPL2_BODY_MAX, at 3 GiB. */
#define HPL2_PAGES_MAX (1u << 26)
#define HPL2_BODY_MAX  (256u << 20)

/*
 * How much larger than its zlib stream a body may be. zlib reaches 1,000, and so would a file made to fill our memory; real lists with
 * touches stay below 4. What compresses better is written by Huffman codes alone, which need a bit for each byte.
 */
#define HPL2_RATIO_MAX 16u
#define HPL2_BODY_FREE (64u << 10) /* bytes that no ratio is asked of */

/* The numbers at the start of a file. */
struct hpl2_header {
	uint16_t flags;
	uint32_t origin_size, pages, body_size, packed_size; /* bytes; the body inflated, and as it is in the file */
};

/* ---- hpl2_stream.c: the body, through a window ---- */

#define HPL2_WINDOW (64u << 10)

struct hpl2_reader {
	z_stream stream;
	uint64_t size; /* of the body, as declared */
	uint64_t taken;
	size_t at, end; /* in the window: bytes inflated and not yet taken */
	bool over;	/* the stream has ended */
	uint8_t window[HPL2_WINDOW];
};

/* 0 or -ENOMEM. DATA stays with the caller, for as long as the reader is used. */
int hpl2_reader_start(struct hpl2_reader *reader, const void *data, size_t size, uint64_t body_size);
void hpl2_reader_end(struct hpl2_reader *reader);

/* Sees to it that WANTED bytes (at most HPL2_WINDOW / 2) are in the window, fewer only at the end of the body. FILE_AT is where the stream begins, for messages. */
int hpl2_reader_fill(struct hpl2_reader *reader, size_t wanted, size_t file_at, struct error *err);

/* That nothing is left: neither of the body nor of its stream. */
int hpl2_reader_finish(struct hpl2_reader *reader, size_t file_at, struct error *err);

struct hpl2_writer {
	z_stream stream;
	uint8_t *data; /* the caller's at the end: free() */
	size_t size, capacity;
	uint64_t written; /* bytes of the body */
	size_t end;	  /* of what is in the window */
	uint8_t window[HPL2_WINDOW];
};

/* STRATEGY is zlib's. 0 or -ENOMEM. */
int hpl2_writer_start(struct hpl2_writer *writer, int strategy);
int hpl2_writer_put(struct hpl2_writer *writer, const void *data, size_t size);
int hpl2_writer_finish(struct hpl2_writer *writer);
void hpl2_writer_end(struct hpl2_writer *writer);

/* ---- hpl2_origin.c ---- */

/* SIZE bytes at DATA, which stand at FILE_AT of the file, become LIST's origin. */
int hpl2_origin_decode(const uint8_t *data, size_t size, size_t file_at, struct hotlist *list, struct error *err);
int hpl2_origin_encode(const struct hotlist_origin *origin, uint8_t **ret, size_t *ret_size, struct error *err);

/* ---- hpl2_pages.c ---- */

/* PACKED is the zlib stream, which stands at FILE_AT. LIST gets all pages or the call fails. */
int hpl2_pages_decode(const struct hpl2_header *header, const void *packed, size_t file_at, struct hotlist *list,
		      struct error *err);
/* LIST has no duplicates. TOUCHES: with them. */
int hpl2_pages_encode(const struct hotlist *list, bool touches, uint8_t **ret, struct hpl2_header *header,
		      struct error *err);
