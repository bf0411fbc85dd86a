/* Lists as files: what is no list, replacing whole or not at all, rests of dead writers, several writers at once. */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "unit/hotlist_helpers.h"

#define DEADLINE_NS (60 * NSEC_PER_SEC) /* for what takes milliseconds; only a hang gets there */

/* Every test runs in a new directory, as its working directory. */
static int setup(void **state)
{
	char *directory = strdup("/tmp/faultline-hotlist.XXXXXX");

	if (!mkdtemp(directory) || chdir(directory) < 0)
		return -1;
	*state = directory;
	return 0;
}

static int teardown(void **state)
{
	char command[64];

	snprintf(command, sizeof command, "rm -rf '%s'", (char *)*state);
	free(*state);
	return chdir("/") < 0 || system(command) != 0 ? -1 : 0;
}

static void put(const char *path, const void *data, size_t size)
{
	_cleanup_close_ int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, data, size), size);
}

static struct hotlist *load(const char *path)
{
	struct hotlist *list = NULL;
	struct error err;

	if (hotlist_load(path, &list, &err) < 0)
		fail_msg("%s", err.message);
	return list;
}

static void save(const struct hotlist *list, const char *path)
{
	struct error err;

	if (hotlist_save(list, HOTLIST_HPL1, path, &err) < 0)
		fail_msg("%s", err.message);
}

static void assert_load_fails(const char *path, int expected, const char *message)
{
	struct hotlist *list = NULL;
	struct error err;

	assert_int_equal(hotlist_load(path, &list, &err), expected);
	assert_null(list);
	assert_string_equal(err.code, "bad_hot_list");
	assert_string_equal(err.message, message);
}

static bool exists(const char *path)
{
	struct stat st;

	return lstat(path, &st) == 0;
}

/* COUNT pages of region 0, from page FIRST on. */
static struct hotlist *pages_from(uint64_t first, size_t count)
{
	struct hotlist *list = hotlist_new();

	for (size_t i = 0; i < count; i++)
		assert_int_equal(hotlist_add(list, 0, (first + i) * 4096), 0);
	return list;
}

/* ---- reading ---- */

static void test_missing_file_is_an_empty_list(void **state)
{
	(void)state;
	_cleanup_hotlist_ struct hotlist *list = load("none.hpl");
	assert_int_equal(list->count, 0);
	_cleanup_hotlist_ struct hotlist *nowhere = load("no/such/directory/none.hpl");
	assert_int_equal(nowhere->count, 0);
}

static void test_what_is_no_list(void **state)
{
	(void)state;
	assert_int_equal(mkdir("directory", 0755), 0);
	assert_load_fails("directory", -EINVAL,
			  "cannot read the hot list directory: it is a directory, and a regular file is needed");

	/* Nobody writes to the FIFO: to wait for it would be for ever. */
	assert_int_equal(mkfifo("fifo", 0644), 0);
	assert_load_fails("fifo", -EINVAL,
			  "cannot read the hot list fifo: it is a device, pipe or socket, and a regular file is needed");
	assert_load_fails("/dev/zero", -EINVAL,
			  "cannot read the hot list /dev/zero: it is a device, pipe or socket, and a regular file is needed");

	put("bad.hpl", "HPL1\x01\x00", 6);
	assert_load_fails("bad.hpl", -EBADMSG,
			  "bad.hpl: bad count at byte 4: 1 entries do not fit in the 1 bytes that follow; "
			  "truncated in entry 0 (offset) at byte 6: the file ends at byte 6");
	put("empty", "", 0);
	assert_load_fails("empty", -EBADMSG,
			  "empty: shorter than the magic: the file ends at byte 0, within the 4 bytes \"HPL1\"");
}

static void test_too_large(void **state)
{
	(void)state;
	put("large.hpl", "HPL1\x00", 5);
	assert_int_equal(truncate("large.hpl", HOTLIST_FILE_MAX + 1), 0);
	assert_load_fails("large.hpl", -EFBIG, "large.hpl is no hot list: it is larger than 256 MiB");
}

static void test_unreadable(void **state)
{
	(void)state;
	put("secret.hpl", "HPL1\x00", 5);
	assert_int_equal(chmod("secret.hpl", 0), 0);
	assert_int_equal(chmod(".", 0755), 0);

	/* root reads everything, so somebody else tries. */
	pid_t child = fork();
	if (child == 0) {
		struct hotlist *list;
		struct error err;

		if (getuid() == 0 && setresuid(65534, 65534, 65534) < 0)
			_exit(2);
		if (hotlist_load("secret.hpl", &list, &err) != -EACCES)
			_exit(3);
		_exit(strcmp(err.message, "cannot read the hot list secret.hpl: Permission denied") ? 4 : 0);
	}
	int status;
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_from_a_pipe(void **state)
{
	struct hotlist *list = NULL;
	struct error err;
	int fds[2];

	(void)state;
	/* Larger than the first buffer, and in the pieces that a pipe delivers. */
	_cleanup_hotlist_ struct hotlist *expected = pages_from(1, 100000);
	assert_int_equal(pipe(fds), 0);
	pid_t child = fork();
	if (child == 0) {
		void *data;
		size_t size, done = 0;
		close(fds[0]);
		if (hotlist_encode(expected, HOTLIST_CSV, &data, &size, &err) < 0)
			_exit(1);
		while (done < size) {
			ssize_t n = write(fds[1], (char *)data + done, size - done < 3333 ? size - done : 3333);
			if (n < 0)
				_exit(2);
			done += (size_t)n;
		}
		free(data);
		_exit(0);
	}
	close(fds[1]);
	assert_int_equal(hotlist_load_fd(fds[0], "a pipe", &list, &err), 0);
	close(fds[0]);
	assert_same_pages(expected, list);
	hotlist_free(list);
	assert_int_equal(waitpid(child, NULL, 0), child);

	assert_int_equal(hotlist_load_fd(-1, "nothing", &list, &err), -EBADF);
	assert_string_equal(err.message, "cannot read the hot list nothing: Bad file descriptor");
}

/* ---- writing ---- */

static void test_round_trip_of_a_million_pages(void **state)
{
	static const enum hotlist_format formats[] = { HOTLIST_HPL1, HOTLIST_JSON, HOTLIST_CSV };
	struct error err;

	(void)state;
	_cleanup_hotlist_ struct hotlist *list = pages_from(12345, 1000000);
	for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
		assert_int_equal(hotlist_save(list, formats[i], "list", &err), 0);
		_cleanup_hotlist_ struct hotlist *loaded = load("list");
		assert_same_pages(list, loaded);
		assert_false(exists("list.tmp"));
	}
}

static void test_replacing_keeps_mode_and_links(void **state)
{
	struct stat st;

	(void)state;
	_cleanup_hotlist_ struct hotlist *list = pages_from(0, 3);
	put("list.hpl", "old", 3);
	assert_int_equal(chmod("list.hpl", 0640), 0);
	assert_int_equal(symlink("list.hpl", "link.hpl"), 0);

	save(list, "link.hpl");
	assert_int_equal(lstat("link.hpl", &st), 0);
	assert_true(S_ISLNK(st.st_mode));
	assert_int_equal(lstat("list.hpl", &st), 0);
	assert_true(S_ISREG(st.st_mode));
	assert_int_equal(st.st_mode & 07777, 0640);
	_cleanup_hotlist_ struct hotlist *loaded = load("list.hpl");
	assert_same_pages(list, loaded);
	assert_false(exists("link.hpl.tmp"));
}

static void assert_save_fails(const char *path, int expected, const char *part)
{
	struct error err;

	_cleanup_hotlist_ struct hotlist *list = pages_from(0, 3);
	assert_int_equal(hotlist_save(list, HOTLIST_HPL1, path, &err), expected);
	/* Of a long path, the end. */
	size_t length = strlen(path);
	assert_contains(err.message, length > 100 ? path + length - 100 : path);
	assert_contains(err.message, part);
}

static void test_places_where_nothing_can_be_saved(void **state)
{
	char name[256] = "";

	(void)state;
	assert_int_equal(mkdir("directory", 0755), 0);
	assert_save_fails("directory", -EISDIR, "it is a directory. Name a file in it");
	assert_save_fails("none/list.hpl", -ENOENT, "Nothing was saved. Make the directory first");
	put("file", "", 0);
	assert_save_fails("file/list.hpl", -ENOTDIR, "Make the directory first");

	/* Only the .tmp has no room. */
	memset(name, 'n', 253);
	assert_save_fails(name, -ENAMETOOLONG, "Choose a name that leaves room for \".tmp\"");

	assert_int_equal(mkdir("blocked.hpl.tmp", 0755), 0);
	assert_save_fails("blocked.hpl", -EISDIR, "creating its .tmp file: Is a directory");
	assert_true(exists("blocked.hpl.tmp"));
}

/* As root, a rename would replace the device node. */
static void test_devices_are_written_to_and_not_replaced(void **state)
{
	struct stat st;

	(void)state;
	_cleanup_hotlist_ struct hotlist *list = pages_from(0, 3);
	save(list, "/dev/null");
	assert_int_equal(lstat("/dev/null", &st), 0);
	assert_true(S_ISCHR(st.st_mode));
	assert_save_fails("/dev/full", -ENOSPC, "No space left on device");
	assert_int_equal(lstat("/dev/full", &st), 0);
	assert_true(S_ISCHR(st.st_mode));
}

static void test_file_size_limit(void **state)
{
	(void)state;
	_cleanup_hotlist_ struct hotlist *old = pages_from(7, 1);
	save(old, "list.hpl");

	pid_t child = fork();
	if (child == 0) {
		const struct rlimit limit = { .rlim_cur = 8192, .rlim_max = 8192 };
		struct error err = { .code = "" };

		signal(SIGXFSZ, SIG_IGN);
		_cleanup_hotlist_ struct hotlist *list = pages_from(0, 10000);
		if (setrlimit(RLIMIT_FSIZE, &limit) < 0)
			_exit(2);
		if (hotlist_save(list, HOTLIST_HPL1, "list.hpl", &err) != -EFBIG)
			_exit(3);
		_exit(strcmp(err.message,
			     "cannot save the hot list list.hpl: writing its .tmp file: File too large. What was there before is as it "
			     "was. Raise the limit on file sizes (ulimit -f)")
			      ? 4
			      : 0);
	}
	int status;
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);

	assert_false(exists("list.hpl.tmp"));
	_cleanup_hotlist_ struct hotlist *loaded = load("list.hpl");
	assert_same_pages(old, loaded);
}

/* ---- what other writers leave, and other writers ---- */

static void test_rest_of_a_dead_writer_is_replaced(void **state)
{
	(void)state;
	_cleanup_hotlist_ struct hotlist *list = pages_from(0, 3);

	/* Longer than the new list: none of it may stay behind its end. */
	put("list.hpl.tmp", "HPL1\x7f and much more that nobody finished", 40);
	assert_int_equal(chmod("list.hpl.tmp", 0400), 0);
	save(list, "list.hpl");
	_cleanup_hotlist_ struct hotlist *loaded = load("list.hpl");
	assert_same_pages(list, loaded);
	assert_false(exists("list.hpl.tmp"));

	/* A link must not lead the writer elsewhere. */
	put("victim", "untouched", 9);
	assert_int_equal(symlink("victim", "list.hpl.tmp"), 0);
	save(list, "list.hpl");
	assert_false(exists("list.hpl.tmp"));
	struct stat st;
	assert_int_equal(stat("victim", &st), 0);
	assert_int_equal(st.st_size, 9);

	assert_int_equal(mkfifo("list.hpl.tmp", 0644), 0);
	save(list, "list.hpl");
	assert_false(exists("list.hpl.tmp"));
}

/* Whether a process waits for a lock on the file. */
static bool somebody_waits_for(const struct stat *st)
{
	char line[256], inode[32];
	bool found = false;
	_cleanup_fclose_ FILE *locks = fopen("/proc/locks", "re");

	assert_non_null(locks);
	snprintf(inode, sizeof inode, ":%llu ", (unsigned long long)st->st_ino);
	while (!found && fgets(line, sizeof line, locks))
		found = strstr(line, "-> FLOCK") && strstr(line, inode);
	return found;
}

static void test_live_writer_is_waited_for(void **state)
{
	struct stat st;
	int status;

	(void)state;
	/* We are the writer that lives: we hold the lock on what we have written so far. */
	int fd = open("list.hpl.tmp", O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	assert_true(fd >= 0);
	assert_int_equal(flock(fd, LOCK_EX), 0);
	assert_int_equal(fstat(fd, &st), 0);

	_cleanup_hotlist_ struct hotlist *list = pages_from(0, 3);
	pid_t child = fork();
	if (child == 0) {
		struct error err;
		/* The lock belongs to the open file, which the child shares until it closes it. */
		close(fd);
		_exit(hotlist_save(list, HOTLIST_HPL1, "list.hpl", &err) < 0 ? 1 : 0);
	}

	uint64_t deadline = now_ns() + DEADLINE_NS;
	while (!somebody_waits_for(&st)) {
		assert_int_equal(waitpid(child, &status, WNOHANG), 0);
		assert_true(now_ns() < deadline);
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	}
	assert_false(exists("list.hpl"));

	/* Our own list is done; the other one replaces it. */
	assert_int_equal(write(fd, "HPL1\x00", 5), 5);
	assert_int_equal(rename("list.hpl.tmp", "list.hpl"), 0);
	close(fd);
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	_cleanup_hotlist_ struct hotlist *loaded = load("list.hpl");
	assert_same_pages(list, loaded);
	assert_false(exists("list.hpl.tmp"));
}

/* Writers save lists that can be told apart, and some are killed while they do: readers see only whole lists. */
static void test_many_writers_and_killed_ones(void **state)
{
	enum { WRITERS = 4, ROUNDS = 60, KILLED = 40, PAGES = 2000 };
	pid_t writers[WRITERS];
	int status;

	(void)state;
	for (uint64_t w = 0; w < WRITERS; w++) {
		writers[w] = fork();
		if (writers[w] == 0) {
			_cleanup_hotlist_ struct hotlist *list = pages_from(w * PAGES, PAGES);
			for (int i = 0; i < ROUNDS; i++)
				if (hotlist_save(list, HOTLIST_HPL1, "list.hpl", NULL) < 0)
					_exit(1);
			_exit(0);
		}
	}

	struct random random = { 3 };
	for (int i = 0; i < KILLED; i++) {
		pid_t victim = fork();
		if (victim == 0) {
			_cleanup_hotlist_ struct hotlist *list = pages_from((uint64_t)WRITERS * PAGES, PAGES);
			for (;;)
				if (hotlist_save(list, HOTLIST_HPL1, "list.hpl", NULL) < 0)
					_exit(1);
		}
		nanosleep(&(struct timespec){ .tv_nsec = (long)random_below(&random, 3000000) }, NULL);
		assert_int_equal(kill(victim, SIGKILL), 0);
		assert_int_equal(waitpid(victim, &status, 0), victim);
		assert_true(WIFSIGNALED(status));

		_cleanup_hotlist_ struct hotlist *seen = load("list.hpl");
		if (!seen->count)
			continue; /* nobody has saved yet */
		_cleanup_hotlist_ struct hotlist *whole = pages_from(seen->pages[0].offset / 4096, PAGES);
		assert_int_equal(seen->pages[0].offset % ((uint64_t)PAGES * 4096), 0);
		assert_same_pages(whole, seen);
	}
	for (int w = 0; w < WRITERS; w++) {
		assert_int_equal(waitpid(writers[w], &status, 0), writers[w]);
		assert_int_equal(status, 0);
	}

	/* One more save, and nothing is left of all the killed ones. */
	_cleanup_hotlist_ struct hotlist *last = pages_from(0, 1);
	save(last, "list.hpl");
	assert_false(exists("list.hpl.tmp"));
	_cleanup_hotlist_ struct hotlist *loaded = load("list.hpl");
	assert_same_pages(last, loaded);
}

#define IN_DIRECTORY(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		IN_DIRECTORY(test_missing_file_is_an_empty_list),
		IN_DIRECTORY(test_what_is_no_list),
		IN_DIRECTORY(test_too_large),
		IN_DIRECTORY(test_unreadable),
		IN_DIRECTORY(test_from_a_pipe),
		IN_DIRECTORY(test_round_trip_of_a_million_pages),
		IN_DIRECTORY(test_replacing_keeps_mode_and_links),
		IN_DIRECTORY(test_places_where_nothing_can_be_saved),
		IN_DIRECTORY(test_devices_are_written_to_and_not_replaced),
		IN_DIRECTORY(test_file_size_limit),
		IN_DIRECTORY(test_rest_of_a_dead_writer_is_replaced),
		IN_DIRECTORY(test_live_writer_is_waited_for),
		IN_DIRECTORY(test_many_writers_and_killed_ones),
	};

	return cmocka_run_group_tests_name("hotlist/file", tests, NULL, NULL);
}
