/* Tracing a command until it has mapped its memory: see map_watch.h. */
#include "cli/map_watch.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

/* Before the command is what it is to be, nothing of ours that may run in its process (a sanitizer's thread, say) is of interest. */
#define FIRST_OPTIONS (PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEEXEC)
#define OPTIONS	      (FIRST_OPTIONS | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE)
#define SYSCALL_STOP  (SIGTRAP | 0x80)

/* mmap() never gives less: what a program may map at (vm.mmap_min_addr). */
#define LOWEST_ADDRESS 0x1000

static bool add(struct map_watch *watch, pid_t thread)
{
	if (watch->count == watch->capacity) {
		size_t capacity = watch->capacity ? watch->capacity * 2 : 16;
		pid_t *threads = reallocarray(watch->threads, capacity, sizeof *threads);

		if (!threads)
			return false;
		watch->threads = threads;
		watch->capacity = capacity;
	}
	watch->threads[watch->count++] = thread;
	return true;
}

static void forget(struct map_watch *watch, pid_t thread)
{
	for (size_t i = 0; i < watch->count; i++)
		if (watch->threads[i] == thread)
			watch->threads[i] = watch->threads[--watch->count];
}

int map_watch_seize(pid_t pid, void *data, struct error *err)
{
	struct map_watch *watch = data;

	*watch = (struct map_watch){ .command = pid };
	if (ptrace(PTRACE_SEIZE, pid, 0, FIRST_OPTIONS) < 0)
		return error_set(err, -errno, "not_permitted",
				 "cannot trace the command, to see when it maps its memory: %s; it can be started first, and named with --pid",
				 strerror(errno));
	if (!add(watch, pid))
		return error_set(err, -ENOMEM, "no_memory", "there is not enough memory");
	/* It stops at its exec first, and from then on at system calls. */
	return 0;
}

/* A system call has just returned what may be an address. (Which one it was is told only at its beginning; a look too many does no harm.) */
static bool may_have_mapped(pid_t thread)
{
	struct __ptrace_syscall_info info;
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);

	if (ptrace(PTRACE_GET_SYSCALL_INFO, thread, sizeof info, &info) <= 0 || info.op != PTRACE_SYSCALL_INFO_EXIT ||
	    info.exit.is_error)
		return false;
	return (uint64_t)info.exit.rval >= LOWEST_ADDRESS && (uint64_t)info.exit.rval % page == 0;
}

static void add_new(struct map_watch *watch, pid_t thread)
{
	unsigned long created;

	/* One that can't be kept in mind would stand still for ever. */
	if (ptrace(PTRACE_GETEVENTMSG, thread, 0, &created) == 0 && !add(watch, (pid_t)created))
		ptrace(PTRACE_DETACH, (pid_t)created, 0, 0);
}

/* THREAD stands still, by STATUS as waitid() tells it: goes on. */
static void handle_stop(struct map_watch *watch, pid_t thread, int status, bool (*mapped)(pid_t, void *), void *data)
{
	int stop = status & 0xff, event = status >> 8, signal = 0;
	bool group_stop = false;

	if (event == PTRACE_EVENT_FORK || event == PTRACE_EVENT_VFORK || event == PTRACE_EVENT_CLONE)
		add_new(watch, thread);
	else if (event == PTRACE_EVENT_EXEC)
		ptrace(PTRACE_SETOPTIONS, thread, 0, OPTIONS);
	else if (event == PTRACE_EVENT_STOP)
		group_stop = stop != SIGTRAP;
	else if (stop == SYSCALL_STOP)
		watch->leaving = watch->leaving || (may_have_mapped(thread) && !mapped(thread, data));
	else if (!event)
		signal = stop;

	if (watch->leaving) {
		ptrace(PTRACE_DETACH, thread, 0, (void *)(intptr_t)signal);
		forget(watch, thread);
	} else if (group_stop) {
		ptrace(PTRACE_LISTEN, thread, 0, 0);
	} else {
		ptrace(PTRACE_SYSCALL, thread, 0, (void *)(intptr_t)signal);
	}
}

/* True: something had happened to the thread. */
static bool handle_one(struct map_watch *watch, pid_t thread, bool (*mapped)(pid_t, void *), void *data)
{
	/* The command's own end is somebody else's to read. */
	int what = WSTOPPED | WNOHANG | __WALL | (thread == watch->command ? 0 : WEXITED);
	siginfo_t info = { .si_pid = 0 };

	if (waitid(P_PID, (id_t)thread, &info, what) < 0) {
		forget(watch, thread);
		return true;
	}
	if (!info.si_pid) {
		/* Has it ended? (This tells stops of a traced process too, although it doesn't ask for them.) */
		if (thread != watch->command || waitid(P_PID, (id_t)thread, &info, WEXITED | WNOHANG | WNOWAIT) < 0 ||
		    !info.si_pid)
			return false;
		if (info.si_code == CLD_EXITED || info.si_code == CLD_KILLED || info.si_code == CLD_DUMPED)
			forget(watch, thread);
		return true;
	}
	if (info.si_code == CLD_TRAPPED || info.si_code == CLD_STOPPED)
		handle_stop(watch, thread, info.si_status, mapped, data);
	else
		forget(watch, thread);
	return true;
}

void map_watch_handle(struct map_watch *watch, bool (*mapped)(pid_t thread, void *data), void *data)
{
	bool again = true, was_leaving = watch->leaving;

	while (again) {
		again = false;
		for (size_t i = watch->count; i-- > 0;)
			if (i < watch->count)
				again = handle_one(watch, watch->threads[i], mapped, data) || again;
	}
	if (watch->leaving && !was_leaving)
		map_watch_leave(watch);
}

static bool nothing_mapped(pid_t thread, void *data)
{
	(void)thread;
	(void)data;
	return true;
}

void map_watch_wait(void *data)
{
	map_watch_handle(data, nothing_mapped, NULL);
}

void map_watch_leave(struct map_watch *watch)
{
	watch->leaving = true;
	for (size_t i = 0; i < watch->count; i++)
		ptrace(PTRACE_INTERRUPT, watch->threads[i], 0, 0);
}

void map_watch_clear(struct map_watch *watch)
{
	free(watch->threads);
	*watch = (struct map_watch){ .threads = NULL };
}
