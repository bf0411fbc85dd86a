/* io_uring, with which pages that are not in memory are read. */
#include <errno.h>
#include <liburing.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "doctor/check.h"
#include "doctor/machine.h"

/* As many entries as a pager's ring has, or about so. */
#define RING_ENTRIES 256

static const char text[] = "read by faultline doctor";

/* 0, or the negative errno of the read. */
static int read_by_ring(struct io_uring *ring, int file)
{
	char buffer[sizeof text] = "";
	struct io_uring_cqe *cqe;
	struct __kernel_timespec limit = { .tv_sec = 1 };
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

	io_uring_prep_read(sqe, file, buffer, sizeof buffer, 0);
	int r = io_uring_submit(ring);
	if (r < 0)
		return r;
	do
		r = io_uring_wait_cqe_timeout(ring, &cqe, &limit);
	while (r == -EINTR);
	if (r < 0)
		return r;
	r = cqe->res;
	io_uring_cqe_seen(ring, cqe);
	if (r < 0)
		return r;
	return r == (int)sizeof text && !memcmp(buffer, text, sizeof text) ? 0 : -EILSEQ;
}

static void say_refused(struct probe *probe, int error)
{
	long long disabled = 0;

	read_number("/proc/sys/kernel/io_uring_disabled", &disabled);
	probe_missing(probe, error, "no ring could be set up: %s", strerror(-error));
	if (error == -ENOSYS)
		probe_remedy(probe, "a kernel with CONFIG_IO_URING=y, and seccomp filters that allow io_uring_setup");
	else if (disabled == 2 || (disabled == 1 && !has_capability(CAPABILITY_SYS_ADMIN)))
		probe_remedy(probe, "sysctl kernel.io_uring_disabled=0 (it is %lld)", disabled);
	else if (error == -ENOMEM)
		probe_remedy(probe, "raise the limit on locked memory (ulimit -l, LimitMEMLOCK=)");
	else if (has_seccomp_filter())
		probe_remedy(probe, "allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp filter "
				    "that this process runs under");
	else
		probe_remedy(probe, "look for a security module (SELinux, AppArmor) that refuses it: its log says so");
}

static void probe_uring(struct probe *probe)
{
	_cleanup_close_ int file = memfd_create("faultline-doctor", MFD_CLOEXEC);
	struct io_uring ring;

	if (file < 0 || write(file, text, sizeof text) != (ssize_t)sizeof text) {
		probe_missing(probe, -errno, "no file to read from: %s", strerror(errno));
		return;
	}
	int r = io_uring_queue_init(RING_ENTRIES, &ring, 0);
	if (r < 0) {
		say_refused(probe, r);
		return;
	}
	r = read_by_ring(&ring, file);
	io_uring_queue_exit(&ring);
	if (r < 0)
		probe_missing(probe, r, "a read through a ring failed: %s", strerror(-r));
	else
		probe_ok(probe, "a ring of %d entries read a file", RING_ENTRIES);
}

const struct check io_checks[] = {
	{ .name = "io_uring",
	  .title = "io_uring",
	  .uses = DOCTOR_SERVING | DOCTOR_PREFETCH,
	  .probe = probe_uring,
	  .cost = "each pager reads pages that are not in memory with eight helper threads: slower on a cold image, and "
		  "fewer reads in flight" },
	{ 0 },
};
