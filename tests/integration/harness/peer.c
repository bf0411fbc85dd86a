#include "integration/harness/peer.h"

#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/cleanup.h"
#include "integration/harness/check.h"

#define FDS_MAX 8

int peer_connect(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	if (strlen(path) >= sizeof address.sun_path)
		return -ENAMETOOLONG;
	strcpy(address.sun_path, path);
	if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
		return -errno;
	return TAKE_FD(fd);
}

static int send_piece(int conn, const char *data, size_t size, const int *fds, unsigned fd_count)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(FDS_MAX * sizeof(int))];
	} control = { 0 };
	struct iovec iov = { .iov_base = (char *)data, .iov_len = size };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (fd_count > FDS_MAX)
		return -E2BIG;
	if (fd_count) {
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
		struct cmsghdr *c = CMSG_FIRSTHDR(&message);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
		memcpy(CMSG_DATA(c), fds, fd_count * sizeof(int));
	}
	while (size) {
		ssize_t n = sendmsg(conn, &message, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		iov.iov_base = (char *)iov.iov_base + n;
		iov.iov_len -= (size_t)n;
		size -= (size_t)n;
		message.msg_control = NULL;
		message.msg_controllen = 0;
	}
	return 0;
}

/* The socket counts what the peer has not taken yet: the only way to know that it has seen a piece on its own. */
static int await_read(int conn, uint64_t deadline)
{
	int unread;

	while (ioctl(conn, SIOCOUTQ, &unread) == 0 && unread > 0) {
		struct pollfd p = { .fd = conn, .events = POLLRDHUP };

		if (poll(&p, 1, 0) > 0)
			return -EPIPE;
		if (!deadline_ms(deadline))
			return -ETIMEDOUT;
	}
	return 0;
}

int peer_send(int conn, const void *data, size_t size, const int *fds, unsigned fd_count, size_t chunk)
{
	uint64_t deadline = deadline_in(WAIT_S);
	const char *at = data;

	if (!chunk)
		return send_piece(conn, data, size, fds, fd_count);
	for (size_t done = 0; done < size; done += chunk) {
		size_t length = size - done < chunk ? size - done : chunk;
		int r = send_piece(conn, at + done, length, fds, done ? 0 : fd_count);

		if (r == 0)
			r = await_read(conn, deadline);
		if (r < 0)
			return r;
	}
	return 0;
}

bool peer_await_closed(int conn, uint64_t deadline)
{
	for (;;) {
		struct pollfd p = { .fd = conn, .events = POLLIN | POLLRDHUP };
		char sink[256];
		int n = poll(&p, 1, deadline_ms(deadline));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		/* A server may answer before it hangs up. */
		if (recv(conn, sink, sizeof sink, MSG_DONTWAIT) <= 0 && errno != EAGAIN)
			return true;
		if (p.revents & (POLLRDHUP | POLLHUP | POLLERR))
			return true;
	}
}
