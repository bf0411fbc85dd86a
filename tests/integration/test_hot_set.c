/* Packed hot sets: made beside the image once a fork has streamed its template's list, used where the image is slow, and never believed when damaged. */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/chaos.h"
#include "integration/harness/client.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"

#define PAGES  512ul
#define LISTED 300ul

struct scene {
	struct test_server *server;
	struct test_image image;
	char list[160], set[260], kept[260];
	char socket[SOCKET_PATH_MAX];
	uint32_t order[PAGES];
};

static void write_list(struct scene *scene, uint64_t salt)
{
	struct random random = random_from(salt);
	FILE *f = fopen(scene->list, "we");

	assert_non_null(f);
	random_order(&random, scene->order, PAGES);
	fprintf(f, "region,offset,first_touch_ns,seen\n");
	for (size_t i = 0; i < LISTED; i++)
		fprintf(f, "0,%lu,%zu,1\n", scene->order[i] * PAGE, i);
	assert_int_equal(fclose(f), 0);
}

/* Nothing of an image with a delay is ever in memory, wherever its file is. */
static void add(struct scene *scene, const char *inject, bool without)
{
	char *const args[] = { "template",   "add",	  "base",     "--memory",     scene->image.path,
			       "--hot-list", scene->list, "--inject", (char *)inject, without ? "--no-hot-set" : NULL,
			       NULL };

	json_decref(command_ok(scene->server, args));
}

static void remove_template(struct scene *scene)
{
	json_decref(command_ok(scene->server, ARGS("template", "remove", "base")));
}

static struct scene *scene_new(struct test_server *server)
{
	struct scene *scene = calloc(1, sizeof *scene);

	assert_non_null(scene);
	scene->server = server;
	scene->image.hole_every = 7;
	test_image_make(&scene->image, server->dir, "base", PAGES * PAGE);
	snprintf(scene->list, sizeof scene->list, "%s/list.csv", server->dir);
	snprintf(scene->set, sizeof scene->set, "%s.base.hotset", scene->image.path);
	snprintf(scene->kept, sizeof scene->kept, "%s/kept", server->dir);
	write_list(scene, 1);
	return scene;
}

static void start_vmm(struct vmm *vmm, struct client_self *self, struct scene *scene)
{
	vmm_init(vmm, self, &scene->image);
	vmm_add_region(vmm, PAGES * PAGE, 0);
	vmm_start(vmm, scene->socket, (struct vmm_form){ 0 });
	client_say(self, 'c');
}

static void fork_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	vmm_check_all_shuffled(&vmm, 2, 3);
	vmm_check_all(&vmm);
	client_say(self, 'd');
	client_hear(self, 'q');
}

/* A fork that streams the template's list, and reads every page. Its `unreadable` pages. */
static long long run_fork(struct scene *scene, const char *id)
{
	fork_create(scene->server, "base", id, ARGS("--prefetch", "stream"), scene->socket);
	struct client *client = client_start(id, fork_body, scene);
	client_await(client, 'c');
	client_await(client, 'd');
	fork_wait(scene->server, id, "prefetched");
	json_t *fork = fork_show(scene->server, id);
	const json_t *s = json_object_get(fork, "stream");
	assert_int_equal(json_integer_value(json_object_get(s, "planned")), LISTED);
	assert_int_equal(json_integer_value(json_object_get(s, "pending")), 0);
	long long unreadable = json_integer_value(json_object_get(s, "unreadable"));
	json_decref(fork);
	client_tell(client, 'q');
	client_join(client);
	fork_wait(scene->server, id, "gone");
	return unreadable;
}

static char *state_of(const struct scene *scene)
{
	json_t *t = command_ok(scene->server, ARGS("template", "show", "base"));
	char *state = strdup(json_string_value(json_object_get(json_object_get(t, "hot_set"), "state")));

	json_decref(t);
	assert_non_null(state);
	return state;
}

static void await_state(const struct scene *scene, const char *wanted)
{
	const struct timespec pause = { .tv_nsec = 10000000 };

	for (;;) {
		_cleanup_free_ char *state = state_of(scene);
		if (!strcmp(state, wanted))
			return;
		if (strcmp(state, "building") != 0 && strcmp(state, "none") != 0)
			fail_msg("its packed hot set is %s, not %s", state, wanted);
		nanosleep(&pause, NULL);
	}
}

static bool is_there(const char *path)
{
	return access(path, F_OK) == 0;
}

static void make_set(struct scene *scene)
{
	add(scene, "delay=1ms", false);
	assert_int_equal(run_fork(scene, "first"), 0);
	await_state(scene, "ready");
	assert_true(is_there(scene->set));
}

/* The set without the template that it was made for, which is removed with it. */
static void keep_set(struct scene *scene)
{
	assert_int_equal(link(scene->set, scene->kept), 0);
	remove_template(scene);
	assert_false(is_there(scene->set));
}

static void put_back(const struct scene *scene)
{
	assert_int_equal(rename(scene->kept, scene->set), 0);
}

static void test_made_and_removed(void **state)
{
	struct scene *scene = scene_new(*state);
	struct stat st;

	make_set(scene);
	assert_int_equal(stat(scene->set, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(run_fork(scene, "second"), 0);
	remove_template(scene);
	assert_false(is_there(scene->set));
	free(scene);
}

static void test_not_wanted(void **state)
{
	struct scene *scene = scene_new(*state);

	add(scene, "delay=1ms", true);
	assert_int_equal(run_fork(scene, "fork"), 0);
	_cleanup_free_ char *now = state_of(scene);
	assert_string_equal(now, "off");
	assert_false(is_there(scene->set));
	free(scene);
}

static void connect_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	client_hear(self, 'p');
	for (size_t i = 0; i < LISTED; i++)
		client_require(self, vmm_is_present(&vmm, &vmm.regions[0], scene->order[i]), "page %u is not there",
			       scene->order[i]);
	for (size_t i = 0; i < LISTED; i++)
		vmm_check_page(&vmm, &vmm.regions[0], scene->order[i]);
	client_say(self, 'd');
	client_hear(self, 'q');
}

/* Listed pages that the image can't give any more come all the same: from the set. */
static void test_pages_come_from_it(void **state)
{
	struct scene *scene = scene_new(*state);

	make_set(scene);
	keep_set(scene);
	put_back(scene);
	add(scene, "delay=1ms,error=0x0+0x200000", false); /* all of it */
	fork_create(scene->server, "base", "fork", ARGS("--prefetch", "stream"), scene->socket);
	struct client *client = client_start("fork", connect_body, scene);
	client_await(client, 'c');
	fork_wait(scene->server, "fork", "prefetched");
	client_tell(client, 'p');
	client_await(client, 'd');
	assert_int_equal(fork_number(scene->server, "fork", "prefetched_pages"), LISTED);
	assert_int_equal(fork_number(scene->server, "fork", "faults"), 0);
	client_tell(client, 'q');
	client_join(client);
	free(scene);
}

static void test_made_again_for_another_list(void **state)
{
	struct scene *scene = scene_new(*state);
	struct stat before, after;

	make_set(scene);
	assert_int_equal(stat(scene->set, &before), 0);
	write_list(scene, 2);
	assert_int_equal(run_fork(scene, "second"), 0);
	await_state(scene, "ready");
	const struct timespec pause = { .tv_nsec = 10000000 };
	for (;;) {
		assert_int_equal(stat(scene->set, &after), 0);
		if (after.st_ino != before.st_ino)
			break;
		nanosleep(&pause, NULL);
	}
	await_state(scene, "ready");
	assert_int_equal(run_fork(scene, "third"), 0);
	free(scene);
}

/* AT < 0: from the end. */
static void flip_at(const char *path, off_t at)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	struct stat st;
	uint8_t byte;

	assert_true(fd >= 0);
	assert_int_equal(fstat(fd, &st), 0);
	at += at < 0 ? st.st_size : 0;
	assert_int_equal(pread(fd, &byte, 1, at), 1);
	byte ^= 1;
	assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	close(fd);
}

static void cut(const char *path, off_t by)
{
	struct stat st;

	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(truncate(path, st.st_size - by), 0);
}

/* However it is harmed while nobody looks, forks are right, and a new one is made. */
static void test_damaged(void **state)
{
	struct scene *scene = scene_new(*state);
	char id[16];

	for (unsigned way = 0; way < 4; way++) {
		snprintf(id, sizeof id, "damaged%u", way);
		if (way == 0)
			make_set(scene);
		keep_set(scene);
		put_back(scene);
		if (way == 0)
			flip_at(scene->set, -1);
		else if (way == 1)
			flip_at(scene->set, -(off_t)(150 * PAGE));
		else if (way == 2)
			cut(scene->set, 5000);
		else
			flip_at(scene->set, 5000); /* in the table */
		add(scene, "delay=1ms", false);
		assert_int_equal(run_fork(scene, id), 0);
		strcat(id, "a");
		assert_int_equal(run_fork(scene, id), 0);
		await_state(scene, "ready");
		strcat(id, "b");
		assert_int_equal(run_fork(scene, id), 0);
	}
	free(scene);
}

/* Somebody's directory stands in its place: it can't be written, and everything goes on. */
static void test_where_it_can_not_be_written(void **state)
{
	struct scene *scene = scene_new(*state);

	assert_int_equal(mkdir(scene->set, 0700), 0);
	add(scene, "delay=1ms", false);
	assert_int_equal(run_fork(scene, "first"), 0);
	await_state(scene, "failed");
	assert_int_equal(run_fork(scene, "second"), 0);
	remove_template(scene);
	assert_int_equal(rmdir(scene->set), 0);
	free(scene);
}

/* All from one set, which is read while they start. */
static void test_many_forks_at_once(void **state)
{
	struct scene *scene = scene_new(*state);
	struct scene each[16];
	struct client *clients[16];
	char id[16][16];

	make_set(scene);
	for (unsigned i = 0; i < 16; i++) {
		each[i] = *scene;
		snprintf(id[i], sizeof id[i], "fork%u", i);
		fork_create(scene->server, "base", id[i], ARGS("--prefetch", "stream"), each[i].socket);
		clients[i] = client_start(id[i], fork_body, &each[i]);
	}
	for (unsigned i = 0; i < 16; i++) {
		client_await(clients[i], 'c');
		client_await(clients[i], 'd');
		fork_wait(scene->server, id[i], "prefetched");
		client_tell(clients[i], 'q');
		client_join(clients[i]);
	}
	free(scene);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_made_and_removed),
		SERVED(test_not_wanted),
		SERVED(test_pages_come_from_it),
		SERVED(test_made_again_for_another_list),
		SERVED(test_damaged),
		SERVED(test_where_it_can_not_be_written),
		SERVED(test_many_forks_at_once),
	};

	return harness_run(tests);
}
