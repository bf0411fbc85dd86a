/*
 * What is different about pages of hugetlbfs: they come from a pool that may be empty, and the kernel does not say so plainly. Putting
 * one in then fails with ENOMEM, or with EEXIST as if the page were there (alloc failures in hugetlb_mfill_atomic_pte, seen on Linux
 * 6.18). Whoever believed that EEXIST would wake the waiter, who faults again, for ever.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/*
 * Puts LENGTH bytes at DATA, which this process has mapped, into its page table. A copy from elsewhere takes a second page of the
 * pool for a moment, so that the last one could not be supplied.
 */
void huge_populate(const void *data, size_t length);

/* Whether there is a page at ADDRESS in the process. 1, 0, or negative errno: not known. */
int huge_is_present(pid_t pid, uint64_t address);

/* Whether this process can have a page of PAGE_SIZE bytes at this moment, found out by taking one and giving it back. */
bool huge_page_to_be_had(uint64_t page_size);

/* Writes why a page of PAGE_SIZE bytes is not to be had, and what to do about it, for any page size. */
void describe_no_memory(uint64_t page_size, char *text, size_t size);
