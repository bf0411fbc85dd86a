/*
 * The kernel's types as far as the BPF programs look at them: the members that they read, by name. Where a member really lies is put in when a
 * program is loaded (CO-RE), from the running kernel's BTF. See README.md.
 */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u32 __wsum;
typedef _Bool bool;

#define true 1
#define false 0
#define NULL ((void *)0)

/* UAPI: numbers that never change. */
enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_RINGBUF = 27,
	BPF_MAP_TYPE_TASK_STORAGE = 29,
};

enum { BPF_NOEXIST = 1, BPF_F_NO_PREALLOC = 1, BPF_F_RDONLY_PROG = 128 };
enum { BPF_LOCAL_STORAGE_GET_F_CREATE = 1 };
enum { BPF_RB_NO_WAKEUP = 1, BPF_RB_FORCE_WAKEUP = 2, BPF_RB_AVAIL_DATA = 0 };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct mm_struct;

struct vm_userfaultfd_ctx {
	struct userfaultfd_ctx *ctx;
};

struct userfaultfd_ctx {
	struct mm_struct *mm;
};

struct vm_area_struct {
	struct vm_userfaultfd_ctx vm_userfaultfd_ctx;
};

/* A field is found by its kind of type too: this is an enumeration, though its values are bits. */
enum fault_flag { FAULT_FLAG_WRITE = 0x01, FAULT_FLAG_RETRY_NOWAIT = 0x08, FAULT_FLAG_INSTRUCTION = 0x100 };

struct vm_fault {
	struct vm_area_struct *vma;
	unsigned long address;
	unsigned long real_address;
	enum fault_flag flags;
};

struct file {
	void *private_data;
};

struct sched_info {
	unsigned long long run_delay;
};

struct task_struct {
	struct thread_info thread_info;
	unsigned int flags;
	int pid;
	int tgid;
	struct mm_struct *mm;
	char comm[16];
	struct sched_info sched_info;
	__u64 start_time;
	struct bpf_local_storage *bpf_storage;
};

struct bpf_iter__task_file {
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};

struct bpf_iter__task {
	struct task_struct *task;
};

/* Of kvm.ko. */
struct rb_node {
	struct rb_node *rb_right;
	struct rb_node *rb_left;
};

struct rb_root {
	struct rb_node *rb_node;
};

struct kvm_memory_slot {
	struct rb_node gfn_node[2];
	__u64 base_gfn;
	unsigned long npages;
	unsigned long userspace_addr;
};

struct kvm_memslots {
	struct rb_root gfn_tree;
	int node_idx;
};

struct kvm {
	struct mm_struct *mm;
	struct kvm_memslots *memslots[1];
};

struct kvm_vcpu {
	struct kvm *kvm;
};

#pragma clang attribute pop
