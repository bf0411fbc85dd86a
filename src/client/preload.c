/*
 * Preloaded into a VMM that can't be changed (QEMU): its private mapping of the memory image becomes memory that the page
 * server supplies, announced with Firecracker's handshake. Where that can't be, the plain mapping stays, and stderr says why.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "client/handover.h"
#include "client/memory.h"
#include "client/result.h"

#define EXPORT __attribute__((visibility("default")))

#define UNNAMED_IMAGE_MIN \
	((size_t)1 << 20) /* without FAULTLINE_MEMORY: smaller mappings are firmware, not guest memory */
#define HIGH_FD 960	  /* below the usual limit of 1024, above what a VMM counts on */

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

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	char text[1200];

	va_list ap;
	va_start(ap, format);
	vsnprintf(text, sizeof text, format, ap);
	va_end(ap);
	dprintf(STDERR_FILENO, "faultline-preload: %s\n", text);
}

static void *map(const struct mapping *m)
{
	return memory_map(m->address, m->length, m->protection, m->flags, m->fd, m->offset);
}

static size_t whole_pages(size_t length)
{
	return (length + memory_page_size() - 1) & ~(memory_page_size() - 1);
}

/*
 * Puts registered memory in the mapping's place. It is out of bounds until all is done: nobody, not even mlockall's filling
 * of new mappings, can bring a page in before the server supplies it. A failure is mended by mapping the image over it,
 * which is right at any stage: whatever the server then tries to copy here finds no registered memory.
 */
static int replace(struct handover *handover, const struct mapping *m, uint64_t deadline, struct faultline_error *error)
{
	static const char remedy[] = "The kernel's limits on memory or mappings may be too low";
	struct mapping anonymous = *m;
	struct handover_region region = {
		.address = (uintptr_t)m->address,
		.size = whole_pages(m->length),
		.offset = (uint64_t)m->offset,
		.page_size = memory_page_size(),
	};

	anonymous.protection = PROT_NONE;
	anonymous.flags = (m->flags & ~MAP_POPULATE) | MAP_ANONYMOUS;
	anonymous.fd = -1;
	anonymous.offset = 0;
	if (map(&anonymous) == MAP_FAILED)
		return result_set(error, FAULTLINE_NO_RESOURCES, errno, remedy, "No anonymous memory could be mapped");
	int r = handover_register(handover, &region, error);
	if (r == FAULTLINE_OK)
		r = handover_send(handover, &region, 1, false, deadline, error);
	if (r < 0)
		return r;
	if (mprotect(m->address, m->length, m->protection) < 0)
		return result_set(error, FAULTLINE_NO_RESOURCES, errno, remedy, "The memory can't be made accessible");
	return FAULTLINE_OK;
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
	_cleanup_(handover_clear) struct handover handover = { .uffd = -1, .socket = -1, .lowest_fd = HIGH_FD };
	uint64_t deadline = handover_deadline(HANDOVER_TIMEOUT_MS);
	struct faultline_error error;
	struct statfs filesystem;
	int r;

	if (fstatfs(m->fd, &filesystem) == 0 && filesystem.f_type == HUGETLBFS_MAGIC)
		r = result_set(&error, FAULTLINE_BAD_ARGUMENT, 0, "Keep the image on an ordinary file system",
			       "The image is on hugetlbfs");
	else
		r = handover_open(&handover, false, &error);
	if (r == FAULTLINE_OK)
		r = handover_connect(&handover, socket_path, deadline, &error);
	if (r == FAULTLINE_OK)
		r = replace(&handover, m, deadline, &error);
	if (r < 0) {
		say("%s%s%s. This VM's memory is mapped from the image instead, without the page server", error.what,
		    *error.remedy ? ". " : "", error.remedy);
		return map(m);
	}
	memory.start = (uintptr_t)m->address;
	memory.size = whole_pages(m->length);
	memory.uffd = TAKE_FD(handover.uffd);
	memory.socket = TAKE_FD(handover.socket);
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
	return wants_huge_pages_here(address, length, advice) ? 0 : memory_advise(address, length, advice);
}

EXPORT int fallocate(int fd, int mode, off_t offset, off_t length)
{
	return cuts_into_image(fd, mode) ? 0 : (int)syscall(SYS_fallocate, fd, mode, offset, length);
}

EXPORT int fallocate64(int fd, int mode, off64_t offset, off64_t length)
{
	return cuts_into_image(fd, mode) ? 0 : (int)syscall(SYS_fallocate, fd, mode, offset, length);
}
