/* What a VMM says when it connects: Firecracker's array of regions, or hypeman's object around one. Pure parsing, no descriptors. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "uffd/regions.h"

/* 1024 regions of five 20-digit members fit into a fifth of this; more is not a handshake. */
#define HANDSHAKE_MAX_BYTES (1u << 20)

/*
 * Values in the text, whatever they are: a parsed one takes up to some 250 bytes, and three of the text ("{},"), so that 1 MiB would
 * become 80. This many are the regions that there may be, with 16 members each.
 */
#define HANDSHAKE_MAX_VALUES (17 * REGIONS_MAX)

/* A stream may deliver the text in pieces: finds where it ends, looking at each byte once. Zero-initialised to start. */
struct handshake_scan {
	unsigned depth;
	bool started, in_string, escaped;
};

enum handshake_progress { HANDSHAKE_INCOMPLETE, HANDSHAKE_COMPLETE, HANDSHAKE_MALFORMED };

/* Takes SIZE further bytes. COMPLETE: the text ended with the last of them, but for white space. */
enum handshake_progress handshake_scan(struct handshake_scan *scan, const char *data, size_t size);

struct handshake {
	const char *kind;	/* "firecracker" or "hypeman" */
	struct region *regions; /* owned by the caller; not yet validated */
	size_t region_count;
	bool answers; /* the first region says "answers": true: the VMM reads what is said on its socket */
};

/* Code "bad_handshake". ret->regions is freed by the caller. */
int handshake_parse(const char *text, size_t size, uint64_t host_page_size, struct handshake *ret, struct error *err);
