/* A list says which image and which memory layout it was recorded on: there it is used, and on any other fork nothing of it. */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "hotlist/hotlist.h"
#include "hotlist/identity.h"
#include "integration/harness/client.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"

#define PAGES 512ul
#define FIRST 300ul /* pages of region 0; the rest is region 1 */

static const struct hot_page wanted[] = { { 1, 5 * PAGE }, { 0, 299 * PAGE }, { 0, 0 }, { 1, 4 * PAGE } };
#define WANTED (sizeof wanted / sizeof wanted[0])

struct scene {
	struct test_image image;
	char socket[SOCKET_PATH_MAX];
	size_t expected; /* pages that are there when the test says so */
};

static struct hotlist *list_for(const struct test_image *image, uint64_t region_size)
{
	struct hotlist_region_size regions[] = {
		{ .size = region_size, .offset = 0, .page_size = PAGE },
		{ .size = (PAGES - FIRST) * PAGE, .offset = FIRST * PAGE, .page_size = PAGE }
	};
	struct hotlist_origin origin = { .regions = regions, .region_count = 2, .template_size = image->size, .runs = 1 };
	struct hotlist *list = hotlist_new();
	_cleanup_close_ int fd = open(image->path, O_RDONLY | O_CLOEXEC);

	assert_true(list && fd >= 0);
	assert_int_equal(image_identity(fd, image->size, origin.template_digest), 0);
	assert_int_equal(hotlist_set_origin(list, &origin), 0);
	for (size_t i = 0; i < WANTED; i++)
		assert_int_equal(hotlist_add_touch(list, wanted[i].region, wanted[i].offset,
						   &(struct hot_touch){ .raw_ns = i, .seen = 1 }),
				 0);
	return list;
}

/* To PATH as HPL2 or JSON, which both bind a list. */
static void save(const char *path, const struct test_image *image, uint64_t region_size, enum hotlist_format format)
{
	_cleanup_hotlist_ struct hotlist *list = list_for(image, region_size);

	assert_int_equal(hotlist_save(list, format, path, NULL), 0);
}

static void guest_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	uint64_t present = 0;
	struct vmm vmm;

	vmm_init(&vmm, self, &scene->image);
	vmm_add_region(&vmm, FIRST * PAGE, 0);
	vmm_add_region(&vmm, (PAGES - FIRST) * PAGE, FIRST * PAGE);
	vmm_start(&vmm, scene->socket, (struct vmm_form){ 0 });
	client_say(self, 'c');
	client_hear(self, 'p');
	for (unsigned r = 0; r < vmm.region_count; r++)
		present += vmm_present_count(&vmm, &vmm.regions[r]);
	client_require(self, present == scene->expected, "%" PRIu64 " pages are there instead of %zu", present,
		       scene->expected);
	client_say(self, 'n');
	client_hear(self, 'q');
	vmm_check_all(&vmm);
}

static void refused(struct test_server *server, const char *id, const char *path, const char *part)
{
	struct test_result result = command(server, ARGS("fork", "prefetch", (char *)id, (char *)path, "--json"));

	if (result.exit_code != 1 || !strstr(result.err, "bad_hot_list") || !strstr(result.err, part))
		fail_msg("exit code %d, and this instead of \"%s\": %s", result.exit_code, part, result.err);
	result_clear(&result);
}

static void finish(struct client *client)
{
	client_tell(client, 'p');
	client_await(client, 'n');
	client_tell(client, 'q');
	client_join(client);
}

static void test_prefetch_into_a_running_fork(void **state)
{
	struct test_server *server = *state;
	struct scene scene = { .expected = WANTED };
	struct test_image other = { .seed = 7 };
	char path[160];

	test_image_make(&scene.image, server->dir, "base", PAGES * PAGE);
	test_image_make(&other, server->dir, "other", PAGES * PAGE);
	snprintf(path, sizeof path, "%s/list", server->dir);
	template_add_inject(server, "base", &scene.image, NULL);
	fork_create(server, "base", "fork", NULL, scene.socket);
	struct client *client = client_start("fork", guest_body, &scene);
	client_await(client, 'c');
	fork_wait(server, "fork", "connected");

	save(path, &other, FIRST * PAGE, HOTLIST_HPL2);
	refused(server, "fork", path, "was recorded on another image");
	save(path, &other, FIRST * PAGE, HOTLIST_JSON);
	refused(server, "fork", path, "was recorded on another image");
	save(path, &scene.image, (FIRST - 1) * PAGE, HOTLIST_HPL2);
	refused(server, "fork", path, "region 0 had 1224704 bytes when the list was recorded, and has 1228800 here");
	assert_int_equal(fork_number(server, "fork", "prefetched_pages"), 0);

	/* Its own, in both formats: the second time all is there. */
	save(path, &scene.image, FIRST * PAGE, HOTLIST_HPL2);
	json_decref(command_ok(server, ARGS("fork", "prefetch", "fork", path)));
	save(path, &scene.image, FIRST * PAGE, HOTLIST_JSON);
	json_decref(command_ok(server, ARGS("fork", "prefetch", "fork", path)));
	assert_int_equal(fork_number(server, "fork", "prefetched_pages"), WANTED);
	finish(client);
}

/* What was right when the fork was created and is another list when its VMM connects: the fork says so, and is served without. */
static void test_a_list_that_was_replaced(void **state)
{
	static const char *const modes[] = { "eager", "stream" };
	struct test_server *server = *state;
	struct scene scene = { .expected = 0 };
	struct test_image other = { .seed = 7 };
	char path[160];

	test_image_make(&scene.image, server->dir, "base", PAGES * PAGE);
	test_image_make(&other, server->dir, "other", PAGES * PAGE);
	snprintf(path, sizeof path, "%s/list.hpl2", server->dir);
	template_add_inject(server, "base", &scene.image, NULL);
	for (size_t i = 0; i < 2; i++) {
		save(path, &scene.image, FIRST * PAGE, HOTLIST_HPL2);
		fork_create(server, "base", modes[i], ARGS("--prefetch", (char *)modes[i], "--hot-list", path),
			    scene.socket);
		save(path, &other, FIRST * PAGE, HOTLIST_HPL2);
		struct client *client = client_start(modes[i], guest_body, &scene);
		client_await(client, 'c');
		fork_wait(server, modes[i], "connected");
		command_fails(server, ARGS("fork", "wait", (char *)modes[i], "--for", "prefetched", "--timeout", "20"),
			      1, "another image");
		finish(client);
	}
}

/* What a fork recorded is bound to its image, and says so in every format that can. */
static void test_recorded_lists_are_bound(void **state)
{
	struct test_server *server = *state;
	struct scene scene = { .expected = 0 };
	struct test_image other = { .seed = 7 };
	char path[160];

	test_image_make(&scene.image, server->dir, "base", PAGES * PAGE);
	test_image_make(&other, server->dir, "other", PAGES * PAGE);
	snprintf(path, sizeof path, "%s/recorded.hpl2", server->dir);
	template_add_inject(server, "base", &scene.image, NULL);
	template_add_inject(server, "other", &other, NULL);
	fork_create(server, "base", "warm", ARGS("--record"), scene.socket);
	struct client *client = client_start("warm", guest_body, &scene);
	client_await(client, 'c');
	finish(client);

	struct test_result result = command(server, ARGS("fork", "hot-list", "warm", "-o", path, "--format", "hpl2"));
	if (result.exit_code)
		fail_msg("fork hot-list: %s", result.err);
	result_clear(&result);
	_cleanup_hotlist_ struct hotlist *list = NULL;
	assert_int_equal(hotlist_load(path, &list, NULL), 0);
	assert_int_equal(list->format, HOTLIST_HPL2);
	assert_int_equal(list->count, PAGES);
	_cleanup_hotlist_ struct hotlist *expected = list_for(&scene.image, FIRST * PAGE);
	assert_non_null(list->origin);
	assert_memory_equal(list->origin->template_digest, expected->origin->template_digest, IMAGE_IDENTITY_SIZE);
	assert_int_equal(list->origin->template_size, PAGES * PAGE);
	assert_int_equal(list->origin->region_count, 2);
	assert_int_equal(list->origin->regions[0].size, FIRST * PAGE);
	assert_int_equal(list->origin->regions[1].offset, FIRST * PAGE);
	command_fails(server, ARGS("fork", "create", "other", "--id", "x", "--prefetch", "eager", "--hot-list", path),
		      1, "another image");
	fork_create(server, "base", "next", ARGS("--prefetch", "eager", "--hot-list", path), scene.socket);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_prefetch_into_a_running_fork),
		SERVED(test_a_list_that_was_replaced),
		SERVED(test_recorded_lists_are_bound),
	};

	return harness_run(tests);
}
