/* Regions in any number and order, at any place of the image: every page has the bytes of its own place. */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/client.h"
#include "integration/harness/list.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"

struct scene {
	char socket[SOCKET_PATH_MAX];
	struct test_image image;
	struct vmm_form form;
	unsigned regions;
	uint64_t salt;
};

/* ---- many ---- */

/*
 * Region i has 1 to 5 pages. Its place in memory, its place in the image and its place in the handshake have nothing to do with
 * each other; in memory some are neighbours, and some have a gap between them.
 */
static void add_many(struct vmm *vmm, const struct scene *scene)
{
	struct random random = random_from(scene->salt);
	uint32_t places[1024], parts[1024];
	char *area =
		mmap(NULL, scene->regions * 6 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	client_require(vmm->self, area != MAP_FAILED, "no address space");
	random_order(&random, places, scene->regions);
	random_order(&random, parts, scene->regions);
	for (unsigned i = 0; i < scene->regions; i++) {
		uint64_t pages = 1 + random_below(&random, 5), shift = random_below(&random, 2);

		vmm_add_region_at(vmm, area + (places[i] * 6 + shift) * PAGE, pages * PAGE, parts[i] * 5 * PAGE);
	}
}

static void many_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct random random = random_from(scene->salt + 1);
	struct vmm vmm;

	vmm_init(&vmm, self, &scene->image);
	add_many(&vmm, scene);
	vmm_start(&vmm, scene->socket, scene->form);
	vmm_check_all_shuffled(&vmm, 4, scene->salt);
	for (unsigned i = 0; i < scene->regions / 3 + 1; i++) {
		struct vmm_region *region = &vmm.regions[random_below(&random, scene->regions)];

		vmm_remove(&vmm, region, random_below(&random, vmm_pages(region)), 1);
	}
	vmm_check_all(&vmm);
	client_say(self, 'd');
	client_hear(self, 'q');
	vmm_check_all(&vmm);
}

static void run_many(struct test_server *server, struct scene *scene, unsigned count)
{
	_cleanup_free_ struct list_entry *list = calloc(count, sizeof *list);
	char id[48], path[160];

	scene->regions = count;
	snprintf(path, sizeof path, "%s/list.hpl", server->dir);
	for (unsigned i = 0; i < count; i++)
		list[i] = (struct list_entry){ i, 0 };
	list_write(path, list, count);
	for (unsigned form = 0; form < 4; form++) {
		scene->salt = count * 10 + form;
		scene->form = (struct vmm_form){ .json = form & 1, .fd = form & 1, .chunk = form & 2 ? 1000 : 0 };
		snprintf(id, sizeof id, "regions%u-%u", count, form);
		fork_create(server, "base", id, NULL, scene->socket);
		struct client *client = client_start(id, many_body, scene);
		client_await(client, 'd');
		json_t *json = fork_show(server, id);
		assert_int_equal(json_array_size(json_object_get(json, "regions")), count);
		json_decref(json);
		/* The first page of each region, all of which are there or were given back. */
		json_decref(command_ok(server, ARGS("fork", "prefetch", id, path)));
		assert_int_equal(fork_number(server, id, "prefetched_pages"), 0);
		client_tell(client, 'q');
		client_join(client);
	}
}

static void test_2_100_and_1024_regions(void **state)
{
	struct test_server *server = *state;
	struct scene scene = { 0 };

	test_image_make(&scene.image, server->dir, "base", 1024 * 5 * PAGE);
	template_add(server, "base", &scene.image);
	run_many(server, &scene, 2);
	run_many(server, &scene, 100);
	run_many(server, &scene, 1024);
}

/* ---- places in the image ---- */

static void places_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &scene->image);
	/* The end with its incomplete page, a part in the middle, the same part once more, one that overlaps it, one page. */
	vmm_add_region(&vmm, 11 * PAGE, 90 * PAGE);
	vmm_add_region(&vmm, 20 * PAGE, 40 * PAGE);
	vmm_add_region(&vmm, 20 * PAGE, 40 * PAGE);
	vmm_add_region(&vmm, 30 * PAGE, 50 * PAGE);
	vmm_add_region(&vmm, PAGE, 100 * PAGE);
	vmm_start(&vmm, scene->socket, scene->form);
	vmm_check_all_shuffled(&vmm, 3, 1);
	/* What the guest does to one of two regions of the same bytes is nothing to the other. */
	vmm_remove(&vmm, &vmm.regions[1], 5, 10);
	vmm_write_page(&vmm, &vmm.regions[2], 7);
	vmm_check_all(&vmm);
}

static void test_parts_of_the_image_more_than_once(void **state)
{
	struct test_server *server = *state;
	struct scene scene = { 0 };

	test_image_make(&scene.image, server->dir, "base", 100 * PAGE + 1234);
	template_add(server, "base", &scene.image);
	for (int style = 0; style < 2; style++) {
		scene.form = (struct vmm_form){ .json = style, .fd = style };
		fork_create(server, "base", style ? "raw" : "ready-made", NULL, scene.socket);
		client_join(client_start("places", places_body, &scene));
	}
}

static void far_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &scene->image);
	/* Low and high addresses (sanitizers have uses of their own for those), and an offset over 4 GiB. */
	bool anywhere = under_sanitizer();
	vmm_add_region_at(&vmm, anywhere ? NULL : (void *)0x700000000000, 16 * PAGE, 5ull << 30);
	vmm_add_region_at(&vmm, anywhere ? NULL : (void *)0x20000000, 16 * PAGE, 0);
	vmm_start(&vmm, scene->socket, scene->form);
	vmm_check_all_shuffled(&vmm, 2, 1);
}

static void test_offsets_over_four_gibibytes(void **state)
{
	struct test_server *server = *state;
	struct scene scene = { .image = { .data_every = 1 << 18 } };
	uint64_t size = (5ull << 30) + 16 * PAGE;

	/* Sparse: one page of data each GiB, the first of each region among them. */
	test_image_make(&scene.image, server->dir, "base", size);
	template_add(server, "base", &scene.image);
	fork_create(server, "base", "far", NULL, scene.socket);
	client_join(client_start("far", far_body, &scene));
}

/* ---- memory that is not all there ---- */

static void hole_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &scene->image);
	vmm_add_region(&vmm, 64 * PAGE, 0);
	if (scene->form.fd == VMM_FIRECRACKER)
		vmm_make_uffd(&vmm, scene->form);
	client_require(self, munmap(vmm.regions[0].address + 20 * PAGE, 10 * PAGE) == 0, "munmap failed");
	if (scene->form.fd == VMM_HYPEMAN)
		vmm_make_uffd(&vmm, scene->form);
	vmm_connect(&vmm, scene->socket);
	vmm_handshake(&vmm, scene->form);
	for (uint64_t page = 0; page < 64; page++)
		if (page < 20 || page >= 30)
			vmm_check_page(&vmm, &vmm.regions[0], page);
	client_say(self, 'd');
	client_hear(self, 'q');
}

/* A region that has a hole in it is served around the hole, and a prefetch goes over it. */
static void test_region_with_a_hole_in_it(void **state)
{
	struct test_server *server = *state;
	struct scene scene = { 0 };
	struct list_entry list[64];
	char path[160];

	test_image_make(&scene.image, server->dir, "base", 64 * PAGE);
	template_add(server, "base", &scene.image);
	for (uint64_t i = 0; i < 64; i++)
		list[i] = (struct list_entry){ 0, i * PAGE };
	snprintf(path, sizeof path, "%s/list.hpl", server->dir);
	list_write(path, list, 64);
	for (int style = 0; style < 2; style++) {
		const char *id = style ? "raw" : "ready-made";

		scene.form = (struct vmm_form){ .json = style, .fd = style };
		fork_create(server, "base", id, NULL, scene.socket);
		struct client *client = client_start(id, hole_body, &scene);
		client_await(client, 'd');
		struct test_result result = command(server, ARGS("fork", "prefetch", (char *)id, path));
		result_clear(&result);
		client_tell(client, 'q');
		client_join(client);
	}
	fork_check_good(server, "base", "after", &scene.image);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_2_100_and_1024_regions),
		SERVED(test_parts_of_the_image_more_than_once),
		SERVED(test_offsets_over_four_gibibytes),
		SERVED(test_region_with_a_hole_in_it),
	};

	return harness_run(tests);
}
