/*
 * The preload library inside a process that maps memory as QEMU does: which mappings it takes, what it announces, what it falls
 * back to, and that every byte is right in each case.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/client.h"
#include "integration/harness/sandbox.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"

#define IMAGE_SIZE (2ul << 20)

/* What the parent decides; the child has a copy. */
struct scene {
	struct test_image image;
	char socket[SOCKET_PATH_MAX];
	char other_name[220]; /* another name of the image, or another file */
	long refusal;	      /* errno with which userfaultfd is refused */
};

/* In the child: the library's functions, and what it writes to stderr. */
struct victim {
	struct client_self *self;
	const struct scene *scene;
	int fd, heard;
	void *(*mmap)(void *, size_t, int, int, int, off_t);
	int (*madvise)(void *, size_t, int);
	int (*fallocate)(int, int, off_t, off_t);
};

static void *symbol(struct victim *victim, void *library, const char *name)
{
	void *address = dlsym(library, name);

	client_require(victim->self, address, "the library has no %s", name);
	return address;
}

/* Loads the library with the two settings (NULL: not set), its messages caught in a pipe. */
static void victim_init(struct victim *victim, struct client_self *self, const struct scene *scene, const char *socket,
			const char *memory)
{
	const char *path = getenv("FAULTLINE_PRELOAD");
	int ends[2];

	*victim = (struct victim){ .self = self, .scene = scene };
	client_require(self, path, "FAULTLINE_PRELOAD does not name the library");
	client_require(self, pipe2(ends, O_CLOEXEC) == 0 && dup2(ends[1], STDERR_FILENO) >= 0, "no pipe");
	victim->heard = ends[0];

	unsetenv("FAULTLINE_SOCKET");
	unsetenv("FAULTLINE_MEMORY");
	if (socket)
		setenv("FAULTLINE_SOCKET", socket, 1);
	if (memory)
		setenv("FAULTLINE_MEMORY", memory, 1);
	void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	client_require(self, library, "%s", dlerror());
	*(void **)&victim->mmap = symbol(victim, library, "mmap64");
	*(void **)&victim->madvise = symbol(victim, library, "madvise");
	*(void **)&victim->fallocate = symbol(victim, library, "fallocate64");

	victim->fd = open(scene->image.path, O_RDWR | O_CLOEXEC);
	client_require(self, victim->fd >= 0, "%s: %s", scene->image.path, strerror(errno));
}

/* As QEMU does: reserves address space, then puts the file there. */
static char *map_with(struct victim *victim, size_t size, int protection, int flags, off_t offset)
{
	char *address = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	client_require(victim->self, address != MAP_FAILED, "no address space");
	char *result = victim->mmap(address, size, protection, flags, victim->fd, offset);
	client_require(victim->self, result != MAP_FAILED, "the mapping failed: %s", strerror(errno));
	client_require(victim->self, !(flags & MAP_FIXED) || result == address, "the mapping went elsewhere");
	return result;
}

static char *map_as_qemu(struct victim *victim)
{
	return map_with(victim, IMAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, 0);
}

/* Waits for a line with WORD in it; NULL: there must be no line so far. */
static void hear(struct victim *victim, const char *word)
{
	char text[2048];
	struct pollfd heard = { .fd = victim->heard, .events = POLLIN };
	int ready = poll(&heard, 1, word ? deadline_ms(deadline_in(WAIT_S)) : 0);

	client_require(victim->self, ready >= 0 && (ready > 0 || !word), "waited in vain for a message with '%s'", word);
	if (!ready)
		return;
	ssize_t n = read(victim->heard, text, sizeof text - 1);
	text[n > 0 ? n : 0] = '\0';
	client_require(victim->self, word && strstr(text, word) && strstr(text, "faultline-preload: "),
		       "said `%s` where '%s' was expected", text, word ?: "nothing");
}

/* Every byte, a write, and that the image stayed as it was is the parent's to see. */
static void check_bytes(struct victim *victim, char *address, off_t offset, size_t size)
{
	struct vmm vmm;

	vmm_init(&vmm, victim->self, &victim->scene->image);
	vmm_adopt_region(&vmm, address, size, (uint64_t)offset, PAGE);
	vmm_check_all_shuffled(&vmm, 2, 5);
}

static void check_plain(struct victim *victim, const char *word)
{
	char *address = map_as_qemu(victim);

	hear(victim, word);
	check_bytes(victim, address, 0, IMAGE_SIZE);
	address[PAGE] = 'w';
}

/* A socket on which the parent is the server. */
static int listen_at(const struct test_server *server, const char *name, struct scene *scene)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	snprintf(scene->socket, sizeof scene->socket, "%s/%s", server->dir, name);
	snprintf(address.sun_path, sizeof address.sun_path, "%s", scene->socket);
	assert_return_code(bind(fd, (struct sockaddr *)&address, sizeof address), errno);
	assert_return_code(listen(fd, 8), errno);
	return fd;
}

static void assert_nobody_came(int listener)
{
	assert_int_equal(accept(listener, NULL, NULL), -1);
	assert_int_equal(errno, EAGAIN);
}

static struct scene scene_new(const struct test_server *server)
{
	struct scene scene = { .image = { .hole_every = 7 } };

	test_image_make(&scene.image, server->dir, "image", IMAGE_SIZE);
	return scene;
}

/* Runs BODY as a victim; the image must come out of it unchanged. */
static void run_victim(const char *name, void (*body)(struct client_self *, void *), struct scene *scene)
{
	uint64_t sum = test_image_sum(&scene->image);

	client_join(client_start(name, body, scene));
	assert_int_equal(test_image_sum(&scene->image), sum);
}

/* ---- supplied by the real server ---- */

static void require_out_of_the_way(struct victim *victim)
{
	for (int fd = 3; fd < 900; fd++) {
		char name[64], target[64] = "";

		snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
		if (readlink(name, target, sizeof target - 1) > 0)
			client_require(victim->self, !strstr(target, "userfaultfd"), "the userfaultfd is at %d", fd);
	}
	for (int fd = 900; fd < 1024; fd++)
		client_require(victim->self, fcntl(fd, F_GETFD) < 0 || (fcntl(fd, F_GETFD) & FD_CLOEXEC),
			       "descriptor %d is left to children", fd);
}

static void require_child_cannot_look(struct victim *victim, const char *address)
{
	int status;
	pid_t child = fork();

	if (child == 0) {
		signal(SIGSEGV, SIG_DFL);
		setrlimit(RLIMIT_CORE, &(struct rlimit){ 0 });
		_exit(*(volatile const char *)address != 0);
	}
	client_require(victim->self,
		       waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV,
		       "a forked child could look at guest memory");
}

/* Whether huge pages are ruled out there, as smaps tells. */
static void require_small_pages(struct victim *victim, const char *address)
{
	_cleanup_fclose_ FILE *f = fopen("/proc/self/smaps", "re");
	_cleanup_free_ char *line = NULL;
	size_t size = 0;
	bool here = false;

	while (f && getline(&line, &size, f) > 0) {
		unsigned long start, end;

		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			here = start <= (uintptr_t)address && (uintptr_t)address < end;
		else if (here && !strncmp(line, "VmFlags:", 8)) {
			client_require(victim->self, strstr(line, " nh") && !strstr(line, " hg"), "its flags are %s",
				       line);
			return;
		}
	}
	client_fail(victim->self, "smaps has no flags for guest memory");
}

static void supplied_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct victim victim;

	victim_init(&victim, self, scene, scene->socket, scene->image.path);
	char *address = map_as_qemu(&victim);
	require_out_of_the_way(&victim);
	client_require(self, !getenv("FAULTLINE_SOCKET"), "children would inherit FAULTLINE_SOCKET");
	client_require(self, victim.madvise(address, IMAGE_SIZE, MADV_HUGEPAGE) == 0, "MADV_HUGEPAGE failed");
	require_small_pages(&victim, address);
	require_child_cannot_look(&victim, address);
	check_bytes(&victim, address, 0, IMAGE_SIZE);

	/* A balloon: QEMU cuts a hole into the file, then drops the memory. */
	int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	client_require(self, victim.fallocate(victim.fd, mode, 0, 4 * PAGE) == 0, "punching a hole failed");
	client_require(self, victim.madvise(address, 4 * PAGE, MADV_DONTNEED) == 0, "MADV_DONTNEED failed");
	for (size_t i = 0; i < 4 * PAGE; i++)
		client_require(self, address[i] == 0, "a removed page has come back");
	address[IMAGE_SIZE - 1] = 'w';
	hear(&victim, NULL);
	client_say(self, 'd');
	client_hear(self, 'q');
}

static void test_memory_is_supplied_by_the_server(void **state)
{
	struct test_server *server = *state;
	struct scene scene = scene_new(server);
	uint64_t sum = test_image_sum(&scene.image);

	template_add(server, "t", &scene.image);
	fork_create(server, "t", "f", NULL, scene.socket);
	struct client *client = client_start("victim", supplied_body, &scene);
	client_await(client, 'd');
	assert_int_equal(fork_number(server, "f", "copied_pages"), IMAGE_SIZE / PAGE);
	assert_int_equal(fork_number(server, "f", "removed_pages"), 4);
	assert_int_equal(fork_number(server, "f", "pid"), client->pid);
	client_tell(client, 'q');
	client_join(client);
	fork_wait(server, "f", "gone");
	assert_int_equal(test_image_sum(&scene.image), sum);
}

static void locked_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct victim victim;

	victim_init(&victim, self, scene, scene->socket, NULL);
	client_require(self, mlockall(MCL_FUTURE) == 0, "mlockall: %s", strerror(errno));
	char *address = map_with(&victim, IMAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_POPULATE, 0);
	client_require(self, munlockall() == 0, "munlockall: %s", strerror(errno));
	hear(&victim, NULL);
	check_bytes(&victim, address, 0, IMAGE_SIZE);
}

/* Memory that the kernel fills in as soon as it is mapped must be filled in from the image. */
static void test_locked_memory_is_supplied_too(void **state)
{
	struct test_server *server = *state;
	struct scene scene = scene_new(server);

	template_add(server, "t", &scene.image);
	fork_create(server, "t", "f", NULL, scene.socket);
	run_victim("locked", locked_body, &scene);
	assert_true(fork_number(server, "f", "copied_pages") > 0);
}

static void device_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct victim victim;

	victim_init(&victim, self, scene, scene->socket, NULL);
	refuse_userfaultfd(self, EPERM, false);
	char *address = map_as_qemu(&victim);
	hear(&victim, NULL);
	check_bytes(&victim, address, 0, IMAGE_SIZE);
}

static void test_the_device_does_where_the_system_call_is_refused(void **state)
{
	struct test_server *server = *state;
	struct scene scene = scene_new(server);

	if (access("/dev/userfaultfd", R_OK | W_OK) < 0) {
		print_message("skipped: this kernel has no /dev/userfaultfd\n");
		skip();
	}
	template_add(server, "t", &scene.image);
	fork_create(server, "t", "f", NULL, scene.socket);
	run_victim("device", device_body, &scene);
	assert_int_equal(fork_number(server, "f", "copied_pages"), IMAGE_SIZE / PAGE);
}

/* ---- the handshake ---- */

static void announcing_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct victim victim;

	victim_init(&victim, self, scene, scene->socket, NULL);
	char *address = map_with(&victim, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, 64 * PAGE);
	self->shared->counter[0] = (uintptr_t)address;
	client_say(self, 'm');
	hear(&victim, "hung up");
}

static void test_handshake_is_one_message_with_all_keys(void **state)
{
	struct test_server *server = *state;
	struct scene scene = scene_new(server);
	_cleanup_close_ int listener = listen_at(server, "f", &scene);
	struct client *client = client_start("announcing", announcing_body, &scene);
	client_await(client, 'm');

	char text[4096], control[256];
	struct iovec part = { text, sizeof text - 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = 256 };
	int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	ssize_t n = recvmsg(connection, &message, MSG_CMSG_CLOEXEC);
	assert_true(n > 0);
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	assert_non_null(header);
	assert_int_equal(header->cmsg_len, CMSG_LEN(sizeof(int)));
	int uffd;
	memcpy(&uffd, CMSG_DATA(header), sizeof uffd);

	json_t *regions = json_loadb(text, (size_t)n, JSON_REJECT_DUPLICATES, NULL);
	json_t *expected = json_pack("[{s:I,s:i,s:i,s:i,s:i}]", "base_host_virt_addr",
				     (json_int_t)client_counter(client, 0), "size", 1 << 20, "offset", (int)(64 * PAGE),
				     "page_size", (int)PAGE, "page_size_kib", (int)PAGE);
	assert_true(json_equal(regions, expected));
	json_decref(regions);
	json_decref(expected);

	struct uffdio_api api = { .api = UFFD_API };
	assert_true(ioctl(uffd, UFFDIO_API, &api) < 0);
	assert_int_equal(errno, EINVAL);
	assert_true(fcntl(uffd, F_GETFL) & O_NONBLOCK);
	close(uffd);
	/* From here on nobody serves this VM: it must say so. */
	close(connection);
	client_join(client);
}

/* ---- which mapping is taken ---- */

static void no_socket_body(struct client_self *self, void *data)
{
	struct victim victim;

	victim_init(&victim, self, data, NULL, ((struct scene *)data)->image.path);
	check_plain(&victim, NULL);
}

static void other_mappings_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct victim victim;
	const int both = PROT_READ | PROT_WRITE;

	victim_init(&victim, self, scene, scene->socket, NULL);
	check_bytes(&victim, map_with(&victim, IMAGE_SIZE, both, MAP_PRIVATE, 0), 0, IMAGE_SIZE);
	check_bytes(&victim, map_with(&victim, IMAGE_SIZE, PROT_READ, MAP_PRIVATE | MAP_FIXED, 0), 0, IMAGE_SIZE);
	check_bytes(&victim, map_with(&victim, IMAGE_SIZE, both, MAP_SHARED | MAP_FIXED, 0), 0, IMAGE_SIZE);
	check_bytes(&victim, map_with(&victim, 1 << 19, both, MAP_PRIVATE | MAP_FIXED, 0), 0, 1 << 19);
	hear(&victim, NULL);
	client_require(self, getenv("FAULTLINE_SOCKET"), "one of them was taken for the image");
}

static void other_file_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct victim victim;

	victim_init(&victim, self, scene, scene->socket, scene->other_name);
	check_plain(&victim, NULL);
}

static void shared_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct victim victim;

	victim_init(&victim, self, scene, scene->socket, scene->image.path);
	char *address = map_with(&victim, IMAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, 0);
	hear(&victim, "share=off");
	check_bytes(&victim, address, 0, IMAGE_SIZE);
}

static void missing_file_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct victim victim;

	victim_init(&victim, self, scene, scene->socket, "/nonexistent/image");
	check_plain(&victim, "FAULTLINE_MEMORY");
}

static void test_other_mappings_are_left_alone(void **state)
{
	struct test_server *server = *state;
	struct scene scene = scene_new(server);
	struct test_image other = { .seed = 1 };
	_cleanup_close_ int listener = listen_at(server, "f", &scene);

	test_image_make(&other, server->dir, "other", IMAGE_SIZE);
	snprintf(scene.other_name, sizeof scene.other_name, "%s", other.path);
	run_victim("no socket", no_socket_body, &scene);
	run_victim("other mappings", other_mappings_body, &scene);
	run_victim("other file", other_file_body, &scene);
	run_victim("shared", shared_body, &scene);
	run_victim("missing file", missing_file_body, &scene);
	assert_nobody_came(listener);
}

static void second_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct victim victim;

	victim_init(&victim, self, scene, scene->socket, scene->other_name);
	char *first = map_as_qemu(&victim);
	hear(&victim, NULL);
	char *second = map_as_qemu(&victim);
	hear(&victim, "second mapping");
	check_bytes(&victim, first, 0, IMAGE_SIZE);
	check_bytes(&victim, second, 0, IMAGE_SIZE);
}

/* The image is known by what it is, not by its name, and only its first mapping is supplied. */
static void test_image_is_taken_once_by_any_name(void **state)
{
	struct test_server *server = *state;
	struct scene scene = scene_new(server);

	snprintf(scene.other_name, sizeof scene.other_name, "%s/link", server->dir);
	assert_return_code(symlink(scene.image.path, scene.other_name), errno);
	template_add(server, "t", &scene.image);
	fork_create(server, "t", "f", NULL, scene.socket);
	run_victim("second", second_body, &scene);
	assert_int_equal(fork_number(server, "f", "copied_pages"), IMAGE_SIZE / PAGE);
}

/* ---- what it falls back to ---- */

static void no_server_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct victim victim;

	victim_init(&victim, self, scene, scene->socket, NULL);
	check_plain(&victim, "faultline serve");
	client_require(self, !getenv("FAULTLINE_SOCKET"), "children would try again");
}

static void test_without_a_server_the_image_is_mapped(void **state)
{
	struct test_server *server = *state;
	struct scene scene = scene_new(server);

	snprintf(scene.socket, sizeof scene.socket, "%s/nothing", server->dir);
	run_victim("no socket file", no_server_body, &scene);
	close(listen_at(server, "deaf", &scene));
	run_victim("nobody listens", no_server_body, &scene);
}

static void refused_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct victim victim;

	victim_init(&victim, self, scene, scene->socket, NULL);
	refuse_userfaultfd(self, (uint32_t)scene->refusal, true);
	check_plain(&victim, scene->refusal == ENOSYS ? "CONFIG_USERFAULTFD" : "CAP_SYS_PTRACE");
}

static void test_without_userfaultfd_the_image_is_mapped(void **state)
{
	struct test_server *server = *state;
	struct scene scene = scene_new(server);
	_cleanup_close_ int listener = listen_at(server, "f", &scene);

	scene.refusal = EPERM;
	run_victim("refused", refused_body, &scene);
	scene.refusal = ENOSYS;
	run_victim("no such call", refused_body, &scene);
	assert_nobody_came(listener);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_memory_is_supplied_by_the_server),
		SERVED(test_locked_memory_is_supplied_too),
		SERVED(test_the_device_does_where_the_system_call_is_refused),
		SERVED(test_handshake_is_one_message_with_all_keys),
		SERVED(test_other_mappings_are_left_alone),
		SERVED(test_image_is_taken_once_by_any_name),
		SERVED(test_without_a_server_the_image_is_mapped),
		SERVED(test_without_userfaultfd_the_image_is_mapped),
	};

	return harness_run(tests);
}
