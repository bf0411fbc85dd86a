/* Prefetch: the whole list is checked first, then every page of it is there, and nothing else is changed by it. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "integration/harness/chaos.h"
#include "integration/harness/client.h"
#include "integration/harness/list.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"

#define PAGES 512ul
#define FIRST 300ul /* pages of region 0; the rest is region 1, which stands for the image's beginning */

struct scene {
	struct test_server *server;
	char socket[SOCKET_PATH_MAX];
	char list[160];
	struct test_image image;
	struct vmm_form form;
};

static void set_scene(struct test_server *server, struct scene *scene, const char *inject)
{
	*scene = (struct scene){ .server = server };
	test_image_make(&scene->image, server->dir, "base", PAGES * PAGE);
	template_add_inject(server, "base", &scene->image, inject);
	snprintf(scene->list, sizeof scene->list, "%s/list.hpl", server->dir);
}

static void start_vmm(struct vmm *vmm, struct client_self *self, struct scene *scene)
{
	vmm_init(vmm, self, &scene->image);
	vmm_add_region(vmm, FIRST * PAGE, (PAGES - FIRST) * PAGE);
	vmm_add_region(vmm, (PAGES - FIRST) * PAGE, 0);
	vmm_start(vmm, scene->socket, scene->form);
}

static void expect_present(struct vmm *vmm, const struct list_entry *pages, size_t count, const char *when)
{
	uint64_t present = 0;

	for (size_t i = 0; i < count; i++)
		client_require(vmm->self, vmm_is_present(vmm, &vmm->regions[pages[i].region], pages[i].offset / PAGE),
			       "%s, page (%" PRIu64 ", 0x%" PRIx64 ") is not there", when, pages[i].region,
			       pages[i].offset);
	for (unsigned r = 0; r < vmm->region_count; r++)
		present += vmm_present_count(vmm, &vmm->regions[r]);
	client_require(vmm->self, present == count, "%s, %" PRIu64 " pages are there instead of %zu", when, present,
		       count);
}

/* ---- exactly the list ---- */

/* Runs, single pages, both regions, the last page of each. */
static const struct list_entry wanted[] = {
	{ 0, 0 },
	{ 0, PAGE },
	{ 0, 2 * PAGE },
	{ 0, 3 * PAGE },
	{ 0, 17 * PAGE },
	{ 0, 100 * PAGE },
	{ 0, 101 * PAGE },
	{ 0, (FIRST - 1) * PAGE },
	{ 1, 5 * PAGE },
	{ 1, 6 * PAGE },
	{ 1, (PAGES - FIRST - 1) * PAGE },
};
#define WANTED (sizeof wanted / sizeof *wanted)

static void exact_body(struct client_self *self, void *data)
{
	struct vmm vmm;

	start_vmm(&vmm, self, data);
	client_say(self, 'c');
	client_hear(self, 'p');
	expect_present(&vmm, wanted, WANTED, "after the prefetch");
	vmm_check_all_shuffled(&vmm, 2, 1);
	client_say(self, 'd');
	client_hear(self, 'q');
	vmm_check_all(&vmm);
}

static void run_exact(struct scene *scene, const char *id, const struct list_entry *list, size_t count)
{
	struct test_server *server = scene->server;

	list_write(scene->list, list, count);
	fork_create(server, "base", id, NULL, scene->socket);
	struct client *client = client_start(id, exact_body, scene);
	client_await(client, 'c');
	fork_wait(server, id, "connected");
	json_decref(command_ok(server, ARGS("fork", "prefetch", (char *)id, scene->list)));
	assert_int_equal(fork_number(server, id, "prefetched_pages"), WANTED);
	assert_int_equal(fork_number(server, id, "faults"), 0);
	client_tell(client, 'p');
	client_await(client, 'd');
	/* The rest came by faults, and none of the list did. */
	assert_int_equal(fork_number(server, id, "copied_pages"), PAGES - WANTED);
	/* Again: all is there. */
	json_decref(command_ok(server, ARGS("fork", "prefetch", (char *)id, scene->list)));
	client_tell(client, 'q');
	client_join(client);
}

static void test_exactly_the_list(void **state)
{
	struct list_entry list[3 * WANTED];
	struct random random = random_from(1);
	uint32_t order[WANTED];
	struct scene scene;

	set_scene(*state, &scene, NULL);
	run_exact(&scene, "sorted", wanted, WANTED);

	random_order(&random, order, WANTED);
	for (unsigned i = 0; i < WANTED; i++)
		list[i] = wanted[order[i]];
	run_exact(&scene, "unsorted", list, WANTED);

	for (unsigned i = 0; i < 3 * WANTED; i++)
		list[i] = wanted[order[(i * 5) % WANTED]];
	run_exact(&scene, "duplicates", list, 3 * WANTED);

	scene.form = (struct vmm_form){ VMM_HYPEMAN, VMM_HYPEMAN, 0, 0 };
	run_exact(&scene, "raw", list, 3 * WANTED);
	test_image_evict(&scene.image);
	run_exact(&scene, "cold", wanted, WANTED);
}

static void test_exactly_the_list_from_a_slow_image(void **state)
{
	struct scene scene;

	set_scene(*state, &scene, "delay=1ms");
	run_exact(&scene, "slow", wanted, WANTED);
}

/* ---- what is refused is refused as a whole ---- */

static void untouched_body(struct client_self *self, void *data)
{
	struct vmm vmm;

	start_vmm(&vmm, self, data);
	client_say(self, 'c');
	client_hear(self, 'p');
	expect_present(&vmm, NULL, 0, "after lists that were refused");
	client_say(self, 'n');
	client_hear(self, 'q');
	vmm_check_all(&vmm);
}

static void test_a_bad_entry_copies_nothing(void **state)
{
	static const struct {
		const char *what;
		struct list_entry bad;
		const char *word;
	} cases[] = {
		{ "region that isn't", { 2, 0 }, "region" },
		{ "region far out", { 1ull << 40, 0 }, "region" },
		{ "offset at the region's end", { 1, (PAGES - FIRST) * PAGE }, "offset" },
		{ "offset past the end", { 0, PAGES * PAGE }, "offset" },
		{ "offset far out", { 0, 1ull << 62 }, "offset" },
		{ "offset that is not a page's", { 0, 100 }, "offset" },
		{ "offset that is nearly a page's", { 1, PAGE + 2048 }, "offset" },
	};
	struct test_server *server = *state;
	struct list_entry list[101];
	struct scene scene;

	set_scene(server, &scene, NULL);
	fork_create(server, "base", "fork", NULL, scene.socket);
	struct client *client = client_start("fork", untouched_body, &scene);
	client_await(client, 'c');
	fork_wait(server, "fork", "connected");
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		for (uint64_t page = 0; page < 100; page++)
			list[page] = (struct list_entry){ 0, page * PAGE };
		/* Last, where a check on the way would find it too late. */
		list[100] = cases[i].bad;
		list_write(scene.list, list, 101);
		command_fails(server, ARGS("fork", "prefetch", "fork", scene.list), 1, cases[i].word);
	}
	assert_int_equal(fork_number(server, "fork", "prefetched_pages"), 0);
	client_tell(client, 'p');
	client_await(client, 'n');
	client_tell(client, 'q');
	client_join(client);
}

static void write_bytes(const char *path, const void *bytes, size_t size)
{
	FILE *f = fopen(path, "we");

	assert_true(f && fwrite(bytes, 1, size, f) == size && fclose(f) == 0);
}

static void test_lists_that_are_none(void **state)
{
	struct test_server *server = *state;
	struct scene scene;

	set_scene(server, &scene, NULL);
	fork_create(server, "base", "fork", NULL, scene.socket);
	struct client *client = client_start("fork", untouched_body, &scene);
	client_await(client, 'c');
	fork_wait(server, "fork", "connected");

	/* Empty ones, and a file that isn't there, are lists of nothing. */
	list_write(scene.list, NULL, 0);
	json_decref(command_ok(server, ARGS("fork", "prefetch", "fork", scene.list)));
	char missing[200];
	snprintf(missing, sizeof missing, "%s.missing", scene.list);
	json_decref(command_ok(server, ARGS("fork", "prefetch", "fork", missing)));
	/* These are no lists. */
	write_bytes(scene.list, "HP", 2);
	command_fails(server, ARGS("fork", "prefetch", "fork", scene.list), 1, NULL);
	write_bytes(scene.list, "HPL9\x01", 5);
	command_fails(server, ARGS("fork", "prefetch", "fork", scene.list), 1, NULL);
	write_bytes(scene.list, "HPL1\x02\x00\x00\x00", 8);
	command_fails(server, ARGS("fork", "prefetch", "fork", scene.list), 1, NULL);
	write_bytes(scene.list, "HPL1\x01\x00\x00\x00", 8);
	command_fails(server, ARGS("fork", "prefetch", "fork", scene.list), 1, NULL);
	command_fails(server, ARGS("fork", "prefetch", "fork", server->dir), 1, NULL);

	assert_int_equal(fork_number(server, "fork", "prefetched_pages"), 0);
	client_tell(client, 'p');
	client_await(client, 'n');
	client_tell(client, 'q');
	client_join(client);
}

static void check_code(struct test_server *server, const char *id, const char *list, int exit_code, const char *code)
{
	struct test_result result = command(server, ARGS("fork", "prefetch", (char *)id, (char *)list));

	if (result.exit_code != exit_code || !strstr(result.err, code))
		fail_msg("prefetch of %s: exit code %d where %d should be, with \"%s\" in: %s", id, result.exit_code,
			 exit_code, code, result.err);
	result_clear(&result);
}

static void test_unknown_not_connected_and_gone(void **state)
{
	struct test_server *server = *state;
	struct scene scene;

	set_scene(server, &scene, NULL);
	list_write(scene.list, wanted, WANTED);
	check_code(server, "nobody", scene.list, 4, "fork_unknown");
	fork_create(server, "base", "waiting", NULL, scene.socket);
	check_code(server, "waiting", scene.list, 1, "not_connected");
	/* An empty list makes no difference to that. */
	char empty[200];
	snprintf(empty, sizeof empty, "%s.empty", scene.list);
	list_write(empty, NULL, 0);
	check_code(server, "waiting", empty, 1, "not_connected");
	fork_check_good(server, "base", "ended", &scene.image);
	fork_wait(server, "ended", "gone");
	check_code(server, "ended", scene.list, 1, "fork_gone");
}

/* ---- pages that are there, and pages that were given back ---- */

static void mixed_body(struct client_self *self, void *data)
{
	struct vmm vmm;

	start_vmm(&vmm, self, data);
	for (uint64_t page = 0; page < FIRST; page += 3)
		vmm_check_page(&vmm, &vmm.regions[0], page);
	for (uint64_t page = 1; page < FIRST; page += 6)
		vmm_write_page(&vmm, &vmm.regions[0], page);
	/* Some that were never there, some that were, some that the guest had written. */
	vmm_remove(&vmm, &vmm.regions[0], 50, 40);
	vmm_remove(&vmm, &vmm.regions[1], 10, 5);
	client_say(self, 'c');
	client_hear(self, 'p');
	vmm_check_all(&vmm);
	client_say(self, 'd');
	client_hear(self, 'q');
}

static void test_present_stays_and_removed_stays_away(void **state)
{
	struct test_server *server = *state;
	struct list_entry list[PAGES];
	struct scene scene;
	size_t n = 0;

	set_scene(server, &scene, NULL);
	for (uint64_t page = 0; page < FIRST; page++)
		list[n++] = (struct list_entry){ 0, page * PAGE };
	for (uint64_t page = 0; page < PAGES - FIRST; page++)
		list[n++] = (struct list_entry){ 1, page * PAGE };
	list_write(scene.list, list, n);
	for (int style = 0; style < 2; style++) {
		const char *id = style ? "raw" : "ready-made";

		scene.form = (struct vmm_form){ .json = style, .fd = style };
		fork_create(server, "base", id, NULL, scene.socket);
		struct client *client = client_start(id, mixed_body, &scene);
		client_await(client, 'c');
		fork_wait(server, id, "connected");
		json_decref(command_ok(server, ARGS("fork", "prefetch", (char *)id, scene.list)));
		long long copied = fork_number(server, id, "prefetched_pages");
		long long present = fork_number(server, id, "prefetch_present_pages");
		assert_int_equal(fork_number(server, id, "prefetch_removed_pages"), 45);
		assert_int_equal(copied + present, PAGES - 45);
		/* 100 read, 50 others written; of those given back, 13 and 6 had been there. */
		assert_int_equal(present, 100 + 50 - 13 - 6);
		client_tell(client, 'p');
		client_await(client, 'd');
		/* Nothing was left for faults but the pages given back. */
		assert_int_equal(fork_number(server, id, "copied_pages"), 150);
		client_tell(client, 'q');
		client_join(client);
	}
}

/* ---- beside demand faults ---- */

static void racing_body(struct client_self *self, void *data)
{
	struct vmm vmm;

	start_vmm(&vmm, self, data);
	client_say(self, 'c');
	client_hear(self, 'g');
	vmm_check_all_shuffled(&vmm, 4, getpid());
	vmm_check_all(&vmm);
	client_say(self, 'd');
	client_hear(self, 'q');
}

static void test_racing_with_faults_of_four_threads(void **state)
{
	struct test_server *server = *state;
	struct list_entry list[PAGES];
	struct random random = random_from(4);
	struct scene scene;
	uint32_t order[PAGES];
	char id[16];

	set_scene(server, &scene, NULL);
	template_add_inject(server, "slow", &scene.image, "delay=1ms");
	random_order(&random, order, PAGES);
	for (uint64_t i = 0; i < PAGES; i++)
		list[i] = order[i] < FIRST ? (struct list_entry){ 0, order[i] * PAGE }
					   : (struct list_entry){ 1, (order[i] - FIRST) * PAGE };
	list_write(scene.list, list, PAGES);
	for (unsigned i = 0; i < scaled(30); i++) {
		struct test_command prefetch;

		snprintf(id, sizeof id, "race%u", i);
		fork_create(server, i & 1 ? "slow" : "base", id, NULL, scene.socket);
		struct client *client = client_start(id, racing_body, &scene);
		client_await(client, 'c');
		fork_wait(server, id, "connected");
		command_start(&prefetch, server, ARGS("fork", "prefetch", id, scene.list));
		/* Together, and with the prefetch ahead. */
		if (i & 2)
			(void)fork_await_prefetching(server, id, &prefetch);
		client_tell(client, 'g');
		struct test_result result = command_wait(&prefetch);
		assert_int_equal(result.exit_code, 0);
		result_clear(&result);
		client_await(client, 'd');
		/* Each page came once, by the one way or the other. */
		assert_int_equal(fork_number(server, id, "copied_pages") + fork_number(server, id, "prefetched_pages"),
				 PAGES);
		client_tell(client, 'q');
		client_join(client);
	}
}

static void overtaking_body(struct client_self *self, void *data)
{
	struct vmm vmm;

	start_vmm(&vmm, self, data);
	client_say(self, 'c');
	client_hear(self, 'g');
	/* From the list's end, and one that is not on it. */
	for (uint64_t page = FIRST - 1; page > FIRST - 4; page--)
		vmm_check_page(&vmm, &vmm.regions[0], page);
	vmm_check_page(&vmm, &vmm.regions[1], 7);
	client_say(self, 'd');
	client_hear(self, 'q');
	vmm_check_all(&vmm);
}

static void test_demand_faults_come_before_a_long_prefetch(void **state)
{
	struct test_server *server = *state;
	struct list_entry list[FIRST];
	struct test_command prefetch;
	struct scene scene;

	/* So little comes in a second that the prefetch takes some: faults wait for single pages, not for the list. */
	set_scene(server, &scene, NULL);
	template_add_inject(server, "slow", &scene.image, "rate=1MB/s");
	for (uint64_t i = 0; i < FIRST; i++)
		list[i] = (struct list_entry){ 0, i * PAGE };
	list_write(scene.list, list, FIRST);
	fork_create(server, "slow", "fork", NULL, scene.socket);
	struct client *client = client_start("fork", overtaking_body, &scene);
	client_await(client, 'c');
	fork_wait(server, "fork", "connected");
	command_start(&prefetch, server, ARGS("fork", "prefetch", "fork", scene.list));
	assert_true(fork_await_prefetching(server, "fork", &prefetch));
	client_tell(client, 'g');
	client_await(client, 'd');
	assert_false(command_has_ended(&prefetch));
	struct test_result result = command_wait(&prefetch);
	assert_int_equal(result.exit_code, 0);
	result_clear(&result);
	client_tell(client, 'q');
	client_join(client);
}

/* ---- asked for with the fork ---- */

static void eager_body(struct client_self *self, void *data)
{
	struct vmm vmm;

	start_vmm(&vmm, self, data);
	client_say(self, 'c');
	client_hear(self, 'p');
	expect_present(&vmm, wanted, WANTED, "after `fork wait --for prefetched`");
	vmm_check_all(&vmm);
}

static void test_eager_prefetch_from_the_handshake_on(void **state)
{
	struct test_server *server = *state;
	struct scene scene;

	set_scene(server, &scene, NULL);
	list_write(scene.list, wanted, WANTED);
	for (int style = 0; style < 2; style++) {
		const char *id = style ? "raw" : "ready-made";

		scene.form = (struct vmm_form){ .json = style, .fd = style };
		fork_create(server, "base", id, ARGS("--prefetch", "eager", "--hot-list", scene.list), scene.socket);
		struct client *client = client_start(id, eager_body, &scene);
		client_await(client, 'c');
		fork_wait(server, id, "prefetched");
		assert_int_equal(fork_number(server, id, "prefetched_pages"), WANTED);
		client_tell(client, 'p');
		client_join(client);
	}
}

static void test_eager_prefetch_with_the_templates_list(void **state)
{
	struct test_server *server = *state;
	struct scene scene;

	set_scene(server, &scene, NULL);
	list_write(scene.list, wanted, WANTED);
	json_decref(command_ok(server, ARGS("template", "add", "listed", "--memory", scene.image.path, "--hot-list",
					    scene.list)));
	fork_create(server, "listed", "fork", ARGS("--prefetch", "eager"), scene.socket);
	struct client *client = client_start("fork", eager_body, &scene);
	client_await(client, 'c');
	fork_wait(server, "fork", "prefetched");
	client_tell(client, 'p');
	client_join(client);
}

static void eager_bad_body(struct client_self *self, void *data)
{
	struct vmm vmm;

	start_vmm(&vmm, self, data);
	client_say(self, 'c');
	client_hear(self, 'p');
	expect_present(&vmm, NULL, 0, "after a list that does not fit");
	vmm_check_all(&vmm);
}

static void test_eager_prefetch_with_a_list_that_does_not_fit(void **state)
{
	struct test_server *server = *state;
	struct list_entry list[] = { { 0, 0 }, { 0, PAGE }, { 5, 0 } };
	struct scene scene;

	set_scene(server, &scene, NULL);
	list_write(scene.list, list, 3);
	fork_create(server, "base", "fork", ARGS("--prefetch", "eager", "--hot-list", scene.list), scene.socket);
	struct client *client = client_start("fork", eager_bad_body, &scene);
	client_await(client, 'c');
	fork_wait(server, "fork", "connected");
	/* It says so, and the fork is served without. */
	command_fails(server, ARGS("fork", "wait", "fork", "--for", "prefetched", "--timeout", "20"), 1, "region");
	fork_expect_error(server, "fork", "connected", "region");
	client_tell(client, 'p');
	client_join(client);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_exactly_the_list),
		SERVED(test_exactly_the_list_from_a_slow_image),
		SERVED(test_a_bad_entry_copies_nothing),
		SERVED(test_lists_that_are_none),
		SERVED(test_unknown_not_connected_and_gone),
		SERVED(test_present_stays_and_removed_stays_away),
		SERVED(test_racing_with_faults_of_four_threads),
		SERVED(test_demand_faults_come_before_a_long_prefetch),
		SERVED(test_eager_prefetch_from_the_handshake_on),
		SERVED(test_eager_prefetch_with_the_templates_list),
		SERVED(test_eager_prefetch_with_a_list_that_does_not_fit),
	};

	return harness_run(tests);
}
