/* aarch64: what differs between machines, then what doesn't. */
#pragma once

#define __VMLINUX_H__ /* for <bpf/bpf_tracing.h>: registers have the kernel's names */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct thread_info {
	int preempt_count;
};

struct user_pt_regs {
	unsigned long long regs[31];
	unsigned long long sp;
	unsigned long long pc;
	unsigned long long pstate;
};

struct pt_regs {
	union {
		struct user_pt_regs user_regs;
		struct {
			unsigned long long regs[31];
			unsigned long long sp;
			unsigned long long pc;
			unsigned long long pstate;
		};
	};
	int syscallno;
};

#pragma clang attribute pop

#include "../kernel.h"
