/*
 * A packed hot set: the pages of a template that its forks touch, in the order in which they do, in one file beside the image. A cold image has its
 * hot pages all over; here they can be read as fast as the device reads at all. It holds copies of the image's pages by their numbers, so any list can
 * be served from it: one in another order is only served more slowly.
 *
 * The file, integers little-endian: a header of 4,096 bytes (struct header in hot_set.c); a table of 64-bit words, one a page, in the file's order: the
 * page's number in the image, and bit 63 where it is all zeros and takes no room; the XXH3 of each chunk of HOT_SET_CHUNK pages; then, at a multiple
 * of 4,096, the pages. Windows of HOT_SET_WINDOW pages follow each other in the list's order, each sorted by page number.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "template/hot_loader.h"
#include "template/image_stamp.h"
#include "template/source.h"

#define HOT_SET_PAGE   4096u
#define HOT_SET_WINDOW 64u /* pages */
#define HOT_SET_CHUNK  32u /* pages that are read and checked together */
#define HOT_SET_NAME   ".hotset"

struct hot_set;

/* PAGES, COUNT of them and all different, are page numbers of the image in a list's order: what tells one order from another. */
uint64_t hot_set_digest(const uint64_t *pages, size_t count);

/*
 * Writes the set to PATH, whole or not at all. IMAGE_FD is read, and PAGES are sorted in their windows. Codes: io_error, disk_full; -ECANCELED
 * without one where STOPPING has become true.
 */
int hot_set_build(const char *path, int image_fd, const struct image_stamp *image, uint64_t *pages, size_t count,
		  const _Atomic bool *stopping, struct error *err);

/*
 * LOADER, which outlives it, reads it; NULL: nothing is held in memory. LIKE: reading it takes as long as reading this source, if that has been slowed down for a test. Codes: hot_set_missing; hot_set_stale, of another image;
 * hot_set_damaged; io_error. The caller has the first reference.
 */
int hot_set_open(const char *path, const struct image_stamp *image, struct hot_loader *loader, struct source *like,
		 struct hot_set **ret, struct error *err);
struct hot_set *hot_set_ref(struct hot_set *set);
void hot_set_unref(struct hot_set *set);
DEFINE_CLEANUP(struct hot_set, hot_set_unref)
#define _cleanup_hot_set_ _cleanup_(cleanup_hot_set_unref)

/* It has proved damaged, and gives no page any more. */
bool hot_set_is_broken(const struct hot_set *set);
/* Of the list that it was made for. */
uint64_t hot_set_list(const struct hot_set *set);
uint64_t hot_set_bytes(const struct hot_set *set); /* of the file */
uint64_t hot_set_pages(const struct hot_set *set);

/* Pages that follow each other in the image and in the set, within one chunk; or zeros. */
struct hot_run {
	uint64_t index; /* of the first, among those that are in the file */
	uint64_t count;
	bool zero;
};

/* From image page PAGE on, at most MOST. False: the set does not have PAGE, or is not to be relied on any more. Any thread. */
bool hot_set_find(const struct hot_set *set, uint64_t page, uint64_t most, struct hot_run *ret);

/* One fork's way to a set. */
struct hot_reader {
	struct hot_set *set; /* NULL: none; a reference */
	bool held;	     /* its pages are, or come to be, in memory of the server's own */
	_Atomic uint64_t *charged; /* when each chunk has been read, where the source is a slowed one; 0: it is not yet asked for */
};

/* Takes SET, which may be NULL. 0 or -ENOMEM. */
int hot_reader_init(struct hot_reader *reader, struct hot_set *set);
void hot_reader_clear(struct hot_reader *reader);

/*
 * RUN's bytes, which are in the file, somewhere in BUFFER, of at least a chunk's size: RET says where. WAIT false: -EAGAIN where they are not in
 * memory. -EBADMSG: they are not what was written, or not all there; this is logged, and the set is not used any more. Any thread.
 */
int hot_reader_read(struct hot_reader *reader, const struct hot_run *run, bool wait, void *buffer, const void **ret);
/* Has what follows INDEX in the file brought into memory, without waiting for it. */
void hot_reader_advise(struct hot_reader *reader, uint64_t index);
