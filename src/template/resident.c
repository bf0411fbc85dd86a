#include "template/resident.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"

#ifndef MADV_POPULATE_READ /* Linux 5.14 */
#define MADV_POPULATE_READ 22
#endif

/* How long what was seen is believed. Looking again costs about a millisecond for a gibibyte. */
#define BELIEVED_NS (5 * NSEC_PER_SEC)

/* A look soon after another is spared where so many pages are found as they were then: forks that start one after another each ask for one. */
#define RECENT_NS (1 * NSEC_PER_SEC)
#define SAMPLES	  64

#define PAGES_PER_LOOK 4096
#define BITS	       64

struct resident_view {
	uint64_t size;
	uint64_t page_size;
	uint64_t pages;
	const char *address;
	_Atomic uint64_t believed_until_ns;
	uint64_t looked_ns;	  /* the refreshing thread's own */
	_Atomic uint64_t words[]; /* a bit a page */
};

/* mincore() calls every page of a file resident that the caller could neither own nor write to. */
static bool kernel_tells(int fd)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return false;
	char path[64];
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	return geteuid() == 0 || st.st_uid == geteuid() || access(path, W_OK) == 0;
}

struct resident_view *resident_view_new(int fd, uint64_t size)
{
	uint64_t page_size = (uint64_t)sysconf(_SC_PAGESIZE), pages = (size + page_size - 1) / page_size;
	struct resident_view *view;

	if (!kernel_tells(fd))
		return NULL;
	view = calloc(1, sizeof *view + (pages + BITS - 1) / BITS * sizeof view->words[0]);
	if (!view)
		return NULL;
	void *address = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
	if (address == MAP_FAILED) {
		free(view);
		return NULL;
	}
	/* Faults in it are ours alone, and each page is wanted for itself. */
	madvise(address, size, MADV_RANDOM);
	view->size = size;
	view->page_size = page_size;
	view->pages = pages;
	view->address = address;
	return view;
}

void resident_view_free(struct resident_view *view)
{
	if (!view)
		return;
	munmap((void *)(uintptr_t)view->address, view->size);
	free(view);
}

static void set_bit(struct resident_view *view, uint64_t page, bool value)
{
	_Atomic uint64_t *word = &view->words[page / BITS];
	uint64_t bit = 1ull << page % BITS;

	if (value)
		atomic_fetch_or_explicit(word, bit, memory_order_relaxed);
	else
		atomic_fetch_and_explicit(word, ~bit, memory_order_relaxed);
}

static bool get_bit(const struct resident_view *view, uint64_t page)
{
	return atomic_load_explicit(&view->words[page / BITS], memory_order_relaxed) >> page % BITS & 1;
}

/* Maps what is in memory of [FIRST, FIRST + COUNT) and not mapped yet; VEC says what is in memory. */
static void map_resident(struct resident_view *view, uint64_t first, uint64_t count, const unsigned char *vec)
{
	for (uint64_t i = 0; i < count; i++) {
		uint64_t run = 0;
		while (i + run < count && (vec[i + run] & 1) && !get_bit(view, first + i + run))
			run++;
		if (run == 0)
			continue;
		void *start = (void *)(uintptr_t)(view->address + (first + i) * view->page_size);
		bool mapped = madvise(start, run * view->page_size, MADV_POPULATE_READ) == 0;
		for (uint64_t k = 0; k < run && mapped; k++)
			set_bit(view, first + i + k, true);
		i += run;
	}
}

/* Pages spread over the image are in memory where the view says so, and nowhere else. */
static bool samples_hold(const struct resident_view *view)
{
	uint64_t step = view->pages / SAMPLES + 1;

	for (uint64_t page = 0; page < view->pages; page += step) {
		unsigned char in_memory;
		char *address = (char *)(uintptr_t)view->address + page * view->page_size;

		if (mincore(address, view->page_size, &in_memory) < 0 || (in_memory & 1) != get_bit(view, page))
			return false;
	}
	return true;
}

void resident_view_refresh(struct resident_view *view)
{
	unsigned char vec[PAGES_PER_LOOK];
	uint64_t now = now_ns();

	if (view->looked_ns && now - view->looked_ns < RECENT_NS && samples_hold(view))
		return;
	for (uint64_t first = 0; first < view->pages; first += PAGES_PER_LOOK) {
		uint64_t count = view->pages - first < PAGES_PER_LOOK ? view->pages - first : PAGES_PER_LOOK;
		char *start = (char *)(uintptr_t)view->address + first * view->page_size;

		if (mincore(start, count * view->page_size, vec) < 0)
			return;
		for (uint64_t i = 0; i < count; i++)
			if (!(vec[i] & 1) && get_bit(view, first + i))
				set_bit(view, first + i, false);
		map_resident(view, first, count, vec);
		sched_yield(); /* a guest that starts just now on this CPU goes first */
	}
	view->looked_ns = now;
	atomic_store_explicit(&view->believed_until_ns, now_ns() + BELIEVED_NS, memory_order_release);
}

const void *resident_view_find(const struct resident_view *view, size_t length, uint64_t offset, uint64_t now,
			       bool *ret_stale)
{
	uint64_t first = offset / view->page_size, last = (offset + length - 1) / view->page_size;

	*ret_stale = now > atomic_load_explicit(&view->believed_until_ns, memory_order_acquire);
	if (*ret_stale)
		return NULL;
	for (uint64_t page = first; page <= last; page++)
		if (!get_bit(view, page))
			return NULL;
	return view->address + offset;
}
