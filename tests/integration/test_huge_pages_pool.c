/* A pool of huge pages that is too small, or just large enough: the last page can be had, and after it a VMM is stopped, not left hanging. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/client.h"
#include "integration/harness/huge.h"
#include "integration/harness/list.h"
#include "integration/harness/server.h"

#define PAGES 8ul
#define SMALL (HUGE / PAGE)

struct guest {
	char socket[SOCKET_PATH_MAX];
	char list[160];
	struct test_image image;
	enum huge_kind kind;
};

static void set_scene(struct test_server *server, struct guest *guest, const char *inject)
{
	test_image_make(&guest->image, server->dir, "base", PAGES * HUGE);
	template_add_inject(server, "base", &guest->image, inject);
	snprintf(guest->list, sizeof guest->list, "%s/list.hpl", server->dir);
}

static void start_vmm(struct vmm *vmm, struct client_self *self, const struct guest *guest)
{
	vmm_init(vmm, self, &guest->image);
	vmm_add_huge_region(vmm, guest->kind, PAGES * HUGE, 0);
	vmm_start(vmm, guest->socket, (struct vmm_form){ 0 });
}

static void check_huge_page(struct vmm *vmm, uint64_t page)
{
	for (uint64_t i = 0; i < SMALL; i++)
		vmm_check_page(vmm, &vmm->regions[0], page * SMALL + i);
}

/* ---- too small ---- */

static void check_from(struct vmm *vmm, unsigned index, void *data)
{
	uint64_t from = *(uint64_t *)data;

	for (uint64_t page = from; page < PAGES; page++)
		check_huge_page(vmm, from + (page + index) % (PAGES - from));
}

/* Touches all pages by several threads, of which most will wait for a page that is not to be had. */
static void all_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	uint64_t from = 0;
	struct vmm vmm;

	start_vmm(&vmm, self, guest);
	vmm_threads(&vmm, 4, check_from, &from);
}

static void run_too_small(struct test_server *server, struct guest *guest, const char *id, unsigned pages)
{
	huge_pool_set_free(pages);
	fork_create(server, "base", id, NULL, guest->socket);
	client_join_killed(client_start(id, all_body, guest));
	fork_wait(server, id, "gone");
	fork_expect_error(server, id, "gone", "vm.nr_hugepages");
	fork_expect_error(server, id, "gone", "pool");
	huge_pool_await_free(pages);
}

static void run_too_small_in_all_ways(struct test_server *server, struct guest *guest)
{
	for (unsigned pages = 0; pages < PAGES; pages += 3) {
		for (guest->kind = HUGE_ANONYMOUS; guest->kind <= HUGE_MEMFD; guest->kind++) {
			char id[32];

			snprintf(id, sizeof id, "pool%u-%u", pages, guest->kind);
			run_too_small(server, guest, id, pages);
		}
	}
}

static void test_too_small(void **state)
{
	struct guest guest = { 0 };

	set_scene(*state, &guest, NULL);
	run_too_small_in_all_ways(*state, &guest);
	test_image_evict(&guest.image);
	run_too_small(*state, &guest, "cold", 5);
	/* Nothing of it has spoilt the server, or the image. */
	fork_check_good(*state, "base", "after", &guest.image);
}

static void test_too_small_for_a_slow_image(void **state)
{
	struct guest guest = { 0 };

	set_scene(*state, &guest, "delay=5ms");
	run_too_small_in_all_ways(*state, &guest);
}

static void zeros_body(struct client_self *self, void *data)
{
	struct vmm vmm;

	start_vmm(&vmm, self, data);
	vmm_remove(&vmm, &vmm.regions[0], 0, vmm_pages(&vmm.regions[0]));
	vmm_check_all(&vmm);
}

/* Zero pages come from the pool as well. */
static void test_too_small_for_zeros(void **state)
{
	struct guest guest = { 0 };

	set_scene(*state, &guest, NULL);
	huge_pool_set_free(2);
	fork_create(*state, "base", "zeros", NULL, guest.socket);
	client_join_killed(client_start("zeros", zeros_body, &guest));
	fork_wait(*state, "zeros", "gone");
	fork_expect_error(*state, "zeros", "gone", "vm.nr_hugepages");
	assert_int_equal(fork_number(*state, "zeros", "zeroed_pages"), 2);
}

/* ---- just large enough ---- */

/* Gives pages back where others are wanted, and reads one page with several threads: most faults are for one that is there by then. */
static void exact_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	uint64_t from = PAGES / 2;
	struct vmm vmm;

	start_vmm(&vmm, self, guest);
	client_say(self, 'c');
	client_hear(self, 'g');
	for (uint64_t page = 0; page < from; page++)
		check_huge_page(&vmm, page);
	for (uint64_t page = 0; page < from; page++)
		vmm_remove(&vmm, &vmm.regions[0], page * SMALL, SMALL);
	vmm_threads(&vmm, 4, check_from, &from);
	client_require(self, vmm_present_huge(&vmm, &vmm.regions[0]) == PAGES / 2, "pages have come that nobody wanted");
	client_say(self, 'd');
	client_hear(self, 'q');
	vmm_threads(&vmm, 4, check_from, &from);
}

static void run_exact(struct test_server *server, struct guest *guest, const char *id)
{
	fork_create(server, "base", id, NULL, guest->socket);
	struct client *client = client_start(id, exact_body, guest);
	client_await(client, 'c');
	client_tell(client, 'g');
	client_await(client, 'd');
	assert_int_equal(huge_pool_free(), 0);
	assert_int_equal(fork_number(server, id, "copied_pages"), PAGES);
	assert_int_equal(fork_number(server, id, "zeroed_pages"), 0);
	client_tell(client, 'q');
	client_join(client);
	huge_pool_await_free(PAGES / 2);
}

static void test_just_large_enough(void **state)
{
	struct guest guest = { 0 };

	set_scene(*state, &guest, NULL);
	huge_pool_set_free(PAGES / 2);
	for (unsigned round = 0; round < 8; round++) {
		char id[16];

		/* Cold every other time. */
		if (round & 1)
			test_image_evict(&guest.image);
		guest.kind = round & 2 ? HUGE_MEMFD : HUGE_ANONYMOUS;
		snprintf(id, sizeof id, "exact%u", round);
		run_exact(*state, &guest, id);
	}
}

/* ---- with prefetch ---- */

static void write_list(const struct guest *guest, uint64_t pages)
{
	struct list_entry entries[2 * PAGES];

	for (uint64_t i = 0; i < pages; i++) {
		entries[2 * i] = (struct list_entry){ 0, i * HUGE + 5 * PAGE };
		entries[2 * i + 1] = (struct list_entry){ 0, i * HUGE + 500 * PAGE };
	}
	list_write(guest->list, entries, 2 * pages);
}

static void racing_body(struct client_self *self, void *data)
{
	uint64_t from = 0;
	struct vmm vmm;

	start_vmm(&vmm, self, data);
	vmm_threads(&vmm, 4, check_from, &from);
	client_say(self, 'd');
	client_hear(self, 'q');
	vmm_check_all(&vmm);
}

/* The guest and prefetch ask for the same pages, and the pool has one for each: nobody may be told that it is empty. */
static void test_prefetch_and_faults_share_the_last_pages(void **state)
{
	struct guest guest = { 0 };

	set_scene(*state, &guest, NULL);
	huge_pool_set_free(PAGES);
	write_list(&guest, PAGES);
	for (unsigned round = 0; round < scaled(24); round++) {
		char id[16];

		if (round % 3 == 2)
			test_image_evict(&guest.image);
		guest.kind = round & 1 ? HUGE_MEMFD : HUGE_ANONYMOUS;
		snprintf(id, sizeof id, "share%u", round);
		fork_create(*state, "base", id, ARGS("--prefetch", "eager", "--hot-list", guest.list), guest.socket);
		struct client *client = client_start(id, racing_body, &guest);
		client_await(client, 'd');
		fork_wait(*state, id, "prefetched");
		assert_int_equal(fork_number(*state, id, "copied_pages") + fork_number(*state, id, "prefetched_pages"),
				 PAGES);
		client_tell(client, 'q');
		client_join(client);
		huge_pool_await_free(PAGES);
	}
}

static void prefetched_body(struct client_self *self, void *data)
{
	uint64_t from = 0;
	struct vmm vmm;

	start_vmm(&vmm, self, data);
	client_say(self, 'c');
	client_hear(self, 'p');
	/* What has come is right and can be lived with; what has not is the end. */
	for (uint64_t page = 0; page < PAGES; page++)
		if (vmm_is_present(&vmm, &vmm.regions[0], page * SMALL))
			check_huge_page(&vmm, page);
	client_say(self, 'd');
	client_hear(self, 't');
	vmm_threads(&vmm, 2, check_from, &from);
}

static void test_pool_runs_out_in_the_middle_of_prefetch(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { 0 };

	set_scene(server, &guest, NULL);
	huge_pool_set_free(PAGES - 3);
	write_list(&guest, PAGES);
	for (unsigned round = 0; round < 3; round++) {
		const char *id = round == 0 ? "first" : round == 1 ? "second" : "cold";

		guest.kind = round & 1 ? HUGE_MEMFD : HUGE_ANONYMOUS;
		if (round == 2)
			test_image_evict(&guest.image);
		fork_create(server, "base", id, NULL, guest.socket);
		struct client *client = client_start(id, prefetched_body, &guest);
		client_await(client, 'c');
		fork_wait(server, id, "connected");
		command_fails(server, ARGS("fork", "prefetch", (char *)id, guest.list), 1, "vm.nr_hugepages");
		fork_expect_error(server, id, "connected", "vm.nr_hugepages");
		client_tell(client, 'p');
		client_await(client, 'd');
		assert_false(client_has_ended(client));
		client_tell(client, 't');
		client_join_killed(client);
		fork_wait(server, id, "gone");
		fork_expect_error(server, id, "gone", "vm.nr_hugepages");
		huge_pool_await_free(PAGES - 3);
	}
}

/* A fork that wants too much is stopped, and its pages are for the others, who have noticed nothing. */
static void test_other_forks_go_on(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { 0 }, other = { 0 };
	uint64_t half = PAGES / 2;

	set_scene(server, &guest, NULL);
	huge_pool_set_free(half + 2);
	other = guest;
	fork_create(server, "base", "other", NULL, other.socket);
	struct client *client = client_start("other", exact_body, &other);
	client_await(client, 'c');
	fork_create(server, "base", "greedy", NULL, guest.socket);
	client_join_killed(client_start("greedy", all_body, &guest));
	fork_wait(server, "greedy", "gone");
	fork_expect_error(server, "greedy", "gone", "vm.nr_hugepages");
	huge_pool_await_free(half + 2);
	client_tell(client, 'g');
	client_await(client, 'd');
	client_tell(client, 'q');
	client_join(client);
}

/* ---- a VMM whose socket ends while the pool is empty ---- */

static void closing_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	start_vmm(&vmm, self, guest);
	for (uint64_t page = 0; page < PAGES / 2; page++)
		check_huge_page(&vmm, page);
	client_say(self, 'f');
	client_hear(self, 'c');
	close(vmm.conn);
	client_say(self, 'd');
	/* Were its userfaultfd closed by now, this would read zeros. */
	client_hear(self, 't');
	check_huge_page(&vmm, PAGES - 1);
}

static void test_closed_socket_with_an_empty_pool(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { 0 };

	set_scene(server, &guest, NULL);
	huge_pool_set_free(PAGES / 2);
	fork_create(server, "base", "closing", NULL, guest.socket);
	struct client *client = client_start("closing", closing_body, &guest);
	client_await(client, 'f');
	assert_int_equal(huge_pool_free(), 0);
	client_tell(client, 'c');
	client_await(client, 'd');
	/* A request after the end of its socket: by its answer the server has seen that end. */
	fork_check_good(server, "base", "between", &guest.image);
	client_tell(client, 't');
	client_join_killed(client);
	fork_wait(server, "closing", "gone");
	fork_expect_error(server, "closing", "gone", "vm.nr_hugepages");
}

/* ---- a pool that is raised in time ---- */

static void refilled_body(struct client_self *self, void *data)
{
	struct vmm vmm;

	start_vmm(&vmm, self, data);
	client_say(self, 'c');
	client_hear(self, 'r');
	vmm_check_all_shuffled(&vmm, 4, 1);
}

/* What could not be supplied for want of pages is the image's still, once there are some, and not taken for pages that were there. */
static void test_pool_that_is_raised_in_time(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { 0 };

	set_scene(server, &guest, NULL);
	write_list(&guest, PAGES);
	for (unsigned round = 0; round < 2; round++) {
		const char *id = round ? "again" : "raised";

		huge_pool_set_free(round ? 0 : PAGES / 2);
		fork_create(server, "base", id, NULL, guest.socket);
		struct client *client = client_start(id, refilled_body, &guest);
		client_await(client, 'c');
		fork_wait(server, id, "connected");
		command_fails(server, ARGS("fork", "prefetch", (char *)id, guest.list), 1, "vm.nr_hugepages");
		huge_pool_set_free(PAGES);
		client_tell(client, 'r');
		client_join(client);
	}
}

/* ---- a limit on the server's cgroup, which is charged for huge pages that it supplies ---- */

struct hugetlb_group {
	char root[128];
	char dir[160];
	bool enabled; /* by this test, for the root's children */
};
static struct hugetlb_group group;

static bool group_write(const char *dir, const char *file, const char *text)
{
	char path[256];

	snprintf(path, sizeof path, "%s/%s", dir, file);
	_cleanup_fclose_ FILE *f = fopen(path, "we");
	return f && fputs(text, f) >= 0 && fflush(f) == 0;
}

static bool group_lists(const char *file)
{
	char path[256], line[512] = "";

	snprintf(path, sizeof path, "%s/%s", group.root, file);
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	return f && fgets(line, sizeof line, f) && strstr(line, "hugetlb");
}

/* False where this machine has no cgroup2 with the hugetlb controller at its root. */
static bool group_make(pid_t pid, unsigned pages)
{
	char line[512], number[32];
	_cleanup_fclose_ FILE *f = fopen("/proc/self/mounts", "re");

	group = (struct hugetlb_group){ 0 };
	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "%*s %127s cgroup2", group.root) == 1 && strstr(line, " cgroup2 "))
			break;
		else
			group.root[0] = '\0';
	if (!group.root[0] || !group_lists("cgroup.controllers"))
		return false;
	group.enabled = !group_lists("cgroup.subtree_control");
	if (group.enabled && !group_write(group.root, "cgroup.subtree_control", "+hugetlb"))
		return false;
	snprintf(group.dir, sizeof group.dir, "%s/faultline-test-%d", group.root, (int)getpid());
	if (mkdir(group.dir, 0755) < 0)
		return false;
	snprintf(number, sizeof number, "%lu", pages * HUGE);
	if (!group_write(group.dir, "hugetlb.2MB.max", number))
		return false;
	snprintf(number, sizeof number, "%d", (int)pid);
	return group_write(group.dir, "cgroup.procs", number);
}

static int group_teardown(void **state)
{
	int r = test_server_teardown(state);

	if (group.dir[0])
		rmdir(group.dir);
	if (group.enabled)
		group_write(group.root, "cgroup.subtree_control", "-hugetlb");
	return r;
}

static void test_limit_of_the_servers_cgroup(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { 0 };

	if (!group_make(server->pid, PAGES / 2)) {
		print_message("no cgroup2 with a hugetlb controller here: not tested\n");
		skip();
	}
	set_scene(server, &guest, NULL);
	huge_pool_set_free(2 * PAGES);
	fork_create(server, "base", "limited", NULL, guest.socket);
	client_join_killed(client_start("limited", all_body, &guest));
	fork_wait(server, "limited", "gone");
	fork_expect_error(server, "limited", "gone", "cgroup");
	assert_int_equal(fork_number(server, "limited", "copied_pages"), PAGES / 2);
	huge_pool_await_free(2 * PAGES);
	/* It keeps to the limit, and a fork that needs no more is served. */
	guest.kind = HUGE_MEMFD;
	fork_create(server, "base", "modest", NULL, guest.socket);
	struct client *client = client_start("modest", exact_body, &guest);
	client_await(client, 'c');
	client_tell(client, 'g');
	client_await(client, 'd');
	client_tell(client, 'q');
	client_join(client);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_too_small),
		SERVED(test_too_small_for_a_slow_image),
		SERVED(test_too_small_for_zeros),
		SERVED(test_just_large_enough),
		SERVED(test_prefetch_and_faults_share_the_last_pages),
		SERVED(test_pool_runs_out_in_the_middle_of_prefetch),
		SERVED(test_other_forks_go_on),
		SERVED(test_closed_socket_with_an_empty_pool),
		SERVED(test_pool_that_is_raised_in_time),
		cmocka_unit_test_setup_teardown(test_limit_of_the_servers_cgroup, test_server_setup, group_teardown),
	};

	huge_require();
	return harness_run(tests);
}
