/* Bytes that may be compressed with gzip, given on in pieces, so that what they unpack to never has to be in memory at once. */
#pragma once

#include <stddef.h>

#include "base/error.h"

/* Takes SIZE bytes more. 0 to go on; anything negative ends the unpacking, which then returns it. */
typedef int (*unpack_sink)(void *user, const char *bytes, size_t size);

/*
 * Gives DATA to SINK: unpacked where it begins like a gzip file (one of several members too), else as it is. Returns 0, what SINK
 * returned, -EBADMSG (not whole, damaged, or something behind its end) or -ENOMEM; the last two fill ERR with code bad_gzip or no_memory.
 */
int unpack(const void *data, size_t size, unpack_sink sink, void *user, struct error *err);

/*
 * Reads the regular file or pipe PATH whole, if it has at most MAX bytes. -EFBIG or what the system said, with code bad_file and a
 * message that names PATH. The caller frees.
 */
int unpack_read_file(const char *path, size_t max, void **ret_data, size_t *ret_size, struct error *err);
