/*
 * Templates' lists kept fresh by what the kernel sees of production forks: the real server, observer and files. The guest's memory is shared, and its page
 * tables are emptied once its list is prefetched: so its touches of pages that are there are seen, as KVM shows them.
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "hotlist/hotlist.h"
#include "integration/harness/client.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"

#define PAGES	 512ul
#define LIST_MAX PAGES

struct scene {
	struct test_server *server;
	struct test_image image;
	char list[100], socket[SOCKET_PATH_MAX];
	unsigned forks;
	/* The guest of the next fork. */
	bool anonymous, reads;
	unsigned touches[LIST_MAX];
	size_t touch_count;
};

/* ---- the guest ---- */

static void map_memory(struct vmm *vmm, const struct scene *scene)
{
	int fd = scene->anonymous ? -1 : memfd_create("guest", MFD_CLOEXEC);
	int flags = scene->anonymous ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;

	client_require(vmm->self, scene->anonymous || (fd >= 0 && ftruncate(fd, PAGES * PAGE) == 0), "memfd: %s",
		       strerror(errno));
	void *memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0);
	client_require(vmm->self, memory != MAP_FAILED, "mmap: %s", strerror(errno));
	if (fd >= 0)
		close(fd);
	vmm_adopt_region(vmm, memory, PAGES * PAGE, 0, PAGE);
}

static void guest_body(struct client_self *self, void *data)
{
	const struct scene *scene = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &scene->image);
	map_memory(&vmm, scene);
	/* Without events of removal, so that the server does not take the empty page tables for memory that was given back. */
	vmm_start(&vmm, scene->socket, (struct vmm_form){ .features = UFFD_FEATURE_THREAD_ID });
	client_say(self, 'c');
	client_hear(self, 't');
	struct vmm_region *region = &vmm.regions[0];
	client_require(self, scene->anonymous || madvise(region->address, region->size, MADV_DONTNEED) == 0,
		       "madvise: %s", strerror(errno));
	for (size_t i = 0; i < scene->touch_count; i++) {
		/*
		 * A write of what is there, and nothing but a write: a read would have the kernel map the pages around it as well, and what reads and
		 * writes at once may read first (ThreadSanitizer's atomics do).
		 */
		if (!scene->reads)
			*(volatile uint64_t *)(region->address + scene->touches[i] * PAGE) =
				test_image_word(&scene->image, scene->touches[i], 0);
		vmm_check_page(&vmm, region, scene->touches[i]);
	}
	client_say(self, 'd');
	client_hear(self, 'q');
}

/* Starts the next fork, whose guest has done its touches when this returns; RET_ID is its id. */
static struct client *start_fork(struct scene *scene, char ret_id[static 16])
{
	snprintf(ret_id, 16, "fork-%u", ++scene->forks);
	fork_create(scene->server, "base", ret_id, ARGS("--prefetch", "eager"), scene->socket);
	struct client *client = client_start(ret_id, guest_body, scene);
	client_await(client, 'c');
	fork_wait(scene->server, ret_id, "prefetched");
	client_tell(client, 't');
	client_await(client, 'd');
	return client;
}

static size_t count_lines(const struct test_server *server, const char *word, const char *other)
{
	_cleanup_fclose_ FILE *log = fopen(server->log, "re");
	char line[1000];
	size_t count = 0;

	while (fgets(line, sizeof line, log))
		count += strstr(line, word) && strstr(line, other);
	return count;
}

/* Runs the next fork through; the log then has a line with both its id and WORD. */
static void run_fork(struct scene *scene, const char *word)
{
	uint64_t deadline = deadline_in(WAIT_S);
	char id[16], name[24];
	struct client *client = start_fork(scene, id);

	json_decref(command_ok(scene->server, ARGS("fork", "ready", id)));
	client_tell(client, 'q');
	client_join(client);
	snprintf(name, sizeof name, "fork %s:", id);
	while (!count_lines(scene->server, name, word)) {
		if (!deadline_ms(deadline))
			fail_msg("the log does not say '%s' of %s", word, id);
		fork_number(scene->server, id, "faults"); /* takes a moment */
	}
}

/* ---- its list ---- */

struct sequence {
	unsigned pages[LIST_MAX];
	size_t count;
};

static void write_list(const struct scene *scene, const struct sequence *sequence)
{
	_cleanup_hotlist_ struct hotlist *list = hotlist_new();
	struct error err;

	for (size_t i = 0; i < sequence->count; i++)
		assert_int_equal(hotlist_add(list, 0, sequence->pages[i] * PAGE), 0);
	if (hotlist_save(list, HOTLIST_HPL2, scene->list, &err) < 0)
		fail_msg("%s", err.message);
}

static struct sequence read_list(const struct scene *scene)
{
	_cleanup_hotlist_ struct hotlist *list = NULL;
	struct sequence ret = { .count = 0 };
	struct error err;

	if (hotlist_load(scene->list, &list, &err) < 0)
		fail_msg("%s", err.message);
	assert_true(list->count <= LIST_MAX);
	for (; ret.count < list->count; ret.count++)
		ret.pages[ret.count] = (unsigned)(list->pages[ret.count].offset / PAGE);
	return ret;
}

static size_t count_between(const struct sequence *sequence, unsigned first, unsigned end)
{
	size_t count = 0;

	for (size_t i = 0; i < sequence->count; i++)
		count += sequence->pages[i] >= first && sequence->pages[i] < end;
	return count;
}

static void expect_same(const struct scene *scene, const struct sequence *expected)
{
	struct sequence is = read_list(scene);

	assert_int_equal(is.count, expected->count);
	assert_memory_equal(is.pages, expected->pages, expected->count * sizeof *expected->pages);
}

static void append(struct sequence *sequence, unsigned page)
{
	assert_true(sequence->count < LIST_MAX);
	sequence->pages[sequence->count++] = page;
}

/* ---- the scene ---- */

static void set_scene(struct scene *scene, struct test_server *server, const char *list_dir)
{
	*scene = (struct scene){ .server = server };
	test_image_make(&scene->image, server->dir, "base", PAGES * PAGE);
	snprintf(scene->list, sizeof scene->list, "%s/list", list_dir);
}

static void add_template(const struct scene *scene)
{
	json_decref(command_ok(scene->server, ARGS("template", "add", "base", "--memory", (char *)scene->image.path,
						   "--hot-list", (char *)scene->list, "--refresh-hot-list")));
}

static int setup(void **state)
{
	struct test_server *server = calloc(1, sizeof *server);

	test_server_make_dir(server);
	test_server_start_as(server, ARGS("--observe", "require"), NULL, NULL);
	*state = server;
	return 0;
}

/*
 * Pages 0 to 49 are in the list, and no fork touches them. 50 to 149 are and every one does; 150 to 199 are new, and every one touches them, one after
 * two of those. 200 to 219 are in the list, and every third fork touches them.
 */
static void make_workload(struct sequence *list, struct sequence *touches)
{
	for (unsigned i = 0; i < 100; i++) {
		unsigned page = 50 + i * 37 % 100;

		append(list, page);
		append(touches, page);
		if (i % 2) {
			append(list, i / 2);
			append(touches, 150 + i / 2);
		}
	}
	for (unsigned i = 200; i < 220; i++)
		append(list, i);
}

static void set_touches(struct scene *scene, const struct sequence *touches, bool third)
{
	scene->touch_count = 0;
	for (size_t i = 0; i < touches->count; i++)
		scene->touches[scene->touch_count++] = touches->pages[i];
	for (unsigned page = 200; third && page < 220; page++)
		scene->touches[scene->touch_count++] = page;
}

static void test_the_list_follows_what_forks_touch(void **state)
{
	struct sequence list = { .count = 0 }, touches = { .count = 0 }, is;
	struct scene scene;

	set_scene(&scene, *state, ((struct test_server *)*state)->dir);
	make_workload(&list, &touches);
	write_list(&scene, &list);
	add_template(&scene);
	for (unsigned fork = 1; fork <= 9; fork++) {
		set_touches(&scene, &touches, fork % 3 == 0);
		run_fork(&scene, "has learnt");
		is = read_list(&scene);
		print_message("fork %u: %zu pages in the list, %zu of 50 unused, %zu of 20 that every third touches\n",
			      fork, is.count, count_between(&is, 0, 50), count_between(&is, 200, 220));
		assert_int_equal(count_between(&is, 50, 150), 100);
		assert_int_equal(count_between(&is, 150, 200), 50);
		assert_int_equal(count_between(&is, 200, 220), 20);
		assert_int_equal(count_between(&is, 0, 50), fork < 5 ? 50 : 0);
		assert_int_equal(count_between(&is, 220, PAGES), 0);
		/* In the order in which they were touched, new ones between their neighbours. */
		size_t at = 0;
		for (size_t i = 0; i < is.count; i++)
			if (is.pages[i] >= 50 && is.pages[i] < 200)
				assert_int_equal(is.pages[i], touches.pages[at++]);
		assert_int_equal(at, touches.count);
	}
	/* What was prefetched and used needed no fault any more. */
	assert_int_equal(fork_number(scene.server, "fork-1", "faults"), 50);
	assert_int_equal(fork_number(scene.server, "fork-9", "faults"), 0);
}

/* The memory of an ordinary process: once a page is prefetched, nobody sees it touched. */
static void test_where_touches_are_not_seen_the_list_stays(void **state)
{
	struct sequence list = { .count = 0 }, touches = { .count = 0 };
	struct scene scene;

	set_scene(&scene, *state, ((struct test_server *)*state)->dir);
	make_workload(&list, &touches);
	write_list(&scene, &list);
	add_template(&scene);
	scene.anonymous = true;
	set_touches(&scene, &touches, false);
	for (unsigned fork = 1; fork <= 6; fork++)
		run_fork(&scene, "does not see touches");
	expect_same(&scene, &list);
	assert_int_equal(fork_number(scene.server, "fork-6", "faults"), 50);
}

/* Where a page is read, the kernel maps those around it as well: that they aren't seen touched says nothing. */
static void test_pages_around_one_that_was_read_stay(void **state)
{
	struct sequence list = { .count = 0 }, is;
	struct scene scene;

	set_scene(&scene, *state, ((struct test_server *)*state)->dir);
	for (unsigned page = 0; page < 256; page++)
		append(&list, page);
	write_list(&scene, &list);
	add_template(&scene);
	scene.reads = true;
	for (unsigned page = 0; page < 128; page++)
		scene.touches[scene.touch_count++] = page;
	for (unsigned fork = 1; fork <= 6; fork++)
		run_fork(&scene, "has learnt");
	is = read_list(&scene);
	assert_int_equal(count_between(&is, 0, 128), 128);
	assert_int_equal(count_between(&is, 144, 256), 0);
}

/* ---- writing it fails ---- */

/* In the server: the system call kills it, as kill -9 at that moment would. */
static void die_at(void *data)
{
	const unsigned *call = data;
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, *call, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = sizeof filter / sizeof *filter, .filter = filter };

	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0)
		_exit(126);
}

static void check_death_at(struct scene *scene, unsigned call, const struct sequence *list,
			   const struct sequence *touches)
{
	struct test_server *server = scene->server;
	char id[16], tmp[120];
	struct stat st;

	/* Another server, with the templates of the last one. */
	test_server_signal(server, SIGTERM);
	assert_int_equal(test_server_wait_end(server), 0);
	test_server_start_as(server, ARGS("--observe", "require"), die_at, &call);
	set_touches(scene, touches, false);
	struct client *client = start_fork(scene, id);
	struct test_command ready;
	command_start(&ready, server, ARGS("fork", "ready", id));
	int status = test_server_wait_end(server);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
	struct test_result result = command_wait(&ready);
	result_clear(&result);
	client_kill(client);

	/* A new one was written beside it, and the old one is whole. */
	snprintf(tmp, sizeof tmp, "%s.tmp", scene->list);
	assert_int_equal(stat(tmp, &st), 0);
	assert_true(st.st_size > 0);
	expect_same(scene, list);

	/* The next server replaces what the dead one left. */
	test_server_start_as(server, ARGS("--observe", "require"), NULL, NULL);
	run_fork(scene, "has learnt");
	assert_true(stat(tmp, &st) < 0 && errno == ENOENT);
	struct sequence is = read_list(scene);
	assert_int_equal(count_between(&is, 150, 200), 50);
}

static void test_a_server_that_is_killed_while_it_writes_leaves_the_old_list(void **state)
{
	struct sequence list = { .count = 0 }, touches = { .count = 0 };
	const unsigned calls[] = {
		SYS_fsync,
#ifdef SYS_rename
		SYS_rename,
#else
		SYS_renameat,
#endif
	};
	struct scene scene;

	set_scene(&scene, *state, ((struct test_server *)*state)->dir);
	make_workload(&list, &touches);
	write_list(&scene, &list);
	add_template(&scene);
	for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
		write_list(&scene, &list);
		check_death_at(&scene, calls[i], &list, &touches);
	}
}

static void test_a_full_disk_leaves_the_old_list(void **state)
{
	struct sequence list = { .count = 0 }, touches = { .count = 0 };
	struct test_server *server = *state;
	char small[80], filler[100], tmp[120], buffer[PAGE] = { 0 };
	struct scene scene;
	ssize_t n;

	snprintf(small, sizeof small, "%s/small", server->dir);
	assert_int_equal(mkdir(small, 0700), 0);
	assert_int_equal(mount("refresh-test", small, "tmpfs", 0, "size=64k"), 0);
	set_scene(&scene, server, small);
	make_workload(&list, &touches);
	write_list(&scene, &list);
	add_template(&scene);
	snprintf(filler, sizeof filler, "%s/filler", small);
	_cleanup_close_ int fd = open(filler, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	while ((n = write(fd, buffer, sizeof buffer)) > 0)
		;
	assert_int_equal(errno, ENOSPC);

	set_touches(&scene, &touches, false);
	run_fork(&scene, "stays as it is");
	assert_int_equal(count_lines(server, "stays as it is", "No space left"), 1);
	expect_same(&scene, &list);
	snprintf(tmp, sizeof tmp, "%s.tmp", scene.list);
	assert_int_equal(access(tmp, F_OK), -1);

	assert_int_equal(ftruncate(fd, 0), 0);
	run_fork(&scene, "has learnt");
	struct sequence is = read_list(&scene);
	assert_int_equal(count_between(&is, 150, 200), 50);
	assert_int_equal(umount2(small, MNT_DETACH), 0);
}

#define REFRESHED(f) cmocka_unit_test_setup_teardown(f, setup, test_server_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		REFRESHED(test_the_list_follows_what_forks_touch),
		REFRESHED(test_where_touches_are_not_seen_the_list_stays),
		REFRESHED(test_pages_around_one_that_was_read_stay),
		REFRESHED(test_a_server_that_is_killed_while_it_writes_leaves_the_old_list),
		REFRESHED(test_a_full_disk_leaves_the_old_list),
	};

	/* The small disk is nobody else's, and goes with this program whatever becomes of it. */
	harness_require();
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) {
		printf("skipped: a small disk needs a mount namespace of its own: %s\n", strerror(errno));
		return 77;
	}
	return harness_run(tests);
}
