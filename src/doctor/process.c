/* Getting hold of VMMs: who they are, where they run, and stopping them when their pages can't be had. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "doctor/check.h"
#include "doctor/machine.h"

#ifndef SO_PEERPIDFD /* Linux 6.5 */
#define SO_PEERPIDFD 77
#endif

/* Stops PID, a child that waits, through a pidfd and sees it end. The name of what failed, or NULL. */
static const char *stop_by_pidfd(pid_t pid, int *ret_error)
{
	_cleanup_close_ int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	struct pollfd poll_fd = { .fd = pidfd, .events = POLLIN };

	if (pidfd < 0) {
		*ret_error = -errno;
		return "pidfd_open";
	}
	if (syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0) < 0) {
		*ret_error = -errno;
		return "pidfd_send_signal";
	}
	int n;
	do
		n = poll(&poll_fd, 1, 1000);
	while (n < 0 && errno == EINTR);
	if (n != 1) {
		*ret_error = n < 0 ? -errno : -ETIMEDOUT;
		return "poll on a pidfd";
	}
	return NULL;
}

static void probe_pidfd(struct probe *probe)
{
	pid_t parent = getpid(), pid = fork();
	int error = 0;

	if (pid < 0) {
		probe_missing(probe, -errno, "fork failed: %s", strerror(errno));
		return;
	}
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (getppid() == parent)
			pause();
		_exit(0);
	}
	const char *failed = stop_by_pidfd(pid, &error);
	if (failed)
		kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	if (failed)
		probe_missing(probe, error, "%s failed: %s", failed, strerror(-error));
	else
		probe_ok(probe, "a process was stopped through its pidfd, and seen to end");
}

static void probe_peer_pidfd(struct probe *probe)
{
	int pair[2], pidfd = -1;
	socklen_t length = sizeof pidfd;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
		probe_missing(probe, -errno, "no Unix sockets: %s", strerror(errno));
		return;
	}
	int r = getsockopt(pair[0], SOL_SOCKET, SO_PEERPIDFD, &pidfd, &length), error = errno;
	close(pair[0]);
	close(pair[1]);
	if (r < 0) {
		probe_degraded(probe, -error, "SO_PEERPIDFD: %s; SO_PEERCRED and pidfd_open are used instead",
			       strerror(error));
		return;
	}
	close(pidfd);
	probe_ok(probe, "SO_PEERPIDFD names the process that connected");
}

static void probe_kill(struct probe *probe)
{
	if (in_user_namespace())
		probe_degraded(probe, 0, "this is a user namespace: VMMs outside of it can't be stopped");
	else if (has_capability(CAPABILITY_KILL))
		probe_ok(probe, "VMMs of all users (CAP_KILL)");
	else
		probe_degraded(probe, 0, "only VMMs of user %u, who runs this (no CAP_KILL)", geteuid());
}

static void probe_proc(struct probe *probe)
{
	char line[512], path[64];
	int r = read_line("/proc/self/stat", line, sizeof line);

	if (r < 0) {
		probe_missing(probe, r, "/proc/self/stat can't be read: %s", strerror(-r));
		return;
	}
	snprintf(path, sizeof path, "/proc/%d/stat", 1);
	r = read_line(path, line, sizeof line);
	if (r < 0)
		probe_degraded(probe, r, "other users' processes are hidden (hidepid)");
	else
		probe_ok(probe, "/proc shows where VMMs' threads run");
}

static void probe_watch(struct probe *probe)
{
	_cleanup_close_ int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);

	if (fd < 0)
		probe_missing(probe, -errno, "inotify_init1 failed: %s", strerror(errno));
	else
		probe_ok(probe, "inotify tells of changes");
}

/* A file of this process's own that nobody has open for writing. fd or negative errno. */
static int open_readonly_file(void)
{
	char path[64];
	_cleanup_close_ int file = memfd_create("faultline-doctor", MFD_CLOEXEC);

	if (file < 0)
		return -errno;
	snprintf(path, sizeof path, "/proc/self/fd/%d", file);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static void probe_lease(struct probe *probe)
{
	_cleanup_close_ int fd = open_readonly_file();
	long long enabled = 1;

	read_number("/proc/sys/fs/leases-enable", &enabled);
	if (fd < 0)
		probe_missing(probe, fd, "no file to try it on: %s", strerror(-fd));
	else if (fcntl(fd, F_SETLEASE, F_RDLCK) < 0)
		probe_missing(probe, -errno, "a read lease is refused: %s%s", strerror(errno),
			      enabled ? "" : " (fs.leases-enable=0)");
	else
		probe_ok(probe, "a file can be leased; on images it also takes a local filesystem, and no writer");
}

const struct check process_checks[] = {
	{ .name = "pidfd",
	  .title = "stopping by pidfd",
	  .uses = DOCTOR_SERVING,
	  .required = DOCTOR_SERVING,
	  .probe = probe_pidfd,
	  .cost = "forks are refused, since their VMMs could not be stopped when pages can't be read",
	  .remedy = "run Linux 5.3 or newer, and allow pidfd_open and pidfd_send_signal in seccomp filters" },
	{ .name = "peer_pidfd",
	  .title = "pidfd of a peer",
	  .uses = DOCTOR_SERVING,
	  .probe = probe_peer_pidfd,
	  .cost = "a pid that is used again within microseconds of a connection could be taken for the VMM's",
	  .remedy = "run Linux 6.5 or newer" },
	{ .name = "stop_vmms",
	  .title = "whom it may stop",
	  .uses = DOCTOR_SERVING,
	  .probe = probe_kill,
	  .cost = "a VMM of another user whose pages can't be read is left standing",
	  .remedy = "run the server as root or with CAP_KILL (systemd: AmbientCapabilities=CAP_KILL), outside of user "
		    "namespaces" },
	{ .name = "proc",
	  .title = "/proc",
	  .uses = DOCTOR_SERVING,
	  .probe = probe_proc,
	  .cost = "pagers don't know on which CPU a fork runs, and a fault served from another one takes several times "
		  "as long",
	  .remedy = "mount -o remount,hidepid=0 /proc, or run the server as root" },
	{ .name = "image_watch",
	  .title = "watching images",
	  .uses = DOCTOR_SERVING,
	  .required = DOCTOR_SERVING,
	  .probe = probe_watch,
	  .cost = "the server doesn't start: it could not tell when an image changes",
	  .remedy = "sysctl fs.inotify.max_user_instances=1024, or end programs that use inotify" },
	{ .name = "image_lease",
	  .title = "leases on images",
	  .uses = DOCTOR_SERVING,
	  .probe = probe_lease,
	  .cost = "each page copied takes one system call more",
	  .remedy = "sysctl fs.leases-enable=1" },
	{ 0 },
};
