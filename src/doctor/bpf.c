#include "doctor/bpf.h"

#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <inttypes.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "doctor/insn.h"
#include "doctor/machine.h"

#define PMU_DIR "/sys/bus/event_source/devices/"

void counter_clear(struct counter *counter)
{
	cleanup_close(&counter->link);
	cleanup_close(&counter->prog);
	cleanup_close(&counter->map);
}

uint64_t counter_value(const struct counter *counter)
{
	uint32_t key = 0;
	uint64_t value = 0;

	bpf_map_lookup_elem(counter->map, &key, &value);
	return value;
}

/* ---- loading ---- */

struct program {
	enum bpf_prog_type type;
	enum bpf_attach_type attach_type;
	uint32_t btf_id;
	int btf_fd; /* of the module that the id is in; 0: the kernel itself */
};

/* value = map[0]; if (value) atomically *value += 1; return 0 */
static int load_counter(struct counter *counter, const struct program *program)
{
	const struct bpf_insn instructions[] = {
		insn_store(BPF_W, BPF_REG_10, -4, 0),
		insn_copy(BPF_REG_2, BPF_REG_10),
		insn_add(BPF_REG_2, -4),
		insn_load_map(BPF_REG_1, counter->map),
		{ 0 },
		insn_call(BPF_FUNC_map_lookup_elem),
		insn_skip_if_zero(BPF_REG_0, 2),
		insn_set(BPF_REG_1, 1),
		insn_atomic_add(BPF_REG_0, BPF_REG_1),
		insn_set(BPF_REG_0, 0),
		insn_exit(),
	};
	LIBBPF_OPTS(bpf_prog_load_opts, options, .expected_attach_type = program->attach_type,
		    .attach_btf_id = program->btf_id, .attach_btf_obj_fd = (uint32_t)program->btf_fd);

	int fd = bpf_prog_load(program->type, "fl_doctor", "Dual BSD/GPL", instructions,
			       sizeof instructions / sizeof *instructions, &options);
	if (fd < 0)
		return fd;
	counter->prog = fd;
	return 0;
}

static int make_map(struct counter *counter)
{
	int fd = bpf_map_create(BPF_MAP_TYPE_ARRAY, "fl_doctor", sizeof(uint32_t), sizeof(uint64_t), 1, NULL);

	if (fd < 0)
		return fd;
	counter->map = fd;
	return 0;
}

/* ---- by BTF: fentry, fexit, tp_btf, iterators ---- */

/* The fd of a module's BTF, which programs on it name. Negative errno: there is none. */
static int open_module_btf(const char *module)
{
	uint32_t id = 0;

	while (bpf_btf_get_next_id(id, &id) == 0) {
		char name[64] = "";
		struct bpf_btf_info info = { .name = (uintptr_t)name, .name_len = sizeof name };
		uint32_t length = sizeof info;
		_cleanup_close_ int fd = bpf_btf_get_fd_by_id(id);

		if (fd >= 0 && bpf_obj_get_info_by_fd(fd, &info, &length) == 0 && !strcmp(name, module))
			return TAKE_FD(fd);
	}
	return -ENOENT;
}

/* KVM's tracepoints stand in its module's BTF where it is one. */
static int find_in_module(const char *module, const char *type_name, uint32_t kind, struct program *ret)
{
	struct btf *kernel = btf__load_vmlinux_btf();
	if (!kernel)
		return -errno;
	struct btf *btf = btf__load_module_btf(module, kernel);
	int id = btf ? btf__find_by_name_kind(btf, type_name, kind) : -errno;
	btf__free(btf);
	btf__free(kernel);
	if (id < 0)
		return id;
	int fd = open_module_btf(module);
	if (fd < 0)
		return fd;
	ret->btf_id = (uint32_t)id;
	ret->btf_fd = fd;
	return 0;
}

static int find_by_btf(struct program *program, const char *target)
{
	int id = libbpf_find_vmlinux_btf_id(target, program->attach_type);
	char type_name[80];

	if (id > 0) {
		program->btf_id = (uint32_t)id;
		return 0;
	}
	if (strncmp(target, "kvm_", 4) != 0 || program->attach_type != BPF_TRACE_RAW_TP)
		return id ?: -ENOENT;
	snprintf(type_name, sizeof type_name, "btf_trace_%s", target);
	return find_in_module("kvm", type_name, BTF_KIND_TYPEDEF, program);
}

/* One process's mappings where the kernel can choose (Linux 6.1), else everybody's. */
static int attach_iterator(struct counter *counter)
{
	union bpf_iter_link_info info = { .task = { .pid = (uint32_t)getpid() } };
	LIBBPF_OPTS(bpf_link_create_opts, options, .iter_info = &info, .iter_info_len = sizeof info);
	char byte;

	_cleanup_close_ int link = bpf_link_create(counter->prog, 0, BPF_TRACE_ITER, &options);
	if (link == -EINVAL || link == -E2BIG)
		link = bpf_link_create(counter->prog, 0, BPF_TRACE_ITER, NULL);
	if (link < 0)
		return link;
	_cleanup_close_ int iterator = bpf_iter_create(link);
	if (iterator < 0)
		return iterator;
	if (read(iterator, &byte, 1) < 0)
		return -errno;
	counter->link = TAKE_FD(link);
	return 0;
}

static int attach_by_btf(struct counter *counter, enum bpf_attach_type type)
{
	if (type == BPF_TRACE_ITER)
		return attach_iterator(counter);
	int fd = bpf_raw_tracepoint_open(NULL, counter->prog);
	if (fd < 0)
		return fd;
	counter->link = fd;
	return 0;
}

/* ---- by perf event: kprobe, tracepoint, uprobe ---- */

static int open_event(struct perf_event_attr *attr, pid_t pid)
{
	attr->size = sizeof *attr;
	attr->sample_period = 1;
	attr->wakeup_events = 1;
	int fd = (int)syscall(SYS_perf_event_open, attr, pid, pid < 0 ? 0 : -1, -1, PERF_FLAG_FD_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static int read_pmu(const char *name, uint32_t *ret)
{
	char path[128];
	long long type;

	snprintf(path, sizeof path, PMU_DIR "%s/type", name);
	int r = read_number(path, &type);
	if (r == 0)
		*ret = (uint32_t)type;
	return r;
}

static int open_kprobe(const char *function, bool on_return)
{
	struct perf_event_attr attr = { .kprobe_func = (uintptr_t)function, .config = on_return };
	int r = read_pmu("kprobe", &attr.type);

	return r < 0 ? r : open_event(&attr, -1);
}

static int open_tracepoint(const char *name)
{
	static const char *const roots[] = { "/sys/kernel/tracing", "/sys/kernel/debug/tracing" };
	struct perf_event_attr attr = { .type = PERF_TYPE_TRACEPOINT };
	int r = -ENOENT;

	for (size_t i = 0; r < 0 && i < 2; i++) {
		char path[160];
		long long id;

		snprintf(path, sizeof path, "%s/events/%s/id", roots[i], name);
		int read = read_number(path, &id);
		if (read == 0)
			attr.config = (uint64_t)id;
		/* A directory that isn't mounted says less than one that may not be read. */
		if (read != -ENOENT)
			r = read;
	}
	return r < 0 ? r : open_event(&attr, -1);
}

/* Where in its file a function of this program stands. */
static int find_file_offset(uintptr_t address, uint64_t *ret)
{
	_cleanup_fclose_ FILE *maps = fopen("/proc/self/maps", "re");
	char line[512];
	uintptr_t start, end;
	uint64_t offset;

	while (maps && fgets(line, sizeof line, maps))
		if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %*s %" SCNx64, &start, &end, &offset) == 3 &&
		    start <= address && address < end) {
			*ret = address - start + offset;
			return 0;
		}
	return -ENOENT;
}

__attribute__((noinline)) void uprobe_target(void)
{
	__asm__ volatile("");
}

static int open_uprobe(void)
{
	struct perf_event_attr attr = { .uprobe_path = (uintptr_t) "/proc/self/exe" };
	uint64_t offset = 0;
	int r = read_pmu("uprobe", &attr.type);

	if (r == 0)
		r = find_file_offset((uintptr_t)uprobe_target, &offset);
	attr.probe_offset = offset;
	return r < 0 ? r : open_event(&attr, 0);
}

static int attach_event(struct counter *counter, enum hook hook, const char *target)
{
	int fd = hook == HOOK_TRACEPOINT ? open_tracepoint(target)
		 : hook == HOOK_UPROBE	 ? open_uprobe()
					 : open_kprobe(target, hook == HOOK_KRETPROBE);

	if (fd < 0)
		return fd;
	counter->link = fd;
	if (ioctl(fd, PERF_EVENT_IOC_SET_BPF, counter->prog) < 0 || ioctl(fd, PERF_EVENT_IOC_ENABLE, 0) < 0)
		return -errno;
	return 0;
}

/* ---- both ---- */

static struct program describe(enum hook hook)
{
	switch (hook) {
	case HOOK_FENTRY:
		return (struct program){ .type = BPF_PROG_TYPE_TRACING, .attach_type = BPF_TRACE_FENTRY };
	case HOOK_FEXIT:
		return (struct program){ .type = BPF_PROG_TYPE_TRACING, .attach_type = BPF_TRACE_FEXIT };
	case HOOK_TP_BTF:
		return (struct program){ .type = BPF_PROG_TYPE_TRACING, .attach_type = BPF_TRACE_RAW_TP };
	case HOOK_ITERATOR:
		return (struct program){ .type = BPF_PROG_TYPE_TRACING, .attach_type = BPF_TRACE_ITER };
	case HOOK_TRACEPOINT:
		return (struct program){ .type = BPF_PROG_TYPE_TRACEPOINT };
	case HOOK_KPROBE:
	case HOOK_KRETPROBE:
	case HOOK_UPROBE:
		break;
	}
	return (struct program){ .type = BPF_PROG_TYPE_KPROBE };
}

int counter_attach(struct counter *counter, enum hook hook, const char *target, enum bpf_step *ret_step)
{
	struct program program = describe(hook);
	bool by_btf = program.type == BPF_PROG_TYPE_TRACING;

	*ret_step = BPF_STEP_FIND;
	int r = by_btf ? find_by_btf(&program, target) : 0;
	if (r < 0)
		return r;
	*ret_step = BPF_STEP_MAP;
	r = make_map(counter);
	if (r == 0) {
		*ret_step = BPF_STEP_LOAD;
		r = load_counter(counter, &program);
	}
	if (program.btf_fd > 0)
		close(program.btf_fd);
	if (r < 0)
		return r;
	*ret_step = BPF_STEP_ATTACH;
	return by_btf ? attach_by_btf(counter, program.attach_type) : attach_event(counter, hook, target);
}
