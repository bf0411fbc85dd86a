#include "client/handover.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "client/memory.h"
#include "client/result.h"

/* One region as text at its longest: five numbers of 20 digits, and their names. */
#define REGION_TEXT_MAX 256

#define RAISE_FD_LIMIT "Raise the limit on open files (ulimit -n)"
#define SEE_SERVER     "The server's log, and `faultline fork show` for this fork, say why"

void handover_clear(struct handover *handover)
{
	cleanup_close(&handover->uffd);
	cleanup_close(&handover->socket);
	handover->uffd = handover->socket = -1;
}

uint64_t handover_deadline(int timeout_ms)
{
	return timeout_ms < 0 ? HANDOVER_NO_DEADLINE : now_ns() + (uint64_t)timeout_ms * NSEC_PER_MSEC;
}

int handover_time_left(uint64_t deadline)
{
	uint64_t now = now_ns();

	if (deadline == HANDOVER_NO_DEADLINE)
		return -1;
	if (deadline <= now)
		return 0;
	uint64_t left = (deadline - now + NSEC_PER_MSEC - 1) / NSEC_PER_MSEC;
	return left > INT_MAX ? INT_MAX : (int)left;
}

/* Out of the way of a process that is handed descriptors by number; stays where it is if there is no room. */
static int move_high(const struct handover *handover, int fd)
{
	int high = handover->lowest_fd ? fcntl(fd, F_DUPFD_CLOEXEC, handover->lowest_fd) : -1;

	if (high < 0)
		return fd;
	close(fd);
	return high;
}

static bool out_of_something(int error)
{
	return error == EMFILE || error == ENFILE || error == ENOMEM || error == ENOBUFS;
}

/* ---- userfaultfd ---- */

/* One that handles faults in kernel mode too: VMMs read devices straight into guest memory, and KVM faults there. fd or negative errno. */
static int open_userfaultfd(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd >= 0)
		return fd;

	int error = errno;
	if (out_of_something(error))
		return -error;
	_cleanup_close_ int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (device >= 0)
		fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	return fd >= 0 ? fd : -error;
}

static int negotiate(int uffd, uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };

	return ioctl(uffd, UFFDIO_API, &api) < 0 ? -errno : 0;
}

int handover_open(struct handover *handover, bool huge, struct faultline_error *error)
{
	uint64_t features = UFFD_FEATURE_EVENT_REMOVE | (huge ? UFFD_FEATURE_MISSING_HUGETLBFS : 0);
	int fd = open_userfaultfd();

	if (fd == -ENOSYS)
		return result_set(error, FAULTLINE_NOT_SUPPORTED, ENOSYS,
				  "This kernel has none (CONFIG_USERFAULTFD), or a sandbox hides it",
				  "There is no userfaultfd");
	if (fd < 0 && out_of_something(-fd))
		return result_set(error, FAULTLINE_NO_RESOURCES, -fd, RAISE_FD_LIMIT, "No userfaultfd could be made");
	if (fd < 0)
		return result_set(error, FAULTLINE_NOT_SUPPORTED, -fd,
				  "Run as root, or with CAP_SYS_PTRACE, or with access to /dev/userfaultfd, or set "
				  "vm.unprivileged_userfaultfd=1; a sandbox may refuse it all the same",
				  "userfaultfd is refused to this process");
	handover->uffd = move_high(handover, fd);

	/* The thread that faulted is told where the kernel can (Linux 4.14): a refusal leaves the descriptor as it was. */
	int r = negotiate(handover->uffd, features | UFFD_FEATURE_THREAD_ID);
	if (r == -EINVAL)
		r = negotiate(handover->uffd, features);
	if (r < 0)
		return result_set(error, FAULTLINE_NOT_SUPPORTED, -r, "Linux 4.11 or later is needed",
				  "This kernel's userfaultfd has no events for removed memory%s",
				  huge ? ", or does not know huge pages" : "");
	return FAULTLINE_OK;
}

/* ---- the connection ---- */

static int set_send_timeout(int fd, uint64_t deadline)
{
	int left = handover_time_left(deadline);
	/* A timeout of zero would be none. */
	struct timeval timeout = { .tv_sec = left / 1000, .tv_usec = left > 0 ? left % 1000 * 1000 : 1 };

	if (left < 0)
		timeout = (struct timeval){ 0 };
	return setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
}

static int connection_failed(const char *path, int error, struct faultline_error *ret)
{
	static const char make_one[] = "Run `faultline serve`, make the fork with `faultline fork create`, and use each "
				       "fork's socket once";

	switch (error) {
	case ENOENT:
	case ENOTDIR:
	case ECONNREFUSED:
	case EPROTOTYPE:
		return result_set(ret, FAULTLINE_NO_SERVER, error, make_one, "No page server listens at %s", path);
	case EACCES:
	case EPERM:
		return result_set(ret, FAULTLINE_NO_PERMISSION, error,
				  "Make the fork with `faultline fork create --uid` for this user, or see that it may "
				  "search the directory",
				  "This user may not connect to %s", path);
	case EAGAIN:
		return result_set(ret, FAULTLINE_TIMED_OUT, 0, "The server is stuck, or too many connect at once",
				  "The page server at %s takes no connections", path);
	default:
		return result_set(ret, FAULTLINE_UNEXPECTED, error, "", "Connecting to %s failed", path);
	}
}

int handover_connect(struct handover *handover, const char *path, uint64_t deadline, struct faultline_error *error)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	size_t length = strlen(path);

	if (length == 0 || length >= sizeof address.sun_path)
		return result_set(error, FAULTLINE_BAD_ARGUMENT, length ? ENAMETOOLONG : EINVAL,
				  "Use a shorter run directory, or `faultline fork create --dir`",
				  "The socket's path has %zu bytes, and 1 to %zu are possible: %.120s", length,
				  sizeof address.sun_path - 1, path);
	memcpy(address.sun_path, path, length);

	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return result_set(error, out_of_something(errno) ? FAULTLINE_NO_RESOURCES : FAULTLINE_UNEXPECTED, errno,
				  RAISE_FD_LIMIT, "No socket could be made");
	handover->socket = move_high(handover, fd);
	do {
		set_send_timeout(handover->socket, deadline);
		if (connect(handover->socket, (struct sockaddr *)&address, sizeof address) == 0)
			return FAULTLINE_OK;
	} while (errno == EINTR && handover_time_left(deadline));
	return connection_failed(path, errno == EINTR ? EAGAIN : errno, error);
}

/* ---- registration ---- */

/* What the kernel takes for the page size there: a copy that can't succeed answers EINVAL where the length is none of whole pages. */
static bool takes_pages_of(int uffd, uintptr_t address, uint64_t page_size)
{
	struct uffdio_copy copy = { .dst = address, .src = 0x1000, .len = page_size };

	return ioctl(uffd, UFFDIO_COPY, &copy) == 0 || errno != EINVAL;
}

int handover_register(const struct handover *handover, const struct handover_region *region,
		      struct faultline_error *error)
{
	void *address = (void *)region->address;
	bool huge = region->page_size > memory_page_size();
	struct uffdio_register registration = {
		.range = { .start = region->address, .len = region->size },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	/* The first fails on a kernel without huge pages, where it has no use. A forked child would not be supplied: it must not look. */
	memory_advise(address, region->size, MADV_NOHUGEPAGE);
	if (memory_advise(address, region->size, MADV_DONTFORK) < 0)
		return result_set(error, FAULTLINE_BAD_ARGUMENT, errno, "Map all of it first",
				  "The memory at %p, %" PRIu64 " bytes, can't be kept from child processes", address,
				  region->size);
	if (ioctl(handover->uffd, UFFDIO_REGISTER, &registration) < 0)
		return result_set(error, FAULTLINE_BAD_ARGUMENT, errno,
				  errno == EBUSY
					  ? "Only one page server can supply it"
					  : "It must be private anonymous memory, or huge pages of the size that was said",
				  "The memory at %p, %" PRIu64 " bytes, can't be registered with userfaultfd", address,
				  region->size);

	/* Only memory of hugetlbfs can't be given zero pages. */
	if (huge == !!(registration.ioctls & (1ull << _UFFDIO_ZEROPAGE)) ||
	    (huge && !takes_pages_of(handover->uffd, region->address, region->page_size)))
		return result_set(error, FAULTLINE_BAD_ARGUMENT, 0, "Say the page size that the memory has",
				  "The memory at %p does not have pages of %" PRIu64 " bytes", address,
				  region->page_size);
	return FAULTLINE_OK;
}

/* ---- the handshake ---- */

/* The text, which the caller frees; NULL: out of memory. */
static char *describe(const struct handover_region *regions, size_t count, bool answers, size_t *ret_length)
{
	size_t room = count * REGION_TEXT_MAX + 32, length = 0;
	char *text = malloc(room);

	for (size_t i = 0; text && i < count; i++) {
		const struct handover_region *r = &regions[i];

		length += (size_t)snprintf(text + length, room - length,
					   "%s{\"base_host_virt_addr\":%" PRIuPTR ",\"size\":%" PRIu64
					   ",\"offset\":%" PRIu64 ",\"page_size\":%" PRIu64
					   ",\"page_size_kib\":%" PRIu64 "%s}%s",
					   i ? "," : "[", r->address, r->size, r->offset, r->page_size, r->page_size,
					   answers && i == 0 ? ",\"answers\":true" : "", i + 1 == count ? "]" : "");
	}
	*ret_length = length;
	return text;
}

/* Like sendmsg, with one descriptor. */
static ssize_t send_with(int socket, char *text, size_t length, int fd)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct iovec part = { .iov_base = text, .iov_len = length };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes
	};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &fd, sizeof fd);
	return sendmsg(socket, &message, MSG_NOSIGNAL);
}

static int send_failed(int error, struct faultline_error *ret)
{
	if (error == EAGAIN)
		return result_set(ret, FAULTLINE_TIMED_OUT, 0, "The server is stuck: see its log",
				  "The page server did not read the handshake in time");
	if (error == EPIPE || error == ECONNRESET || error == ENOTCONN)
		return result_set(ret, FAULTLINE_SERVER_GONE, error, SEE_SERVER,
				  "The page server hung up before it had read the handshake");
	/* ETOOMANYREFS: too many descriptors are on their way to servers that don't read. */
	return result_set(ret,
			  out_of_something(error) || error == ETOOMANYREFS ? FAULTLINE_NO_RESOURCES
									   : FAULTLINE_UNEXPECTED,
			  error, RAISE_FD_LIMIT, "Sending the handshake failed");
}

int handover_send(const struct handover *handover, const struct handover_region *regions, size_t count, bool answers,
		  uint64_t deadline, struct faultline_error *error)
{
	size_t length, sent = 0;
	_cleanup_free_ char *text = describe(regions, count, answers, &length);

	if (!text)
		return result_set(error, FAULTLINE_NO_RESOURCES, ENOMEM, OUT_OF_MEMORY, "No handshake could be made");
	/* One message mostly. A signal may cut it short; the descriptor goes with the first byte. */
	while (sent < length) {
		set_send_timeout(handover->socket, deadline);
		ssize_t n = sent ? send(handover->socket, text + sent, length - sent, MSG_NOSIGNAL)
				 : send_with(handover->socket, text, length, handover->uffd);
		if (n < 0 && errno == EINTR && handover_time_left(deadline))
			continue;
		if (n < 0)
			return send_failed(errno == EINTR ? EAGAIN : errno, error);
		sent += (size_t)n;
	}
	return FAULTLINE_OK;
}
