/* BPF instructions, as far as the doctor's programs need them. */
#pragma once

#include <linux/bpf.h>

static inline struct bpf_insn insn(unsigned class, unsigned operation, unsigned source, unsigned dst, unsigned src,
				   int offset, int immediate)
{
	return (struct bpf_insn){ .code = (__u8)(class | operation | source),
				  .dst_reg = dst & 15,
				  .src_reg = src & 15,
				  .off = (__s16)offset,
				  .imm = immediate };
}

static inline struct bpf_insn insn_set(unsigned dst, int value)
{
	return insn(BPF_ALU64, BPF_MOV, BPF_K, dst, 0, 0, value);
}

static inline struct bpf_insn insn_copy(unsigned dst, unsigned src)
{
	return insn(BPF_ALU64, BPF_MOV, BPF_X, dst, src, 0, 0);
}

static inline struct bpf_insn insn_add(unsigned dst, int value)
{
	return insn(BPF_ALU64, BPF_ADD, BPF_K, dst, 0, 0, value);
}

/* *(TYPE *)(dst + offset) = value; SIZE is BPF_W or BPF_DW. */
static inline struct bpf_insn insn_store(unsigned size, unsigned dst, int offset, int value)
{
	return insn(BPF_ST, BPF_MEM, size, dst, 0, offset, value);
}

/* lock *(u64 *)(dst + 0) += src */
static inline struct bpf_insn insn_atomic_add(unsigned dst, unsigned src)
{
	return insn(BPF_STX, BPF_ATOMIC, BPF_DW, dst, src, 0, BPF_ADD);
}

/* The first of the two instructions that load a map; the second is all zeros. */
static inline struct bpf_insn insn_load_map(unsigned dst, int map_fd)
{
	return insn(BPF_LD, BPF_IMM, BPF_DW, dst, BPF_PSEUDO_MAP_FD, 0, map_fd);
}

static inline struct bpf_insn insn_call(int helper)
{
	return insn(BPF_JMP, BPF_CALL, BPF_K, 0, 0, 0, helper);
}

/* Skips COUNT instructions where the register is zero. */
static inline struct bpf_insn insn_skip_if_zero(unsigned reg, int count)
{
	return insn(BPF_JMP, BPF_JEQ, BPF_K, reg, 0, count, 0);
}

static inline struct bpf_insn insn_exit(void)
{
	return insn(BPF_JMP, BPF_EXIT, BPF_K, 0, 0, 0, 0);
}
