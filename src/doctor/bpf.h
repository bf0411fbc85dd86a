/* Tiny BPF programs, written as instructions so that no compiler for BPF is needed: loaded, attached and seen to run. */
#pragma once

#include <bpf/bpf.h>
#include <linux/types.h>
#include <stdint.h>

/* A program that counts how often it runs, in a map of its own. */
struct counter {
	int map, prog, link;
};
#define COUNTER_EMPTY                             \
	{                                         \
		.map = -1, .prog = -1, .link = -1 \
	}
void counter_clear(struct counter *counter);

/* How a program is tied to what it counts. */
enum hook {
	HOOK_FENTRY,
	HOOK_FEXIT,
	HOOK_TP_BTF,
	HOOK_KPROBE,
	HOOK_KRETPROBE,
	HOOK_TRACEPOINT,
	HOOK_UPROBE,
	HOOK_ITERATOR,
};

/* What was refused. */
enum bpf_step { BPF_STEP_FIND, BPF_STEP_MAP, BPF_STEP_LOAD, BPF_STEP_ATTACH };

/*
 * Loads a counter and attaches it to TARGET: a function, a tracepoint ("page_fault_user"; with its group for HOOK_TRACEPOINT:
 * "exceptions/page_fault_user"), an iterator ("task_vma"), or for HOOK_UPROBE nothing (uprobe_target of this program).
 * 0 or negative errno, with ret_step set to what failed.
 */
int counter_attach(struct counter *counter, enum hook hook, const char *target, enum bpf_step *ret_step);

/* How often it ran so far. */
uint64_t counter_value(const struct counter *counter);

/* What HOOK_UPROBE is attached to. */
void uprobe_target(void);
