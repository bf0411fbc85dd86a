/* The guest's process: memory, threads, and a watch over the server for as long as they run. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/clock.h"
#include "replay/internal.h"

/* A server that reads from the slowest disk answers faster than this; one that has lost a fault never does. */
#define STUCK_S 60
/* How often progress is looked at; what ends a run is an event. */
#define WATCH_MS 1000

/* What the handler of SIGBUS needs; set before there are threads. */
static struct {
	struct replay_shared *shared;
	struct memory memory;
	int talk;
} bus;

static void __attribute__((noreturn)) give_up(struct replay_shared *shared, int talk, const struct error *err)
{
	char letter = SAY_FAILED;

	if (!atomic_exchange(&shared->failed, 1)) {
		shared->error = *err;
		(void)!write(talk, &letter, 1);
	}
	_exit(1);
}

/* A page that the server can't read is poisoned: whoever touches it gets this. The process is of no more use. */
static void on_sigbus(int signal, siginfo_t *info, void *context)
{
	uint64_t offset = (uintptr_t)info->si_addr - (uintptr_t)bus.memory.base;
	struct error err;

	(void)context;
	if (offset < bus.memory.size)
		error_set(&err, -EFAULT, "bad_page",
			  "page %" PRIu64 " raised SIGBUS: the image could not be read there", offset / TRACE_PAGE);
	else
		error_set(&err, -EFAULT, "guest_failed", "signal %d outside of the guest's memory", signal);
	give_up(bus.shared, bus.talk, &err);
}

static uint64_t sum_progress(struct replay_shared *shared)
{
	uint64_t sum = 0;

	for (unsigned l = 0; l < shared->lane_count; l++)
		sum += atomic_load_explicit(&shared->lanes[l].progress, memory_order_relaxed);
	return sum;
}

/* The touch that each vCPU is at, as "page 7 (vCPU 0), page 12 (vCPU 1)". */
static void name_next_touches(const struct replay_config *config, struct replay_shared *shared, char *text, size_t size)
{
	size_t at = 0;

	text[0] = '\0';
	for (unsigned l = 0; l < shared->lane_count && at < size; l++) {
		struct lane *lane = &shared->lanes[l];
		size_t next = atomic_load_explicit(&lane->progress, memory_order_relaxed);

		if (next == lane->count)
			continue;
		const struct trace_touch *touch = &config->trace->touches[lane->touches[next]];
		int n = snprintf(text + at, size - at, "%spage %u (vCPU %u)", at ? ", " : "", touch->page, touch->vcpu);
		at += n > 0 ? (size_t)n : 0;
	}
}

static int server_gone(const struct replay_config *config, struct replay_shared *shared, struct error *err)
{
	char where[160];

	name_next_touches(config, shared, where, sizeof where);
	return error_set(err, -EPIPE, "server_gone",
			 "the page server hung up after %" PRIu64 " of %zu touches, before %s: see its log",
			 sum_progress(shared), config->trace->count, where);
}

static int guest_stuck(const struct replay_config *config, struct replay_shared *shared, struct error *err)
{
	char where[160];

	name_next_touches(config, shared, where, sizeof where);
	return error_set(err, -ETIMEDOUT, "guest_stuck",
			 "no touch has ended for %d s, after %" PRIu64 " of %zu: %s not supplied; see the server's log",
			 STUCK_S, sum_progress(shared), config->trace->count, where);
}

/* Until all threads are through. */
static int watch(const struct replay_config *config, struct runner *runner, int connection, struct error *err)
{
	struct pollfd p[] = { { .fd = runner->done_fd, .events = POLLIN }, { .fd = connection, .events = POLLRDHUP } };
	struct replay_shared *shared = runner->shared;
	uint64_t progress = 0, moved_ns = now_ns();

	for (;;) {
		int n = poll(p, 2, WATCH_MS);

		if (n < 0 && errno != EINTR)
			return error_set(err, -errno, "guest_failed", "poll: %s", strerror(errno));
		if (atomic_load(&runner->finished) == shared->lane_count)
			return 0;
		if (n > 0 && p[1].revents)
			return server_gone(config, shared, err);
		if (sum_progress(shared) != progress) {
			progress = sum_progress(shared);
			moved_ns = now_ns();
		} else if (now_ns() - moved_ns > STUCK_S * NSEC_PER_SEC) {
			return guest_stuck(config, shared, err);
		}
	}
}

static int open_done_fd(struct error *err)
{
	int fd = eventfd(0, EFD_CLOEXEC);

	return fd < 0 ? error_set(err, -errno, "guest_failed", "eventfd: %s", strerror(errno)) : fd;
}

/* Everything until the guest may run. */
static int prepare(const struct replay_config *config, struct runner *runner, struct memory *ret, struct error *err)
{
	struct sigaction action = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };
	int r = lanes_deal(config, runner->shared, err);

	if (r < 0)
		return r;
	/* Here and now, so that none of them costs a fault while the guest runs. */
	memset(runner->shared->records, 0, config->trace->count * sizeof *runner->shared->records);
	sigaction(SIGBUS, &action, NULL);
	r = runner->done_fd = open_done_fd(err);
	if (r >= 0)
		r = runner_start(runner, err);
	if (r >= 0)
		r = memory_open(config, ret, &runner->shared->handshake_ns, err);
	bus.memory = *ret;
	runner->base = ret->base;
	return r;
}

static void say(int talk, char letter)
{
	if (write(talk, &letter, 1) != 1)
		_exit(1);
}

/* False at the end of the conversation. */
static bool hear(int talk, char expected)
{
	char letter = 0;
	ssize_t n;

	do
		n = read(talk, &letter, 1);
	while (n < 0 && errno == EINTR);
	if (n == 1 && letter != expected)
		_exit(1);
	return n == 1;
}

static int out_of_memory(const char *what, struct error *err)
{
	return error_set(err, -ENOMEM, "no_memory", "there is not enough memory to %s", what);
}

/* Checks what the threads have done, and makes figures of it. */
static int conclude(const struct replay_config *config, struct replay_shared *shared, const struct memory *memory,
		    struct error *err)
{
	if (check_memory(config, shared, memory) < 0)
		return out_of_memory("check the pages", err);
	return figures_make(config, shared, &shared->result) < 0 ? out_of_memory("sort the times", err) : 0;
}

/* Does what it is told until it is killed, so that its fork stands as it was for whoever asks about it. */
static void __attribute__((noreturn))
obey(const struct replay_config *config, struct replay_shared *shared, const struct memory *memory, int talk)
{
	struct error err;
	int r;

	if (!hear(talk, SAY_CHECK))
		_exit(1);
	r = conclude(config, shared, memory, &err);
	for (;;) {
		if (r < 0)
			give_up(shared, talk, &err);
		say(talk, SAY_DONE);
		if (!hear(talk, SAY_LINGER))
			_exit(0);
		r = check_tail(config, shared, memory);
		if (r < 0)
			out_of_memory("find the pages to touch", &err);
	}
}

void guest_process(const struct replay_config *config, struct replay_shared *shared, int talk)
{
	struct runner runner = { .config = config, .shared = shared, .done_fd = -1 };
	struct memory memory = { .connection = -1 };
	struct error err;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	bus.shared = shared;
	bus.talk = talk;
	int r = prepare(config, &runner, &memory, &err);
	if (r >= 0) {
		say(talk, SAY_CONNECTED);
		if (!hear(talk, SAY_RUN))
			_exit(1);
		runner_release(&runner);
		r = watch(config, &runner, memory.connection, &err);
	}
	if (r < 0)
		give_up(shared, talk, &err);
	say(talk, SAY_DONE);
	obey(config, shared, &memory, talk);
}
