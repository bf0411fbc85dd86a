#include "doctor/trial.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "uffd/uffd.h"

/* A fault takes microseconds; this only ends the wait for one that never comes. */
#define FAULT_TIMEOUT_MS 2000

int trial_open(uint64_t features, bool *ret_user_mode)
{
	bool user_mode = false;
	int refusal = uffd_open();
	_cleanup_close_ int fd = refusal;

	if (fd < 0) {
		fd = uffd_open_user_mode();
		user_mode = true;
	}
	if (fd < 0)
		return refusal;
	int r = uffd_negotiate(fd, features);
	if (r <= 0)
		return r < 0 ? r : -EINVAL;
	if (ret_user_mode)
		*ret_user_mode = user_mode;
	return TAKE_FD(fd);
}

struct server {
	int uffd, done;
	char *memory;
	size_t size, page_size;
	const char *content;
	unsigned messages;
};

struct worker {
	int (*function)(void *);
	void *data;
	int result, done;
};

static void *worker_main(void *data)
{
	struct worker *worker = data;

	worker->result = worker->function(worker->data);
	eventfd_write(worker->done, 1);
	return NULL;
}

static int serve_one(struct server *server)
{
	struct uffd_msg message;
	ssize_t n = read(server->uffd, &message, sizeof message);

	if (n < 0)
		return errno == EAGAIN ? 0 : -errno;
	server->messages++;
	if (message.event != UFFD_EVENT_PAGEFAULT)
		return 0;
	uint64_t offset = message.arg.pagefault.address - (uintptr_t)server->memory;
	if (offset >= server->size)
		return -ERANGE;
	offset -= offset % server->page_size;
	struct uffd_result copied = uffd_copy(server->uffd, (uintptr_t)server->memory + offset,
					      server->content + offset, server->page_size, true);
	if (copied.outcome == UFFD_PRESENT) /* two threads of the kernel's wanted it */
		return uffd_wake(server->uffd, (uintptr_t)server->memory + offset, server->page_size);
	if (copied.outcome != UFFD_DONE)
		return copied.error;
	return 0;
}

/* Until the worker is done. */
static int serve_faults(struct server *server)
{
	uint64_t end = now_ns() + FAULT_TIMEOUT_MS * NSEC_PER_MSEC;

	for (;;) {
		struct pollfd fds[] = { { .fd = server->uffd, .events = POLLIN },
					{ .fd = server->done, .events = POLLIN } };
		uint64_t now = now_ns();
		int n = now < end ? poll(fds, 2, (int)((end - now) / NSEC_PER_MSEC) + 1) : 0;

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n == 0)
			return -ETIMEDOUT;
		if (n > 0 && fds[1].revents)
			return 0;
		int r = n > 0 && fds[0].revents ? serve_one(server) : 0;
		if (r < 0)
			return r;
	}
}

static int serve_pages(struct server *server, struct worker *worker)
{
	pthread_t thread;
	int r = pthread_create(&thread, NULL, worker_main, worker);

	if (r != 0)
		return -r;
	r = serve_faults(server);
	if (r < 0) {
		/* Whoever still waits goes on with a zero page. */
		struct uffdio_range range = { .start = (uintptr_t)server->memory, .len = server->size };
		ioctl(server->uffd, UFFDIO_UNREGISTER, &range);
	}
	int joined = pthread_join(thread, NULL);
	return r < 0 ? r : joined != 0 ? -joined : worker->result;
}

static int serve(int uffd, void *memory, size_t size, size_t page_size, const void *content, int (*function)(void *),
		 void *data, unsigned *ret_messages)
{
	_cleanup_close_ int done = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct worker worker = { .function = function, .data = data, .done = done };
	struct server server = {
		.uffd = uffd, .done = done, .memory = memory, .size = size, .page_size = page_size, .content = content
	};

	int r = done < 0 ? -errno : serve_pages(&server, &worker);
	*ret_messages = server.messages;
	return r;
}

int trial_serve(int uffd, void *memory, size_t size, const void *content, int (*function)(void *), void *data,
		unsigned *ret_messages)
{
	return serve(uffd, memory, size, (size_t)sysconf(_SC_PAGESIZE), content, function, data, ret_messages);
}

/* ---- touching a page ---- */

struct touched {
	const void *memory;
	void *seen;
	size_t size;
	enum trial_touch touch;
};

/* A write to a file makes the kernel read the memory. */
static int read_by_kernel(struct touched *touched)
{
	_cleanup_close_ int file = memfd_create("faultline-doctor", MFD_CLOEXEC);

	if (file < 0)
		return -errno;
	ssize_t n = write(file, touched->memory, touched->size);
	if (n < 0)
		return -errno;
	if ((size_t)n != touched->size || pread(file, touched->seen, touched->size, 0) != n)
		return -EFAULT;
	return 0;
}

static int touch(void *data)
{
	struct touched *touched = data;

	if (touched->touch == TRIAL_SYSCALL)
		return read_by_kernel(touched);
	memcpy(touched->seen, touched->memory, touched->size);
	return 0;
}

int trial_fault(int uffd, void *memory, size_t size, const void *content, enum trial_touch how)
{
	_cleanup_free_ void *seen = calloc(1, size);
	struct touched touched = { .memory = memory, .seen = seen, .size = size, .touch = how };
	unsigned messages;

	if (!seen)
		return -ENOMEM;
	int r = serve(uffd, memory, size, size, content, touch, &touched, &messages);
	if (r < 0)
		return r;
	if (messages == 0)
		return -ETIMEDOUT;
	return memcmp(seen, content, size) == 0 ? 0 : -EILSEQ;
}

int trial_anonymous(uint64_t features, enum trial_touch how)
{
	size_t size = (size_t)sysconf(_SC_PAGESIZE);
	_cleanup_free_ char *content = malloc(size);
	_cleanup_close_ int fd = trial_open(features, NULL);

	if (fd < 0)
		return fd;
	if (!content)
		return -ENOMEM;
	for (size_t i = 0; i < size; i++)
		content[i] = (char)(i * 31 + 7);
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return -errno;
	int r = uffd_register_missing(fd, (uintptr_t)memory, size);
	if (r == 0)
		r = trial_fault(fd, memory, size, content, how);
	munmap(memory, size);
	return r;
}
