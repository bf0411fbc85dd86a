#include "client/memory.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"

/* Pages looked at in one call: a byte each, on the stack. */
#define LOOK_PAGES 16384

void *memory_map(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
	return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
}

int memory_advise(void *address, size_t length, int advice)
{
	return (int)syscall(SYS_madvise, address, length, advice);
}

size_t memory_page_size(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
}

int memory_find_page(const void *address, size_t length, size_t *ret_offset)
{
	unsigned char there[LOOK_PAGES];
	const size_t page = memory_page_size(), most = LOOK_PAGES * page;

	for (size_t offset = 0; offset < length; offset += most) {
		size_t part = length - offset < most ? length - offset : most;

		while (mincore((char *)(uintptr_t)address + offset, part, there) < 0)
			if (errno != EAGAIN)
				return -errno;
		for (size_t i = 0; i < part / page; i++)
			if (there[i] & 1) {
				*ret_offset = offset + i * page;
				return 1;
			}
	}
	return 0;
}

/*
 * A copy from an address that nobody can map changes nothing, and finds out: memory that isn't registered answers ENOENT before the source
 * is looked at. Whether it is registered with UFFD or with another one, registering it again tells: for another's the answer is EBUSY.
 */
static bool is_registered_with(int uffd, uintptr_t start, uintptr_t end)
{
	struct uffdio_copy copy = { .dst = start, .src = 0x1000, .len = memory_page_size() };
	struct uffdio_register again = {
		.range = { .start = start, .len = end - start },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	if (ioctl(uffd, UFFDIO_COPY, &copy) < 0 && errno == ENOENT)
		return false;
	return ioctl(uffd, UFFDIO_REGISTER, &again) == 0;
}

static int make_inaccessible(uintptr_t start, uintptr_t end)
{
	void *there = memory_map((void *)start, end - start, PROT_NONE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);

	return there == MAP_FAILED ? -errno : 0;
}

int memory_retire(int uffd, uintptr_t address, size_t length)
{
	_cleanup_fclose_ FILE *maps = fopen("/proc/self/maps", "re");
	_cleanup_free_ char *line = NULL;
	size_t size = 0;
	bool any_line = false;
	int r = 0;

	while (r == 0 && maps && getline(&line, &size, maps) > 0) {
		unsigned long start, end;

		if (sscanf(line, "%lx-%lx ", &start, &end) != 2)
			continue;
		any_line = true;
		if (start >= address + length || end <= address)
			continue;
		start = start > address ? start : address;
		end = end < address + length ? end : address + length;
		if (is_registered_with(uffd, start, end))
			r = make_inaccessible(start, end);
	}
	return any_line ? r : make_inaccessible(address, address + length);
}
