#include "doctor/kvm_trial.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "doctor/trial.h"
#include "uffd/uffd.h"

#ifdef __x86_64__

#define PAGE   4096ul
#define MEMORY (2 * PAGE)

/* In the gap below 4 GiB, where the guest has nothing: Intel's real mode wants three pages. */
#define TSS_ADDRESS 0xfffbd000ul

#define INPUT  0x1000 /* in the second page */
#define OUTPUT 0x1800

static const uint8_t program[] = {
	0xa0, INPUT & 0xff,  INPUT >> 8,  /* mov al, [INPUT] */
	0xa2, OUTPUT & 0xff, OUTPUT >> 8, /* mov [OUTPUT], al */
	0xf4,				  /* hlt */
};

struct vm {
	int device, vm, vcpu;
	struct kvm_run *run;
	size_t run_size;
	uint8_t *memory;
	uint8_t *content;
	int uffd;
};

static void vm_clear(struct vm *vm)
{
	if (vm->run)
		munmap(vm->run, vm->run_size);
	cleanup_close(&vm->vcpu);
	cleanup_close(&vm->vm);
	cleanup_close(&vm->device);
	if (vm->memory)
		munmap(vm->memory, MEMORY);
	if (vm->content)
		munmap(vm->content, MEMORY);
	cleanup_close(&vm->uffd);
}

static void *map_pages(void)
{
	void *pages = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return pages == MAP_FAILED ? NULL : pages;
}

static int make_memory(struct vm *vm)
{
	vm->memory = map_pages();
	vm->content = map_pages();
	if (!vm->memory || !vm->content)
		return -ENOMEM;
	memcpy(vm->content, program, sizeof program);
	vm->content[INPUT] = 0x5a;
	vm->uffd = trial_open(0, NULL);
	if (vm->uffd < 0)
		return vm->uffd;
	return uffd_register_missing(vm->uffd, (uintptr_t)vm->memory, MEMORY);
}

/* Making a VM is interrupted by what is no signal of ours: work that a ring of io_uring has left to this process is enough. */
static int make_object(int fd, unsigned long request)
{
	int r;

	do
		r = ioctl(fd, request, 0);
	while (r < 0 && errno == EINTR);
	return r;
}

static int make_vm(struct vm *vm)
{
	struct kvm_userspace_memory_region region = { .memory_size = MEMORY, .userspace_addr = (uintptr_t)vm->memory };

	vm->vm = make_object(vm->device, KVM_CREATE_VM);
	if (vm->vm < 0)
		return -errno;
	ioctl(vm->vm, KVM_SET_TSS_ADDR, TSS_ADDRESS);
	if (ioctl(vm->vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
		return -errno;
	vm->vcpu = make_object(vm->vm, KVM_CREATE_VCPU);
	int size = ioctl(vm->device, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (vm->vcpu < 0 || size < (int)sizeof *vm->run)
		return -errno ?: -EPROTO;
	void *run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu, 0);
	if (run == MAP_FAILED)
		return -errno;
	vm->run = run;
	vm->run_size = (size_t)size;
	return 0;
}

/* Real mode, at address 0. */
static int set_registers(struct vm *vm)
{
	struct kvm_sregs special;
	struct kvm_regs regs = { .rip = 0, .rflags = 2 };

	if (ioctl(vm->vcpu, KVM_GET_SREGS, &special) < 0)
		return -errno;
	special.cs.base = 0;
	special.cs.selector = 0;
	if (ioctl(vm->vcpu, KVM_SET_SREGS, &special) < 0 || ioctl(vm->vcpu, KVM_SET_REGS, &regs) < 0)
		return -errno;
	return 0;
}

static int run_guest(void *data)
{
	struct vm *vm = data;

	while (ioctl(vm->vcpu, KVM_RUN, 0) < 0)
		if (errno != EINTR && errno != EAGAIN)
			return -errno;
	return vm->run->exit_reason == KVM_EXIT_HLT ? 0 : -EPROTO;
}

int kvm_trial(void)
{
	_cleanup_(vm_clear) struct vm vm = { .device = -1, .vm = -1, .vcpu = -1, .uffd = -1 };
	unsigned faults = 0;

	vm.device = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm.device < 0)
		return -errno;
	int r = make_memory(&vm);
	if (r == 0)
		r = make_vm(&vm);
	if (r == 0)
		r = set_registers(&vm);
	if (r == 0)
		r = trial_serve(vm.uffd, vm.memory, MEMORY, vm.content, run_guest, &vm, &faults);
	if (r < 0)
		return r;
	return faults >= 2 && vm.memory[OUTPUT] == 0x5a ? 0 : -EILSEQ;
}

#else

int kvm_trial(void)
{
	_cleanup_close_ int device = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	return device < 0 ? -errno : -EOPNOTSUPP;
}

#endif
