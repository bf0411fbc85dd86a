/* Hot lists as a user brings them, written here byte by byte, so that the server's own writer is not its own judge. */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct list_entry {
	uint64_t region, offset;
};

/* HPL1 in the order given, duplicates and all. Fails the test where the file can't be written. */
void list_write(const char *path, const struct list_entry *entries, size_t count);

/* Reads CSV with columns "region" and "offset" anywhere in its header row; the caller frees. Fails the test if malformed. */
struct list_entry *list_read_csv(const char *path, size_t *ret_count);
