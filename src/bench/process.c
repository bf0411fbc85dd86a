#include "bench/process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"

/* How often a wait looks whether those that it depends on still live. */
#define CHECK_NS (500 * NSEC_PER_MSEC)

/* ---- the run ---- */

int processes_open(struct processes *all, struct error *err)
{
	sigset_t set;

	*all = (struct processes){ .stop_fd = -1 };
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	if (sigprocmask(SIG_BLOCK, &set, &all->before) < 0)
		return error_set(err, -errno, "bench_failed", "can't block signals: %s", strerror(errno));
	all->stop_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (all->stop_fd < 0) {
		int r = -errno;
		sigprocmask(SIG_SETMASK, &all->before, NULL);
		return error_set(err, r, "bench_failed", "can't make a signalfd: %s", strerror(-r));
	}
	return 0;
}

void processes_kill(struct processes *all)
{
	while (all->list)
		process_kill(all, all->list);
}

void processes_close(struct processes *all)
{
	if (all->stop_fd < 0)
		return;
	processes_kill(all);
	close(TAKE_FD(all->stop_fd));
	sigprocmask(SIG_SETMASK, &all->before, NULL);
}

static int interrupted(struct error *err)
{
	return error_set(err, -EINTR, "interrupted", "the benchmark was interrupted");
}

int processes_check_stop(struct processes *all, struct error *err)
{
	struct pollfd stop = { .fd = all->stop_fd, .events = POLLIN };

	return poll(&stop, 1, 0) > 0 ? interrupted(err) : 0;
}

/* How PROCESS ended, once it has been reaped with STATUS. */
static int describe_end(const struct process *process, int status, struct error *err)
{
	if (process->shared->error.code[0]) {
		if (err)
			*err = process->shared->error;
		return error_prefix(err, -EPROTO, "%s: ", process->name);
	}
	if (WIFSIGNALED(status))
		return error_set(err, -EPROTO, "bench_failed",
				 "%s was ended by signal %d (%s); the server's messages say more", process->name,
				 WTERMSIG(status), strsignal(WTERMSIG(status)));
	return error_set(err, -EPROTO, "bench_failed", "%s ended with status %d", process->name, WEXITSTATUS(status));
}

int processes_check_steady(struct processes *all, struct error *err)
{
	for (struct process *p = all->list; p; p = p->next) {
		int status;

		if (p->steady && p->pid > 0 && waitpid(p->pid, &status, WNOHANG) == p->pid) {
			p->pid = 0;
			return describe_end(p, status, err);
		}
	}
	return 0;
}

int processes_wait(struct processes *all, int fd, uint64_t timeout_ns, struct error *err)
{
	struct pollfd fds[] = { { .fd = all->stop_fd, .events = POLLIN }, { .fd = fd, .events = POLLIN } };
	uint64_t end = now_ns() + timeout_ns;

	for (;;) {
		uint64_t now = now_ns(), left = now < end ? end - now : 0;
		int r = processes_check_steady(all, err);

		if (r < 0)
			return r;
		if (left > CHECK_NS && fd >= 0)
			left = CHECK_NS;
		struct timespec timeout = { .tv_sec = (time_t)(left / NSEC_PER_SEC),
					    .tv_nsec = (long)(left % NSEC_PER_SEC) };
		int n = ppoll(fds, 2, &timeout, NULL);

		if (n < 0 && errno != EINTR)
			return error_set(err, -errno, "bench_failed", "can't poll: %s", strerror(errno));
		if (n > 0 && fds[0].revents)
			return interrupted(err);
		if (n > 0)
			return 0;
		if (n == 0 && now >= end)
			return fd < 0 ? 0
				      : error_set(err, -ETIMEDOUT, "bench_failed", "waited in vain for %llu s",
						  (unsigned long long)(timeout_ns / NSEC_PER_SEC));
	}
}

/* ---- starting ---- */

static void process_free(struct processes *all, struct process *process)
{
	for (struct process **p = &all->list; *p; p = &(*p)->next) {
		if (*p == process) {
			*p = process->next;
			break;
		}
	}
	if (process->talk >= 0)
		close(process->talk);
	if (process->shared)
		munmap(process->shared, sizeof *process->shared);
	free(process);
}

/* A child's first steps: it dies with its parent, and a Ctrl-C at the terminal is for the parent alone. */
static void settle_in(const struct processes *all, pid_t parent, int death_signal)
{
	struct sigaction plain = { .sa_handler = SIG_DFL };

	prctl(PR_SET_PDEATHSIG, death_signal);
	if (getppid() != parent)
		_exit(1);
	setpgid(0, 0);
	sigaction(SIGINT, &plain, NULL);
	sigprocmask(SIG_SETMASK, &all->before, NULL);
}

/* Puts FDS at CHILD_TALK and up, and closes all others. */
static int arrange_fds(const int *fds, unsigned count)
{
	unsigned end = CHILD_TALK + count;
	_cleanup_free_ int *high = calloc(count, sizeof *high);

	if (!high)
		return -ENOMEM;
	for (unsigned i = 0; i < count; i++) {
		high[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, (int)end);
		if (high[i] < 0)
			return -errno;
	}
	for (unsigned i = 0; i < count; i++)
		if (dup3(high[i], (int)(CHILD_TALK + i), O_CLOEXEC) < 0)
			return -errno;
	return close_range(end, ~0u, 0) < 0 ? -errno : 0;
}

static void run_body(const int *fds, unsigned fd_count, child_body *body, const void *data, struct child_shared *shared)
	__attribute__((noreturn));
static void run_body(const int *fds, unsigned fd_count, child_body *body, const void *data, struct child_shared *shared)
{
	struct error err = { 0 };
	int r = arrange_fds(fds, fd_count);

	if (r < 0)
		error_set(&err, r, "bench_failed", "can't arrange file descriptors: %s", strerror(-r));
	else
		r = body(data, shared->result, &err);
	if (r < 0)
		shared->error = err;
	_exit(r < 0);
}

static int process_new(const char *name, struct process **ret, struct error *err)
{
	struct process *process = calloc(1, sizeof *process);
	void *shared =
		mmap(NULL, sizeof(struct child_shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (!process || shared == MAP_FAILED) {
		free(process);
		return error_set(err, -ENOMEM, "bench_failed", "there is not enough memory for another process");
	}
	snprintf(process->name, sizeof process->name, "%s", name);
	process->talk = -1;
	process->shared = shared;
	*ret = process;
	return 0;
}

static int fork_failed(struct processes *all, struct process *process, struct error *err)
{
	int r = -errno;

	error_set(err, r, "bench_failed",
		  "can't start the process of %s: %s; if there are too many, see ulimit -u, ulimit -n and pids.max",
		  process->name, strerror(-r));
	process_free(all, process);
	return r;
}

static void enlist(struct processes *all, struct process *process, pid_t pid)
{
	process->pid = pid;
	process->next = all->list;
	all->list = process;
}

int process_start(struct processes *all, const char *name, const int *fds, unsigned fd_count, child_body *body,
		  const void *data, struct process **ret, struct error *err)
{
	struct process *process;
	int r = processes_check_stop(all, err), talk[2];

	if (r == 0)
		r = process_new(name, &process, err);
	if (r < 0)
		return r;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, talk) < 0)
		return fork_failed(all, process, err);
	process->talk = talk[0];

	_cleanup_close_ int theirs = talk[1];
	_cleanup_free_ int *kept = calloc(fd_count + 1, sizeof *kept);
	if (!kept) {
		errno = ENOMEM;
		return fork_failed(all, process, err);
	}
	kept[0] = theirs;
	for (unsigned i = 0; i < fd_count; i++)
		kept[1 + i] = fds[i];

	pid_t parent = getpid(), pid = fork();
	if (pid < 0)
		return fork_failed(all, process, err);
	if (pid == 0) {
		settle_in(all, parent, SIGKILL);
		prctl(PR_SET_NAME, name); /* for top and ps */
		run_body(kept, fd_count + 1, body, data, process->shared);
	}
	enlist(all, process, pid);
	*ret = process;
	return 0;
}

static int start_program(struct processes *all, const char *name, char *const argv[], char *environment, int output,
			 struct process **ret, struct error *err)
{
	struct process *process;
	int r = processes_check_stop(all, err);

	if (r == 0)
		r = process_new(name, &process, err);
	if (r < 0)
		return r;

	pid_t parent = getpid(), pid = fork();
	if (pid < 0)
		return fork_failed(all, process, err);
	if (pid == 0) {
		settle_in(all, parent, SIGTERM);
		if (environment)
			putenv(environment);
		if (output >= 0)
			dup2(output, STDOUT_FILENO);
		execv(argv[0], argv);
		_exit(127);
	}
	enlist(all, process, pid);
	*ret = process;
	return 0;
}

int process_start_program(struct processes *all, const char *name, char *const argv[], char *environment,
			  struct process **ret, struct error *err)
{
	return start_program(all, name, argv, environment, -1, ret, err);
}

int process_start_writer(struct processes *all, const char *name, char *const argv[], int output, struct process **ret,
			 struct error *err)
{
	return start_program(all, name, argv, NULL, output, ret, err);
}

/* ---- speaking ---- */

/* Reaps. 0 for exit 0, else what the child said, or how it ended. */
static int reap(struct process *process, struct error *err)
{
	int status = 0;

	if (process->pid == 0)
		return 0;
	while (waitpid(process->pid, &status, 0) < 0 && errno == EINTR)
		;
	process->pid = 0;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : describe_end(process, status, err);
}

int process_await(struct processes *all, struct process *process, char letter, struct error *err)
{
	char heard;
	int r = processes_wait(all, process->talk, CHILD_PATIENCE_S * NSEC_PER_SEC, err);

	if (r == -ETIMEDOUT)
		return error_prefix(err, r, "%s hangs, and so may its server: ", process->name);
	if (r < 0)
		return r;
	if (read(process->talk, &heard, 1) == 1 && heard == letter)
		return 0;
	r = reap(process, err);
	process_free(all, process);
	return r < 0 ? r : error_set(err, -EPROTO, "bench_failed", "a client ended early");
}

int process_tell(struct process *process, char letter, struct error *err)
{
	if (send(process->talk, &letter, 1, MSG_NOSIGNAL) == 1)
		return 0;
	return error_set(err, -EPIPE, "bench_failed", "%s has ended early", process->name);
}

int process_join(struct processes *all, struct process *process, struct error *err)
{
	shutdown(process->talk, SHUT_WR);
	int r = processes_wait(all, process->talk, CHILD_PATIENCE_S * NSEC_PER_SEC, err);
	if (r < 0)
		return r;
	return process_reap(all, process, err);
}

int process_reap(struct processes *all, struct process *process, struct error *err)
{
	int r = reap(process, err);

	process_free(all, process);
	return r;
}

int process_await_end(struct processes *all, struct process *process, int *ret_status, struct error *err)
{
	_cleanup_close_ int pidfd = (int)syscall(SYS_pidfd_open, process->pid, 0);
	int status = 0;

	if (pidfd < 0)
		return error_set(err, -errno, "bench_failed", "pidfd_open failed: %s", strerror(errno));
	int r = processes_wait(all, pidfd, CHILD_PATIENCE_S * NSEC_PER_SEC, err);
	if (r == -ETIMEDOUT)
		return error_prefix(err, r, "%s hangs, and so may its server: ", process->name);
	if (r < 0)
		return r;
	while (waitpid(process->pid, &status, 0) < 0 && errno == EINTR)
		;
	process->pid = 0;
	process_free(all, process);
	*ret_status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	return 0;
}

void process_kill(struct processes *all, struct process *process)
{
	if (!process)
		return;
	if (process->pid > 0) {
		kill(process->pid, SIGKILL);
		reap(process, NULL);
	}
	process_free(all, process);
}

bool child_say(char letter)
{
	return send(CHILD_TALK, &letter, 1, MSG_NOSIGNAL) == 1;
}

bool child_hear(char letter)
{
	char heard;
	ssize_t n;

	do
		n = read(CHILD_TALK, &heard, 1);
	while (n < 0 && errno == EINTR);
	return n == 1 && heard == letter;
}
