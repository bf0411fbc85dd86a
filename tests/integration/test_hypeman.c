/* hypeman's way of forking: a raw, blocking userfaultfd, everything prefetched before the guest runs, lists as it writes them. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/client.h"
#include "integration/harness/list.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"

#define PAGES 400ul

static const struct vmm_form hypeman = { .json = VMM_HYPEMAN, .fd = VMM_HYPEMAN };

struct scene {
	char socket[SOCKET_PATH_MAX];
	struct test_image image;
	bool dirty; /* the VMM has written pages before it hands its memory over */
};

static void set_scene(struct test_server *server, struct scene *scene)
{
	*scene = (struct scene){ 0 };
	test_image_make(&scene->image, server->dir, "base", PAGES * PAGE);
	template_add(server, "base", &scene->image);
}

static void guest_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &scene->image);
	vmm_add_region(&vmm, 100 * PAGE, 0);
	vmm_add_region(&vmm, 300 * PAGE, 100 * PAGE);
	if (scene->dirty)
		for (uint64_t page = 0; page < 100; page += 9)
			vmm_write_page(&vmm, &vmm.regions[0], page);
	vmm_start(&vmm, scene->socket, hypeman);
	client_require(self, fcntl(vmm.uffd, F_GETFL) & O_NONBLOCK,
		       "the server left the descriptor blocking: it would stand still in read()");
	client_say(self, 'c');
	client_hear(self, 'r');
	vmm_check_all_shuffled(&vmm, 4, 1);
	vmm_remove(&vmm, &vmm.regions[1], 20, 30);
	vmm_check_all(&vmm);
	client_say(self, 'd');
	client_hear(self, 'q');
}

static void test_served_and_named(void **state)
{
	struct test_server *server = *state;
	struct scene scene;

	set_scene(server, &scene);
	fork_create(server, "base", "fork", NULL, scene.socket);
	struct client *client = client_start("fork", guest_body, &scene);
	client_await(client, 'c');
	fork_wait(server, "fork", "connected");
	_cleanup_free_ char *handshake = fork_string(server, "fork", "handshake");
	assert_string_equal(handshake, "hypeman");
	client_tell(client, 'r');
	client_await(client, 'd');
	assert_int_equal(fork_number(server, "fork", "copied_pages"), PAGES);
	assert_int_equal(fork_number(server, "fork", "removed_pages"), 30);
	client_tell(client, 'q');
	client_join(client);
}

/* Recorded by one fork, written as HPL1, and all of it there before the next one's guest runs. */
static void test_warm_up_and_prefetch_before_resume(void **state)
{
	struct test_server *server = *state;
	struct scene scene;
	char path[160];

	set_scene(server, &scene);
	snprintf(path, sizeof path, "%s/warm.hpl", server->dir);
	fork_create(server, "base", "warm-up", ARGS("--record"), scene.socket);
	struct client *client = client_start("warm-up", guest_body, &scene);
	client_await(client, 'c');
	client_tell(client, 'r');
	client_await(client, 'd');
	client_tell(client, 'q');
	client_join(client);
	json_decref(command_ok(server, ARGS("fork", "hot-list", "warm-up", "-o", path, "--format", "hpl1")));

	_cleanup_free_ unsigned char *bytes = malloc(65536);
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	assert_non_null(f);
	size_t size = fread(bytes, 1, 65536, f);
	assert_true(size > 8 && !memcmp(bytes, "HPL1\x90\x03", 6)); /* 400 as a varint */
	assert_true(bytes[6] == 0 && bytes[7] == 0);		    /* sorted: (0, 0) comes first */

	for (unsigned i = 0; i < 3; i++) {
		char id[16];

		snprintf(id, sizeof id, "next%u", i);
		fork_create(server, "base", id, NULL, scene.socket);
		client = client_start(id, guest_body, &scene);
		client_await(client, 'c');
		fork_wait(server, id, "connected");
		json_decref(command_ok(server, ARGS("fork", "prefetch", id, path)));
		client_tell(client, 'r');
		client_await(client, 'd');
		assert_int_equal(fork_number(server, id, "prefetched_pages"), PAGES);
		assert_int_equal(fork_number(server, id, "copied_pages"), 0);
		client_tell(client, 'q');
		client_join(client);
	}
}

/* What the VMM had in its memory before stays: neither a fault nor a prefetch replaces it. */
static void test_pages_from_before_the_handshake_stay(void **state)
{
	struct test_server *server = *state;
	struct list_entry list[100];
	struct scene scene;
	char path[160];

	set_scene(server, &scene);
	scene.dirty = true;
	for (uint64_t i = 0; i < 100; i++)
		list[i] = (struct list_entry){ 0, i * PAGE };
	snprintf(path, sizeof path, "%s/list.hpl", server->dir);
	list_write(path, list, 100);
	for (unsigned i = 0; i < 2; i++) {
		const char *id = i ? "prefetched" : "on-demand";

		fork_create(server, "base", id, NULL, scene.socket);
		struct client *client = client_start(id, guest_body, &scene);
		client_await(client, 'c');
		fork_wait(server, id, "connected");
		if (i) {
			json_decref(command_ok(server, ARGS("fork", "prefetch", (char *)id, path)));
			assert_int_equal(fork_number(server, id, "prefetched_pages"), 100 - 12);
			assert_int_equal(fork_number(server, id, "prefetch_present_pages"), 12);
		}
		client_tell(client, 'r');
		client_await(client, 'd');
		client_tell(client, 'q');
		client_join(client);
	}
}

static void test_unknown_fork_and_fork_not_yet_connected(void **state)
{
	struct test_server *server = *state;
	struct scene scene;
	char path[160];

	set_scene(server, &scene);
	snprintf(path, sizeof path, "%s/empty.hpl", server->dir);
	list_write(path, NULL, 0);
	command_fails(server, ARGS("fork", "prefetch", "nobody", path), 4, "nobody");
	fork_create(server, "base", "waiting", NULL, scene.socket);
	command_fails(server, ARGS("fork", "prefetch", "waiting", path), 1, "connected");
	struct client *client = client_start("waiting", guest_body, &scene);
	client_await(client, 'c');
	fork_wait(server, "waiting", "connected");
	json_decref(command_ok(server, ARGS("fork", "prefetch", "waiting", path)));
	client_tell(client, 'r');
	client_await(client, 'd');
	client_tell(client, 'q');
	client_join(client);
	/* Removing an unknown fork is fine, and so is removing one twice. */
	json_decref(command_ok(server, ARGS("fork", "remove", "nobody")));
	fork_wait(server, "waiting", "gone");
	json_decref(command_ok(server, ARGS("fork", "remove", "waiting")));
	json_decref(command_ok(server, ARGS("fork", "remove", "waiting")));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_served_and_named),
		SERVED(test_warm_up_and_prefetch_before_resume),
		SERVED(test_pages_from_before_the_handshake_stay),
		SERVED(test_unknown_fork_and_fork_not_yet_connected),
	};

	return harness_run(tests);
}
