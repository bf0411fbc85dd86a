/*
 * A view of an image file through the page cache: which of its pages are in memory, and mapped here, so that they can be copied from by
 * address without a read. A page may be evicted after it has been seen, which makes a copy of it wait for the device once; the view is
 * believed for a few seconds only, and the kernel evicts mapped pages last.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct resident_view;

/* NULL: no view of this file (the kernel does not tell us what is in memory of files that are not ours), or out of memory. */
struct resident_view *resident_view_new(int fd, uint64_t size);
void resident_view_free(struct resident_view *view);

/* Looks again. One thread at a time; may wait. */
void resident_view_refresh(struct resident_view *view);

/* The bytes' address, or NULL: not known to be in memory. ret_stale: it is too long ago that anybody looked. */
const void *resident_view_find(const struct resident_view *view, size_t length, uint64_t offset, uint64_t now_ns,
			       bool *ret_stale);
