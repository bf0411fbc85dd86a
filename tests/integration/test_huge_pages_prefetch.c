/* Hot lists and regions of 2 MiB pages: a list of 4 KiB pages brings each huge page once; what a fork of huge pages records. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "integration/harness/client.h"
#include "integration/harness/huge.h"
#include "integration/harness/list.h"
#include "integration/harness/server.h"

#define SMALL	    (HUGE / PAGE)
#define IMAGE_PAGES 8ul
/* The last huge page is the image's in its first half only. */
#define IMAGE_SIZE (IMAGE_PAGES * HUGE - HUGE / 2)

struct guest {
	char socket[SOCKET_PATH_MAX];
	char list[160];
	struct test_image image;
	enum huge_kind kind;
	bool mixed;
	const char *mode; /* of prefetch; NULL: eager */
	uint64_t present; /* bits of huge pages of region 0 that prefetch is to bring */
	uint64_t salt;
};

static void set_scene(struct test_server *server, struct guest *guest, const char *inject)
{
	test_image_make(&guest->image, server->dir, "base", IMAGE_SIZE);
	template_add_inject(server, "base", &guest->image, inject);
	snprintf(guest->list, sizeof guest->list, "%s/list.hpl", server->dir);
}

/* All of the image in huge pages; MIXED: and its beginning once more in small ones. */
static void start_vmm(struct vmm *vmm, struct client_self *self, const struct guest *guest)
{
	vmm_init(vmm, self, &guest->image);
	vmm_add_huge_region(vmm, guest->kind, IMAGE_PAGES * HUGE, 0);
	if (guest->mixed)
		vmm_add_region(vmm, HUGE, 0);
	vmm_start(vmm, guest->socket, (struct vmm_form){ 0 });
}

/* ---- a list of small pages ---- */

/* Five small pages in three huge ones, in an order of their own, one of them twice; the last is where the image has ended. */
static const struct list_entry small_list[] = {
	{ 0, 5 * HUGE + 17 * PAGE },	 { 0, 2 * HUGE + 511 * PAGE }, { 0, 5 * HUGE }, { 0, 2 * HUGE },
	{ 0, IMAGE_PAGES *HUGE - PAGE }, { 0, 5 * HUGE + 17 * PAGE },
};
#define LISTED	     (sizeof small_list / sizeof *small_list)
#define LISTED_HUGE  3
#define LISTED_PAGES (1u << 5 | 1u << 2 | 1u << 7)

static void expect_present(struct vmm *vmm, uint64_t pages)
{
	for (uint64_t page = 0; page < IMAGE_PAGES; page++)
		client_require(vmm->self, vmm_is_present(vmm, &vmm->regions[0], page * SMALL + 5) == (pages >> page & 1),
			       "huge page %" PRIu64 " is %sthere", page, pages >> page & 1 ? "not " : "");
}

static void listed_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	start_vmm(&vmm, self, guest);
	client_say(self, 'c');
	client_hear(self, 'p');
	expect_present(&vmm, guest->present);
	vmm_check_all_shuffled(&vmm, 3, guest->salt);
	client_say(self, 'd');
	client_hear(self, 'q');
	vmm_check_all(&vmm);
}

/* As a user does it: template, fork with a list, VMM, figures. */
static void run_listed(struct test_server *server, struct guest *guest, const char *id)
{
	fork_create(server, "base", id, ARGS("--prefetch", (char *)(guest->mode ?: "eager"), "--hot-list", guest->list),
		    guest->socket);
	struct client *client = client_start(id, listed_body, guest);
	client_await(client, 'c');
	fork_wait(server, id, "prefetched");
	assert_int_equal(fork_number(server, id, "prefetched_pages"), LISTED_HUGE);
	assert_int_equal(fork_number(server, id, "prefetch_present_pages"), 0);
	assert_int_equal(fork_number(server, id, "faults"), 0);
	client_tell(client, 'p');
	client_await(client, 'd');
	assert_int_equal(fork_number(server, id, "copied_pages") + fork_number(server, id, "neighbour_pages"),
			 IMAGE_PAGES - LISTED_HUGE + (guest->mixed ? SMALL : 0));

	/* Once more: all is there. */
	json_decref(command_ok(server, ARGS("fork", "prefetch", (char *)id, guest->list)));
	assert_int_equal(fork_number(server, id, "prefetched_pages"), LISTED_HUGE);
	assert_int_equal(fork_number(server, id, "prefetch_present_pages"), LISTED_HUGE);
	client_tell(client, 'q');
	client_join(client);
	huge_pool_await_free(IMAGE_PAGES);
}

static void test_a_list_of_small_pages(void **state)
{
	struct guest guest = { .present = LISTED_PAGES };

	huge_pool_set_free(IMAGE_PAGES);
	set_scene(*state, &guest, NULL);
	list_write(guest.list, small_list, LISTED);
	run_listed(*state, &guest, "anonymous");
	guest.kind = HUGE_MEMFD;
	test_image_evict(&guest.image);
	run_listed(*state, &guest, "memfd");
	guest.mixed = true;
	run_listed(*state, &guest, "mixed");
}

static void test_a_list_of_small_pages_from_a_slow_image(void **state)
{
	struct guest guest = { .present = LISTED_PAGES };

	huge_pool_set_free(IMAGE_PAGES);
	set_scene(*state, &guest, "delay=10ms");
	list_write(guest.list, small_list, LISTED);
	run_listed(*state, &guest, "slow");
}

static void test_a_list_of_small_pages_is_streamed(void **state)
{
	struct guest guest = { .present = LISTED_PAGES, .mode = "stream" };

	huge_pool_set_free(IMAGE_PAGES);
	set_scene(*state, &guest, NULL);
	list_write(guest.list, small_list, LISTED);
	run_listed(*state, &guest, "anonymous");
	guest.kind = HUGE_MEMFD;
	test_image_evict(&guest.image);
	run_listed(*state, &guest, "memfd");
	guest.mixed = true;
	run_listed(*state, &guest, "mixed");
}

static void test_what_fork_show_says(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { .present = LISTED_PAGES };

	huge_pool_set_free(IMAGE_PAGES);
	set_scene(server, &guest, NULL);
	list_write(guest.list, small_list, LISTED);
	fork_create(server, "base", "shown", ARGS("--prefetch", "eager", "--hot-list", guest.list), guest.socket);
	struct client *client = client_start("shown", listed_body, &guest);
	client_await(client, 'c');
	fork_wait(server, "shown", "prefetched");
	json_t *fork = fork_show(server, "shown");
	const json_t *region = json_array_get(json_object_get(fork, "regions"), 0);
	assert_int_equal(json_integer_value(json_object_get(region, "page_size")), HUGE);
	assert_int_equal(json_integer_value(json_object_get(region, "size")), IMAGE_PAGES * HUGE);
	json_decref(fork);
	client_tell(client, 'p');
	client_await(client, 'd');
	client_tell(client, 'q');
	client_join(client);
}

/* ---- a list that can't be ---- */

static void test_lists_that_do_not_fit(void **state)
{
	static const struct list_entry past[] = { { 0, 0 }, { 0, IMAGE_PAGES * HUGE } };
	static const struct list_entry other[] = { { 0, 0 }, { 1, 0 } };
	struct test_server *server = *state;
	struct guest guest = { .present = 0 };

	huge_pool_set_free(IMAGE_PAGES);
	set_scene(server, &guest, NULL);
	fork_create(server, "base", "misfit", NULL, guest.socket);
	struct client *client = client_start("misfit", listed_body, &guest);
	client_await(client, 'c');
	fork_wait(server, "misfit", "connected");
	list_write(guest.list, past, 2);
	command_fails(server, ARGS("fork", "prefetch", "misfit", guest.list), 1, "entry 1");
	list_write(guest.list, other, 2);
	command_fails(server, ARGS("fork", "prefetch", "misfit", guest.list), 1, "entry 1");
	/* The whole list is checked before anything is done: no page has come. */
	client_tell(client, 'p');
	client_await(client, 'd');
	client_tell(client, 'q');
	client_join(client);
}

/* ---- recording ---- */

static void recorded_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	start_vmm(&vmm, self, guest);
	/* Touched somewhere inside; given back; touched when it is zero; and in the small region. */
	vmm_check_page(&vmm, &vmm.regions[0], 6 * SMALL + 100);
	vmm_check_page(&vmm, &vmm.regions[0], 6 * SMALL + 101);
	vmm_check_page(&vmm, &vmm.regions[0], 3 * SMALL + 511);
	vmm_remove(&vmm, &vmm.regions[0], SMALL, SMALL);
	vmm_check_page(&vmm, &vmm.regions[0], SMALL + 1);
	vmm_check_page(&vmm, &vmm.regions[1], 9);
	vmm_check_page(&vmm, &vmm.regions[0], 4);
	client_say(self, 'd');
	client_hear(self, 'q');
}

static bool is_entry(const struct list_entry *entry, uint64_t region, uint64_t offset)
{
	return entry->region == region && entry->offset == offset;
}

/* The beginning of each huge page that was touched, in the order of their touches; the list serves forks of either page size. */
static void test_recorded_on_huge_pages(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { .mixed = true };
	char csv[160];
	size_t count;

	huge_pool_set_free(IMAGE_PAGES);
	set_scene(server, &guest, NULL);
	fork_create(server, "base", "recorded", ARGS("--record"), guest.socket);
	struct client *client = client_start("recorded", recorded_body, &guest);
	client_await(client, 'd');
	assert_int_equal(fork_number(server, "recorded", "recorded_pages"), 4);
	assert_int_equal(fork_number(server, "recorded", "zeroed_pages"), 1);
	snprintf(csv, sizeof csv, "%s/list.csv", server->dir);
	json_decref(command_ok(server, ARGS("fork", "hot-list", "recorded", "--format", "csv", "-o", csv)));
	json_decref(command_ok(server, ARGS("fork", "hot-list", "recorded", "-o", guest.list)));
	client_tell(client, 'q');
	client_join(client);
	huge_pool_await_free(IMAGE_PAGES);

	struct list_entry *entries = list_read_csv(csv, &count);
	assert_int_equal(count, 4);
	assert_true(is_entry(&entries[0], 0, 6 * HUGE));
	assert_true(is_entry(&entries[1], 0, 3 * HUGE));
	assert_true(is_entry(&entries[2], 1, 9 * PAGE));
	assert_true(is_entry(&entries[3], 0, 0));
	free(entries);

	/* Given to the next fork, it brings those pages. */
	guest.present = 1u << 6 | 1u << 3 | 1u << 0;
	fork_create(server, "base", "next", ARGS("--prefetch", "eager", "--hot-list", guest.list), guest.socket);
	client = client_start("next", listed_body, &guest);
	client_await(client, 'c');
	fork_wait(server, "next", "prefetched");
	assert_int_equal(fork_number(server, "next", "prefetched_pages"), 4);
	client_tell(client, 'p');
	client_await(client, 'd');
	client_tell(client, 'q');
	client_join(client);
}

/* ---- removal against prefetch ---- */

#define RACERS 2

static void race_thread(struct vmm *vmm, unsigned index, void *data)
{
	struct random random = random_from(*(uint64_t *)data * 10 + index);

	for (unsigned i = 0; !atomic_load(&vmm->stop) && i < 40; i++) {
		uint64_t page = random_below(&random, IMAGE_PAGES), within = random_below(&random, SMALL);

		if (page % RACERS == index && random_below(&random, 4) == 0)
			vmm_remove(vmm, &vmm->regions[0], page * SMALL, SMALL);
		vmm_check_page(vmm, &vmm->regions[0], page * SMALL + within);
	}
}

static void race_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	start_vmm(&vmm, self, guest);
	vmm_threads(&vmm, RACERS, race_thread, &guest->salt);
	client_say(self, 'd');
	client_hear(self, 'q');
	vmm_check_all(&vmm);
}

/* Prefetch runs while the guest reads pages and gives them back; what was given back never comes again. */
static void run_races(struct test_server *server, struct guest *guest, unsigned rounds, bool cold)
{
	struct list_entry all[IMAGE_PAGES];

	for (unsigned i = 0; i < IMAGE_PAGES; i++)
		all[i] = (struct list_entry){ 0, (IMAGE_PAGES - 1 - i) * HUGE + i * PAGE };
	list_write(guest->list, all, IMAGE_PAGES);
	for (unsigned round = 0; round < rounds; round++) {
		char id[24];

		if (cold)
			test_image_evict(&guest->image);
		guest->salt = round;
		guest->kind = round & 1 ? HUGE_MEMFD : HUGE_ANONYMOUS;
		snprintf(id, sizeof id, "race%u", round);
		fork_create(server, "base", id, ARGS("--prefetch", "eager", "--hot-list", guest->list), guest->socket);
		struct client *client = client_start(id, race_body, guest);
		client_await(client, 'd');
		fork_wait(server, id, "prefetched");
		client_tell(client, 'q');
		client_join(client);
		huge_pool_await_free(IMAGE_PAGES + RACERS);
	}
}

static void test_removal_against_prefetch(void **state)
{
	struct guest guest = { 0 };

	huge_pool_set_free(IMAGE_PAGES + RACERS);
	set_scene(*state, &guest, NULL);
	run_races(*state, &guest, scaled(40), false);
}

static void test_removal_against_prefetch_from_disk(void **state)
{
	struct guest guest = { 0 };

	huge_pool_set_free(IMAGE_PAGES + RACERS);
	set_scene(*state, &guest, "delay=3ms");
	run_races(*state, &guest, scaled(16), true);
}

/* ---- pages that can't be read ---- */

static void unreadable_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	start_vmm(&vmm, self, guest);
	client_say(self, 'c');
	client_hear(self, 'p');
	for (uint64_t page = 0; page < vmm_pages(&vmm.regions[0]); page += 3)
		if (page / SMALL != 4)
			vmm_check_page(&vmm, &vmm.regions[0], page);
	client_say(self, 'd');
	client_hear(self, 'q');
}

/* Prefetch says which of its pages was not to be had, and brings all others. */
static void test_unreadable_page(void **state)
{
	static const struct list_entry list[] = { { 0, 4 * HUGE }, { 0, 5 * HUGE }, { 0, 3 * HUGE + 7 * PAGE } };
	struct test_server *server = *state;
	struct guest guest = { 0 };

	huge_pool_set_free(IMAGE_PAGES);
	set_scene(server, &guest, "error=0x9ff000+1");
	list_write(guest.list, list, 3);
	fork_create(server, "base", "bad", NULL, guest.socket);
	struct client *client = client_start("bad", unreadable_body, &guest);
	client_await(client, 'c');
	fork_wait(server, "bad", "connected");
	command_fails(server, ARGS("fork", "prefetch", "bad", guest.list), 1, "could not be read");
	assert_int_equal(fork_number(server, "bad", "prefetched_pages"), 2);
	client_tell(client, 'p');
	client_await(client, 'd');
	client_tell(client, 'q');
	client_join(client);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_a_list_of_small_pages),
		SERVED(test_a_list_of_small_pages_from_a_slow_image),
		SERVED(test_a_list_of_small_pages_is_streamed),
		SERVED(test_what_fork_show_says),
		SERVED(test_lists_that_do_not_fit),
		SERVED(test_recorded_on_huge_pages),
		SERVED(test_removal_against_prefetch),
		SERVED(test_removal_against_prefetch_from_disk),
		SERVED(test_unreadable_page),
	};

	huge_require();
	return harness_run(tests);
}
