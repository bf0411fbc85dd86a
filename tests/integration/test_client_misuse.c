/* libfaultline used wrongly, or where it can't work: each mistake has its result and its sentence, and costs nobody else anything. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/sandbox.h"
#include "integration/harness/supplied.h"

#define IMAGE_SIZE (1ul << 20)
#define HUGE_SIZE  (2ul << 20)

static char *map_some(struct client_self *self, size_t size, int protection, int flags, int fd)
{
	char *address = mmap(NULL, size, protection, flags, fd, 0);

	client_require(self, address != MAP_FAILED, "mmap: %s", strerror(errno));
	return address;
}

/* ---- arguments ---- */

static void null_body(struct client_self *self, void *data)
{
	struct faultline_client *client = NULL, *made;
	struct faultline_error error;
	void *address;

	(void)data;
	require_error(self, faultline_new(NULL, &error), FAULTLINE_BAD_ARGUMENT, &error, "NULL");
	require_result(self, faultline_new(NULL, NULL), FAULTLINE_BAD_ARGUMENT);
	require_error(self, faultline_map(NULL, PAGE, 0, PAGE, &address, &error), FAULTLINE_BAD_ARGUMENT, &error,
		      "NULL");
	require_error(self, faultline_add(NULL, &error, PAGE, 0, PAGE, &error), FAULTLINE_BAD_ARGUMENT, &error, "NULL");
	require_error(self, faultline_connect(NULL, "x", -1, 0, &error), FAULTLINE_BAD_ARGUMENT, &error, "NULL");
	require_error(self, faultline_map_image(NULL, 0, &error), FAULTLINE_BAD_ARGUMENT, &error, "NULL");
	require_error(self, faultline_wait_prefetched(NULL, 0, &error), FAULTLINE_BAD_ARGUMENT, &error, "NULL");
	require_error(self, faultline_ready(NULL, &error), FAULTLINE_BAD_ARGUMENT, &error, "NULL");
	require_error(self, faultline_close(NULL, &error), FAULTLINE_BAD_ARGUMENT, &error, "NULL");
	client_require(self, faultline_server_fd(NULL) == -1 && faultline_server_gone(NULL) == 0, "NULL is connected");
	require_result(self, faultline_close(&client, NULL), FAULTLINE_OK);

	require_result(self, faultline_new(&made, NULL), FAULTLINE_OK);
	require_error(self, faultline_map(made, PAGE, 0, PAGE, NULL, &error), FAULTLINE_BAD_ARGUMENT, &error, "NULL");
	require_error(self, faultline_add(made, NULL, PAGE, 0, PAGE, &error), FAULTLINE_BAD_ARGUMENT, &error, "NULL");
	require_error(self, faultline_connect(made, "x", -1, 0, &error), FAULTLINE_BAD_ARGUMENT, &error, "no mappings");
	require_result(self, faultline_close(&made, NULL), FAULTLINE_OK);
	client_require(self, !made, "the pointer was left");
	require_result(self, faultline_close(&made, NULL), FAULTLINE_OK);
}

static void test_nulls(void **state)
{
	(void)state;
	client_join(client_start("null", null_body, NULL));
}

static void sizes_body(struct client_self *self, void *data)
{
	static const struct {
		uint64_t size, offset, page_size;
		const char *word;
	} bad[] = {
		{ 0, 0, PAGE, "size is zero" },
		{ PAGE + 1, 0, PAGE, "multiples" },
		{ PAGE, 1, PAGE, "multiples" },
		{ PAGE, 0, 0, "page size of 0" },
		{ PAGE, 0, 3000, "page size of 3000" },
		{ PAGE, 0, 2 * PAGE, "page size of 8192" },
		{ 1ull << 30, 0, 1ull << 30, "page size of 1073741824" },
		{ HUGE_SIZE + PAGE, 0, HUGE_SIZE, "multiples" },
		{ HUGE_SIZE, PAGE, HUGE_SIZE, "multiples" },
		{ 2 * PAGE, UINT64_MAX - PAGE + 1, PAGE, "No image" },
		{ UINT64_MAX - PAGE + 1, 0, PAGE, "No image" },
		{ PAGE, 1ull << 63, PAGE, "No image" },
	};
	struct faultline_client *client;
	struct faultline_error error;
	void *address;

	(void)data;
	char *own = map_some(self, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	require_result(self, faultline_new(&client, &error), FAULTLINE_OK);
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		require_error(self,
			      faultline_map(client, bad[i].size, bad[i].offset, bad[i].page_size, &address, &error),
			      FAULTLINE_BAD_ARGUMENT, &error, bad[i].word);
		require_error(self,
			      faultline_add(client, (void *)HUGE_SIZE, bad[i].size, bad[i].offset, bad[i].page_size,
					    &error),
			      FAULTLINE_BAD_ARGUMENT, &error, bad[i].word);
	}
	require_error(self, faultline_map(client, 1ull << 60, 0, PAGE, &address, &error), FAULTLINE_NO_RESOURCES,
		      &error, "address space");
	require_error(self, faultline_add(client, own + 1, PAGE, 0, PAGE, &error), FAULTLINE_BAD_ARGUMENT, &error,
		      "not a multiple");
	require_error(self, faultline_add(client, (void *)-PAGE, 2 * PAGE, 0, PAGE, &error), FAULTLINE_BAD_ARGUMENT,
		      &error, "address space");

	/* Overlaps, with the caller's and with the library's. */
	require_result(self, faultline_add(client, own + 4 * PAGE, 4 * PAGE, 0, PAGE, &error), FAULTLINE_OK);
	require_error(self, faultline_add(client, own, 5 * PAGE, 0, PAGE, &error), FAULTLINE_BAD_ARGUMENT, &error,
		      "overlap with mapping 0");
	require_error(self, faultline_add(client, own + 7 * PAGE, PAGE, 0, PAGE, &error), FAULTLINE_BAD_ARGUMENT,
		      &error, "overlap with mapping 0");
	require_result(self, faultline_add(client, own, 4 * PAGE, 0, PAGE, &error), FAULTLINE_OK);
	require_result(self, faultline_map(client, PAGE, 0, PAGE, &address, &error), FAULTLINE_OK);
	require_error(self, faultline_add(client, address, PAGE, 0, PAGE, &error), FAULTLINE_BAD_ARGUMENT, &error,
		      "overlap with mapping 2");

	for (unsigned i = 3; i < FAULTLINE_MAPPINGS_MAX; i++)
		require_result(self, faultline_map(client, PAGE, 0, PAGE, &address, &error), FAULTLINE_OK);
	require_error(self, faultline_map(client, PAGE, 0, PAGE, &address, &error), FAULTLINE_BAD_ARGUMENT, &error,
		      "1024");
	supplied_close(self, client);
	client_require(self, is_inaccessible(address), "it was not unmapped");
	own[0] = own[15 * PAGE] = 'o';
}

static void test_sizes(void **state)
{
	(void)state;
	client_join(client_start("sizes", sizes_body, NULL));
}

/* Connects, which must fail with a sentence about the memory, and closes. */
static void expect_unfit(struct client_self *self, const struct scene *scene, char *address, uint64_t size,
			 const char *word)
{
	struct faultline_client *client;
	struct faultline_error error;

	require_result(self, faultline_new(&client, &error), FAULTLINE_OK);
	require_result(self, faultline_add(client, address, size, 0, PAGE, &error), FAULTLINE_OK);
	require_error(self, faultline_connect(client, scene->socket, -1, 0, &error), FAULTLINE_BAD_ARGUMENT, &error,
		      word);
	supplied_close(self, client);
}

static void unfit_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	const int both = PROT_READ | PROT_WRITE;
	char *own = map_some(self, IMAGE_SIZE, both, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	/* A page is there, the first or the last. It must survive the refusal. */
	own[0] = 'o';
	expect_unfit(self, scene, own, IMAGE_SIZE, "a page already, at offset 0x0");
	client_require(self, own[0] == 'o', "the caller's page was dropped");
	madvise(own, IMAGE_SIZE, MADV_DONTNEED);
	own[IMAGE_SIZE - 1] = 'o';
	expect_unfit(self, scene, own, IMAGE_SIZE, "a page already, at offset 0xff000");
	client_require(self, own[IMAGE_SIZE - 1] == 'o', "the caller's page was dropped");
	madvise(own, IMAGE_SIZE, MADV_DONTNEED);

	/* A hole, and nothing at all. */
	munmap(own + 8 * PAGE, PAGE);
	expect_unfit(self, scene, own, IMAGE_SIZE, "ap all of it first");
	munmap(own, IMAGE_SIZE);
	expect_unfit(self, scene, own, IMAGE_SIZE, "ap all of it first");

	/* A file, and memory that somebody else supplies. */
	_cleanup_close_ int image = open(scene->image.path, O_RDONLY | O_CLOEXEC);
	expect_unfit(self, scene, map_some(self, IMAGE_SIZE, both, MAP_PRIVATE, image), IMAGE_SIZE, "private anonymous");
	struct vmm vmm;
	vmm_init(&vmm, self, &scene->image);
	vmm_add_region(&vmm, IMAGE_SIZE, 0);
	vmm_make_uffd(&vmm, (struct vmm_form){ .json = VMM_FIRECRACKER });
	expect_unfit(self, scene, vmm.regions[0].address, IMAGE_SIZE, "Only one page server");

	/* None of that has cost the fork anything. */
	char *address;
	struct faultline_client *client = supplied_connect(self, scene, &address);
	supplied_check(self, scene, address, 0, IMAGE_SIZE);
	supplied_close(self, client);
}

static void test_memory_that_does_not_fit(void **state)
{
	struct scene scene = scene_with_fork(*state, IMAGE_SIZE, "f", NULL);

	scene_run("unfit", unfit_body, &scene);
	assert_int_equal(fork_number(*state, "f", "copied_pages"), IMAGE_SIZE / PAGE);
}

static void order_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct faultline_error error;
	char *address;
	void *more;
	struct faultline_client *client = supplied_new(self, scene, &address);

	require_error(self, faultline_ready(client, &error), FAULTLINE_BAD_STATE, &error, "not connected");
	require_error(self, faultline_wait_prefetched(client, 0, &error), FAULTLINE_BAD_STATE, &error, "not connected");
	require_error(self, faultline_connect(client, scene->socket, -2, 0, &error), FAULTLINE_BAD_ARGUMENT, &error,
		      "negative");
	require_error(self, faultline_connect(client, scene->socket, -1, 0x80, &error), FAULTLINE_BAD_ARGUMENT, &error,
		      "0x80");
	client_require(self, faultline_connect(client, scene->socket, -1, 0, &error) == FAULTLINE_OK, "%s", error.what);

	require_error(self, faultline_connect(client, scene->socket, -1, 0, &error), FAULTLINE_BAD_STATE, &error,
		      "already");
	require_error(self, faultline_map(client, PAGE, 0, PAGE, &more, &error), FAULTLINE_BAD_STATE, &error, "already");
	require_error(self, faultline_add(client, &error, PAGE, 0, PAGE, &error), FAULTLINE_BAD_STATE, &error,
		      "already");
	require_error(self, faultline_map_image(client, 0, &error), FAULTLINE_BAD_STATE, &error, "already");
	require_error(self, faultline_wait_prefetched(client, -2, &error), FAULTLINE_BAD_ARGUMENT, &error, "negative");
	supplied_check(self, scene, address, 0, IMAGE_SIZE);
	supplied_close(self, client);
}

static void test_calls_out_of_order(void **state)
{
	struct scene scene = scene_with_fork(*state, IMAGE_SIZE, "f", NULL);

	scene_run("order", order_body, &scene);
}

/* ---- without a server, and without userfaultfd ---- */

/* The connection fails as it should; then the image is mapped, and every byte is right and private. */
static void fall_back(struct client_self *self, struct scene *scene, const char *socket, int expected, const char *word)
{
	_cleanup_close_ int image = open(scene->image.path, O_RDONLY | O_CLOEXEC);
	struct faultline_error error;
	char *address;
	struct faultline_client *client = supplied_new(self, scene, &address);
	char *own = map_some(self, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	require_result(self, faultline_add(client, own, 2 * PAGE, 4 * PAGE, PAGE, &error), FAULTLINE_OK);
	require_error(self, faultline_connect(client, socket, -1, 0, &error), expected, &error, word);
	client_require(self, is_inaccessible(address), "it can be touched though nobody fills it");
	client_require(self, faultline_map_image(client, image, &error) == FAULTLINE_OK, "%s", error.what);
	client_require(self, faultline_server_fd(client) == -1 && !faultline_server_gone(client), "it is connected");
	require_error(self, faultline_connect(client, socket, -1, 0, &error), FAULTLINE_BAD_STATE, &error, "image");
	require_error(self, faultline_ready(client, &error), FAULTLINE_BAD_STATE, &error, "image");
	supplied_check(self, scene, address, 0, IMAGE_SIZE);
	supplied_check(self, scene, own, 4 * PAGE, 2 * PAGE);
	memset(address, 'w', IMAGE_SIZE);
	memset(own, 'w', 2 * PAGE);
	supplied_close(self, client);
	client_require(self, is_inaccessible(address), "it is still mapped");
	client_require(self, own[0] == 'w', "the caller's mapping of the image was taken away");
}

static void unconfigured_body(struct client_self *self, void *data)
{
	unsetenv("FAULTLINE_SOCKET");
	fall_back(self, data, NULL, FAULTLINE_NOT_SUPPORTED, "FAULTLINE_SOCKET");
	setenv("FAULTLINE_SOCKET", "", 1);
	fall_back(self, data, NULL, FAULTLINE_NOT_SUPPORTED, "FAULTLINE_SOCKET");
}

static void seccomp_body(struct client_self *self, void *data)
{
	struct scene *scene = data;

	refuse_userfaultfd(self, (uint32_t)scene->number, true);
	fall_back(self, scene, scene->socket, FAULTLINE_NOT_SUPPORTED,
		  scene->number == ENOSYS ? "CONFIG_USERFAULTFD" : "CAP_SYS_PTRACE");
}

static void device_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	char *address;

	refuse_userfaultfd(self, EPERM, false);
	struct faultline_client *client = supplied_connect(self, scene, &address);
	supplied_check(self, scene, address, 0, IMAGE_SIZE);
	supplied_close(self, client);
}

static void unprivileged_body(struct client_self *self, void *data)
{
	struct scene *scene = data;

	become_nobody(self);
	fall_back(self, scene, scene->socket, FAULTLINE_NOT_SUPPORTED, "unprivileged_userfaultfd");
}

static bool anybody_may_have_userfaultfd(void)
{
	_cleanup_fclose_ FILE *f = fopen("/proc/sys/vm/unprivileged_userfaultfd", "re");

	return (f && fgetc(f) == '1') || access("/dev/userfaultfd", F_OK) < 0;
}

static void test_not_supported_here(void **state)
{
	struct test_server *server = *state;
	struct scene scene = scene_with_fork(server, IMAGE_SIZE, "f", NULL);

	scene_run("unconfigured", unconfigured_body, &scene);
	scene.number = EPERM;
	scene_run("refused", seccomp_body, &scene);
	scene.number = ENOSYS;
	scene_run("no such call", seccomp_body, &scene);
	/* The example's directory is closed to others, and so is the image. */
	assert_return_code(chmod(server->dir, 0755), errno);
	assert_return_code(chmod(scene.image.path, 0644), errno);
	if (anybody_may_have_userfaultfd())
		print_message("not tried without privileges: anybody may have userfaultfd here\n");
	else
		scene_run("unprivileged", unprivileged_body, &scene);
	if (access("/dev/userfaultfd", R_OK | W_OK) == 0)
		scene_run("device", device_body, &scene);
}

static void unreachable_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	char path[300];

	snprintf(path, sizeof path, "%s.nothing", scene->image.path);
	fall_back(self, scene, path, FAULTLINE_NO_SERVER, "faultline serve");
	fall_back(self, scene, scene->image.path, FAULTLINE_NO_SERVER, "faultline serve");
	snprintf(path, sizeof path, "%s/socket", scene->image.path);
	fall_back(self, scene, path, FAULTLINE_NO_SERVER, "faultline serve");
	fall_back(self, scene, scene->socket, FAULTLINE_NO_SERVER, "faultline serve"); /* nobody listens any more */
	fall_back(self, scene, "", FAULTLINE_BAD_ARGUMENT, "0 bytes");
	memset(path, 'x', 200);
	path[200] = '\0';
	fall_back(self, scene, path, FAULTLINE_BAD_ARGUMENT, "200 bytes");
}

static void forbidden_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct faultline_error error;
	char *address;

	/* Allowed userfaultfd, but not the socket. */
	struct faultline_client *client = supplied_new(self, scene, &address);
	client_require(self, setresuid(-1, 65534, -1) == 0, "setresuid: %s", strerror(errno));
	int r = faultline_connect(client, scene->socket, -1, 0, &error);
	client_require(self, r == FAULTLINE_NO_PERMISSION || r == FAULTLINE_NOT_SUPPORTED, "%d: %s", r, error.what);
	client_require(self, r == FAULTLINE_NOT_SUPPORTED || strstr(error.remedy, "--uid"), "%s", error.remedy);
	client_require(self, setresuid(-1, 0, -1) == 0, "setresuid: %s", strerror(errno));
	client_require(self, faultline_connect(client, scene->socket, -1, 0, &error) == FAULTLINE_OK, "%s", error.what);
	supplied_check(self, scene, address, 0, IMAGE_SIZE);
	supplied_close(self, client);
}

static void test_no_server(void **state)
{
	struct test_server *server = *state;
	struct scene scene = scene_new(server, IMAGE_SIZE);

	close(scene_listen(server, &scene));
	scene_run("unreachable", unreachable_body, &scene);
	fork_create(server, "t", "f", NULL, scene.socket);
	scene_run("forbidden", forbidden_body, &scene);
}

static void image_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	_cleanup_close_ int image = open(scene->image.path, O_RDWR | O_CLOEXEC);
	_cleanup_close_ int write_only = open(scene->image.path, O_WRONLY | O_CLOEXEC);
	_cleanup_close_ int directory = open("/", O_RDONLY | O_CLOEXEC);
	struct faultline_client *client;
	struct faultline_error error;
	void *address;

	require_result(self, faultline_new(&client, &error), FAULTLINE_OK);
	require_result(self, faultline_map(client, PAGE, IMAGE_SIZE, PAGE, &address, &error), FAULTLINE_OK);
	require_error(self, faultline_map_image(client, image, &error), FAULTLINE_BAD_ARGUMENT, &error,
		      "Mapping 0 ends");
	supplied_close(self, client);

	require_result(self, faultline_new(&client, &error), FAULTLINE_OK);
	require_result(self, faultline_map(client, PAGE, 0, PAGE, &address, &error), FAULTLINE_OK);
	require_error(self, faultline_map_image(client, -1, &error), FAULTLINE_BAD_ARGUMENT, &error, "descriptor");
	require_error(self, faultline_map_image(client, directory, &error), FAULTLINE_BAD_ARGUMENT, &error, "regular");
	require_error(self, faultline_map_image(client, write_only, &error), FAULTLINE_NO_PERMISSION, &error, "reading");
	client_require(self, faultline_map_image(client, image, &error) == FAULTLINE_OK, "%s", error.what);
	supplied_check(self, scene, address, 0, PAGE);
	supplied_close(self, client);
}

static void test_images_that_do_not_fit(void **state)
{
	struct scene scene = scene_new(*state, IMAGE_SIZE);

	scene_run("image", image_body, &scene);
}

static void descriptors_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct rlimit enough, limit;
	struct faultline_error error;
	char *address;
	struct faultline_client *client = supplied_new(self, scene, &address);
	int next = dup(0);

	close(next);
	getrlimit(RLIMIT_NOFILE, &enough);
	limit = enough;
	/* None for the userfaultfd, then none for the socket. */
	for (rlim_t room = 0; room < 2; room++) {
		limit.rlim_cur = (rlim_t)next + room;
		client_require(self, setrlimit(RLIMIT_NOFILE, &limit) == 0, "setrlimit: %s", strerror(errno));
		require_error(self, faultline_connect(client, scene->socket, -1, 0, &error), FAULTLINE_NO_RESOURCES,
			      &error, "ulimit -n");
	}
	client_require(self, setrlimit(RLIMIT_NOFILE, &enough) == 0, "setrlimit: %s", strerror(errno));
	client_require(self, faultline_connect(client, scene->socket, -1, 0, &error) == FAULTLINE_OK, "%s", error.what);
	supplied_check(self, scene, address, 0, IMAGE_SIZE);
	supplied_close(self, client);
}

static void test_no_descriptors_left(void **state)
{
	struct scene scene = scene_with_fork(*state, IMAGE_SIZE, "f", NULL);

	scene_run("descriptors", descriptors_body, &scene);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_nulls),	       cmocka_unit_test(test_sizes),
		SERVED(test_memory_that_does_not_fit), SERVED(test_calls_out_of_order),
		SERVED(test_not_supported_here),       SERVED(test_no_server),
		SERVED(test_images_that_do_not_fit),   SERVED(test_no_descriptors_left),
	};

	return harness_run(tests);
}
