/* How a replaying guest hands its memory to a page server: by libfaultline, as a VMM would. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

/*
 * Hands the COUNT mappings of SIZE bytes each, which have no pages, to the server that listens on SOCKET; each of them is the whole image. ANSWERS: it is one of faultline, which says whether it
 * has taken the memory; else nobody does. *RET_CONNECTION is for poll with POLLRDHUP and nothing else: the server has hung up. All of it lasts
 * until the process ends, since a guest whose userfaultfd is closed before would read zeros.
 */
int connect_memory(const char *socket, bool answers, void *const *mappings, unsigned count, uint64_t size,
		   int *ret_connection, struct error *err);
