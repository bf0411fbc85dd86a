/* Streamed prefetch, beside the running guest: every byte right whatever happens meanwhile, in the list's order, and figures that add up. */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/chaos.h"
#include "integration/harness/client.h"
#include "integration/harness/list.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"

#define PAGES 2048ul
#define FIRST 1200ul /* pages of region 0; the rest is region 1, which stands for the image's beginning */

/* Reads of one fork that are under way at once: so far may a page come before its turn. */
#define UNDER_WAY 16

struct scene {
	struct test_server *server;
	char socket[SOCKET_PATH_MAX];
	char list[160];
	struct test_image image;
	uint64_t salt;
	size_t count; /* of the list */
	struct list_entry entries[PAGES];
};

static struct scene *scene_new(struct test_server *server, const char *inject)
{
	struct scene *scene = calloc(1, sizeof *scene);

	assert_non_null(scene);
	scene->server = server;
	test_image_make(&scene->image, server->dir, "base", PAGES * PAGE);
	template_add_inject(server, "base", &scene->image, inject);
	snprintf(scene->list, sizeof scene->list, "%s/list.csv", server->dir);
	return scene;
}

/* As CSV, in an order of its own; one page in ten comes twice. */
static void list_pages(struct scene *scene, size_t count, uint64_t salt)
{
	struct random random = random_from(salt);
	uint32_t order[PAGES];
	FILE *f = fopen(scene->list, "we");

	assert_non_null(f);
	random_order(&random, order, PAGES);
	fprintf(f, "region,offset,first_touch_ns,seen\n");
	for (size_t i = 0; i < count; i++) {
		struct list_entry *e = &scene->entries[i];
		*e = order[i] < FIRST ? (struct list_entry){ 0, order[i] * PAGE }
				      : (struct list_entry){ 1, (order[i] - FIRST) * PAGE };
		for (unsigned times = 1 + (i % 10 == 0); times > 0; times--)
			fprintf(f, "%" PRIu64 ",%" PRIu64 ",%zu,1\n", e->region, e->offset, i);
	}
	assert_int_equal(fclose(f), 0);
	scene->count = count;
}

static void start_vmm(struct vmm *vmm, struct client_self *self, struct scene *scene)
{
	vmm_init(vmm, self, &scene->image);
	vmm_add_region(vmm, FIRST * PAGE, (PAGES - FIRST) * PAGE);
	vmm_add_region(vmm, (PAGES - FIRST) * PAGE, 0);
	vmm_start(vmm, scene->socket, (struct vmm_form){ 0 });
}

static void create(struct scene *scene, const char *id)
{
	fork_create(scene->server, "base", id, ARGS("--prefetch", "stream", "--hot-list", scene->list), scene->socket);
}

struct figures {
	long long planned, prefetched, late, present, removed, skipped, unreadable, pending, late_supplied, missing,
		place, lead, moves, copied_pages, prefetched_pages, neighbours;
};

static long long number(const json_t *object, const char *key)
{
	const json_t *value = json_object_get(object, key);

	if (!json_is_integer(value))
		fail_msg("there is no number '%s'", key);
	return json_integer_value(value);
}

static struct figures figures(const struct scene *scene, const char *id)
{
	json_t *fork = fork_show(scene->server, id);
	const json_t *s = json_object_get(fork, "stream");
	if (json_is_null(s)) {
		json_decref(fork);
		return (struct figures){ 0 }; /* its list has not been read yet */
	}
	struct figures f = {
		.planned = number(s, "planned"),
		.prefetched = number(s, "prefetched"),
		.late = number(s, "late"),
		.present = number(s, "present"),
		.removed = number(s, "removed"),
		.skipped = number(s, "skipped"),
		.unreadable = number(s, "unreadable"),
		.pending = number(s, "pending"),
		.late_supplied = number(s, "late_supplied"),
		.missing = number(s, "missing"),
		.place = number(s, "place"),
		.lead = number(s, "lead"),
		.moves = number(s, "moves"),
		.copied_pages = number(fork, "copied_pages"),
		.prefetched_pages = number(fork, "prefetched_pages"),
		.neighbours = number(fork, "neighbour_pages"),
	};

	json_decref(fork);
	return f;
}

/* Each page of the list is one thing, and each page that was supplied came in one way. */
static void assert_sums(const struct figures *f, size_t planned)
{
	assert_int_equal(f->planned, planned);
	assert_int_equal(f->prefetched + f->late + f->present + f->removed + f->skipped + f->unreadable + f->pending,
			 planned);
	assert_int_equal(f->copied_pages, f->late - f->late_supplied + f->missing);
}

static struct figures await_figure(const struct scene *scene, const char *id, bool (*reached)(const struct figures *))
{
	const struct timespec pause = { .tv_nsec = 10000000 };
	uint64_t deadline = deadline_in(WAIT_S);

	for (;;) {
		struct figures f = figures(scene, id);
		if (reached(&f))
			return f;
		if (deadline_ms(deadline) == 0)
			fail_msg("fork %s has not got so far: place %lld, %lld prefetched", id, f.place, f.prefetched);
		nanosleep(&pause, NULL);
	}
}

/* ---- a guest that does nothing, and one that reads everything ---- */

static void idle_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	client_say(self, 'c');
	client_hear(self, 'p');
	for (size_t i = 0; i < scene->count; i++)
		client_require(self,
			       vmm_is_present(&vmm, &vmm.regions[scene->entries[i].region],
					      scene->entries[i].offset / PAGE),
			       "page %zu of the list is not there", i);
	uint64_t present = vmm_present_count(&vmm, &vmm.regions[0]) + vmm_present_count(&vmm, &vmm.regions[1]);
	client_require(self, present == scene->count, "%" PRIu64 " pages are there instead of %zu", present,
		       scene->count);
	client_say(self, 'd');
	client_hear(self, 'g');
	vmm_check_all_shuffled(&vmm, 2, scene->salt);
	client_say(self, 'd');
	client_hear(self, 'q');
}

static void run_idle(struct scene *scene, const char *id)
{
	create(scene, id);
	struct client *client = client_start(id, idle_body, scene);
	client_await(client, 'c');
	fork_wait(scene->server, id, "prefetched");
	client_tell(client, 'p');
	client_await(client, 'd');
	struct figures f = figures(scene, id);
	assert_sums(&f, scene->count);
	assert_int_equal(f.prefetched, scene->count);
	assert_int_equal(f.prefetched_pages, scene->count);
	assert_int_equal(f.missing, 0);
	assert_int_equal(f.place, scene->count);
	assert_int_equal(f.lead, scene->count);
	client_tell(client, 'g');
	client_await(client, 'd');
	f = figures(scene, id);
	assert_sums(&f, scene->count);
	/* Faults for unlisted pages brought others, and none was brought twice. */
	assert_int_equal(f.missing + f.neighbours, PAGES - scene->count);
	if (scene->count <= 1)
		assert_true(f.neighbours > f.missing);
	assert_int_equal(f.late, 0);
	/* They are still known when it is gone. */
	client_tell(client, 'q');
	client_join(client);
	fork_wait(scene->server, id, "gone");
	struct figures after = figures(scene, id);
	assert_memory_equal(&f, &after, sizeof f);
}

static void test_exactly_the_list(void **state)
{
	struct scene *scene = scene_new(*state, NULL);

	list_pages(scene, 700, 1);
	run_idle(scene, "warm");
	test_image_evict(&scene->image);
	run_idle(scene, "cold");
	list_pages(scene, PAGES, 2);
	run_idle(scene, "all");
	list_pages(scene, 1, 3);
	run_idle(scene, "single");
	list_pages(scene, 0, 3);
	run_idle(scene, "none");
	free(scene);
}

static void test_exactly_the_list_from_a_slow_image(void **state)
{
	struct scene *scene = scene_new(*state, "delay=1ms");

	list_pages(scene, 500, 4);
	run_idle(scene, "slow");
	free(scene);
}

/* ---- in which order they come ---- */

/* Says in value i which page of the list is the highest that has come while so many had; looks from the list's end on, and so sees no page
 * come before its turn that didn't. */
static void watching_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	const struct timespec pause = { .tv_nsec = 2000000 };
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	client_say(self, 'c');
	for (size_t come = 0; come < scene->count;) {
		size_t highest = 0;

		come = 0;
		for (size_t i = scene->count; i-- > 0;)
			if (vmm_is_present(&vmm, &vmm.regions[scene->entries[i].region],
					   scene->entries[i].offset / PAGE)) {
				highest = highest > i ? highest : i;
				come++;
			}
		client_require(self, highest < come + UNDER_WAY, "page %zu of the list is there, and %zu pages are",
			       highest, come);
		self->shared->counter[0]++;
		nanosleep(&pause, NULL);
	}
	vmm_check_all(&vmm);
	client_say(self, 'd');
	client_hear(self, 'q');
}

static void test_pages_come_in_the_order_of_the_list(void **state)
{
	/* No page lies beside another of the list: so each read is one page. */
	struct scene *scene = scene_new(*state, "delay=5ms");
	struct random random = random_from(7);
	uint32_t order[300];
	FILE *f = fopen(scene->list, "we");

	assert_non_null(f);
	random_order(&random, order, 300);
	fprintf(f, "region,offset,first_touch_ns,seen\n");
	for (size_t i = 0; i < 300; i++) {
		scene->entries[i] = (struct list_entry){ 0, 2ull * order[i] * PAGE };
		fprintf(f, "0,%" PRIu64 ",%zu,1\n", scene->entries[i].offset, i);
	}
	assert_int_equal(fclose(f), 0);
	scene->count = 300;
	create(scene, "watched");
	struct client *client = client_start("watched", watching_body, scene);
	client_await(client, 'c');
	client_await(client, 'd');
	assert_true(client_counter(client, 0) > 1); /* it was seen on its way */
	struct figures figures_ = figures(scene, "watched");
	assert_sums(&figures_, 300);
	client_tell(client, 'q');
	client_join(client);
	free(scene);
}

#define FAR 400

static bool is_under_way(const struct figures *f)
{
	return f->prefetched > 0;
}

static bool is_far(const struct figures *f)
{
	return f->place > FAR;
}

static void jumping_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	client_say(self, 'c');
	client_hear(self, 'g');
	/* Far ahead, and one that is not in the list. */
	vmm_check_page(&vmm, &vmm.regions[0], 2 * FAR);
	vmm_check_page(&vmm, &vmm.regions[1], 5);
	client_say(self, 'f');
	client_hear(self, 'q');
}

/* At ten pages a second the list takes a minute. The guest's own fault does not wait for what comes before it, and the rest of the list follows it. */
static void test_a_fault_far_ahead_moves_the_place(void **state)
{
	struct scene *scene = scene_new(*state, "rate=40kB/s");
	struct test_server *server = scene->server;
	FILE *f = fopen(scene->list, "we");

	assert_non_null(f);
	fprintf(f, "region,offset,first_touch_ns,seen\n");
	for (uint64_t i = 0; i < 600; i++)
		fprintf(f, "0,%" PRIu64 ",%" PRIu64 ",1\n", 2 * i * PAGE, i);
	assert_int_equal(fclose(f), 0);
	create(scene, "jumps");
	struct client *client = client_start("jumps", jumping_body, scene);
	client_await(client, 'c');
	await_figure(scene, "jumps", is_under_way);
	client_tell(client, 'g');
	client_await(client, 'f');

	struct figures now = figures(scene, "jumps");
	assert_sums(&now, 600);
	assert_int_equal(now.late, 1);
	assert_int_equal(now.missing, 1);
	/* It takes the next turn for that to show. */
	now = await_figure(scene, "jumps", is_far);
	assert_int_equal(now.moves, 1);
	assert_true(now.pending > 100); /* what it has passed over among them */
	command_fails(server, ARGS("fork", "prefetch", "jumps", scene->list), 1, "already");

	/* The VMM ends in the middle of it. */
	client_kill(client);
	fork_wait(server, "jumps", "gone");
	command_fails(server, ARGS("fork", "wait", "jumps", "--for", "prefetched", "--timeout", "20"), 1, NULL);
	now = figures(scene, "jumps");
	assert_sums(&now, 600);
	free(scene);
}

/* ---- beside faults and removals ---- */

static void racing_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	vmm_check_all_shuffled(&vmm, 4, scene->salt);
	vmm_check_all(&vmm);
	client_say(self, 'd');
	client_hear(self, 'q');
}

static void run_racing(struct scene *scene, const char *id)
{
	create(scene, id);
	struct client *client = client_start(id, racing_body, scene);
	client_await(client, 'd');
	fork_wait(scene->server, id, "prefetched");
	struct figures f = figures(scene, id);
	assert_sums(&f, scene->count);
	assert_int_equal(f.pending, 0);
	assert_int_equal(f.skipped + f.removed + f.unreadable, 0);
	/* Each page came once, in one way or another; a listed one may have come beside one that is not. */
	assert_int_equal(f.copied_pages + f.prefetched_pages + f.neighbours, PAGES);
	assert_in_range(f.prefetched + f.late_supplied, f.prefetched_pages, f.prefetched_pages + f.neighbours);
	client_tell(client, 'q');
	client_join(client);
}

static void test_racing_with_faults_of_four_threads(void **state)
{
	struct scene *scene = scene_new(*state, NULL);
	char id[32];

	for (unsigned i = 0; i < scaled(20); i++) {
		snprintf(id, sizeof id, "race%u", i);
		scene->salt = i;
		list_pages(scene, i & 1 ? PAGES : 900, i);
		run_racing(scene, id);
	}
	free(scene);
}

static void test_racing_from_a_slow_image(void **state)
{
	struct scene *scene = scene_new(*state, "delay=1ms");
	char id[32];

	for (unsigned i = 0; i < scaled(6); i++) {
		snprintf(id, sizeof id, "race%u", i);
		scene->salt = i;
		list_pages(scene, i & 1 ? PAGES : 900, i);
		run_racing(scene, id);
	}
	free(scene);
}

static void removing_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	struct chaos chaos = {
		.threads = 4, .rounds = scaled(400), .removals_of_100 = 20, .writes_of_100 = 20, .salt = scene->salt
	};
	chaos_run(&vmm, &chaos);
	client_say(self, 'd');
	client_hear(self, 'p');
	vmm_check_all(&vmm);
	client_say(self, 'e');
	client_hear(self, 'q');
}

static void run_removing(struct scene *scene, unsigned rounds)
{
	char id[32];

	for (unsigned i = 0; i < rounds; i++) {
		snprintf(id, sizeof id, "removing%u", i);
		scene->salt = i;
		list_pages(scene, PAGES, i);
		create(scene, id);
		struct client *client = client_start(id, removing_body, scene);
		client_await(client, 'd');
		fork_wait(scene->server, id, "prefetched");
		client_tell(client, 'p');
		client_await(client, 'e');
		struct figures f = figures(scene, id);
		assert_int_equal(f.pending, 0);
		assert_int_equal(f.prefetched + f.late + f.present + f.removed + f.skipped + f.unreadable, PAGES);
		client_tell(client, 'q');
		client_join(client);
	}
}

static void test_removed_pages_do_not_come_back(void **state)
{
	struct scene *scene = scene_new(*state, NULL);

	run_removing(scene, scaled(10));
	free(scene);
}

static void test_removed_pages_do_not_come_back_from_a_slow_image(void **state)
{
	struct scene *scene = scene_new(*state, "delay=500us");

	run_removing(scene, scaled(4));
	free(scene);
}

/* ---- ends ---- */

static void busy_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	client_say(self, 'c');
	for (;;) {
		vmm_check_all_shuffled(&vmm, 2, scene->salt);
		self->shared->counter[0]++;
		vmm_remove(&vmm, &vmm.regions[0], random_below(&(struct random){ scene->salt++ }, FIRST - 16), 16);
	}
}

/* Forks come and go while others stream. */
static void test_forks_join_and_leave(void **state)
{
	struct scene *scene = scene_new(*state, "delay=200us");
	struct client *clients[8] = { NULL };
	unsigned slots = sizeof clients / sizeof *clients;
	char id[32];

	list_pages(scene, PAGES, 9);
	for (unsigned i = 0; i < scaled(40); i++) {
		struct client **slot = &clients[i % slots];
		if (*slot)
			client_kill(*slot);
		snprintf(id, sizeof id, "fork%u", i);
		scene->salt = i;
		create(scene, id);
		*slot = client_start(id, busy_body, scene);
		client_await(*slot, 'c');
	}
	for (unsigned i = 0; i < slots; i++)
		if (clients[i])
			client_kill(clients[i]);
	fork_check_good(scene->server, "base", "after", &scene->image);
	free(scene);
}

static void test_the_server_stops_in_the_middle(void **state)
{
	struct scene *scene = scene_new(*state, "rate=400kB/s");
	struct client *clients[4];
	char id[32];

	list_pages(scene, PAGES, 10);
	for (unsigned i = 0; i < 4; i++) {
		snprintf(id, sizeof id, "fork%u", i);
		create(scene, id);
		clients[i] = client_start(id, busy_body, scene);
		client_await(clients[i], 'c');
	}
	test_server_signal(scene->server, SIGTERM);
	int status = test_server_wait_end(scene->server);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	for (unsigned i = 0; i < 4; i++)
		client_join_killed(clients[i]);
	test_server_check_log(scene->server);
	free(scene);
}

/* ---- what is wrong is said, and the guest is served without ---- */

static void unstreamed_body(struct client_self *self, void *data)
{
	struct vmm vmm;

	start_vmm(&vmm, self, data);
	client_say(self, 'c');
	client_hear(self, 'p');
	vmm_check_all(&vmm);
}

static void test_a_list_that_does_not_fit(void **state)
{
	struct scene *scene = scene_new(*state, NULL);
	struct list_entry list[] = { { 0, 0 }, { 0, PAGE }, { 5, 0 } };

	list_write(scene->list, list, 3);
	create(scene, "fork");
	struct client *client = client_start("fork", unstreamed_body, scene);
	client_await(client, 'c');
	command_fails(scene->server, ARGS("fork", "wait", "fork", "--for", "prefetched", "--timeout", "20"), 1,
		      "region");
	fork_expect_error(scene->server, "fork", "connected", "region");
	json_t *fork = fork_show(scene->server, "fork");
	assert_true(json_is_null(json_object_get(fork, "stream")));
	json_decref(fork);
	client_tell(client, 'p');
	client_join(client);
	free(scene);
}

static void unreadable_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	client_say(self, 'c');
	client_hear(self, 'p');
	for (uint64_t page = 0; page < FIRST; page++)
		if (page != 40 && page != 41)
			vmm_check_page(&vmm, &vmm.regions[0], page);
	client_say(self, 'd');
	client_hear(self, 'q');
}

static void test_pages_that_can_not_be_read(void **state)
{
	/* Pages 40 and 41 of region 0. */
	struct scene *scene = scene_new(*state, "error=3637248+8192");

	assert_int_equal((PAGES - FIRST + 40) * PAGE, 3637248);
	list_pages(scene, PAGES, 12);
	create(scene, "fork");
	struct client *client = client_start("fork", unreadable_body, scene);
	client_await(client, 'c');
	command_fails(scene->server, ARGS("fork", "wait", "fork", "--for", "prefetched", "--timeout", "60"), 1,
		      "could not be read");
	client_tell(client, 'p');
	client_await(client, 'd');
	struct figures f = figures(scene, "fork");
	assert_sums(&f, PAGES);
	assert_int_equal(f.unreadable, 2);
	assert_int_equal(f.pending, 0);
	client_tell(client, 'q');
	client_join(client);
	free(scene);
}

static void test_words_on_the_command_line(void **state)
{
	struct test_server *server = *state;
	struct scene *scene = scene_new(server, NULL);

	command_fails(server, ARGS("fork", "create", "base", "--prefetch", "stream"), 1, "list");
	command_fails(server, ARGS("fork", "create", "base", "--prefetch", "trickle"), 2, "stream");
	free(scene);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_exactly_the_list),
		SERVED(test_exactly_the_list_from_a_slow_image),
		SERVED(test_pages_come_in_the_order_of_the_list),
		SERVED(test_a_fault_far_ahead_moves_the_place),
		SERVED(test_racing_with_faults_of_four_threads),
		SERVED(test_racing_from_a_slow_image),
		SERVED(test_removed_pages_do_not_come_back),
		SERVED(test_removed_pages_do_not_come_back_from_a_slow_image),
		SERVED(test_forks_join_and_leave),
		SERVED(test_the_server_stops_in_the_middle),
		SERVED(test_a_list_that_does_not_fit),
		SERVED(test_pages_that_can_not_be_read),
		SERVED(test_words_on_the_command_line),
	};

	return harness_run(tests);
}
