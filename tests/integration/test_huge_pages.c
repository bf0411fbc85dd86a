/* Regions of 2 MiB pages: faults, removals, images that end in one or fail under one, beside small pages, and in several forks. */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/chaos.h"
#include "integration/harness/client.h"
#include "integration/harness/huge.h"
#include "integration/harness/server.h"

/* Three whole huge pages and one that ends in the middle of a small one. */
#define IMAGE_SIZE  (3 * HUGE + 100 * PAGE + 300)
#define IMAGE_PAGES 4
#define SMALL	    (HUGE / PAGE)

struct guest {
	char socket[SOCKET_PATH_MAX];
	struct test_image image;
	struct vmm_form form;
	enum huge_kind kind;
	uint64_t salt;
	uint64_t bad; /* a huge page that can't be read */
	bool mixed;
	unsigned rounds;
};

static void set_scene(struct test_server *server, struct guest *guest, const char *inject)
{
	test_image_make(&guest->image, server->dir, "base", IMAGE_SIZE);
	template_add_inject(server, "base", &guest->image, inject);
}

/* The whole image in huge pages; MIXED: its last but one in a region of small ones, between two of huge ones. */
static void start_vmm(struct vmm *vmm, struct client_self *self, const struct guest *guest)
{
	vmm_init(vmm, self, &guest->image);
	if (guest->mixed) {
		vmm_add_huge_region(vmm, guest->kind, 2 * HUGE, 0);
		vmm_add_region(vmm, HUGE, 2 * HUGE);
		vmm_add_huge_region(vmm, guest->kind, HUGE, 3 * HUGE);
	} else {
		vmm_add_huge_region(vmm, guest->kind, IMAGE_PAGES * HUGE, 0);
	}
	vmm_start(vmm, guest->socket, guest->form);
}

static const char *kind_name(enum huge_kind kind)
{
	return kind == HUGE_MEMFD ? "memfd" : "anonymous";
}

/* ---- faults ---- */

static void touch_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	start_vmm(&vmm, self, guest);
	vmm_check_all_shuffled(&vmm, 4, guest->salt);
	client_say(self, 'd');
	client_hear(self, 'q');
	for (unsigned i = 0; i < vmm.region_count; i++) {
		vmm_write_page(&vmm, &vmm.regions[i], 3);
		vmm_write_page(&vmm, &vmm.regions[i], vmm_pages(&vmm.regions[i]) - 1);
	}
	vmm_check_all(&vmm);
}

/* Each page came once, however many threads asked for parts of it. */
static void run_touch(struct test_server *server, struct guest *guest, const char *id, unsigned pages)
{
	fork_create(server, "base", id, NULL, guest->socket);
	struct client *client = client_start(id, touch_body, guest);
	client_await(client, 'd');
	assert_int_equal(fork_number(server, id, "copied_pages"), pages);
	assert_true(fork_number(server, id, "faults") >= pages);
	assert_int_equal(fork_number(server, id, "poisoned_pages"), 0);
	client_tell(client, 'q');
	client_join(client);
}

static void test_faults(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { 0 };

	huge_pool_set_free(IMAGE_PAGES);
	set_scene(server, &guest, NULL);
	uint64_t sum = test_image_sum(&guest.image);
	for (guest.salt = 0; guest.salt < 6; guest.salt++) {
		char id[40];

		guest.kind = guest.salt & 1 ? HUGE_MEMFD : HUGE_ANONYMOUS;
		guest.mixed = guest.salt >= 4;
		/* With and without the image in memory. */
		if (guest.salt & 2)
			test_image_evict(&guest.image);
		snprintf(id, sizeof id, "%s%u", kind_name(guest.kind), (unsigned)guest.salt);
		run_touch(server, &guest, id, guest.mixed ? IMAGE_PAGES - 1 + SMALL : IMAGE_PAGES);
		huge_pool_await_free(IMAGE_PAGES);
	}
	assert_true(sum == test_image_sum(&guest.image));
}

static void test_faults_on_a_slow_image(void **state)
{
	struct guest guest = { 0 };

	huge_pool_set_free(IMAGE_PAGES);
	set_scene(*state, &guest, "delay=20ms");
	run_touch(*state, &guest, "slow", IMAGE_PAGES);
	huge_pool_await_free(IMAGE_PAGES);
	guest.mixed = true;
	run_touch(*state, &guest, "mixed", IMAGE_PAGES - 1 + SMALL);
}

/* More reads of huge pages than are under way at once. */
#define MANY 10u

static void touch_one(struct vmm *vmm, unsigned index, void *data)
{
	(void)data;
	vmm_check_page(vmm, &vmm->regions[index / IMAGE_PAGES], index % IMAGE_PAGES * SMALL + index);
}

static void many_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &guest->image);
	for (unsigned i = 0; i < MANY; i++)
		vmm_add_huge_region(&vmm, HUGE_ANONYMOUS, IMAGE_PAGES * HUGE, 0);
	vmm_start(&vmm, guest->socket, guest->form);
	vmm_threads(&vmm, MANY * IMAGE_PAGES, touch_one, NULL);
	vmm_check_all(&vmm);
}

static void test_many_reads_at_once(void **state)
{
	struct guest guest = { 0 };

	huge_pool_set_free(MANY * IMAGE_PAGES);
	set_scene(*state, &guest, "delay=100ms");
	fork_create(*state, "base", "many", NULL, guest.socket);
	client_join(client_start("many", many_body, &guest));
	assert_int_equal(fork_number(*state, "many", "copied_pages"), MANY * IMAGE_PAGES);
	/* Buffers for these reads don't stay. */
	assert_true(test_server_memory(*state) < (under_sanitizer() ? 1024ul : 64ul) << 20);
}

/* ---- two forks ---- */

static void test_two_forks_at_once(void **state)
{
	struct test_server *server = *state;
	struct guest guests[2] = { { .kind = HUGE_ANONYMOUS, .salt = 1 },
				   { .kind = HUGE_MEMFD, .salt = 2, .mixed = true } };
	struct client *clients[2];

	huge_pool_set_free(2 * IMAGE_PAGES - 1);
	set_scene(server, &guests[0], NULL);
	guests[1].image = guests[0].image;
	for (unsigned i = 0; i < 2; i++) {
		fork_create(server, "base", i ? "b" : "a", NULL, guests[i].socket);
		clients[i] = client_start(i ? "b" : "a", touch_body, &guests[i]);
	}
	for (unsigned i = 0; i < 2; i++)
		client_await(clients[i], 'd');
	assert_int_equal(huge_pool_free(), 0);
	/* One of them ends, and the other still has its bytes. */
	client_kill(clients[0]);
	client_tell(clients[1], 'q');
	client_join(clients[1]);
}

/* ---- removal ---- */

static void removal_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	start_vmm(&vmm, self, guest);
	struct vmm_region *region = &vmm.regions[0];
	vmm_check_page(&vmm, region, SMALL + 7);
	/* One that was touched, and one that was not. */
	vmm_remove(&vmm, region, SMALL, 2 * SMALL);
	client_require(self, vmm_present_huge(&vmm, region) == 0, "pages are there that were given back");
	vmm_check_all(&vmm);
	/* And again, now that they are zero pages; the kernel gives back whole pages only. */
	vmm_write_page(&vmm, region, SMALL + 9);
	vmm_remove(&vmm, region, SMALL, SMALL);
	client_require(self, madvise(region->address, HUGE - PAGE, MADV_DONTNEED) == 0, "madvise of a part");
	vmm_check_all(&vmm);
	client_say(self, 'd');
	client_hear(self, 'q');
}

static void test_removed_pages_are_zero(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { 0 };

	huge_pool_set_free(IMAGE_PAGES);
	set_scene(server, &guest, NULL);
	for (guest.kind = HUGE_ANONYMOUS; guest.kind <= HUGE_MEMFD; guest.kind++) {
		const char *id = kind_name(guest.kind);

		fork_create(server, "base", id, NULL, guest.socket);
		struct client *client = client_start(id, removal_body, &guest);
		client_await(client, 'd');
		assert_int_equal(fork_number(server, id, "removed_pages"), 2);
		assert_int_equal(fork_number(server, id, "zeroed_pages"), 3);
		assert_int_equal(fork_number(server, id, "copied_pages"), 3);
		client_tell(client, 'q');
		client_join(client);
		huge_pool_await_free(IMAGE_PAGES);
	}
}

#define RACERS 4

struct race {
	uint64_t salt;
	unsigned rounds;
};

/* Each thread gives back, writes and reads pages of its own, and reads all others. */
static void race_thread(struct vmm *vmm, unsigned index, void *data)
{
	struct race *race = data;
	struct random random = random_from(race->salt * 10 + index);

	for (unsigned i = 0; i < race->rounds; i++) {
		struct vmm_region *region = &vmm->regions[random_below(&random, vmm->region_count)];
		uint64_t pages = vmm_pages(region) / SMALL, page = random_below(&random, pages);
		uint64_t within = random_below(&random, SMALL);

		if (page % RACERS == index && random_below(&random, 3) == 0)
			vmm_remove(vmm, region, page * SMALL, SMALL);
		else if (page % RACERS == index && random_below(&random, 4) == 0)
			vmm_write_page(vmm, region, page * SMALL + within);
		vmm_check_page(vmm, region, page * SMALL + within);
	}
}

static void race_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct race race = { .salt = guest->salt, .rounds = guest->rounds };
	struct vmm vmm;

	vmm_init(&vmm, self, &guest->image);
	for (unsigned i = 0; i < 3; i++)
		vmm_add_huge_region(&vmm, guest->kind, IMAGE_PAGES * HUGE, 0);
	vmm_add_region(&vmm, 3 * HUGE, 0);
	vmm_start(&vmm, guest->socket, guest->form);
	vmm_threads(&vmm, RACERS, race_thread, &race);
	vmm_check_all(&vmm);
}

static void run_races(struct test_server *server, const char *inject, unsigned rounds)
{
	struct guest guest = { 0 };

	/* As many as are mapped, and what threads hold that are in the middle of giving back a page that another asks for anew. */
	huge_pool_set_free(3 * IMAGE_PAGES + RACERS);
	set_scene(server, &guest, inject);
	for (guest.salt = 0; guest.salt < 4; guest.salt++) {
		char id[16];

		if (inject)
			test_image_evict(&guest.image);
		guest.rounds = rounds;
		guest.kind = guest.salt & 1 ? HUGE_MEMFD : HUGE_ANONYMOUS;
		snprintf(id, sizeof id, "race%u", (unsigned)guest.salt);
		fork_create(server, "base", id, NULL, guest.socket);
		client_join(client_start(id, race_body, &guest));
		huge_pool_await_free(3 * IMAGE_PAGES + RACERS);
	}
}

static void test_removal_against_faults(void **state)
{
	run_races(*state, NULL, scaled(400));
}

static void test_removal_against_reads_under_way(void **state)
{
	run_races(*state, "delay=1ms", scaled(120));
}

/* ---- images that fail ---- */

static void unreadable_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	start_vmm(&vmm, self, guest);
	for (unsigned i = 0; i < 2; i++) {
		for (uint64_t page = 0; page < vmm_pages(&vmm.regions[0]); page += i ? 1 : 37) {
			if (page / SMALL != guest->bad)
				vmm_check_page(&vmm, &vmm.regions[0], page);
			else
				client_require(self, vmm_touch_raises(&vmm, &vmm.regions[0], page),
					       "page %" PRIu64 " can't be read, but raised nothing", page);
		}
	}
	client_say(self, 'd');
	client_hear(self, 'q');
	vmm_remove(&vmm, &vmm.regions[0], guest->bad * SMALL, SMALL);
	vmm_check_all(&vmm);
}

static void expect_one_bad(struct test_server *server, const char *id, struct client *client)
{
	/* The way out before Linux 6.6, which can't poison. */
	if (!client_await_or_death(client, 'd')) {
		client_join_killed(client);
		fork_expect_error(server, id, "gone", "read");
		return;
	}
	assert_int_equal(fork_number(server, id, "poisoned_pages"), 1);
	assert_int_equal(fork_number(server, id, "copied_pages"), IMAGE_PAGES - 1);
	client_tell(client, 'q');
	client_join(client);
}

/* One byte can't be read: that huge page raises SIGBUS, all of it, and no other does. */
static void test_unreadable_page(void **state)
{
	struct guest guest = { .bad = 1 };

	huge_pool_set_free(IMAGE_PAGES);
	set_scene(*state, &guest, "error=0x323456+1");
	fork_create(*state, "base", "bad", NULL, guest.socket);
	expect_one_bad(*state, "bad", client_start("bad", unreadable_body, &guest));
}

/* The image is cut short within the last huge page but one; what was under the cut is not to be had, nor what follows. */
static void truncated_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	start_vmm(&vmm, self, guest);
	vmm_check_page(&vmm, &vmm.regions[0], 5);
	client_say(self, 'c');
	client_hear(self, 't');
	for (uint64_t page = 0; page < vmm_pages(&vmm.regions[0]); page += 51) {
		if (page < 2 * SMALL)
			vmm_check_page(&vmm, &vmm.regions[0], page);
		else
			client_require(self, vmm_touch_raises(&vmm, &vmm.regions[0], page),
				       "page %" PRIu64 " is behind the cut, but raised nothing", page);
	}
	client_say(self, 'd');
	client_hear(self, 'q');
}

static void test_image_cut_short(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { 0 };

	huge_pool_set_free(IMAGE_PAGES);
	set_scene(server, &guest, NULL);
	fork_create(server, "base", "cut", NULL, guest.socket);
	struct client *client = client_start("cut", truncated_body, &guest);
	client_await(client, 'c');
	assert_int_equal(truncate(guest.image.path, (off_t)(3 * HUGE - 7 * PAGE)), 0);
	client_tell(client, 't');
	if (client_await_or_death(client, 'd')) {
		assert_int_equal(fork_number(server, "cut", "poisoned_pages"), 2);
		client_tell(client, 'q');
		client_join(client);
	} else {
		client_join_killed(client);
		fork_expect_error(server, "cut", "gone", "read|short");
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_faults),
		SERVED(test_faults_on_a_slow_image),
		SERVED(test_many_reads_at_once),
		SERVED(test_two_forks_at_once),
		SERVED(test_removed_pages_are_zero),
		SERVED(test_removal_against_faults),
		SERVED(test_removal_against_reads_under_way),
		SERVED(test_unreadable_page),
		SERVED(test_image_cut_short),
	};

	huge_require();
	return harness_run(tests);
}
