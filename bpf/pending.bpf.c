/* What have the threads of a process touched and not told yet? A touch of a page that was there is told when the next thing happens. */
#include "thread.bpf.h"

__u32 asked_slot __weak;

SEC("iter/task")
int tell_pending_of(struct bpf_iter__task *context)
{
	struct task_struct *task = context->task;
	struct thread *thread = task ? find_thread(task) : NULL;

	if (!thread || thread->slot != asked_slot || !thread->touch_ns || thread->in_fault ||
	    thread->state == THREAD_WAITS)
		return 0;

	struct fork_stats *stats = find_fork(asked_slot);
	struct fl_event *event = stats ? reserve(stats) : NULL;
	if (!event)
		return 0;
	/* A copy: the thread may be on its way into a fault, and tells the touch itself in any case. */
	event->touch_ns = event->run_ns = thread->touch_ns;
	event->wake_ns = 0;
	event->address = thread->address;
	event->lost_ns = thread->lost_before_ns;
	event->fork = asked_slot;
	event->tid = task->pid;
	event->waker = 0;
	event->cpu = thread->cpu;
	event->kind = FL_EVENT_TOUCH;
	event->flags = thread->flags;
	submit(event);
	return 0;
}

char LICENSE[] __weak SEC("license") = "Dual BSD/GPL";
