/* Capabilities of observing: see privileges.h. */
#include "observe/privileges.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/capability.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "observe/programs.h"

/* Numbers that libraries older than Linux 5.8 don't have. */
#ifndef CAP_PERFMON
#define CAP_PERFMON 38
#define CAP_BPF	    39
#endif

#define IO_URING_DISABLED "/proc/sys/kernel/io_uring_disabled"
/* Of that file: io_uring is for CAP_SYS_ADMIN and one group. */
#define IO_URING_PRIVILEGED 1

/* In the order in which they are kept: CAP_BPF alone is enough for old kernels. */
static const struct {
	cap_value_t value;
	const char *name;
} ours[] = { { CAP_BPF, "CAP_BPF" }, { CAP_PERFMON, "CAP_PERFMON" }, { CAP_SYS_ADMIN, "CAP_SYS_ADMIN" } };

enum { COUNT = sizeof ours / sizeof *ours };

static void free_capabilities(cap_t *capabilities)
{
	if (*capabilities)
		cap_free(*capabilities);
}
#define _cleanup_capabilities_ _cleanup_(free_capabilities)

static bool has(cap_t capabilities, cap_value_t value, cap_flag_t set)
{
	cap_flag_value_t flag = CAP_CLEAR;

	return capabilities && cap_get_flag(capabilities, value, set, &flag) == 0 && flag == CAP_SET;
}

void privileges_lacking(char *buffer, size_t size)
{
	_cleanup_capabilities_ cap_t mine = cap_get_proc();
	bool bpf = has(mine, CAP_BPF, CAP_EFFECTIVE), perfmon = has(mine, CAP_PERFMON, CAP_EFFECTIVE);

	if (size)
		buffer[0] = '\0';
	if (has(mine, CAP_SYS_ADMIN, CAP_EFFECTIVE))
		return;
	if (bpf && perfmon)
		snprintf(buffer, size, "CAP_SYS_ADMIN is missing, which this libbpf needs to look for types in modules");
	else
		snprintf(buffer, size, "%s missing",
			 !bpf && !perfmon ? "CAP_BPF and CAP_PERFMON are"
			 : bpf		  ? "CAP_PERFMON is"
					  : "CAP_BPF is");
}

/* All that comes after the start: finding a fork's memory, telling the programs of it, and forgetting it. */
static bool still_works(struct programs *programs)
{
	const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t mm;

	if (!programs)
		return true;
	if (programs_find_mm(programs, getpid(), &mm) < 0)
		return false;
	/* Slot 0 is no fork, and the address nobody's. */
	if (programs_add_range(programs, mm, 0, page, 0) < 0)
		return false;
	programs_remove_range(programs, mm, 0, page);
	return true;
}

/* For this thread: those of OURS from the index FROM on, in the set SET. */
static int change(cap_t capabilities, cap_flag_t set, int from, cap_flag_value_t to)
{
	for (int i = from; i < COUNT; i++)
		if (has(capabilities, ours[i].value, CAP_PERMITTED) &&
		    cap_set_flag(capabilities, set, 1, &ours[i].value, to) < 0)
			return -errno;
	return cap_set_proc(capabilities) < 0 ? -errno : 0;
}

static bool io_uring_is_privileged(void)
{
	_cleanup_fclose_ FILE *file = fopen(IO_URING_DISABLED, "re");
	int value = 0;

	return file && fscanf(file, "%d", &value) == 1 && value == IO_URING_PRIVILEGED;
}

/* Index of the first of OURS that can go. */
static int find_first_to_go(struct programs *programs, cap_t capabilities, int *ret)
{
	int r = change(capabilities, CAP_EFFECTIVE, 0, CAP_CLEAR);

	for (*ret = 0; r == 0 && !still_works(programs) && *ret < COUNT; (*ret)++) {
		if (has(capabilities, ours[*ret].value, CAP_PERMITTED) &&
		    cap_set_flag(capabilities, CAP_EFFECTIVE, 1, &ours[*ret].value, CAP_SET) < 0)
			return -errno;
		r = cap_set_proc(capabilities) < 0 ? -errno : 0;
	}
	return r;
}

static int give_up(cap_t capabilities, int first)
{
	bool admin = io_uring_is_privileged() && has(capabilities, CAP_SYS_ADMIN, CAP_PERMITTED);
	const cap_value_t value = CAP_SYS_ADMIN;
	int r = change(capabilities, CAP_INHERITABLE, first, CAP_CLEAR);

	if (r < 0)
		return r;
	for (int i = first; i < COUNT; i++)
		if (!(admin && ours[i].value == CAP_SYS_ADMIN) &&
		    cap_set_flag(capabilities, CAP_PERMITTED, 1, &ours[i].value, CAP_CLEAR) < 0)
			return -errno;
	if (admin && cap_set_flag(capabilities, CAP_EFFECTIVE, 1, &value, CAP_SET) < 0)
		return -errno;
	return cap_set_proc(capabilities) < 0 ? -errno : 0;
}

int privileges_drop(struct programs *programs, char *kept, size_t size)
{
	_cleanup_capabilities_ cap_t mine = cap_get_proc();
	size_t n = 0;
	int first;

	if (size)
		kept[0] = '\0';
	if (!mine)
		return -errno;

	int r = find_first_to_go(programs, mine, &first);
	if (r >= 0)
		r = give_up(mine, first);
	for (int i = 0; r >= 0 && i < COUNT && n < size; i++)
		if (has(mine, ours[i].value, CAP_EFFECTIVE))
			n += (size_t)snprintf(kept + n, size - n, "%s%s", n ? " " : "", ours[i].name);
	return r;
}
