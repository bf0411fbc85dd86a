#include "serve/thread_stat.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"

#define LOOKS_MAX 300

/* Fields of proc_pid_stat(5), counted from 1; the third follows the name, which may hold anything, a ")" too. */
enum {
	FIELD_STATE = 3,
	FIELD_MINFLT = 10,
	FIELD_MAJFLT = 12,
	FIELD_UTIME = 14,
	FIELD_STIME = 15,
	FIELD_PROCESSOR = 39
};

int thread_stat_parse(const char *line, struct thread_stat *ret)
{
	uint64_t fields[FIELD_PROCESSOR + 1] = { 0 };
	const char *p = strrchr(line, ')');

	if (!p || p[1] != ' ' || p[2] == '\0')
		return -EBADMSG;
	bool running = p[2] == 'R';
	p += 3; /* the state is a letter */
	for (int field = FIELD_STATE + 1; field <= FIELD_PROCESSOR; field++) {
		char *end;
		fields[field] = strtoull(p, &end, 10); /* negative ones are none of those that we want */
		if (end == p)
			return -EBADMSG;
		p = end;
	}
	if (fields[FIELD_PROCESSOR] > INT_MAX)
		return -EBADMSG;
	*ret = (struct thread_stat){
		.faults = fields[FIELD_MINFLT] + fields[FIELD_MAJFLT],
		.ticks = fields[FIELD_UTIME] + fields[FIELD_STIME],
		.cpu = (int)fields[FIELD_PROCESSOR],
		.running = running,
	};
	return 0;
}

int thread_stat_read(pid_t pid, pid_t tid, struct thread_stat *ret)
{
	char path[64], line[1024];

	snprintf(path, sizeof path, "/proc/%d/task/%d/stat", (int)pid, (int)tid);
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ssize_t n = read(fd, line, sizeof line - 1);
	if (n <= 0)
		return n < 0 ? -errno : -ESRCH;
	line[n] = '\0';
	return thread_stat_parse(line, ret);
}

void thread_stat_add_running(pid_t pid, cpu_set_t *ret)
{
	char path[64];
	unsigned looked = 0;

	snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
	DIR *dir = opendir(path);
	if (!dir)
		return;
	for (struct dirent *entry; looked < LOOKS_MAX && (entry = readdir(dir)); looked++) {
		struct thread_stat stat;
		pid_t tid = (pid_t)atoi(entry->d_name);

		if (tid > 0 && thread_stat_read(pid, tid, &stat) == 0 && stat.running)
			CPU_SET((size_t)stat.cpu, ret);
	}
	closedir(dir);
}
