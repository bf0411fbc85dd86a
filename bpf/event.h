/*
 * What the BPF programs tell the program that reads their ring: both sides include this. Times are CLOCK_MONOTONIC nanoseconds.
 * Fixed widths, and sizes held by assertions, as the two sides are compiled for different machines.
 */
#pragma once

#ifndef __bpf__
#include <stdint.h>
#define FL_U64 uint64_t
#define FL_U32 uint32_t
#define FL_U16 uint16_t
#define FL_U8  uint8_t
#else
#define FL_U64 __u64
#define FL_U32 __u32
#define FL_U16 __u16
#define FL_U8  __u8
#endif

#define FL_EVENT_VERSION 1

enum fl_event_kind {
	FL_EVENT_FAULT = 1, /* a thread waited for an absent page: touch, (wake,) run */
	FL_EVENT_TOUCH =
		2, /* a first touch that did not wait on the userfaultfd: the page was there, or (KVM) a fault may follow */
	FL_EVENT_SLEEP = 3, /* a thread of the fork slept, not for a page: touch_ns is when it went to sleep */
};

enum fl_event_flag {
	FL_EVENT_WRITE = 1 << 0,
	FL_EVENT_FETCH = 1 << 1,
	FL_EVENT_WALK = 1 << 2,	   /* the guest's own page-table walk (KVM) */
	FL_EVENT_KTHREAD = 1 << 3, /* a kernel thread faulted in the name of a vCPU */
	FL_EVENT_KVM = 1 << 4,	   /* seen by KVM: in the guest's own order */
	FL_EVENT_FAILED = 1 << 5,  /* the fault did not end in a retry: a signal came, or the page was poisoned */
};

struct fl_event {
	FL_U64 touch_ns;
	FL_U64 wake_ns; /* somebody made the thread runnable; 0: not seen */
	FL_U64 run_ns;	/* the thread ran again; touch_ns for FL_EVENT_TOUCH */
	FL_U64 address; /* in the VMM's address space, exact; 0 for FL_EVENT_SLEEP */
	FL_U64 lost_ns; /* time that this thread had lost until touch_ns: stalls, and being runnable without running */
	FL_U32 fork;	/* slot */
	FL_U32 tid;	/* of the thread, as the initial PID namespace counts */
	FL_U32 waker;	/* FL_EVENT_SLEEP: tid of the thread of the same fork that woke it; 0: another, or unknown */
	FL_U16 cpu;	/* where the thread was at touch_ns */
	FL_U8 kind;	/* enum fl_event_kind */
	FL_U8 flags;	/* enum fl_event_flag */
};
_Static_assert(sizeof(struct fl_event) == 56, "both sides must agree");

#define FL_LATENCY_BUCKETS 32 /* bucket N counts stalls of 2^N to 2^(N+1)-1 ns; the last one everything above too */

/* Per fork, in the map "forks". */
struct fork_key {
	FL_U32 slot;
};

struct fork_stats {
	char id[64];
	FL_U32 pid;	   /* of the VMM */
	FL_U32 generation; /* slots are used again */
	FL_U64 faults;	   /* that waited for a page */
	FL_U64 present;	   /* touches of pages that were there */
	FL_U64 stall_ns;   /* sum over faults */
	FL_U64 stall_max_ns;
	FL_U64 events;	    /* handed to the ring */
	FL_U64 events_lost; /* for which the ring had no room */
	FL_U64 stall_log2_ns[FL_LATENCY_BUCKETS];
};
