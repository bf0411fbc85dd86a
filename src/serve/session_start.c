/* From a complete handshake to a fork that is served: who the peer is, what its userfaultfd is, where its memory lies. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"
#include "serve/internal.h"

#ifndef SO_PEERPIDFD /* Linux 6.5 */
#define SO_PEERPIDFD 77
#endif

/* Before Linux 6.5 the pid may have been used again between connect and here; an ended peer's stream has ended too, though. */
static int open_process(const struct peer *peer, struct error *err)
{
	int pidfd = -1;
	socklen_t length = sizeof pidfd;

	if (getsockopt(peer->fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &length) == 0)
		return pidfd;
	if (peer->pid <= 0)
		return error_set(err, -ESRCH, "bad_peer",
				 "the VMM's process is not visible from the server's PID namespace, so it could not be stopped "
				 "if its pages became unreadable: run the server in the namespace around it");
	pidfd = (int)syscall(SYS_pidfd_open, peer->pid, 0);
	if (pidfd < 0)
		return error_set(err, -errno, "bad_peer", "cannot get hold of the VMM's process %d: %s", (int)peer->pid,
				 strerror(errno));
	return pidfd;
}

/*
 * Whether the VMM may be moving or unmapping memory at this moment: then the address that it said is not the one any more, and an event,
 * which it waits for us to read, will say so. The event comes a little after the memory has gone from its old place.
 */
static bool events_wait(int uffd)
{
	struct pollfd poll_fd = { .fd = uffd, .events = POLLIN };

	return poll(&poll_fd, 1, 1) > 0 && (poll_fd.revents & POLLIN);
}

/* A mapping of other pages than the peer says can't be served: a page would be supplied in part, or over its neighbours. */
static int check_page_size(int uffd, const struct region *region, size_t index, struct error *err)
{
	int r = uffd_has_page_size(uffd, region->address, region->size, region->page_size);

	if (r == 0)
		return error_set(err, -EINVAL, "bad_region",
				 "region %zu: the memory at 0x%" PRIx64 " does not have pages of %" PRIu64
				 " bytes, as the handshake says: page_size must be that of its mapping, 2097152 on hugetlbfs with pages "
				 "of 2 MiB, %ld elsewhere",
				 index, region->address, region->page_size, sysconf(_SC_PAGESIZE));
	return r < 0 ? error_set(err, r, "bad_peer", "the userfaultfd can't be used: %s", strerror(-r)) : 0;
}

/* The peer's registration, completed where it has left that to us: hypeman does, Firecracker does not. */
static int register_region(int uffd, bool negotiated_now, const struct region *region, size_t index, struct error *err)
{
	if (!negotiated_now) {
		int registered = uffd_is_registered(uffd, region->address, region->page_size);
		if (registered > 0 || (registered == 0 && events_wait(uffd)))
			return 0;
		if (registered == -ESRCH)
			return error_set(err, -ESRCH, "bad_peer",
					 "the process whose memory the userfaultfd is for has ended");
	}
	int r = uffd_register_missing(uffd, region->address, region->size);
	if (r < 0)
		return error_set(err, r, "bad_region",
				 "region %zu: no memory that userfaultfd can serve is mapped at 0x%" PRIx64
				 ", size 0x%" PRIx64 ", page size %" PRIu64 ": %s",
				 index, region->address, region->size, region->page_size, strerror(-r));
	return 0;
}

static int register_regions(int uffd, bool negotiated_now, const struct region *regions, size_t count, struct error *err)
{
	for (size_t i = 0; i < count; i++) {
		int r = register_region(uffd, negotiated_now, &regions[i], i, err);
		if (r == 0)
			r = check_page_size(uffd, &regions[i], i, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int take_uffd(const struct server *server, struct peer *peer, bool *ret_negotiated, struct error *err)
{
	if (peer->uffd < 0)
		return error_set(err, -EBADMSG, "bad_handshake",
				 "no userfaultfd came with the handshake: send it as SCM_RIGHTS with the first byte");
	if (peer->surplus > 0)
		return error_set(err, -EBADMSG, "bad_handshake",
				 "%d file descriptors came with the handshake instead of one", peer->surplus + 1);
	if (!uffd_is_userfaultfd(peer->uffd))
		return error_set(err, -EBADMSG, "bad_handshake",
				 "the file descriptor that came with the handshake is not a userfaultfd");

	/* poll() on a blocking userfaultfd says nothing but POLLERR. */
	int flags = fcntl(peer->uffd, F_GETFL);
	if (flags < 0 || fcntl(peer->uffd, F_SETFL, flags | O_NONBLOCK) < 0)
		return error_set(err, -errno, "bad_handshake", "cannot make the userfaultfd non-blocking: %s",
				 strerror(errno));

	int r = uffd_negotiate(peer->uffd, UFFD_FEATURE_EVENT_REMOVE & server->features);
	if (r < 0)
		return error_set(err, r, "bad_handshake", "UFFDIO_API on the peer's userfaultfd failed: %s",
				 strerror(-r));
	*ret_negotiated = r == 1;
	return 0;
}

static int copy_regions(struct fork *fork, const struct region *regions, size_t count, struct error *err)
{
	struct fork_region_info *infos = calloc(count, sizeof *infos);
	if (!infos)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	for (size_t i = 0; i < count; i++)
		infos[i] = (struct fork_region_info){ .address = regions[i].address,
						      .size = regions[i].size,
						      .offset = regions[i].offset,
						      .page_size = regions[i].page_size };
	free(fork->regions);
	fork->regions = infos;
	fork->region_count = count;
	return 0;
}

static void warn_without_remove_events(const struct fork *fork, int uffd)
{
	uint64_t features;

	if (uffd_negotiated_features(uffd, &features) == 0 && !(features & UFFD_FEATURE_EVENT_REMOVE))
		log_warning(fork->session->name,
			    "its VMM negotiated no EVENT_REMOVE: pages that it gives back before they were ever touched "
			    "would come back with the template's bytes; negotiate it if the guest has a balloon");
}

/* The peer's descriptors pass to the session only at the end, so that a refusal leaves nothing behind. */
static int start(struct server *server, struct fork *fork, struct peer *peer, struct handshake *handshake, int pidfd,
		 struct error *err)
{
	bool negotiated_now = false;
	int r = take_uffd(server, peer, &negotiated_now, err);
	if (r == 0)
		r = regions_validate(handshake->regions, handshake->region_count, fork->template->size, err);
	if (r == 0)
		r = template_check_unchanged(fork->template, err);
	if (r == 0)
		r = register_regions(peer->uffd, negotiated_now, handshake->regions, handshake->region_count, err);
	if (r == 0)
		r = copy_regions(fork, handshake->regions, handshake->region_count, err);
	if (r < 0)
		return r;

	struct guest_memory *memory;
	r = guest_memory_new(peer->uffd, handshake->regions, handshake->region_count, &memory);
	if (r < 0)
		return error_set(err, r, "io_error", "out of memory");
	peer->uffd = -1;
	handshake->regions = NULL;
	memory->pid = peer->pid;

	r = session_new(fork->id, peer->pid, pidfd, memory, fork->template, fork->record, &fork->session);
	if (r < 0) {
		guest_memory_free(memory);
		return error_set(err, r, "io_error", "out of memory");
	}
	warn_without_remove_events(fork, memory->fd);
	return 0;
}

int fork_start_session(struct server *server, struct fork *fork, struct peer *peer, struct error *err)
{
	struct handshake handshake;
	int r = handshake_parse(peer->text, peer->size, server->host_page_size, &handshake, err);
	if (r < 0)
		return r;
	peer->answers = handshake.answers;

	_cleanup_close_ int pidfd = open_process(peer, err);
	r = pidfd < 0 ? pidfd : start(server, fork, peer, &handshake, pidfd, err);
	free(handshake.regions);
	if (r < 0)
		return r;
	pidfd = -1; /* the session's now */
	fork->handshake = handshake.kind;
	fork->pid = peer->pid;
	return 0;
}

bool fork_process_ended(const struct fork *fork)
{
	struct pollfd poll_fd = { .fd = fork->session->pidfd, .events = POLLIN };

	return poll(&poll_fd, 1, 0) > 0 && (poll_fd.revents & POLLIN);
}

bool fork_memory_mapped(const struct fork *fork)
{
	struct guest_memory *memory = fork->session->memory;
	bool mapped = false;

	guest_memory_enter(memory);
	for (size_t i = 0; i < memory->map.count && !mapped; i++) {
		const struct map_piece *piece = &memory->map.pieces[i];
		uint64_t last = piece->length / piece->page_size - 1;
		const uint64_t samples[] = { 0, last / 2, last };
		for (size_t k = 0; k < 3 && !mapped; k++)
			mapped = uffd_is_registered(memory->fd, piece->address + samples[k] * piece->page_size,
						    piece->page_size) == 1;
	}
	guest_memory_leave(memory);
	return mapped;
}
