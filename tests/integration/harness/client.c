#include "integration/harness/client.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/check.h"

/* The test is single-threaded: this is its list of children. */
static struct client *clients;

static void __attribute__((noreturn))
run_child(struct client_self *self, void (*body)(struct client_self *, void *), void *data, pid_t parent)
{
	static const int restored[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGSYS, SIGTERM, SIGINT };

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	/* cmocka's handlers would carry on with the parent's test in the child. */
	for (size_t i = 0; i < sizeof restored / sizeof *restored; i++)
		signal(restored[i], SIG_DFL);
	for (struct client *c = clients; c; c = c->next)
		close(c->talk);
	body(self, data);
	_exit(0);
}

struct client *client_start(const char *name, void (*body)(struct client_self *, void *), void *data)
{
	return client_start_sized(name, 0, body, data);
}

struct client *client_start_sized(const char *name, size_t values, void (*body)(struct client_self *, void *),
				  void *data)
{
	struct client *client = calloc(1, sizeof *client);
	int ends[2];

	if (!client || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		fail_msg("cannot start client %s: %s", name, strerror(errno));
	client->shared_size = sizeof *client->shared + values * sizeof(uint64_t);
	client->shared = mmap(NULL, client->shared_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (client->shared == MAP_FAILED)
		fail_msg("cannot share memory with client %s: %s", name, strerror(errno));
	snprintf(client->name, sizeof client->name, "%s", name);

	fflush(NULL);
	pid_t parent = getpid();
	client->pid = fork();
	if (client->pid < 0)
		fail_msg("cannot fork client %s: %s", name, strerror(errno));
	if (client->pid == 0) {
		struct client_self self = { .talk = ends[1], .shared = client->shared };

		close(ends[0]);
		run_child(&self, body, data, parent);
	}
	close(ends[1]);
	client->talk = ends[0];
	client->pidfd = (int)syscall(SYS_pidfd_open, client->pid, 0);
	if (client->pidfd < 0)
		fail_msg("pidfd_open for client %s: %s", name, strerror(errno));
	client->next = clients;
	clients = client;
	return client;
}

void client_say(struct client_self *self, char letter)
{
	if (write(self->talk, &letter, 1) != 1)
		_exit(1);
}

void client_hear(struct client_self *self, char letter)
{
	char got;
	ssize_t n;

	do
		n = read(self->talk, &got, 1);
	while (n < 0 && errno == EINTR);
	if (n != 1)
		_exit(1);
	client_require(self, got == letter, "was told '%c' where it waited for '%c'", got, letter);
}

void client_fail(struct client_self *self, const char *format, ...)
{
	int none = 0;

	if (atomic_compare_exchange_strong(&self->shared->failed, &none, 1)) {
		va_list args;

		va_start(args, format);
		vsnprintf(self->shared->message, sizeof self->shared->message, format, args);
		va_end(args);
		_exit(1);
	}
	/* Another thread is writing its message and will end the process. */
	for (;;)
		pause();
}

static void forget(struct client *client)
{
	for (struct client **at = &clients; *at; at = &(*at)->next)
		if (*at == client) {
			*at = client->next;
			break;
		}
	close(client->talk);
	close(client->pidfd);
	munmap(client->shared, client->shared_size);
	free(client);
}

/* Waits for the end; the status of waitpid, or -1 if it hasn't ended by then. Ended children are reaped once. */
static int wait_end(struct client *client, double within)
{
	struct pollfd p = { .fd = client->pidfd, .events = POLLIN };
	uint64_t deadline = deadline_in(within);
	int status;

	while (poll(&p, 1, deadline_ms(deadline)) < 0)
		if (errno != EINTR)
			return -1;
	if (!(p.revents & POLLIN))
		return -1;
	return waitpid(client->pid, &status, 0) == client->pid ? status : -1;
}

static void describe(int status, char *text, size_t size)
{
	if (WIFSIGNALED(status))
		snprintf(text, size, "was killed by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
	else
		snprintf(text, size, "exited with %d", WEXITSTATUS(status));
}

static void __attribute__((noreturn)) fail_ended(struct client *client, int status, const char *where)
{
	char name[sizeof client->name], message[sizeof client->shared->message], how[100];

	describe(status, how, sizeof how);
	snprintf(name, sizeof name, "%s", client->name);
	snprintf(message, sizeof message, "%s", client->shared->message);
	forget(client);
	fail_msg("client %s %s %s%s%s", name, how, where, *message ? ": " : "", message);
	abort();
}

/* Says where each thread of a hanging client stands, and ends it. */
static void __attribute__((noreturn)) fail_hanging(struct client *client, const char *doing)
{
	char name[sizeof client->name], waits[200] = "";

	for (int fd = 3; fd < 64; fd++) {
		unsigned pending, total;

		if (uffd_waiters(client->pid, fd, &pending, &total) && total)
			snprintf(waits, sizeof waits, "; its userfaultfd %d has %u faults unread and %u unresolved", fd,
				 pending, total);
	}
	snprintf(name, sizeof name, "%s", client->name);
	kill(client->pid, SIGKILL);
	wait_end(client, WAIT_S);
	forget(client);
	fail_msg("client %s hangs: waited %d s for it to %s%s", name, WAIT_S, doing, waits);
	abort();
}

bool client_await_or_death(struct client *client, char letter)
{
	struct pollfd p[] = {
		{ .fd = client->talk, .events = POLLIN },
		{ .fd = client->pidfd, .events = POLLIN },
	};
	uint64_t deadline = deadline_in(WAIT_S);
	char got, doing[24];

	for (;;) {
		int n = poll(p, 2, deadline_ms(deadline));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			snprintf(doing, sizeof doing, "say '%c'", letter);
			fail_hanging(client, doing);
		}
		/* What it said before it ended counts. */
		if ((p[0].revents & POLLIN) && recv(client->talk, &got, 1, MSG_DONTWAIT) == 1) {
			if (got != letter)
				fail_msg("client %s said '%c' instead of '%c'", client->name, got, letter);
			return true;
		}
		if (p[1].revents)
			return false;
		if (p[0].revents) /* closed, but the process is not gone yet */
			p[0].fd = -1;
	}
}

void client_await(struct client *client, char letter)
{
	char where[48];

	if (client_await_or_death(client, letter))
		return;
	snprintf(where, sizeof where, "before it said '%c'", letter);
	fail_ended(client, wait_end(client, WAIT_S), where);
}

void client_tell(struct client *client, char letter)
{
	/* To one that has ended this goes nowhere: whoever waits for it next says so. */
	(void)!send(client->talk, &letter, 1, MSG_NOSIGNAL);
}

uint64_t client_counter(const struct client *client, unsigned index)
{
	return client->shared->counter[index];
}

void client_await_counter(struct client *client, unsigned index, uint64_t value)
{
	uint64_t deadline = deadline_in(WAIT_S);

	while (client_counter(client, index) < value) {
		struct pollfd p = { .fd = client->pidfd, .events = POLLIN };

		/* One that has ended may have counted that far first. */
		if (poll(&p, 1, 1) > 0 && client_counter(client, index) < value)
			fail_ended(client, wait_end(client, WAIT_S), "before it got that far");
		if (!deadline_ms(deadline))
			fail_hanging(client, "get further");
	}
}

void client_await_end(struct client *client)
{
	struct pollfd p = { .fd = client->pidfd, .events = POLLIN };
	uint64_t deadline = deadline_in(WAIT_S);

	while (poll(&p, 1, deadline_ms(deadline)) <= 0)
		if (!deadline_ms(deadline))
			fail_hanging(client, "end");
}

void client_join(struct client *client)
{
	int status = wait_end(client, WAIT_S);

	if (status == -1)
		fail_hanging(client, "end");
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		fail_ended(client, status, "where it should have ended well");
	forget(client);
}

void client_join_killed(struct client *client)
{
	int status = wait_end(client, WAIT_S);

	if (status == -1)
		fail_hanging(client, "be killed");
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		fail_ended(client, status, "where it should have been killed");
	forget(client);
}

bool client_join_any(struct client *client)
{
	int status = wait_end(client, WAIT_S);
	bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;

	if (status == -1)
		fail_hanging(client, "end or be killed");
	if (!killed && (!WIFEXITED(status) || WEXITSTATUS(status)))
		fail_ended(client, status, "where it should have ended well or been killed");
	forget(client);
	return killed;
}

void client_kill(struct client *client)
{
	int status;

	kill(client->pid, SIGKILL);
	status = wait_end(client, WAIT_S);
	if (status == -1)
		fail_hanging(client, "die of SIGKILL");
	if (WIFEXITED(status) && WEXITSTATUS(status))
		fail_ended(client, status, "before it was killed");
	forget(client);
}

bool client_has_ended(struct client *client)
{
	struct pollfd p = { .fd = client->pidfd, .events = POLLIN };

	return poll(&p, 1, 0) > 0;
}

void client_kill_all(void)
{
	while (clients) {
		kill(clients->pid, SIGKILL);
		if (wait_end(clients, WAIT_S) == -1)
			print_error("client %s (pid %d) does not die of SIGKILL\n", clients->name, clients->pid);
		forget(clients);
	}
}

bool uffd_waiters(pid_t pid, int fd, unsigned *ret_pending, unsigned *ret_total)
{
	unsigned pending = 0, total = 0, found = 0;
	char path[64], line[128];

	snprintf(path, sizeof path, "/proc/%d/fdinfo/%d", (int)pid, fd);
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	if (!f)
		return false;
	while (fgets(line, sizeof line, f))
		found += sscanf(line, "pending: %u", &pending) == 1 || sscanf(line, "total: %u", &total) == 1;
	*ret_pending = pending;
	*ret_total = total;
	return found == 2;
}

/* Threads of the process that run or want to. */
static unsigned running_threads(pid_t pid)
{
	unsigned count = 0;
	char path[400], line[512];

	snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
	DIR *dir = opendir(path);
	for (struct dirent *entry; dir && (entry = readdir(dir));) {
		snprintf(path, sizeof path, "/proc/%d/task/%s/stat", (int)pid, entry->d_name);
		_cleanup_fclose_ FILE *f = entry->d_name[0] == '.' ? NULL : fopen(path, "re");
		if (!f || !fgets(line, sizeof line, f))
			continue;
		const char *state = strrchr(line, ')');
		count += state && state[2] == 'R';
	}
	if (dir)
		closedir(dir);
	return count;
}

void client_await_still(struct client *client, unsigned index)
{
	uint64_t deadline = deadline_in(WAIT_S), count = 0;
	unsigned still = 0;

	/* Asleep ten times in a row without an action in between: a thread that waits for a lock is not taken for stuck. */
	while (still < 10) {
		struct pollfd p = { .fd = client->pidfd, .events = POLLIN };

		if (poll(&p, 1, 1) > 0)
			fail_ended(client, wait_end(client, WAIT_S), "where it should have stood still");
		uint64_t now = client_counter(client, index);
		still = running_threads(client->pid) == 0 && now == count ? still + 1 : 0;
		count = now;
		if (!deadline_ms(deadline))
			fail_hanging(client, "stand still");
	}
}

bool client_await_stuck(struct client *client, int fd, unsigned count, double within)
{
	uint64_t deadline = deadline_in(within);
	unsigned pending, total = 0;

	while (deadline_ms(deadline)) {
		struct pollfd p = { .fd = client->pidfd, .events = POLLIN };

		if (uffd_waiters(client->pid, fd, &pending, &total) && total >= count)
			return true;
		if (poll(&p, 1, 2) > 0)
			return false;
	}
	return false;
}
