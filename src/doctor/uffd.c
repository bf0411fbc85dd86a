/* userfaultfd: whether it can be had, what this kernel's can do, and whether a fault is really served. */
#include "uffd/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "doctor/check.h"
#include "doctor/machine.h"
#include "doctor/trial.h"

#define DEVICE "/dev/userfaultfd"

#ifndef UFFD_FEATURE_MOVE /* Linux 6.8 */
#define UFFD_FEATURE_MOVE (1 << 16)
#endif

/* ---- having one ---- */

static int try_system_call(int flags)
{
	_cleanup_close_ int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags);

	return fd < 0 ? -errno : 0;
}

static int try_device(void)
{
	_cleanup_close_ int device = open(DEVICE, O_RDWR | O_CLOEXEC);
	if (device < 0)
		return -errno;
	_cleanup_close_ int fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	return fd < 0 ? -errno : 0;
}

static const char *why_system_call(void)
{
	long long allowed = 0;

	if (has_capability(CAPABILITY_SYS_PTRACE))
		return "CAP_SYS_PTRACE";
	read_number("/proc/sys/vm/unprivileged_userfaultfd", &allowed);
	return allowed ? "vm.unprivileged_userfaultfd=1" : "allowed to this user";
}

static void say_open_refused(struct probe *probe, int error, int device_error)
{
	probe_missing(probe, error, "userfaultfd(2): %s; %s: %s", strerror(-error), DEVICE, strerror(-device_error));
	if (error == -ENOSYS && !has_seccomp_filter())
		probe_remedy(probe, "a kernel with CONFIG_USERFAULTFD=y");
	else if (has_seccomp_filter())
		probe_remedy(probe,
			     "allow userfaultfd in the seccomp filter that this process runs under (docker: --security-opt "
			     "seccomp=FILE; systemd: SystemCallFilter=), or give it access to " DEVICE);
}

static void probe_open(struct probe *probe)
{
	int by_call = try_system_call(0), by_device = try_device();

	if (by_call == 0)
		probe_ok(probe, "by system call (%s)%s", why_system_call(),
			 by_device == 0 ? " and by " DEVICE : "; not by " DEVICE);
	else if (by_device == 0)
		probe_ok(probe, "by " DEVICE "; the system call is refused (%s)", errno_name(by_call));
	else if (try_system_call(UFFD_USER_MODE_ONLY) == 0)
		probe_degraded(probe, by_call, "only for faults in user mode: userfaultfd(2): %s; %s: %s",
			       strerror(-by_call), DEVICE, strerror(-by_device));
	else
		say_open_refused(probe, by_call, by_device);
}

/* A VMM that drops its privileges has neither capability nor root's files. */
static void probe_unprivileged(struct probe *probe)
{
	long long allowed = 0;
	struct stat st;

	if (read_number("/proc/sys/vm/unprivileged_userfaultfd", &allowed) < 0)
		/* Before Linux 5.2 there was no such knob, and nothing was asked for. */
		allowed = access("/proc/sys/vm", F_OK) == 0;
	if (allowed)
		probe_ok(probe, "vm.unprivileged_userfaultfd=1");
	else if (stat(DEVICE, &st) < 0)
		probe_degraded(probe, -errno, "vm.unprivileged_userfaultfd=0, and " DEVICE ": %s", strerror(errno));
	else if ((st.st_mode & 0006) == 0006)
		probe_ok(probe, DEVICE " is for everybody (mode %04o)", st.st_mode & 07777);
	else if (((st.st_mode & 0060) == 0060 && st.st_gid != 0) || st.st_uid != 0)
		probe_ok(probe, DEVICE " is for user %u and group %u (mode %04o)", st.st_uid, st.st_gid,
			 st.st_mode & 07777);
	else
		probe_degraded(probe, 0, "vm.unprivileged_userfaultfd=0, and " DEVICE " is root's (mode %04o)",
			       st.st_mode & 07777);
}

/* ---- serving a fault ---- */

static const char *describe_trial(int error)
{
	switch (error) {
	case -ETIMEDOUT:
		return "no fault came";
	case -EILSEQ:
		return "other bytes came than were copied";
	default:
		return strerror(-error);
	}
}

static void probe_fault(struct probe *probe)
{
	int r = trial_anonymous(0, TRIAL_READ);

	if (r < 0)
		probe_missing(probe, r, "registering, faulting and copying a page failed: %s", describe_trial(r));
	else
		probe_ok(probe, "a page was registered, touched by a thread, copied, and had the right bytes");
}

static void probe_kernel_fault(struct probe *probe)
{
	int r = trial_anonymous(0, TRIAL_SYSCALL);

	if (r < 0)
		probe_missing(probe, r, "a system call on an absent page: %s", describe_trial(r));
	else
		probe_ok(probe, "a system call read an absent page, and got the right bytes");
}

/* A page of memory of any kind, unmapped at the end. */
struct page {
	char *address;
	size_t size;
	int uffd;
};

static void page_clear(struct page *page)
{
	if (page->address)
		munmap(page->address, page->size);
	cleanup_close(&page->uffd);
}

/* FLAGS as for mmap, FILE or -1. 0 or negative errno. */
static int page_map(struct page *page, uint64_t features, int flags, int file)
{
	page->uffd = trial_open(features, NULL);
	if (page->uffd < 0)
		return page->uffd;
	page->size = (size_t)sysconf(_SC_PAGESIZE);
	void *address = mmap(NULL, page->size, PROT_READ | PROT_WRITE, flags, file, 0);
	if (address == MAP_FAILED)
		return -errno;
	page->address = address;
	return 0;
}

static int try_ioctls(uint64_t *ret)
{
	_cleanup_(page_clear) struct page page = { .uffd = -1 };
	int r = page_map(&page, 0, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	if (r < 0)
		return r;
	struct uffdio_register registered = {
		.range = { .start = (uintptr_t)page.address, .len = page.size },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	if (ioctl(page.uffd, UFFDIO_REGISTER, &registered) < 0)
		return -errno;
	*ret = registered.ioctls;
	struct uffd_result zeroed = uffd_zero(page.uffd, (uintptr_t)page.address, page.size, true);
	if (zeroed.outcome != UFFD_DONE)
		return zeroed.error;
	return page.address[0] == 0 ? 0 : -EILSEQ;
}

static void probe_ioctls(struct probe *probe)
{
	const uint64_t needed = 1ull << _UFFDIO_COPY | 1ull << _UFFDIO_ZEROPAGE | 1ull << _UFFDIO_WAKE;
	uint64_t ioctls = 0;
	int r = try_ioctls(&ioctls);

	if (r < 0)
		probe_missing(probe, r, "anonymous memory can't be given zero pages: %s", strerror(-r));
	else if ((ioctls & needed) != needed)
		probe_missing(probe, 0, "anonymous memory lacks one of COPY, ZEROPAGE and WAKE (0x%" PRIx64 ")", ioctls);
	else
		probe_ok(probe, "COPY, ZEROPAGE and WAKE on anonymous memory; a page was zeroed");
}

static int try_poison(void)
{
	_cleanup_(page_clear) struct page page = { .uffd = -1 };
	int r = page_map(&page, UFFD_FEATURE_POISON, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	if (r == 0)
		r = uffd_register_missing(page.uffd, (uintptr_t)page.address, page.size);
	if (r < 0)
		return r;
	struct uffd_result poisoned = uffd_poison(page.uffd, (uintptr_t)page.address, page.size);
	return poisoned.outcome == UFFD_DONE ? 0 : poisoned.error;
}

static void probe_poison(struct probe *probe)
{
	int r = try_poison();

	if (r == -EINVAL)
		probe_missing(probe, r, "this kernel can't poison pages");
	else if (r < 0)
		probe_missing(probe, r, "a page can't be poisoned: %s", strerror(-r));
	else
		probe_ok(probe, "a page that can't be read is made to raise SIGBUS");
}

static int try_shared_memory(void)
{
	_cleanup_close_ int file = memfd_create("faultline-doctor", MFD_CLOEXEC);
	_cleanup_(page_clear) struct page page = { .uffd = -1 };
	size_t size = (size_t)sysconf(_SC_PAGESIZE);
	_cleanup_free_ char *content = malloc(size);

	if (file < 0 || ftruncate(file, (off_t)size) < 0)
		return -errno;
	if (!content)
		return -ENOMEM;
	memset(content, 0x5a, size);
	int r = page_map(&page, UFFD_FEATURE_MISSING_SHMEM, MAP_SHARED, file);
	if (r == 0)
		r = uffd_register_missing(page.uffd, (uintptr_t)page.address, page.size);
	return r < 0 ? r : trial_fault(page.uffd, page.address, page.size, content, TRIAL_READ);
}

static void probe_shared_memory(struct probe *probe)
{
	int r = try_shared_memory();

	if (r < 0)
		probe_missing(probe, r, "a fault on shared memory: %s", describe_trial(r));
	else
		probe_ok(probe, "a fault on a memfd was served");
}

/* ---- features ---- */

static void probe_feature(struct probe *probe)
{
	uint64_t features = 0;
	struct error err;
	int r = uffd_probe_features(&features, &err);

	if (r < 0)
		probe_missing(probe, r, "%s", err.message);
	else if (!(features & probe->check->argument))
		probe_missing(probe, 0, "not among this kernel's features (0x%" PRIx64 ")", features);
	else if ((r = trial_open(probe->check->argument, NULL)) < 0)
		probe_missing(probe, r, "listed, but can't be negotiated: %s", strerror(-r));
	else {
		close(r);
		probe_ok(probe, "negotiated");
	}
}

static int remove_page(void *data)
{
	struct page *page = data;

	return madvise(page->address, page->size, MADV_DONTNEED) < 0 ? -errno : 0;
}

/* The thread that removes sleeps in madvise() until its event is read. */
static int try_remove_event(void)
{
	_cleanup_(page_clear) struct page page = { .uffd = -1 };
	_cleanup_free_ char *zeros = NULL;
	unsigned messages = 0;
	int r = page_map(&page, UFFD_FEATURE_EVENT_REMOVE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	if (r == 0)
		r = uffd_register_missing(page.uffd, (uintptr_t)page.address, page.size);
	if (r < 0)
		return r;
	zeros = calloc(1, page.size);
	if (!zeros)
		return -ENOMEM;
	struct uffd_result zeroed = uffd_zero(page.uffd, (uintptr_t)page.address, page.size, true);
	if (zeroed.outcome != UFFD_DONE)
		return zeroed.error;
	r = trial_serve(page.uffd, page.address, page.size, zeros, remove_page, &page, &messages);
	return r == 0 && messages != 1 ? -ENOMSG : r;
}

static void probe_remove(struct probe *probe)
{
	int r = try_remove_event();

	if (r < 0)
		probe_missing(probe, r, "removing a page with the event negotiated: %s", describe_trial(r));
	else
		probe_ok(probe, "a thread removed a page, and its event was read");
}

const struct check uffd_checks[] = {
	{ .name = "uffd_open",
	  .title = "having one",
	  .uses = DOCTOR_SERVING | DOCTOR_PREFETCH,
	  .required = DOCTOR_SERVING | DOCTOR_PREFETCH,
	  .probe = probe_open,
	  .cost = "VMMs run as this user can't be served where the kernel touches guest memory for them (KVM, vhost, "
		  "system calls)",
	  .remedy = "sysctl vm.unprivileged_userfaultfd=1, or CAP_SYS_PTRACE (systemd: AmbientCapabilities=CAP_SYS_PTRACE), "
		    "or chmod/chgrp " DEVICE " (Linux 6.1)" },
	{ .name = "uffd_fault",
	  .title = "serving a fault",
	  .uses = DOCTOR_SERVING | DOCTOR_PREFETCH,
	  .required = DOCTOR_SERVING | DOCTOR_PREFETCH,
	  .probe = probe_fault,
	  .cost = "forks can't be served here",
	  .remedy = "see the line above: it takes a userfaultfd first" },
	{ .name = "uffd_kernel_fault",
	  .title = "a fault of the kernel's",
	  .uses = DOCTOR_SERVING,
	  .probe = probe_kernel_fault,
	  .cost = "KVM, vhost and a VMM's own system calls get EFAULT from absent pages: only VMMs that emulate in user "
		  "mode, like QEMU without KVM, can be served",
	  .remedy = "sysctl vm.unprivileged_userfaultfd=1, or CAP_SYS_PTRACE, or access to " DEVICE },
	{ .name = "uffd_unprivileged",
	  .title = "for unprivileged VMMs",
	  .uses = DOCTOR_VMM,
	  .probe = probe_unprivileged,
	  .cost = "VMMs that give up root (Firecracker's jailer) can't make the userfaultfd that they hand over",
	  .remedy = "chgrp GROUP " DEVICE " && chmod 660 " DEVICE
		    " (Linux 6.1), or sysctl vm.unprivileged_userfaultfd=1" },
	{ .name = "uffd_ioctls",
	  .title = "what it can do",
	  .uses = DOCTOR_SERVING | DOCTOR_PREFETCH,
	  .required = DOCTOR_SERVING | DOCTOR_PREFETCH,
	  .probe = probe_ioctls,
	  .cost = "forks can't be served here",
	  .remedy = "a kernel with CONFIG_USERFAULTFD=y" },
	{ .name = "uffd_poison",
	  .title = "POISON",
	  .uses = DOCTOR_SERVING,
	  .probe = probe_poison,
	  .cost = "a page of the image that can't be read stops the whole VMM, as it can't raise SIGBUS alone",
	  .remedy = "run Linux 6.6 or newer" },
	{ .name = "uffd_event_remove",
	  .title = "EVENT_REMOVE",
	  .uses = DOCTOR_SERVING | DOCTOR_PREFETCH,
	  .probe = probe_remove,
	  .cost = "pages that a guest gives back (balloon) would come back with the template's bytes: run guests without one",
	  .remedy = "run Linux 4.11 or newer" },
	{ .name = "uffd_event_unmap",
	  .title = "EVENT_UNMAP",
	  .uses = DOCTOR_VMM,
	  .probe = probe_feature,
	  .argument = UFFD_FEATURE_EVENT_UNMAP,
	  .cost = "a VMM that asks for it is refused; memory that it unmaps without it stays on the server's map",
	  .remedy = "run Linux 4.11 or newer" },
	{ .name = "uffd_event_remap",
	  .title = "EVENT_REMAP",
	  .uses = DOCTOR_VMM,
	  .probe = probe_feature,
	  .argument = UFFD_FEATURE_EVENT_REMAP,
	  .cost = "a VMM that asks for it is refused; memory that it moves (mremap) without it reads as zeros at its new place",
	  .remedy = "run Linux 4.11 or newer, with CAP_SYS_PTRACE" },
	{ .name = "uffd_event_fork",
	  .title = "EVENT_FORK",
	  .uses = DOCTOR_VMM,
	  .probe = probe_feature,
	  .argument = UFFD_FEATURE_EVENT_FORK,
	  .cost = "a VMM that asks for it is refused; without it a child process of a VMM reads zeros from absent pages",
	  .remedy = "run Linux 4.11 or newer, with CAP_SYS_PTRACE" },
	{ .name = "uffd_shared_memory",
	  .title = "MISSING_SHMEM",
	  .uses = DOCTOR_VMM,
	  .probe = probe_shared_memory,
	  .cost = "VMMs whose guest memory is shared (memfd, vhost-user) can't be served",
	  .remedy = "run Linux 4.11 or newer" },
	{ .name = "uffd_hugetlbfs",
	  .title = "MISSING_HUGETLBFS",
	  .uses = DOCTOR_VMM,
	  .probe = probe_feature,
	  .argument = UFFD_FEATURE_MISSING_HUGETLBFS,
	  .cost = "VMMs with huge pages can't be served",
	  .remedy = "a kernel with CONFIG_HUGETLBFS=y, 4.11 or newer" },
	{ .name = "uffd_minor",
	  .title = "MINOR_SHMEM",
	  .probe = probe_feature,
	  .argument = UFFD_FEATURE_MINOR_SHMEM,
	  .cost = "nothing: faultline copies pages, and maps none",
	  .remedy = "nothing to do; Linux 5.14 has it" },
	{ .name = "uffd_thread_id",
	  .title = "THREAD_ID",
	  .probe = probe_feature,
	  .argument = UFFD_FEATURE_THREAD_ID,
	  .cost = "nothing where it serves; VMMs that ask for it are refused by the kernel",
	  .remedy = "nothing to do; Linux 4.14 has it" },
	{ .name = "uffd_exact_address",
	  .title = "EXACT_ADDRESS",
	  .probe = probe_feature,
	  .argument = UFFD_FEATURE_EXACT_ADDRESS,
	  .cost = "nothing: faultline needs the page alone",
	  .remedy = "nothing to do; Linux 5.18 has it" },
	{ .name = "uffd_move",
	  .title = "MOVE",
	  .probe = probe_feature,
	  .argument = UFFD_FEATURE_MOVE,
	  .cost = "nothing: faultline moves no pages",
	  .remedy = "nothing to do; Linux 6.8 has it" },
	{ 0 },
};
