/* The replaying process from the outside: see guest.h. */
#include "replay/guest.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "replay/internal.h"

/* A server that lives takes a connection at once; one that is stopped never does. */
#define HANDSHAKE_S 60

struct replay_guest {
	pid_t pid;
	int talk;
	struct replay_shared *shared;
	size_t shared_size;
	const struct replay_config *config;
};

void replay_free(struct replay_guest *guest)
{
	if (!guest)
		return;
	if (guest->pid > 0) {
		kill(guest->pid, SIGKILL);
		while (waitpid(guest->pid, NULL, 0) < 0 && errno == EINTR)
			;
	}
	if (guest->talk >= 0)
		close(guest->talk);
	if (guest->shared)
		munmap(guest->shared, guest->shared_size);
	free(guest);
}

static int no_memory(struct error *err)
{
	return error_set(err, -ENOMEM, "no_memory", "there is not enough memory for the replay");
}

/* Its process has ended without a word: the server kills a VMM that it can't serve on. */
static int died(struct replay_guest *guest, struct error *err)
{
	int status = 0;

	while (waitpid(guest->pid, &status, 0) < 0 && errno == EINTR)
		;
	guest->pid = 0;
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && replay_is_served(guest->config))
		return error_set(err, -EPIPE, "server_gone",
				 "the guest was killed while it ran, as a page server does to its VMs when it stops or can't serve "
				 "them on: see its log");
	if (WIFSIGNALED(status))
		return error_set(err, -ECHILD, "guest_failed", "the guest's process was killed by signal %d",
				 WTERMSIG(status));
	return error_set(err, -ECHILD, "guest_failed", "the guest's process ended by itself, with exit status %d",
			 WEXITSTATUS(status));
}

/* Waits for a letter of the guest's. TIMEOUT_MS as poll's. */
static int hear(struct replay_guest *guest, char expected, int timeout_ms, struct error *err)
{
	struct pollfd p[] = {
		{ .fd = guest->talk, .events = POLLIN },
		{ .fd = guest->config->interrupt_fd, .events = POLLIN },
	};
	char letter;
	int n;

	do
		n = poll(p, 2, timeout_ms);
	while (n < 0 && errno == EINTR);
	if (n == 0)
		return error_set(err, -ETIMEDOUT, "server_gone",
				 "the page server at %s has not taken the connection in %d s: it is stuck, or stopped",
				 guest->config->socket, HANDSHAKE_S);
	if (p[1].revents)
		return error_set(err, -EINTR, "interrupted", "interrupted");
	if (read(guest->talk, &letter, 1) != 1)
		return died(guest, err);
	if (letter == expected)
		return 0;
	*err = guest->shared->error;
	return -EIO;
}

static int start_process(struct replay_guest *guest, struct error *err)
{
	int talk[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, talk) < 0)
		return error_set(err, -errno, "guest_failed", "socketpair: %s", strerror(errno));
	fflush(NULL);
	pid_t pid = fork();
	if (pid == 0) {
		close(talk[0]);
		guest_process(guest->config, guest->shared, talk[1]);
	}
	int error = errno;
	close(talk[1]);
	guest->talk = talk[0];
	if (pid < 0)
		return error_set(err, -error, "guest_failed", "cannot start the guest's process: %s", strerror(error));
	guest->pid = pid;
	return 0;
}

int replay_start(const struct replay_config *config, struct replay_guest **ret, struct error *err)
{
	_cleanup_replay_guest_ struct replay_guest *guest = calloc(1, sizeof *guest);
	struct replay_shared *shared;

	if (!guest)
		return no_memory(err);
	guest->talk = -1;
	guest->config = config;
	guest->shared_size = sizeof *shared + config->trace->count * sizeof *shared->records;
	shared = mmap(NULL, guest->shared_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		return no_memory(err);
	guest->shared = shared;
	int r = start_process(guest, err);
	if (r >= 0)
		r = hear(guest, SAY_CONNECTED, replay_is_served(config) ? HANDSHAKE_S * 1000 : -1, err);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(guest);
	return 0;
}

/* Goes through a guest's records in the trace's order, in which they stand within each lane. */
struct cursor {
	const struct replay_guest *guest;
	size_t next[TRACE_VCPUS_MAX];
};

static struct cursor cursor_at_start(const struct replay_guest *guest)
{
	struct cursor cursor = { .guest = guest };

	for (unsigned l = 0; l < guest->shared->lane_count; l++)
		cursor.next[l] = guest->shared->lanes[l].first;
	return cursor;
}

static const struct touch_record *cursor_step(struct cursor *cursor, const struct trace_touch *touch)
{
	return &cursor->guest->shared->records[cursor->next[lane_of(cursor->guest->config, touch)]++];
}

void replay_touch_times(const struct replay_guest *guest, uint64_t *started_ns, uint64_t *ended_ns)
{
	const struct trace *trace = guest->config->trace;
	struct cursor cursor = cursor_at_start(guest);

	for (size_t i = 0; i < trace->count; i++) {
		const struct touch_record *record = cursor_step(&cursor, &trace->touches[i]);

		if (started_ns)
			started_ns[i] = record->started_ns;
		if (ended_ns)
			ended_ns[i] = record->ended_ns;
	}
}

static void print_touches(const struct replay_guest *guest, FILE *f)
{
	const struct trace *trace = guest->config->trace;
	struct cursor cursor = cursor_at_start(guest);

	fputs("page,vcpu,kind,at_ns,started_ns,ended_ns\n", f);
	for (size_t i = 0; i < trace->count; i++) {
		const struct trace_touch *touch = &trace->touches[i];
		const struct touch_record *record = cursor_step(&cursor, touch);

		fprintf(f, "%" PRIu32 ",%u,%c,%" PRIu64 ",%" PRIu64 ",%" PRIu64 "\n", touch->page, touch->vcpu,
			touch->kind, touch->at, record->started_ns, record->ended_ns);
	}
}

int replay_write_touches(const struct replay_guest *guest, const char *path, struct error *err)
{
	FILE *f = fopen(path, "we");
	int error = f ? 0 : errno;

	if (f) {
		print_touches(guest, f);
		error = ferror(f) ? EIO : 0;
		error = fclose(f) && errno ? errno : error;
	}
	if (error)
		return error_set(err, -error, error == ENOSPC ? "disk_full" : "io_error", "cannot write %s: %s", path,
				 strerror(error));
	return 0;
}

/* Tells it to do something, and waits until it is done. */
static int lead(struct replay_guest *guest, char letter, struct error *err)
{
	/* Where it has died meanwhile, hear says so. */
	(void)!send(guest->talk, &letter, 1, MSG_NOSIGNAL);
	return hear(guest, SAY_DONE, -1, err);
}

int replay_run(struct replay_guest *guest, struct replay_result *ret, struct error *err)
{
	int r = lead(guest, SAY_RUN, err);

	if (r >= 0 && guest->config->on_ran)
		r = guest->config->on_ran(guest->config->data, err);
	if (r >= 0)
		r = lead(guest, SAY_CHECK, err);
	if (r < 0)
		return r;
	*ret = guest->shared->result;
	return 0;
}

int replay_linger(struct replay_guest *guest, struct error *err)
{
	int r = lead(guest, SAY_LINGER, err);

	if (r >= 0 && guest->shared->wrong.count)
		return error_set(err, -EBADMSG, "wrong_page", "page %" PRIu64 " is wrong from byte %u on: %s",
				 guest->shared->wrong.page, guest->shared->wrong.byte, guest->shared->wrong.what);
	return r;
}
