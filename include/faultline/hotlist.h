/*
 * Hot lists: the pages of a VM in the order in which it is expected to touch them. `faultline fork hot-list` makes them, `faultline fork
 * create --hot-list` uses them; this is for programs that make, look into, change or use lists of their own. The formats are described byte by
 * byte in docs/hotlist-format.md.
 *
 * A page is the index of a mapping, counted from 0 in the order of faultline_map and faultline_add, and an offset within that mapping in
 * bytes, a multiple of 4096 whatever the page size of the memory.
 *
 * THREADS. Lists are independent of each other. Of one list, functions that take it as const may be called by any threads at once; any other
 * must be alone. ERRORS are as result.h says; every function that can run out of memory returns FAULTLINE_NO_RESOURCES then, and a NULL list
 * is FAULTLINE_BAD_ARGUMENT.
 */
#ifndef FAULTLINE_HOTLIST_H
#define FAULTLINE_HOTLIST_H

#include <stddef.h>
#include <stdint.h>

#include <faultline/result.h>

#ifdef __cplusplus
extern "C" {
#endif

struct faultline_client;
struct faultline_hotlist;

enum faultline_hotlist_format {
	FAULTLINE_HOTLIST_HPL1 =
		1, /* binary, a set: sorted by mapping and offset, without duplicates. What servers of all kinds read. */
	FAULTLINE_HOTLIST_JSON = 2, /* all that is known, the order too */
	FAULTLINE_HOTLIST_CSV = 3,  /* keeps the order, and what is known of each page */
	FAULTLINE_HOTLIST_HPL2 =
		4 /* binary, compressed, checked: all that is known, the order too. No duplicates: of those the first place counts. */
};

/* How a page was first touched. */
enum faultline_hotlist_kind {
	FAULTLINE_HOTLIST_UNKNOWN = 0,
	FAULTLINE_HOTLIST_READ = 1,
	FAULTLINE_HOTLIST_WRITE = 2,
	FAULTLINE_HOTLIST_FETCH = 3, /* of an instruction */
	FAULTLINE_HOTLIST_WALK = 4   /* of a page table, by the processor */
};

#define FAULTLINE_HOTLIST_NO_VCPU UINT32_MAX

/*
 * What is known of a page besides that it is hot. What isn't known is 0, and FAULTLINE_HOTLIST_NO_VCPU. A later version may add members at the
 * end: SIZE says how many bytes of it the program knows.
 */
struct faultline_hotlist_touch {
	size_t size;	       /* set by the caller: sizeof(struct faultline_hotlist_touch) */
	uint64_t raw_ns;       /* first touch, in nanoseconds since the fork's handshake; median of the runs */
	uint64_t corrected_ns; /* the same less the time that its vCPU had lost to waiting for pages */
	uint32_t seen;	       /* runs of those in the list that touched the page */
	uint32_t spread;       /* how much its place moved between runs, in millionths of the list's length */
	uint32_t vcpu;	       /* that touched it first, counted from 0 */
	int kind;	       /* enum faultline_hotlist_kind */
	int present;	       /* 1: it was mostly there already when it was touched, prefetched say */
	uint32_t reserved;     /* 0 */
};

/* An empty list. Freed by faultline_hotlist_free. */
FAULTLINE_API int faultline_hotlist_new(struct faultline_hotlist **ret_list, struct faultline_error *error);

/* NULL is fine. */
FAULTLINE_API void faultline_hotlist_free(struct faultline_hotlist *list);

/*
 * Reads a file of any format, which is seen from its content. A file that doesn't exist is an empty list, as it is for the server; check
 * first where that matters. At most 256 MiB are read. Freed by faultline_hotlist_free.
 * FAULTLINE_BAD_LIST (the text names the byte, line or column), _NO_PERMISSION, _INPUT_OUTPUT.
 */
FAULTLINE_API int faultline_hotlist_load(const char *path, struct faultline_hotlist **ret_list,
					 struct faultline_error *error);

/* The same from SIZE bytes at DATA. FAULTLINE_BAD_LIST. */
FAULTLINE_API int faultline_hotlist_decode(const void *data, size_t size, struct faultline_hotlist **ret_list,
					   struct faultline_error *error);

/*
 * Writes the list to PATH, which is replaced as a whole or not at all (PATH.tmp, fsync, rename), so that no reader sees a part of it. FORMAT is
 * one of enum faultline_hotlist_format. FAULTLINE_BAD_ARGUMENT (no such format), _NO_PERMISSION, _INPUT_OUTPUT (the disk is full, say).
 */
FAULTLINE_API int faultline_hotlist_save(const struct faultline_hotlist *list, int format, const char *path,
					 struct faultline_error *error);

/* The same to memory, which the caller frees with free(). */
FAULTLINE_API int faultline_hotlist_encode(const struct faultline_hotlist *list, int format, void **ret_data,
					   size_t *ret_size, struct faultline_error *error);

/* Entries, duplicates included. 0 for NULL. */
FAULTLINE_API size_t faultline_hotlist_count(const struct faultline_hotlist *list);

/* What it was read from, one of enum faultline_hotlist_format; FAULTLINE_HOTLIST_HPL1 for a new list, and for NULL. */
FAULTLINE_API int faultline_hotlist_format(const struct faultline_hotlist *list);

/*
 * The entry at INDEX, counted from 0 in list order. To go through a list: INDEX from 0 until this returns something else than FAULTLINE_OK.
 * FAULTLINE_BAD_ARGUMENT: there is no such entry. Quick: no lock, no search.
 */
FAULTLINE_API int faultline_hotlist_get(const struct faultline_hotlist *list, size_t index, uint64_t *ret_mapping,
					uint64_t *ret_offset);

/* Appends a page. OFFSET is a multiple of 4096, else FAULTLINE_BAD_ARGUMENT. */
FAULTLINE_API int faultline_hotlist_add(struct faultline_hotlist *list, uint64_t mapping, uint64_t offset,
					struct faultline_error *error);

/*
 * What is known of the entry at INDEX, counted from 0 in list order. The caller owns RET_TOUCH and has set its size, of which no more is written.
 * A list that knows nothing of its pages (HPL1, for one) gives FAULTLINE_OK and a touch that says nothing. FAULTLINE_BAD_ARGUMENT: there is no such
 * entry, or the size is none. Quick: no lock, no search.
 */
FAULTLINE_API int faultline_hotlist_get_touch(const struct faultline_hotlist *list, size_t index,
					      struct faultline_hotlist_touch *ret_touch);

/*
 * As faultline_hotlist_add, with what is known of the page; TOUCH stays the caller's. FAULTLINE_BAD_ARGUMENT also where its size is none, or its kind
 * or vCPU (at most 65534) can't be.
 */
FAULTLINE_API int faultline_hotlist_add_touch(struct faultline_hotlist *list, uint64_t mapping, uint64_t offset,
					      const struct faultline_hotlist_touch *touch,
					      struct faultline_error *error);

/*
 * Sorts by mapping and offset, and drops duplicates, of which the first counts. NULL is fine. Where there is no memory to keep what is known of
 * the pages with them, that is dropped.
 */
FAULTLINE_API void faultline_hotlist_sort(struct faultline_hotlist *list);

/* Whether every page lies in the memory of CLIENT, connected or not. FAULTLINE_BAD_LIST: not; the text names the first that does not. */
FAULTLINE_API int faultline_hotlist_check(const struct faultline_hotlist *list, const struct faultline_client *client,
					  struct faultline_error *error);

#ifdef __cplusplus
}
#endif

#endif
