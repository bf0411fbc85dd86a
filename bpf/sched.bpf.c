/* Does a thread get on? When it left its CPU and why, when it was woken and by whom, when it ran again. */
#include "thread.bpf.h"

#define TASK_INTERRUPTIBLE 0x0001
#define TASK_DEAD	   0x0080
#define TASK_WAKEKILL	   0x0100

#define SOFTIRQ_SERVED 0x000100
#define HARDIRQ_MASK   0x0f0000
#define NMI_MASK       0xf00000

#define STACK_DEPTH 24
/* Of a thread in the kernel; the page below is never mapped. It may be larger, and is never used as far. */
#define STACK_SIZE (16 << 10)

#if defined(__TARGET_ARCH_x86)
extern const int __preempt_count __ksym __weak;	     /* before Linux 6.2, and since 6.15 */
extern const struct pcpu_hot pcpu_hot __ksym __weak; /* in between */

static __always_inline int preempt_count(struct task_struct *current)
{
	if (bpf_core_type_exists(struct pcpu_hot) && &pcpu_hot)
		return ((struct pcpu_hot *)bpf_this_cpu_ptr(&pcpu_hot))->preempt_count;
	if (&__preempt_count)
		return *(int *)bpf_this_cpu_ptr(&__preempt_count);
	return 0;
}

static __always_inline bool in_system_call(struct pt_regs *regs)
{
	return (long)regs->orig_ax >= 0;
}
#elif defined(__TARGET_ARCH_arm64)
static __always_inline int preempt_count(struct task_struct *current)
{
	return current->thread_info.preempt_count;
}

static __always_inline bool in_system_call(struct pt_regs *regs)
{
	return regs->syscallno >= 0;
}
#endif

static __always_inline bool in_interrupt(struct task_struct *current)
{
	return preempt_count(current) & (SOFTIRQ_SERVED | HARDIRQ_MASK | NMI_MASK);
}

/* Interrupts in the middle of a system call have a stack of their own. CONTEXT, of a tracepoint's program, lies on the one in use. */
static __always_inline bool on_own_stack(void *context, struct task_struct *current)
{
	__u64 depth = (__u64)bpf_task_pt_regs(current) - (__u64)context; /* registers stand at the stack's far end */

	return depth < STACK_SIZE;
}

extern const void handle_userfault __ksym __weak;

/* A system call that touched guest memory sleeps: for the page, or for something else that it does? Rare enough to look at its stack. */
static __always_inline bool sleeps_in_userfault(void *context)
{
	__u64 stack[STACK_DEPTH];
	__u64 start = (__u64)&handle_userfault;
	long size = start ? bpf_get_stack(context, stack, sizeof stack, 0) : 0;

	for (int i = 0; i < STACK_DEPTH && (i + 1) * 8 <= size; i++)
		if (stack[i] - start < 0x1000)
			return true;
	return false;
}

/* Whether the sleep that TASK begins is for the page that it touched last. */
static __always_inline bool waits_for_page(void *context, struct task_struct *task, struct thread *thread,
					   unsigned int state)
{
	if (thread->in_fault)
		return !thread->ran_ns;
	if (!waits_by_switch || !thread->touch_ns)
		return false;
	/* Code of the guest's waits so that a signal may end it; a system call, or KVM, so that only a deadly one may. Else it is for the map's lock, say. */
	if (!(state & (thread->from_user ? TASK_INTERRUPTIBLE : TASK_INTERRUPTIBLE | TASK_WAKEKILL)))
		return false;
	if (!thread->from_user)
		return sleeps_in_userfault(context);

	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);
	return !in_system_call(regs) && PT_REGS_IP(regs) == thread->ip;
}

static __always_inline void leaves_cpu(void *context, bool preempted, struct task_struct *task, struct thread *thread,
				       unsigned int state)
{
	if (preempted || !state) {
		thread->off_ns = bpf_ktime_get_ns();
		thread->state = THREAD_PREEMPTED;
		return;
	}
	thread->wake_ns = 0;
	thread->waker = 0;
	if (waits_for_page(context, task, thread, state)) {
		/* The commonest case, and nobody asks when exactly: the clock is not read for it. */
		thread->off_ns = thread->touch_ns;
		thread->state = THREAD_WAITS;
		return;
	}
	thread->off_ns = bpf_ktime_get_ns();
	if (!(state & (TASK_INTERRUPTIBLE | TASK_DEAD))) {
		/*
		 * Kept from running by a lock or a disk: no sleep of the guest's, and whoever lets go of the lock has not woken it. The map's lock, above
		 * all, which another vCPU's thread may hold.
		 */
		thread->state = THREAD_PREEMPTED;
	} else {
		tell_pending(thread, task->pid);
		thread->state = THREAD_SLEEPS;
	}
}

static __always_inline void tell_sleep(struct task_struct *task, struct thread *thread, __u64 off_ns, __u64 now)
{
	struct fork_stats *stats = find_fork(thread->slot);
	struct fl_event *event = stats && stats->sleeps_wanted ? reserve(stats) : NULL;

	if (!event)
		return;
	event->touch_ns = off_ns;
	event->wake_ns = thread->wake_ns;
	event->run_ns = now;
	event->address = 0;
	event->lost_ns = thread->lost_ns;
	event->fork = thread->slot;
	event->tid = task->pid;
	event->waker = thread->waker;
	event->cpu = bpf_get_smp_processor_id();
	event->kind = FL_EVENT_SLEEP;
	event->flags = task->flags & PF_KTHREAD ? FL_EVENT_KTHREAD : 0;
	submit(event);
}

static __always_inline void gets_cpu(struct task_struct *task, struct thread *thread, __u64 now)
{
	__u64 off_ns = thread->off_ns;

	thread->off_ns = 0;
	switch (thread->state) {
	case THREAD_PREEMPTED:
		thread->lost_ns += now - off_ns;
		break;
	case THREAD_SLEEPS:
		tell_sleep(task, thread, off_ns, now);
		if (thread->wake_ns)
			thread->lost_ns += now - thread->wake_ns;
		break;
	case THREAD_WAITS:
		if (waits_by_switch)
			end_wait(thread, task->pid, now);
		else
			thread->ran_ns = now;
		break;
	}
	thread->state = THREAD_RUNS;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(sched_switched, bool preempted, struct task_struct *previous, struct task_struct *next, unsigned int state)
{
	if (!fork_count)
		return 0;

	struct thread *leaving = find_thread(previous);
	if (leaving)
		leaves_cpu(ctx, preempted, previous, leaving, state);

	struct thread *coming = find_thread(next);
	if (coming && coming->off_ns)
		gets_cpu(next, coming, bpf_ktime_get_ns());
	return 0;
}

static __always_inline void woken(void *context, struct task_struct *task, bool counted)
{
	struct thread *thread = find_thread(task);
	if (!thread || thread->state < THREAD_SLEEPS || thread->wake_ns)
		return;
	thread->wake_ns = bpf_ktime_get_ns();
	if (thread->state != THREAD_SLEEPS)
		return;

	struct task_struct *current = bpf_get_current_task_btf();
	struct thread *waker = find_thread(current);
	if (!waker || waker->slot != thread->slot)
		return;
	/* An interrupt has only borrowed this thread: what it wakes, the thread has not woken. */
	if (counted ? in_interrupt(current)
		    : !in_system_call((struct pt_regs *)bpf_task_pt_regs(current)) || !on_own_stack(context, current))
		return;
	thread->waker = current->pid;
}

SEC("tp_btf/sched_waking")
int BPF_PROG(sched_woken, struct task_struct *task)
{
	if (fork_count)
		woken(ctx, task, true);
	return 0;
}

/*
 * For kernels that don't let programs see how deep a CPU is in interrupts (those without CONFIG_KALLSYMS_ALL). Interrupts from user mode are told by the
 * thread's registers, those in the middle of a system call, as a vCPU's always are, by their stack.
 */
SEC("tp_btf/sched_waking")
int BPF_PROG(sched_woken_alt, struct task_struct *task)
{
	if (fork_count)
		woken(ctx, task, false);
	return 0;
}

char LICENSE[] __weak SEC("license") = "Dual BSD/GPL";
