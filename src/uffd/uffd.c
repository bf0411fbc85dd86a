#include "uffd/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/cleanup.h"

#define SMALL_PAGE 4096

/*
 * The kernel reports twice: by errno, and in the structure, as bytes done or a negative errno. With some bytes done it always
 * says EAGAIN, whether it met a present page or a map that was changing; one more call on the rest tells which.
 */
static struct uffd_result classify(int ret, int error, int64_t done)
{
	struct uffd_result result = { .outcome = UFFD_DONE };

	if (done > 0)
		result.done = (size_t)done;
	if (ret == 0)
		return result;
	result.error = -error;

	switch (error) {
	case EAGAIN:
		result.outcome = UFFD_CHANGING;
		break;
	case EEXIST:
		result.outcome = UFFD_PRESENT;
		break;
	case ENOENT:
		result.outcome = UFFD_UNMAPPED;
		break;
	case ESRCH:
		result.outcome = UFFD_GONE;
		break;
	case ENOMEM:
	case ENOSPC: /* hugetlbfs: the pool has no reservation left */
		result.outcome = UFFD_NO_MEMORY;
		break;
	case EFAULT:
		result.outcome = UFFD_BAD_SOURCE;
		break;
	default:
		result.outcome = UFFD_REFUSED;
	}
	return result;
}

struct uffd_result uffd_copy(int fd, uint64_t address, const void *source, size_t length, bool wake)
{
	struct uffdio_copy copy = {
		.dst = address,
		.src = (uintptr_t)source,
		.len = length,
		.mode = wake ? 0 : UFFDIO_COPY_MODE_DONTWAKE,
	};
	int ret = ioctl(fd, UFFDIO_COPY, &copy);

	return classify(ret, errno, copy.copy);
}

struct uffd_result uffd_zero(int fd, uint64_t address, size_t length, bool wake)
{
	struct uffdio_zeropage zero = {
		.range = { .start = address, .len = length },
		.mode = wake ? 0 : UFFDIO_ZEROPAGE_MODE_DONTWAKE,
	};
	int ret = ioctl(fd, UFFDIO_ZEROPAGE, &zero);

	return classify(ret, errno, zero.zeropage);
}

struct uffd_result uffd_poison(int fd, uint64_t address, size_t length)
{
	struct uffdio_poison poison = { .range = { .start = address, .len = length } };
	int ret = ioctl(fd, UFFDIO_POISON, &poison);

	return classify(ret, errno, poison.updated);
}

int uffd_wake(int fd, uint64_t address, size_t length)
{
	struct uffdio_range range = { .start = address, .len = length };

	return ioctl(fd, UFFDIO_WAKE, &range) < 0 ? -errno : 0;
}

int uffd_read(int fd, struct uffd_msg *messages, size_t count)
{
	static _Atomic bool refused; /* Linux before 6.10 knows no RWF_NOWAIT here */
	struct iovec iov = { .iov_base = messages, .iov_len = count * sizeof *messages };
	ssize_t n = -1;

	errno = EOPNOTSUPP;
	if (!atomic_load_explicit(&refused, memory_order_relaxed))
		n = preadv2(fd, &iov, 1, -1, RWF_NOWAIT);
	if (n < 0 && errno == EOPNOTSUPP) {
		atomic_store_explicit(&refused, true, memory_order_relaxed);
		n = read(fd, messages, iov.iov_len);
	}
	return n < 0 ? -errno : (int)((size_t)n / sizeof *messages);
}

bool uffd_is_userfaultfd(int fd)
{
	char path[64], target[64];

	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	ssize_t n = readlink(path, target, sizeof target - 1);
	if (n < 0)
		return false;
	target[n] = '\0';
	return strcmp(target, "anon_inode:[userfaultfd]") == 0;
}

int uffd_open(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd >= 0)
		return fd;
	int error = errno;

	_cleanup_close_ int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (device < 0)
		return -error;
	fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	return fd < 0 ? -errno : fd;
}

int uffd_open_user_mode(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);

	return fd < 0 ? -errno : fd;
}

int uffd_probe_features(uint64_t *ret_features, struct error *err)
{
	_cleanup_close_ int fd = uffd_open();
	if (fd == -EPERM)
		fd = uffd_open_user_mode();
	if (fd == -ENOSYS)
		return error_set(err, fd, "no_userfaultfd",
				 "this kernel has no userfaultfd: it needs CONFIG_USERFAULTFD=y");
	if (fd < 0)
		return error_set(err, fd, "no_userfaultfd",
				 "userfaultfd is refused (%s): run as root, with CAP_SYS_PTRACE, with access to "
				 "/dev/userfaultfd, or with sysctl vm.unprivileged_userfaultfd=1",
				 strerror(-fd));

	struct uffdio_api api = { .api = UFFD_API };
	if (ioctl(fd, UFFDIO_API, &api) < 0)
		return error_set(err, -errno, "no_userfaultfd", "UFFDIO_API failed: %s", strerror(errno));
	*ret_features = api.features;
	return 0;
}

int uffd_negotiate(int fd, uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };

	if (ioctl(fd, UFFDIO_API, &api) == 0)
		return 1;
	return errno == EINVAL ? 0 : -errno;
}

int uffd_negotiated_features(int fd, uint64_t *ret_features)
{
	char path[64], line[256];
	uint64_t features;

	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	if (!f)
		return -errno;
	while (fgets(line, sizeof line, f))
		if (sscanf(line, "API: %*x:%" SCNx64, &features) == 1) {
			/* The kernel keeps a mark of its own in the top bit. */
			*ret_features = features & ~(1ull << 31);
			return 0;
		}
	return -ENODATA;
}

int uffd_register_missing(int fd, uint64_t address, uint64_t length)
{
	struct uffdio_register reg = {
		.range = { .start = address, .len = length },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	return ioctl(fd, UFFDIO_REGISTER, &reg) < 0 ? -errno : 0;
}

/*
 * A copy from an address that nobody can map: unregistered memory says ENOENT before the source is read, registered
 * memory says EFAULT, or EEXIST where the page is there; EINVAL where LENGTH is less than its page.
 */
static struct uffd_result probe(int fd, uint64_t address, uint64_t length)
{
	return uffd_copy(fd, address, (const void *)(uintptr_t)0x1000, length, true);
}

int uffd_is_registered(int fd, uint64_t address, uint64_t page_size)
{
	struct uffd_result r = probe(fd, address, page_size);

	switch (r.outcome) {
	case UFFD_UNMAPPED:
		return 0;
	case UFFD_BAD_SOURCE:
	case UFFD_PRESENT:
	case UFFD_CHANGING:
	case UFFD_NO_MEMORY: /* the pool of huge pages is empty, which matters only to memory that is registered */
		return 1;
	default:
		return r.error ?: -EINVAL;
	}
}

/* A sure answer for one page; 1 where there is nothing to say about. */
static int is_page_size(int fd, uint64_t address, uint64_t page_size)
{
	struct uffd_result r = probe(fd, address, SMALL_PAGE);
	bool larger = r.error == -EINVAL;

	switch (r.outcome) {
	case UFFD_UNMAPPED:
	case UFFD_CHANGING:
		return 1;
	case UFFD_GONE:
		return r.error;
	default:
		return larger == (page_size > SMALL_PAGE);
	}
}

int uffd_has_page_size(int fd, uint64_t address, uint64_t length, uint64_t page_size)
{
	/* Huge pages are probed with too short a length, which takes none from their pool: some 200 µs for each GiB. */
	uint64_t step = page_size > SMALL_PAGE ? page_size : (length / 2 & ~(page_size - 1)) ?: page_size;

	for (uint64_t at = 0; at < length; at += step) {
		int r = is_page_size(fd, address + at, page_size);
		if (r <= 0)
			return r;
	}
	if (page_size == SMALL_PAGE)
		return is_page_size(fd, address + length - page_size, page_size);

	/* Larger ones still, of 1 GiB, refuse its length as well. */
	struct uffd_result r = probe(fd, address, page_size);
	return r.error != -EINVAL;
}
