/* Zero maps: made beside the image when a template comes, used by faults and prefetch, and never believed when damaged. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/client.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"

#define PAGES 512ul
#define HOLES (PAGES / 2)
/* All of the image. */
#define UNREADABLE "delay=1ms,error=0x0+0x200000"
/* What comes with a page of zeros: the zeros of an aligned block. */
#define BLOCK 64ul

struct scene {
	struct test_server *server;
	struct test_image image;
	char file[260], list[160];
	char socket[SOCKET_PATH_MAX];
};

static void add(const struct scene *scene, const char *inject, const char *option)
{
	char *const args[] = { "template", "add",	   "base",	   "--memory", (char *)scene->image.path,
			       "--inject", (char *)inject, (char *)option, NULL };

	json_decref(command_ok(scene->server, args));
}

static void remove_template(const struct scene *scene)
{
	json_decref(command_ok(scene->server, ARGS("template", "remove", "base")));
}

static struct scene *scene_new(struct test_server *server)
{
	struct scene *scene = calloc(1, sizeof *scene);

	assert_non_null(scene);
	scene->server = server;
	scene->image.hole_every = 2;
	test_image_make(&scene->image, server->dir, "base", PAGES * PAGE);
	snprintf(scene->file, sizeof scene->file, "%s.base.zeromap", scene->image.path);
	snprintf(scene->list, sizeof scene->list, "%s/list.csv", server->dir);
	return scene;
}

/* Its state; RET_PAGES: known to be zeros. */
static char *state_of(const struct scene *scene, long long *ret_pages)
{
	json_t *t = command_ok(scene->server, ARGS("template", "show", "base"));
	const json_t *map = json_object_get(t, "zero_map");
	char *state = strdup(json_string_value(json_object_get(map, "state")));

	*ret_pages = json_integer_value(json_object_get(map, "pages"));
	json_decref(t);
	assert_non_null(state);
	return state;
}

static void await_ready(const struct scene *scene)
{
	const struct timespec pause = { .tv_nsec = 10000000 };

	for (;;) {
		long long pages;
		_cleanup_free_ char *state = state_of(scene, &pages);

		if (!strcmp(state, "ready")) {
			assert_int_equal(pages, HOLES);
			return;
		}
		assert_string_equal(state, "building");
		nanosleep(&pause, NULL);
	}
}

/* It is written a moment after it is ready. */
static void await_file(const struct scene *scene)
{
	const struct timespec pause = { .tv_nsec = 10000000 };

	await_ready(scene);
	while (access(scene->file, F_OK) < 0)
		nanosleep(&pause, NULL);
}

static void start_vmm(struct vmm *vmm, struct client_self *self, struct scene *scene)
{
	vmm_init(vmm, self, &scene->image);
	vmm_add_region(vmm, PAGES * PAGE, 0);
	vmm_start(vmm, scene->socket, (struct vmm_form){ 0 });
	client_say(self, 'c');
}

/* Reads all pages that are holes, none other. */
static void holes_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	for (uint64_t page = 0; page < PAGES; page++)
		if (test_image_is_hole(&scene->image, page))
			vmm_check_page(&vmm, &vmm.regions[0], page);
	client_say(self, 'd');
	client_hear(self, 'q');
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

static void run(struct scene *scene, const char *id, void (*body)(struct client_self *self, void *data))
{
	fork_create(scene->server, "base", id, ARGS(NULL), scene->socket);
	struct client *client = client_start(id, body, scene);

	client_await(client, 'c');
	client_await(client, 'd');
	client_tell(client, 'q');
	client_join(client);
	fork_wait(scene->server, id, "gone");
}

/* Nothing of the image can be read, and nothing has to be. */
static void test_zeros_are_never_read(void **state)
{
	struct scene *scene = scene_new(*state);
	struct stat st;

	add(scene, UNREADABLE, NULL);
	await_file(scene);
	assert_int_equal(stat(scene->file, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	run(scene, "fork", holes_body);
	assert_int_equal(fork_number(scene->server, "fork", "copied_pages"), HOLES);
	assert_int_equal(fork_number(scene->server, "fork", "slow_faults"), 0);
	assert_int_equal(fork_number(scene->server, "fork", "poisoned_pages"), 0);
	remove_template(scene);
	assert_true(access(scene->file, F_OK) < 0);
	free(scene);
}

static void test_not_wanted(void **state)
{
	struct scene *scene = scene_new(*state);
	long long pages;

	add(scene, "delay=1ms", "--no-zero-map");
	run(scene, "fork", everything_body);
	_cleanup_free_ char *now = state_of(scene, &pages);
	assert_string_equal(now, "off");
	assert_int_equal(pages, 0);
	assert_true(fork_number(scene->server, "fork", "slow_faults") > (int)HOLES);
	assert_true(access(scene->file, F_OK) < 0);
	free(scene);
}

static void keep_file(const struct scene *scene, const char *kept)
{
	assert_int_equal(link(scene->file, kept), 0);
	remove_template(scene);
	assert_int_equal(rename(kept, scene->file), 0);
}

/* From a file of before it is there from the first moment on. */
static void test_is_kept(void **state)
{
	struct scene *scene = scene_new(*state);
	char kept[200];
	long long pages;

	snprintf(kept, sizeof kept, "%s/kept", scene->server->dir);
	add(scene, "delay=1ms", NULL);
	await_file(scene);
	keep_file(scene, kept);
	add(scene, "delay=1ms", NULL);
	_cleanup_free_ char *now = state_of(scene, &pages);
	assert_string_equal(now, "ready");
	assert_int_equal(pages, HOLES);
	run(scene, "fork", everything_body);
	free(scene);
}

static void set_bits(const char *path, off_t at)
{
	const uint64_t all = ~0ull;
	_cleanup_close_ int fd = open(path, O_RDWR | O_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, &all, sizeof all, at), sizeof all);
}

/* Had they been believed, guests would have read zeros where there is data. */
static void test_damaged(void **state)
{
	struct scene *scene = scene_new(*state);
	char kept[200], id[16];

	snprintf(kept, sizeof kept, "%s/kept", scene->server->dir);
	add(scene, "delay=1ms", NULL);
	for (unsigned way = 0; way < 4; way++) {
		await_file(scene);
		keep_file(scene, kept);
		if (way == 0)
			set_bits(scene->file, 4096);
		else if (way == 1)
			set_bits(scene->file, 4096 + (off_t)(PAGES / 8) - 8);
		else if (way == 2)
			assert_int_equal(truncate(scene->file, 4096 + 8), 0);
		else
			assert_int_equal(chmod(scene->file, 0666), 0);
		add(scene, "delay=1ms", NULL);
		snprintf(id, sizeof id, "damaged%u", way);
		run(scene, id, everything_body);
	}
	free(scene);
}

/* Somebody's directory stands in its place. */
static void test_where_it_can_not_be_written(void **state)
{
	struct scene *scene = scene_new(*state);

	assert_int_equal(mkdir(scene->file, 0700), 0);
	add(scene, UNREADABLE, NULL);
	await_ready(scene);
	run(scene, "fork", holes_body);
	assert_int_equal(fork_number(scene->server, "fork", "slow_faults"), 0);
	remove_template(scene);
	assert_int_equal(rmdir(scene->file), 0);
	free(scene);
}

/* Another image under the same name: what was zeros in the one is not in the other. */
static void test_of_another_image(void **state)
{
	struct scene *scene = scene_new(*state);
	char kept[200];

	snprintf(kept, sizeof kept, "%s/kept", scene->server->dir);
	add(scene, "delay=1ms", NULL);
	await_file(scene);
	keep_file(scene, kept);
	assert_int_equal(unlink(scene->image.path), 0);
	scene->image.hole_every = 0;
	test_image_make(&scene->image, scene->server->dir, "base", PAGES * PAGE);
	add(scene, "delay=1ms", NULL);
	run(scene, "fork", everything_body);
	free(scene);
}

/* Reads one page of zeros; those around it have come with it. */
static void neighbours_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	client_hear(self, 'p');
	uint64_t first = 2 * BLOCK, page = first + 11;
	client_require(self, test_image_is_hole(&scene->image, page), "page %lu is no hole", (unsigned long)page);
	vmm_check_page(&vmm, &vmm.regions[0], page);
	client_say(self, 't');
	client_hear(self, 'l');
	for (uint64_t i = first; i < first + BLOCK; i++)
		client_require(self, vmm_is_present(&vmm, &vmm.regions[0], i) == test_image_is_hole(&scene->image, i),
			       "page %lu should%s be there", (unsigned long)i,
			       test_image_is_hole(&scene->image, i) ? "" : " not");
	vmm_check_all_shuffled(&vmm, 1, 5);
	vmm_check_all(&vmm);
	client_say(self, 'd');
	client_hear(self, 'q');
}

static void test_zeros_come_together(void **state)
{
	struct scene *scene = scene_new(*state);
	const struct timespec pause = { .tv_nsec = 10000000 };
	FILE *f = fopen(scene->list, "we");

	assert_non_null(f);
	fprintf(f, "region,offset,first_touch_ns,seen\n0,0,1,1\n");
	assert_int_equal(fclose(f), 0);
	add(scene, "delay=1ms", NULL);
	await_ready(scene);
	fork_create(scene->server, "base", "fork", ARGS("--prefetch", "stream", "--hot-list", scene->list),
		    scene->socket);
	struct client *client = client_start("fork", neighbours_body, scene);
	client_await(client, 'c');
	fork_wait(scene->server, "fork", "prefetched");
	client_tell(client, 'p');
	client_await(client, 't');
	/* They come after the page that was asked for. */
	while (fork_number(scene->server, "fork", "neighbour_pages") < (int)(BLOCK / 2 - 1))
		nanosleep(&pause, NULL);
	assert_int_equal(fork_number(scene->server, "fork", "neighbour_pages"), BLOCK / 2 - 1);
	client_tell(client, 'l');
	client_await(client, 'd');
	client_tell(client, 'q');
	client_join(client);
	free(scene);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_zeros_are_never_read),
		SERVED(test_not_wanted),
		SERVED(test_is_kept),
		SERVED(test_damaged),
		SERVED(test_where_it_can_not_be_written),
		SERVED(test_of_another_image),
		SERVED(test_zeros_come_together),
	};

	return harness_run(tests);
}
