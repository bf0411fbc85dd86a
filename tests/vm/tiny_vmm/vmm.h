/* The parts of the tiny VMM: what main.c, memory.c, run.c and report.c share. Whatever goes wrong ends the process. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "faultline/client.h"
#include "machine.h"
#include "script.h"

#define SLOTS_MAX 2

enum { EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_SERVER_GONE = 3, EXIT_WRONG = 4 };

struct options {
	const char *image, *socket, *script;
	bool server, irqchip, wait_prefetched, quiet;
	uint64_t split; /* pages in the first slot; 0: all */
	int cpus[VCPUS_MAX];
};

struct slot {
	uint64_t guest_address, offset, size;
	unsigned char *memory;
};

/* A point in time, by both clocks. */
struct moment {
	uint64_t ns, tsc;
};

struct vmm {
	struct options options;
	struct script script;
	struct faultline_client *client;
	int image;
	uint64_t pages; /* of the image */
	struct slot slots[SLOTS_MAX];
	unsigned slot_count;
	struct machine machine;
	struct guest_control control;
	unsigned char *present; /* for each page: it was there before the guest ran */
	unsigned char *writers; /* for each page: a bit for each vCPU that wrote to it */
	unsigned char *touched;
	struct moment start, end;
	uint64_t connected_ns;
	int done; /* eventfd */
};

void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

/* memory.c: the image, and guest memory that is to be filled from it. */
void memory_open_image(struct vmm *vmm);
void memory_lay_out(struct vmm *vmm);
/* The guest would run whatever is there. */
void memory_check_fetched_pages(const struct vmm *vmm);
void memory_fill(struct vmm *vmm);
/* Notes which pages are there, without touching them. */
void memory_note_present(struct vmm *vmm);
void memory_read_image_page(const struct vmm *vmm, uint64_t page, uint64_t words[static PAGE_SIZE / 8]);
const struct slot *memory_slot(const struct vmm *vmm, uint64_t page);
uint64_t memory_guest_address(const void *data, uint64_t page); /* DATA is the struct vmm */
const unsigned char *memory_of(const struct vmm *vmm, uint64_t page);

/* run.c: from the virtual machine's making until all its vCPUs have done what the script says. */
void run_make_machine(struct vmm *vmm);
void run_machine(struct vmm *vmm);

/* report.c: prints the truth, and returns how many pages or touches were wrong. */
uint64_t report(struct vmm *vmm);
