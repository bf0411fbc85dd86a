/*
 * The floor for guests that speak the handshake: a page server that does nothing else. A loop of poll, read and copy, and before it, where there is a list, one copy a page in
 * order of address, which is how a simple server prefetches.
 */
#pragma once

#include "bench/server.h"
#include "hotlist/hotlist.h"

/* What it says when it listens, and when the list is there; then the guest may run. */
#define FLOOR_LISTENS 'l'
#define FLOOR_THERE   'p'

struct floor_served {
	char socket[SOCKET_PATH_SIZE];
	const char *image_path;
	const struct hotlist *list; /* sorted; NULL: nothing is prefetched */
	int cpu;		    /* where it stands */
};
/* Serves one guest, until it is killed. */
int floor_served_body(const void *data, void *result, struct error *err);
