/*
 * The guest's own side: its code, and the memory that it needs besides what the server supplies ("control memory": tables, programs, results).
 * The code runs in 64-bit mode with identity paging; its page tables are in the control memory, so that walks touch nothing else.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "script.h"

#define GUEST_PORT 0x10 /* what the guest writes there, 4 bytes, is one of: */
enum guest_call { GUEST_END = 1, GUEST_READY, GUEST_HOLD };

/* Where the image's memory is for the guest: above the control memory, and above the hole for devices. */
#define GUEST_LOW	(1ull << 30)
#define GUEST_LOW_SIZE	(2ull << 30)
#define GUEST_HIGH	(4ull << 30)
#define GUEST_HIGH_SIZE (4ull << 30)

/* What a vCPU notes of each touch. */
struct guest_result {
	uint64_t touch_tsc, done_tsc; /* just before and after it */
	uint64_t sequence;	      /* of all vCPUs' touches, counted from 0 */
	uint64_t checksum;	      /* of the page as the vCPU then saw it, see guest_checksum */
};

/* How a vCPU starts. */
struct guest_entry {
	uint64_t rip, rsp, rdi, rsi, r12, r13, r14;
};

struct guest_tables {
	uint64_t gdt, gdt_size, idt, idt_size, tss, page_tables;
};
#define GUEST_CODE_SELECTOR 0x08
#define GUEST_DATA_SELECTOR 0x10

struct guest_control {
	unsigned char *memory; /* at guest-physical 0 */
	size_t size;
	struct guest_entry entries[VCPUS_MAX];
	uint64_t results[VCPUS_MAX]; /* offset of the first, in MEMORY */
};

/* Lays it out for the script, whose pages lie where ADDRESS_OF says. 0 or -errno. */
int guest_control_make(struct guest_control *control, const struct script *script, bool interrupts, uint64_t tsc_khz,
		       uint64_t (*address_of)(const void *data, uint64_t page), const void *data);
void guest_control_free(struct guest_control *control);
struct guest_tables guest_control_tables(void);
void guest_control_set_start(struct guest_control *control, uint64_t tsc);
const struct guest_result *guest_control_results(const struct guest_control *control, unsigned vcpu);

/* The vCPU's word of a page, where it writes, and what it writes. Word 0 stays as it is: it may be code. */
#define GUEST_WRITTEN_WORD(vcpu) (1 + (vcpu))
static inline uint64_t guest_written(uint64_t page_address, unsigned vcpu)
{
	return ~page_address ^ vcpu;
}

/* Over the words that no vCPU writes, in an order that tells swapped ones. */
uint64_t guest_checksum(const uint64_t words[static PAGE_SIZE / 8]);
