/* The raw end of a fork's socket: any bytes with any descriptors, in any pieces. For children (see client.h). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* fd or negative errno. */
int peer_connect(const char *socket);

/*
 * Sends DATA; the descriptors go with its first byte. CHUNK 0 is one sendmsg for all; otherwise pieces of that many bytes,
 * the next only when the peer has read the last. 0, or negative errno (-EPIPE, -ECONNRESET: the peer has hung up).
 */
int peer_send(int conn, const void *data, size_t size, const int *fds, unsigned fd_count, size_t chunk);

/* Waits until the other side has closed; false if it hasn't by DEADLINE (of deadline_in). */
bool peer_await_closed(int conn, uint64_t deadline);
