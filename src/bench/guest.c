#include "bench/guest.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/clock.h"
#include "bench/handover.h"
#include "bench/stats.h"
#include "uffd/uffd.h"

struct guest {
	const struct guest_spec *spec;
	struct guest_result *result;
	char *memory;
	uint64_t region_pages;
	int uffd, conn;
	uint64_t *order, *samples; /* spec->pages of each; a vCPU's part is every vcpus-th */
	pthread_barrier_t barrier;
};

struct vcpu {
	struct guest *guest;
	unsigned index;
	pthread_t thread;
	uint64_t start_ns, end_ns;
	bool wrong;
	uint64_t wrong_page;
	int pinned; /* 0, or why it was not */
};

int pin_thread(int cpu)
{
	cpu_set_t set;

	if (cpu == GUEST_ANY_CPU)
		return 0;
	CPU_ZERO(&set);
	CPU_SET((size_t)cpu, &set);
	return sched_setaffinity(0, sizeof set, &set) < 0 ? -errno : 0;
}

/* ---- memory ---- */

static int map_failed(const char *what, int error, struct error *err)
{
	return error_set(err, error, "bench_failed", "can't %s: %s%s", what, strerror(-error),
			 error == -ENOMEM ? " (see ulimit -v and vm.overcommit_memory)" : "");
}

static int open_uffd(struct guest *guest, struct error *err)
{
	guest->uffd = uffd_open();
	if (guest->uffd < 0)
		return error_set(err, guest->uffd, "bench_failed",
				 "userfaultfd can't be had: %s; run it as root, or set vm.unprivileged_userfaultfd=1",
				 strerror(-guest->uffd));
	int r = uffd_negotiate(guest->uffd, UFFD_FEATURE_EVENT_REMOVE);
	if (r >= 0)
		r = uffd_register_missing(guest->uffd, (uintptr_t)guest->memory, guest->region_pages * BENCH_PAGE);
	return r < 0 ? map_failed("register memory with userfaultfd", r, err) : 0;
}

static int fill_from(const struct bench_image *image, char *memory, size_t size)
{
	_cleanup_close_ int fd = open(image->path, O_RDONLY | O_CLOEXEC);
	size_t at = 0;

	if (fd < 0)
		return -errno;
	while (at < size) {
		ssize_t n = pread(fd, memory + at, size - at, (off_t)at);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -ENODATA;
		at += (size_t)n;
	}
	return 0;
}

static int map_memory(struct guest *guest, struct error *err)
{
	const struct guest_spec *spec = guest->spec;
	size_t size = guest->region_pages * BENCH_PAGE;
	_cleanup_close_ int fd = -1;
	int flags = MAP_PRIVATE | MAP_NORESERVE | MAP_ANONYMOUS;

	if (spec->memory == GUEST_MMAP) {
		fd = open(spec->image->path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			return map_failed("open the memory image", -errno, err);
		flags = MAP_PRIVATE | MAP_NORESERVE;
	}
	guest->memory = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (guest->memory == MAP_FAILED)
		return map_failed("map a guest's memory", -errno, err);
	madvise(guest->memory, size, MADV_NOHUGEPAGE);
	if (spec->memory == GUEST_UFFD)
		return open_uffd(guest, err);
	int r = spec->memory == GUEST_PRESENT ? fill_from(spec->image, guest->memory, size) : 0;
	return r < 0 ? map_failed("read the memory image", r, err) : 0;
}

/* Everything that is not to be measured is made and touched here. */
static int make_order(struct guest *guest, struct error *err)
{
	const struct guest_spec *spec = guest->spec;
	struct bench_random random = { .state = spec->seed };

	guest->order = calloc(spec->pages + 1, sizeof *guest->order);
	guest->samples = malloc((spec->pages + 1) * sizeof *guest->samples);
	if (!guest->order || !guest->samples)
		return error_set(err, -ENOMEM, "bench_failed", "there is not enough memory for a guest's times");
	for (uint64_t i = 0; i < spec->pages; i++)
		guest->order[i] = spec->list ? spec->list[i] : i;
	bench_shuffle(&random, guest->order, spec->pages);
	memset(guest->samples, 1, spec->pages * sizeof *guest->samples);
	return 0;
}

static int set_up(struct guest *guest, struct error *err)
{
	const struct guest_spec *spec = guest->spec;
	int r = pin_thread(spec->cpus[0]);

	if (r < 0)
		return error_set(err, r, "bench_failed", "can't stay on CPU %d: %s", spec->cpus[0], strerror(-r));
	guest->uffd = guest->conn = -1;
	guest->region_pages = spec->region_pages ?: spec->pages + GUEST_SPARE_PAGES;
	r = map_memory(guest, err);
	return r < 0 ? r : make_order(guest, err);
}

static void tear_down(struct guest *guest)
{
	free(guest->order);
	free(guest->samples);
	if (guest->memory && guest->memory != MAP_FAILED)
		munmap(guest->memory, guest->region_pages * BENCH_PAGE);
	cleanup_close(&guest->uffd);
	if (guest->spec->socket)
		cleanup_close(&guest->conn);
}

/* ---- the handshake ---- */

static int connect_to(const char *path, struct error *err)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof address.sun_path)
		return error_set(err, -ENAMETOOLONG, "bench_failed", "the path %s is too long: choose a shorter --dir",
				 path);
	memcpy(address.sun_path, path, strlen(path));
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
		return error_set(err, -errno, "bench_failed", "can't connect to %s: %s", path, strerror(errno));
	return TAKE_FD(fd);
}

/* As Firecracker does it to a server, or in the least that tells a floor where the memory is. */
static int hand_over(struct guest *guest, struct error *err)
{
	const struct guest_spec *spec = guest->spec;
	uint64_t address = (uintptr_t)guest->memory;
	int r;

	if (spec->memory != GUEST_UFFD)
		return 0;
	if (spec->socket) {
		char text[256];
		int n = snprintf(text, sizeof text,
				 "[{\"base_host_virt_addr\":%" PRIu64 ",\"size\":%" PRIu64
				 ",\"offset\":0,\"page_size\":4096,\"page_size_kib\":4096}]",
				 address, (uint64_t)(guest->region_pages * BENCH_PAGE));
		guest->conn = connect_to(spec->socket, err);
		if (guest->conn < 0)
			return guest->conn;
		guest->result->handshake_ns = now_ns();
		r = handover_send(guest->conn, text, (size_t)n, guest->uffd);
	} else {
		guest->conn = CHILD_FDS;
		guest->result->handshake_ns = now_ns();
		r = handover_send(guest->conn, &address, sizeof address, guest->uffd);
	}
	return r < 0 ? error_set(err, r, "bench_failed", "can't hand the userfaultfd over: %s", strerror(-r)) : 0;
}

/* ---- touching ---- */

static uint64_t look_at(const struct guest *guest, uint64_t page, unsigned word)
{
	return *(const volatile uint64_t *)(guest->memory + page * BENCH_PAGE + word * sizeof(uint64_t));
}

static void note_wrong(struct vcpu *vcpu, uint64_t page)
{
	if (!vcpu->wrong)
		vcpu->wrong_page = page;
	vcpu->wrong = true;
}

static void touch_part(struct vcpu *vcpu)
{
	struct guest *guest = vcpu->guest;
	const struct guest_spec *spec = guest->spec;

	vcpu->start_ns = now_ns();
	for (uint64_t i = vcpu->index; i < spec->pages; i += spec->vcpus) {
		while (spec->interval_ns && now_ns() < vcpu->start_ns + i / spec->vcpus * spec->interval_ns)
			;
		uint64_t page = guest->order[i], start = now_ns(), word = look_at(guest, page, 7);
		guest->samples[i] = now_ns() - start;
		if (word != bench_image_word(page, 7))
			note_wrong(vcpu, page);
	}
	vcpu->end_ns = now_ns();
}

static void check_part(struct vcpu *vcpu)
{
	struct guest *guest = vcpu->guest;

	for (uint64_t i = vcpu->index; i < guest->spec->pages; i += guest->spec->vcpus)
		if (!bench_page_is_right(guest->memory + guest->order[i] * BENCH_PAGE, guest->order[i]))
			note_wrong(vcpu, guest->order[i]);
}

/* A vCPU's first touch is not counted: the server has to take the fork up, and a floor to start its threads. */
static void warm_up(struct vcpu *vcpu)
{
	uint64_t page = vcpu->guest->spec->pages + vcpu->index;

	if (vcpu->guest->spec->prefetched)
		return;
	if (look_at(vcpu->guest, page, 7) != bench_image_word(page, 7))
		note_wrong(vcpu, page);
}

static void *vcpu_main(void *data)
{
	struct vcpu *vcpu = data;
	struct guest *guest = vcpu->guest;

	vcpu->pinned = pin_thread(guest->spec->cpus[vcpu->index]);
	warm_up(vcpu);
	pthread_barrier_wait(&guest->barrier); /* all are warm */
	pthread_barrier_wait(&guest->barrier); /* the guest was told to go on */
	touch_part(vcpu);
	check_part(vcpu);
	return NULL;
}

static int lost_parent(struct error *err)
{
	return error_set(err, -EPIPE, "bench_failed", "the benchmark has gone");
}

/* The main thread is vCPU 0, so that a guest with one vCPU is a process with one thread. */
static int run_vcpus(struct guest *guest, struct vcpu *vcpus, struct error *err)
{
	unsigned count = guest->spec->vcpus;
	bool told;

	for (unsigned i = 1; i < count; i++) {
		vcpus[i] = (struct vcpu){ .guest = guest, .index = i };
		int r = -pthread_create(&vcpus[i].thread, NULL, vcpu_main, &vcpus[i]);
		if (r < 0) /* those that wait at the barrier end with the process */
			return error_set(err, r, "bench_failed", "can't start a thread: %s", strerror(-r));
	}
	vcpus[0] = (struct vcpu){ .guest = guest };
	warm_up(&vcpus[0]);
	pthread_barrier_wait(&guest->barrier);
	told = (guest->spec->prefetched || child_say(GUEST_WARM)) && child_hear(GUEST_TOUCH);
	pthread_barrier_wait(&guest->barrier);
	touch_part(&vcpus[0]);
	check_part(&vcpus[0]);
	for (unsigned i = 1; i < count; i++)
		pthread_join(vcpus[i].thread, NULL);
	return told ? 0 : lost_parent(err);
}

static int sum_up(struct guest *guest, const struct vcpu *vcpus, struct error *err)
{
	const struct guest_spec *spec = guest->spec;
	struct guest_result *result = guest->result;

	for (unsigned i = 0; i < spec->vcpus; i++) {
		if (vcpus[i].wrong)
			return error_set(err, -EBADMSG, "wrong_bytes",
					 "page %" PRIu64
					 " has other bytes than the memory image: the figures mean nothing",
					 vcpus[i].wrong_page);
		if (vcpus[i].pinned < 0)
			return error_set(err, vcpus[i].pinned, "bench_failed", "can't stay on CPU %d: %s",
					 spec->cpus[i], strerror(-vcpus[i].pinned));
		if (i == 0 || vcpus[i].start_ns < result->start_ns)
			result->start_ns = vcpus[i].start_ns;
		if (vcpus[i].end_ns > result->end_ns)
			result->end_ns = vcpus[i].end_ns;
	}
	sort_samples(guest->samples, spec->pages);
	result->p50_ns = percentile(guest->samples, spec->pages, 500);
	result->p90_ns = percentile(guest->samples, spec->pages, 900);
	result->p99_ns = percentile(guest->samples, spec->pages, 990);
	result->max_ns = percentile(guest->samples, spec->pages, 1000);
	result->touched = spec->pages;
	return 0;
}

/* A floor says so itself; of a server's prefetch the run is told by the API. */
static int await_prefetched(struct guest *guest, struct error *err)
{
	char byte;

	if (guest->spec->memory != GUEST_UFFD || guest->spec->socket)
		return 0;
	if (read(guest->conn, &byte, 1) != 1)
		return error_set(err, -EPIPE, "bench_failed", "the floor has ended early");
	guest->result->there_ns = now_ns();
	return 0;
}

static int run_guest(struct guest *guest, struct error *err)
{
	struct vcpu vcpus[GUEST_VCPUS_MAX] = { 0 };
	int r = set_up(guest, err);

	if (r == 0 && !(child_say(GUEST_MAPPED) && child_hear(GUEST_GO)))
		r = lost_parent(err);
	if (r == 0)
		r = hand_over(guest, err);
	if (r == 0 && guest->spec->prefetched) {
		r = await_prefetched(guest, err);
		if (r == 0 && !child_say(GUEST_WARM))
			r = lost_parent(err);
	}
	if (r < 0)
		return r;
	pthread_barrier_init(&guest->barrier, NULL, guest->spec->vcpus);
	r = run_vcpus(guest, vcpus, err);
	return r < 0 ? r : sum_up(guest, vcpus, err);
}

int guest_body(const void *data, void *result, struct error *err)
{
	struct guest guest = { .spec = data, .result = result };
	int r = run_guest(&guest, err);

	if (r == 0 && child_say(GUEST_DONE))
		child_hear(GUEST_END);
	if (r == 0)
		tear_down(&guest);
	return r;
}

int guest_idle_body(const void *data, void *result, struct error *err)
{
	struct guest guest = { .spec = data, .result = result };
	int r = set_up(&guest, err);

	if (r == 0)
		r = hand_over(&guest, err);
	if (r == 0 && child_say(GUEST_WARM))
		child_hear(GUEST_END);
	if (r == 0)
		tear_down(&guest);
	return r;
}
