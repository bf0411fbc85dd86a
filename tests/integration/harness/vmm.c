#include "integration/harness/vmm.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/peer.h"
#include "uffd/abi.h"

int vmm_new_uffd(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	return fd < 0 ? -errno : fd;
}

void vmm_init(struct vmm *vmm, struct client_self *self, const struct test_image *image)
{
	memset(vmm, 0, sizeof *vmm);
	vmm->self = self;
	vmm->image = image;
	vmm->uffd = vmm->conn = -1;
	vmm->regions = calloc(VMM_REGIONS_MAX, sizeof *vmm->regions);
	client_require(self, vmm->regions, "out of memory for regions");
}

struct vmm_region *vmm_adopt_region(struct vmm *vmm, char *address, uint64_t size, uint64_t offset, uint64_t page_size)
{
	_Atomic uint32_t *shows = malloc((size / PAGE + 1) * sizeof *shows);

	client_require(vmm->self, vmm->region_count < VMM_REGIONS_MAX && shows, "no room for a region");
	for (uint64_t i = 0; i < size / PAGE; i++)
		shows[i] = SHOWS_TEMPLATE;
	vmm->regions[vmm->region_count] = (struct vmm_region){ address, size, offset, page_size, shows };
	return &vmm->regions[vmm->region_count++];
}

struct vmm_region *vmm_add_region_at(struct vmm *vmm, void *address, uint64_t size, uint64_t offset)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (address ? MAP_FIXED : 0);
	void *p = mmap(address, size, PROT_READ | PROT_WRITE, flags, -1, 0);

	client_require(vmm->self, p != MAP_FAILED, "mmap of %" PRIu64 " bytes: %s", size, strerror(errno));
	/* One page a fault, whatever the machine's policy: tests count pages. */
	madvise(p, size, MADV_NOHUGEPAGE);
	return vmm_adopt_region(vmm, p, size, offset, PAGE);
}

struct vmm_region *vmm_add_region(struct vmm *vmm, uint64_t size, uint64_t offset)
{
	return vmm_add_region_at(vmm, NULL, size, offset);
}

void vmm_make_uffd(struct vmm *vmm, struct vmm_form form)
{
	bool raw = form.fd == VMM_HYPEMAN;
	struct uffdio_api api = { .api = UFFD_API, .features = form.features ?: UFFD_FEATURE_EVENT_REMOVE };

	vmm->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | (raw ? 0 : O_NONBLOCK));
	client_require(vmm->self, vmm->uffd >= 0, "userfaultfd: %s", strerror(errno));
	if (raw)
		return;
	client_require(vmm->self, ioctl(vmm->uffd, UFFDIO_API, &api) == 0, "UFFDIO_API: %s", strerror(errno));
	for (unsigned i = 0; i < vmm->region_count; i++) {
		struct uffdio_register reg = {
			.range = { .start = (uintptr_t)vmm->regions[i].address, .len = vmm->regions[i].size },
			.mode = UFFDIO_REGISTER_MODE_MISSING,
		};

		client_require(vmm->self, ioctl(vmm->uffd, UFFDIO_REGISTER, &reg) == 0, "UFFDIO_REGISTER: %s",
			       strerror(errno));
	}
}

void vmm_connect(struct vmm *vmm, const char *socket)
{
	vmm->conn = peer_connect(socket);
	client_require(vmm->self, vmm->conn >= 0, "cannot connect to %s: %s", socket, strerror(-vmm->conn));
}

char *vmm_handshake_text(const struct vmm *vmm, enum vmm_style style)
{
	char *text = NULL;
	size_t size;
	FILE *f = open_memstream(&text, &size);

	if (!f)
		abort();
	fputs(style == VMM_FIRECRACKER ? "[" : "{\"mappings\":[", f);
	for (unsigned i = 0; i < vmm->region_count; i++) {
		const struct vmm_region *r = &vmm->regions[i];

		fprintf(f, "%s{\"base_host_virt_addr\":%" PRIuPTR ",\"size\":%" PRIu64 ",\"offset\":%" PRIu64,
			i ? "," : "", (uintptr_t)r->address, r->size, r->offset);
		if (style == VMM_FIRECRACKER)
			fprintf(f, ",\"page_size\":%" PRIu64 ",\"page_size_kib\":%" PRIu64, r->page_size, r->page_size);
		fputs("}", f);
	}
	fputs(style == VMM_FIRECRACKER ? "]" : "]}", f);
	fclose(f);
	return text;
}

/* "um" among the flags of the mapping that ADDRESS lies in: registered for missing pages. */
static bool is_registered(uintptr_t address)
{
	_cleanup_fclose_ FILE *f = fopen("/proc/self/smaps", "re");
	char line[512];
	bool here = false;

	while (f && fgets(line, sizeof line, f)) {
		unsigned long start, end;

		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			here = address >= start && address < end;
		else if (here && !strncmp(line, "VmFlags:", 8))
			return strstr(line, " um") != NULL;
	}
	return false;
}

void vmm_await_registered(struct vmm *vmm)
{
	uint64_t deadline = deadline_in(WAIT_S);
	const struct vmm_region *last = &vmm->regions[vmm->region_count - 1];

	while (!is_registered((uintptr_t)last->address)) {
		struct pollfd p = { .fd = vmm->conn, .events = POLLRDHUP };

		client_require(vmm->self, poll(&p, 1, 1) == 0, "the server hung up instead of registering the memory");
		client_require(vmm->self, deadline_ms(deadline), "the server has not registered the memory");
	}
}

void vmm_handshake(struct vmm *vmm, struct vmm_form form)
{
	_cleanup_free_ char *text = vmm_handshake_text(vmm, form.json);
	int r = peer_send(vmm->conn, text, strlen(text), &vmm->uffd, 1, form.chunk);

	client_require(vmm->self, r == 0, "sending the handshake: %s", strerror(-r));
	if (form.fd == VMM_HYPEMAN)
		vmm_await_registered(vmm);
}

void vmm_start(struct vmm *vmm, const char *socket, struct vmm_form form)
{
	if (!vmm->region_count)
		vmm_add_region(vmm, (vmm->image->size + PAGE - 1) & ~(PAGE - 1), 0);
	vmm_make_uffd(vmm, form);
	vmm_connect(vmm, socket);
	vmm_handshake(vmm, form);
}

struct thread_start {
	struct vmm *vmm;
	unsigned index;
	void (*body)(struct vmm *, unsigned, void *);
	void *data;
};

static void *thread_main(void *p)
{
	struct thread_start *start = p;

	start->body(start->vmm, start->index, start->data);
	return NULL;
}

void vmm_threads(struct vmm *vmm, unsigned count, void (*body)(struct vmm *, unsigned, void *), void *data)
{
	struct thread_start starts[64];
	pthread_t threads[64];

	client_require(vmm->self, count <= 64, "too many threads");
	for (unsigned i = 0; i < count; i++) {
		starts[i] = (struct thread_start){ vmm, i, body, data };
		int r = pthread_create(&threads[i], NULL, thread_main, &starts[i]);
		client_require(vmm->self, r == 0, "pthread_create: %s", strerror(r));
	}
	for (unsigned i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
}

void vmm_await_waiters(struct vmm *vmm, unsigned count)
{
	uint64_t deadline = deadline_in(WAIT_S);
	unsigned pending, total = 0;

	while (!uffd_waiters(getpid(), vmm->uffd, &pending, &total) || total < count) {
		client_require(vmm->self, deadline_ms(deadline), "%u faults in flight where %u should be", total, count);
		sched_yield();
	}
}

void vmm_pin(struct vmm *vmm, unsigned index)
{
	cpu_set_t allowed, one;

	client_require(vmm->self, sched_getaffinity(0, sizeof allowed, &allowed) == 0, "sched_getaffinity: %s",
		       strerror(errno));
	CPU_ZERO(&one);
	index %= (unsigned)CPU_COUNT(&allowed);
	for (unsigned cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &allowed) && index-- == 0) {
			CPU_SET(cpu, &one);
			break;
		}
	client_require(vmm->self, sched_setaffinity(0, sizeof one, &one) == 0, "sched_setaffinity: %s", strerror(errno));
}
