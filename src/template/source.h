/*
 * Where pages come from: a memory image behind one small interface.
 *
 *	open ──► peek ⟲ ── not known to be in memory ──► read_now ⟲ ── not in memory ──► submit ──► done (on the submitting thread)
 *	  ├────► read ⟲ (threads that may wait: prefetch)
 *	  ├────► refresh, from time to time (a thread that may wait): what peek knows
 *	  └────► close, when nothing is under way any more
 *
 * All but close may be called from several threads at once. Reads past the image's end give zeros, so that an image whose size is not a
 * multiple of the page size ends in zeros; reads that the image should have satisfied and did not are errors, never zeros.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "template/io.h"

struct source;
struct zero_map;

/* Says that a thread may be copying bytes which only a lease vouches for. One thread each. */
struct lease_section {
	_Atomic bool busy;
	struct lease_section *next; /* the keeper's */
};

struct source_ops {
	const char *name;
	/* LENGTH bytes at OFFSET, all within the image. 0; -EAGAIN: not in memory, or not to be had without waiting; else an error. */
	int (*read_now)(struct source *source, void *buffer, size_t length, uint64_t offset);
	/* The same, waiting as long as it takes. */
	int (*read)(struct source *source, void *buffer, size_t length, uint64_t offset);
	/*
	 * Has LENGTH bytes at OFFSET, all within the image, brought into memory, without waiting for it: read_now finds them there soon. May be
	 * NULL: nothing but a read brings them.
	 */
	void (*advise)(struct source *source, size_t length, uint64_t offset);
	/* Starts READ, whose buffer, offset, length and done are set. 0 or -EBUSY. */
	int (*submit)(struct source *source, struct io *io, struct io_read *read);
	/*
	 * Where LENGTH bytes at OFFSET, all within the image, can be copied from by a system call that takes an address: it does not
	 * wait, and fails only with EFAULT, where the image has been cut short. NULL: not known; ask read_now. May be NULL. What was copied
	 * is to be believed only once `intact`, called after it, has said so.
	 */
	const void *(*peek)(struct source *source, size_t length, uint64_t offset, uint64_t now_ns);
	/* Whether bytes copied before from a peeked address are the image's. May be NULL where peek is. */
	bool (*intact)(struct source *source, size_t length, uint64_t offset);
	/* Finds out again what is in memory. May be NULL. */
	void (*refresh)(struct source *source);
	void (*close)(struct source *source);
};

/* Embedded in every source. */
struct source {
	const struct source_ops *ops;
	uint64_t size;		/* bytes of the image, fixed when it was opened */
	struct zero_map *zeros; /* pages that need no reading; owned; NULL: none is kept. Set before anybody reads */
	/* peek would have liked to know more than it does: somebody should call refresh, which clears this. */
	_Atomic bool stale;
	/* The keeper watches the image, and has seen no change. */
	_Atomic bool guarded;
	/* Nobody can write to the image, or cut it short, until the keeper lets them: see keeper_lease. */
	_Atomic bool leased;
	/* The keeper has seen a change: nothing is peeked at any more. */
	_Atomic bool changed;
};

/* The image in the file FD, which the source takes on success. */
int source_file_new(int fd, struct source **ret, struct error *err);
/* An image of SIZE zero bytes: measures what everything but reading costs. */
int source_null_new(uint64_t size, struct source **ret, struct error *err);
/*
 * A test aid around INNER, which it takes on success: SPEC is a list of delay=TIME (us, ms, s), rate=BYTES/s (kB, MB, GB), error=OFFSET+LENGTH
 * (may come several times), only=FILE. Nothing that it gives is ever in memory, unless FILE has a bit for each page of 4 KiB, most significant
 * first, that says which of them alone are slow. -EINVAL with code "bad_inject".
 */
int source_inject_new(struct source *inner, const char *spec, struct source **ret, struct error *err);

/* Whether it is a wrapper that makes all of its image slow; and in how many ns a read of LENGTH bytes from it that starts now would end. */
bool source_is_slowed(const struct source *source);
uint64_t source_slowed_ns(struct source *source, size_t length);

/* Whether [OFFSET, OFFSET + LENGTH) is known to be zeros. */
bool source_is_zero(const struct source *source, size_t length, uint64_t offset);
/* Of COUNT pages of PAGE_SIZE from OFFSET on, so many at the beginning are alike: all known to be zeros, or none. At least one. */
uint64_t source_count_alike(const struct source *source, uint64_t count, size_t page_size, uint64_t offset);

/* NULL as well where the range ends past the image. */
const void *source_peek(struct source *source, size_t length, uint64_t offset, uint64_t now_ns);
bool source_intact(struct source *source, size_t length, uint64_t offset);
void source_refresh(struct source *source);
int source_read_now(struct source *source, void *buffer, size_t length, uint64_t offset);
int source_read(struct source *source, void *buffer, size_t length, uint64_t offset);
/* False: the source can't. */
bool source_can_advise(const struct source *source);
void source_advise(struct source *source, size_t length, uint64_t offset);
int source_submit(struct source *source, struct io *io, struct io_read *read);
/* NULL is fine. */
void source_close(struct source *source);
