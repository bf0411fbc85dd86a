/*
 * A TCG plugin for QEMU that records the first touch of each page of a guest's memory: when, by which vCPU, after how many instructions,
 * and whether it was read, written or executed. docs/traces.md says how to use it.
 *
 *	-plugin libfaultline-trace.so,image=FILE[,out=FILE][,control=SOCKET]
 *
 * image: the file of the guest's memory (mem-path of its memory-backend-file). out: records from the first instruction on, and writes
 * the trace when QEMU ends. control: connects there and does what it is told, line by line: "start" forgets all touches and begins
 * (while the VM stands still), "stop FILE" writes the trace; each is answered by "ok N", N being touches, or "error WHY".
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "qemu_plugin.h"

#define PAGE_SHIFT  12
#define VCPUS_MAX   64
#define NSEC_PER_S  1000000000ull
#define PATH_LENGTH 4096

/* What a block of code is, packed into the pointer that QEMU hands back at its execution: no memory to free when blocks go. */
#define PAGE_BITS 27 /* 512 GiB of guest memory */
#define NO_PAGE	  ((1ull << PAGE_BITS) - 1)

struct touch {
	uint64_t ns, instructions;
	uint32_t page;
	uint16_t vcpu;
	char kind;
};

/* Each is its own vCPU thread's; they are read while the VM stands still. */
struct vcpu {
	_Alignas(64) uint64_t instructions;
};

static struct {
	char image[PATH_LENGTH], out[PATH_LENGTH];
	uint64_t pages;
	dev_t device;
	ino_t inode;
	_Atomic uintptr_t base; /* where the image is mapped; 0: not yet */

	_Atomic bool recording;
	uint64_t start_ns;
	_Atomic uint64_t *touched; /* a bit a page */
	struct touch *touches;	   /* room for one a page */
	_Atomic size_t count;
	struct vcpu vcpus[VCPUS_MAX];
	int control; /* -1: none */
} recorder = { .control = -1 };

int qemu_plugin_version = 1;

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NSEC_PER_S + (uint64_t)ts.tv_nsec;
}

/* ---- recording ---- */

static void record(unsigned vcpu, uint64_t page, char kind)
{
	uint64_t bit = 1ull << page % 64;
	_Atomic uint64_t *word = &recorder.touched[page / 64];

	if (atomic_load_explicit(word, memory_order_relaxed) & bit ||
	    atomic_fetch_or_explicit(word, bit, memory_order_relaxed) & bit)
		return;
	recorder.touches[atomic_fetch_add(&recorder.count, 1)] = (struct touch){
		.ns = now_ns() - recorder.start_ns,
		.instructions = recorder.vcpus[vcpu].instructions,
		.page = (uint32_t)page,
		.vcpu = (uint16_t)vcpu,
		.kind = kind,
	};
}

static void on_execution(unsigned vcpu, void *user)
{
	uint64_t block = (uintptr_t)user, first = block & NO_PAGE, second = block >> PAGE_BITS & NO_PAGE;

	if (!atomic_load_explicit(&recorder.recording, memory_order_relaxed) || vcpu >= VCPUS_MAX)
		return;
	recorder.vcpus[vcpu].instructions += block >> 2 * PAGE_BITS;
	if (first != NO_PAGE)
		record(vcpu, first, 'x');
	if (second != NO_PAGE)
		record(vcpu, second, 'x');
}

static void on_access(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t address, void *user)
{
	struct qemu_plugin_hwaddr *where;

	(void)user;
	if (!atomic_load_explicit(&recorder.recording, memory_order_relaxed) || vcpu >= VCPUS_MAX)
		return;
	where = qemu_plugin_get_hwaddr(info, address);
	if (!where || qemu_plugin_hwaddr_is_io(where))
		return;
	/* The machine's memory is QEMU's first block of it, and begins with the image; ROMs come behind. */
	uint64_t page = qemu_plugin_hwaddr_phys_addr(where) >> PAGE_SHIFT;
	if (page < recorder.pages)
		record(vcpu, page, qemu_plugin_mem_is_store(info) ? 'w' : 'r');
}

/* Where QEMU has mapped the image: the mapping of its beginning. */
static uintptr_t find_image(void)
{
	uintptr_t base = atomic_load_explicit(&recorder.base, memory_order_relaxed);
	char line[PATH_LENGTH + 128];

	if (base)
		return base;
	FILE *f = fopen("/proc/self/maps", "re");
	while (f && !base && fgets(line, sizeof line, f)) {
		uintptr_t start;
		uint64_t offset, inode;
		unsigned major, minor;

		if (sscanf(line, "%" SCNxPTR "-%*x %*s %" SCNx64 " %x:%x %" SCNu64, &start, &offset, &major, &minor,
			   &inode) == 5 &&
		    !offset && inode == recorder.inode && makedev(major, minor) == recorder.device)
			base = start;
	}
	if (f)
		fclose(f);
	atomic_store_explicit(&recorder.base, base, memory_order_relaxed);
	return base;
}

static uint64_t page_of(uintptr_t base, const struct qemu_plugin_insn *insn)
{
	uintptr_t address = (uintptr_t)qemu_plugin_insn_haddr(insn);
	uint64_t page = (address - base) >> PAGE_SHIFT;

	return address >= base && page < recorder.pages ? page : NO_PAGE;
}

/* QEMU has translated a block: each execution of it is to be told, and each access of its instructions. */
static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	uintptr_t base = find_image();
	size_t count = qemu_plugin_tb_n_insns(tb);
	uint64_t first = NO_PAGE, second = NO_PAGE;

	(void)id;
	for (size_t i = 0; i < count; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		uint64_t page = base ? page_of(base, insn) : NO_PAGE;

		if (i == 0)
			first = page;
		else if (page != first)
			second = page;
		qemu_plugin_register_vcpu_mem_cb(insn, on_access, QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_MEM_RW, NULL);
	}
	qemu_plugin_register_vcpu_tb_exec_cb(tb, on_execution, QEMU_PLUGIN_CB_NO_REGS,
					     (void *)(uintptr_t)((uint64_t)count << 2 * PAGE_BITS |
								 second << PAGE_BITS | first));
}

/* ---- starting, writing ---- */

/* The VM stands still, or has not begun. */
static void start(void)
{
	memset((void *)recorder.touched, 0, (recorder.pages / 64 + 1) * sizeof *recorder.touched);
	memset(recorder.vcpus, 0, sizeof recorder.vcpus);
	atomic_store(&recorder.count, 0);
	recorder.start_ns = now_ns();
	atomic_store(&recorder.recording, true);
}

static int compare(const void *a, const void *b)
{
	const struct touch *x = a, *y = b;

	if (x->ns != y->ns)
		return x->ns < y->ns ? -1 : 1;
	return x->instructions < y->instructions ? -1 : x->instructions > y->instructions;
}

/* 0 or a negative errno. The VM stands still. */
static int write_trace(const char *path)
{
	size_t count = atomic_load(&recorder.count);
	FILE *f = fopen(path, "we");

	atomic_store(&recorder.recording, false);
	if (!f)
		return -errno;
	qsort(recorder.touches, count, sizeof *recorder.touches, compare);
	fputs("ns,instructions,page,vcpu,kind\n", f);
	for (size_t i = 0; i < count; i++) {
		const struct touch *t = &recorder.touches[i];

		fprintf(f, "%" PRIu64 ",%" PRIu64 ",%" PRIu32 ",%u,%c\n", t->ns, t->instructions, t->page, t->vcpu,
			t->kind);
	}
	int error = ferror(f) ? EIO : 0;
	if (fclose(f) && !error)
		error = errno;
	return -error;
}

static void on_exit_of_qemu(qemu_plugin_id_t id, void *user)
{
	(void)id;
	(void)user;
	int r = write_trace(recorder.out);
	if (r < 0)
		fprintf(stderr, "faultline-trace: cannot write %s: %s\n", recorder.out, strerror(-r));
}

/* ---- being told ---- */

static void answer(const char *line, char *reply, size_t size)
{
	int r = 0;

	if (!strcmp(line, "start"))
		start();
	else if (!strncmp(line, "stop ", 5))
		r = write_trace(line + 5);
	else
		r = -EINVAL;
	if (r >= 0 && !find_image())
		snprintf(reply, size, "error QEMU has not mapped %s\n", recorder.image);
	else if (r < 0)
		snprintf(reply, size, "error %s: %s\n", line, strerror(-r));
	else
		snprintf(reply, size, "ok %zu\n", atomic_load(&recorder.count));
}

static void *listen_to_control(void *user)
{
	char line[PATH_LENGTH + 16], reply[2 * PATH_LENGTH];
	FILE *f = fdopen(recorder.control, "r");

	(void)user;
	while (f && fgets(line, sizeof line, f)) {
		line[strcspn(line, "\n")] = '\0';
		answer(line, reply, sizeof reply);
		if (send(recorder.control, reply, strlen(reply), MSG_NOSIGNAL) < 0)
			break;
	}
	return NULL;
}

static int start_control(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	sigset_t all, before;
	pthread_t thread;

	if (strlen(path) >= sizeof address.sun_path)
		return -ENAMETOOLONG;
	memcpy(address.sun_path, path, strlen(path));
	recorder.control = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (recorder.control < 0 || connect(recorder.control, (struct sockaddr *)&address, sizeof address) < 0)
		return -errno;
	/* QEMU's signals are for QEMU's own threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	int r = -pthread_create(&thread, NULL, listen_to_control, NULL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return r;
}

static int open_image(const char *path)
{
	struct stat st;

	if (stat(path, &st) < 0)
		return -errno;
	recorder.device = st.st_dev;
	recorder.inode = st.st_ino;
	recorder.pages = (uint64_t)st.st_size >> PAGE_SHIFT;
	if (!recorder.pages || recorder.pages >= NO_PAGE)
		return -EINVAL;
	recorder.touched = calloc(recorder.pages / 64 + 1, sizeof *recorder.touched);
	recorder.touches = calloc(recorder.pages, sizeof *recorder.touches);
	return recorder.touched && recorder.touches ? 0 : -ENOMEM;
}

static int refuse(const char *what, const char *why)
{
	fprintf(stderr, "faultline-trace: %s: %s\n", what, why);
	return -1;
}

int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
	const char *control = NULL;
	int r;

	if (!info->system_emulation)
		return refuse(info->target_name, "only whole machines have memory images");
	for (int i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "image=", 6))
			snprintf(recorder.image, sizeof recorder.image, "%s", argv[i] + 6);
		else if (!strncmp(argv[i], "out=", 4))
			snprintf(recorder.out, sizeof recorder.out, "%s", argv[i] + 4);
		else if (!strncmp(argv[i], "control=", 8))
			control = argv[i] + 8;
		else
			return refuse(argv[i],
				      "there is no such option; there are image=FILE, out=FILE, control=SOCKET");
	}
	if (!recorder.image[0] || (!recorder.out[0] && !control))
		return refuse("options", "image=FILE is needed, and out=FILE or control=SOCKET");
	r = open_image(recorder.image);
	if (r < 0)
		return refuse(recorder.image, strerror(-r));
	r = control ? start_control(control) : 0;
	if (r < 0)
		return refuse(control, strerror(-r));
	if (recorder.out[0]) {
		qemu_plugin_register_atexit_cb(id, on_exit_of_qemu, NULL);
		start();
	}
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
	return 0;
}
