/* Prefetch budgets: never more than they say, nothing left out silently, and guests that go on by demand faults. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "integration/harness/client.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"

#define PAGES	 512ul
#define LISTED	 300ul
#define FITTING	 100ul
#define BUDGET	 "400K" /* of 100 pages */
#define BUDGET_2 "480K" /* 20 more than LIST_2 has */
#define LIST_2	 FITTING

struct scene {
	struct test_server *server;
	struct test_image image;
	char list[160], socket[SOCKET_PATH_MAX];
	uint64_t order[PAGES];
};

static struct scene *scene_new(struct test_server *server, size_t listed)
{
	struct scene *scene = calloc(1, sizeof *scene);

	assert_non_null(scene);
	scene->server = server;
	scene->image.hole_every = 3;
	test_image_make(&scene->image, server->dir, "base", PAGES * PAGE);
	template_add(server, "base", &scene->image);
	snprintf(scene->list, sizeof scene->list, "%s/list.csv", server->dir);
	FILE *f = fopen(scene->list, "we");
	assert_non_null(f);
	fprintf(f, "region,offset,first_touch_ns,seen\n");
	/* 37 has no factor in common with 512: each page once, leaping. */
	for (size_t i = 0; i < PAGES; i++)
		scene->order[i] = i * 37 % PAGES;
	for (size_t i = 0; i < listed; i++)
		fprintf(f, "0,%lu,%zu,1\n", (unsigned long)(scene->order[i] * PAGE), i);
	assert_int_equal(fclose(f), 0);
	return scene;
}

static void start_vmm(struct vmm *vmm, struct client_self *self, struct scene *scene)
{
	vmm_init(vmm, self, &scene->image);
	vmm_add_region(vmm, PAGES * PAGE, 0);
	vmm_start(vmm, scene->socket, (struct vmm_form){ 0 });
	client_say(self, 'c');
	client_hear(self, 'p');
}

/* The list's beginning is there, and nothing else. */
static void cut_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	for (size_t i = 0; i < PAGES; i++)
		client_require(self, vmm_is_present(&vmm, &vmm.regions[0], scene->order[i]) == (i < FITTING),
			       "place %zu of the list should%s be there", i, i < FITTING ? "" : " not");
	vmm_check_all_shuffled(&vmm, 2, 3);
	vmm_check_all(&vmm);
	client_say(self, 'd');
	client_hear(self, 'q');
}

static void run_cut(struct scene *scene, const char *mode)
{
	fork_create(scene->server, "base", mode,
		    ARGS("--prefetch", (char *)mode, "--hot-list", scene->list, "--prefetch-budget", BUDGET),
		    scene->socket);
	struct client *client = client_start(mode, cut_body, scene);
	client_await(client, 'c');
	fork_wait(scene->server, mode, "prefetched");
	assert_int_equal(fork_number(scene->server, mode, "prefetched_pages"), FITTING);
	assert_int_equal(fork_number(scene->server, mode, "prefetch_over_budget_pages"), LISTED - FITTING);
	assert_int_equal(fork_number(scene->server, mode, "prefetch_budget"), FITTING * PAGE);
	client_tell(client, 'p');
	client_await(client, 'd');
	/* The list has taken all of it. */
	assert_int_equal(fork_number(scene->server, mode, "neighbour_pages"), 0);
	client_tell(client, 'q');
	client_join(client);
}

static void test_of_a_stream(void **state)
{
	struct scene *scene = scene_new(*state, LISTED);

	run_cut(scene, "stream");
	json_t *fork = fork_show(scene->server, "stream");
	const json_t *s = json_object_get(fork, "stream");
	assert_int_equal(json_integer_value(json_object_get(s, "planned")), FITTING);
	assert_int_equal(json_integer_value(json_object_get(s, "missing")), PAGES - FITTING);
	json_decref(fork);
	free(scene);
}

static void test_of_eager_prefetch(void **state)
{
	struct scene *scene = scene_new(*state, LISTED);

	run_cut(scene, "eager");
	free(scene);
}

static void everything_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	vmm_check_all_shuffled(&vmm, 2, 3);
	vmm_check_all(&vmm);
	client_say(self, 'd');
	client_hear(self, 'q');
}

/* What the list leaves of it is for neighbours, and no more than that. */
static void test_neighbours_keep_to_it(void **state)
{
	struct scene *scene = scene_new(*state, LIST_2);

	fork_create(scene->server, "base", "fork",
		    ARGS("--prefetch", "stream", "--hot-list", scene->list, "--prefetch-budget", BUDGET_2),
		    scene->socket);
	struct client *client = client_start("fork", everything_body, scene);
	client_await(client, 'c');
	fork_wait(scene->server, "fork", "prefetched");
	assert_int_equal(fork_number(scene->server, "fork", "prefetch_over_budget_pages"), 0);
	client_tell(client, 'p');
	client_await(client, 'd');
	int neighbours = (int)fork_number(scene->server, "fork", "neighbour_pages");
	assert_true(neighbours > 0 && neighbours <= 20);
	client_tell(client, 'q');
	client_join(client);
	free(scene);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_of_a_stream),
		SERVED(test_of_eager_prefetch),
		SERVED(test_neighbours_keep_to_it),
	};

	return harness_run(tests);
}
