/*
 * Which pages of an image are all zeros: holes of its file, and pages that hold nothing else. They need not be read, ever. A map is useful while it is
 * made: a page that nobody has looked at yet is only not known to be zeros.
 *
 * Its file, integers little-endian: a header of 4,096 bytes (struct header in zero_map.c), and a bit for each page of 4 KiB, 64 a word, the first page's the least
 * significant.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "template/image_stamp.h"

#define ZERO_MAP_PAGE 4096u
#define ZERO_MAP_NAME ".zeromap"

struct zero_map;

/* Of an image of SIZE bytes, of which nothing is known. NULL: out of memory. */
struct zero_map *zero_map_new(uint64_t size);
void zero_map_free(struct zero_map *map);
DEFINE_CLEANUP(struct zero_map, zero_map_free)
#define _cleanup_zero_map_ _cleanup_(cleanup_zero_map_free)

/* Known to be zeros so far. Any thread. */
uint64_t zero_map_pages(const struct zero_map *map);

/* Whether all that the image has of [OFFSET, OFFSET + LENGTH) is known to be zeros; there is no page behind its end. Any thread. */
bool zero_map_covers(const struct zero_map *map, uint64_t length, uint64_t offset);

/*
 * Looks at all of the image behind FD: first for holes, then at what is there. What can't be read is not taken for zeros. STOP, asked between
 * megabytes, ends it: -ECANCELED. -ENOMEM. One thread.
 */
int zero_map_scan(struct zero_map *map, int fd, bool (*stop)(void *data), void *data);

/* Writes MAP to PATH, whole or not at all. Codes: io_error, disk_full. */
int zero_map_save(const struct zero_map *map, const char *path, const struct image_stamp *image, struct error *err);

/* Takes over what PATH says. Codes: zero_map_missing; zero_map_stale, of another image; zero_map_damaged, MAP is as it was; io_error. */
int zero_map_load(struct zero_map *map, const char *path, const struct image_stamp *image, struct error *err);
