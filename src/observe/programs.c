/* Loading, attaching, and the maps. */
#include "observe/programs.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/types.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "observe/privileges.h"
#include <observe_bpf.skel.h>

/* The layouts of the BPF side's structs (bpf/maps.bpf.h). */
struct range_key {
	uint32_t prefix, zero;
	uint64_t mm, address;
};

struct range {
	uint32_t slot, prefix;
};

__attribute__((format(printf, 2, 0))) static int say(enum libbpf_print_level level, const char *format, va_list ap)
{
	char text[400];

	(void)level;
	vsnprintf(text, sizeof text, format, ap);
	text[strcspn(text, "\n")] = 0;
	log_debug("BPF", "%s", text);
	return 0;
}

static bool wanted(const struct programs_config *config, const char *name)
{
	for (size_t i = 0; config->names[i]; i++)
		if (!strcmp(config->names[i], name))
			return true;
	return false;
}

/* Of the program, or of the object as a whole where NAME is NULL. */
static int refused(struct error *err, int error, const char *step, const char *name)
{
	const char *why = strerror(-error);
	char lacking[PRIVILEGES_TEXT_SIZE];

	privileges_lacking(lacking, sizeof lacking);
	if (lacking[0])
		why = lacking;
	else if (error == -EPERM || error == -EACCES)
		why = "the kernel refuses it (EPERM)";
	else if (error == -ENOENT || error == -ESRCH)
		why = "this kernel doesn't have what it attaches to, or a symbol that it reads";
	else if (error == -EINVAL || error == -EOPNOTSUPP)
		why = "this kernel doesn't support it";
	return error_set(err, error, "no_tier", "%s%s can't be %s: %s", name ? "the BPF program " : "BPF maps",
			 name ?: "", step, why);
}

static bool is_iterator(const struct bpf_program *program)
{
	return bpf_program__expected_attach_type(program) == BPF_TRACE_ITER;
}

/* Over this process, to begin with. */
static struct bpf_link *attach_iterator(const struct bpf_program *program)
{
	union bpf_iter_link_info info = { .task = { .pid = (uint32_t)getpid() } };
	LIBBPF_OPTS(bpf_iter_attach_opts, options, .link_info = &info, .link_info_len = sizeof info);

	return bpf_program__attach_iter(program, &options);
}

static int attach(struct programs *programs, const struct bpf_program *program, struct error *err)
{
	struct bpf_link *link = is_iterator(program) ? attach_iterator(program) : bpf_program__attach(program);

	if (!link)
		return refused(err, -errno, "attached", bpf_program__name(program));
	if (program == programs->skeleton->progs.find_context)
		programs->iterator = link;
	else if (is_iterator(program))
		bpf_link__destroy(link); /* it works: each process gets one of its own */
	else
		programs->links[programs->link_count++] = link;
	return 0;
}

static int load(struct programs *programs, const struct programs_config *config, struct error *err)
{
	struct observe_bpf *skeleton = programs->skeleton = observe_bpf__open();
	struct bpf_program *program;

	if (!skeleton)
		return refused(err, -errno, "opened", NULL);
	const char *last = NULL;
	bpf_object__for_each_program(program, skeleton->obj)
	{
		bool yes = wanted(config, bpf_program__name(program));
		bpf_program__set_autoload(program, yes);
		if (yes)
			last = bpf_program__name(program);
	}
	skeleton->rodata->waits_by_switch = config->waits_by_switch;
	skeleton->bss->wake_at_bytes = (uint32_t)(config->ring_bytes / 4);
	int r = bpf_map__set_max_entries(skeleton->maps.events, (uint32_t)config->ring_bytes);
	if (r == 0)
		r = observe_bpf__load(skeleton);
	if (r < 0)
		return refused(err, r, "loaded", config->names[0] && !config->names[1] ? last : NULL);
	bpf_object__for_each_program(program, skeleton->obj)
	{
		if (!bpf_program__autoload(program))
			continue;
		r = attach(programs, program, err);
		if (r < 0)
			return r;
	}
	return 0;
}

int programs_load(const struct programs_config *config, struct programs **ret, struct error *err)
{
	struct programs *programs = calloc(1, sizeof *programs);

	if (!programs)
		return error_set(err, -ENOMEM, "no_memory", "out of memory");
	libbpf_set_print(say);
	int r = load(programs, config, err);
	if (r < 0) {
		programs_free(programs);
		return r;
	}
	*ret = programs;
	return 0;
}

void programs_free(struct programs *programs)
{
	if (!programs)
		return;
	for (size_t i = 0; i < programs->link_count; i++)
		bpf_link__destroy(programs->links[i]);
	bpf_link__destroy(programs->iterator);
	observe_bpf__destroy(programs->skeleton);
	free(programs);
}

/* Runs the iterator behind LINK; what it finds is in bss. */
static int iterate(struct bpf_link *link)
{
	char nothing[8];
	_cleanup_close_ int fd = bpf_iter_create(bpf_link__fd(link));

	if (fd < 0)
		return -errno;
	ssize_t n;
	while ((n = read(fd, nothing, sizeof nothing)) > 0 || (n < 0 && (errno == EINTR || errno == EAGAIN)))
		;
	return n < 0 ? -errno : 0;
}

int programs_find_context(struct programs *programs, int fd, uint64_t *ret_context, uint64_t *ret_mm)
{
	struct observe_bpf__bss *bss = programs->skeleton->bss;

	bss->asked_fd = (uint32_t)fd;
	bss->found_context = bss->found_mm = 0;
	int r = iterate(programs->iterator);
	if (r < 0)
		return r;
	if (!bss->found_context || !bss->found_mm)
		return -ENOENT;
	*ret_context = bss->found_context;
	*ret_mm = bss->found_mm;
	return 0;
}

/* Runs PROGRAM over the process PID. */
static int iterate_process(struct bpf_program *program, pid_t pid)
{
	union bpf_iter_link_info info = { .task = { .pid = (uint32_t)pid } };
	LIBBPF_OPTS(bpf_iter_attach_opts, options, .link_info = &info, .link_info_len = sizeof info);
	struct bpf_link *link = bpf_program__attach_iter(program, &options);

	if (!link)
		return -errno;
	int r = iterate(link);
	bpf_link__destroy(link);
	return r;
}

int programs_find_mm(struct programs *programs, pid_t pid, uint64_t *ret_mm)
{
	struct observe_bpf__bss *bss = programs->skeleton->bss;

	bss->asked_fd = UINT32_MAX;
	bss->found_mm = 0;
	int r = iterate_process(programs->skeleton->progs.find_context, pid);
	if (r < 0)
		return r;
	if (!bss->found_mm)
		return -ESRCH;
	*ret_mm = bss->found_mm;
	return 0;
}

int programs_tell_pending(struct programs *programs, pid_t pid, uint32_t slot)
{
	programs->skeleton->bss->asked_slot = slot;
	return iterate_process(programs->skeleton->progs.tell_pending_of, pid);
}

static int map_fd(const struct bpf_map *map)
{
	return bpf_map__fd(map);
}

int programs_add_fork(struct programs *programs, uint32_t slot, const struct fork_stats *stats)
{
	struct fork_key key = { slot };

	if (bpf_map_update_elem(map_fd(programs->skeleton->maps.forks), &key, stats, BPF_NOEXIST) < 0)
		return -errno;
	__atomic_add_fetch(&programs->skeleton->bss->fork_count, 1, __ATOMIC_SEQ_CST);
	return 0;
}

int programs_fork_stats(struct programs *programs, uint32_t slot, struct fork_stats *ret)
{
	struct fork_key key = { slot };

	return bpf_map_lookup_elem(map_fd(programs->skeleton->maps.forks), &key, ret) < 0 ? -errno : 0;
}

void programs_remove_fork(struct programs *programs, uint32_t slot)
{
	struct fork_key key = { slot };

	if (bpf_map_delete_elem(map_fd(programs->skeleton->maps.forks), &key) == 0)
		__atomic_sub_fetch(&programs->skeleton->bss->fork_count, 1, __ATOMIC_SEQ_CST);
}

int programs_add_context(struct programs *programs, uint64_t context, uint32_t slot)
{
	return bpf_map_update_elem(map_fd(programs->skeleton->maps.contexts), &context, &slot, BPF_ANY) < 0 ? -errno : 0;
}

void programs_remove_context(struct programs *programs, uint64_t context)
{
	bpf_map_delete_elem(map_fd(programs->skeleton->maps.contexts), &context);
}

/* The largest aligned power of two that begins at START and ends at END or before: bits that all its addresses share are its prefix. */
static unsigned block_bits(uint64_t start, uint64_t end)
{
	unsigned bits = start ? (unsigned)__builtin_ctzll(start) : 63;

	while (bits && (1ull << bits) > end - start)
		bits--;
	return bits;
}

/* Does CHANGE for each prefix of the range. */
static int each_prefix(uint64_t mm, uint64_t start, uint64_t end,
		       int (*change)(int, const struct range_key *, uint32_t), int fd, uint32_t slot)
{
	while (start < end) {
		unsigned bits = block_bits(start, end);
		struct range_key key = { .prefix = 160 - bits,
					 .mm = __builtin_bswap64(mm),
					 .address = __builtin_bswap64(start) };

		int r = change(fd, &key, slot);
		if (r < 0)
			return r;
		start += 1ull << bits;
	}
	return 0;
}

static int set_prefix(int fd, const struct range_key *key, uint32_t slot)
{
	const struct range range = { .slot = slot, .prefix = key->prefix };

	return bpf_map_update_elem(fd, key, &range, BPF_ANY) < 0 ? -errno : 0;
}

static int drop_prefix(int fd, const struct range_key *key, uint32_t slot)
{
	(void)slot;
	bpf_map_delete_elem(fd, key);
	return 0;
}

/* From now on no thread goes by the range that it touched last. */
static void forget_near_ranges(struct programs *programs)
{
	uint32_t *version = &programs->skeleton->bss->ranges_version;

	if (__atomic_add_fetch(version, 1, __ATOMIC_SEQ_CST) == 0)
		__atomic_add_fetch(version, 1, __ATOMIC_SEQ_CST);
}

int programs_add_range(struct programs *programs, uint64_t mm, uint64_t start, uint64_t end, uint32_t slot)
{
	int r = each_prefix(mm, start, end, set_prefix, map_fd(programs->skeleton->maps.ranges), slot);

	forget_near_ranges(programs);
	return r;
}

void programs_remove_range(struct programs *programs, uint64_t mm, uint64_t start, uint64_t end)
{
	each_prefix(mm, start, end, drop_prefix, map_fd(programs->skeleton->maps.ranges), 0);
	forget_near_ranges(programs);
}

/* Only where a touch begins is an event lost for good: of its end, and of sleeps, the next switch of the thread tells enough. */
static bool begins_events(const struct bpf_program *program)
{
	const char *name = bpf_program__name(program);

	return !strncmp(name, "touch_", 6) || !strncmp(name, "enter_", 6);
}

uint64_t programs_missed(struct programs *programs)
{
	struct bpf_program *program;
	uint64_t missed = 0;

	bpf_object__for_each_program(program, programs->skeleton->obj)
	{
		struct bpf_prog_info info = { 0 };
		uint32_t length = sizeof info;

		if (begins_events(program) && bpf_program__fd(program) >= 0 &&
		    bpf_obj_get_info_by_fd(bpf_program__fd(program), &info, &length) == 0)
			missed += info.recursion_misses;
	}
	return missed;
}
