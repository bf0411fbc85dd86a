/* A program on libfaultline, for children (see client.h): each step fails the child where the library does not do it. */
#pragma once

#include <stdint.h>

#include "faultline/client.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"

/* What the parent decides; the child has a copy. */
struct scene {
	struct test_image image;
	char socket[SOCKET_PATH_MAX];
	int number; /* whatever the test wants */
};

/* An image of SIZE bytes in the server's directory, a template "t" of it where there is a server, and every seventh page of it zeros. */
struct scene scene_new(const struct test_server *server, uint64_t size);
/* The same with a fork of the template. EXTRA as for fork_create. */
struct scene scene_with_fork(const struct test_server *server, uint64_t size, const char *id, char *const extra[]);
/* A socket in the server's directory on which the parent is the server; the scene's socket is its path. */
int scene_listen(const struct test_server *server, struct scene *scene);
/* Runs BODY(self, scene) in a child, which must end well and leave the image as it was. */
void scene_run(const char *name, void (*body)(struct client_self *, void *), struct scene *scene);

#define require_result(self, call, expected)                                                                       \
	do {                                                                                                       \
		int result_ = (call);                                                                              \
		client_require(self, result_ == (expected), "%s is %d (%s) where it should be %d", #call, result_, \
			       faultline_strerror(result_), expected);                                             \
	} while (0)
/* The same for a call that fills ERROR, which must have WORD in it: what, or remedy. */
#define require_error(self, call, expected, error, word)                                                       \
	do {                                                                                                   \
		int result_ = (call);                                                                          \
		client_require(self, result_ == (expected) && (error)->result == result_,                      \
			       "%s is %d (%s) where it should be %d", #call, result_,                          \
			       result_ < 0 ? (error)->what : "success", expected);                             \
		client_require(self, strstr((error)->what, word) || strstr((error)->remedy, word),             \
			       "%s says '%s. %s', without '%s'", #call, (error)->what, (error)->remedy, word); \
	} while (0)

/* A client with one mapping of the library's making, as large as the image; *RET_ADDRESS is where. Not connected. */
struct faultline_client *supplied_new(struct client_self *self, const struct scene *scene, char **ret_address);
/* The same, connected. */
struct faultline_client *supplied_connect(struct client_self *self, const struct scene *scene, char **ret_address);
/* Every page of the mapping by content, with two threads in different orders. */
void supplied_check(struct client_self *self, const struct scene *scene, char *address, uint64_t offset, uint64_t size);
/* Closes, and sees that the mapping has gone. */
void supplied_close(struct client_self *self, struct faultline_client *client);

/* Whether reading a byte there would be SIGSEGV, found out by asking the kernel to read it. */
bool is_inaccessible(const void *address);
