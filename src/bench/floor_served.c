#include "bench/floor_served.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "bench/guest.h"
#include "bench/process.h"
#include "uffd/uffd.h"

/* A handshake of one region is far shorter. */
#define HANDSHAKE_MAX 4096

struct served {
	int image, connection, uffd;
	const char *bytes;
	uint64_t address, size;
};

static int failed(const char *what, struct error *err)
{
	return error_set(err, -errno, "bench_failed", "a bare server can't %s: %s", what, strerror(errno));
}

static int open_image(struct served *served, const char *path, struct error *err)
{
	struct stat st;

	served->image = open(path, O_RDONLY | O_CLOEXEC);
	if (served->image < 0 || fstat(served->image, &st) < 0)
		return failed("open the memory image", err);
	served->size = (uint64_t)st.st_size;
	void *bytes = mmap(NULL, served->size, PROT_READ, MAP_SHARED, served->image, 0);
	if (bytes == MAP_FAILED)
		return failed("map the memory image", err);
	served->bytes = bytes;
	return 0;
}

static int listen_at(const char *path, int *ret, struct error *err)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 1) < 0)
		return failed("listen", err);
	*ret = TAKE_FD(fd);
	return 0;
}

/* The message of Firecracker's handshake: a JSON array of one region, and a descriptor. */
static int take_over(struct served *served, struct error *err)
{
	char text[HANDSHAKE_MAX], control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
	struct iovec iov = { text, sizeof text };
	struct msghdr message = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control
	};
	ssize_t n = recvmsg(served->connection, &message, MSG_CMSG_CLOEXEC);
	struct cmsghdr *header = n > 0 ? CMSG_FIRSTHDR(&message) : NULL;

	if (!header || header->cmsg_type != SCM_RIGHTS)
		return error_set(err, -EPROTO, "bench_failed", "a bare server got no userfaultfd");
	memcpy(&served->uffd, CMSG_DATA(header), sizeof served->uffd);
	json_t *regions = json_loadb(text, (size_t)n, 0, NULL);
	served->address =
		(uint64_t)json_integer_value(json_object_get(json_array_get(regions, 0), "base_host_virt_addr"));
	json_decref(regions);
	if (!served->address)
		return error_set(err, -EPROTO, "bench_failed", "a bare server got no address");
	return 0;
}

static int copy(const struct served *served, uint64_t offset, const char *from)
{
	struct uffdio_copy copy = { .dst = served->address + offset, .src = (uintptr_t)from, .len = BENCH_PAGE };

	return ioctl(served->uffd, UFFDIO_COPY, &copy) < 0 ? -errno : 0;
}

static int prefetch(const struct served *served, const struct hotlist *list, struct error *err)
{
	static char page[BENCH_PAGE];

	for (size_t i = 0; i < list->count; i++) {
		uint64_t offset = list->pages[i].offset;

		if (pread(served->image, page, sizeof page, (off_t)offset) != sizeof page ||
		    copy(served, offset, page) < 0)
			return failed("prefetch", err);
	}
	return 0;
}

static void serve_faults(const struct served *served)
{
	struct pollfd poll_fd = { .fd = served->uffd, .events = POLLIN };
	struct uffd_msg msg;

	for (;;) {
		if (poll(&poll_fd, 1, -1) < 0 && errno != EINTR)
			return;
		if (read(served->uffd, &msg, sizeof msg) != sizeof msg)
			continue;
		uint64_t offset = (msg.arg.pagefault.address & ~(BENCH_PAGE - 1)) - served->address;
		if (copy(served, offset, served->bytes + offset) == -ESRCH)
			return;
	}
}

int floor_served_body(const void *data, void *result __attribute__((unused)), struct error *err)
{
	const struct floor_served *floor = data;
	struct served served = { .image = -1 };
	int listening = -1;
	int r = open_image(&served, floor->image_path, err);

	if (r >= 0 && pin_thread(floor->cpu) < 0)
		r = failed("stand on its CPU", err);
	if (r >= 0)
		r = listen_at(floor->socket, &listening, err);
	if (r < 0)
		return r;
	child_say(FLOOR_LISTENS);
	served.connection = accept4(listening, NULL, NULL, SOCK_CLOEXEC);
	if (served.connection < 0)
		return failed("accept", err);
	r = take_over(&served, err);
	if (r >= 0 && floor->list)
		r = prefetch(&served, floor->list, err);
	if (r < 0)
		return r;
	child_say(FLOOR_THERE);
	serve_faults(&served);
	child_hear(GUEST_END);
	return 0;
}
