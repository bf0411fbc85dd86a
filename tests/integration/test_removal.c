/* Pages that the guest gives back are zero from then on, whatever races with the removal: faults, slow reads, prefetch. */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "integration/harness/chaos.h"
#include "integration/harness/client.h"
#include "integration/harness/list.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"

struct guest {
	char socket[SOCKET_PATH_MAX];
	struct test_image image;
	struct vmm_form form;
	uint64_t salt;
	unsigned rounds;
};

static void start_vmm(struct vmm *vmm, struct client_self *self, struct guest *guest)
{
	vmm_init(vmm, self, &guest->image);
	vmm_start(vmm, guest->socket, guest->form);
}

/* ---- one thread's faults are in flight while another removes the range ---- */

#define BLOCK	16
#define READERS 4

struct race {
	pthread_barrier_t barrier;
	uint64_t first; /* page of the block */
	atomic_uint done;
	uint64_t salt;
	unsigned rounds;
};

static void race_reader(struct vmm *vmm, struct race *race, unsigned index, struct random *random)
{
	for (unsigned i = 0; i < 3; i++)
		vmm_check_page(vmm, &vmm->regions[0], race->first + (index * 4 + random_below(random, 4)) % BLOCK);
	atomic_fetch_add(&race->done, 1);
}

static void race_remover(struct vmm *vmm, struct race *race, struct random *random)
{
	uint64_t from = random_below(random, BLOCK / 2), count = 1 + random_below(random, BLOCK - from);
	unsigned pending, total = 0, wanted = 1 + (unsigned)random_below(random, READERS);

	/* Strike while so many faults are read or unread, or after all where the server was faster than this loop. */
	while (total < wanted && atomic_load(&race->done) < READERS)
		client_require(vmm->self, uffd_waiters(getpid(), vmm->uffd, &pending, &total), "no fdinfo");
	vmm_remove(vmm, &vmm->regions[0], race->first + from, count);
	/* Every other page at once; the rest only at the very end, when a read that was late has done its worst. */
	for (uint64_t i = 0; i < count; i += 2)
		vmm_check_page(vmm, &vmm->regions[0], race->first + from + i);
	if (random_below(random, 2))
		vmm_write_page(vmm, &vmm->regions[0], race->first + from);
}

static void race_thread(struct vmm *vmm, unsigned index, void *data)
{
	struct race *race = data;
	struct random random = random_from(race->salt * 10 + index);

	for (unsigned round = 0; round < race->rounds; round++) {
		pthread_barrier_wait(&race->barrier);
		if (index == READERS)
			race_remover(vmm, race, &random);
		else
			race_reader(vmm, race, index, &random);
		if (pthread_barrier_wait(&race->barrier) == PTHREAD_BARRIER_SERIAL_THREAD) {
			race->first += BLOCK;
			race->done = 0;
		}
	}
}

static void race_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct race race = { .salt = guest->salt, .rounds = guest->rounds };
	struct vmm vmm;

	start_vmm(&vmm, self, guest);
	pthread_barrier_init(&race.barrier, NULL, READERS + 1);
	vmm_threads(&vmm, READERS + 1, race_thread, &race);
	vmm_check_all(&vmm);
}

static void run_races(struct test_server *server, const char *inject, unsigned rounds)
{
	struct guest guest = { .rounds = rounds };
	char id[32];

	test_image_make(&guest.image, server->dir, "base", (uint64_t)rounds * BLOCK * PAGE);
	template_add_inject(server, "base", &guest.image, inject);
	for (unsigned i = 0; i < 4; i++) {
		guest.form = (struct vmm_form){ .json = i & 1, .fd = i & 1 };
		guest.salt = i;
		snprintf(id, sizeof id, "race%u", i);
		fork_create(server, "base", id, NULL, guest.socket);
		client_join(client_start(id, race_body, &guest));
	}
}

static void test_removal_under_faults_in_flight(void **state)
{
	run_races(*state, NULL, scaled(400));
}

static void test_removal_while_the_page_is_being_read(void **state)
{
	run_races(*state, "delay=3ms", scaled(100));
}

static void test_removal_of_pages_that_come_from_disk(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { .rounds = scaled(300) };

	test_image_make(&guest.image, server->dir, "base", (uint64_t)guest.rounds * BLOCK * PAGE);
	template_add(server, "base", &guest.image);
	for (unsigned i = 0; i < 3; i++) {
		char id[16];

		guest.salt = 20 + i;
		test_image_evict(&guest.image);
		snprintf(id, sizeof id, "cold%u", i);
		fork_create(server, "base", id, NULL, guest.socket);
		client_join(client_start(id, race_body, &guest));
	}
}

/* ---- removal against prefetch ---- */

static void prefetch_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct chaos chaos = { .threads = 3, .removals_of_100 = 25, .writes_of_100 = 5, .salt = guest->salt };
	struct vmm vmm;

	start_vmm(&vmm, self, guest);
	client_say(self, 'c');
	chaos_run_until(&vmm, &chaos, 's');
	vmm_check_all(&vmm);
	/* With nothing else going on, a whole prefetch after the removals. */
	client_say(self, 's');
	client_hear(self, 'p');
	vmm_check_all(&vmm);
}

static void run_against_prefetch(struct test_server *server, const char *inject, unsigned pages, unsigned rounds)
{
	struct guest guest = { 0 };
	_cleanup_free_ struct list_entry *list = calloc(pages, sizeof *list);
	char path[160], id[32];

	test_image_make(&guest.image, server->dir, "base", (uint64_t)pages * PAGE);
	template_add_inject(server, "base", &guest.image, inject);
	for (uint64_t i = 0; i < pages; i++)
		list[i] = (struct list_entry){ 0, i * PAGE };
	snprintf(path, sizeof path, "%s/all.hpl", server->dir);
	list_write(path, list, pages);

	for (unsigned round = 0; round < rounds; round++) {
		guest.salt = round;
		guest.form = (struct vmm_form){ .json = round & 1, .fd = round & 1 };
		snprintf(id, sizeof id, "prefetch%u", round);
		fork_create(server, "base", id, NULL, guest.socket);
		struct client *client = client_start(id, prefetch_body, &guest);
		client_await(client, 'c');
		fork_wait(server, id, "connected");
		json_decref(command_ok(server, ARGS("fork", "prefetch", id, path)));
		json_decref(command_ok(server, ARGS("fork", "prefetch", id, path)));
		client_tell(client, 's');
		client_await(client, 's');
		json_decref(command_ok(server, ARGS("fork", "prefetch", id, path)));
		client_tell(client, 'p');
		client_join(client);
	}
}

static void test_removal_against_prefetch(void **state)
{
	run_against_prefetch(*state, NULL, 6144, scaled(10));
}

static void test_removal_against_prefetch_of_a_slow_image(void **state)
{
	run_against_prefetch(*state, "delay=2ms,rate=200MB/s", 4096, scaled(6));
}

/* ---- the quiet cases ---- */

static void before_handshake_thread(struct vmm *vmm, unsigned index, void *data)
{
	(void)data;
	if (index == 0)
		vmm_check_page(vmm, &vmm->regions[0], 0);
	else if (index == 1)
		vmm_remove(vmm, &vmm->regions[0], 8, 8);
	else if (index == 2)
		vmm_remove(vmm, &vmm->regions[0], 40, 1);
	else {
		/* The faults of the two are there; the removals either block already or come as the server reads. */
		vmm_await_waiters(vmm, 1);
		vmm_handshake(vmm, (struct vmm_form){ 0 });
	}
}

static void before_handshake_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &guest->image);
	vmm_add_region(&vmm, guest->image.size, 0);
	vmm_make_uffd(&vmm, guest->form);
	vmm_connect(&vmm, guest->socket);
	vmm_threads(&vmm, 4, before_handshake_thread, NULL);
	vmm_check_all(&vmm);
}

static void test_removals_and_faults_from_before_the_handshake(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { 0 };

	test_image_make(&guest.image, server->dir, "base", 64 * PAGE);
	template_add(server, "base", &guest.image);
	for (unsigned i = 0; i < scaled(20); i++) {
		char id[32];

		snprintf(id, sizeof id, "early%u", i);
		fork_create(server, "base", id, NULL, guest.socket);
		client_join(client_start(id, before_handshake_body, &guest));
	}
}

static void everything_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	uint64_t pages = guest->image.size / PAGE;
	struct vmm vmm;

	start_vmm(&vmm, self, guest);
	for (uint64_t page = 0; page < pages; page += 3)
		vmm_check_page(&vmm, &vmm.regions[0], page);
	vmm_remove(&vmm, &vmm.regions[0], 0, pages);
	vmm_check_all(&vmm);
	/* Twice is once. */
	vmm_remove(&vmm, &vmm.regions[0], 0, pages);
	vmm_remove(&vmm, &vmm.regions[0], 5, 9);
	vmm_check_all(&vmm);
	for (uint64_t page = 0; page < pages; page += 2)
		vmm_write_page(&vmm, &vmm.regions[0], page);
	vmm_check_all(&vmm);
	vmm_remove(&vmm, &vmm.regions[0], 10, 10);
	vmm_check_all(&vmm);
	client_say(self, 'd');
	client_hear(self, 'q');
}

static void test_whole_region_and_repeated_removal(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { 0 };

	test_image_make(&guest.image, server->dir, "base", 300 * PAGE);
	template_add(server, "base", &guest.image);
	fork_create(server, "base", "all", NULL, guest.socket);
	struct client *client = client_start("all", everything_body, &guest);
	client_await(client, 'd');
	assert_int_equal(fork_number(server, "all", "copied_pages"), 100);
	assert_true(fork_number(server, "all", "zeroed_pages") >= 300);
	client_tell(client, 'q');
	client_join(client);
}

static void across_regions_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;
	char *base = mmap(NULL, 64 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	client_require(self, base != MAP_FAILED, "no address space");
	vmm_init(&vmm, self, &guest->image);
	/* Neighbours in memory, not in the image. */
	vmm_add_region_at(&vmm, base, 20 * PAGE, 30 * PAGE);
	vmm_add_region_at(&vmm, base + 20 * PAGE, 30 * PAGE, 0);
	vmm_start(&vmm, guest->socket, guest->form);
	vmm_check_page(&vmm, &vmm.regions[0], 19);
	for (uint64_t page = 15; page < 20; page++)
		vmm.regions[0].shows[page] = SHOWS_ZERO;
	for (uint64_t page = 0; page < 7; page++)
		vmm.regions[1].shows[page] = SHOWS_ZERO;
	client_require(self, madvise(base + 15 * PAGE, 12 * PAGE, MADV_DONTNEED) == 0, "madvise failed");
	vmm_check_all(&vmm);
}

static void test_removal_across_two_regions(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { 0 };

	test_image_make(&guest.image, server->dir, "base", 50 * PAGE);
	template_add(server, "base", &guest.image);
	fork_create(server, "base", "across", NULL, guest.socket);
	client_join(client_start("across", across_regions_body, &guest));
	guest.form = (struct vmm_form){ VMM_HYPEMAN, VMM_HYPEMAN, 0, 0 };
	fork_create(server, "base", "across-raw", NULL, guest.socket);
	client_join(client_start("across-raw", across_regions_body, &guest));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_removal_under_faults_in_flight),
		SERVED(test_removal_while_the_page_is_being_read),
		SERVED(test_removal_of_pages_that_come_from_disk),
		SERVED(test_removal_against_prefetch),
		SERVED(test_removal_against_prefetch_of_a_slow_image),
		SERVED(test_removals_and_faults_from_before_the_handshake),
		SERVED(test_whole_region_and_repeated_removal),
		SERVED(test_removal_across_two_regions),
	};

	return harness_run(tests);
}
