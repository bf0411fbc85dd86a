/* Limits that many forks run into before anything else. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "doctor/check.h"
#include "doctor/machine.h"

/* What the checks measure against. */
#define FORKS 1000ull

/* Of each fork: its socket, the connection, the userfaultfd, a pidfd, and one to spare for a peer in its handshake. */
#define FILES_PER_FORK 5ull
/* Of the server itself: pagers, images, clients of the API. */
#define FILES_OF_SERVER 256ull
/* With fewer it has none left for a fork, or does not even start. */
#define FILES_AT_LEAST(cpus) (24ull + 4 * (cpus))

/* Pagers, prefetch workers, the keeper, a thread for each client of the API. */
#define TASKS 64

/* Enough for 1,000 forks of 1 GiB that were touched all over, at 64 KiB each, and the image reads under way. */
#define MEMORY_WANTED (256ull << 20)

/* The kernel's default. */
#define MAPS_WANTED 65530

static void probe_files(struct probe *probe)
{
	struct rlimit limit;
	const rlim_t wanted = FORKS * FILES_PER_FORK + FILES_OF_SERVER;
	const rlim_t cpus = (rlim_t)sysconf(_SC_NPROCESSORS_ONLN);

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0) {
		probe_missing(probe, -errno, "getrlimit failed: %s", strerror(errno));
		return;
	}
	/* The server raises the soft limit to the hard one. */
	if (limit.rlim_max == RLIM_INFINITY)
		probe_ok(probe, "no limit");
	else if (limit.rlim_max >= wanted)
		probe_ok(probe, "%llu, enough for %llu forks", (unsigned long long)limit.rlim_max,
			 (unsigned long long)((limit.rlim_max - FILES_OF_SERVER) / FILES_PER_FORK));
	else if (limit.rlim_max < FILES_AT_LEAST(cpus))
		probe_missing(probe, 0, "%llu, too few for a server and a fork", (unsigned long long)limit.rlim_max);
	else
		probe_degraded(probe, 0, "%llu, enough for about %llu forks", (unsigned long long)limit.rlim_max,
			       (unsigned long long)((limit.rlim_max - FILES_AT_LEAST(cpus)) / FILES_PER_FORK));
}

static void probe_locked(struct probe *probe)
{
	struct rlimit limit;
	char text[32];

	if (getrlimit(RLIMIT_MEMLOCK, &limit) < 0) {
		probe_missing(probe, -errno, "getrlimit failed: %s", strerror(errno));
		return;
	}
	if (limit.rlim_cur == RLIM_INFINITY || has_capability(CAPABILITY_IPC_LOCK))
		probe_ok(probe, limit.rlim_cur == RLIM_INFINITY ? "no limit" : "no limit for CAP_IPC_LOCK");
	else if (limit.rlim_cur >= 1 << 20)
		probe_ok(probe, "%s; since Linux 5.12 neither io_uring nor BPF maps count here",
			 format_bytes(limit.rlim_cur, text, sizeof text));
	else
		probe_degraded(probe, 0, "%s", format_bytes(limit.rlim_cur, text, sizeof text));
}

static void probe_maps(struct probe *probe)
{
	long long count = 0;
	int r = read_number("/proc/sys/vm/max_map_count", &count);

	if (r < 0)
		probe_degraded(probe, r, "not known: /proc/sys/vm/max_map_count: %s", strerror(-r));
	else if (count < MAPS_WANTED)
		probe_degraded(probe, 0, "vm.max_map_count=%lld; the kernel's default is %d", count, MAPS_WANTED);
	else
		probe_ok(probe, "vm.max_map_count=%lld", count);
}

/* What is left of a control group's limit; false where there is none. */
static bool left_in_cgroup(const char *controller, const char *max_v2, const char *max_v1, const char *now_v2,
			   const char *now_v1, uint64_t *ret_limit, uint64_t *ret_left)
{
	char limit_text[64], now_text[64];

	if (read_cgroup(controller, max_v2, max_v1, limit_text, sizeof limit_text) < 0 ||
	    read_cgroup(controller, now_v2, now_v1, now_text, sizeof now_text) < 0)
		return false;
	uint64_t limit = strtoull(limit_text, NULL, 10), now = strtoull(now_text, NULL, 10);
	/* "max", or on the older hierarchy a number that no machine has. */
	if (limit_text[0] == 'm' || limit >= 1ull << 60)
		return false;
	*ret_limit = limit;
	*ret_left = limit > now ? limit - now : 0;
	return true;
}

static void probe_memory(struct probe *probe)
{
	char limit_text[32], left_text[32];
	uint64_t limit, left;

	if (!left_in_cgroup("memory", "memory.max", "memory.limit_in_bytes", "memory.current", "memory.usage_in_bytes",
			    &limit, &left)) {
		probe_ok(probe, "no limit by a control group");
		return;
	}
	format_bytes(limit, limit_text, sizeof limit_text);
	format_bytes(left, left_text, sizeof left_text);
	if (left < MEMORY_WANTED)
		probe_degraded(probe, 0, "%s left of the control group's %s", left_text, limit_text);
	else
		probe_ok(probe, "%s left of the control group's %s", left_text, limit_text);
}

static void probe_tasks(struct probe *probe)
{
	struct rlimit limit = { .rlim_cur = RLIM_INFINITY };
	uint64_t max, left;

	getrlimit(RLIMIT_NPROC, &limit);
	bool limited = left_in_cgroup("pids", "pids.max", "pids.max", "pids.current", "pids.current", &max, &left);
	if (limited && left < TASKS)
		probe_degraded(probe, 0, "%" PRIu64 " left of the control group's %" PRIu64, left, max);
	else if (limit.rlim_cur < TASKS && geteuid() != 0)
		probe_degraded(probe, 0, "%llu for all processes of user %u (ulimit -u)",
			       (unsigned long long)limit.rlim_cur, geteuid());
	else if (limited)
		probe_ok(probe, "%" PRIu64 " left of the control group's %" PRIu64, left, max);
	else
		probe_ok(probe, "no limit by a control group");
}

const struct check limit_checks[] = {
	{ .name = "open_files",
	  .title = "open files",
	  .uses = DOCTOR_SERVING,
	  .required = DOCTOR_SERVING,
	  .probe = probe_files,
	  .cost = "beyond that many forks, VMMs that connect are turned away",
	  .remedy = "raise the hard limit to 6000 or more: ulimit -Hn 6000, LimitNOFILE=6000 in the unit, or "
		    "/etc/security/limits.conf" },
	{ .name = "locked_memory",
	  .title = "locked memory",
	  .uses = DOCTOR_SERVING | DOCTOR_OBSERVATION,
	  .probe = probe_locked,
	  .cost = "before Linux 5.12, io_uring and BPF maps may be refused for it",
	  .remedy = "ulimit -l 8192, or LimitMEMLOCK=8M in the unit" },
	{ .name = "mappings",
	  .title = "mappings a process",
	  .uses = DOCTOR_VMM,
	  .probe = probe_maps,
	  .cost = "a VMM whose guest memory falls into many mappings (madvise, mprotect) gets ENOMEM",
	  .remedy = "sysctl vm.max_map_count=65530" },
	{ .name = "memory",
	  .title = "memory",
	  .uses = DOCTOR_SERVING,
	  .probe = probe_memory,
	  .cost = "the server, or VMMs in the same group, are killed where it runs out, and VMMs whose pages can't be had "
		  "are stopped",
	  .remedy = "raise memory.max of the control group (systemd: MemoryMax=)" },
	{ .name = "tasks",
	  .title = "threads",
	  .uses = DOCTOR_SERVING,
	  .probe = probe_tasks,
	  .cost = "pagers, prefetch workers or clients of the API may be refused their threads",
	  .remedy = "raise pids.max of the control group (systemd: TasksMax=) or ulimit -u" },
	{ 0 },
};
