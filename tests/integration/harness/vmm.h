/*
 * The memory side of a VMM: regions, a userfaultfd set up as Firecracker or as hypeman does it, the handshake, and guests
 * that read, write and remove pages and compare every byte. All of this runs in the client's process (see client.h).
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "integration/harness/check.h"
#include "integration/harness/client.h"
#include "integration/harness/image.h"

/* The page may show: the template's bytes, zeros, what the guest wrote. */
enum { SHOWS_TEMPLATE = 1, SHOWS_ZERO = 2, SHOWS_GUEST = 4 };

#define VMM_REGIONS_MAX 1100 /* over the limit of 1024, to be refused */

struct vmm_region {
	char *address;
	uint64_t size, offset; /* bytes; OFFSET in the image */
	uint64_t page_size;
	_Atomic uint32_t *shows; /* for each page of 4096: a generation in the upper 24 bits, SHOWS_ in the lower 8 */
};

struct vmm {
	struct client_self *self;
	const struct test_image *image;
	int uffd, conn;
	struct vmm_region *regions;
	unsigned region_count;
	_Atomic uint64_t reads; /* pages read and compared */
	_Atomic bool stop;	/* for guests that run until told otherwise */
};

enum vmm_style {
	VMM_FIRECRACKER, /* array; UFFDIO_API and UFFDIO_REGISTER done, non-blocking */
	VMM_HYPEMAN,	 /* object with "mappings"; neither done, blocking */
};

/* The message in the form of the one, the userfaultfd in the state of the other. */
struct vmm_form {
	enum vmm_style json, fd;
	unsigned chunk;	   /* bytes a piece, each sent when the last has been read; 0: one sendmsg */
	uint64_t features; /* asked for with UFFDIO_API; 0: EVENT_REMOVE as Firecracker does */
};

/* An userfaultfd as Firecracker makes it (non-blocking, close-on-exec), or -errno. */
int vmm_new_uffd(void);

void vmm_init(struct vmm *vmm, struct client_self *self, const struct test_image *image);
/* Adds a region of anonymous memory that stands for image bytes from OFFSET on. */
struct vmm_region *vmm_add_region(struct vmm *vmm, uint64_t size, uint64_t offset);
/* The same at an address of the caller's. */
struct vmm_region *vmm_add_region_at(struct vmm *vmm, void *address, uint64_t size, uint64_t offset);
/* Takes memory that is mapped already. */
struct vmm_region *vmm_adopt_region(struct vmm *vmm, char *address, uint64_t size, uint64_t offset, uint64_t page_size);

/* Makes the userfaultfd and, Firecracker style, negotiates and registers the regions. */
void vmm_make_uffd(struct vmm *vmm, struct vmm_form form);
/* Connects to the fork's socket; the fork must accept. */
void vmm_connect(struct vmm *vmm, const char *socket);
/* The message for the regions in STYLE; the caller frees it. */
char *vmm_handshake_text(const struct vmm *vmm, enum vmm_style style);
/* Sends it, and waits for the registration where that is the server's: memory touched before is plain zero memory. */
void vmm_handshake(struct vmm *vmm, struct vmm_form form);
/* Waits until the server has registered the last region. */
void vmm_await_registered(struct vmm *vmm);
/* All of it: one region as large as the image unless there are some already, userfaultfd, connection, handshake. */
void vmm_start(struct vmm *vmm, const char *socket, struct vmm_form form);

static inline uint64_t vmm_pages(const struct vmm_region *region)
{
	return region->size / PAGE;
}

/* Reads one page and compares it with what it may show at that time; fails with the region, page and word otherwise. */
void vmm_check_page(struct vmm *vmm, struct vmm_region *region, uint64_t page);
/* The same, but false instead of failing; WHY may be NULL. */
bool vmm_page_is_right(struct vmm *vmm, struct vmm_region *region, uint64_t page, char *why, size_t why_size);
/* Every page of every region, in order. */
void vmm_check_all(struct vmm *vmm);
/* Every page of every region with THREADS threads at once, each in an order of its own. */
void vmm_check_all_shuffled(struct vmm *vmm, unsigned threads, uint64_t salt);

/* The guest gives pages back (MADV_DONTNEED). Pages have one remover or writer at a time, any number of readers. */
void vmm_remove(struct vmm *vmm, struct vmm_region *region, uint64_t page, uint64_t count);
/* The guest writes the whole page. */
void vmm_write_page(struct vmm *vmm, struct vmm_region *region, uint64_t page);

/* Touches the page; true if that raised SIGBUS. Other threads may do the same. */
bool vmm_touch_raises(struct vmm *vmm, struct vmm_region *region, uint64_t page);

/* Whether the page is in this process's page table, by /proc/self/pagemap: asks without touching. */
bool vmm_is_present(struct vmm *vmm, const struct vmm_region *region, uint64_t page);
uint64_t vmm_present_count(struct vmm *vmm, const struct vmm_region *region);

/* Runs BODY(vmm, index, data) on COUNT threads and joins them. */
void vmm_threads(struct vmm *vmm, unsigned count, void (*body)(struct vmm *, unsigned, void *), void *data);

/* Waits until COUNT faults of this VMM are unresolved. */
void vmm_await_waiters(struct vmm *vmm, unsigned count);
/* Keeps this process on one CPU of those it may use: 0 is the first. */
void vmm_pin(struct vmm *vmm, unsigned index);
