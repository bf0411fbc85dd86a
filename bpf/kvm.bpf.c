/* Which guest page does a vCPU touch for the first time, whether or not it is there in the VMM? In the guest's own order. */
#include "thread.bpf.h"

#define PAGE_SHIFT 12
/* A balanced tree of that depth has room for more slots than KVM has. */
#define SLOT_TREE_DEPTH 24

#define ERROR_WRITE 0x02
#define ERROR_FETCH 0x10
#define ERROR_WALK  0x200000000ull /* of nested paging: the fault was in the guest's page tables */

/* The slot of memory that holds the guest's frame, from KVM's tree of slots; NULL: none, such as a device. */
static __always_inline struct kvm_memory_slot *find_slot(struct kvm_memslots *slots, __u64 frame)
{
	__u64 place = bpf_core_field_offset(struct kvm_memory_slot, gfn_node) +
		      bpf_core_type_size(struct rb_node) * (BPF_CORE_READ(slots, node_idx) & 1);
	struct rb_node *node = BPF_CORE_READ(slots, gfn_tree.rb_node);

	for (int i = 0; i < SLOT_TREE_DEPTH && node; i++) {
		struct kvm_memory_slot *slot = (void *)node - place;
		__u64 first = BPF_CORE_READ(slot, base_gfn);

		if (frame < first)
			node = BPF_CORE_READ(node, rb_left);
		else if (frame >= first + BPF_CORE_READ(slot, npages))
			node = BPF_CORE_READ(node, rb_right);
		else
			return slot;
	}
	return NULL;
}

SEC("tp_btf/kvm_page_fault")
int BPF_PROG(touch_guest, struct kvm_vcpu *vcpu, unsigned long guest_address, __u64 code)
{
	if (!fork_count || !vcpu)
		return 0;

	struct kvm *kvm = BPF_CORE_READ(vcpu, kvm);
	__u64 frame = guest_address >> PAGE_SHIFT;
	struct kvm_memory_slot *memory = find_slot(BPF_CORE_READ(kvm, memslots[0]), frame);
	if (!memory)
		return 0;
	__u64 address = BPF_CORE_READ(memory, userspace_addr) +
			((frame - BPF_CORE_READ(memory, base_gfn)) << PAGE_SHIFT) +
			(guest_address & ((1 << PAGE_SHIFT) - 1));
	struct task_struct *task = bpf_get_current_task_btf();
	struct thread *thread = find_thread(task);
	__u32 slot = slot_of_address(thread, BPF_CORE_READ(kvm, mm), address);
	if (!slot)
		return 0;
	thread = touching_thread(thread, task, slot);
	if (!thread)
		return 0;
	__u64 now = bpf_ktime_get_ns();
	tell_pending(thread, task->pid);
	begin_touch(thread, address, now,
		    FL_EVENT_KVM | (code & ERROR_WRITE ? FL_EVENT_WRITE : 0) |
			    (code & ERROR_FETCH ? FL_EVENT_FETCH : 0) | (code & ERROR_WALK ? FL_EVENT_WALK : 0));
	/* Whether it will have to wait isn't known yet, and another thread may be the one that does: so the touch is told by itself. */
	tell_pending(thread, task->pid);
	return 0;
}

char LICENSE[] __weak SEC("license") = "Dual BSD/GPL";
