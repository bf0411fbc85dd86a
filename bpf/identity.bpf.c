/* Which userfaultfd context, and which address space, stand behind a descriptor of the server's? Asked once for each fork. */
#include "maps.bpf.h"

__u32 asked_fd __weak; /* ANY_FD: the first, for the address space of the process alone */
__u64 found_context __weak;
__u64 found_mm __weak;

SEC("iter/task_file")
int find_context(struct bpf_iter__task_file *context)
{
	struct file *file = context->file;
	struct task_struct *task = context->task;

	if (!file || !task)
		return 0;
	if (asked_fd == ~0u) {
		found_mm = (__u64)task->mm;
		return 0;
	}
	if (context->fd != asked_fd)
		return 0;
	struct userfaultfd_ctx *userfaultfd = file->private_data;
	found_context = (__u64)userfaultfd;
	found_mm = (__u64)BPF_CORE_READ(userfaultfd, mm);
	return 0;
}

char LICENSE[] __weak SEC("license") = "Dual BSD/GPL";
