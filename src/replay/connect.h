/* How a replaying guest hands its memory to a page server. */
#pragma once

#include <stdint.h>

#include "base/error.h"

/*
 * Registers the memory at BASE with a userfaultfd, and gives that to the server that listens on SOCKET, as Firecracker does. The
 * userfaultfd stays open in this process, and is never closed before it ends: a guest without it would read zeros. The connection, which
 * the server closes when it gives the memory up, is the caller's.
 */
int connect_memory(const char *socket, void *base, uint64_t size, int *ret_connection, struct error *err);
