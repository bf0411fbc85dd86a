#include "replay/connect.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/cleanup.h"
#include "replay/trace.h"
#include "uffd/uffd.h"

static int make_uffd(void *base, uint64_t size, int *ret, struct error *err)
{
	_cleanup_close_ int fd = uffd_open();
	int r = fd;

	if (r >= 0)
		r = uffd_negotiate(fd, UFFD_FEATURE_EVENT_REMOVE);
	if (r >= 0)
		r = uffd_register_missing(fd, (uintptr_t)base, size);
	if (r < 0)
		return error_set(err, r, "guest_failed",
				 "userfaultfd can't be had for the guest's memory (%s): run as root, or see 'faultline doctor'",
				 strerror(-r));
	*ret = TAKE_FD(fd);
	return 0;
}

static int open_connection(const char *path, int *ret, struct error *err)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof address.sun_path)
		return error_set(err, -ENAMETOOLONG, "guest_failed", "the socket's path %s is too long", path);
	memcpy(address.sun_path, path, strlen(path));
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
		return error_set(err, -errno, "guest_failed", "no page server takes a connection at %s: %s", path,
				 strerror(errno));
	*ret = TAKE_FD(fd);
	return 0;
}

static int send_handshake(int connection, const char *text, int uffd)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	struct iovec iov = { .iov_base = (void *)text, .iov_len = strlen(text) };
	struct msghdr message = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof control.bytes,
	};
	struct cmsghdr *c = CMSG_FIRSTHDR(&message);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &uffd, sizeof uffd);
	ssize_t n = sendmsg(connection, &message, MSG_NOSIGNAL);
	if (n < 0)
		return -errno;
	return (size_t)n == iov.iov_len ? 0 : -EPIPE;
}

int connect_memory(const char *socket, void *base, uint64_t size, int *ret_connection, struct error *err)
{
	_cleanup_close_ int uffd = -1, connection = -1;
	char text[256];
	int r = make_uffd(base, size, &uffd, err);

	if (r >= 0)
		r = open_connection(socket, &connection, err);
	if (r < 0)
		return r;
	snprintf(text, sizeof text,
		 "[{\"base_host_virt_addr\":%" PRIuPTR ",\"size\":%" PRIu64 ",\"offset\":0,\"page_size\":%" PRIu64
		 ",\"page_size_kib\":%" PRIu64 "}]",
		 (uintptr_t)base, size, TRACE_PAGE, TRACE_PAGE);
	r = send_handshake(connection, text, uffd);
	if (r < 0)
		return error_set(err, r, "server_gone",
				 "the page server at %s hung up during the handshake: see its log", socket);
	TAKE_FD(uffd);
	*ret_connection = TAKE_FD(connection);
	return 0;
}
