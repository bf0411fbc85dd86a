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

enum hotlist_format { HOTLIST_HPL1, HOTLIST_JSON, HOTLIST_CSV, HOTLIST_HPL2 };

/* A page of a fork: the region's index in the handshake, and a byte offset within that region. */
struct hot_page {
	uint64_t region;
	uint64_t offset;
};

/* What is known of a page besides that it is hot. */
struct hot_touch {
	uint64_t raw_ns;       /* first touch since the handshake, as it happened; median over runs */
	uint64_t corrected_ns; /* the same by its vCPU's virtual clock, which leaves out stalls */
	uint32_t seen;	       /* of the list's runs, in so many it was touched */
	uint32_t spread; /* how much its place moved between runs: median distance from the median, in millionths of the list's length */
	uint16_t vcpu; /* that touched it first, mostly; HOT_VCPU_UNKNOWN */
	uint8_t kind;  /* of the first touch: enum hot_kind */
	uint8_t flags; /* HOT_WAS_PRESENT */
};
#define HOT_VCPU_UNKNOWN UINT16_MAX
#define HOT_WAS_PRESENT	 1 /* mostly there already when it was touched: prefetched, or shared */
/* Of a page that was added without a touch. */
#define HOT_TOUCH_NOTHING ((struct hot_touch){ .vcpu = HOT_VCPU_UNKNOWN })
enum hot_kind { HOT_UNKNOWN, HOT_READ, HOT_WRITE, HOT_FETCH, HOT_WALK };

/* By which time a list is ordered. */
enum hot_clock { HOT_CLOCK_UNKNOWN, HOT_CLOCK_RAW, HOT_CLOCK_CORRECTED };

#define HOTLIST_REGIONS_MAX 1024
#define HOTLIST_TIER_SIZE   16
#define HOT_AGREEMENT_MAX   2000000 /* a correlation of 1 */
#define IMAGE_IDENTITY_SIZE 32	    /* bytes: SHA-256, see identity.h */

/* Where a list comes from. What isn't known is 0. */
struct hotlist_origin {
	uint64_t page_size; /* host's page size of the recording */
	struct hotlist_region_size {
		uint64_t size, offset, page_size; /* bytes; OFFSET in the image */
	} * regions;
	size_t region_count;
	uint64_t template_size;			      /* bytes of the image */
	uint8_t template_digest[IMAGE_IDENTITY_SIZE]; /* of what identifies it, see image_identity(); all zeros: not bound to a template */
	uint32_t runs;				      /* recordings in it */
	uint64_t events_lost;
	uint64_t window_ns;	      /* how long the recording went: the longest of its runs */
	uint32_t window_end;	      /* enum hot_window_end */
	char tier[HOTLIST_TIER_SIZE]; /* "fentry", "kprobe", "tp_btf", "loop" */
	enum hot_clock clock;	      /* of the list's order */
	/*
	 * Mean pairwise rank correlation of the runs by each clock, in millionths + 1,000,000. Of a single run: how far what it shows by itself speaks for
	 * that clock, 0 to 1, in the same form. 0: not known.
	 */
	uint32_t agreement_raw;
	uint32_t agreement_corrected;
};
enum hot_window_end { HOT_WINDOW_UNKNOWN, HOT_WINDOW_READY, HOT_WINDOW_SETTLED, HOT_WINDOW_TIMEOUT, HOT_WINDOW_GONE };

/* Pages in list order. Owned by whoever made it; not thread-safe. */
struct hotlist {
	struct hot_page *pages;
	struct hot_touch *touches;     /* one for each page, or NULL: a list without them */
	struct hotlist_origin *origin; /* NULL: not known */
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

/* The same with what is known of it; pages added before get touches that say nothing. */
int hotlist_add_touch(struct hotlist *list, uint64_t region, uint64_t offset, const struct hot_touch *touch);

bool hot_touch_says_nothing(const struct hot_touch *touch);

/* Whether any page has a touch that says something: touches that don't are not written to files. */
bool hotlist_has_touches(const struct hotlist *list);

/* Replaces the list's origin by a copy of ORIGIN with regions of its own, or by none (NULL). 0, or -ENOMEM with the list as it was. */
int hotlist_set_origin(struct hotlist *list, const struct hotlist_origin *origin);

/* With its regions; NULL is fine. */
void hotlist_origin_free(struct hotlist_origin *origin);

/*
 * Sorts by (region, offset) and drops duplicates, of which the first keeps its touch: the order in which HPL1 is written. 0, or -ENOMEM with
 * the list as it was; without touches it cannot fail.
 */
int hotlist_sort(struct hotlist *list);

/* How many different pages LIST has. 0 or -ENOMEM. */
int hotlist_count_distinct(const struct hotlist *list, size_t *ret);

/* Drops duplicates, of which the first stays where it is. 0, or -ENOMEM with the list as it was. */
int hotlist_dedupe(struct hotlist *list);

/* Whether hotlist_sort would change nothing. */
bool hotlist_is_sorted(const struct hotlist *list);

/* A copy of its own, touches and origin included; NULL: out of memory. */
struct hotlist *hotlist_copy(const struct hotlist *list);

/* Name as on the command line ("hpl1", "hpl2", "json", "csv"); -EINVAL with ERR where there is no such format. */
int hotlist_format_parse(const char *name, enum hotlist_format *ret, struct error *err);
const char *hotlist_format_name(enum hotlist_format format);

/*
 * Bytes to list, the format found from the bytes themselves. Anything malformed gives -EBADMSG with code "bad_hot_list", and
 * ERR names the byte offset (HPL1, HPL2), the line (CSV) or the line and column (JSON). Reading accepts any order and
 * duplicates. Memory is bounded by SIZE (16 bytes for each 2 of input), whatever the input claims. -ENOMEM: no memory.
 */
int hotlist_decode(const void *data, size_t size, struct hotlist **ret, struct error *err);

/*
 * List to bytes that the caller frees. HPL1 is the set of pages, sorted; HPL2 is without duplicates, of which the first counts, and in the list's
 * order; JSON and CSV hold all that the list does, but CSV not its origin. -ENOMEM; for HPL2 also -EINVAL (an offset that is not a multiple of
 * 4096, an origin that cannot be) and -E2BIG.
 */
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

/* Whether the list says which image it was recorded on. */
bool hotlist_origin_is_bound(const struct hotlist_origin *origin);

/*
 * A list that says which image it was recorded on is of no use on another one. SIZE (bytes) and DIGEST, from image_identity(), are those of
 * IMAGE, its name for messages. -ESTALE with code "bad_hot_list"; 0 for a list that says nothing.
 */
int hotlist_check_image(const struct hotlist *list, const char *image, uint64_t size,
			const uint8_t digest[static IMAGE_IDENTITY_SIZE], struct error *err);

/* That number and sizes of the regions are those that the list was recorded on, if it has them. -EINVAL with code "bad_hot_list". */
int hotlist_check_layout(const struct hotlist *list, const struct hotlist_region *regions, size_t region_count,
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

/* Two lists as sets of pages: what only one has, sorted and with its touches, and how many they share. */
struct hotlist_comparison {
	struct hotlist *only_a, *only_b;
	size_t both;
};

/* 0 or -ENOMEM; the comparison is freed by hotlist_comparison_clear. */
int hotlist_compare(const struct hotlist *a, const struct hotlist *b, struct hotlist_comparison *ret);
void hotlist_comparison_clear(struct hotlist_comparison *comparison);

/* Pages in both over pages in either, 0 to 1; two empty lists are the same: 1. */
double hotlist_jaccard(const struct hotlist_comparison *comparison);
