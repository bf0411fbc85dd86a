/* Which page does a thread wait for, and how long? Exactly: from the function that queues the fault on the userfaultfd. */
#include "thread.bpf.h"

#define VM_FAULT_RETRY 0x400

static __always_inline void enter(struct vm_fault *vmf)
{
	if (!fork_count)
		return;

	unsigned int fault_flags = BPF_CORE_READ(vmf, flags);
	/* KVM asks first whether the page is there: this returns at once and queues nothing. */
	if (fault_flags & FAULT_FLAG_RETRY_NOWAIT)
		return;
	__u64 context = (__u64)BPF_CORE_READ(vmf, vma, vm_userfaultfd_ctx.ctx);
	__u32 *slot = bpf_map_lookup_elem(&contexts, &context);
	if (!slot)
		return;

	struct task_struct *task = bpf_get_current_task_btf();
	struct thread *thread = touching_thread(find_thread(task), task, *slot);
	if (!thread)
		return;
	__u64 address = BPF_CORE_READ(vmf, real_address);
	__u8 flags = (fault_flags & FAULT_FLAG_WRITE ? FL_EVENT_WRITE : 0) |
		     (fault_flags & FAULT_FLAG_INSTRUCTION ? FL_EVENT_FETCH : 0) |
		     (task->flags & PF_KTHREAD ? FL_EVENT_KTHREAD : 0);
	/* Where page_fault_user has seen the touch already, it began there. */
	if (!thread->touch_ns || thread->in_fault || (thread->address ^ address) >> 12) {
		tell_pending(thread, task->pid);
		begin_touch(thread, address, bpf_ktime_get_ns(), flags);
	}
	thread->in_fault = 1;
}

static __always_inline void leave(unsigned int result)
{
	if (!fork_count)
		return;

	struct task_struct *task = bpf_get_current_task_btf();
	struct thread *thread = find_thread(task);
	if (!thread || !thread->in_fault)
		return;
	thread->in_fault = 0;
	if (!(result & VM_FAULT_RETRY))
		thread->flags |= FL_EVENT_FAILED;
	end_wait(thread, task->pid, bpf_ktime_get_ns());
}

SEC("fentry/handle_userfault")
int BPF_PROG(enter_fentry, struct vm_fault *vmf)
{
	enter(vmf);
	return 0;
}

SEC("fexit/handle_userfault")
int BPF_PROG(leave_fexit, struct vm_fault *vmf, unsigned long reason, unsigned int result)
{
	leave(result);
	return 0;
}

SEC("kprobe/handle_userfault")
int BPF_KPROBE(enter_kprobe, struct vm_fault *vmf)
{
	enter(vmf);
	return 0;
}

SEC("kretprobe/handle_userfault")
int BPF_KRETPROBE(leave_kretprobe, unsigned int result)
{
	leave(result);
	return 0;
}

char LICENSE[] __weak SEC("license") = "Dual BSD/GPL";
