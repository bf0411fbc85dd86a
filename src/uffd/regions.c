#include "uffd/regions.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"

#define HUGE_PAGE_SIZE (2ull << 20)
/* User addresses end here on every architecture that we serve, with five page-table levels too. */
#define ADDRESS_MAX (1ull << 57)

static int validate_one(const struct region *r, size_t index, uint64_t image_size, struct error *err)
{
	uint64_t host_page = (uint64_t)sysconf(_SC_PAGESIZE), end, image_end;

	if (r->page_size != host_page && r->page_size != HUGE_PAGE_SIZE)
		return error_set(err, -EINVAL, "bad_region",
				 "region %zu: page size %" PRIu64 " is neither %" PRIu64 " nor %llu bytes", index,
				 r->page_size, host_page, HUGE_PAGE_SIZE);
	if (r->size == 0)
		return error_set(err, -EINVAL, "bad_region", "region %zu: its size is zero", index);
	if (!is_aligned(r->address, r->page_size) || !is_aligned(r->size, r->page_size) ||
	    !is_aligned(r->offset, r->page_size))
		return error_set(err, -EINVAL, "bad_region",
				 "region %zu: address 0x%" PRIx64 ", size 0x%" PRIx64 " and offset 0x%" PRIx64
				 " must be multiples of its page size, %" PRIu64,
				 index, r->address, r->size, r->offset, r->page_size);
	if (r->address == 0 || !checked_add(r->address, r->size, &end) || end > ADDRESS_MAX)
		return error_set(err, -EINVAL, "bad_region",
				 "region %zu: address 0x%" PRIx64 " and size 0x%" PRIx64 " do not fit an address space",
				 index, r->address, r->size);
	if (!checked_add(r->offset, r->size, &end) || !checked_round_up(image_size, r->page_size, &image_end) ||
	    end > image_end)
		return error_set(err, -EINVAL, "bad_region",
				 "region %zu: offset 0x%" PRIx64 " and size 0x%" PRIx64
				 " end past the memory image, which has 0x%" PRIx64 " bytes",
				 index, r->offset, r->size, image_size);
	return 0;
}

static int compare_address(const void *a, const void *b)
{
	const struct region *x = *(const struct region *const *)a, *y = *(const struct region *const *)b;

	return x->address < y->address ? -1 : x->address > y->address;
}

int regions_validate(struct region *regions, size_t count, uint64_t image_size, struct error *err)
{
	const struct region *sorted[REGIONS_MAX];

	if (count == 0)
		return error_set(err, -EINVAL, "bad_region", "the handshake names no region");
	if (count > REGIONS_MAX)
		return error_set(err, -EINVAL, "bad_region", "the handshake names %zu regions; at most %d are served",
				 count, REGIONS_MAX);

	uint64_t pages = 0;
	for (size_t i = 0; i < count; i++) {
		int r = validate_one(&regions[i], i, image_size, err);
		if (r < 0)
			return r;
		regions[i].first_page = pages;
		pages += regions[i].size / regions[i].page_size;
		sorted[i] = &regions[i];
	}

	qsort(sorted, count, sizeof sorted[0], compare_address);
	for (size_t i = 1; i < count; i++)
		if (sorted[i - 1]->address + sorted[i - 1]->size > sorted[i]->address)
			return error_set(err, -EINVAL, "bad_region", "regions %zu and %zu overlap at address 0x%" PRIx64,
					 (size_t)(sorted[i - 1] - regions), (size_t)(sorted[i] - regions),
					 sorted[i]->address);
	return 0;
}

uint64_t regions_page_count(const struct region *regions, size_t count)
{
	const struct region *last = &regions[count - 1];

	return last->first_page + last->size / last->page_size;
}

const struct region *regions_of_page(const struct region *regions, size_t count, uint64_t page)
{
	size_t low = 0, high = count;

	while (high - low > 1) {
		size_t middle = low + (high - low) / 2;
		if (regions[middle].first_page <= page)
			low = middle;
		else
			high = middle;
	}
	return &regions[low];
}

static int reserve(struct address_map *map, size_t capacity)
{
	if (capacity <= map->capacity)
		return 0;
	struct map_piece *pieces = realloc(map->pieces, 2 * capacity * sizeof *pieces);
	if (!pieces)
		return -ENOMEM;
	map->pieces = pieces;
	map->capacity = 2 * capacity;
	return 0;
}

/* The first piece that ends after ADDRESS. */
static size_t first_after(const struct address_map *map, uint64_t address)
{
	size_t low = 0, high = map->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (map->pieces[middle].address + map->pieces[middle].length <= address)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* There is room: reserve() was called. */
static void insert(struct address_map *map, const struct map_piece *piece)
{
	size_t at = first_after(map, piece->address);

	memmove(&map->pieces[at + 1], &map->pieces[at], (map->count - at) * sizeof *piece);
	map->pieces[at] = *piece;
	map->count++;
}

int address_map_init(struct address_map *map, const struct region *regions, size_t count)
{
	*map = (struct address_map){ 0 };
	int r = reserve(map, count);
	if (r < 0)
		return r;
	for (size_t i = 0; i < count; i++)
		insert(map, &(struct map_piece){ .address = regions[i].address,
						 .length = regions[i].size,
						 .first_page = regions[i].first_page,
						 .page_size = regions[i].page_size });
	return 0;
}

void address_map_clear(struct address_map *map)
{
	free(map->pieces);
	*map = (struct address_map){ 0 };
}

const struct map_piece *address_map_find(const struct address_map *map, uint64_t address)
{
	size_t at = first_after(map, address);

	return at < map->count && map->pieces[at].address <= address ? &map->pieces[at] : NULL;
}

const struct map_piece *address_map_find_page(const struct address_map *map, uint64_t page)
{
	for (size_t i = 0; i < map->count; i++) {
		const struct map_piece *p = &map->pieces[i];
		if (page >= p->first_page && page - p->first_page < p->length / p->page_size)
			return p;
	}
	return NULL;
}

/* Cuts the piece that ADDRESS lies inside into two there. Room for one more has been reserved. */
static void split(struct address_map *map, uint64_t address)
{
	size_t at = first_after(map, address);
	if (at == map->count || map->pieces[at].address >= address)
		return;

	struct map_piece *piece = &map->pieces[at], rest = *piece;
	uint64_t before = address - piece->address;
	rest.address = address;
	rest.length -= before;
	rest.first_page += before / piece->page_size;
	piece->length = before;
	insert(map, &rest);
}

static void drop(struct address_map *map, uint64_t start, uint64_t end)
{
	split(map, start);
	split(map, end);
	size_t from = first_after(map, start), to = from;
	while (to < map->count && map->pieces[to].address < end)
		to++;
	memmove(&map->pieces[from], &map->pieces[to], (map->count - to) * sizeof map->pieces[0]);
	map->count -= to - from;
}

int address_map_unmap(struct address_map *map, uint64_t start, uint64_t end)
{
	int r = reserve(map, map->count + 2);
	if (r < 0)
		return r;
	drop(map, start, end);
	return 0;
}

int address_map_move(struct address_map *map, uint64_t from, uint64_t to, uint64_t length)
{
	int r = reserve(map, map->count + 4);
	if (r < 0)
		return r;

	split(map, from);
	split(map, from + length);
	size_t first = first_after(map, from), count = 0;
	while (first + count < map->count && map->pieces[first + count].address < from + length)
		count++;

	_cleanup_free_ struct map_piece *moved = malloc((count ?: 1) * sizeof *moved);
	if (!moved)
		return -ENOMEM;
	memcpy(moved, &map->pieces[first], count * sizeof *moved);

	drop(map, from, from + length);
	drop(map, to, to + length);
	for (size_t i = 0; i < count; i++) {
		moved[i].address = moved[i].address - from + to;
		insert(map, &moved[i]);
	}
	return 0;
}
