/*
 * The client of a measurement: memory of a guest in a process of its own, whose threads ("vCPUs") touch pages in random order, time each
 * touch, and compare each page's content.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "bench/image.h"
#include "bench/process.h"

#define GUEST_VCPUS_MAX 8
#define GUEST_ANY_CPU	(-1)

/* Pages that a guest touches before it is measured, one a vCPU, lie behind those that are: an image has so many more. */
#define GUEST_SPARE_PAGES GUEST_VCPUS_MAX

enum guest_memory {
	GUEST_UFFD,    /* absent, and supplied by whoever gets the userfaultfd */
	GUEST_MMAP,    /* the image, mapped privately: the kernel's own way */
	GUEST_PRESENT, /* all there before it starts */
};

struct guest_spec {
	const struct bench_image *image;
	enum guest_memory memory;
	const char *socket; /* a fork's; NULL: whoever is at CHILD_FDS gets the userfaultfd */
	uint64_t pages;	    /* that are touched: all of 0 to PAGES - 1, or LIST */
	const uint64_t *list;
	uint64_t region_pages; /* how large its memory is; 0: PAGES and the spare ones */
	bool prefetched;       /* it runs only when its pages are said to be there */
	unsigned vcpus;
	int cpus[GUEST_VCPUS_MAX];
	uint64_t interval_ns; /* a vCPU touches a page so often at most; 0: one after another */
	uint64_t seed;	      /* of the order */
};

struct guest_result {
	uint64_t handshake_ns;	   /* when the userfaultfd was handed over */
	uint64_t there_ns;	   /* when whoever is at CHILD_FDS said that the pages are there */
	uint64_t start_ns, end_ns; /* of all touches */
	uint64_t p50_ns, p90_ns, p99_ns, max_ns;
	uint64_t touched; /* pages timed, each compared with the image */
};
_Static_assert(sizeof(struct guest_result) <= CHILD_RESULT_MAX, "a guest's result fits");

/*
 * DATA is a struct guest_spec. It says GUEST_MAPPED and waits for GUEST_GO; hands its userfaultfd over; touches a spare page on each vCPU,
 * says GUEST_WARM, and waits for GUEST_TOUCH (a prefetched one waits for GUEST_TOUCH only); touches and compares; says
 * GUEST_DONE, and ends when it is told GUEST_END or nothing any more.
 */
int guest_body(const void *data, void *result, struct error *err);
#define GUEST_MAPPED 'm'
#define GUEST_GO     'g'
#define GUEST_WARM   'w'
#define GUEST_TOUCH  't'
#define GUEST_DONE   'd'
#define GUEST_END    'q'

/* The same up to the handover; it says GUEST_WARM then, touches nothing, and stays until it is told to end. */
int guest_idle_body(const void *data, void *result, struct error *err);

/* Keeps the calling thread on CPU; GUEST_ANY_CPU: leaves it. 0 or negative errno. */
int pin_thread(int cpu);
