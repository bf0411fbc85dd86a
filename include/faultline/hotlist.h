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
	FAULTLINE_HOTLIST_JSON = 2, /* keeps the order */
	FAULTLINE_HOTLIST_CSV = 3   /* keeps the order */
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

/* Sorts by mapping and offset, and drops duplicates. NULL is fine. */
FAULTLINE_API void faultline_hotlist_sort(struct faultline_hotlist *list);

/* Whether every page lies in the memory of CLIENT, connected or not. FAULTLINE_BAD_LIST: not; the text names the first that does not. */
FAULTLINE_API int faultline_hotlist_check(const struct faultline_hotlist *list, const struct faultline_client *client,
					  struct faultline_error *error);

#ifdef __cplusplus
}
#endif

#endif
