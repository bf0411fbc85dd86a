/*
 * Packed hot sets in memory: while forks start, a set's pages stand in memory of the server's own, read once past the page cache, an extent at a
 * time and ahead of who wants them, and are copied from there into any number of forks. A while after the last fork they are let go.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

/* Pages of 4 KiB: what a device gives at its full rate, with one more behind it. */
#define HOT_EXTENT 256u

struct hot_loader;

int hot_loader_new(struct hot_loader **ret, struct error *err);
/* No set is open any more. NULL is fine. */
void hot_loader_free(struct hot_loader *loader);

/* One set's pages. */
struct hot_memory;

/*
 * PAGES pages that stand from OFFSET on in FD, which stays the caller's. DIRECT_FD: the same file for reading past the page cache, or -1. NULL: out of
 * memory, or the set is too large to be held.
 */
struct hot_memory *hot_memory_new(struct hot_loader *loader, int fd, int direct_fd, uint64_t offset, uint64_t pages);
/* Waits for reads that are under way. NULL is fine. */
void hot_memory_free(struct hot_memory *memory);

/* Between these two there is a place for the pages. 0; -ENOMEM: there is not, and leave is not to be called. */
int hot_memory_enter(struct hot_memory *memory);
void hot_memory_leave(struct hot_memory *memory);

/* Bits for whoever checks what was read, at least one a page; all are cleared when the pages are let go. */
_Atomic uint64_t *hot_memory_marks(struct hot_memory *memory);

/* Has the extent of page INDEX, and some behind it, read soon. Any thread that has entered. */
void hot_memory_want(struct hot_memory *memory, uint64_t index);
/* Where page INDEX stands, with all of its extent. WAIT false: -EAGAIN where it has not been read yet. Or why it can't be. */
int hot_memory_find(struct hot_memory *memory, uint64_t index, bool wait, const char **ret);
