/* BPF as the tiers of observation need it: each program is loaded, attached, and has to see what is then made to happen. */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/bpf.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "doctor/bpf.h"
#include "doctor/check.h"
#include "doctor/insn.h"
#include "doctor/kvm_trial.h"
#include "doctor/machine.h"
#include "doctor/trial.h"

#define BPF_DIR	   "/sys/fs/bpf"
#define KPROBE_PMU "/sys/bus/event_source/devices/kprobe"

/* The kernel's own "not supported", which userspace has no name for. */
#define KERNEL_ENOTSUPP 524

/* ---- why something is refused ---- */

static bool is_locked_down(void)
{
	char line[128];

	return read_line("/sys/kernel/security/lockdown", line, sizeof line) == 0 && strstr(line, "[confidentiality]");
}

/* Remedy for a call that the kernel, or somebody before it, did not permit. */
static void say_not_permitted(struct probe *probe)
{
	bool admin = has_capability(CAPABILITY_SYS_ADMIN);

	if (!admin && !(has_capability(CAPABILITY_BPF) && has_capability(CAPABILITY_PERFMON)))
		probe_remedy(probe, "run as root, or with CAP_BPF and CAP_PERFMON (systemd: AmbientCapabilities=CAP_BPF "
				    "CAP_PERFMON)");
	else if (in_user_namespace())
		probe_remedy(probe,
			     "leave the user namespace (rootless container): capabilities in it don't count for BPF");
	else if (is_locked_down())
		probe_remedy(probe, "the kernel is locked down: boot with lockdown=integrity or without (secure boot may "
				    "force it)");
	else if (has_seccomp_filter())
		probe_remedy(probe, "allow bpf and perf_event_open in the seccomp filter that this process runs under");
	else
		probe_remedy(probe,
			     "nothing in this process's power: the kernel's maker refuses it by a policy of its own, "
			     "or a security module does (its log says so); another kernel helps");
}

static const char *const step_names[] = {
	[BPF_STEP_FIND] = "finding it in BTF",
	[BPF_STEP_MAP] = "making a map",
	[BPF_STEP_LOAD] = "loading the program",
	[BPF_STEP_ATTACH] = "attaching the program",
};

/* WHAT is the program; the row's own remedy stays for what this kernel simply has not got. */
static void say_refused(struct probe *probe, const char *what, enum bpf_step step, int error)
{
	bool not_supported = error == -KERNEL_ENOTSUPP;

	probe_missing(probe, not_supported ? -EOPNOTSUPP : error, "%s%s%s failed: %s", what, what[0] ? ": " : "",
		      step_names[step], not_supported ? "not supported (ENOTSUPP)" : strerror(-error));
	if (error == -EPERM || error == -EACCES)
		say_not_permitted(probe);
	else if (error == -ENOSYS)
		probe_remedy(probe, has_seccomp_filter() ? "allow bpf in the seccomp filter that this process runs under"
							 : "a kernel with CONFIG_BPF_SYSCALL=y");
	else if (step == BPF_STEP_FIND && access("/sys/kernel/btf/vmlinux", R_OK) < 0)
		probe_remedy(probe, "a kernel with CONFIG_DEBUG_INFO_BTF=y");
}

/* ---- making something happen ---- */

static void take_a_userfault(void)
{
	trial_anonymous(0, TRIAL_READ);
}

static void take_a_fault(void)
{
	size_t size = (size_t)sysconf(_SC_PAGESIZE);
	volatile char *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (page == MAP_FAILED)
		return;
	page[0] = 1;
	munmap((void *)page, size);
}

static void sleep_a_moment(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = 1000 }, NULL);
}

static void run_a_guest(void)
{
	kvm_trial();
}

static void do_nothing(void)
{
}

/* ---- programs ---- */

struct hooked {
	enum hook hook;
	const char *what; /* "fentry" */
	const char *target;
	void (*happen)(void);
};

static const struct hooked fentry_hooks[] = {
	{ HOOK_FENTRY, "fentry", "handle_userfault", take_a_userfault },
	{ HOOK_FEXIT, "fexit", "handle_userfault", take_a_userfault },
	{ 0 },
};
static const struct hooked kprobe_hooks[] = {
	{ HOOK_KPROBE, "kprobe", "handle_userfault", take_a_userfault },
	{ HOOK_KRETPROBE, "kretprobe", "handle_userfault", take_a_userfault },
	{ 0 },
};
static const struct hooked page_fault_hooks[] = {
	{ HOOK_TP_BTF, "", "page_fault_user", take_a_fault },
	{ 0 },
};
static const struct hooked switch_hooks[] = {
	{ HOOK_TP_BTF, "", "sched_switch", sleep_a_moment },
	{ 0 },
};
static const struct hooked guest_hooks[] = {
	{ HOOK_TP_BTF, "", "kvm_page_fault", run_a_guest },
	{ 0 },
};
static const struct hooked tracepoint_hooks[] = {
	{ HOOK_TRACEPOINT, "", "exceptions/page_fault_user", take_a_fault },
	{ 0 },
};
static const struct hooked uprobe_hooks[] = {
	{ HOOK_UPROBE, "", "", uprobe_target },
	{ 0 },
};
static const struct hooked iterator_hooks[] = {
	{ HOOK_ITERATOR, "", "task_vma", do_nothing },
	{ 0 },
};

/* False: it is said what is wrong. */
static bool try_hook(struct probe *probe, const struct hooked *hooked)
{
	_cleanup_(counter_clear) struct counter counter = COUNTER_EMPTY;
	enum bpf_step step;
	int r = counter_attach(&counter, hooked->hook, hooked->target, &step);

	if (r < 0) {
		say_refused(probe, hooked->what, step, r);
		return false;
	}
	hooked->happen();
	if (counter_value(&counter) > 0)
		return true;
	probe_missing(probe, 0, "%s%sloaded and attached, but it did not run when it should have", hooked->what,
		      hooked->what[0] ? ": " : "");
	return false;
}

static bool try_hooks(struct probe *probe, const struct hooked *hooks)
{
	for (const struct hooked *hooked = hooks; hooked->happen; hooked++)
		if (!try_hook(probe, hooked))
			return false;
	return true;
}

static void probe_fentry(struct probe *probe)
{
	if (try_hooks(probe, fentry_hooks))
		probe_ok(probe, "fentry and fexit of handle_userfault ran when a fault was served");
}

static void probe_kprobe(struct probe *probe)
{
	if (try_hooks(probe, kprobe_hooks))
		probe_ok(probe, "kprobe and kretprobe of handle_userfault ran when a fault was served");
	else if (probe->result->error == -ENOENT)
		probe_missing(probe, -ENOENT, "this kernel has no kprobes (" KPROBE_PMU " is not there)");
}

static void probe_page_fault(struct probe *probe)
{
	if (try_hooks(probe, page_fault_hooks))
		probe_ok(probe, "ran when memory was touched");
}

static void probe_switch(struct probe *probe)
{
	if (try_hooks(probe, switch_hooks))
		probe_ok(probe, "ran when a thread slept");
}

static void probe_guest_fault(struct probe *probe)
{
	if (access("/dev/kvm", F_OK) < 0) {
		probe_missing(probe, -ENOENT, "no KVM here");
		probe_cost(probe, "nothing: without KVM there is nothing that it could see");
		probe_remedy(probe, "see KVM");
		return;
	}
	if (try_hooks(probe, guest_hooks))
		probe_ok(probe, "ran when a guest touched its memory");
	else if (probe->result->error == 0)
		probe_remedy(probe, "nothing in this process's power: this KVM emulates the guest's memory accesses, or "
				    "goes another way; KVM on real hardware does it");
}

static void probe_tracepoint(struct probe *probe)
{
	if (try_hooks(probe, tracepoint_hooks))
		probe_ok(probe, "exceptions:page_fault_user ran when memory was touched");
	else if (probe->result->error == -ENOENT) {
		probe_missing(probe, -ENOENT, "its number is not known: no tracefs is mounted at /sys/kernel/tracing");
		probe_remedy(probe, "mount -t tracefs tracefs /sys/kernel/tracing");
	}
}

static void probe_uprobe(struct probe *probe)
{
	if (try_hooks(probe, uprobe_hooks))
		probe_ok(probe, "ran when a function of this program was called");
}

static void probe_iterator(struct probe *probe)
{
	if (try_hooks(probe, iterator_hooks))
		probe_ok(probe, "went through this process's mappings");
}

/* ---- BTF ---- */

static void probe_kernel_btf(struct probe *probe)
{
	struct stat st;
	char size[32];

	if (access("/sys/kernel/btf/vmlinux", R_OK) < 0 || stat("/sys/kernel/btf/vmlinux", &st) < 0) {
		probe_missing(probe, -errno, "/sys/kernel/btf/vmlinux: %s", strerror(errno));
		return;
	}
	int id = libbpf_find_vmlinux_btf_id("handle_userfault", BPF_TRACE_FENTRY);
	format_bytes((uint64_t)st.st_size, size, sizeof size);
	if (id < 0)
		probe_degraded(probe, id, "%s of types, without handle_userfault", size);
	else
		probe_ok(probe, "%s of types, handle_userfault among them", size);
}

static void probe_kvm_btf(struct probe *probe)
{
	if (libbpf_find_vmlinux_btf_id("kvm_page_fault", BPF_TRACE_RAW_TP) > 0)
		probe_ok(probe, "KVM is part of the kernel, and its types are among the kernel's");
	else if (access("/sys/kernel/btf/kvm", R_OK) == 0)
		probe_ok(probe, "/sys/kernel/btf/kvm");
	else
		probe_missing(probe, -errno, "/sys/kernel/btf/kvm: %s", strerror(errno));
}

/* ---- maps ---- */

struct ring {
	int map, prog;
	struct ring_buffer *buffer;
};

static void ring_clear(struct ring *ring)
{
	ring_buffer__free(ring->buffer);
	cleanup_close(&ring->prog);
	cleanup_close(&ring->map);
}

#define RECORD 0x5a17

/* *(u64 *)(fp - 8) = RECORD; bpf_ringbuf_output(map, fp - 8, 8, 0); return 0. A socket filter, which may run without a hook. */
static int load_writer(struct ring *ring)
{
	const struct bpf_insn instructions[] = {
		insn_store(BPF_DW, BPF_REG_10, -8, RECORD),
		insn_load_map(BPF_REG_1, ring->map),
		{ 0 },
		insn_copy(BPF_REG_2, BPF_REG_10),
		insn_add(BPF_REG_2, -8),
		insn_set(BPF_REG_3, 8),
		insn_set(BPF_REG_4, 0),
		insn_call(BPF_FUNC_ringbuf_output),
		insn_set(BPF_REG_0, 0),
		insn_exit(),
	};

	ring->prog = bpf_prog_load(BPF_PROG_TYPE_SOCKET_FILTER, "fl_doctor", "Dual BSD/GPL", instructions,
				   sizeof instructions / sizeof *instructions, NULL);
	return ring->prog < 0 ? ring->prog : 0;
}

static int on_record(void *data, void *record, size_t size)
{
	uint64_t value = 0;

	if (size == sizeof value)
		memcpy(&value, record, sizeof value);
	*(uint64_t *)data = value;
	return 0;
}

/* A record written by a program, and read here. */
static int pass_record(struct ring *ring)
{
	char packet[64] = "";
	LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = packet, .data_size_in = sizeof packet);
	uint64_t seen = 0;

	ring->buffer = ring_buffer__new(ring->map, on_record, &seen, NULL);
	if (!ring->buffer)
		return -errno;
	int r = bpf_prog_test_run_opts(ring->prog, &options);
	if (r == 0)
		r = ring_buffer__consume(ring->buffer);
	if (r < 0)
		return r;
	return seen == RECORD ? 0 : -EILSEQ;
}

static void probe_ring(struct probe *probe)
{
	_cleanup_(ring_clear) struct ring ring = { .map = -1, .prog = -1 };

	ring.map = bpf_map_create(BPF_MAP_TYPE_RINGBUF, "fl_doctor", 0, 0, (uint32_t)sysconf(_SC_PAGESIZE), NULL);
	if (ring.map < 0) {
		say_refused(probe, "", BPF_STEP_MAP, ring.map);
		return;
	}
	int r = load_writer(&ring);
	if (r < 0) {
		say_refused(probe, "", BPF_STEP_LOAD, r);
		return;
	}
	r = pass_record(&ring);
	if (r < 0)
		probe_missing(probe, r, "a record did not come through: %s", strerror(-r));
	else
		probe_ok(probe, "a program wrote a record, and it was read");
}

/* ---- pinning ---- */

static void pin_path(const struct probe *probe, char *ret, size_t size)
{
	snprintf(ret, size, BPF_DIR "/faultline-doctor-%d", (int)probe->doctor);
}

static void remove_pin(const struct probe *probe)
{
	char path[80];

	pin_path(probe, path, sizeof path);
	unlink(path);
}

static void probe_pin(struct probe *probe)
{
	struct statfs fs;
	char path[80];

	if (statfs(BPF_DIR, &fs) < 0 || (unsigned long)fs.f_type != BPF_FS_MAGIC) {
		probe_missing(probe, -ENOENT, "no BPF filesystem is mounted at " BPF_DIR);
		return;
	}
	_cleanup_close_ int map = bpf_map_create(BPF_MAP_TYPE_ARRAY, "fl_doctor", 4, 8, 1, NULL);
	if (map < 0) {
		say_refused(probe, "", BPF_STEP_MAP, map);
		return;
	}
	pin_path(probe, path, sizeof path);
	int r = bpf_obj_pin(map, path);
	unlink(path);
	if (r < 0) {
		probe_missing(probe, r, "a map can't be pinned in " BPF_DIR ": %s", strerror(-r));
		probe_remedy(probe, r == -EROFS ? "mount -o remount,rw " BPF_DIR
						: "run as root, or give this user a directory in " BPF_DIR);
		return;
	}
	probe_ok(probe, "a map was pinned in " BPF_DIR ", and removed");
}

#define LOWER_TIER \
	"a lower tier is used, if one works: tp_btf sees no faults of KVM guests, and times the others less exactly"

const struct check bpf_checks[] = {
	{ .name = "btf_kernel",
	  .title = "types of the kernel",
	  .uses = DOCTOR_OBSERVATION,
	  .probe = probe_kernel_btf,
	  .cost = "of all tiers of observation only kprobe is left",
	  .remedy = "a kernel with CONFIG_DEBUG_INFO_BTF=y, and /sys mounted" },
	{ .name = "btf_kvm",
	  .title = "types of KVM",
	  .uses = DOCTOR_OBSERVATION,
	  .probe = probe_kvm_btf,
	  .cost = "touches of KVM guests on pages that are present can't be seen",
	  .remedy = "load the module kvm, of a kernel with CONFIG_DEBUG_INFO_BTF_MODULES=y" },
	{ .name = "bpf_ring_buffer",
	  .title = "programs, ring buffer",
	  .uses = DOCTOR_OBSERVATION,
	  .probe = probe_ring,
	  .cost = "nothing can be observed: events have no way out of the kernel",
	  .remedy = "run Linux 5.8 or newer with CONFIG_BPF_SYSCALL=y" },
	{ .name = "bpf_fentry",
	  .title = "fentry handle_userfault",
	  .uses = DOCTOR_OBSERVATION,
	  .probe = probe_fentry,
	  .cost = LOWER_TIER,
	  .remedy = "a kernel with CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS=y and CONFIG_DEBUG_INFO_BTF=y" },
	{ .name = "bpf_kprobe",
	  .title = "kprobe handle_userfault",
	  .uses = DOCTOR_OBSERVATION,
	  .probe = probe_kprobe,
	  .cost = LOWER_TIER,
	  .remedy = "a kernel with CONFIG_KPROBES=y and CONFIG_KPROBE_EVENTS=y" },
	{ .name = "bpf_page_fault_user",
	  .title = "tp_btf page_fault_user",
	  .uses = DOCTOR_OBSERVATION,
	  .probe = probe_page_fault,
	  .cost = "the lowest tier, tp_btf, doesn't work, and touches of shared pages that are present can't be seen",
	  .remedy = "a kernel with CONFIG_DEBUG_INFO_BTF=y whose architecture has this tracepoint" },
	{ .name = "bpf_sched_switch",
	  .title = "tp_btf sched_switch",
	  .uses = DOCTOR_OBSERVATION,
	  .probe = probe_switch,
	  .cost = "the lowest tier, tp_btf, doesn't work: it sees from this when a thread goes on",
	  .remedy = "a kernel with CONFIG_DEBUG_INFO_BTF=y" },
	{ .name = "bpf_kvm_page_fault",
	  .title = "tp_btf kvm_page_fault",
	  .uses = DOCTOR_OBSERVATION,
	  .probe = probe_guest_fault,
	  .cost = "touches of KVM guests on pages that are present can't be seen: no order and no use of prefetched pages",
	  .remedy = "load the module kvm, of a kernel with CONFIG_DEBUG_INFO_BTF_MODULES=y" },
	{ .name = "bpf_tracepoint",
	  .title = "classic tracepoint",
	  .uses = DOCTOR_OBSERVATION,
	  .probe = probe_tracepoint,
	  .cost = "nothing where tp_btf works",
	  .remedy = "a kernel with CONFIG_BPF_EVENTS=y" },
	{ .name = "bpf_uprobe",
	  .title = "uprobe",
	  .uses = DOCTOR_OBSERVATION,
	  .probe = probe_uprobe,
	  .cost = "marks in user-space programs can't be observed; faults can",
	  .remedy = "a kernel with CONFIG_UPROBE_EVENTS=y" },
	{ .name = "bpf_task_vma",
	  .title = "iterator task_vma",
	  .uses = DOCTOR_OBSERVATION,
	  .probe = probe_iterator,
	  .cost = "forks are told apart by their process and not by their userfaultfd, which loses faults that KVM takes in "
		  "kernel threads",
	  .remedy = "run Linux 5.12 or newer with CONFIG_DEBUG_INFO_BTF=y" },
	{ .name = "bpf_pin",
	  .title = "pinning",
	  .uses = DOCTOR_OBSERVATION,
	  .probe = probe_pin,
	  .clean_up = remove_pin,
	  .cost = "figures can't be read with bpftool beside the server",
	  .remedy = "mount -t bpf bpf " BPF_DIR },
	{ 0 },
};
