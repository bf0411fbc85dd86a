/* What the programs do in common: a thread's state, a fork's figures, events into the ring. */
#pragma once

#include "maps.bpf.h"

#define PF_KTHREAD 0x00200000

static __always_inline struct fork_stats *find_fork(__u32 slot)
{
	struct fork_key key = { slot };

	return bpf_map_lookup_elem(&forks, &key);
}

static __always_inline struct thread *find_thread(struct task_struct *task)
{
	/* Most threads have never been any program's business: that costs them no call. */
	if (bpf_core_field_exists(task->bpf_storage) && !task->bpf_storage)
		return NULL;
	return bpf_task_storage_get(&threads, task, NULL, 0);
}

/* With the ring's reader asleep, the first event wakes it; after that it looks by itself, every so often, or when the ring fills. */
static __always_inline void submit(struct fl_event *event)
{
	__u64 flags = BPF_RB_NO_WAKEUP;

	if (reader_sleeps) {
		reader_sleeps = 0;
		flags = BPF_RB_FORCE_WAKEUP;
	} else if (bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) >= wake_at_bytes) {
		flags = BPF_RB_FORCE_WAKEUP;
	}
	bpf_ringbuf_submit(event, flags);
}

/* NULL: no room, and that is counted. */
static __always_inline struct fl_event *reserve(struct fork_stats *stats)
{
	struct fl_event *event = bpf_ringbuf_reserve(&events, sizeof *event, 0);

	/*
	 * Tested once: Linux 6.1 forgets the answer, and takes a second test for a way on which the event is never submitted. So clang must not
	 * make the two additions one, and test again after it.
	 */
	if (!event) {
		__sync_fetch_and_add(&stats->events_lost, 1);
		asm volatile("" ::: "memory");
		return NULL;
	}
	__sync_fetch_and_add(&stats->events, 1);
	return event;
}

static __always_inline __u32 log2_bucket(__u64 ns)
{
	__u32 bucket = 0;

	if (ns >> 32)
		return FL_LATENCY_BUCKETS - 1;
	if (ns >> 16) {
		ns >>= 16;
		bucket += 16;
	}
	if (ns >> 8) {
		ns >>= 8;
		bucket += 8;
	}
	if (ns >> 4) {
		ns >>= 4;
		bucket += 4;
	}
	if (ns >> 2) {
		ns >>= 2;
		bucket += 2;
	}
	return (bucket + (__u32)(ns >> 1)) & (FL_LATENCY_BUCKETS - 1);
}

/* THREAD has touched, and goes on at RUN_NS after it waited (FL_EVENT_FAULT), or at once. */
static __always_inline void tell(struct thread *thread, __u32 tid, __u8 kind, __u64 run_ns)
{
	struct fork_stats *stats = find_fork(thread->slot);

	if (!stats)
		return; /* it has ended meanwhile */
	if (kind == FL_EVENT_FAULT) {
		__u64 stall = run_ns - thread->touch_ns;
		__sync_fetch_and_add(&stats->faults, 1);
		__sync_fetch_and_add(&stats->stall_ns, stall);
		__sync_fetch_and_add(&stats->stall_log2_ns[log2_bucket(stall)], 1);
		/* Of two that set it at once the smaller may stay: a maximum that is off by one of two equals at most. */
		if (stall > stats->stall_max_ns)
			stats->stall_max_ns = stall;
	} else {
		__sync_fetch_and_add(&stats->touches, 1);
	}

	struct fl_event *event = reserve(stats);
	if (!event)
		return;
	event->touch_ns = thread->touch_ns;
	event->wake_ns = kind == FL_EVENT_FAULT && thread->wake_ns >= thread->touch_ns ? thread->wake_ns : 0;
	event->run_ns = run_ns;
	event->address = thread->address;
	event->lost_ns = thread->lost_before_ns;
	event->fork = thread->slot;
	event->tid = tid;
	event->waker = 0;
	event->cpu = thread->cpu;
	event->kind = kind;
	event->flags = thread->flags;
	submit(event);
}

static __always_inline void end_wait(struct thread *thread, __u32 tid, __u64 now)
{
	tell(thread, tid, FL_EVENT_FAULT, now);
	/* The whole stall, and nothing of it twice: it may have been kept from its CPU in between. */
	thread->lost_ns = thread->lost_before_ns + (now - thread->touch_ns);
	thread->touch_ns = 0;
}

/*
 * A touch of a page that was there has no end that could be seen: it is told when the thread does something else. So is a fault whose end was not
 * seen: the kernel has so many return probes, and of more threads that wait at once the others return without.
 */
static __always_inline void tell_pending(struct thread *thread, __u32 tid)
{
	bool waited = thread->in_fault && thread->ran_ns;

	thread->in_fault = 0;
	if (!thread->touch_ns)
		return;
	if (waited) {
		end_wait(thread, tid, thread->ran_ns);
		return;
	}
	tell(thread, tid, FL_EVENT_TOUCH, thread->touch_ns);
	thread->touch_ns = 0;
}

static __always_inline void tell_name(struct task_struct *task, __u32 slot, __u8 flags)
{
	struct fork_stats *stats = find_fork(slot);
	struct fl_event *event = stats ? reserve(stats) : NULL;

	if (!event)
		return;
	event->touch_ns = bpf_ktime_get_ns();
	bpf_probe_read_kernel_str(event->name, sizeof event->name, task->comm);
	event->address = 0;
	event->lost_ns = 0;
	event->fork = slot;
	event->tid = task->pid;
	event->waker = 0;
	event->cpu = bpf_get_smp_processor_id();
	event->kind = FL_EVENT_THREAD;
	event->flags = flags;
	submit(event);
}

/* A thread older than this may have been without a CPU for something else than the fork that it now touches first. */
#define YOUNG_NS 2000000000ull

/* What a thread has lost that was never seen before: on a busy machine, vCPUs may wait long for their first moment on a CPU, and not equally long. */
static __always_inline __u64 lost_so_far(struct task_struct *task)
{
	if (!bpf_core_field_exists(task->sched_info.run_delay) ||
	    bpf_ktime_get_ns() - BPF_CORE_READ(task, start_time) > YOUNG_NS)
		return 0;
	return BPF_CORE_READ(task, sched_info.run_delay);
}

/* The current thread, about to touch memory of the fork in SLOT; THREAD is what is known of it, or NULL. */
static __always_inline struct thread *touching_thread(struct thread *thread, struct task_struct *task, __u32 slot)
{
	if (!thread)
		thread = bpf_task_storage_get(&threads, task, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (thread && thread->slot != slot) {
		tell_pending(thread, task->pid);
		if (!thread->slot)
			thread->lost_ns = lost_so_far(task);
		thread->slot = slot;
		tell_name(task, slot, task->flags & PF_KTHREAD ? FL_EVENT_KTHREAD : 0);
	}
	return thread;
}

static __always_inline void begin_touch(struct thread *thread, __u64 address, __u64 now, __u8 flags)
{
	thread->touch_ns = now;
	thread->address = address;
	thread->lost_before_ns = thread->lost_ns;
	thread->wake_ns = 0;
	thread->ran_ns = 0;
	thread->cpu = bpf_get_smp_processor_id();
	thread->flags = flags;
}

/* The fork that the address belongs to in the address space MM: its slot, or 0. THREAD, which may be NULL, most often touches where it touched last. */
static __always_inline __u32 slot_of_address(struct thread *thread, struct mm_struct *mm, __u64 address)
{
	__u32 version = ranges_version;

	if (thread && thread->near_version == version && thread->near_mm == (__u64)mm &&
	    (address & thread->near_mask) == thread->near_address)
		return thread->near_slot;

	struct range_key key = {
		.prefix = 160,
		.mm = __builtin_bswap64((__u64)mm),
		.address = __builtin_bswap64(address),
	};
	struct range *range = bpf_map_lookup_elem(&ranges, &key);
	if (!range)
		return 0;
	if (thread) {
		thread->near_mm = (__u64)mm;
		thread->near_mask = ~0ull << ((160 - range->prefix) & 63);
		thread->near_address = address & thread->near_mask;
		thread->near_slot = range->slot;
		thread->near_version = version;
	}
	return range->slot;
}
