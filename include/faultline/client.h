/*
 * libfaultline for authors of virtual machine monitors: guest memory whose pages a faultline server supplies when the guest first
 * touches them, or before. docs/client.md has a worked example, and says what goes over the socket.
 *
 *	struct faultline_client *client;
 *	struct faultline_error error;
 *	void *ram;
 *
 *	if (faultline_new(&client, &error) || faultline_map(client, ram_size, 0, 4096, &ram, &error))
 *		die(&error);
 *	int r = faultline_connect(client, NULL, -1, 0, &error);	   // NULL: the socket named by $FAULTLINE_SOCKET
 *	if (r == FAULTLINE_NOT_SUPPORTED)			   // no server here: a plain private mapping of the image
 *		r = faultline_map_image(client, image_fd, &error);
 *	if (r)
 *		die(&error);
 *	… run the guest; when its work can begin: faultline_ready(client, &error) …
 *	faultline_close(&client, &error);
 *
 * THREADS. Clients are independent of each other: any number of threads may each work with one of their own, without locks. Of one
 * client, faultline_ready, faultline_wait_prefetched, faultline_server_fd and faultline_server_gone may be called by any thread at any time
 * between faultline_connect and faultline_close; all other functions by one thread at a time, with no other call under way. Guest memory
 * itself may be used by any thread. The library starts no threads, installs no signal handlers, and raises no SIGPIPE.
 *
 * UNITS. Sizes, offsets and page sizes are bytes; times are milliseconds.
 *
 * MEMORY AND LIFETIME. An absent page of registered memory makes whoever touches it wait until the server has put it there. Where nobody
 * holds the userfaultfd any more, it reads as zeros instead, which is silent corruption. So the library holds it as long as the memory can be
 * touched: faultline_close makes all of it inaccessible first. A process that ends, by exit() or by a signal, needs no faultline_close. A
 * server that stops kills the process (all of it, whatever else it does) rather than leave it with wrong memory; if the server is killed
 * itself, absent pages make their threads wait forever: see faultline_server_fd.
 *
 * Pages that are given back by madvise(MADV_DONTNEED), as for a balloon, are zero from then on; the call waits until the server has heard of
 * it. Registered memory must not be moved by mremap(). Transparent huge pages are switched off there (MADV_NOHUGEPAGE) and must stay so.
 *
 * FORK AND EXEC. A child of fork(2) has no guest memory: it is mapped with MADV_DONTFORK, so that touching it there is SIGSEGV and not zeros.
 * In a child all functions return FAULTLINE_BAD_STATE but faultline_close, which frees the child's copy of the handle and leaves the parent's
 * VM alone. exec() ends the VM: all file descriptors are close-on-exec, and the memory goes with the old program.
 */
#ifndef FAULTLINE_CLIENT_H
#define FAULTLINE_CLIENT_H

#include <stdint.h>

#include <faultline/result.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The most mappings of one client; more would be refused by the server. */
#define FAULTLINE_MAPPINGS_MAX 1024

/* One VM's memory and its connection to a server. */
struct faultline_client;

/* A client without mappings, not connected. Freed by faultline_close. Fails only for want of memory (FAULTLINE_NO_RESOURCES). */
FAULTLINE_API int faultline_new(struct faultline_client **ret_client, struct faultline_error *error);

/*
 * Reserves SIZE bytes of address space for guest memory that is the image's content from IMAGE_OFFSET on. PAGE_SIZE is the system's
 * (4096), or 2097152 for memory from the pool of huge pages. SIZE and IMAGE_OFFSET are multiples of it, SIZE not zero.
 *
 * The memory is private, readable and writable after faultline_connect or faultline_map_image, and SIGSEGV before, so that no page can come
 * into being too early. Its address stays the same and may be given to the hypervisor at once. It belongs to the client: faultline_close
 * unmaps it. Callers may change its protection and give advice on it, but must not unmap or replace it themselves.
 *
 * Only before faultline_connect. FAULTLINE_BAD_ARGUMENT, FAULTLINE_BAD_STATE, FAULTLINE_NO_RESOURCES (with huge pages: the pool is too small).
 */
FAULTLINE_API int faultline_map(struct faultline_client *client, uint64_t size, uint64_t image_offset,
				uint64_t page_size, void **ret_address, struct faultline_error *error);

/*
 * The same for memory that the caller has mapped and goes on to own: private anonymous memory, or memory from hugetlbfs with its page size.
 * (Shared memory of a memfd works too as long as no other process maps it, since that one would not be served.) ADDRESS is a multiple of
 * PAGE_SIZE. None of it may have been touched: faultline_connect refuses memory with pages in it. It must stay mapped as it is until
 * faultline_close, which takes it away (see there); unmap it after that. faultline_connect applies MADV_NOHUGEPAGE and MADV_DONTFORK to it.
 *
 * Only before faultline_connect. FAULTLINE_BAD_ARGUMENT (overlaps with another mapping of this client among others), FAULTLINE_BAD_STATE.
 */
FAULTLINE_API int faultline_add(struct faultline_client *client, void *address, uint64_t size, uint64_t image_offset,
				uint64_t page_size, struct faultline_error *error);

/*
 * For servers that speak Firecracker's handshake and no more: returns when the handshake has been sent, since nothing will say whether it was
 * taken. faultline_wait_prefetched and faultline_ready can't be used then.
 */
#define FAULTLINE_CONNECT_UNANSWERED 1u

/*
 * Hands all mappings to the server at the Unix socket SOCKET_PATH, which is what `faultline fork create` prints; NULL: the one named by the
 * environment variable FAULTLINE_SOCKET. Returns when the server has taken them: from then on the memory may be used. TIMEOUT_MS bounds the
 * whole of it; -1: 10 seconds. FLAGS: 0, or the one above.
 *
 * On failure nothing is left registered, memory of faultline_map is reserved and inaccessible as before, and memory of faultline_add has no
 * pages: the caller may use faultline_map_image, or close, or try again, best with another fork, as the server may have counted this one as
 * used. Only where a server was given the memory and has not let go of it (mostly after FAULTLINE_TIMED_OUT) trying again is FAULTLINE_BAD_STATE.
 *
 * FAULTLINE_NOT_SUPPORTED: SOCKET_PATH is NULL and FAULTLINE_SOCKET is unset or empty, or there is no userfaultfd for this process.
 * FAULTLINE_BAD_ARGUMENT: no mappings, a path that is too long, or a mapping that is not as faultline_add wants it.
 * Also FAULTLINE_BAD_STATE, _NO_SERVER, _NO_PERMISSION, _REFUSED, _SERVER_GONE, _TIMED_OUT, _NO_RESOURCES, _UNEXPECTED.
 */
FAULTLINE_API int faultline_connect(struct faultline_client *client, const char *socket_path, int timeout_ms,
				    unsigned int flags, struct faultline_error *error);

/*
 * The way without a server: maps the image IMAGE_FD privately over every mapping, the caller's too, at the same addresses, readable and
 * writable. The descriptor stays the caller's and may be closed. The image is checked to reach to the last page of each mapping; its own last
 * page may be cut. In place of faultline_connect, or after it has failed. If this fails in the middle, call it again or close.
 *
 * FAULTLINE_BAD_ARGUMENT (the image is too short, or no file that can be mapped), _BAD_STATE, _NO_PERMISSION, _NO_RESOURCES, _UNEXPECTED.
 */
FAULTLINE_API int faultline_map_image(struct faultline_client *client, int image_fd, struct faultline_error *error);

/*
 * Waits until the server has supplied the hot list that the fork was created with (`--prefetch eager`), for those who rather start the guest
 * late than slow. TIMEOUT_MS -1: as long as it takes. After FAULTLINE_TIMED_OUT it may be called again; the guest may run meanwhile, and of
 * several threads that wait each gets an answer.
 *
 * FAULTLINE_NOT_PREFETCHING: none was asked for. FAULTLINE_PREFETCH_FAILED: it ended early, with the server's reason; the memory is fine all
 * the same. Also FAULTLINE_BAD_STATE (not connected, or unanswered), _SERVER_GONE, _TIMED_OUT.
 */
FAULTLINE_API int faultline_wait_prefetched(struct faultline_client *client, int timeout_ms,
					    struct faultline_error *error);

/*
 * Says that the guest is ready, as `faultline fork ready` does: a recording of its pages ends there, and whoever waits for the fork to be
 * ready goes on. Never waits, neither for the server nor for another thread, so it may be called from a vCPU's exit handler. Saying it again is
 * fine. FAULTLINE_BAD_STATE (not connected, or unanswered), _SERVER_GONE, _TIMED_OUT (the server has not read for so long that the socket is
 * full: it is stuck).
 */
FAULTLINE_API int faultline_ready(struct faultline_client *client, struct faultline_error *error);

/*
 * The socket that the server is at the other end of, for poll() or epoll with POLLRDHUP (EPOLLRDHUP) and no other event: once that is
 * reported, the server has ended or given this VM up, and pages that are not there yet will not come. End the VM then; a thread that waits
 * for a page can only be killed with the process. -1: not connected. Don't read, write or close it; it is the client's until faultline_close.
 */
FAULTLINE_API int faultline_server_fd(const struct faultline_client *client);

/* The same as a question: 1: the server is gone, 0: it is there, or the client was never connected. Never waits. */
FAULTLINE_API int faultline_server_gone(const struct faultline_client *client);

/*
 * Ends the VM for the server, frees the client, and sets *CLIENT to NULL. No thread may use the memory any more. Memory of faultline_map is
 * unmapped. Memory of faultline_add, if the client was connected, is replaced by inaccessible memory at the same addresses, which is the
 * caller's to unmap: what the guest had there is gone. With *CLIENT NULL already (closed twice, or never made) this does nothing and
 * succeeds; a copy of the pointer elsewhere is as dangling as after free().
 *
 * Waits until the server has let go, so that nothing is written to these addresses once they are used for something else. A server that
 * doesn't within 10 seconds gives FAULTLINE_TIMED_OUT: the client is freed all the same, but the addresses stay taken, and those of
 * faultline_add must not be unmapped. After FAULTLINE_CONNECT_UNANSWERED there is nothing to wait for, and the caller has to see to it.
 *
 * FAULTLINE_NO_RESOURCES, in which case alone nothing is closed: the kernel refused to change the memory.
 */
FAULTLINE_API int faultline_close(struct faultline_client **client, struct faultline_error *error);

#ifdef __cplusplus
}
#endif

#endif
