#include "integration/harness/huge.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"

#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21u << 26)
#endif
#ifndef MAP_HUGE_2MB
#define MAP_HUGE_2MB (21 << 26)
#endif

#define POOL "/sys/kernel/mm/hugepages/hugepages-2048kB/"

static unsigned pool_read(const char *name)
{
	unsigned value = 0;
	char path[128];

	snprintf(path, sizeof path, POOL "%s", name);
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	if (!f || fscanf(f, "%u", &value) != 1)
		fail_msg("cannot read %s: %s", path, strerror(errno));
	return value;
}

static bool pool_write(const char *name, unsigned value)
{
	char path[128];

	snprintf(path, sizeof path, POOL "%s", name);
	_cleanup_fclose_ FILE *f = fopen(path, "we");
	return f && fprintf(f, "%u\n", value) > 0 && fflush(f) == 0;
}

/* Ends when the last process that has the other end of the pipe has ended, whichever way that was. */
static void __attribute__((noreturn)) guard(int end, unsigned pages, unsigned overcommit)
{
	char byte;

	/* A Ctrl-C, or ctest's time limit, is for the test, and this process is to be left. */
	setsid();
	for (int i = 1; i < 32; i++)
		signal(i, SIG_IGN);
	while (read(end, &byte, 1) < 0 && errno == EINTR)
		;
	pool_write("nr_hugepages", pages);
	pool_write("nr_overcommit_hugepages", overcommit);
	_exit(0);
}

void huge_require(void)
{
	static int guarded = -1; /* stays open as long as this process and its children live */
	int ends[2];

	harness_require();
	if (access(POOL, F_OK) < 0) {
		printf("skipped: this kernel has no huge pages of 2 MiB (%s is missing)\n", POOL);
		exit(77);
	}
	int lock = open(POOL "nr_hugepages", O_RDWR | O_CLOEXEC);
	if (lock < 0 || flock(lock, LOCK_EX) < 0) {
		fprintf(stderr, "cannot take the pool of huge pages, " POOL "nr_hugepages: %s\n", strerror(errno));
		exit(1);
	}
	unsigned pages = pool_read("nr_hugepages"), overcommit = pool_read("nr_overcommit_hugepages");
	if (pipe2(ends, O_CLOEXEC) < 0)
		exit(1);
	pid_t pid = fork();
	if (pid == 0) {
		close(ends[1]);
		guard(ends[0], pages, overcommit);
	}
	close(ends[0]);
	guarded = ends[1];
	(void)guarded;
	if (pid < 0 || !pool_write("nr_overcommit_hugepages", 0)) {
		fprintf(stderr, "cannot set the pool of huge pages: %s\n", strerror(errno));
		exit(1);
	}
}

unsigned huge_pool_free(void)
{
	unsigned free = pool_read("free_hugepages"), reserved = pool_read("resv_hugepages");

	return free > reserved ? free - reserved : 0;
}

void huge_pool_set_free(unsigned count)
{
	unsigned taken = pool_read("nr_hugepages") - huge_pool_free();

	if (!pool_write("nr_hugepages", taken + count))
		fail_msg("cannot set vm.nr_hugepages to %u: %s", taken + count, strerror(errno));
	if (huge_pool_free() != count)
		fail_msg("this machine can't give %u huge pages of 2 MiB, only %u: its memory is too small, too full or too "
			 "fragmented",
			 count, huge_pool_free());
}

void huge_pool_await_free(unsigned count)
{
	uint64_t deadline = deadline_in(WAIT_S);

	while (huge_pool_free() != count) {
		if (!deadline_ms(deadline))
			fail_msg("%u huge pages are free where %u should be", huge_pool_free(), count);
		poll(NULL, 0, 1);
	}
}

static void *map_memfd(uint64_t size)
{
	_cleanup_close_ int fd = memfd_create("guest", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB);

	if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
		return MAP_FAILED;
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
}

struct vmm_region *vmm_add_huge_region(struct vmm *vmm, enum huge_kind kind, uint64_t size, uint64_t offset)
{
	void *p = kind == HUGE_MEMFD
			  ? map_memfd(size)
			  : mmap(NULL, size, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_HUGETLB | MAP_HUGE_2MB, -1, 0);

	client_require(vmm->self, p != MAP_FAILED, "mapping %" PRIu64 " bytes of huge pages: %s", size, strerror(errno));
	return vmm_adopt_region(vmm, p, size, offset, HUGE);
}

uint64_t vmm_present_huge(struct vmm *vmm, const struct vmm_region *region)
{
	return vmm_present_count(vmm, region) * PAGE / HUGE;
}
