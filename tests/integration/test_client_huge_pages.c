/* libfaultline and memory of 2 MiB pages: the library's own, the caller's, and sizes that are not what was said. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "integration/harness/huge.h"
#include "integration/harness/supplied.h"

static void huge_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct faultline_client *client;
	struct faultline_error error;
	void *address;

	char *own = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	client_require(self, own != MAP_FAILED, "no huge page: %s", strerror(errno));
	require_result(self, faultline_new(&client, &error), FAULTLINE_OK);
	require_error(self, faultline_map(client, 1000 * HUGE, 0, HUGE, &address, &error), FAULTLINE_NO_RESOURCES,
		      &error, "nr_hugepages");
	require_result(self, faultline_map(client, 2 * HUGE, 0, HUGE, &address, &error), FAULTLINE_OK);
	require_result(self, faultline_add(client, own, HUGE, HUGE, HUGE, &error), FAULTLINE_OK);
	client_require(self, faultline_connect(client, scene->socket, -1, 0, &error) == FAULTLINE_OK, "%s", error.what);
	supplied_check(self, scene, address, 0, 2 * HUGE);
	supplied_check(self, scene, own, HUGE, HUGE);
	supplied_close(self, client);
	client_require(self, is_inaccessible(own) && is_inaccessible(address), "it is still there");

	/* Mistaken sizes are seen before the server sees them. */
	own = mmap(own, HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_FIXED, -1, 0);
	client_require(self, own != MAP_FAILED, "no huge page: %s", strerror(errno));
	require_result(self, faultline_new(&client, &error), FAULTLINE_OK);
	require_result(self, faultline_add(client, own, HUGE, 0, PAGE, &error), FAULTLINE_OK);
	require_error(self, faultline_connect(client, scene->socket, -1, 0, &error), FAULTLINE_BAD_ARGUMENT, &error,
		      "pages of 4096");
	supplied_close(self, client);
	memset(own, 'o', HUGE);
}

static void test_huge_pages(void **state)
{
	struct test_server *server = *state;
	struct scene scene = scene_with_fork(server, 2 * HUGE - 100, "f", NULL);

	huge_pool_set_free(6);
	scene_run("huge", huge_body, &scene);
	fork_wait(server, "f", "gone");
}

static void unhuge_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct faultline_client *client;
	struct faultline_error error;

	char *own = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	client_require(self, own != MAP_FAILED, "no memory: %s", strerror(errno));
	own = (char *)(((uintptr_t)own + HUGE - 1) & ~(HUGE - 1));
	require_result(self, faultline_new(&client, &error), FAULTLINE_OK);
	require_result(self, faultline_add(client, own, HUGE, 0, HUGE, &error), FAULTLINE_OK);
	require_error(self, faultline_connect(client, scene->socket, -1, 0, &error), FAULTLINE_BAD_ARGUMENT, &error,
		      "pages of 2097152");
	supplied_close(self, client);
	memset(own, 'o', HUGE);
}

static void test_small_pages_that_are_called_huge(void **state)
{
	struct scene scene = scene_with_fork(*state, 2 * HUGE, "f", NULL);

	scene_run("unhuge", unhuge_body, &scene);
}

static void fallback_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct faultline_client *client;
	struct faultline_error error;
	void *address;

	/* The image's last huge page is cut: the rest of it is zeros, as a server would have it. */
	int image = open(scene->image.path, O_RDONLY | O_CLOEXEC);
	require_result(self, faultline_new(&client, &error), FAULTLINE_OK);
	require_result(self, faultline_map(client, 2 * HUGE, 0, HUGE, &address, &error), FAULTLINE_OK);
	require_result(self, faultline_connect(client, NULL, -1, 0, &error), FAULTLINE_NOT_SUPPORTED);
	client_require(self, faultline_map_image(client, image, &error) == FAULTLINE_OK, "%s", error.what);
	supplied_check(self, scene, address, 0, 2 * HUGE);
	memset(address, 'w', 2 * HUGE);
	supplied_close(self, client);
	client_require(self, is_inaccessible(address), "it is still there");
}

static void test_fallback(void **state)
{
	struct scene scene = scene_new(*state, HUGE + 5 * PAGE + 100);

	huge_pool_set_free(2);
	unsetenv("FAULTLINE_SOCKET");
	scene_run("fallback", fallback_body, &scene);
	huge_pool_await_free(2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_huge_pages),
		SERVED(test_small_pages_that_are_called_huge),
		SERVED(test_fallback),
	};

	huge_require();
	return harness_run(tests);
}
