/* What /proc says of the threads of a VMM. */
#pragma once

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct thread_stat {
	uint64_t faults; /* of all kinds: one that a pager served is a major fault up to Linux 6.5 or so, and a minor one since */
	uint64_t ticks; /* of CPU time */
	int cpu;	/* where it ran last */
	bool running;	/* it runs there, or would if it were let */
};

/* 0, or negative errno: the thread has ended. */
int thread_stat_read(pid_t pid, pid_t tid, struct thread_stat *ret);

/* The same from a line as /proc/PID/task/TID/stat has it. 0 or -EBADMSG. */
int thread_stat_parse(const char *line, struct thread_stat *ret);

/* Adds the CPUs to RET that PID's threads run on at this moment; of very many, the first few hundred. */
void thread_stat_add_running(pid_t pid, cpu_set_t *ret);
