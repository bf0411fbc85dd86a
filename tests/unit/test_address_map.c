/* Where pages are after memory was unmapped and moved, against an array of one entry a page of address space. */
#include <stdlib.h>

#include "uffd/regions.h"
#include "unit/hotlist_helpers.h"

#define SLOTS 256
#define BASE  (512ull << 21) /* in the middle of the address space, so that below and above are places too */
#define NONE  UINT64_MAX

struct world {
	struct address_map map;
	uint64_t page_size;
	uint64_t pages;
	uint64_t slots[SLOTS]; /* the page that is there, or NONE */
};

static uint64_t address_of(const struct world *world, uint64_t slot)
{
	return BASE + slot * world->page_size;
}

/* Four regions, two of them neighbours, in an order that is not that of their addresses. */
static void world_init(struct world *world, uint64_t page_size)
{
	static const struct {
		uint64_t slot, pages;
	} layout[] = { { 100, 30 }, { 10, 40 }, { 130, 20 }, { 200, 50 } };
	struct region regions[4];

	*world = (struct world){ .page_size = page_size };
	for (size_t i = 0; i < SLOTS; i++)
		world->slots[i] = NONE;
	for (size_t i = 0; i < 4; i++) {
		regions[i] = (struct region){ .address = address_of(world, layout[i].slot),
					      .size = layout[i].pages * page_size,
					      .page_size = page_size,
					      .first_page = world->pages };
		for (uint64_t k = 0; k < layout[i].pages; k++)
			world->slots[layout[i].slot + k] = world->pages++;
	}
	assert_int_equal(address_map_init(&world->map, regions, 4), 0);
}

static void assert_pieces_are_sound(const struct address_map *map)
{
	assert_true(map->count <= map->capacity);
	for (size_t i = 0; i < map->count; i++) {
		assert_true(map->pieces[i].length > 0);
		if (i > 0)
			assert_true(map->pieces[i - 1].address + map->pieces[i - 1].length <= map->pieces[i].address);
	}
}

static void assert_address(const struct world *world, uint64_t slot)
{
	uint64_t start = address_of(world, slot), page = world->slots[slot];
	const uint64_t offsets[] = { 0, 1, world->page_size / 2, world->page_size - 1 };

	for (size_t i = 0; i < 4; i++) {
		const struct map_piece *piece = address_map_find(&world->map, start + offsets[i]);
		if (page == NONE) {
			assert_null(piece);
			continue;
		}
		assert_non_null(piece);
		assert_int_equal(piece_page(piece, start + offsets[i]), page);
		assert_int_equal(piece_address(piece, page), start);
		assert_int_equal(piece->page_size, world->page_size);
	}
}

static void assert_world(const struct world *world)
{
	bool mapped[SLOTS] = { false };

	assert_pieces_are_sound(&world->map);
	for (uint64_t slot = 0; slot < SLOTS; slot++) {
		assert_address(world, slot);
		if (world->slots[slot] != NONE) {
			const struct map_piece *piece = address_map_find_page(&world->map, world->slots[slot]);
			assert_non_null(piece);
			assert_int_equal(piece_address(piece, world->slots[slot]), address_of(world, slot));
			mapped[world->slots[slot]] = true;
		}
	}
	for (uint64_t page = 0; page < world->pages; page++)
		if (!mapped[page])
			assert_null(address_map_find_page(&world->map, page));
	assert_null(address_map_find_page(&world->map, world->pages));
	assert_null(address_map_find(&world->map, 0));
	assert_null(address_map_find(&world->map, BASE - 1));
	assert_null(address_map_find(&world->map, address_of(world, SLOTS)));
	assert_null(address_map_find(&world->map, UINT64_MAX));
}

static void unmap(struct world *world, uint64_t first, uint64_t count)
{
	assert_int_equal(address_map_unmap(&world->map, address_of(world, first), address_of(world, first + count)), 0);
	for (uint64_t i = first; i < first + count; i++)
		world->slots[i] = NONE;
	assert_world(world);
}

static void move(struct world *world, uint64_t from, uint64_t to, uint64_t count)
{
	uint64_t moved[SLOTS];

	assert_int_equal(address_map_move(&world->map, address_of(world, from), address_of(world, to),
					  count * world->page_size),
			 0);
	memcpy(moved, &world->slots[from], count * sizeof *moved);
	for (uint64_t i = 0; i < count; i++)
		world->slots[from + i] = NONE;
	memcpy(&world->slots[to], moved, count * sizeof *moved);
	assert_world(world);
}

static int make(void **state)
{
	struct world *world = malloc(sizeof *world);

	assert_non_null(world);
	world_init(world, 4096);
	*state = world;
	return 0;
}

static int unmake(void **state)
{
	struct world *world = *state;

	address_map_clear(&world->map);
	address_map_clear(&world->map); /* twice is fine */
	free(world);
	return 0;
}

static void test_as_at_the_handshake(void **state)
{
	struct world *world = *state;

	assert_world(world);
	assert_int_equal(world->map.count, 4);
}

static void test_unmap_parts_of_a_piece(void **state)
{
	struct world *world = *state;

	unmap(world, 10, 5);  /* its beginning */
	unmap(world, 45, 5);  /* its end */
	unmap(world, 25, 10); /* its middle: now there are two */
	assert_int_equal(world->map.count, 5);
	unmap(world, 20, 20);  /* around the hole */
	unmap(world, 200, 50); /* a whole one */
	assert_int_equal(world->map.count, 4);
}

static void test_unmap_across_pieces(void **state)
{
	struct world *world = *state;

	unmap(world, 40, 100); /* the end of one, a whole one, the beginning of its neighbour, and gaps */
	unmap(world, 0, SLOTS);
	assert_int_equal(world->map.count, 0);
	unmap(world, 0, SLOTS); /* nothing is left */
}

static void test_unmap_of_nothing_of_ours(void **state)
{
	struct world *world = *state;

	unmap(world, 0, 10);
	unmap(world, 50, 50);
	unmap(world, 250, 6);
	assert_int_equal(world->map.count, 4);
	assert_int_equal(address_map_unmap(&world->map, 0, BASE), 0);
	assert_int_equal(address_map_unmap(&world->map, address_of(world, SLOTS), UINT64_MAX), 0);
	assert_world(world);
	unmap(world, 20, 0); /* an empty range */
}

static void test_move_a_whole_piece(void **state)
{
	struct world *world = *state;

	move(world, 10, 50, 40);
	move(world, 50, 10, 40); /* and back */
	assert_int_equal(world->map.count, 4);
	move(world, 200, 206, 0); /* an empty range */
}

static void test_move_a_part(void **state)
{
	struct world *world = *state;

	move(world, 20, 60, 10);
	assert_int_equal(world->map.count, 6);
	move(world, 60, 20, 10); /* into the hole that it left */
}

static void test_move_onto_other_pieces(void **state)
{
	struct world *world = *state;

	move(world, 200, 110, 30); /* replaces the end of one and the beginning of its neighbour */
	move(world, 10, 120, 5);   /* into the middle of what was moved */
	move(world, 100, 200, 50); /* several pieces at once */
}

/* mremap refuses this; a confused or lying peer does not matter to the map. */
static void test_move_overlapping_itself(void **state)
{
	struct world *world = *state;

	move(world, 10, 15, 40);
	move(world, 15, 10, 40);
	move(world, 100, 101, 50);
	move(world, 101, 101, 50); /* onto itself */
}

static void test_move_with_gaps(void **state)
{
	struct world *world = *state;

	move(world, 0, 128, 120); /* the gaps come along: what was there is gone */
	move(world, 52, 54, 20);  /* nothing but a gap, and it replaces nothing */
	move(world, 0, 130, 5);	  /* nothing, and it replaces something */
}

static void random_walk(uint64_t page_size, uint64_t seed, unsigned rounds)
{
	struct random random = { .state = seed };

	for (unsigned round = 0; round < rounds; round++) {
		struct world world;
		world_init(&world, page_size);
		for (unsigned i = 0; i < 60; i++) {
			uint64_t count = random_below(&random, random_below(&random, 4) ? 16 : 100);
			uint64_t from = random_below(&random, SLOTS - count), to = random_below(&random, SLOTS - count);
			if (random_below(&random, 3) == 0)
				unmap(&world, from, count / 2);
			else
				move(&world, from, to, count);
		}
		address_map_clear(&world.map);
	}
}

static void test_random_operations(void **state)
{
	(void)state;
	random_walk(4096, 1, 100);
}

static void test_random_operations_on_huge_pages(void **state)
{
	(void)state;
	random_walk(2 << 20, 2, 100);
}

/* Page sizes go with their pieces. */
static void test_mixed_page_sizes(void **state)
{
	const struct region regions[] = {
		{ .address = 4ull << 21, .size = 4ull << 21, .page_size = 2 << 20, .first_page = 0 },
		{ .address = 8ull << 21, .size = 1ull << 21, .page_size = 4096, .first_page = 4 },
	};
	struct address_map map;

	(void)state;
	assert_int_equal(address_map_init(&map, regions, 2), 0);
	assert_int_equal(address_map_move(&map, 6ull << 21, 20ull << 21, 3ull << 21), 0);
	const struct map_piece *piece = address_map_find_page(&map, 3);
	assert_non_null(piece);
	assert_int_equal(piece_address(piece, 3), 21ull << 21);
	piece = address_map_find(&map, (22ull << 21) + 5 * 4096 + 17);
	assert_non_null(piece);
	assert_int_equal(piece->page_size, 4096);
	assert_int_equal(piece_page(piece, (22ull << 21) + 5 * 4096 + 17), 9);
	assert_int_equal(address_map_unmap(&map, 21ull << 21, (22ull << 21) + 4096), 0);
	assert_null(address_map_find_page(&map, 3));
	assert_null(address_map_find_page(&map, 4));
	assert_non_null(address_map_find_page(&map, 5));
	assert_non_null(address_map_find_page(&map, 2));
	address_map_clear(&map);
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, make, unmake)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_as_at_the_handshake),
		CASE(test_unmap_parts_of_a_piece),
		CASE(test_unmap_across_pieces),
		CASE(test_unmap_of_nothing_of_ours),
		CASE(test_move_a_whole_piece),
		CASE(test_move_a_part),
		CASE(test_move_onto_other_pieces),
		CASE(test_move_overlapping_itself),
		CASE(test_move_with_gaps),
		cmocka_unit_test(test_random_operations),
		cmocka_unit_test(test_random_operations_on_huge_pages),
		cmocka_unit_test(test_mixed_page_sizes),
	};

	return cmocka_run_group_tests_name("address_map", tests, NULL, NULL);
}
