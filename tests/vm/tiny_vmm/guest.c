#include "guest.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

/* ---- its code ---- */

enum op {
	OP_READ = TOUCH_READ,
	OP_WRITE = TOUCH_WRITE,
	OP_FETCH = TOUCH_FETCH,
	OP_AT,
	OP_PAUSE,
	OP_SPIN,
	OP_HALT,
	OP_WAKE,
	OP_CALL,
	OP_INTERRUPTS,
	OP_WORK,
};

struct guest_op {
	uint64_t op, argument;
};

#define CHECKSUM_FACTOR 0x9e3779b97f4a7c15ull
#define FIRST_UNWRITTEN (1 + VCPUS_MAX)

extern const unsigned char tiny_guest_start[], tiny_guest_interrupt[], tiny_guest_end[];

/*
 * rsi: program, rdi: results, r12: number of the vCPU, r13: its count of touches, r14: what vCPUs share (sequence, start, and counts of touches
 * from 64 on, one every 64 bytes). The numbers of ops are those above.
 */
__asm__(".pushsection .rodata.tiny_guest, \"a\", @progbits\n"
	".balign 16\n"
	"tiny_guest_start:\n"
	".Lnext:\n"
	"	movq (%rsi), %r11\n"
	"	movq 8(%rsi), %rbx\n"
	"	addq $16, %rsi\n"
	"	cmpq $3, %r11\n"
	"	je .Lat\n"
	"	cmpq $4, %r11\n"
	"	je .Lpause\n"
	"	cmpq $5, %r11\n"
	"	je .Lspin\n"
	"	cmpq $6, %r11\n"
	"	je .Lhalt\n"
	"	cmpq $7, %r11\n"
	"	je .Lwake\n"
	"	cmpq $8, %r11\n"
	"	je .Lcall\n"
	"	cmpq $9, %r11\n"
	"	je .Linterrupts\n"
	"	cmpq $10, %r11\n"
	"	je .Lwork\n"

	"	call .Lread_tsc\n"
	"	movq %rax, %r8\n"
	"	movl $1, %ecx\n"
	"	lock xaddq %rcx, (%r14)\n"
	"	cmpq $1, %r11\n"
	"	je .Lwrite\n"
	"	ja .Lfetch\n"
	"	movq (%rbx), %rdx\n"
	"	jmp .Ltouched\n"
	".Lwrite:\n"
	"	movq %rbx, %rdx\n"
	"	notq %rdx\n"
	"	xorq %r12, %rdx\n"
	"	movq %rdx, 8(%rbx, %r12, 8)\n"
	"	jmp .Ltouched\n"
	".Lfetch:\n"
	"	call *%rbx\n"
	".Ltouched:\n"
	"	call .Lread_tsc\n"
	"	movq %r8, (%rdi)\n"
	"	movq %rax, 8(%rdi)\n"
	"	movq %rcx, 16(%rdi)\n"
	"	movabsq $0x9e3779b97f4a7c15, %r10\n"
	"	xorl %eax, %eax\n"
	"	movl $9, %edx\n"
	".Lsum:	xorq (%rbx, %rdx, 8), %rax\n"
	"	imulq %r10, %rax\n"
	"	rolq $29, %rax\n"
	"	incl %edx\n"
	"	cmpl $512, %edx\n"
	"	jne .Lsum\n"
	"	movq %rax, 24(%rdi)\n"
	"	addq $32, %rdi\n"
	"	lock incq (%r13)\n"
	"	jmp .Lnext\n"

	".Lat:	call .Lread_tsc\n"
	"	subq 8(%r14), %rax\n"
	"	cmpq %rbx, %rax\n"
	"	jge .Lnext\n"
	"	pause\n"
	"	jmp .Lat\n"

	".Lpause:	call .Lread_tsc\n"
	"	movq %rax, %r8\n"
	"1:	pause\n"
	"	call .Lread_tsc\n"
	"	subq %r8, %rax\n"
	"	cmpq %rbx, %rax\n"
	"	jb 1b\n"
	"	jmp .Lnext\n"

	".Lwork:	decq %rbx\n"
	"	jg .Lwork\n"
	"	jmp .Lnext\n"

	/* The argument's low byte is the other vCPU, the rest is how many touches. */
	".Lspin:	call .Lfind_count\n"
	"1:	cmpq %rbx, (%rcx)\n"
	"	jae .Lnext\n"
	"	pause\n"
	"	jmp 1b\n"

	/* Between the look and the halt no interrupt may come: sti lets the next one in only with hlt. */
	".Lhalt:	call .Lfind_count\n"
	"1:	cli\n"
	"	cmpq %rbx, (%rcx)\n"
	"	jae 2f\n"
	"	sti\n"
	"	hlt\n"
	"	jmp 1b\n"
	"2:	sti\n"
	"	jmp .Lnext\n"

	/* x2APIC: the interrupt command register, vector 0x41, asserted. */
	".Lwake:	movl $0x830, %ecx\n"
	"	movl $0x4041, %eax\n"
	"	movl %ebx, %edx\n"
	"	wrmsr\n"
	"	jmp .Lnext\n"

	".Lcall:	movl %ebx, %eax\n"
	"	outl %eax, $0x10\n"
	"	jmp .Lnext\n"

	/* The spurious interrupt register, which also switches the APIC on. */
	".Linterrupts:\n"
	"	movl $0x80f, %ecx\n"
	"	movl $0x1ff, %eax\n"
	"	xorl %edx, %edx\n"
	"	wrmsr\n"
	"	sti\n"
	"	jmp .Lnext\n"

	".Lread_tsc:\n"
	"	lfence\n"
	"	rdtsc\n"
	"	shlq $32, %rdx\n"
	"	orq %rdx, %rax\n"
	"	ret\n"

	".Lfind_count:\n"
	"	movzbl %bl, %ecx\n"
	"	shll $6, %ecx\n"
	"	leaq 64(%r14, %rcx), %rcx\n"
	"	shrq $8, %rbx\n"
	"	ret\n"

	/* It has done its work by having come: end of interrupt. */
	".balign 16\n"
	"tiny_guest_interrupt:\n"
	"	pushq %rax\n"
	"	pushq %rcx\n"
	"	pushq %rdx\n"
	"	movl $0x80b, %ecx\n"
	"	xorl %eax, %eax\n"
	"	xorl %edx, %edx\n"
	"	wrmsr\n"
	"	popq %rdx\n"
	"	popq %rcx\n"
	"	popq %rax\n"
	"	iretq\n"
	"tiny_guest_end:\n"
	".popsection\n");

_Static_assert(OP_AT == 3 && OP_PAUSE == 4 && OP_SPIN == 5 && OP_HALT == 6 && OP_WAKE == 7 && OP_CALL == 8 &&
		       OP_INTERRUPTS == 9 && OP_WORK == 10 && OP_WRITE == 1 && OP_FETCH == 2,
	       "the guest's code has the numbers in it");
_Static_assert(FIRST_UNWRITTEN == 9 && PAGE_SIZE / 8 == 512 && CHECKSUM_FACTOR == 0x9e3779b97f4a7c15ull, "and these");
_Static_assert(GUEST_PORT == 0x10 && sizeof(struct guest_result) == 32 && sizeof(struct guest_op) == 16, "and these");

uint64_t guest_checksum(const uint64_t words[static PAGE_SIZE / 8])
{
	uint64_t sum = 0;

	for (unsigned i = FIRST_UNWRITTEN; i < PAGE_SIZE / 8; i++) {
		sum = (sum ^ words[i]) * CHECKSUM_FACTOR;
		sum = sum << 29 | sum >> 35;
	}
	return sum;
}

/* ---- its control memory ---- */

enum {
	AT_GDT = 0x1000,
	AT_IDT = 0x2000,
	AT_TSS = 0x3000,
	AT_CODE = 0x4000,
	AT_PML4 = 0x5000,
	AT_PDPT = 0x6000,
	AT_DIRECTORIES = 0x7000, /* one for each GiB of 8 */
	AT_SHARED = 0x10000,
	AT_STACKS = 0x11000, /* a page each */
	AT_PROGRAMS = 0x20000,
};

#define MAPPED_GIB	 8
#define GDT_ENTRIES	 3
#define INTERRUPT_VECTOR 0x41
#define GATE_PRESENT	 0x8e00 /* an interrupt gate */

/* Present, writable; accessed and dirty already, so that the processor has nothing to write. */
#define ENTRY_TABLE 0x23ull
#define ENTRY_2MIB  0xe3ull

struct gate {
	uint16_t offset_low, selector, type, offset_middle;
	uint32_t offset_high, reserved;
};

struct shared {
	uint64_t sequence, start_tsc, unused[6];
	struct {
		uint64_t touches, unused[7];
	} vcpus[VCPUS_MAX];
};

static void *control_at(const struct guest_control *control, uint64_t address)
{
	return control->memory + address;
}

static void write_tables(struct guest_control *control)
{
	uint64_t *gdt = control_at(control, AT_GDT);
	uint64_t *pml4 = control_at(control, AT_PML4), *pdpt = control_at(control, AT_PDPT);
	uint64_t *directories = control_at(control, AT_DIRECTORIES);
	struct gate *gate = (struct gate *)control_at(control, AT_IDT) + INTERRUPT_VECTOR;
	uint64_t handler = AT_CODE + (uint64_t)(tiny_guest_interrupt - tiny_guest_start);

	gdt[GUEST_CODE_SELECTOR / 8] = 0x00af9b000000ffffull;
	gdt[GUEST_DATA_SELECTOR / 8] = 0x00cf93000000ffffull;
	pml4[0] = AT_PDPT | ENTRY_TABLE;
	for (uint64_t i = 0; i < MAPPED_GIB; i++)
		pdpt[i] = (AT_DIRECTORIES + i * PAGE_SIZE) | ENTRY_TABLE;
	for (uint64_t i = 0; i < MAPPED_GIB * 512ull; i++)
		directories[i] = i << 21 | ENTRY_2MIB;
	*gate = (struct gate){ .offset_low = (uint16_t)handler, .selector = GUEST_CODE_SELECTOR, .type = GATE_PRESENT };
	memcpy(control_at(control, AT_CODE), tiny_guest_start, (size_t)(tiny_guest_end - tiny_guest_start));
}

struct guest_tables guest_control_tables(void)
{
	return (struct guest_tables){ AT_GDT, GDT_ENTRIES * 8, AT_IDT, 4096, AT_TSS, AT_PML4 };
}

static struct guest_op translate(const struct action *action, uint64_t tsc_khz,
				 uint64_t (*address_of)(const void *data, uint64_t page), const void *data)
{
	uint64_t ticks = (uint64_t)((unsigned __int128)action->value * tsc_khz / 1000000);

	switch ((enum action_kind)action->kind) {
	case ACTION_TOUCH:
		return (struct guest_op){ action->touch, address_of(data, action->value) };
	case ACTION_AT:
		return (struct guest_op){ OP_AT, ticks };
	case ACTION_PAUSE:
		return (struct guest_op){ OP_PAUSE, ticks };
	case ACTION_WORK:
		return (struct guest_op){ OP_WORK, action->value };
	case ACTION_SPIN:
		return (struct guest_op){ OP_SPIN, action->value << 8 | action->other };
	case ACTION_HALT:
		return (struct guest_op){ OP_HALT, action->value << 8 | action->other };
	case ACTION_WAKE:
		return (struct guest_op){ OP_WAKE, action->other };
	case ACTION_READY:
		return (struct guest_op){ OP_CALL, GUEST_READY };
	case ACTION_HOLD:
		return (struct guest_op){ OP_CALL, GUEST_HOLD };
	}
	__builtin_unreachable();
}

static uint64_t whole_pages(uint64_t size)
{
	return (size + PAGE_SIZE - 1) / PAGE_SIZE * PAGE_SIZE;
}

int guest_control_make(struct guest_control *control, const struct script *script, bool interrupts, uint64_t tsc_khz,
		       uint64_t (*address_of)(const void *data, uint64_t page), const void *data)
{
	uint64_t size = AT_PROGRAMS, programs[VCPUS_MAX];

	*control = (struct guest_control){ 0 };
	for (unsigned i = 0; i < script->vcpu_count; i++) {
		programs[i] = size;
		size += whole_pages((script->vcpus[i].count + 2) * sizeof(struct guest_op));
		control->results[i] = size;
		size += whole_pages(script->vcpus[i].touches * sizeof(struct guest_result));
	}
	if (size > GUEST_LOW)
		return -E2BIG;
	/* Populated: the only pages that are absent are the server's. */
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (memory == MAP_FAILED)
		return -errno;
	control->memory = memory;
	control->size = size;
	write_tables(control);

	for (unsigned i = 0; i < script->vcpu_count; i++) {
		const struct program *program = &script->vcpus[i];
		struct guest_op *op = control_at(control, programs[i]);

		if (interrupts)
			*op++ = (struct guest_op){ OP_INTERRUPTS, 0 };
		for (size_t k = 0; k < program->count; k++)
			*op++ = translate(&program->actions[k], tsc_khz, address_of, data);
		*op = (struct guest_op){ OP_CALL, GUEST_END };
		control->entries[i] = (struct guest_entry){
			.rip = AT_CODE,
			.rsp = AT_STACKS + (i + 1) * PAGE_SIZE,
			.rsi = programs[i],
			.rdi = control->results[i],
			.r12 = i,
			.r13 = AT_SHARED + offsetof(struct shared, vcpus) + i * 64ull,
			.r14 = AT_SHARED,
		};
	}
	return 0;
}

void guest_control_free(struct guest_control *control)
{
	if (control->memory)
		munmap(control->memory, control->size);
	*control = (struct guest_control){ 0 };
}

void guest_control_set_start(struct guest_control *control, uint64_t tsc)
{
	((struct shared *)control_at(control, AT_SHARED))->start_tsc = tsc;
}

const struct guest_result *guest_control_results(const struct guest_control *control, unsigned vcpu)
{
	return control_at(control, control->results[vcpu]);
}
