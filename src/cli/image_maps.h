/* Where a process has a memory image mapped, from /proc/PID/maps. */
#pragma once

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/cleanup.h"
#include "base/error.h"

/* Smaller files are libraries and tables rather than the memory of a guest. */
#define IMAGE_GUESS_MIN (1u << 20)

struct image_map {
	uint64_t address, size, offset; /* bytes; OFFSET in the image */
};

struct image_maps {
	char path[PATH_MAX];
	uint64_t device, inode;
	bool shared;		/* some of it by MAP_SHARED */
	uint64_t size;		/* mapped bytes */
	struct image_map *maps; /* by offset; pieces that follow each other are one */
	size_t count;
};

void image_maps_clear(struct image_maps *maps);
#define _cleanup_image_maps_ _cleanup_(image_maps_clear)

/*
 * FILE, or, where that is NULL, the file of which PID has most mapped, IMAGE_GUESS_MIN at least, without any part that it may execute, and no library. 0;
 * -ENOENT: it has none (ERR says so); -ESRCH: no such process; or what reading failed with.
 */
int image_maps_read(pid_t pid, const char *file, struct image_maps *ret, struct error *err);

/* How many bytes of them are in the process's page tables so far: it won't be seen to touch those first. 0 where that can't be known. */
uint64_t image_maps_present(pid_t pid, const struct image_maps *maps);

/* Whether the process is a KVM virtual machine. */
bool process_has_kvm(pid_t pid);
