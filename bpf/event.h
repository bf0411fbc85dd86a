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
	FL_EVENT_FAULT = 1, /* a thread waited for an absent page */
	FL_EVENT_TOUCH =
		2, /* a touch that was not seen to wait: the page was there, or (KVM) an FL_EVENT_FAULT may follow */
	FL_EVENT_SLEEP = 3,  /* a thread of the fork slept, not for a page: touch_ns is when it went to sleep */
	FL_EVENT_THREAD = 4, /* a thread touched this fork's memory for the first time: its name */
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
	union {
		struct {
			FL_U64 wake_ns; /* somebody made the thread runnable; 0: not seen */
			FL_U64 run_ns;	/* the thread ran again; touch_ns for FL_EVENT_TOUCH */
		};
		char name[16]; /* FL_EVENT_THREAD */
	};
	FL_U64 address; /* in the VMM's address space, exact; 0 for FL_EVENT_SLEEP and FL_EVENT_THREAD */
	FL_U64 lost_ns; /* time that this thread had lost until touch_ns: stalls, and being runnable without running */
	FL_U32 fork;	/* slot: a number that is never used again */
	FL_U32 tid;	/* as the initial PID namespace counts */
	FL_U32 waker;	/* FL_EVENT_SLEEP: tid of the thread of the same fork that woke it; 0: another, or unknown */
	FL_U16 cpu;	/* where the thread was */
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
	FL_U32 pid;	      /* of the VMM */
	FL_U32 sleeps_wanted; /* 1: sleeps of its threads are told too */
	FL_U64 faults;	      /* threads that waited for a page */
	FL_U64 touches;	      /* touches that were not seen to wait */
	FL_U64 stall_ns;      /* sum over faults */
	FL_U64 stall_max_ns;
	FL_U64 events;	    /* that the ring took */
	FL_U64 events_lost; /* for which it had no room */
	FL_U64 stall_log2_ns[FL_LATENCY_BUCKETS];
};

/* The one entry of the map "server": whose maps and programs these are. */
struct server_info {
	FL_U32 pid;
	FL_U32 event_version;
	FL_U64 started_ticks; /* since boot, as /proc/PID/stat tells a start */
	char tier[16];
	char run_dir[256];
};
