/* Many forks of one template at once, each a process of its own, and a thousand that are just there. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "integration/harness/client.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"

#define FORKS	    200
#define PAGES	    64ul
#define IDLE_FORKS  1000
#define IDLE_SIZE   (1ull << 30)
#define IDLE_READS  8		  /* pages, by each of them; hardly any twice */
#define IDLE_MEMORY (64ull << 20) /* what so many idle forks may cost the server at most */

struct guest {
	char socket[SOCKET_PATH_MAX];
	const struct test_image *image;
	struct vmm_form form;
	unsigned number;
	int gate[2]; /* a pipe that the test closes when all may go */
};

static void crowd_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;
	char byte;

	vmm_init(&vmm, self, guest->image);
	vmm_add_region(&vmm, guest->image->size, 0);
	close(guest->gate[1]);
	client_say(self, 'r');
	client_require(self, read(guest->gate[0], &byte, 1) == 0, "the gate is broken");
	vmm_start(&vmm, guest->socket, guest->form);
	vmm_check_all_shuffled(&vmm, 1, guest->number);
	vmm_remove(&vmm, &vmm.regions[0], guest->number % PAGES, 1);
	vmm_check_all(&vmm);
	client_say(self, 'd');
	client_hear(self, 'q');
	vmm_check_all(&vmm);
}

static void test_two_hundred_forks_at_once(void **state)
{
	struct test_server *server = *state;
	struct client *clients[FORKS];
	struct test_image image = { 0 };
	struct guest guest = { .image = &image };
	char id[16];

	test_image_make(&image, server->dir, "base", PAGES * PAGE);
	template_add(server, "base", &image);
	assert_int_equal(pipe(guest.gate), 0);
	for (unsigned i = 0; i < FORKS; i++) {
		guest.number = i;
		guest.form = (struct vmm_form){ .json = i & 1, .fd = i & 1 };
		snprintf(id, sizeof id, "fork-%u", i);
		fork_create(server, "base", id, NULL, guest.socket);
		clients[i] = client_start(id, crowd_body, &guest);
	}
	for (unsigned i = 0; i < FORKS; i++)
		client_await(clients[i], 'r');
	close(guest.gate[0]);
	close(guest.gate[1]);
	for (unsigned i = 0; i < FORKS; i++)
		client_await(clients[i], 'd');
	for (unsigned i = 0; i < FORKS; i += 10) {
		snprintf(id, sizeof id, "fork-%u", i);
		assert_int_equal(fork_number(server, id, "copied_pages"), PAGES);
		assert_int_equal(fork_number(server, id, "pid"), clients[i]->pid);
	}
	for (unsigned i = 0; i < FORKS; i++) {
		client_tell(clients[i], 'q');
		client_join(clients[i]);
	}
	for (unsigned i = 0; i < FORKS; i += 10) {
		snprintf(id, sizeof id, "fork-%u", i);
		fork_wait(server, id, "gone");
	}
}

static void idle_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct random random = random_from(guest->number);
	struct vmm vmm;

	vmm_init(&vmm, self, guest->image);
	vmm_start(&vmm, guest->socket, guest->form);
	for (unsigned i = 0; i < IDLE_READS; i++)
		vmm_check_page(&vmm, &vmm.regions[0], random_below(&random, IDLE_SIZE / PAGE));
	client_say(self, 'd');
	client_hear(self, 'q');
	for (unsigned i = 0; i < IDLE_READS; i++)
		vmm_check_page(&vmm, &vmm.regions[0], random_below(&random, IDLE_SIZE / PAGE));
}

/* A list of all forks has each one's figures, and asks none of their threads for them. */
static void expect_all_listed(const struct test_server *server, unsigned count)
{
	uint64_t before = now_ns();
	json_t *reply = command_ok(server, ARGS("fork", "list")), *fork;
	uint64_t took = now_ns() - before;
	size_t i;

	assert_int_equal(json_array_size(json_object_get(reply, "forks")), count);
	json_array_foreach(json_object_get(reply, "forks"), i, fork)
		assert_in_range(json_integer_value(json_object_get(fork, "faults")), 1, IDLE_READS);
	json_decref(reply);
	print_message("a list of %u forks takes %.1f ms\n", count, (double)took / NSEC_PER_MSEC);
}

static void test_a_thousand_idle_forks(void **state)
{
	struct test_server *server = *state;
	unsigned count = scaled(IDLE_FORKS);
	struct client **clients = calloc(count, sizeof(void *));
	/* 1 GiB, of which every 64th page has bytes of its own. */
	struct test_image image = { .data_every = 64 };
	struct guest guest = { .image = &image };
	char id[16];

	test_image_make(&image, server->dir, "base", IDLE_SIZE);
	template_add(server, "base", &image);
	size_t before = test_server_memory(server);
	for (unsigned i = 0; i < count; i++) {
		guest.number = i;
		snprintf(id, sizeof id, "idle-%u", i);
		fork_create(server, "base", id, NULL, guest.socket);
		clients[i] = client_start(id, idle_body, &guest);
		client_await(clients[i], 'd');
	}
	size_t grown = test_server_memory(server) - before;
	print_message("%u idle forks of 1 GiB take %zu KiB of the server's memory\n", count, grown >> 10);
	if (!under_sanitizer())
		assert_true(grown < IDLE_MEMORY);

	expect_all_listed(server, count);

	/* With all of them there, a new one is served as ever. */
	struct test_image small = { 0 };
	test_image_make(&small, server->dir, "small", 100 * PAGE);
	template_add(server, "small", &small);
	fork_check_good(server, "small", "one-more", &small);

	for (unsigned i = 0; i < count; i++)
		client_tell(clients[i], 'q');
	for (unsigned i = 0; i < count; i++)
		client_join(clients[i]);
	free(clients);
	for (unsigned i = 0; i < count; i += 50) {
		snprintf(id, sizeof id, "idle-%u", i);
		fork_wait(server, id, "gone");
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_two_hundred_forks_at_once),
		SERVED(test_a_thousand_idle_forks),
	};

	return harness_run(tests);
}
