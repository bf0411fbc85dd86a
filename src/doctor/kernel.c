/* The kernel and its processors, and what the server's main loop is made of. */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "doctor/check.h"
#include "doctor/machine.h"

/* The oldest kernel that faultline's tests are run on. */
#define TESTED_MAJOR 6
#define TESTED_MINOR 1

static void probe_version(struct probe *probe)
{
	struct utsname name;
	unsigned major = 0, minor = 0;

	uname(&name);
	sscanf(name.release, "%u.%u", &major, &minor);
	if (strcmp(name.machine, "x86_64") != 0)
		probe_degraded(probe, 0, "Linux %s on %s; faultline is tested on x86_64", name.release, name.machine);
	else if (major < TESTED_MAJOR || (major == TESTED_MAJOR && minor < TESTED_MINOR))
		probe_degraded(probe, 0, "Linux %s on %s; faultline is tested on %d.%d and newer", name.release,
			       name.machine, TESTED_MAJOR, TESTED_MINOR);
	else
		probe_ok(probe, "Linux %s on %s", name.release, name.machine);
}

/* "0-3,8" */
static void format_cpus(const cpu_set_t *set, char *ret, size_t size)
{
	size_t n = 0;

	ret[0] = '\0';
	for (int cpu = 0; cpu < CPU_SETSIZE && n + 16 < size; cpu++) {
		int first = cpu;

		if (!CPU_ISSET(cpu, set))
			continue;
		while (cpu + 1 < CPU_SETSIZE && CPU_ISSET(cpu + 1, set))
			cpu++;
		n += (size_t)snprintf(ret + n, size - n, first == cpu ? "%s%d" : "%s%d-%d", n ? "," : "", first, cpu);
	}
}

static void probe_cpus(struct probe *probe)
{
	cpu_set_t allowed;
	char list[200], online_list[200] = "?";
	long online = sysconf(_SC_NPROCESSORS_ONLN);

	if (sched_getaffinity(0, sizeof allowed, &allowed) < 0) {
		probe_missing(probe, -errno, "sched_getaffinity failed: %s", strerror(errno));
		return;
	}
	read_line("/sys/devices/system/cpu/online", online_list, sizeof online_list);
	format_cpus(&allowed, list, sizeof list);
	int count = CPU_COUNT(&allowed);
	if (count < online)
		probe_degraded(probe, 0, "%d of %ld that are online: %s of %s; one pager on each", count, online, list,
			       online_list);
	else
		probe_ok(probe, "%d: %s; one pager on each", count, list);
}

/* What the server waits with; each is made and thrown away. */
static const char *try_main_loop(int *ret_error)
{
	sigset_t none;
	sigemptyset(&none);
	_cleanup_close_ int epoll = epoll_create1(EPOLL_CLOEXEC);
	_cleanup_close_ int event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	_cleanup_close_ int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	_cleanup_close_ int signals = signalfd(-1, &none, SFD_CLOEXEC | SFD_NONBLOCK);
	struct epoll_event watched = { .events = EPOLLIN }, ready;

	*ret_error = -errno;
	if (epoll < 0)
		return "epoll_create1";
	if (event < 0)
		return "eventfd2";
	if (timer < 0)
		return "timerfd_create";
	if (signals < 0)
		return "signalfd4";
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, event, &watched) < 0 || eventfd_write(event, 1) < 0 ||
	    epoll_wait(epoll, &ready, 1, 1000) != 1) {
		*ret_error = -errno;
		return "epoll_wait";
	}
	if (syscall(SYS_epoll_pwait2, epoll, &ready, 1, &(struct timespec){ 0 }, NULL, 8) != 1) {
		*ret_error = -errno;
		return "epoll_pwait2";
	}
	return NULL;
}

static void probe_loop(struct probe *probe)
{
	int error = 0;
	const char *failed = try_main_loop(&error);

	if (failed)
		probe_missing(probe, error, "%s failed: %s", failed, strerror(-error));
	else
		probe_ok(probe, "epoll_pwait2, eventfd, timerfd and signalfd work");
}

const struct check kernel_checks[] = {
	{ .name = "kernel_version",
	  .title = "version",
	  .uses = DOCTOR_SERVING | DOCTOR_PREFETCH | DOCTOR_OBSERVATION,
	  .probe = probe_version,
	  .cost = "faultline is not tested here: trust the other checks, and try it with your own VMs first",
	  .remedy = "run Linux 6.1 or newer on x86_64" },
	{ .name = "cpus",
	  .title = "CPUs it may run on",
	  .uses = DOCTOR_SERVING | DOCTOR_PREFETCH,
	  .probe = probe_cpus,
	  .cost = "faults of vCPUs on the other CPUs are served from these, which takes several times as long as on the "
		  "vCPU's own",
	  .remedy = "let the server use all CPUs that VMs run on (taskset, cpuset.cpus of the control group, systemd's "
		    "CPUAffinity= and AllowedCPUs=)" },
	{ .name = "main_loop",
	  .title = "event loop",
	  .uses = DOCTOR_SERVING,
	  .required = DOCTOR_SERVING,
	  .probe = probe_loop,
	  .cost = "the server can't wait for anything: it doesn't work at all",
	  .remedy = "run Linux 5.11 or newer, and allow these system calls in seccomp filters" },
	{ 0 },
};
