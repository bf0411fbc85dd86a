/*
 * What is said on a fork's socket after the handshake, with VMMs whose handshake asked for answers (libfaultline's does, Firecracker's
 * does not): lines of text, described in docs/client.md. All of these with server->lock held; none waits, and an answer that the VMM
 * leaves no room for is lost.
 */
#pragma once

#include <stddef.h>

#include "base/error.h"

struct fork;
struct peer;
struct server;

/* The handshake was taken, and the fork is served. */
void vmm_talk_connected(const struct fork *fork);
/* It was not, for the reason in ERR. */
void vmm_talk_refused(const struct peer *peer, const struct error *err);
/* SIZE bytes that the VMM has sent: lines, or pieces of them. */
void vmm_talk_heard(struct server *server, struct fork *fork, const char *text, size_t size);
/* To be called where the fork's prefetch has come to an end, good or bad: a VMM that waits for that is told. */
void vmm_talk_prefetched(struct fork *fork);
