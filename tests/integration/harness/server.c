#include "integration/harness/server.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/check.h"
#include "integration/harness/client.h"

/* Long enough for a sanitizer build with leak checking on a busy machine. */
#define SERVER_WAIT_S 90

const char *test_fork_socket(const struct test_server *server, const char *id, char path[static SOCKET_PATH_MAX])
{
	if (snprintf(path, SOCKET_PATH_MAX, "%s/%s.uffd", server->run_dir, id) >= SOCKET_PATH_MAX)
		fail_msg("the socket's path is too long");
	return path;
}

void test_server_make_dir(struct test_server *server)
{
	const char *base = getenv("FAULTLINE_TEST_DIR");

	*server = (struct test_server){ .pidfd = -1 };
	/* /var/tmp is a disk where /tmp may be memory, and short enough for a socket's path. */
	snprintf(server->dir, sizeof server->dir, "%s/fl-XXXXXX", base ? base : "/var/tmp");
	if (!mkdtemp(server->dir))
		fail_msg("mkdtemp %s: %s", server->dir, strerror(errno));
	snprintf(server->run_dir, sizeof server->run_dir, "%s/run", server->dir);
	snprintf(server->log, sizeof server->log, "%s/log", server->dir);
}

static int notify_socket(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
	unlink(path);
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
		fail_msg("notify socket %s: %s", path, strerror(errno));
	return fd;
}

static void print_log(const struct test_server *server)
{
	_cleanup_fclose_ FILE *f = fopen(server->log, "re");
	char line[512];

	if (!f)
		return;
	fseek(f, 0, SEEK_END);
	long size = ftell(f);
	fseek(f, size > 6000 ? size - 6000 : 0, SEEK_SET);
	print_error("---- end of the server's log %s\n", server->log);
	while (fgets(line, sizeof line, f))
		print_error("%s", line);
	print_error("----\n");
}

static void await_ready(struct test_server *server, int notify)
{
	uint64_t deadline = deadline_in(SERVER_WAIT_S);
	struct pollfd p[] = {
		{ .fd = notify, .events = POLLIN },
		{ .fd = server->pidfd, .events = POLLIN },
	};

	for (;;) {
		char message[512];
		int n = poll(p, 2, deadline_ms(deadline));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			print_log(server);
			fail_msg("the server did not say READY=1 within %d s", SERVER_WAIT_S);
		}
		if (p[0].revents & POLLIN) {
			ssize_t got = recv(notify, message, sizeof message - 1, 0);

			message[got > 0 ? got : 0] = '\0';
			if (strstr(message, "READY=1"))
				return;
		} else if (p[1].revents) {
			print_log(server);
			fail_msg("the server ended before it was ready");
		}
	}
}

#define SERVE_ARGS_MAX 16

void test_server_start(struct test_server *server)
{
	char *observe = getenv("FAULTLINE_TEST_OBSERVE");

	test_server_start_as(server, observe ? ARGS("--observe", observe) : ARGS(NULL), NULL, NULL);
}

void test_server_start_as(struct test_server *server, char *const extra[], void (*prepare)(void *), void *data)
{
	char *binary = getenv("FAULTLINE"), *args[SERVE_ARGS_MAX] = { binary, "serve", "--run-dir", server->run_dir };
	char path[96];

	for (unsigned i = 0; extra[i]; i++) {
		if (i + 5 >= SERVE_ARGS_MAX)
			fail_msg("too many arguments for the server");
		args[i + 4] = extra[i];
	}

	snprintf(path, sizeof path, "%s/notify", server->dir);
	_cleanup_close_ int notify = notify_socket(path);
	pid_t parent = getpid();

	fflush(NULL);
	server->pid = fork();
	if (server->pid < 0)
		fail_msg("fork: %s", strerror(errno));
	if (server->pid == 0) {
		int log = open(server->log, O_CREAT | O_APPEND | O_WRONLY, 0600);

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
		signal(SIGPIPE, SIG_DFL);
		dup2(log, 1);
		dup2(log, 2);
		setenv("NOTIFY_SOCKET", path, 1);
		if (prepare)
			prepare(data);
		execv(binary, args);
		_exit(127);
	}
	server->pidfd = (int)syscall(SYS_pidfd_open, server->pid, 0);
	if (server->pidfd < 0)
		fail_msg("pidfd_open: %s", strerror(errno));
	await_ready(server, notify);
}

void test_server_signal(struct test_server *server, int signal_number)
{
	if (kill(server->pid, signal_number) < 0)
		fail_msg("kill: %s", strerror(errno));
}

bool test_server_is_alive(const struct test_server *server)
{
	struct pollfd p = { .fd = server->pidfd, .events = POLLIN };

	return server->pidfd >= 0 && poll(&p, 1, 0) == 0;
}

static int wait_end(struct test_server *server, bool *ret_late)
{
	struct pollfd p = { .fd = server->pidfd, .events = POLLIN };
	uint64_t deadline = deadline_in(SERVER_WAIT_S);
	int status = 0;

	while (poll(&p, 1, deadline_ms(deadline)) < 0 && errno == EINTR)
		;
	*ret_late = !(p.revents & POLLIN);
	if (*ret_late)
		kill(server->pid, SIGKILL);
	waitpid(server->pid, &status, 0);
	close(server->pidfd);
	server->pidfd = -1;
	server->pid = 0;
	return status;
}

int test_server_wait_end(struct test_server *server)
{
	bool late;
	int status = wait_end(server, &late);

	if (late) {
		print_log(server);
		fail_msg("the server had not ended after %d s", SERVER_WAIT_S);
	}
	return status;
}

size_t test_server_memory(const struct test_server *server)
{
	char path[64], line[128];
	unsigned long kib = 0;

	snprintf(path, sizeof path, "/proc/%d/status", (int)server->pid);
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "RssAnon: %lu kB", &kib) == 1)
			return kib << 10;
	fail_msg("cannot find RssAnon in %s", path);
	return 0;
}

static const char *sanitizer_report(const struct test_server *server, char *line, size_t size)
{
	static const char *const marks[] = { "AddressSanitizer", "LeakSanitizer", "ThreadSanitizer",
					     "runtime error:", "Assertion" };
	_cleanup_fclose_ FILE *f = fopen(server->log, "re");

	while (f && fgets(line, (int)size, f))
		for (size_t i = 0; i < sizeof marks / sizeof *marks; i++)
			if (strstr(line, marks[i]))
				return line;
	return NULL;
}

void test_server_check_log(const struct test_server *server)
{
	char line[1024];

	if (sanitizer_report(server, line, sizeof line)) {
		print_log(server);
		fail_msg("the server's log has a report: %s", line);
	}
}

int test_server_setup(void **state)
{
	struct test_server *server = malloc(sizeof *server);

	*state = server;
	test_server_make_dir(server);
	test_server_start(server);
	return 0;
}

static void remove_dir(const char *dir)
{
	pid_t pid = fork();

	if (pid == 0) {
		execlp("rm", "rm", "-rf", "--one-file-system", dir, NULL);
		_exit(127);
	}
	if (pid > 0)
		waitpid(pid, NULL, 0);
}

int test_server_teardown(void **state)
{
	struct test_server *server = *state;
	char line[1024];
	int bad = 0;

	/* Clients first: what a failed test left over must not hold up the server's end. */
	client_kill_all();
	if (server->pidfd >= 0) {
		bool late;

		kill(server->pid, SIGTERM);
		int status = wait_end(server, &late);
		if (late)
			print_error("the server had not ended %d s after SIGTERM\n", SERVER_WAIT_S);
		else if (WIFSIGNALED(status))
			print_error("the server was killed by signal %d\n", WTERMSIG(status));
		else if (WEXITSTATUS(status))
			print_error("the server exited with %d\n", WEXITSTATUS(status));
		bad = late || status != 0;
	}
	if (sanitizer_report(server, line, sizeof line)) {
		print_error("the server's log has a report: %s\n", line);
		bad = 1;
	}
	if (bad)
		print_log(server);
	if (getenv("FAULTLINE_TEST_KEEP"))
		print_message("kept: %s\n", server->dir);
	else
		remove_dir(server->dir);
	free(server);
	return bad ? -1 : 0;
}
