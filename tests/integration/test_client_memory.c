/* libfaultline with a real server: whose memory it takes, that every page is right, and that nothing is left behind. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "faultline/hotlist.h"
#include "integration/harness/supplied.h"

#define IMAGE_SIZE (4ul << 20)

static void own_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct faultline_client *client;
	struct faultline_error error;
	void *low, *high;

	/* In another order than in the image, which ends in the middle of a page. */
	require_result(self, faultline_new(&client, &error), FAULTLINE_OK);
	require_result(self, faultline_map(client, IMAGE_SIZE / 2 + PAGE, IMAGE_SIZE / 2, PAGE, &high, &error),
		       FAULTLINE_OK);
	require_result(self, faultline_map(client, IMAGE_SIZE / 2, 0, PAGE, &low, &error), FAULTLINE_OK);
	client_require(self, is_inaccessible(low) && is_inaccessible(high), "it can be touched before it is registered");
	client_require(self, faultline_server_fd(client) == -1 && faultline_server_gone(client) == 0,
		       "connected already");
	client_require(self, faultline_connect(client, NULL, -1, 0, &error) == FAULTLINE_OK, "%s", error.what);
	client_require(self, faultline_server_fd(client) >= 0 && faultline_server_gone(client) == 0, "not connected");

	supplied_check(self, scene, low, 0, IMAGE_SIZE / 2);
	supplied_check(self, scene, high, IMAGE_SIZE / 2, IMAGE_SIZE / 2 + PAGE);
	memset(low, 'w', IMAGE_SIZE / 2);

	/* A balloon. */
	client_require(self, madvise(high, 8 * PAGE, MADV_DONTNEED) == 0, "MADV_DONTNEED: %s", strerror(errno));
	for (size_t i = 0; i < 8 * PAGE; i++)
		client_require(self, ((char *)high)[i] == 0, "a removed page has come back");
	client_say(self, 'd');
	client_hear(self, 'q');
	supplied_close(self, client);
	client_require(self, is_inaccessible(low) && is_inaccessible(high), "it is still mapped");
	client_say(self, 'c');
	client_hear(self, 'q');
}

static void test_memory_of_the_library(void **state)
{
	struct test_server *server = *state;
	struct scene scene = scene_with_fork(server, IMAGE_SIZE + 100, "f", NULL);
	uint64_t sum = test_image_sum(&scene.image);

	setenv("FAULTLINE_SOCKET", scene.socket, 1);
	struct client *client = client_start("own", own_body, &scene);
	unsetenv("FAULTLINE_SOCKET");
	client_await(client, 'd');
	assert_int_equal(fork_number(server, "f", "copied_pages"), IMAGE_SIZE / PAGE + 1);
	assert_int_equal(fork_number(server, "f", "removed_pages"), 8);
	assert_int_equal(fork_number(server, "f", "pid"), client->pid);
	client_tell(client, 'q');
	/* Closed is ended, though the process lives on. */
	client_await(client, 'c');
	fork_wait(server, "f", "gone");
	assert_false(client_has_ended(client));
	client_tell(client, 'q');
	client_join(client);
	assert_int_equal(test_image_sum(&scene.image), sum);
}

static void added_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct faultline_client *client;
	struct faultline_error error;
	void *made;

	char *own = mmap(NULL, IMAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int memfd = memfd_create("shared", MFD_CLOEXEC);
	client_require(self, own != MAP_FAILED && ftruncate(memfd, IMAGE_SIZE) == 0, "no memory");
	char *shared = mmap(NULL, IMAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	client_require(self, shared != MAP_FAILED, "no shared memory");

	/* Two neighbours of one mapping, a part of it left out between them; shared memory; and the library's own beside them. */
	require_result(self, faultline_new(&client, &error), FAULTLINE_OK);
	require_result(self, faultline_add(client, own, PAGE, 0, PAGE, &error), FAULTLINE_OK);
	require_result(self, faultline_add(client, own + 2 * PAGE, IMAGE_SIZE - 2 * PAGE, 2 * PAGE, PAGE, &error),
		       FAULTLINE_OK);
	require_result(self, faultline_add(client, shared, IMAGE_SIZE, 0, PAGE, &error), FAULTLINE_OK);
	require_result(self, faultline_map(client, IMAGE_SIZE, 0, PAGE, &made, &error), FAULTLINE_OK);
	client_require(self, faultline_connect(client, scene->socket, -1, 0, &error) == FAULTLINE_OK, "%s", error.what);

	supplied_check(self, scene, own, 0, PAGE);
	client_require(self, own[PAGE] == 0, "what was not handed over is not left alone");
	supplied_check(self, scene, own + 2 * PAGE, 2 * PAGE, IMAGE_SIZE - 2 * PAGE);
	supplied_check(self, scene, shared, 0, IMAGE_SIZE);
	supplied_check(self, scene, made, 0, IMAGE_SIZE);

	/* A part that is unmapped too early and used for something else is left alone as well. */
	client_require(self, munmap(own + 8 * PAGE, PAGE) == 0, "munmap: %s", strerror(errno));
	char *other = mmap(own + 8 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	client_require(self, other == own + 8 * PAGE, "mmap: %s", strerror(errno));
	other[0] = 'o';
	supplied_close(self, client);
	client_require(self, other[0] == 'o', "it was taken away");
	client_require(self,
		       is_inaccessible(own) && is_inaccessible(own + 2 * PAGE) && is_inaccessible(own + 9 * PAGE) &&
			       is_inaccessible(shared),
		       "memory that could read zeros was left open");
	client_require(self, own[PAGE] == 0, "too much was taken away");
	client_require(self, munmap(own, IMAGE_SIZE) == 0 && munmap(shared, IMAGE_SIZE) == 0, "munmap: %s",
		       strerror(errno));
	close(memfd);
}

static void test_memory_of_the_caller(void **state)
{
	struct test_server *server = *state;
	struct scene scene = scene_with_fork(server, IMAGE_SIZE, "f", NULL);

	scene_run("added", added_body, &scene);
	fork_wait(server, "f", "gone");
	assert_int_equal(fork_number(server, "f", "copied_pages"), 3 * IMAGE_SIZE / PAGE - 1);
}

/* ---- fork and exec ---- */

static void in_child(struct faultline_client *client, const char *address)
{
	struct faultline_error error;

	if (!is_inaccessible(address))
		_exit(2);
	if (faultline_ready(client, &error) != FAULTLINE_BAD_STATE || !strstr(error.what, "child"))
		_exit(3);
	if (faultline_wait_prefetched(client, 0, NULL) != FAULTLINE_BAD_STATE || faultline_server_fd(client) != -1)
		_exit(4);
	/* What is there by now is the child's own, and stays. */
	char *own = mmap((void *)(uintptr_t)address, PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (own != address)
		_exit(5);
	own[0] = 'c';
	if (faultline_close(&client, &error) != FAULTLINE_OK || client || own[0] != 'c')
		_exit(6);
	_exit(0);
}

static void forking_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	char *address;
	struct faultline_client *client = supplied_connect(self, scene, &address);
	int status;

	supplied_check(self, scene, address, 0, IMAGE_SIZE / 2);
	pid_t child = fork();
	if (child == 0)
		in_child(client, address);
	client_require(self, waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0,
		       "the child ended with %d", WEXITSTATUS(status));
	/* The parent's VM has noticed nothing. */
	supplied_check(self, scene, address + IMAGE_SIZE / 2, IMAGE_SIZE / 2, IMAGE_SIZE / 2);
	client_require(self, faultline_server_gone(client) == 0, "the child has ended the VM");
	supplied_close(self, client);
}

static void test_a_child_of_fork_has_no_vm(void **state)
{
	struct scene scene = scene_with_fork(*state, IMAGE_SIZE, "f", NULL);

	scene_run("forking", forking_body, &scene);
	fork_wait(*state, "f", "gone");
}

static void exec_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	char *address;

	supplied_connect(self, scene, &address);
	supplied_check(self, scene, address, 0, PAGE);
	/* The parent's end of the conversation stays, and keeps the new program alive. */
	client_require(self, dup2(self->talk, STDIN_FILENO) == STDIN_FILENO && dup2(self->talk, STDOUT_FILENO) >= 0,
		       "dup2");
	execlp("cat", "cat", NULL);
	client_fail(self, "exec: %s", strerror(errno));
}

static void test_exec_ends_the_vm(void **state)
{
	struct test_server *server = *state;
	struct scene scene = scene_with_fork(server, IMAGE_SIZE, "f", NULL);
	struct client *client = client_start("exec", exec_body, &scene);

	fork_wait(server, "f", "gone");
	/* It is the new program that lives: it has none of the descriptors. */
	client_tell(client, 'x');
	client_await(client, 'x');
	for (int fd = 3; fd < 1024; fd++) {
		char name[64], target[64] = "";

		snprintf(name, sizeof name, "/proc/%d/fd/%d", (int)client->pid, fd);
		assert_true(readlink(name, target, sizeof target - 1) < 0 || !strstr(target, "userfaultfd"));
	}
	client_kill(client);
}

/* ---- several VMs in one process ---- */

#define VMS	8
#define ROUNDS	3
#define VM_SIZE (8ul << 20)

struct crowd {
	struct client_self *self;
	struct test_image images[VMS];
	char sockets[VMS][16][SOCKET_PATH_MAX]; /* of each round */
	unsigned rounds;
};

struct vm_thread {
	struct crowd *crowd;
	unsigned index;
};

/* Each round's memory is likely to be at addresses that another VM has just left, whose prefetch may not be through. */
static void *run_vm(void *data)
{
	struct vm_thread *thread = data;
	struct crowd *crowd = thread->crowd;
	struct scene scene = { .image = crowd->images[thread->index] };
	struct faultline_error error;
	char *address;

	for (unsigned round = 0; round < crowd->rounds; round++) {
		snprintf(scene.socket, sizeof scene.socket, "%s", crowd->sockets[thread->index][round]);
		struct faultline_client *client = supplied_connect(crowd->self, &scene, &address);

		if ((thread->index + round) % 3 == 0)
			client_require(crowd->self, faultline_wait_prefetched(client, -1, &error) == FAULTLINE_OK, "%s",
				       error.what);
		/* Some leave in the middle of it. */
		supplied_check(crowd->self, &scene, address, 0,
			       (thread->index + round) % 2 ? VM_SIZE : VM_SIZE / 512 / PAGE * PAGE);
		client_require(crowd->self, faultline_ready(client, &error) == FAULTLINE_OK, "%s", error.what);
		supplied_close(crowd->self, client);
	}
	return NULL;
}

static void crowd_body(struct client_self *self, void *data)
{
	struct crowd *crowd = data;
	struct vm_thread vms[VMS];
	pthread_t threads[VMS];

	crowd->self = self;
	for (unsigned i = 0; i < VMS; i++) {
		vms[i] = (struct vm_thread){ crowd, i };
		client_require(self, pthread_create(&threads[i], NULL, run_vm, &vms[i]) == 0, "no thread");
	}
	for (unsigned i = 0; i < VMS; i++)
		pthread_join(threads[i], NULL);
}

static void test_several_vms_in_one_process(void **state)
{
	struct test_server *server = *state;
	struct crowd *crowd = calloc(1, sizeof *crowd);
	struct faultline_hotlist *list;
	char path[120], name[32];

	crowd->rounds = scaled(ROUNDS);
	assert_true(crowd->rounds <= 16);
	snprintf(path, sizeof path, "%s/all.hpl1", server->dir);
	assert_int_equal(faultline_hotlist_new(&list, NULL), FAULTLINE_OK);
	for (uint64_t offset = 0; offset < VM_SIZE; offset += PAGE)
		assert_int_equal(faultline_hotlist_add(list, 0, offset, NULL), FAULTLINE_OK);
	assert_int_equal(faultline_hotlist_save(list, FAULTLINE_HOTLIST_HPL1, path, NULL), FAULTLINE_OK);
	faultline_hotlist_free(list);

	for (unsigned i = 0; i < VMS; i++) {
		snprintf(name, sizeof name, "t%u", i);
		crowd->images[i].seed = i + 1;
		test_image_make(&crowd->images[i], server->dir, name, VM_SIZE);
		template_add(server, name, &crowd->images[i]);
		for (unsigned round = 0; round < crowd->rounds; round++) {
			char id[32];

			snprintf(id, sizeof id, "f%u-%u", i, round);
			fork_create(server, name, id, ARGS("--prefetch", "eager", "--hot-list", path),
				    crowd->sockets[i][round]);
		}
	}
	client_join(client_start("crowd", crowd_body, crowd));
	for (unsigned i = 0; i < VMS; i++) {
		snprintf(name, sizeof name, "f%u-%u", i, crowd->rounds - 1);
		fork_wait(server, name, "gone");
	}
	free(crowd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_memory_of_the_library),	 SERVED(test_memory_of_the_caller),
		SERVED(test_a_child_of_fork_has_no_vm),	 SERVED(test_exec_ends_the_vm),
		SERVED(test_several_vms_in_one_process),
	};

	return harness_run(tests);
}
