#include "bench/floor.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "bench/handover.h"
#include "bench/process.h"
#include "uffd/uffd.h"

static int map_image(const struct bench_image *image, const char **ret, struct error *err)
{
	_cleanup_close_ int fd = open(image->path, O_RDONLY | O_CLOEXEC);
	void *bytes = MAP_FAILED;

	if (fd >= 0)
		bytes = mmap(NULL, image->pages * BENCH_PAGE, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (bytes == MAP_FAILED)
		return error_set(err, -errno, "bench_failed", "a floor can't map %s: %s", image->path, strerror(errno));
	*ret = bytes;
	return 0;
}

static int take_over(int conn, uint64_t *ret_address, struct error *err)
{
	int fd = handover_receive(conn, ret_address, sizeof *ret_address);

	return fd < 0 ? error_set(err, fd, "bench_failed", "a floor got no userfaultfd: %s", strerror(-fd)) : fd;
}

/* ---- demand faults ---- */

struct loop {
	const char *bytes;
	uint64_t address;
	int uffd, cpu;
	bool spin;
};

static void *loop_main(void *data)
{
	struct loop loop = *(struct loop *)data;
	struct pollfd poll_fd = { .fd = loop.uffd, .events = POLLIN };
	struct uffd_msg msg;

	free(data);
	if (pin_thread(loop.cpu) < 0)
		_exit(1);
	for (;;) {
		if (!loop.spin && poll(&poll_fd, 1, -1) < 0 && errno != EINTR)
			_exit(1);
		if (read(loop.uffd, &msg, sizeof msg) != sizeof msg)
			continue;
		uint64_t at = (msg.arg.pagefault.address & ~(BENCH_PAGE - 1)) - loop.address;
		struct uffdio_copy copy = { .dst = loop.address + at,
					    .src = (uintptr_t)loop.bytes + at,
					    .len = BENCH_PAGE };
		if (ioctl(loop.uffd, UFFDIO_COPY, &copy) < 0 && errno == ESRCH)
			return NULL;
	}
}

static int start_loops(const struct floor_loop *floor, const char *bytes, int conn, struct error *err)
{
	struct loop loop = { .bytes = bytes, .spin = floor->spin };

	loop.uffd = take_over(conn, &loop.address, err);
	if (loop.uffd < 0)
		return loop.uffd;
	for (unsigned i = 0; i < floor->loops; i++) {
		struct loop *own = malloc(sizeof *own);
		pthread_t thread;
		int r = -ENOMEM;

		loop.cpu = floor->cpus[i];
		if (own) {
			*own = loop;
			r = -pthread_create(&thread, NULL, loop_main, own);
		}
		if (r < 0) {
			free(own);
			return error_set(err, r, "bench_failed", "a floor can't start a thread: %s", strerror(-r));
		}
		pthread_detach(thread);
	}
	return 0;
}

int floor_loop_body(const void *data, void *result __attribute__((unused)), struct error *err)
{
	const struct floor_loop *floor = data;
	const char *bytes;
	int r = map_image(floor->image, &bytes, err);

	if (r == 0)
		child_say(FLOOR_READY);
	for (unsigned i = 0; i < floor->guests && r == 0; i++)
		r = start_loops(floor, bytes, CHILD_FDS + (int)i, err);
	if (r == 0)
		child_hear(GUEST_END);
	return r;
}

/* ---- prefetch ---- */

/* One call: N pages from PAGE on. */
static int copy_pages(const struct floor_prefetch *floor, const char *bytes, int image, int uffd, uint64_t address,
		      uint64_t page, uint64_t n)
{
	static char buffer[BENCH_PAGE];
	uint64_t offset = page * BENCH_PAGE;
	const char *from = floor->reads ? buffer : bytes + offset;

	if (floor->reads && pread(image, buffer, sizeof buffer, (off_t)offset) != sizeof buffer)
		return -EIO;
	struct uffdio_copy copy = { .dst = address + offset, .src = (uintptr_t)from, .len = n * BENCH_PAGE };
	return ioctl(uffd, UFFDIO_COPY, &copy) < 0 ? -errno : 0;
}

static int copy_runs(const struct floor_prefetch *floor, const char *bytes, int image, int uffd, uint64_t address)
{
	int r = 0;

	for (uint64_t i = 0; i < floor->run_count && r == 0; i++) {
		const struct floor_run *run = &floor->runs[i];

		for (uint64_t at = 0; at < run->count && r == 0; at += floor->most) {
			uint64_t n = run->count - at < floor->most ? run->count - at : floor->most;

			r = copy_pages(floor, bytes, image, uffd, address, run->page + at, n);
		}
	}
	return r;
}

int floor_prefetch_body(const void *data, void *result __attribute__((unused)), struct error *err)
{
	const struct floor_prefetch *floor = data;
	const char *bytes;
	uint64_t address;
	int r = map_image(floor->image, &bytes, err);

	if (r < 0)
		return r;
	_cleanup_close_ int image = open(floor->image->path, O_RDONLY | O_CLOEXEC);
	if (image < 0)
		return error_set(err, -errno, "bench_failed", "a floor can't open %s: %s", floor->image->path,
				 strerror(errno));
	child_say(FLOOR_READY);
	_cleanup_close_ int uffd = take_over(CHILD_FDS, &address, err);
	if (uffd < 0)
		return uffd;
	r = copy_runs(floor, bytes, image, uffd, address);
	if (r < 0)
		return error_set(err, r, "bench_failed", "a floor can't copy pages: %s", strerror(-r));
	if (write(CHILD_FDS, "", 1) != 1)
		return error_set(err, -errno, "bench_failed", "a floor can't answer: %s", strerror(errno));
	child_hear(GUEST_END);
	return 0;
}
