/* Maps and variables that the programs share. Weak, so that the object files, each with one question, are linked into one. */
#pragma once

#include "vmlinux.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "event.h"

/* Forks by slot: figures, kept in the kernel and pinned for bpftool. The server adds and deletes them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct fork_key);
	__type(value, struct fork_stats);
} forks __weak SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct server_info);
} server __weak SEC(".maps");

/* A userfaultfd's context in the kernel, and the slot of the fork that it belongs to. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, __u64);
	__type(value, __u32);
} contexts __weak SEC(".maps");

/* Guest memory by address: an address space (its mm), and a range in it as prefixes. Big-endian, as prefixes are compared from the first byte. */
struct range_key {
	__u32 prefix; /* bits of what follows */
	__u32 zero;
	__u64 mm;
	__u64 address;
};

struct range {
	__u32 slot;
	__u32 prefix; /* as in its key */
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4194304);
	__type(key, struct range_key);
	__type(value, struct range);
} ranges __weak SEC(".maps");

/* The size is set when it is loaded. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4194304);
} events __weak SEC(".maps");

enum thread_state {
	THREAD_RUNS,
	THREAD_PREEMPTED, /* runnable, but another runs */
	THREAD_SLEEPS,
	THREAD_WAITS, /* for a page */
};

/* What is known of a thread since it first touched a fork's memory; goes with the thread. */
struct thread {
	__u64 touch_ns; /* of a touch that has not been told yet; 0: none */
	__u64 address;
	__u64 off_ns;  /* since when it doesn't run; 0: it runs */
	__u64 wake_ns; /* made runnable since; 0: not, or not seen */
	__u64 lost_ns;
	__u64 lost_before_ns; /* what that was at touch_ns */
	__u64 ip;	      /* of the instruction that faulted */
	__u64 ran_ns;	      /* it waited in handle_userfault, and ran again then; 0: not yet */
	__u64 near_mm, near_address,
		near_mask; /* the range that it touched last, as long as NEAR_VERSION is that of all ranges */
	__u32 near_version, near_slot;
	__u32 slot;
	__u32 waker;
	__u16 cpu;
	__u8 flags;
	__u8 state;	/* enum thread_state */
	__u8 in_fault;	/* handle_userfault is on its stack (fentry and kprobe tiers) */
	__u8 from_user; /* the touch came from user mode */
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct thread);
} threads __weak SEC(".maps");

/* Changes with every change of the ranges, after it; never 0. */
__u32 ranges_version __weak;
/* Forks that are attached: with none, every program returns at once. */
__u32 fork_count __weak;
/* The reader has seen the ring empty and sleeps until it is woken. */
__u32 reader_sleeps __weak;
/* Bytes in the ring from which on the reader is woken before its time. */
__u32 wake_at_bytes __weak;
/* sched_switch has to find out by itself who waits for a page: the tier without handle_userfault. */
const volatile bool waits_by_switch __weak = false;
