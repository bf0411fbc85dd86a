/*
 * A virtual machine whose guest does exactly what a script says, for tests and measurements of what is seen of it: touches pages in an order,
 * from several vCPUs that wait for each other or don't. It knows the truth: which pages were touched, when, by whom, and which of them were there
 * before. Memory comes from a page server through libfaultline, or from the image itself; every page touched is compared with the image.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "faultline/client.h"
#include "machine.h"
#include "script.h"

#define SLOTS_MAX 2

enum { EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_SERVER_GONE = 3, EXIT_WRONG = 4 };

struct options {
	const char *image, *socket, *script;
	bool server, irqchip, wait_prefetched, quiet;
	uint64_t split; /* pages in the first slot; 0: all */
	int cpus[VCPUS_MAX];
};

struct slot {
	uint64_t guest_address, offset, size;
	unsigned char *memory;
};

/* A point in time, by both clocks. */
struct moment {
	uint64_t ns, tsc;
};

struct vmm {
	struct options options;
	struct script script;
	struct faultline_client *client;
	int image;
	uint64_t pages; /* of the image */
	struct slot slots[SLOTS_MAX];
	unsigned slot_count;
	struct machine machine;
	struct guest_control control;
	unsigned char *present; /* for each page: it was there before the guest ran */
	unsigned char *writers; /* for each page: a bit for each vCPU that wrote to it */
	unsigned char *touched;
	struct moment start, end;
	uint64_t connected_ns;
	int done; /* eventfd */
};

static void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
static void fail(const char *format, ...)
{
	va_list args;

	fputs("faultline-tiny-vmm: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	fflush(NULL);
	_exit(EXIT_FAILED); /* whatever the threads are doing */
}

/* ---- memory ---- */

static const struct slot *slot_of(const struct vmm *vmm, uint64_t page)
{
	return page * PAGE_SIZE < vmm->slots[0].size ? &vmm->slots[0] : &vmm->slots[1];
}

static uint64_t guest_address_of(const void *data, uint64_t page)
{
	const struct slot *slot = slot_of(data, page);

	return slot->guest_address + page * PAGE_SIZE - slot->offset;
}

static const unsigned char *memory_of(const struct vmm *vmm, uint64_t page)
{
	const struct slot *slot = slot_of(vmm, page);

	return slot->memory + (page * PAGE_SIZE - slot->offset);
}

static void open_image(struct vmm *vmm)
{
	struct stat st;

	vmm->image = open(vmm->options.image, O_RDONLY | O_CLOEXEC);
	if (vmm->image < 0 || fstat(vmm->image, &st) < 0)
		fail("%s: %s", vmm->options.image, strerror(errno));
	vmm->pages = (uint64_t)st.st_size / PAGE_SIZE;
	if (st.st_size == 0 || (uint64_t)st.st_size % PAGE_SIZE)
		fail("%s: its size, %jd bytes, is no multiple of %" PRIu64, vmm->options.image, (intmax_t)st.st_size,
		     PAGE_SIZE);
	if (vmm->script.page_end > vmm->pages)
		fail("the script touches page %" PRIu64 ", and %s has only %" PRIu64, vmm->script.page_end - 1,
		     vmm->options.image, vmm->pages);
	if (vmm->options.split >= vmm->pages)
		fail("--split %" PRIu64 " leaves nothing of %" PRIu64 " pages for the second slot", vmm->options.split,
		     vmm->pages);
}

static void lay_out(struct vmm *vmm)
{
	uint64_t size = vmm->pages * PAGE_SIZE, low = size;

	if (vmm->options.split)
		low = vmm->options.split * PAGE_SIZE;
	else if (low > GUEST_LOW_SIZE)
		low = GUEST_LOW_SIZE;
	if (low > GUEST_LOW_SIZE || size - low > GUEST_HIGH_SIZE)
		fail("at most %llu MiB of the image fit in the first slot, and %llu in the second",
		     GUEST_LOW_SIZE >> 20, GUEST_HIGH_SIZE >> 20);
	vmm->slots[0] = (struct slot){ GUEST_LOW, 0, low, NULL };
	vmm->slots[1] = (struct slot){ GUEST_HIGH, low, size - low, NULL };
	vmm->slot_count = low < size ? 2 : 1;
}

static void fill_memory(struct vmm *vmm)
{
	struct faultline_error error;
	int r;

	if (faultline_new(&vmm->client, &error) < 0)
		fail("%s", error.what);
	for (unsigned i = 0; i < vmm->slot_count; i++) {
		struct slot *slot = &vmm->slots[i];
		void *memory;

		if (faultline_map(vmm->client, slot->size, slot->offset, PAGE_SIZE, &memory, &error) < 0)
			fail("%s. %s", error.what, error.remedy);
		slot->memory = memory;
	}
	if (vmm->options.server)
		r = faultline_connect(vmm->client, vmm->options.socket, -1, 0, &error);
	else
		r = faultline_map_image(vmm->client, vmm->image, &error);
	vmm->connected_ns = now_ns();
	if (r == FAULTLINE_OK && vmm->options.wait_prefetched)
		r = faultline_wait_prefetched(vmm->client, -1, &error);
	if (r != FAULTLINE_OK)
		fail("%s. %s", error.what, error.remedy);
}

/* By the process's page table: asks without touching. */
static void note_present(struct vmm *vmm)
{
	_cleanup_close_ int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entries[512];

	if (pagemap < 0)
		fail("/proc/self/pagemap: %s", strerror(errno));
	for (uint64_t page = 0, got; page < vmm->pages; page += got) {
		const struct slot *slot = slot_of(vmm, page);
		uint64_t left = (slot->offset + slot->size) / PAGE_SIZE - page;
		size_t want = (left < 512 ? left : 512) * sizeof *entries;
		uint64_t at = (uintptr_t)memory_of(vmm, page) / PAGE_SIZE * sizeof *entries;
		ssize_t r = pread(pagemap, entries, want, (off_t)at);

		if (r < (ssize_t)sizeof *entries)
			fail("reading /proc/self/pagemap: %s", r < 0 ? strerror(errno) : "it has ended");
		got = (uint64_t)r / sizeof *entries;
		for (uint64_t i = 0; i < got; i++)
			vmm->present[page + i] = entries[i] >> 63;
	}
}

static void read_image_page(const struct vmm *vmm, uint64_t page, uint64_t words[static PAGE_SIZE / 8])
{
	if (pread(vmm->image, words, PAGE_SIZE, (off_t)(page * PAGE_SIZE)) != (ssize_t)PAGE_SIZE)
		fail("reading page %" PRIu64 " of %s: %s", page, vmm->options.image, strerror(errno));
}

/* The guest would run whatever is there. */
static void check_fetched_pages(const struct vmm *vmm)
{
	unsigned char first;

	for (unsigned i = 0; i < vmm->script.vcpu_count; i++)
		for (size_t k = 0; k < vmm->script.vcpus[i].count; k++) {
			const struct action *action = &vmm->script.vcpus[i].actions[k];

			if (action->kind != ACTION_TOUCH || action->touch != TOUCH_FETCH)
				continue;
			if (pread(vmm->image, &first, 1, (off_t)(action->value * PAGE_SIZE)) != 1 || first != 0xc3)
				fail("page %" PRIu64 " of %s can't be run: its first byte is not 0xc3", action->value,
				     vmm->options.image);
		}
}

/* ---- running ---- */

/* The narrowest of several looks at both clocks. */
static struct moment look_at_clocks(void)
{
	struct moment best = { 0 };
	uint64_t narrowest = UINT64_MAX;

	for (unsigned i = 0; i < 32; i++) {
		uint64_t before = machine_tsc();
		uint64_t ns = now_ns();
		uint64_t width = machine_tsc() - before;

		if (width < narrowest) {
			narrowest = width;
			best = (struct moment){ ns, before + width / 2 };
		}
	}
	return best;
}

static uint64_t to_ns(const struct vmm *vmm, uint64_t tsc)
{
	int64_t ticks = (int64_t)(tsc - vmm->start.tsc);
	__int128 ns = (__int128)ticks * (int64_t)(vmm->end.ns - vmm->start.ns);

	return vmm->start.ns + (uint64_t)(int64_t)(ns / (int64_t)(vmm->end.tsc - vmm->start.tsc));
}

static void handle_call(void *data, unsigned vcpu, enum guest_call call)
{
	struct vmm *vmm = data;
	struct faultline_error error;
	char line[256];

	if (call == GUEST_READY && vmm->options.server) {
		if (faultline_ready(vmm->client, &error) < 0)
			fail("%s. %s", error.what, error.remedy);
	} else if (call == GUEST_HOLD) {
		printf("{\"event\":\"hold\",\"vcpu\":%u}\n", vcpu);
		fflush(stdout);
		if (!fgets(line, sizeof line, stdin))
			fail("vCPU %u holds, and stdin has ended", vcpu);
	}
}

static void *join_machine(void *data)
{
	struct vmm *vmm = data;

	machine_join(&vmm->machine);
	eventfd_write(vmm->done, 1);
	return NULL;
}

static void make_machine(struct vmm *vmm)
{
	struct machine *machine = &vmm->machine;

	if (machine_make(machine, vmm->options.irqchip) < 0)
		_exit(EXIT_FAILED);
	machine->call = handle_call;
	machine->data = vmm;
	for (unsigned i = 0; i < vmm->slot_count; i++)
		if (machine_add_memory(machine, vmm->slots[i].guest_address, vmm->slots[i].memory, vmm->slots[i].size) <
		    0)
			_exit(EXIT_FAILED);
	for (unsigned i = 0; i < vmm->script.vcpu_count; i++)
		if (machine_add_vcpu(machine, vmm->options.cpus[i]) < 0)
			_exit(EXIT_FAILED);
	int r = guest_control_make(&vmm->control, &vmm->script, vmm->options.irqchip, machine->tsc_khz,
				   guest_address_of, vmm);
	if (r < 0)
		fail("memory for the guest's programs: %s", strerror(-r));
	if (machine_add_memory(machine, 0, vmm->control.memory, vmm->control.size) < 0)
		_exit(EXIT_FAILED);
	for (unsigned i = 0; i < vmm->script.vcpu_count; i++)
		if (machine_set_entry(machine, i, &vmm->control.entries[i]) < 0)
			_exit(EXIT_FAILED);
}

static void print_start(const struct vmm *vmm)
{
	printf("{\"event\":\"start\",\"pid\":%d,\"irqchip\":%s,\"connected_ns\":%" PRIu64 ",\"tids\":[", getpid(),
	       vmm->options.irqchip ? "true" : "false", vmm->connected_ns);
	for (unsigned i = 0; i < vmm->machine.vcpu_count; i++)
		printf("%s%d", i ? "," : "", vmm->machine.vcpus[i].tid);
	printf("],\"regions\":[");
	for (unsigned i = 0; i < vmm->slot_count; i++)
		printf("%s{\"address\":%" PRIuPTR ",\"guest_address\":%" PRIu64 ",\"size\":%" PRIu64
		       ",\"offset\":%" PRIu64 "}",
		       i ? "," : "", (uintptr_t)vmm->slots[i].memory, vmm->slots[i].guest_address, vmm->slots[i].size,
		       vmm->slots[i].offset);
	printf("]}\n");
	fflush(stdout);
}

static void run(struct vmm *vmm)
{
	struct pollfd events[] = {
		{ .events = POLLIN },
		{ .fd = faultline_server_fd(vmm->client), .events = POLLRDHUP },
	};
	pthread_t joiner;

	vmm->done = events[0].fd = eventfd(0, EFD_CLOEXEC);
	if (vmm->done < 0 || machine_start(&vmm->machine) < 0)
		fail("the guest can't be started");
	note_present(vmm);
	print_start(vmm);
	vmm->start = look_at_clocks();
	guest_control_set_start(&vmm->control, vmm->start.tsc);
	machine_go(&vmm->machine);
	if (pthread_create(&joiner, NULL, join_machine, vmm))
		fail("no thread");
	while (poll(events, 2, -1) < 0)
		if (errno != EINTR)
			fail("poll: %s", strerror(errno));
	if (!(events[0].revents & POLLIN)) {
		fprintf(stderr, "faultline-tiny-vmm: the page server has gone away; this VM ends with it\n");
		fflush(NULL);
		_exit(EXIT_SERVER_GONE);
	}
	pthread_join(joiner, NULL);
	vmm->end = look_at_clocks();
}

/* ---- what has come of it ---- */

struct touch {
	const struct guest_result *result;
	uint64_t page;
	uint8_t vcpu, kind;
};

static int compare_touches(const void *a, const void *b)
{
	const struct touch *x = a, *y = b;

	return x->result->sequence < y->result->sequence ? -1 : 1;
}

static struct touch *collect(const struct vmm *vmm, size_t *ret_count)
{
	size_t count = 0;

	for (unsigned i = 0; i < vmm->script.vcpu_count; i++)
		count += vmm->script.vcpus[i].touches;
	struct touch *touches = calloc(count ? count : 1, sizeof *touches);
	if (!touches)
		fail("no memory for %zu touches", count);
	count = 0;
	for (unsigned i = 0; i < vmm->script.vcpu_count; i++) {
		const struct program *program = &vmm->script.vcpus[i];
		const struct guest_result *result = guest_control_results(&vmm->control, i);

		for (size_t k = 0; k < program->count; k++)
			if (program->actions[k].kind == ACTION_TOUCH)
				touches[count++] = (struct touch){ result++, program->actions[k].value, (uint8_t)i,
								   program->actions[k].touch };
	}
	qsort(touches, count, sizeof *touches, compare_touches);
	*ret_count = count;
	return touches;
}

/* What the guest saw: the words that it doesn't write. */
static bool saw_right(const struct vmm *vmm, const struct touch *touch)
{
	uint64_t words[PAGE_SIZE / 8];

	read_image_page(vmm, touch->page, words);
	if (guest_checksum(words) == touch->result->checksum)
		return true;
	fprintf(stderr, "faultline-tiny-vmm: vCPU %u saw something else in page %" PRIu64 " than the image has\n",
		touch->vcpu, touch->page);
	return false;
}

/* What is there in the end: all of the image's page, and what was written. */
static bool is_right(const struct vmm *vmm, uint64_t page)
{
	uint64_t words[PAGE_SIZE / 8];

	read_image_page(vmm, page, words);
	for (unsigned vcpu = 0; vcpu < VCPUS_MAX; vcpu++)
		if (vmm->writers[page] >> vcpu & 1)
			words[GUEST_WRITTEN_WORD(vcpu)] = guest_written(guest_address_of(vmm, page), vcpu);
	if (memcmp(words, memory_of(vmm, page), PAGE_SIZE) == 0)
		return true;
	fprintf(stderr, "faultline-tiny-vmm: page %" PRIu64 " is not what it should be after the guest has ended\n",
		page);
	return false;
}

static void print_touch(const struct vmm *vmm, const struct touch *touch)
{
	const struct slot *slot = slot_of(vmm, touch->page);

	printf("{\"touch\":%" PRIu64 ",\"vcpu\":%u,\"page\":%" PRIu64 ",\"region\":%td,\"offset\":%" PRIu64
	       ",\"kind\":\"%c\",\"first\":%s,\"present\":%s,\"touch_ns\":%" PRIu64 ",\"done_ns\":%" PRIu64 "}\n",
	       touch->result->sequence, touch->vcpu, touch->page, slot - vmm->slots,
	       touch->page * PAGE_SIZE - slot->offset, "rwx"[touch->kind],
	       vmm -> touched[touch->page] ? "false" : "true", vmm->present[touch->page] ? "true" : "false",
	       to_ns(vmm, touch->result->touch_tsc), to_ns(vmm, touch->result->done_tsc));
}

/* Prints the truth, and returns how many pages or touches were wrong. */
static uint64_t report(struct vmm *vmm)
{
	size_t count;
	_cleanup_free_ struct touch *touches = collect(vmm, &count);
	uint64_t pages = 0, absent = 0, wrong = 0;

	for (size_t i = 0; i < count; i++) {
		const struct touch *touch = &touches[i];

		if (!vmm->options.quiet)
			print_touch(vmm, touch);
		if (!vmm->touched[touch->page]) {
			pages++;
			absent += !vmm->present[touch->page];
		}
		vmm->touched[touch->page] = 1;
		if (touch->kind == TOUCH_WRITE)
			vmm->writers[touch->page] |= (unsigned char)(1u << touch->vcpu);
		wrong += !saw_right(vmm, touch);
	}
	for (uint64_t page = 0; page < vmm->pages; page++)
		if (vmm->touched[page])
			wrong += !is_right(vmm, page);
	printf("{\"event\":\"end\",\"touches\":%zu,\"pages\":%" PRIu64 ",\"absent\":%" PRIu64 ",\"wrong\":%" PRIu64
	       ",\"start_ns\":%" PRIu64 ",\"end_ns\":%" PRIu64 "}\n",
	       count, pages, absent, wrong, vmm->start.ns, vmm->end.ns);
	return wrong;
}

/* ---- options ---- */

static const char usage_text[] =
	"usage: faultline-tiny-vmm [OPTION]... IMAGE\n"
	"\n"
	"Runs a guest under KVM that touches pages of IMAGE as a script says, and prints the truth about it, in JSON, a line each:\n"
	"what is known at the start, each touch in the order in which they came, and sums. Times are CLOCK_MONOTONIC.\n"
	"\n"
	"  --script FILE      what the vCPUs do; default: stdin\n"
	"  --socket PATH      the fork's socket; default: $FAULTLINE_SOCKET; with neither, the image is mapped, without a server\n"
	"  --wait-prefetched  start the guest when the server has prefetched\n"
	"  --irqchip          let the kernel have the interrupt controllers, and the guest take interrupts: then kernel threads take\n"
	"                     the faults; without it, the vCPUs' threads do\n"
	"  --split PAGES      so many pages are in a slot (and region) of their own, the rest in another\n"
	"  --cpus LIST        CPUs for the vCPUs to stay on, as in 0,1\n"
	"  --quiet            don't print the touches\n"
	"\n"
	"Exit status: 0 all is well, 1 failed, 2 usage, 3 the server has gone, 4 a page was wrong.\n"
	"\n";

static void usage_error(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
static void usage_error(const char *format, ...)
{
	va_list args;

	fputs("faultline-tiny-vmm: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputs(" (see --help)\n", stderr);
	exit(EXIT_USAGE);
}

static void parse_cpus(struct options *options, const char *list)
{
	const char *at = list;

	for (unsigned i = 0; i < VCPUS_MAX; i++) {
		char *end;
		unsigned long cpu = strtoul(at, &end, 10);

		if (end == at || *at < '0' || *at > '9' || cpu >= CPU_SETSIZE || (*end && *end != ','))
			usage_error("'%s' is no list of CPUs, as in 0,1", list);
		options->cpus[i] = (int)cpu;
		if (!*end)
			return;
		at = end + 1;
	}
	usage_error("more than %d CPUs in '%s'", VCPUS_MAX, list);
}

static void parse_options(struct options *options, int argc, char **argv)
{
	static const struct option table[] = {
		{ "script", required_argument, NULL, 's' },
		{ "socket", required_argument, NULL, 'S' },
		{ "wait-prefetched", no_argument, NULL, 'w' },
		{ "irqchip", no_argument, NULL, 'i' },
		{ "split", required_argument, NULL, 'p' },
		{ "cpus", required_argument, NULL, 'c' },
		{ "quiet", no_argument, NULL, 'q' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	char *end;
	int o;

	*options = (struct options){ .socket = getenv("FAULTLINE_SOCKET") };
	for (unsigned i = 0; i < VCPUS_MAX; i++)
		options->cpus[i] = -1;
	while ((o = getopt_long(argc, argv, "", table, NULL)) >= 0)
		switch (o) {
		case 's':
			options->script = optarg;
			break;
		case 'S':
			options->socket = optarg;
			break;
		case 'w':
			options->wait_prefetched = true;
			break;
		case 'i':
			options->irqchip = true;
			break;
		case 'p':
			options->split = strtoull(optarg, &end, 10);
			if (*optarg < '0' || *optarg > '9' || *end || options->split == 0 || options->split > UINT32_MAX)
				usage_error("'%s' is no number of pages", optarg);
			break;
		case 'c':
			parse_cpus(options, optarg);
			break;
		case 'q':
			options->quiet = true;
			break;
		case 'h':
			fputs(usage_text, stdout);
			fputs(script_help, stdout);
			exit(0);
		default:
			exit(EXIT_USAGE); /* getopt has said why */
		}
	if (optind + 1 != argc)
		usage_error(optind == argc ? "there is no image" : "there is more than one image");
	options->image = argv[optind];
	options->server = options->socket && *options->socket;
	if (options->wait_prefetched && !options->server)
		usage_error("--wait-prefetched needs a server to wait for");
}

static void read_script(struct vmm *vmm)
{
	const char *path = vmm->options.script;
	_cleanup_fclose_ FILE *file = path ? fopen(path, "re") : NULL;

	if (path && !file)
		fail("%s: %s", path, strerror(errno));
	if (script_read(&vmm->script, file ? file : stdin, path ? path : "stdin") < 0)
		exit(EXIT_USAGE);
	if (vmm->script.halts && !vmm->options.irqchip)
		usage_error("'halt' needs --irqchip: who halts is woken by an interrupt");
}

int main(int argc, char **argv)
{
	struct vmm vmm = { .image = -1, .done = -1 };
	struct faultline_error error;

	parse_options(&vmm.options, argc, argv);
	read_script(&vmm);
	open_image(&vmm);
	lay_out(&vmm);
	check_fetched_pages(&vmm);
	vmm.present = calloc(vmm.pages, 1);
	vmm.writers = calloc(vmm.pages, 1);
	vmm.touched = calloc(vmm.pages, 1);
	if (!vmm.present || !vmm.writers || !vmm.touched)
		fail("no memory for %" PRIu64 " pages", vmm.pages);
	fill_memory(&vmm);
	make_machine(&vmm);
	run(&vmm);
	uint64_t wrong = report(&vmm);

	machine_free(&vmm.machine);
	if (faultline_close(&vmm.client, &error) < 0)
		fail("%s. %s", error.what, error.remedy);
	guest_control_free(&vmm.control);
	script_clear(&vmm.script);
	free(vmm.present);
	free(vmm.writers);
	free(vmm.touched);
	close(vmm.image);
	close(vmm.done);
	return wrong ? EXIT_WRONG : 0;
}
