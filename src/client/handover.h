/*
 * Handing memory over to a page server, step by step: a userfaultfd, a connection, registration, and Firecracker's handshake. Both
 * libfaultline and the preload library are made of this. All functions return a result as the public API does and fill ERROR; on failure
 * what the handover holds so far stays in it, for handover_clear.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "faultline/result.h"

/* How long a server may take if nobody says otherwise: as long as it gives us for our handshake. */
#define HANDOVER_TIMEOUT_MS 10000

#define HANDOVER_NO_DEADLINE UINT64_MAX

/* One piece of guest memory, in the handshake's terms. Sizes in bytes. */
struct handover_region {
	uintptr_t address;
	uint64_t size, offset, page_size;
};

struct handover {
	int uffd, socket; /* -1: not there (yet) */
	int lowest_fd;	  /* descriptors are numbered from here on where there is room; 0: anywhere */
};

/* Closes what it holds. */
void handover_clear(struct handover *handover);

/* A point in CLOCK_MONOTONIC for a timeout in milliseconds (-1: none), and the milliseconds left until then, as poll wants them. */
uint64_t handover_deadline(int timeout_ms);
int handover_time_left(uint64_t deadline);

/* A userfaultfd with removal events, and for HUGE pages where asked for. FAULTLINE_NOT_SUPPORTED where there is none to be had. */
int handover_open(struct handover *handover, bool huge, struct faultline_error *error);

int handover_connect(struct handover *handover, const char *path, uint64_t deadline, struct faultline_error *error);

/*
 * Rules out huge pages and the memory's inheritance by children, and registers it. The memory is what the region says: private anonymous
 * memory, or of hugetlbfs with that page size; FAULTLINE_BAD_ARGUMENT where not.
 */
int handover_register(const struct handover *handover, const struct handover_region *region,
		      struct faultline_error *error);

/* One message with the regions and the userfaultfd. ANSWERS: asks a faultline server to answer. */
int handover_send(const struct handover *handover, const struct handover_region *regions, size_t count, bool answers,
		  uint64_t deadline, struct faultline_error *error);
