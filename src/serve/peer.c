/* Connections on their way through the handshake. A slow or silent one costs a few bytes and never the loop's time. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "serve/internal.h"
#include "serve/vmm_talk.h"

/* One recvmsg. Larger than any handshake seen in the field. */
#define RECEIVE_BYTES 65536

/* More descriptors than this in one message are cut off by the kernel, which tells us so. */
#define RECEIVE_FDS 16

static void refuse(struct server *server, struct peer *peer, const struct error *err)
{
	char object[80];

	snprintf(object, sizeof object, "fork %s", peer->fork->id);
	log_warning(object, "refused a peer (pid %d, uid %u): %s", (int)peer->pid, peer->uid, err->message);
	fork_set_error(peer->fork, err->message);
	vmm_talk_refused(peer, err);
	peer_close(server, peer);
}

/* Its descriptors are closed or handed on; the batch of events may still name it. */
static void retire(struct server *server, struct peer *peer)
{
	struct fork *fork = peer->fork;

	for (struct peer **p = &fork->peers; *p; p = &(*p)->next)
		if (*p == peer) {
			*p = peer->next;
			fork->peer_count--;
			break;
		}
	peer->next = server->dead_peers;
	server->dead_peers = peer;
}

void peer_close(struct server *server, struct peer *peer)
{
	server_unwatch(server, peer->fd);
	close(TAKE_FD(peer->fd));
	if (peer->uffd >= 0)
		close(TAKE_FD(peer->uffd));
	retire(server, peer);
}

static void peer_new(struct server *server, struct fork *fork, int fd, const struct ucred *cred)
{
	struct peer *peer = calloc(1, sizeof *peer);

	if (!peer || fork->peer_count >= PEERS_PER_FORK_MAX) {
		log_warning(NULL, "fork %s: refused a peer (pid %d): %s", fork->id, (int)cred->pid,
			    peer ? "too many others are in the middle of a handshake" : "out of memory");
		free(peer);
		close(fd);
		return;
	}
	*peer = (struct peer){ .fork = fork,
			       .fd = fd,
			       .uffd = -1,
			       .pid = cred->pid,
			       .uid = cred->uid,
			       .deadline_ns = now_ns() + HANDSHAKE_TIMEOUT_NS,
			       .next = fork->peers };
	fork->peers = peer;
	fork->peer_count++;
	if (server_watch(server, fd, &peer->watch, WATCH_PEER, peer) < 0)
		peer_close(server, peer);
	else
		peer_readable(server, peer); /* mostly all of it is there */
}

/* No descriptor is left to accept with: without this the listener would keep the loop spinning. */
static void turn_away(struct server *server, struct fork *fork)
{
	log_error(NULL,
		  "fork %s: out of file descriptors: a VMM was turned away; raise the limit (LimitNOFILE=, ulimit -n)",
		  fork->id);
	fork_set_error(fork, "the server was out of file descriptors: raise its limit (LimitNOFILE=, ulimit -n)");
	cleanup_close(&server->spare_fd);
	int fd = accept4(fork->listener_fd, NULL, NULL, SOCK_CLOEXEC);
	if (fd >= 0)
		close(fd);
	server->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

void fork_accept(struct server *server, struct fork *fork)
{
	struct ucred cred = { 0 };
	socklen_t length = sizeof cred;

	int fd = accept4(fork->listener_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0) {
		if (errno == EMFILE || errno == ENFILE)
			turn_away(server, fork);
		return;
	}
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &length) < 0) {
		close(fd);
		return;
	}
	if (cred.uid != 0 && cred.uid != geteuid() && cred.uid != fork->uid) {
		char message[160];
		snprintf(message, sizeof message,
			 "user %u is not the one that this fork is for: name it with 'fork create --uid %u'", cred.uid,
			 cred.uid);
		log_warning(NULL, "fork %s: refused a peer (pid %d): %s", fork->id, (int)cred.pid, message);
		fork_set_error(fork, message);
		close(fd);
		return;
	}
	peer_new(server, fork, fd, &cred);
}

static void take_descriptors(struct peer *peer, struct msghdr *msg)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
			if (peer->uffd < 0) {
				peer->uffd = fd;
			} else {
				close(fd);
				peer->surplus++;
			}
		}
	}
	if (msg->msg_flags & MSG_CTRUNC)
		peer->surplus++;
}

static int make_room(struct peer *peer, struct error *err)
{
	if (peer->size + RECEIVE_BYTES <= peer->capacity)
		return 0;
	size_t capacity = peer->capacity ? 2 * peer->capacity : RECEIVE_BYTES;
	char *text = realloc(peer->text, capacity);
	if (!text)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	peer->text = text;
	peer->capacity = capacity;
	return 0;
}

/* 1: complete, 0: more is to come, negative errno: not a handshake. */
static int receive(struct peer *peer, struct error *err)
{
	char control[CMSG_SPACE(RECEIVE_FDS * sizeof(int))];

	for (;;) {
		int r = make_room(peer, err);
		if (r < 0)
			return r;
		struct iovec iov = { .iov_base = peer->text + peer->size, .iov_len = RECEIVE_BYTES };
		struct msghdr msg = {
			.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control
		};
		ssize_t n = recvmsg(peer->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return 0;
		if (n < 0)
			return error_set(err, -errno, "bad_handshake", "the connection broke: %s", strerror(errno));
		take_descriptors(peer, &msg);
		if (n == 0)
			return error_set(err, -EBADMSG, "bad_handshake",
					 "the peer closed its connection before its handshake was complete, after %zu bytes",
					 peer->size);
		enum handshake_progress progress = handshake_scan(&peer->scan, iov.iov_base, (size_t)n);
		peer->size += (size_t)n;
		if (peer->size > HANDSHAKE_MAX_BYTES)
			return error_set(err, -EMSGSIZE, "bad_handshake", "the handshake is longer than %u bytes",
					 HANDSHAKE_MAX_BYTES);
		if (progress == HANDSHAKE_COMPLETE)
			return 1;
		if (progress == HANDSHAKE_MALFORMED)
			return error_set(err, -EBADMSG, "bad_handshake",
					 "the handshake is not one JSON array or object, and nothing after it");
	}
}

void peer_readable(struct server *server, struct peer *peer)
{
	struct fork *fork = peer->fork;
	struct error err;

	int r = receive(peer, &err);
	if (r == 0)
		return;
	if (r > 0)
		r = fork_start_session(server, fork, peer, &err);
	if (r < 0) {
		refuse(server, peer, &err);
		return;
	}

	/* The connection is the fork's now: its end is the VMM's end. */
	server_unwatch(server, peer->fd);
	fork->socket_fd = TAKE_FD(peer->fd);
	fork->answers = peer->answers;
	retire(server, peer);
	fork_connected(server, fork);
	vmm_talk_connected(fork);
}

void server_expire_peers(struct server *server, uint64_t now)
{
	for (struct fork *fork = server->forks; fork; fork = fork->next)
		for (struct peer *peer = fork->peers, *next; peer; peer = next) {
			struct error err;

			next = peer->next;
			if (peer->deadline_ns > now)
				continue;
			error_set(&err, -ETIMEDOUT, "handshake_timeout",
				  "its handshake was not complete %llu s after it had connected (%zu bytes came)",
				  (unsigned long long)(HANDSHAKE_TIMEOUT_NS / NSEC_PER_SEC), peer->size);
			refuse(server, peer, &err);
		}
}

uint64_t server_next_deadline(const struct server *server)
{
	uint64_t first = 0;

	for (const struct fork *fork = server->forks; fork; fork = fork->next)
		for (const struct peer *peer = fork->peers; peer; peer = peer->next)
			if (first == 0 || peer->deadline_ns < first)
				first = peer->deadline_ns;
	return first;
}
