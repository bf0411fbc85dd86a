/* Starting a command and ending it: see child.h. */
#include "cli/child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"

static void reset_signals(void)
{
	sigset_t none;

	/* Ours is blocked to be read, and ignored where an error is better than a death: neither is the command's business. */
	signal(SIGXFSZ, SIG_DFL);
	signal(SIGPIPE, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Pipes between us and the new process: it waits for the end of GO, and FAILED tells why it could not become the command. */
struct pipes {
	int go[2], failed[2];
};

static void pipes_close(struct pipes *pipes)
{
	for (int i = 0; i < 2; i++) {
		cleanup_close(&pipes->go[i]);
		cleanup_close(&pipes->failed[i]);
	}
}

/* In the child. */
static void __attribute__((noreturn))
become(const char *const *argv, const struct child_variable *variables, pid_t parent, struct pipes *pipes)
{
	int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC), failed = pipes->failed[1];
	char go;

	setpgid(0, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(127);
	if (nothing >= 0)
		dup2(nothing, STDIN_FILENO);
	dup2(STDERR_FILENO, STDOUT_FILENO);
	for (const struct child_variable *v = variables; v->name; v++)
		setenv(v->name, v->value, !v->keep);
	reset_signals();
	close(pipes->go[1]);
	while (read(pipes->go[0], &go, 1) < 0 && errno == EINTR)
		;
	execvp(argv[0], (char *const *)argv);

	int error = errno;
	if (write(failed, &error, sizeof error) < 0)
		_exit(126);
	_exit(127);
}

static int exec_failed(const char *name, int error, struct error *err)
{
	if (error == ENOENT)
		return error_set(err, -error, "command_unknown",
				 strchr(name, '/')
					 ? "cannot start '%s': there is no such file, or its interpreter is missing"
					 : "cannot start '%s': there is no such command in PATH",
				 name);
	return error_set(err, -error, "command_failed", "cannot start '%s': %s", name, strerror(error));
}

#define WAITING_MS 20

/* Waits for the exec. 0, or what it failed with. */
static int await_exec(int failed, const struct child_hold *hold)
{
	struct pollfd p = { .fd = failed, .events = POLLIN };
	bool called = hold && hold->waiting;
	int error = 0;
	ssize_t n;

	while (poll(&p, 1, called ? WAITING_MS : -1) <= 0)
		if (called)
			hold->waiting(hold->data);
	do
		n = read(failed, &error, sizeof error);
	while (n < 0 && errno == EINTR);
	return n == sizeof error ? error : 0;
}

int child_start_held(const char *const *argv, const struct child_variable *variables, const struct child_hold *hold,
		     struct child *ret, struct error *err)
{
	_cleanup_(pipes_close) struct pipes pipes = { { -1, -1 }, { -1, -1 } };
	pid_t parent = getpid();

	if (pipe2(pipes.go, O_CLOEXEC) < 0 || pipe2(pipes.failed, O_CLOEXEC) < 0)
		return error_set(err, -errno, "command_failed", "cannot start '%s': %s", argv[0], strerror(errno));
	fflush(NULL);
	pid_t pid = fork();
	if (pid == 0)
		become(argv, variables, parent, &pipes);
	if (pid < 0)
		return error_set(err, -errno, "command_failed", "cannot start a process for '%s': %s", argv[0],
				 strerror(errno));
	/* Here too, so that it has its group before anybody could want to end that. */
	setpgid(pid, pid);

	struct child child = { .pid = pid, .pidfd = (int)syscall(SYS_pidfd_open, pid, 0), .name = argv[0] };
	int error = child.pidfd < 0 ? ENOSYS : 0, r = error || !hold ? 0 : hold->held(pid, hold->data, err);

	close(TAKE_FD(pipes.go[1]));
	close(TAKE_FD(pipes.failed[1]));
	if (!error && r >= 0)
		error = await_exec(pipes.failed[0], hold);
	if (error || r < 0) {
		child_end(&child, 0, -1);
		return r < 0 ? r : exec_failed(argv[0], error, err);
	}
	*ret = child;
	return 0;
}

int child_start(const char *const *argv, const struct child_variable *variables, struct child *ret, struct error *err)
{
	return child_start_held(argv, variables, NULL, ret, err);
}

int child_end(struct child *child, double grace_s, int impatient)
{
	struct pollfd events[] = {
		{ .fd = child->pidfd, .events = POLLIN },
		{ .fd = impatient, .events = POLLIN },
	};
	int status = 0, n = 0;

	if (!child->pid)
		return 0;
	/* As long as it hasn't been waited for, its number can't be another's: nobody else is hit. */
	kill(-child->pid, SIGTERM);
	if (child->pidfd >= 0 && grace_s > 0)
		do
			n = poll(events, 2, (int)(grace_s * 1000));
		while (n < 0 && errno == EINTR);
	/* What it started and left behind goes in any case. */
	kill(-child->pid, SIGKILL);
	/* Of a process that is traced, stops come as well. */
	while ((waitpid(child->pid, &status, 0) < 0 && errno == EINTR) || WIFSTOPPED(status))
		;
	if (child->pidfd >= 0)
		close(child->pidfd);
	*child = (struct child)CHILD_NONE;
	return status;
}

void child_describe(int status, char *buffer, size_t size)
{
	if (WIFSIGNALED(status))
		snprintf(buffer, size, "was killed by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
	else
		snprintf(buffer, size, "exited with status %d", WEXITSTATUS(status));
}

int child_exit_code(int status)
{
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}
