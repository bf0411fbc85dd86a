/*
 * A process's own memory by system calls alone: the preload library has functions of its own named mmap and madvise, which
 * what stands beneath it must not meet.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define HUGE_PAGE_SIZE (2ull << 20)

/* As mmap: MAP_FAILED and errno. */
void *memory_map(void *address, size_t length, int protection, int flags, int fd, off_t offset);
/* As madvise: -1 and errno. */
int memory_advise(void *address, size_t length, int advice);

size_t memory_page_size(void);

/*
 * Looks for a page that is there already, whatever it holds. 1: *ret_offset says where the first is; 0: there is none; negative errno
 * (-ENOMEM: not all of the range is mapped). What is swapped out is not seen.
 */
int memory_find_page(const void *address, size_t length, size_t *ret_offset);

/*
 * Makes inaccessible what of the range is mapped and registered with UFFD; anything else that is there by now stays. Without /proc all of it
 * counts as registered. 0 or negative errno.
 */
int memory_retire(int uffd, uintptr_t address, size_t length);
