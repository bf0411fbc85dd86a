/* Hot lists in memory and on disk. docs/hotlist-format.md describes the formats byte by byte. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/error.h"

/* 256 MiB of HPL1 is 40 million pages or more, 160 GiB of guest memory: a larger file is not a hot list. */
#define HOTLIST_FILE_MAX (256ull << 20)

/* Offsets are multiples of this, whatever the page size of the fork that the list came from. */
#define HOTLIST_PAGE_SIZE 4096ull

enum hotlist_format { HOTLIST_HPL1, HOTLIST_JSON, HOTLIST_CSV };

/* A page of a fork: the region's index in the handshake, and a byte offset within that region. */
struct hot_page {
	uint64_t region;
	uint64_t offset;
};

/* Pages in list order. Owned by whoever made it; not thread-safe. */
struct hotlist {
	struct hot_page *pages;
	size_t count;
	size_t capacity;
	enum hotlist_format format; /* what it was decoded from; HOTLIST_HPL1 for a new list and for a missing file */
};

struct hotlist *hotlist_new(void);
void hotlist_free(struct hotlist *list);
DEFINE_CLEANUP(struct hotlist, hotlist_free)
#define _cleanup_hotlist_ _cleanup_(cleanup_hotlist_free)

/* Appends one page. 0 or -ENOMEM. */
int hotlist_add(struct hotlist *list, uint64_t region, uint64_t offset);

/* Sorts by (region, offset) and drops duplicates: the order in which HPL1 is written. */
void hotlist_sort(struct hotlist *list);

/* Whether hotlist_sort would change nothing. */
bool hotlist_is_sorted(const struct hotlist *list);

/* A copy of its own; NULL: out of memory. */
struct hotlist *hotlist_copy(const struct hotlist *list);

/* Name as on the command line ("hpl1", "json", "csv"); -EINVAL with ERR where there is no such format. */
int hotlist_format_parse(const char *name, enum hotlist_format *ret, struct error *err);
const char *hotlist_format_name(enum hotlist_format format);

/*
 * Bytes to list, the format found from the bytes themselves. Anything malformed gives -EBADMSG with code "bad_hot_list", and
 * ERR names the byte offset (HPL1), the line (CSV) or the line and column (JSON). Reading accepts any order and
 * duplicates. Memory is bounded by SIZE (16 bytes for each 2 of input), whatever the input claims. -ENOMEM: no memory.
 */
int hotlist_decode(const void *data, size_t size, struct hotlist **ret, struct error *err);

/* List to bytes that the caller frees. HPL1 is sorted and without duplicates; the others keep the list's order. */
int hotlist_encode(const struct hotlist *list, enum hotlist_format format, void **ret_data, size_t *ret_size,
		   struct error *err);

/*
 * Reads PATH. A file that does not exist is an empty list. Errors name PATH and have code "bad_hot_list", whether it could
 * not be read or made no sense. Not a regular file: -EINVAL, and never a wait for one that blocks. Larger than HOTLIST_FILE_MAX: -EFBIG.
 */
int hotlist_load(const char *path, struct hotlist **ret, struct error *err);

/* The same from an open file or pipe, to its end; NAME stands for it in errors. Blocks as FD does. */
int hotlist_load_fd(int fd, const char *name, struct hotlist **ret, struct error *err);

/*
 * Writes DATA to PATH so that a reader sees the old file or the new one, never a part: PATH.tmp, fsync, rename, fsync of the
 * directory. On failure PATH is as it was, PATH.tmp is gone, and ERR says what to do (codes: disk_full, io_error). Only if the
 * last fsync fails is the new file there already; ERR says so.
 *
 * A PATH.tmp that a dead writer left is replaced. A live writer of the same PATH holds a lock (flock) on its PATH.tmp and is
 * waited for, so of two writers each saves a whole file and the last one stays. A symbolic link is followed. A device or a pipe
 * (/dev/stdout) is written to as it stands.
 */
int hotlist_write_file(const char *path, const void *data, size_t size, struct error *err);

/* hotlist_encode and hotlist_write_file. */
int hotlist_save(const struct hotlist *list, enum hotlist_format format, const char *path, struct error *err);

/* One region as a list is checked against it. Sizes in bytes. */
struct hotlist_region {
	uint64_t size;
	uint64_t page_size;
};

/*
 * Every entry must lie in a region and on a page boundary of 4096 (a list recorded at 4 KiB may be used on larger pages).
 * -EINVAL with code "bad_region" or "bad_offset", and ERR names the first bad entry.
 */
int hotlist_check(const struct hotlist *list, const struct hotlist_region *regions, size_t region_count,
		  struct error *err);

/* What a list says of one region. Offsets in bytes. */
struct hotlist_region_summary {
	uint64_t region;
	size_t pages; /* distinct */
	size_t runs;
	uint64_t lowest, highest; /* offset of the first and of the last page */
};

/* What a list says; a run is a row of pages that follow each other in memory, wherever they stand in the list. */
struct hotlist_summary {
	size_t pages; /* distinct */
	size_t duplicates;
	size_t runs;
	size_t longest_run; /* pages */
	bool sorted;
	struct hotlist_region_summary *regions; /* in order of their index */
	size_t region_count;
};

/* PAGE_SIZE in bytes decides what a neighbour is. 0 or -ENOMEM; the summary is freed by hotlist_summary_clear. */
int hotlist_summarize(const struct hotlist *list, uint64_t page_size, struct hotlist_summary *ret);
void hotlist_summary_clear(struct hotlist_summary *summary);

/* Two lists as sets of pages: what only one has, sorted, and how many they share. */
struct hotlist_comparison {
	struct hotlist *only_a, *only_b;
	size_t both;
};

/* 0 or -ENOMEM; the comparison is freed by hotlist_comparison_clear. */
int hotlist_compare(const struct hotlist *a, const struct hotlist *b, struct hotlist_comparison *ret);
void hotlist_comparison_clear(struct hotlist_comparison *comparison);

/* Pages in both over pages in either, 0 to 1; two empty lists are the same: 1. */
double hotlist_jaccard(const struct hotlist_comparison *comparison);
