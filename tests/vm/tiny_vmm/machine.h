/* The virtual machine: KVM, its vCPUs, and what they want of the VMM. */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "guest.h"

struct machine;

struct machine_vcpu {
	struct machine *machine;
	unsigned index;
	int fd;
	struct kvm_run *run;
	size_t run_size;
	int cpu; /* to stay on; -1: any */
	pthread_t thread;
	_Atomic pid_t tid;
};

struct machine {
	int kvm, vm;
	bool irqchip; /* the kernel's, and the guest takes interrupts: then a kernel thread may take the faults */
	unsigned slots;
	uint64_t tsc_khz;
	struct machine_vcpu vcpus[VCPUS_MAX];
	unsigned vcpu_count;
	/* The guest has called, on its vCPU's thread. */
	void (*call)(void *data, unsigned vcpu, enum guest_call call);
	void *data;
	pthread_barrier_t barrier;
};

/* Each: 0, or -1 after a message on stderr. */
int machine_make(struct machine *machine, bool irqchip);
int machine_add_memory(struct machine *machine, uint64_t guest_address, void *memory, uint64_t size);
int machine_add_vcpu(struct machine *machine, int cpu); /* CPU -1: any */
int machine_set_entry(struct machine *machine, unsigned vcpu, const struct guest_entry *entry);

/* Starts the vCPUs' threads; returns when each has its thread's number, and none has run. */
int machine_start(struct machine *machine);
/* They run from here on. */
void machine_go(struct machine *machine);
/* Waits until all vCPUs have come to their end. A guest that breaks ends the process. */
void machine_join(struct machine *machine);
void machine_free(struct machine *machine);

/* The guest's time stamp counter is the machine's own, without an offset. */
uint64_t machine_tsc(void);
