/* When does a thread begin to touch guest memory? At the exception, wherever its page may be. */
#include "thread.bpf.h"

/* The processor's own code; arm64's syndrome says the same in other bits. */
#if defined(__TARGET_ARCH_x86)
#define IS_WRITE(code, regs) ((code)&0x02)
#define IS_FETCH(code, regs) ((code)&0x10)
#elif defined(__TARGET_ARCH_arm64)
#define ESR_CLASS(code)	     ((code) >> 26 & 0x3f)
#define IS_FETCH(code, regs) (ESR_CLASS(code) == 0x20 || ESR_CLASS(code) == 0x21)
#define IS_WRITE(code, regs) (!IS_FETCH(code, regs) && (code)&0x40)
#endif

static __always_inline void touch(__u64 address, struct pt_regs *regs, unsigned long code, bool from_user)
{
	if (!fork_count)
		return;

	struct task_struct *task = bpf_get_current_task_btf();
	struct thread *thread = find_thread(task);
	__u32 slot = slot_of_address(thread, task->mm, address);
	if (!slot)
		return;
	thread = touching_thread(thread, task, slot);
	if (!thread)
		return;
	tell_pending(thread, task->pid);
	begin_touch(thread, address, bpf_ktime_get_ns(),
		    (IS_WRITE(code, regs) ? FL_EVENT_WRITE : 0) | (IS_FETCH(code, regs) ? FL_EVENT_FETCH : 0));
	thread->from_user = from_user;
	thread->ip = from_user ? PT_REGS_IP(regs) : 0;
}

SEC("tp_btf/page_fault_user")
int BPF_PROG(touch_user, unsigned long address, struct pt_regs *regs, unsigned long code)
{
	touch(address, regs, code, true);
	return 0;
}

/* A system call of the VMM's reads or writes guest memory. */
SEC("tp_btf/page_fault_kernel")
int BPF_PROG(touch_kernel, unsigned long address, struct pt_regs *regs, unsigned long code)
{
	touch(address, regs, code, false);
	return 0;
}

char LICENSE[] __weak SEC("license") = "Dual BSD/GPL";
