/*
 * The floors: the least that could supply a guest's pages, in a process of its own. A bare loop of poll, read and copy from a mapping of
 * the image, which checks and counts nothing; and bare prefetchers.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "bench/guest.h"
#include "bench/image.h"

#define FLOOR_LOOPS_MAX GUEST_VCPUS_MAX

/* What a floor says when its image is mapped and it waits for userfaultfds. */
#define FLOOR_READY 'r'

/* Loops for GUESTS guests, each handing over at its own of the descriptors CHILD_FDS and up. Runs until it is killed. */
struct floor_loop {
	const struct bench_image *image;
	unsigned guests;
	unsigned loops; /* threads for each guest, all polling its userfaultfd */
	int cpus[FLOOR_LOOPS_MAX];
	bool spin; /* reads again and again instead of polling */
};
int floor_loop_body(const void *data, void *result, struct error *err);

/* Pages [page, page + count). */
struct floor_run {
	uint64_t page, count;
};

/*
 * Copies the runs to the one guest, at most MOST pages a call, from the image's mapping or from a buffer into which it READS them; tells the guest by one byte, and stays until it has gone.
 */
struct floor_prefetch {
	const struct bench_image *image;
	const struct floor_run *runs;
	uint64_t run_count;
	uint64_t most;
	bool reads; /* MOST is 1 then */
};
int floor_prefetch_body(const void *data, void *result, struct error *err);
