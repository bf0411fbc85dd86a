#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <x86intrin.h>

#include "base/cleanup.h"

/* Intel's processors want three pages and one for themselves; nothing of the guest's lies here. */
#define TSS_ADDRESS	     0xfffbd000ul
#define IDENTITY_MAP_ADDRESS 0xfffbc000ull

#define CR0_PE	  (1ull << 0)
#define CR0_ET	  (1ull << 4)
#define CR0_NE	  (1ull << 5)
#define CR0_WP	  (1ull << 16)
#define CR0_PG	  (1ull << 31)
#define CR4_PAE	  (1ull << 5)
#define EFER_LME  (1ull << 8)
#define EFER_LMA  (1ull << 10)
#define X2APIC	  (1ull << 10)
#define RFLAGS_1  2ull
#define CPUID_MAX 256

static int complain(const char *what)
{
	fprintf(stderr, "faultline-tiny-vmm: %s: %s\n", what, strerror(errno));
	return -1;
}

uint64_t machine_tsc(void)
{
	_mm_lfence();
	return __rdtsc();
}

int machine_make(struct machine *machine, bool irqchip)
{
	uint64_t identity = IDENTITY_MAP_ADDRESS;

	*machine = (struct machine){ .kvm = -1, .vm = -1, .irqchip = irqchip };
	for (unsigned i = 0; i < VCPUS_MAX; i++)
		machine->vcpus[i].fd = -1;
	machine->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (machine->kvm < 0)
		return complain("/dev/kvm");
	machine->vm = ioctl(machine->kvm, KVM_CREATE_VM, 0);
	if (machine->vm < 0)
		return complain("KVM_CREATE_VM");
	if (ioctl(machine->vm, KVM_SET_IDENTITY_MAP_ADDR, &identity) < 0 ||
	    ioctl(machine->vm, KVM_SET_TSS_ADDR, TSS_ADDRESS) < 0)
		return complain("KVM_SET_TSS_ADDR");
	if (irqchip && ioctl(machine->vm, KVM_CREATE_IRQCHIP) < 0)
		return complain("KVM_CREATE_IRQCHIP");
	return 0;
}

int machine_add_memory(struct machine *machine, uint64_t guest_address, void *memory, uint64_t size)
{
	struct kvm_userspace_memory_region region = {
		.slot = machine->slots++,
		.guest_phys_addr = guest_address,
		.memory_size = size,
		.userspace_addr = (uintptr_t)memory,
	};

	return ioctl(machine->vm, KVM_SET_USER_MEMORY_REGION, &region) < 0 ? complain("KVM_SET_USER_MEMORY_REGION") : 0;
}

static int set_cpuid(const struct machine *machine, const struct machine_vcpu *vcpu)
{
	_cleanup_free_ struct kvm_cpuid2 *cpuid = calloc(1, sizeof *cpuid + CPUID_MAX * sizeof *cpuid->entries);

	if (!cpuid)
		return complain("CPUID");
	cpuid->nent = CPUID_MAX;
	if (ioctl(machine->kvm, KVM_GET_SUPPORTED_CPUID, cpuid) < 0)
		return complain("KVM_GET_SUPPORTED_CPUID");
	for (unsigned i = 0; i < cpuid->nent; i++) {
		struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];

		if (entry->function == 1)
			entry->ebx = (entry->ebx & 0xffffff) | vcpu->index << 24;
		else if (entry->function == 0xb)
			entry->edx = vcpu->index;
	}
	return ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid) < 0 ? complain("KVM_SET_CPUID2") : 0;
}

/* Without an offset the guest's times are this machine's. */
static int set_tsc(struct machine *machine, const struct machine_vcpu *vcpu)
{
	uint64_t offset = 0;
	struct kvm_device_attr attribute = {
		.group = KVM_VCPU_TSC_CTRL,
		.attr = KVM_VCPU_TSC_OFFSET,
		.addr = (uintptr_t)&offset,
	};
	int khz = ioctl(vcpu->fd, KVM_GET_TSC_KHZ);

	if (khz <= 0)
		return complain("KVM_GET_TSC_KHZ");
	machine->tsc_khz = (uint64_t)khz;
	return ioctl(vcpu->fd, KVM_SET_DEVICE_ATTR, &attribute) < 0 ? complain("KVM_VCPU_TSC_OFFSET (Linux 5.16)") : 0;
}

static struct kvm_segment flat_segment(uint16_t selector, bool code)
{
	return (struct kvm_segment){
		.limit = 0xffffffff,
		.selector = selector,
		.type = code ? 11 : 3,
		.present = 1,
		.db = !code,
		.s = 1,
		.l = code,
		.g = 1,
	};
}

/* Straight into 64-bit mode, with the guest's tables. */
int machine_set_entry(struct machine *machine, unsigned index, const struct guest_entry *entry)
{
	const struct machine_vcpu *vcpu = &machine->vcpus[index];
	struct guest_tables tables = guest_control_tables();
	struct kvm_mp_state runnable = { KVM_MP_STATE_RUNNABLE };
	struct kvm_sregs special;
	struct kvm_regs general = {
		.rip = entry->rip,
		.rsp = entry->rsp,
		.rsi = entry->rsi,
		.rdi = entry->rdi,
		.r12 = entry->r12,
		.r13 = entry->r13,
		.r14 = entry->r14,
		.rflags = RFLAGS_1,
	};

	if (ioctl(vcpu->fd, KVM_GET_SREGS, &special) < 0)
		return complain("KVM_GET_SREGS");
	special.cs = flat_segment(GUEST_CODE_SELECTOR, true);
	special.ds = special.es = special.ss = special.fs = special.gs = flat_segment(GUEST_DATA_SELECTOR, false);
	special.tr = (struct kvm_segment){ .base = tables.tss, .limit = 0x67, .type = 11, .present = 1 };
	special.gdt = (struct kvm_dtable){ .base = tables.gdt, .limit = (uint16_t)(tables.gdt_size - 1) };
	special.idt = (struct kvm_dtable){ .base = tables.idt, .limit = (uint16_t)(tables.idt_size - 1) };
	special.cr3 = tables.page_tables;
	special.cr4 = CR4_PAE;
	special.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
	special.efer = EFER_LME | EFER_LMA;
	if (machine->irqchip)
		special.apic_base |= X2APIC;
	if (ioctl(vcpu->fd, KVM_SET_SREGS, &special) < 0)
		return complain("KVM_SET_SREGS");
	if (ioctl(vcpu->fd, KVM_SET_REGS, &general) < 0)
		return complain("KVM_SET_REGS");
	/* All but the first would wait for the first to start them. */
	if (machine->irqchip && ioctl(vcpu->fd, KVM_SET_MP_STATE, &runnable) < 0)
		return complain("KVM_SET_MP_STATE");
	return 0;
}

int machine_add_vcpu(struct machine *machine, int cpu)
{
	struct machine_vcpu *vcpu = &machine->vcpus[machine->vcpu_count];

	vcpu->machine = machine;
	vcpu->index = machine->vcpu_count;
	vcpu->cpu = cpu;
	vcpu->fd = ioctl(machine->vm, KVM_CREATE_VCPU, (unsigned long)vcpu->index);
	if (vcpu->fd < 0)
		return complain("KVM_CREATE_VCPU");
	machine->vcpu_count++;
	int size = ioctl(machine->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (size < 0)
		return complain("KVM_GET_VCPU_MMAP_SIZE");
	void *run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (run == MAP_FAILED)
		return complain("mmap of a vCPU");
	vcpu->run = run;
	vcpu->run_size = (size_t)size;
	return set_cpuid(machine, vcpu) < 0 || set_tsc(machine, vcpu) < 0 ? -1 : 0;
}

/* ---- running ---- */

/* A thread may hang in a page fault, so there is nothing to be joined or cleaned up. */
static void break_down(const struct machine_vcpu *vcpu, const char *what)
{
	struct kvm_regs general = { 0 };
	struct kvm_sregs special = { 0 };

	ioctl(vcpu->fd, KVM_GET_REGS, &general);
	ioctl(vcpu->fd, KVM_GET_SREGS, &special);
	fprintf(stderr, "faultline-tiny-vmm: vCPU %u: %s, at 0x%llx, last page fault at 0x%llx\n", vcpu->index, what,
		(unsigned long long)general.rip, (unsigned long long)special.cr2);
	fflush(NULL);
	_exit(1);
}

/* Whether the vCPU goes on. */
static bool handle_exit(struct machine_vcpu *vcpu)
{
	const struct kvm_run *run = vcpu->run;
	char what[80];
	uint32_t value;

	if (run->exit_reason == KVM_EXIT_IO && run->io.port == GUEST_PORT && run->io.direction == KVM_EXIT_IO_OUT &&
	    run->io.size == sizeof value) {
		memcpy(&value, (const char *)run + run->io.data_offset, sizeof value);
		if (value == GUEST_END)
			return false;
		vcpu->machine->call(vcpu->machine->data, vcpu->index, (enum guest_call)value);
		return true;
	}
	if (run->exit_reason == KVM_EXIT_INTR)
		return true;
	snprintf(what, sizeof what, "the guest has left in a way that it should not (exit reason %u, suberror %u)",
		 run->exit_reason, run->exit_reason == KVM_EXIT_INTERNAL_ERROR ? run->internal.suberror : 0);
	break_down(vcpu, what);
	return false;
}

static void *run_vcpu(void *data)
{
	struct machine_vcpu *vcpu = data;
	cpu_set_t set;

	if (vcpu->cpu >= 0) {
		CPU_ZERO(&set);
		CPU_SET((size_t)vcpu->cpu, &set);
		if (sched_setaffinity(0, sizeof set, &set) < 0)
			break_down(vcpu, "its thread can't be put on its CPU");
	}
	vcpu->tid = gettid();
	pthread_barrier_wait(&vcpu->machine->barrier); /* all have numbers */
	pthread_barrier_wait(&vcpu->machine->barrier); /* go */
	do {
		if (ioctl(vcpu->fd, KVM_RUN, 0) < 0) {
			char what[80];

			if (errno == EINTR || errno == EAGAIN) {
				vcpu->run->exit_reason = KVM_EXIT_INTR;
				continue;
			}
			snprintf(what, sizeof what, "KVM_RUN: %s", strerror(errno));
			break_down(vcpu, what);
		}
	} while (handle_exit(vcpu));
	return NULL;
}

int machine_start(struct machine *machine)
{
	errno = pthread_barrier_init(&machine->barrier, NULL, machine->vcpu_count + 1);
	if (errno)
		return complain("a barrier");
	for (unsigned i = 0; i < machine->vcpu_count; i++) {
		struct machine_vcpu *vcpu = &machine->vcpus[i];
		char name[16];

		errno = pthread_create(&vcpu->thread, NULL, run_vcpu, vcpu);
		if (errno)
			return complain("a vCPU's thread");
		snprintf(name, sizeof name, "vcpu/%u", i);
		pthread_setname_np(vcpu->thread, name);
	}
	pthread_barrier_wait(&machine->barrier);
	return 0;
}

void machine_go(struct machine *machine)
{
	pthread_barrier_wait(&machine->barrier);
}

void machine_join(struct machine *machine)
{
	for (unsigned i = 0; i < machine->vcpu_count; i++)
		pthread_join(machine->vcpus[i].thread, NULL);
	pthread_barrier_destroy(&machine->barrier);
}

void machine_free(struct machine *machine)
{
	for (unsigned i = 0; i < machine->vcpu_count; i++) {
		struct machine_vcpu *vcpu = &machine->vcpus[i];

		if (vcpu->run)
			munmap(vcpu->run, vcpu->run_size);
		cleanup_close(&vcpu->fd);
	}
	cleanup_close(&machine->vm);
	cleanup_close(&machine->kvm);
}
