/* A fork's regions, and where in the VMM's address space their pages are now. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* A VMM has one region per memory slot; Firecracker has a handful. The bound keeps a lying peer from making us hold more. */
#define REGIONS_MAX 1024

/* All in bytes. Pages of all regions are numbered in one row: first_page is the number of this region's first. */
struct region {
	uint64_t address; /* in the VMM, at the handshake */
	uint64_t size;
	uint64_t offset; /* in the memory image */
	uint64_t page_size;
	uint64_t first_page;
};

/*
 * The one check of what a peer says: sizes, alignment, overflow, overlap, and that each lies in an image of IMAGE_SIZE bytes, whose
 * last page may be incomplete. Fills in first_page. -EINVAL with code "bad_region".
 */
int regions_validate(struct region *regions, size_t count, uint64_t image_size, struct error *err);

uint64_t regions_page_count(const struct region *regions, size_t count);

/* The region that page number PAGE lies in. */
const struct region *regions_of_page(const struct region *regions, size_t count, uint64_t page);

/* Where in the image PAGE, one of REGION's, begins. */
static inline uint64_t region_image_offset(const struct region *region, uint64_t page)
{
	return region->offset + (page - region->first_page) * region->page_size;
}

/*
 * Addresses change when the VMM unmaps or moves memory. Pieces are sorted by address; not thread-safe.
 */
struct map_piece {
	uint64_t address;
	uint64_t length;
	uint64_t first_page;
	uint64_t page_size;
};

struct address_map {
	struct map_piece *pieces;
	size_t count;
	size_t capacity;
};

int address_map_init(struct address_map *map, const struct region *regions, size_t count);
void address_map_clear(struct address_map *map);

/* The piece that ADDRESS lies in, or NULL. */
const struct map_piece *address_map_find(const struct address_map *map, uint64_t address);
/* The piece that holds page number PAGE, or NULL where it has been unmapped. */
const struct map_piece *address_map_find_page(const struct address_map *map, uint64_t page);

/* [START, END) holds nothing of ours any more. 0 or -ENOMEM (nothing changed). */
int address_map_unmap(struct address_map *map, uint64_t start, uint64_t end);
/* What was at [FROM, FROM + LENGTH) is at TO now. */
int address_map_move(struct address_map *map, uint64_t from, uint64_t to, uint64_t length);

static inline uint64_t piece_page(const struct map_piece *piece, uint64_t address)
{
	return piece->first_page + (address - piece->address) / piece->page_size;
}

static inline uint64_t piece_address(const struct map_piece *piece, uint64_t page)
{
	return piece->address + (page - piece->first_page) * piece->page_size;
}
