/* Fault-around set to one page, and a guard that puts it back: see fault_around.h. */
#include "cli/fault_around.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"

#define DEBUGFS	    "/sys/kernel/debug"
#define SETTING	    DEBUGFS "/fault_around_bytes"
#define KERNELS_OWN 65536ul /* since Linux 3.15 */

/* What the guard says once it has done its part. */
struct answer {
	unsigned long bytes, before;
	char why[sizeof((struct fault_around *)NULL)->why];
};

/* The kernel's file can't be sought in, and doesn't mind where it is read and written. */
static int read_setting(int fd, unsigned long *ret)
{
	char text[32];

	(void)lseek(fd, 0, SEEK_SET);
	ssize_t n = read(fd, text, sizeof text - 1);
	if (n <= 0)
		return n < 0 ? -errno : -ENODATA;
	text[n] = '\0';
	*ret = strtoul(text, NULL, 10);
	return 0;
}

static int write_setting(int fd, unsigned long bytes)
{
	char text[32];
	int n = snprintf(text, sizeof text, "%lu\n", bytes);

	(void)lseek(fd, 0, SEEK_SET);
	return write(fd, text, (size_t)n) == n ? 0 : -errno;
}

/* Where debugfs is not mounted, it is in a view of the file system that nobody else has. */
static int open_setting(int flags)
{
	int fd = open(SETTING, flags | O_CLOEXEC);

	if (fd >= 0 || errno != ENOENT)
		return fd;
	if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("debugfs", DEBUGFS, "debugfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
		return -1;
	return open(SETTING, flags | O_CLOEXEC);
}

static void explain(struct answer *answer, int error)
{
	const char *text = error == EPERM || error == EACCES
				   ? "debugfs is closed to us (root, and a kernel that isn't locked down, could)"
			   : error == ENOENT || error == ENODEV ? "this kernel has no debugfs with fault_around_bytes"
			   : error == EWOULDBLOCK ? "another profile has set it, and will put it back when it ends"
						  : strerror(error);

	snprintf(answer->why, sizeof answer->why, "%s", text);
}

/* The setting's descriptor, locked and set to a page; -1: ANSWER says why not. */
static int narrow(struct answer *answer)
{
	_cleanup_close_ int fd = open_setting(O_RDWR);
	unsigned long page = (unsigned long)sysconf(_SC_PAGESIZE);

	if (fd < 0 || read_setting(fd, &answer->before) < 0) {
		explain(answer, errno);
		return -1;
	}
	answer->bytes = answer->before;
	/* Else two would put back each other's. */
	if (flock(fd, LOCK_EX | LOCK_NB) < 0 || write_setting(fd, page) < 0) {
		explain(answer, errno);
		return -1;
	}
	answer->bytes = page;
	return TAKE_FD(fd);
}

/* The guard. Lives until the other end of TALK is closed, and nothing that is sent to a terminal's processes ends it. */
static void __attribute__((noreturn)) stand_guard(int talk, bool change)
{
	struct answer answer = { 0 };
	sigset_t all;
	char nothing;
	int fd = -1;

	setsid();
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	if (change) {
		fd = narrow(&answer);
	} else {
		_cleanup_close_ int setting = open_setting(O_RDONLY);
		if (setting < 0 || read_setting(setting, &answer.bytes) < 0)
			explain(&answer, errno);
	}
	if (write(talk, &answer, sizeof answer) == (ssize_t)sizeof answer && fd >= 0)
		while (read(talk, &nothing, 1) < 0 && errno == EINTR)
			;
	if (fd >= 0)
		write_setting(fd, answer.before);
	_exit(0);
}

static void start(struct fault_around *ret, bool change)
{
	struct answer answer = { 0 };
	int ends[2];

	*ret = (struct fault_around){ .end = -1 };
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0) {
		snprintf(ret->why, sizeof ret->why, "%s", strerror(errno));
		return;
	}
	fflush(NULL);
	pid_t pid = fork();
	if (pid == 0) {
		close(ends[0]);
		stand_guard(ends[1], change);
	}
	close(ends[1]);
	ret->end = ends[0];
	ret->guard = pid < 0 ? 0 : pid;
	if (pid < 0 || read(ends[0], &answer, sizeof answer) != (ssize_t)sizeof answer)
		snprintf(answer.why, sizeof answer.why, "no process could be started for it");
	ret->bytes = answer.bytes;
	ret->before = answer.before;
	snprintf(ret->why, sizeof ret->why, "%s", answer.why);
	if (answer.why[0] || !change)
		fault_around_restore(ret);
}

void fault_around_narrow(struct fault_around *ret)
{
	start(ret, true);
	/* Unless it was set by somebody, it is what the kernel comes with. */
	if (!ret->bytes)
		ret->bytes = KERNELS_OWN;
}

void fault_around_keep(struct fault_around *ret)
{
	start(ret, false);
	if (!ret->bytes)
		ret->bytes = KERNELS_OWN;
}

void fault_around_restore(struct fault_around *around)
{
	cleanup_close(&around->end);
	around->end = -1;
	if (around->guard)
		while (waitpid(around->guard, NULL, 0) < 0 && errno == EINTR)
			;
	around->guard = 0;
}
