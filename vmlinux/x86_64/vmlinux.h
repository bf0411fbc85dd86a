/* x86_64: what differs between machines, then what doesn't. */
#pragma once

#define __VMLINUX_H__ /* for <bpf/bpf_tracing.h>: registers have the kernel's names */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct thread_info {
	unsigned int status;
};

struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};

/* Linux 6.2 to 6.14. Before and since, the count is a variable of its own. */
struct pcpu_hot {
	int preempt_count;
};

#pragma clang attribute pop

#include "../kernel.h"
