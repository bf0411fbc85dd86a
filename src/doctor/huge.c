/* Huge pages: the pool that VMMs take them from, and the transparent ones. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "doctor/check.h"
#include "doctor/machine.h"
#include "doctor/trial.h"
#include "uffd/uffd.h"

#define HUGE_PAGE (2ul << 20)
#define POOL	  "/sys/kernel/mm/hugepages/hugepages-2048kB/"

/* mmap's log2 of the page size, for those that aren't the machine's default. */
#define MAP_HUGE_2_MIB (21u << 26)

static int try_huge_fault(void)
{
	_cleanup_free_ char *content = malloc(HUGE_PAGE);
	_cleanup_close_ int fd = trial_open(UFFD_FEATURE_MISSING_HUGETLBFS, NULL);

	if (!content)
		return -ENOMEM;
	if (fd < 0)
		return fd;
	memset(content, 0x5a, HUGE_PAGE);
	void *memory = mmap(NULL, HUGE_PAGE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (int)MAP_HUGE_2_MIB, -1, 0);
	if (memory == MAP_FAILED)
		return -errno;
	int r = uffd_register_missing(fd, (uintptr_t)memory, HUGE_PAGE);
	if (r == 0)
		r = trial_fault(fd, memory, HUGE_PAGE, content, TRIAL_READ);
	munmap(memory, HUGE_PAGE);
	return r;
}

static void probe_pool(struct probe *probe)
{
	long long total = 0, free_pages = 0, reserved = 0, surplus = 0;

	if (read_number(POOL "nr_hugepages", &total) < 0) {
		probe_missing(probe, -ENOENT, "this kernel has no huge pages of 2 MiB");
		probe_remedy(probe, "a kernel with CONFIG_HUGETLBFS=y");
		return;
	}
	read_number(POOL "free_hugepages", &free_pages);
	read_number(POOL "resv_hugepages", &reserved);
	read_number(POOL "nr_overcommit_hugepages", &surplus);
	if (total == 0 && surplus == 0) {
		probe_missing(probe, 0, "none reserved");
		return;
	}
	if (free_pages - reserved <= 0 && surplus == 0) {
		probe_degraded(probe, 0, "none free: all of %lld of 2 MiB are in use or promised", total);
		return;
	}
	int r = try_huge_fault();
	if (r < 0)
		probe_degraded(probe, r, "%lld of %lld of 2 MiB free, but serving a fault on one failed: %s",
			       free_pages - reserved, total, strerror(-r));
	else
		probe_ok(probe, "%lld of %lld of 2 MiB free; a fault on one was served", free_pages - reserved, total);
}

static void probe_thp(struct probe *probe)
{
	char line[128];
	int r = read_line("/sys/kernel/mm/transparent_hugepage/enabled", line, sizeof line);

	if (r < 0)
		probe_ok(probe, "this kernel has none");
	else if (strstr(line, "[always]"))
		probe_degraded(probe, 0, "%s", line);
	else
		probe_ok(probe, "%s", line);
}

const struct check huge_checks[] = {
	{ .name = "huge_pages",
	  .title = "pool of 2 MiB pages",
	  .uses = DOCTOR_VMM,
	  .probe = probe_pool,
	  .cost = "VMMs that want huge pages don't start",
	  .remedy = "sysctl vm.nr_hugepages=N, where N times 2 MiB is the guests' memory; best early, before memory is in "
		    "pieces" },
	{ .name = "transparent_huge_pages",
	  .title = "transparent huge pages",
	  .uses = DOCTOR_VMM,
	  .probe = probe_thp,
	  .cost = "a VMM that leaves registration to the server (hypeman) gets 2 MiB of zeros in place of 4 KiB where it "
		  "touches memory too early",
	  .remedy = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled" },
	{ 0 },
};
