/*
 * Preloaded into a VMM that can't be changed (QEMU): its private mapping of the memory image becomes memory that the page
 * server supplies, announced with Firecracker's handshake. Where that can't be, the plain mapping stays, and stderr says why.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/cleanup.h"

#define EXPORT __attribute__((visibility("default")))

#define UNNAMED_IMAGE_MIN \
	((size_t)1 << 20)    /* without FAULTLINE_MEMORY: smaller mappings are firmware, not guest memory */
#define SERVER_TIMEOUT_S 10  /* as long as the server itself gives a handshake */
#define HIGH_FD		 960 /* below the usual limit of 1024, above what a VMM counts on */

/* What became of this process's image. Lives as long as the process; everything under the lock. */
static struct guest_memory {
	pthread_mutex_t lock;
	bool decided;	 /* the image has been met: it is supplied by the server, or mapped plainly for good */
	bool by_name;	 /* FAULTLINE_MEMORY said which file it is */
	uintptr_t start; /* of what the server supplies */
	size_t size;	 /* of the same; 0: nothing */
	struct stat image;
	int uffd;   /* never closed: after its last holder's end an absent page reads as zeros */
	int socket; /* never closed: its end tells the server that the VM has ended */
} memory = { .lock = PTHREAD_MUTEX_INITIALIZER, .uffd = -1, .socket = -1 };

/* The arguments of one mmap. */
struct mapping {
	void *address;
	size_t length;
	int protection, flags, fd;
	off_t offset;
};

/* An attempt at being supplied: what it holds so far, and after a failure what a user should know. */
struct attempt {
	int uffd, socket;
	const char *what, *remedy;
};

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	char text[512];

	va_list ap;
	va_start(ap, format);
	vsnprintf(text, sizeof text, format, ap);
	va_end(ap);
	dprintf(STDERR_FILENO, "faultline-preload: %s\n", text);
}

/* System calls themselves: no other library's idea of mmap is wanted, and there is nothing to look up before it is needed. */
static void *map(const struct mapping *m)
{
	return (void *)syscall(SYS_mmap, m->address, m->length, m->protection, m->flags, m->fd, m->offset);
}

static int advise(void *address, size_t length, int advice)
{
	return (int)syscall(SYS_madvise, address, length, advice);
}

static size_t page_size(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
}

static size_t whole_pages(size_t length)
{
	return (length + page_size() - 1) & ~(page_size() - 1);
}

static void attempt_clear(struct attempt *attempt)
{
	cleanup_close(&attempt->uffd);
	cleanup_close(&attempt->socket);
}

static int attempt_failed(struct attempt *attempt, int error, const char *what, const char *remedy)
{
	attempt->what = what;
	attempt->remedy = remedy;
	return -error;
}

/* Out of the way of a VMM that is handed descriptors by number; stays where it is if there is no room. */
static int move_high(int fd)
{
	int high = fcntl(fd, F_DUPFD_CLOEXEC, HIGH_FD);

	if (high < 0)
		return fd;
	close(fd);
	return high;
}

/* One that handles faults in kernel mode too: QEMU reads devices straight into guest memory, KVM faults there. */
static int open_userfaultfd(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd >= 0)
		return fd;

	int error = errno;
	_cleanup_close_ int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (device >= 0)
		fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	return fd >= 0 ? fd : -error;
}

static int attempt_userfaultfd(struct attempt *attempt)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE };

	int fd = open_userfaultfd();
	if (fd == -ENOSYS)
		return attempt_failed(attempt, ENOSYS, "userfaultfd",
				      "This kernel has none (CONFIG_USERFAULTFD), or a sandbox hides it");
	if (fd < 0)
		return attempt_failed(attempt, -fd, "userfaultfd",
				      "Run as root, or with CAP_SYS_PTRACE, or with access to /dev/userfaultfd, or set "
				      "vm.unprivileged_userfaultfd=1; a sandbox may refuse it all the same");
	attempt->uffd = move_high(fd);
	if (ioctl(attempt->uffd, UFFDIO_API, &api) < 0)
		return attempt_failed(attempt, errno, "userfaultfd with removal events",
				      "Linux 4.11 or later is needed");
	return 0;
}

static int attempt_connect(struct attempt *attempt, const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct timeval timeout = { .tv_sec = SERVER_TIMEOUT_S };

	if (strlen(path) >= sizeof address.sun_path)
		return attempt_failed(attempt, ENAMETOOLONG, path, "Use a shorter run directory");
	memcpy(address.sun_path, path, strlen(path));

	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return attempt_failed(attempt, errno, path, "The limit on open files may be too low");
	attempt->socket = move_high(fd);
	setsockopt(attempt->socket, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
	if (connect(attempt->socket, (struct sockaddr *)&address, sizeof address) < 0)
		return attempt_failed(attempt, errno, path,
				      "Run `faultline serve`, make the fork with `faultline fork create`, and see that this "
				      "user may connect");
	return 0;
}

/* One sendmsg: a JSON array with the one region, and the descriptor. */
static int attempt_handshake(struct attempt *attempt, const struct mapping *m)
{
	char text[256];
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = { 0 };

	int length =
		snprintf(text, sizeof text,
			 "[{\"base_host_virt_addr\":%" PRIuPTR ",\"size\":%zu,\"offset\":%" PRIu64
			 ",\"page_size\":%zu,\"page_size_kib\":%zu}]",
			 (uintptr_t)m->address, whole_pages(m->length), (uint64_t)m->offset, page_size(), page_size());
	struct iovec part = { .iov_base = text, .iov_len = (size_t)length };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes
	};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &attempt->uffd, sizeof(int));

	ssize_t sent = sendmsg(attempt->socket, &message, MSG_NOSIGNAL);
	if (sent != length)
		return attempt_failed(attempt, sent < 0 ? errno : EPIPE, "the handshake", "See the server's log");
	return 0;
}

/*
 * Puts registered memory in the mapping's place. It is out of bounds until all is done: nobody, not even mlockall's filling
 * of new mappings, can bring a page in before the server supplies it. A failure is mended by mapping the image over it,
 * which is right at any stage: whatever the server then tries to copy here finds no registered memory.
 */
static int attempt_replace(struct attempt *attempt, const struct mapping *m)
{
	static const char remedy[] = "The kernel's limits on memory or mappings may be too low";
	struct mapping anonymous = *m;
	struct uffdio_register registration = {
		.range = { .start = (uintptr_t)m->address, .len = whole_pages(m->length) },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	anonymous.protection = PROT_NONE;
	anonymous.flags = (m->flags & ~MAP_POPULATE) | MAP_ANONYMOUS;
	anonymous.fd = -1;
	anonymous.offset = 0;
	if (map(&anonymous) == MAP_FAILED)
		return attempt_failed(attempt, errno, "anonymous memory", remedy);
	/* The first fails on a kernel without huge pages, where it has no use. A forked child would not be supplied: it must not look. */
	advise(m->address, m->length, MADV_NOHUGEPAGE);
	if (advise(m->address, m->length, MADV_DONTFORK) < 0)
		return attempt_failed(attempt, errno, "MADV_DONTFORK", remedy);
	if (ioctl(attempt->uffd, UFFDIO_REGISTER, &registration) < 0)
		return attempt_failed(attempt, errno, "UFFDIO_REGISTER", remedy);
	int r = attempt_handshake(attempt, m);
	if (r < 0)
		return r;
	if (mprotect(m->address, m->length, m->protection) < 0)
		return attempt_failed(attempt, errno, "mprotect", remedy);
	return 0;
}

/* Says that the server has hung up: without this, a guest that stands still would be a riddle. */
static void *watch_server(void *unused)
{
	struct pollfd server = { .fd = memory.socket, .events = POLLRDHUP };

	(void)unused;
	while (poll(&server, 1, -1) < 0 && errno == EINTR)
		;
	say("the page server has hung up: it has ended, or it refused this VM (its log says why). Memory that it has not "
	    "supplied will not come, and the guest stands still where it needs it. End this VM");
	return NULL;
}

static void start_watching(void)
{
	pthread_attr_t attributes;
	pthread_t thread;
	sigset_t all, old;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old); /* the VMM's signals are for its own threads */
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	if (pthread_create(&thread, &attributes, watch_server, NULL) != 0)
		say("ignoring that no thread could be started: the server's end will go unsaid");
	pthread_attr_destroy(&attributes);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

/* Called once in a process's life. */
static void *map_supplied(const struct mapping *m, const char *socket_path)
{
	_cleanup_(attempt_clear) struct attempt attempt = { .uffd = -1, .socket = -1 };
	struct statfs filesystem;
	int r;

	if (fstatfs(m->fd, &filesystem) == 0 && filesystem.f_type == HUGETLBFS_MAGIC)
		r = attempt_failed(&attempt, EOPNOTSUPP, "an image on hugetlbfs",
				   "Keep the image on an ordinary file system");
	else
		r = attempt_userfaultfd(&attempt);
	if (r == 0)
		r = attempt_connect(&attempt, socket_path);
	if (r == 0)
		r = attempt_replace(&attempt, m);
	if (r < 0) {
		say("%s: %s. %s. This VM's memory is mapped from the image instead, without the page server",
		    attempt.what, strerror(-r), attempt.remedy);
		return map(m);
	}
	memory.start = (uintptr_t)m->address;
	memory.size = whole_pages(m->length);
	memory.uffd = TAKE_FD(attempt.uffd);
	memory.socket = TAKE_FD(attempt.socket);
	start_watching();
	return m->address;
}

static bool same_file(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* Which file is the image, where FAULTLINE_MEMORY says so. */
static void find_named_image(void)
{
	const char *name = getenv("FAULTLINE_MEMORY");

	if (!name || memory.by_name)
		return;
	if (stat(name, &memory.image) < 0) {
		say("FAULTLINE_MEMORY: %s: %m. No memory will be supplied by the page server", name);
		memory.decided = true;
		return;
	}
	memory.by_name = true;
}

static void *map_image(const struct mapping *m)
{
	LOCK_SCOPE(&memory.lock);
	const char *socket_path = getenv("FAULTLINE_SOCKET");
	bool shared = (m->flags & MAP_TYPE) != MAP_PRIVATE;
	struct stat file;

	if (!socket_path && !memory.decided)
		return map(m);
	if (!memory.decided)
		find_named_image();
	if (fstat(m->fd, &file) < 0 || !S_ISREG(file.st_mode))
		return map(m);
	if (memory.by_name ? !same_file(&file, &memory.image) : shared || m->length < UNNAMED_IMAGE_MIN)
		return map(m);
	if (shared) {
		say("the image is mapped shared: the guest writes into it, and no page server is used; share=off was probably meant");
		return map(m);
	}
	if (memory.decided) {
		if (memory.size)
			say("a second mapping of %zu bytes at offset %" PRIu64
			    " is made plainly: only one is supplied by the "
			    "page server",
			    m->length, (uint64_t)m->offset);
		return map(m);
	}
	memory.decided = true;
	memory.image = file;
	void *result = map_supplied(m, socket_path);
	/* Programs that this one starts inherit its environment, and must not take its place at the socket. */
	unsetenv("FAULTLINE_SOCKET");
	return result;
}

static void *map_or_supply(const struct mapping *m)
{
	bool could_be_image =
		(m->flags & MAP_FIXED) && !(m->flags & MAP_ANONYMOUS) && (m->protection & PROT_WRITE) && m->fd >= 0;

	return could_be_image ? map_image(m) : map(m);
}

/*
 * QEMU gives ballooned memory up by cutting a hole into the image (although others use it too) and then by MADV_DONTNEED. The
 * second alone is right here: the server learns of it, and the pages are zeros from then on.
 */
static bool cuts_into_image(int fd, int mode)
{
	struct stat file;

	if (!(mode & FALLOC_FL_PUNCH_HOLE))
		return false;
	LOCK_SCOPE(&memory.lock);
	return memory.size && fstat(fd, &file) == 0 && same_file(&file, &memory.image);
}

/* Huge pages would be filled around the one page that was asked for, and not from the image. */
static bool wants_huge_pages_here(void *address, size_t length, int advice)
{
	uintptr_t start = (uintptr_t)address;

	if (advice != MADV_HUGEPAGE)
		return false;
	LOCK_SCOPE(&memory.lock);
	return start < memory.start + memory.size && start + length > memory.start;
}

/* The functions that stand in front of the C library's. None calls another: that might be somebody else's. */

EXPORT void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
	return map_or_supply(&(struct mapping){ address, length, protection, flags, fd, offset });
}

EXPORT void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset)
{
	return map_or_supply(&(struct mapping){ address, length, protection, flags, fd, offset });
}

EXPORT int madvise(void *address, size_t length, int advice)
{
	return wants_huge_pages_here(address, length, advice) ? 0 : advise(address, length, advice);
}

EXPORT int fallocate(int fd, int mode, off_t offset, off_t length)
{
	return cuts_into_image(fd, mode) ? 0 : (int)syscall(SYS_fallocate, fd, mode, offset, length);
}

EXPORT int fallocate64(int fd, int mode, off64_t offset, off64_t length)
{
	return cuts_into_image(fd, mode) ? 0 : (int)syscall(SYS_fallocate, fd, mode, offset, length);
}
