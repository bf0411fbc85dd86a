/* What `--record` keeps: the pages that demand faults were served with, in the order of service, each once. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/chaos.h"
#include "integration/harness/client.h"
#include "integration/harness/list.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"

#define PAGES 600ul
#define FIRST 200ul /* pages of region 0 */

struct scene {
	char socket[SOCKET_PATH_MAX];
	struct test_image image;
	struct vmm_form form;
	const struct list_entry *order; /* to be touched in this order */
	size_t count;
	uint64_t salt;
};

static void set_scene(struct test_server *server, struct scene *scene)
{
	*scene = (struct scene){ 0 };
	test_image_make(&scene->image, server->dir, "base", PAGES * PAGE);
	template_add(server, "base", &scene->image);
}

static void start_vmm(struct vmm *vmm, struct client_self *self, struct scene *scene)
{
	vmm_init(vmm, self, &scene->image);
	vmm_add_region(vmm, FIRST * PAGE, 0);
	vmm_add_region(vmm, (PAGES - FIRST) * PAGE, FIRST * PAGE);
	vmm_start(vmm, scene->socket, scene->form);
}

static struct list_entry *recorded(struct test_server *server, const char *id, size_t *ret_count)
{
	char path[160];

	snprintf(path, sizeof path, "%s/%s.csv", server->dir, id);
	json_decref(command_ok(server,
			       ARGS("fork", "hot-list", (char *)id, "-o", path, "--format", "csv", "--from", "loop")));
	return list_read_csv(path, ret_count);
}

static void expect_list(struct test_server *server, const char *id, const struct list_entry *expected, size_t count)
{
	size_t n;
	_cleanup_free_ struct list_entry *list = recorded(server, id, &n);

	if (n != count)
		fail_msg("fork %s: %zu pages recorded instead of %zu", id, n, count);
	for (size_t i = 0; i < n; i++)
		if (list[i].region != expected[i].region || list[i].offset != expected[i].offset)
			fail_msg("fork %s: entry %zu is (%" PRIu64 ", 0x%" PRIx64 ") instead of (%" PRIu64
				 ", 0x%" PRIx64 ")",
				 id, i, list[i].region, list[i].offset, expected[i].region, expected[i].offset);
	assert_int_equal(fork_number(server, id, "recorded_pages"), count);
}

static int compare_entries(const void *a, const void *b)
{
	const struct list_entry *x = a, *y = b;

	if (x->region != y->region)
		return x->region < y->region ? -1 : 1;
	return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* ---- order ---- */

static void ordered_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	for (size_t i = 0; i < scene->count; i++) {
		vmm_check_page(&vmm, &vmm.regions[scene->order[i].region], scene->order[i].offset / PAGE);
		/* Touched again, present pages are not recorded again. */
		vmm_check_page(&vmm, &vmm.regions[scene->order[i / 2].region], scene->order[i / 2].offset / PAGE);
	}
	client_say(self, 'd');
	client_hear(self, 'q');
}

static void shuffled_pages(struct list_entry *list, uint64_t salt)
{
	struct random random = random_from(salt);
	uint32_t order[PAGES];

	random_order(&random, order, PAGES);
	for (uint64_t i = 0; i < PAGES; i++)
		list[i] = order[i] < FIRST ? (struct list_entry){ 0, order[i] * PAGE }
					   : (struct list_entry){ 1, (order[i] - FIRST) * PAGE };
}

static void test_order_of_service(void **state)
{
	struct test_server *server = *state;
	struct list_entry order[PAGES];
	struct scene scene;

	set_scene(server, &scene);
	for (int style = 0; style < 2; style++) {
		const char *id = style ? "raw" : "ready-made";

		shuffled_pages(order, 30 + (uint64_t)style);
		scene.order = order;
		scene.count = PAGES / 2;
		scene.form = (struct vmm_form){ .json = style, .fd = style };
		fork_create(server, "base", id, ARGS("--record"), scene.socket);
		struct client *client = client_start(id, ordered_body, &scene);
		client_await(client, 'd');
		/* While it lives, and when it is gone. */
		expect_list(server, id, order, PAGES / 2);
		client_tell(client, 'q');
		client_join(client);
		fork_wait(server, id, "gone");
		expect_list(server, id, order, PAGES / 2);
	}
}

static void test_order_of_service_from_a_slow_image(void **state)
{
	struct test_server *server = *state;
	struct list_entry order[PAGES];
	struct scene scene;

	set_scene(server, &scene);
	template_add_inject(server, "slow", &scene.image, "delay=500us");
	shuffled_pages(order, 40);
	scene.order = order;
	scene.count = 200;
	fork_create(server, "slow", "slow", ARGS("--record"), scene.socket);
	struct client *client = client_start("slow", ordered_body, &scene);
	client_await(client, 'd');
	expect_list(server, "slow", order, 200);
	client_tell(client, 'q');
	client_join(client);
}

/* ---- not: prefetched, removed, present ---- */

static void selective_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	vmm_check_page(&vmm, &vmm.regions[0], 190);
	vmm_remove(&vmm, &vmm.regions[0], 100, 50); /* never there */
	vmm_remove(&vmm, &vmm.regions[0], 190, 1);  /* recorded before */
	client_say(self, 'c');
	client_hear(self, 'p');
	for (size_t i = 0; i < scene->count; i++)
		vmm_check_page(&vmm, &vmm.regions[scene->order[i].region], scene->order[i].offset / PAGE);
	client_say(self, 'd');
	client_hear(self, 'q');
}

static void test_neither_prefetched_nor_removed_pages(void **state)
{
	struct test_server *server = *state;
	struct list_entry order[PAGES], prefetch[60], expected[PAGES];
	struct scene scene;
	char path[160];
	size_t n = 0;

	set_scene(server, &scene);
	for (uint64_t i = 0; i < 60; i++)
		prefetch[i] = (struct list_entry){ 1, i * 2 * PAGE };
	snprintf(path, sizeof path, "%s/list.hpl", server->dir);
	list_write(path, prefetch, 60);
	shuffled_pages(order, 50);
	scene.order = order;
	scene.count = PAGES;

	/* Page 190 was recorded before it was given back; afterwards it is a zero page. */
	expected[n++] = (struct list_entry){ 0, 190 * PAGE };
	for (size_t i = 0; i < PAGES; i++) {
		uint64_t page = order[i].offset / PAGE;

		if (order[i].region == 0 && ((page >= 100 && page < 150) || page == 190))
			continue;
		if (order[i].region == 1 && page < 120 && page % 2 == 0)
			continue;
		expected[n++] = order[i];
	}

	fork_create(server, "base", "fork", ARGS("--record"), scene.socket);
	struct client *client = client_start("fork", selective_body, &scene);
	client_await(client, 'c');
	fork_wait(server, "fork", "connected");
	json_decref(command_ok(server, ARGS("fork", "prefetch", "fork", path)));
	client_tell(client, 'p');
	client_await(client, 'd');
	expect_list(server, "fork", expected, n);
	client_tell(client, 'q');
	client_join(client);
}

/* ---- several threads, everything at once ---- */

static void crowded_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	vmm_check_all_shuffled(&vmm, 8, scene->salt);
	client_say(self, 'd');
	client_hear(self, 'q');
}

static void expect_each_page_once(struct test_server *server, const char *id, uint64_t expected)
{
	size_t n;
	_cleanup_free_ struct list_entry *list = recorded(server, id, &n);

	qsort(list, n, sizeof *list, compare_entries);
	for (size_t i = 1; i < n; i++)
		if (!compare_entries(&list[i - 1], &list[i]))
			fail_msg("fork %s: (%" PRIu64 ", 0x%" PRIx64 ") is recorded twice", id, list[i].region,
				 list[i].offset);
	assert_int_equal(n, expected);
	/* The count of copies is that of the list: what demand faults were served with, no more and no less. */
	assert_int_equal(fork_number(server, id, "copied_pages"), n);
}

static void test_each_page_once_under_many_threads(void **state)
{
	struct test_server *server = *state;
	struct scene scene;
	char id[16];

	set_scene(server, &scene);
	template_add_inject(server, "slow", &scene.image, "delay=200us");
	for (unsigned i = 0; i < scaled(10); i++) {
		scene.salt = i;
		snprintf(id, sizeof id, "many%u", i);
		fork_create(server, i & 1 ? "slow" : "base", id, ARGS("--record"), scene.socket);
		struct client *client = client_start(id, crowded_body, &scene);
		client_await(client, 'd');
		expect_each_page_once(server, id, PAGES);
		client_tell(client, 'q');
		client_join(client);
	}
}

static void chaotic_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct chaos chaos = {
		.threads = 4, .rounds = 1500, .removals_of_100 = 5, .writes_of_100 = 5, .salt = scene->salt
	};
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	client_say(self, 'c');
	chaos_run(&vmm, &chaos);
	vmm_check_all(&vmm);
	client_say(self, 'd');
	client_hear(self, 'q');
}

static void test_the_list_is_the_copies_whatever_happens(void **state)
{
	struct test_server *server = *state;
	struct list_entry list[PAGES];
	struct scene scene;
	char id[16], path[160];

	set_scene(server, &scene);
	shuffled_pages(list, 60);
	snprintf(path, sizeof path, "%s/list.hpl", server->dir);
	list_write(path, list, PAGES / 2);
	for (unsigned i = 0; i < scaled(10); i++) {
		scene.salt = i;
		snprintf(id, sizeof id, "chaos%u", i);
		fork_create(server, "base", id, ARGS("--record"), scene.socket);
		struct client *client = client_start(id, chaotic_body, &scene);
		client_await(client, 'c');
		fork_wait(server, id, "connected");
		json_decref(command_ok(server, ARGS("fork", "prefetch", id, path)));
		client_await(client, 'd');
		expect_each_page_once(server, id, (uint64_t)fork_number(server, id, "copied_pages"));
		client_tell(client, 'q');
		client_join(client);
	}
}

/* ---- the ends of a recording ---- */

static void half_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	for (uint64_t page = 0; page < 50; page++)
		vmm_check_page(&vmm, &vmm.regions[0], page);
	client_say(self, 'h');
	client_hear(self, 'r');
	vmm_check_all(&vmm);
	client_say(self, 'd');
	client_hear(self, 'q');
}

static void test_ready_ends_it(void **state)
{
	struct test_server *server = *state;
	struct list_entry expected[50];
	struct scene scene;

	set_scene(server, &scene);
	for (uint64_t page = 0; page < 50; page++)
		expected[page] = (struct list_entry){ 0, page * PAGE };
	fork_create(server, "base", "fork", ARGS("--record"), scene.socket);
	struct client *client = client_start("fork", half_body, &scene);
	client_await(client, 'h');
	json_decref(command_ok(server, ARGS("fork", "ready", "fork")));
	json_decref(command_ok(server, ARGS("fork", "ready", "fork")));
	client_tell(client, 'r');
	client_await(client, 'd');
	expect_list(server, "fork", expected, 50);
	client_tell(client, 'q');
	client_join(client);
}

static void test_no_recording_unless_asked_for(void **state)
{
	struct test_server *server = *state;
	struct scene scene;
	char path[160];

	set_scene(server, &scene);
	snprintf(path, sizeof path, "%s/none.csv", server->dir);
	fork_check_good(server, "base", "fork", &scene.image);
	command_fails(server, ARGS("fork", "hot-list", "fork", "-o", path, "--format", "csv"), 1, "record");
	command_fails(server, ARGS("fork", "hot-list", "nobody", "-o", path), 4, "nobody");
	assert_int_equal(access(path, F_OK), -1);
	assert_int_equal(fork_number(server, "fork", "recorded_pages"), 0);
}

/* ---- the whole loop: record, save as HPL1, prefetch ---- */

static void replay_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	client_say(self, 'c');
	client_hear(self, 'p');
	for (size_t i = 0; i < scene->count; i++)
		vmm_check_page(&vmm, &vmm.regions[scene->order[i].region], scene->order[i].offset / PAGE);
	client_say(self, 'd');
	client_hear(self, 'q');
	vmm_check_all(&vmm);
}

static void test_a_recorded_list_saves_the_next_fork_its_faults(void **state)
{
	struct test_server *server = *state;
	struct list_entry order[PAGES];
	struct scene scene;
	char path[160];

	set_scene(server, &scene);
	shuffled_pages(order, 70);
	scene.order = order;
	scene.count = 250;
	fork_create(server, "base", "warm-up", ARGS("--record"), scene.socket);
	struct client *client = client_start("warm-up", ordered_body, &scene);
	client_await(client, 'd');
	snprintf(path, sizeof path, "%s/warm.hpl", server->dir);
	json_decref(command_ok(server, ARGS("fork", "hot-list", "warm-up", "-o", path, "--format", "hpl1")));
	client_tell(client, 'q');
	client_join(client);

	fork_create(server, "base", "next", ARGS("--prefetch", "eager", "--hot-list", path, "--record"), scene.socket);
	client = client_start("next", replay_body, &scene);
	client_await(client, 'c');
	fork_wait(server, "next", "prefetched");
	assert_int_equal(fork_number(server, "next", "prefetched_pages"), 250);
	client_tell(client, 'p');
	client_await(client, 'd');
	assert_int_equal(fork_number(server, "next", "faults"), 0);
	assert_int_equal(fork_number(server, "next", "recorded_pages"), 0);
	client_tell(client, 'q');
	client_join(client);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_order_of_service),
		SERVED(test_order_of_service_from_a_slow_image),
		SERVED(test_neither_prefetched_nor_removed_pages),
		SERVED(test_each_page_once_under_many_threads),
		SERVED(test_the_list_is_the_copies_whatever_happens),
		SERVED(test_ready_ends_it),
		SERVED(test_no_recording_unless_asked_for),
		SERVED(test_a_recorded_list_saves_the_next_fork_its_faults),
	};

	return harness_run(tests);
}
