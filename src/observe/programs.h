/* The BPF programs, loaded and attached, and what is said to them through their maps. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "bpf/event.h"

struct observe_bpf; /* the skeleton */

struct programs_config {
	const char *const *names; /* programs to load and attach; NULL-terminated */
	size_t ring_bytes;	  /* a power of two, at least a page */
	bool waits_by_switch;
};

struct programs {
	struct observe_bpf *skeleton;
	struct bpf_link *links[16];
	size_t link_count;
	struct bpf_link *iterator; /* find_context, over the files of this process; NULL: it isn't among the programs */
};

/* Loads and attaches them all, or says which one failed, where, and why. */
int programs_load(const struct programs_config *config, struct programs **ret, struct error *err);
/* NULL is fine. */
void programs_free(struct programs *programs);

/*
 * The kernel's userfaultfd context behind the descriptor FD of this process, and the address space that it is for. One thread at a time.
 * -ENOENT: it wasn't found.
 */
int programs_find_context(struct programs *programs, int fd, uint64_t *ret_context, uint64_t *ret_mm);
/* The address space of another process. -ESRCH: it has none, or is gone. */
int programs_find_mm(struct programs *programs, pid_t pid, uint64_t *ret_mm);

/* A fork's entry in the map that counts, as SLOT; faults are told from now on if a context or a range leads there. */
int programs_add_fork(struct programs *programs, uint32_t slot, const struct fork_stats *stats);
int programs_fork_stats(struct programs *programs, uint32_t slot, struct fork_stats *ret);
void programs_remove_fork(struct programs *programs, uint32_t slot);
int programs_add_context(struct programs *programs, uint64_t context, uint32_t slot);
void programs_remove_context(struct programs *programs, uint64_t context);
/* All addresses from START up to END (exclusive) in the address space MM lead to SLOT. */
int programs_add_range(struct programs *programs, uint64_t mm, uint64_t start, uint64_t end, uint32_t slot);
void programs_remove_range(struct programs *programs, uint64_t mm, uint64_t start, uint64_t end);

/* Lets the threads of the process PID tell what they have touched of SLOT's memory and not told yet. One thread at a time. */
int programs_tell_pending(struct programs *programs, pid_t pid, uint32_t slot);

/* Times that a program didn't run because it was running already on that CPU: each may be an event that nobody saw. */
uint64_t programs_missed(struct programs *programs);
