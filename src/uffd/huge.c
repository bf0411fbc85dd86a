#include "uffd/huge.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"

#ifndef MADV_POPULATE_READ /* Linux 5.14 */
#define MADV_POPULATE_READ  22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MAP_HUGE_SHIFT
#define MAP_HUGE_SHIFT 26
#endif

#define PAGEMAP_PRESENT (1ull << 63)

void huge_populate(const void *data, size_t length)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)data & ~(page - 1);

	/* An image that was cut short fails here, and the copy will tell. */
	madvise((void *)start, length + ((uintptr_t)data - start), MADV_POPULATE_READ);
}

int huge_is_present(pid_t pid, uint64_t address)
{
	uint64_t entry, small = (uint64_t)sysconf(_SC_PAGESIZE);
	char path[64];

	if (pid <= 0)
		return -ESRCH;
	snprintf(path, sizeof path, "/proc/%d/pagemap", (int)pid);
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ssize_t n = pread(fd, &entry, sizeof entry, (off_t)(address / small * sizeof entry));
	if (n != sizeof entry)
		return n < 0 ? -errno : -ESRCH; /* the process is ending */
	return (entry & PAGEMAP_PRESENT) != 0;
}

bool huge_page_to_be_had(uint64_t page_size)
{
	int shift = __builtin_ctzll(page_size) << MAP_HUGE_SHIFT;
	void *p = mmap(NULL, page_size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_HUGETLB | shift, -1, 0);
	if (p == MAP_FAILED)
		return false;
	/* A touch would raise SIGBUS where there is none; this says so. */
	bool had = madvise(p, page_size, MADV_POPULATE_WRITE) == 0;
	munmap(p, page_size);
	return had;
}

/* A number that the kernel keeps of the pool; false where it keeps none. */
static bool pool_number(uint64_t page_size, const char *name, uint64_t *ret)
{
	char path[128];

	snprintf(path, sizeof path, "/sys/kernel/mm/hugepages/hugepages-%" PRIu64 "kB/%s", page_size >> 10, name);
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	return f && fscanf(f, "%" SCNu64, ret) == 1;
}

void describe_no_memory(uint64_t page_size, char *text, size_t size)
{
	uint64_t total, free, reserved;

	if (page_size <= (uint64_t)sysconf(_SC_PAGESIZE)) {
		snprintf(text, size,
			 "no memory for a page of %" PRIu64
			 " bytes: raise the memory limit of its cgroup, or free memory",
			 page_size);
		return;
	}
	if (!pool_number(page_size, "nr_hugepages", &total) || !pool_number(page_size, "free_hugepages", &free) ||
	    !pool_number(page_size, "resv_hugepages", &reserved))
		total = free = reserved = 0;
	if (free > reserved)
		snprintf(text, size,
			 "no huge page of %" PRIu64 " KiB, though the pool has %" PRIu64
			 " free by now: raise vm.nr_hugepages, or the hugetlb limit of the server's cgroup",
			 page_size >> 10, free - reserved);
	else
		snprintf(text, size,
			 "no huge page of %" PRIu64 " KiB: the pool of %" PRIu64
			 " is empty, or reserved: raise vm.nr_hugepages",
			 page_size >> 10, total);
}
