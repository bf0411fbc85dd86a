/* One message with one descriptor over a Unix socket: how a guest hands its userfaultfd to whoever supplies its pages. */
#pragma once

#include <stddef.h>

/* 0, or negative errno. */
int handover_send(int conn, const void *data, size_t size, int fd);
/* Waits for a message of exactly SIZE bytes. The descriptor, or negative errno. */
int handover_receive(int conn, void *data, size_t size);
