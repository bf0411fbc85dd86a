/*
 * The userfaultfd calls, and the one place that decides what each errno of theirs means to a page server.
 * FD is a userfaultfd of any process. Addresses are in that process. Nothing here keeps state; all of it is thread-safe.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "uffd/abi.h"

/* How a call to put pages into a guest ended. What came before the page where it ended is done: see ret_done. */
enum uffd_outcome {
	UFFD_DONE,
	UFFD_PRESENT,	 /* the next page is there already; a thread may still wait on it, and only a wake helps it */
	UFFD_CHANGING,	 /* an event is unread, or its thread has not gone on yet: read events, then try again */
	UFFD_UNMAPPED,	 /* no registered memory there (any more) */
	UFFD_GONE,	 /* the process has no memory any more: it is ending */
	UFFD_NO_MEMORY,	 /* no page to be had: the hugetlbfs pool, or a memory limit */
	UFFD_BAD_SOURCE, /* our own source address could not be read */
	UFFD_REFUSED,	 /* anything else: a mistake of ours or of the peer's registration */
};

/* LENGTH is a multiple of the page size. ret_done: bytes in place from ADDRESS on, whatever the outcome. ret_errno: for messages. */
struct uffd_result {
	enum uffd_outcome outcome;
	size_t done;
	int error; /* negative errno behind an outcome other than UFFD_DONE */
};

/* Copies, and wakes whoever waits there; without WAKE they sleep until uffd_wake. */
struct uffd_result uffd_copy(int fd, uint64_t address, const void *source, size_t length, bool wake);
/* Maps zero pages and wakes. Not for hugetlbfs. */
struct uffd_result uffd_zero(int fd, uint64_t address, size_t length, bool wake);
/* Makes the pages raise SIGBUS when touched, and wakes. UFFD_REFUSED before Linux 6.6. */
struct uffd_result uffd_poison(int fd, uint64_t address, size_t length);
/* Makes waiters in the range fault again. */
int uffd_wake(int fd, uint64_t address, size_t length);

/*
 * Reads up to COUNT messages, without waiting for one. Their number, or negative errno. The peer shares the descriptor's flags, and may make
 * it blocking at any time: before Linux 6.10 this waits then.
 */
int uffd_read(int fd, struct uffd_msg *messages, size_t count);

/* Whether FD is a userfaultfd at all. */
bool uffd_is_userfaultfd(int fd);

/* Non-blocking, close-on-exec, able to serve kernel-mode faults: by system call, else by /dev/userfaultfd. fd or negative errno. */
int uffd_open(void);

/* The same for faults in user mode alone, which every user may have: no KVM, no system calls on absent pages. fd or negative errno. */
int uffd_open_user_mode(void);

/*
 * Features that this kernel knows, by UFFDIO_API on a descriptor of our own; one for user mode will do, as it is the VMMs' descriptors
 * that are served.
 */
int uffd_probe_features(uint64_t *ret_features, struct error *err);

/*
 * Negotiates UFFDIO_API on a peer's descriptor: 1 done now with FEATURES, 0 the peer had done it already, negative errno otherwise.
 * A descriptor on which it was done answers EINVAL, which is why FEATURES must be a subset of what the kernel knows.
 */
int uffd_negotiate(int fd, uint64_t features);

/* Features negotiated on FD, from /proc. */
int uffd_negotiated_features(int fd, uint64_t *ret_features);

int uffd_register_missing(int fd, uint64_t address, uint64_t length);

/* Whether the page at ADDRESS is in memory registered with FD, found out without changing it. 1, 0, or negative errno. */
int uffd_is_registered(int fd, uint64_t address, uint64_t page_size);

/*
 * Whether the registered memory in a region has pages of PAGE_SIZE, all of it where they are huge, a few samples where they are small (a
 * huge page among them only fails to be supplied). 1; 0: it has others; or negative errno. What is not registered does not count.
 */
int uffd_has_page_size(int fd, uint64_t address, uint64_t length, uint64_t page_size);
