/*
 * Runs the table. One child process goes through the rows and writes the results into shared memory. Where a row kills it (a
 * seccomp filter may) or hangs, that is the row's result, and another child goes on with the next one.
 */
#include "doctor/doctor.h"

#include <bpf/libbpf.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "doctor/check.h"
#include "doctor/machine.h"

/* Every probe ends by itself long before, even on an emulated machine; this is for kernels that let one hang. */
#define ROW_TIMEOUT_NS (5 * NSEC_PER_SEC)
/* Once one has hung, more of its kind are likely. */
#define NEXT_TIMEOUT_NS NSEC_PER_SEC

static const struct {
	const char *title;
	const struct check *checks;
} groups[] = {
	{ "kernel", kernel_checks },	 { "userfaultfd", uffd_checks },
	{ "huge pages", huge_checks },	 { "image reads", io_checks },
	{ "processes", process_checks }, { "KVM", kvm_checks },
	{ "BPF", bpf_checks },		 { "observation", tier_checks },
	{ "limits", limit_checks },	 { "run directory", run_dir_checks },
};
#define GROUP_COUNT (sizeof groups / sizeof *groups)

/* Written by the child; only plain data, as it is shared between processes. */
struct shared {
	size_t next; /* the row under way, or the first one that is still to do */
	struct doctor_result results[];
};

struct run {
	struct probe probe; /* but for the row's own members */
	const struct check **checks;
	struct shared *shared;
	size_t shared_size, count;
	uint64_t row_timeout_ns;
};

const char *doctor_status_name(enum doctor_status status)
{
	static const char *const names[] = { "ok", "degraded", "missing" };

	return names[status];
}

const char *doctor_use_name(enum doctor_use use)
{
	switch (use) {
	case DOCTOR_SERVING:
		return "serving";
	case DOCTOR_PREFETCH:
		return "prefetch";
	case DOCTOR_OBSERVATION:
		return "observation";
	case DOCTOR_VMM:
		return "vmm";
	}
	return "";
}

/* ---- what probes say ---- */

/* A path with control characters in it must not write over the terminal. */
static void flatten(char *text)
{
	for (unsigned char *p = (unsigned char *)text; *p; p++)
		if (*p < 0x20 || *p == 0x7f)
			*p = '?';
}

__attribute__((format(printf, 4, 0))) static void say(struct probe *probe, enum doctor_status status, int error,
						      const char *format, va_list ap)
{
	struct doctor_result *result = probe->result;

	result->status = status;
	result->error = error;
	vsnprintf(result->found, sizeof result->found, format, ap);
	flatten(result->found);
	snprintf(result->cost, sizeof result->cost, "%s", status == DOCTOR_OK ? "" : probe->check->cost ?: "");
	snprintf(result->remedy, sizeof result->remedy, "%s", status == DOCTOR_OK ? "" : probe->check->remedy ?: "");
}

void probe_ok(struct probe *probe, const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	say(probe, DOCTOR_OK, 0, format, ap);
	va_end(ap);
}

void probe_degraded(struct probe *probe, int error, const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	say(probe, DOCTOR_DEGRADED, error, format, ap);
	va_end(ap);
}

void probe_missing(struct probe *probe, int error, const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	say(probe, DOCTOR_MISSING, error, format, ap);
	va_end(ap);
}

void probe_cost(struct probe *probe, const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	vsnprintf(probe->result->cost, sizeof probe->result->cost, format, ap);
	va_end(ap);
}

void probe_remedy(struct probe *probe, const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	vsnprintf(probe->result->remedy, sizeof probe->result->remedy, format, ap);
	flatten(probe->result->remedy);
	va_end(ap);
}

/* ---- child ---- */

static int quiet(enum libbpf_print_level level, const char *format, va_list ap)
{
	(void)level;
	(void)format;
	(void)ap;
	return 0;
}

static struct probe row_probe(const struct run *run, size_t row)
{
	struct probe probe = run->probe;

	probe.check = run->checks[row];
	probe.result = &run->shared->results[row];
	return probe;
}

/* Nothing that a probe does may outlive the doctor, fill the disk with a core file, or write over its report. */
static _Noreturn void child_main(const struct run *run, int done_fd)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != run->probe.doctor)
		_exit(0);
	setrlimit(RLIMIT_CORE, &(struct rlimit){ 0 });
	libbpf_set_print(quiet);
	for (size_t row = run->shared->next; row < run->count; row++) {
		struct probe probe = row_probe(run, row);

		probe.check->probe(&probe);
		run->shared->next = row + 1;
		if (write(done_fd, "", 1) < 0)
			break;
	}
	_exit(0);
}

/* ---- parent ---- */

/* True: another row is done. False: the child has ended, or is over its time. */
static bool await_row(const struct run *run, int done_fd, bool *ret_hangs)
{
	uint64_t end = now_ns() + run->row_timeout_ns;

	for (;;) {
		uint64_t now = now_ns();
		struct pollfd poll_fd = { .fd = done_fd, .events = POLLIN };
		int n = now < end ? poll(&poll_fd, 1, (int)((end - now) / NSEC_PER_MSEC) + 1) : 0;
		char byte;

		if (n < 0 && errno == EINTR)
			continue;
		*ret_hangs = n == 0;
		return n > 0 && read(done_fd, &byte, 1) == 1;
	}
}

static void say_killed(struct run *run, size_t row, int status, bool hangs)
{
	struct probe probe = row_probe(run, row);

	if (hangs)
		probe_missing(&probe, -ETIMEDOUT, "the probe did not come back within %llu s",
			      (unsigned long long)(run->row_timeout_ns / NSEC_PER_SEC));
	else if (WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS)
		probe_missing(&probe, -EPERM, "the probe was killed by seccomp (SIGSYS)");
	else if (WIFSIGNALED(status))
		probe_missing(&probe, -EINTR, "the probe was killed by SIG%s",
			      sigabbrev_np(WTERMSIG(status)) ?: "RTMIN");
	else
		probe_missing(&probe, -ECHILD, "the probe ended before its time");
	probe.result->killed = true;
	if (probe.check->uses & DOCTOR_SERVING)
		probe_cost(&probe, "the server makes the same calls, and would %s as well", hangs ? "hang" : "die");
	if (!hangs && WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS)
		probe_remedy(&probe, "allow its system calls in the seccomp filter of the container or the unit "
				     "(docker: --security-opt seccomp=FILE; systemd: SystemCallFilter=)");
	else
		probe_remedy(&probe, "find out where: strace -f faultline doctor; the kernel's log (dmesg) may say why");
	if (probe.check->clean_up)
		probe.check->clean_up(&probe);
}

/* One child goes as far as it comes. 0, or the negative errno for which there can be none. */
static int run_child(struct run *run)
{
	int fds[2], status = 0;
	bool hangs = false;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return -errno;
	_cleanup_close_ int done_fd = fds[0], child_fd = fds[1];
	pid_t pid = fork();
	if (pid < 0)
		return -errno;
	if (pid == 0) {
		close(done_fd);
		child_main(run, child_fd);
	}
	close(TAKE_FD(child_fd));
	while (await_row(run, done_fd, &hangs))
		;
	if (hangs)
		kill(pid, SIGKILL);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (run->shared->next < run->count) {
		say_killed(run, run->shared->next, status, hangs);
		run->shared->next++;
	}
	if (hangs)
		run->row_timeout_ns = NEXT_TIMEOUT_NS;
	return 0;
}

static void say_no_process(struct run *run, int error)
{
	for (; run->shared->next < run->count; run->shared->next++) {
		struct probe probe = row_probe(run, run->shared->next);

		probe_missing(&probe, error, "no process could be started to try it: %s", strerror(-error));
		probe_cost(&probe, "not known; the server's threads would be refused as well");
		probe_remedy(&probe,
			     "raise the limit on processes (ulimit -u, pids.max of the control group, TasksMax=)");
	}
}

static size_t gather_checks(const struct check **ret)
{
	size_t count = 0;

	for (size_t i = 0; i < GROUP_COUNT; i++)
		for (const struct check *check = groups[i].checks; check->name; check++, count++)
			if (ret)
				ret[count] = check;
	return count;
}

static void name_results(const struct run *run)
{
	size_t row = 0;

	for (size_t i = 0; i < GROUP_COUNT; i++)
		for (const struct check *check = groups[i].checks; check->name; check++, row++) {
			struct doctor_result *result = &run->shared->results[row];

			result->group = groups[i].title;
			result->name = check->name;
			result->title = check->title;
			result->uses = check->uses;
			result->required = check->required;
		}
}

static int run_all(struct run *run, struct doctor_report **ret)
{
	name_results(run);
	while (run->shared->next < run->count) {
		int r = run_child(run);
		if (r < 0)
			say_no_process(run, r);
	}

	struct doctor_report *report = calloc(1, sizeof *report + run->count * sizeof *report->results);
	if (!report)
		return -ENOMEM;
	report->count = run->count;
	memcpy(report->results, run->shared->results, run->count * sizeof *report->results);
	verdict(report);
	*ret = report;
	return 0;
}

int doctor_run(const char *run_dir, struct doctor_report **ret, struct error *err)
{
	struct run run = { .probe = { .run_dir = run_dir, .doctor = getpid() },
			   .count = gather_checks(NULL),
			   .row_timeout_ns = ROW_TIMEOUT_NS };
	_cleanup_free_ const struct check **checks = calloc(run.count, sizeof(void *));

	run.checks = checks;
	run.shared_size = sizeof *run.shared + run.count * sizeof run.shared->results[0];
	run.shared = mmap(NULL, run.shared_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (!checks || run.shared == MAP_FAILED) {
		if (run.shared != MAP_FAILED)
			munmap(run.shared, run.shared_size);
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	}
	gather_checks(checks);
	int r = run_all(&run, ret);
	munmap(run.shared, run.shared_size);
	return r < 0 ? error_set(err, r, "io_error", "out of memory") : 0;
}

void doctor_report_free(struct doctor_report *report)
{
	free(report);
}

const struct doctor_result *doctor_find(const struct doctor_report *report, const char *name)
{
	for (size_t i = 0; i < report->count; i++)
		if (!strcmp(report->results[i].name, name))
			return &report->results[i];
	return NULL;
}
