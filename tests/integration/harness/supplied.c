#include "integration/harness/supplied.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"

struct scene scene_new(const struct test_server *server, uint64_t size)
{
	struct scene scene = { .image = { .hole_every = 7 } };

	test_image_make(&scene.image, server->dir, "image", size);
	template_add(server, "t", &scene.image);
	return scene;
}

struct scene scene_with_fork(const struct test_server *server, uint64_t size, const char *id, char *const extra[])
{
	struct scene scene = scene_new(server, size);

	fork_create(server, "t", id, extra, scene.socket);
	return scene;
}

int scene_listen(const struct test_server *server, struct scene *scene)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(scene->socket, sizeof scene->socket, "%s/listener", server->dir);
	snprintf(address.sun_path, sizeof address.sun_path, "%s", scene->socket);
	unlink(scene->socket);
	assert_return_code(bind(fd, (struct sockaddr *)&address, sizeof address), errno);
	assert_return_code(listen(fd, 0), errno);
	return fd;
}

void scene_run(const char *name, void (*body)(struct client_self *, void *), struct scene *scene)
{
	uint64_t sum = test_image_sum(&scene->image);

	client_join(client_start(name, body, scene));
	assert_int_equal(test_image_sum(&scene->image), sum);
}

struct faultline_client *supplied_new(struct client_self *self, const struct scene *scene, char **ret_address)
{
	uint64_t size = (scene->image.size + PAGE - 1) & ~(PAGE - 1);
	struct faultline_client *client;
	struct faultline_error error;
	void *address;

	client_require(self, faultline_new(&client, &error) == FAULTLINE_OK, "faultline_new: %s", error.what);
	client_require(self, faultline_map(client, size, 0, PAGE, &address, &error) == FAULTLINE_OK,
		       "faultline_map: %s", error.what);
	*ret_address = address;
	return client;
}

struct faultline_client *supplied_connect(struct client_self *self, const struct scene *scene, char **ret_address)
{
	struct faultline_client *client = supplied_new(self, scene, ret_address);
	struct faultline_error error;

	client_require(self, faultline_connect(client, scene->socket, -1, 0, &error) == FAULTLINE_OK,
		       "faultline_connect: %s", error.what);
	return client;
}

void supplied_check(struct client_self *self, const struct scene *scene, char *address, uint64_t offset, uint64_t size)
{
	struct vmm vmm;

	vmm_init(&vmm, self, &scene->image);
	vmm_adopt_region(&vmm, address, size, offset, PAGE);
	vmm_check_all_shuffled(&vmm, 2, offset);
	free(vmm.regions[0].shows);
	free(vmm.regions);
}

void supplied_close(struct client_self *self, struct faultline_client *client)
{
	struct faultline_error error;

	client_require(self, faultline_close(&client, &error) == FAULTLINE_OK, "faultline_close: %s", error.what);
	client_require(self, !client, "faultline_close left the pointer");
}

bool is_inaccessible(const void *address)
{
	char byte;
	struct iovec here = { &byte, 1 }, there = { (void *)(uintptr_t)address, 1 };

	/* As another process would read it: without a fault that only a server could end. */
	return process_vm_readv(getpid(), &here, 1, &there, 1, 0) < 0 && errno == EFAULT;
}
