/*
 * Open connections and their deadlines. One thread watches them and shuts down those whose time is up: clients that are slow to
 * ask, slow to read or merely there. The HTTP library's own idle limit is no help: it starts again with every byte, so a client that trickles is never
 * stopped, and libmicrohttpd 0.9.75 spins through the last second of it.
 */
#pragma once

#include <stdint.h>

struct connections;
struct connection;

/* -EAGAIN or -ENOMEM: no thread to watch. */
int connections_new(struct connections **ret);
/* All connections have been removed by then. NULL is fine. */
void connections_free(struct connections *connections);

/* FD stays open at least until connection_remove. NULL: no memory. Thread-safe, as the rest. */
struct connection *connection_add(struct connections *connections, int fd, uint64_t time_ns);
void connection_remove(struct connection *connection);

/* From now on it has TIME_NS; 0: as long as it takes. NULL is fine. */
void connection_allow(struct connection *connection, uint64_t time_ns);
