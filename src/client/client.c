/* libfaultline's client: a VM's mappings, handed to a server, or mapped plainly from the image. */
#include "faultline/client.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "client/client_internal.h"
#include "client/memory.h"
#include "client/result.h"
#include "client/talk.h"

/* How long faultline_close waits for the server to let go. */
#define CLOSE_TIMEOUT_MS 10000

/* How long a server may take from saying no, or from a mistake of ours, to hanging up. */
#define REFUSAL_TIMEOUT_MS 1000

/* log2 of the page size stands here in mmap's flags. */
#define MAP_2_MIB (21 << MAP_HUGE_SHIFT)

enum client_state {
	CLIENT_NEW,
	CLIENT_CONNECTED,
	CLIENT_IMAGE, /* mapped from the image, no server */
};

struct mapping {
	struct handover_region region;
	bool ours;	 /* made by faultline_map */
	bool registered; /* with the userfaultfd */
};

struct faultline_client {
	pid_t owner; /* in any other process, this is a copy that fork(2) has made */
	enum client_state state;
	bool answers; /* the server was asked to answer */
	bool spoiled; /* a server that has not let go may yet write to these addresses, if they are registered with any userfaultfd */
	struct mapping *mappings;
	size_t count, capacity;
	struct handover handover;
	struct talk talk; /* where the state is CLIENT_CONNECTED */
};

size_t client_region_count(const struct faultline_client *c)
{
	return c->count;
}

struct handover_region client_region(const struct faultline_client *c, size_t index)
{
	return c->mappings[index].region;
}

static int bad_argument(struct faultline_error *error, const char *what)
{
	return result_set(error, FAULTLINE_BAD_ARGUMENT, 0, "", "%s", what);
}

static int no_resources(struct faultline_error *error, int system_error, const char *what)
{
	return result_set(error, FAULTLINE_NO_RESOURCES, system_error, OUT_OF_MEMORY, "%s", what);
}

/* A call that belongs into STATE. */
static int check_state(const struct faultline_client *c, enum client_state state, struct faultline_error *error)
{
	static const char *const present[] = {
		[CLIENT_NEW] = "is not connected",
		[CLIENT_CONNECTED] = "is connected already",
		[CLIENT_IMAGE] = "has its memory mapped from the image already",
	};

	if (!c)
		return bad_argument(error, "The client is NULL");
	if (c->owner != getpid())
		return result_set(error, FAULTLINE_BAD_STATE, 0, "Make a client of its own in the child",
				  "The client belongs to process %d, and this is a child of it", (int)c->owner);
	if (c->state != state)
		return result_set(error, FAULTLINE_BAD_STATE, 0, "", "The client %s", present[c->state]);
	return FAULTLINE_OK;
}

int faultline_new(struct faultline_client **ret_client, struct faultline_error *error)
{
	if (!ret_client)
		return bad_argument(error, "There is no place for the client: ret_client is NULL");
	struct faultline_client *c = calloc(1, sizeof *c);
	if (!c)
		return no_resources(error, ENOMEM, "There is no memory for a client");
	c->owner = getpid();
	c->handover = (struct handover){ .uffd = -1, .socket = -1 };
	*ret_client = c;
	return FAULTLINE_OK;
}

/* ---- mappings ---- */

static int check_sizes(uint64_t size, uint64_t image_offset, uint64_t page_size, struct faultline_error *error)
{
	uint64_t end;

	if (page_size != memory_page_size() && page_size != HUGE_PAGE_SIZE)
		return result_set(error, FAULTLINE_BAD_ARGUMENT, 0, "",
				  "A page size of %" PRIu64 " bytes is neither %zu nor %llu", page_size,
				  memory_page_size(), HUGE_PAGE_SIZE);
	if (size == 0)
		return bad_argument(error, "The mapping's size is zero");
	if (!is_aligned(size, page_size) || !is_aligned(image_offset, page_size))
		return result_set(error, FAULTLINE_BAD_ARGUMENT, 0, "",
				  "Size 0x%" PRIx64 " and offset 0x%" PRIx64
				  " must be multiples of the page size, %" PRIu64,
				  size, image_offset, page_size);
	if (!checked_add(image_offset, size, &end) || end > INT64_MAX)
		return result_set(error, FAULTLINE_BAD_ARGUMENT, EOVERFLOW, "",
				  "No image is so long as to have 0x%" PRIx64 " bytes from offset 0x%" PRIx64 " on",
				  size, image_offset);
	return FAULTLINE_OK;
}

static int make_room(struct faultline_client *c, struct faultline_error *error)
{
	if (c->count == FAULTLINE_MAPPINGS_MAX)
		return result_set(error, FAULTLINE_BAD_ARGUMENT, 0, "Join neighbouring mappings",
				  "The client has %d mappings, and no server takes more", FAULTLINE_MAPPINGS_MAX);
	if (c->count < c->capacity)
		return FAULTLINE_OK;
	size_t capacity = c->capacity ? 2 * c->capacity : 8;
	struct mapping *mappings = reallocarray(c->mappings, capacity, sizeof *mappings);
	if (!mappings)
		return no_resources(error, ENOMEM, "There is no memory for another mapping");
	c->mappings = mappings;
	c->capacity = capacity;
	return FAULTLINE_OK;
}

static void *reserve(void *address, uint64_t size, uint64_t page_size)
{
	/* Huge pages are set aside at once, so that they can't run out while the guest runs. */
	int flags = page_size == HUGE_PAGE_SIZE ? MAP_HUGETLB | MAP_2_MIB : MAP_NORESERVE;

	return memory_map(address, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | flags | (address ? MAP_FIXED : 0), -1,
			  0);
}

int faultline_map(struct faultline_client *c, uint64_t size, uint64_t image_offset, uint64_t page_size,
		  void **ret_address, struct faultline_error *error)
{
	int r = check_state(c, CLIENT_NEW, error);

	if (r == FAULTLINE_OK && !ret_address)
		r = bad_argument(error, "There is no place for the address: ret_address is NULL");
	if (r == FAULTLINE_OK)
		r = check_sizes(size, image_offset, page_size, error);
	if (r == FAULTLINE_OK)
		r = make_room(c, error);
	if (r < 0)
		return r;

	void *address = reserve(NULL, size, page_size);
	if (address == MAP_FAILED && page_size == HUGE_PAGE_SIZE)
		return result_set(error, FAULTLINE_NO_RESOURCES, errno,
				  "Enlarge the pool: sysctl vm.nr_hugepages, or the file nr_hugepages in "
				  "/sys/kernel/mm/hugepages/hugepages-2048kB",
				  "There are no %" PRIu64 " huge pages of 2 MiB to be had", size / page_size);
	if (address == MAP_FAILED)
		return result_set(error, FAULTLINE_NO_RESOURCES, errno, "Raise the limit on address space (ulimit -v)",
				  "There is no address space for 0x%" PRIx64 " bytes", size);
	c->mappings[c->count++] = (struct mapping){
		.region = { (uintptr_t)address, size, image_offset, page_size },
		.ours = true,
	};
	*ret_address = address;
	return FAULTLINE_OK;
}

int faultline_add(struct faultline_client *c, void *address, uint64_t size, uint64_t image_offset, uint64_t page_size,
		  struct faultline_error *error)
{
	uint64_t start = (uintptr_t)address, end = 0;
	int r = check_state(c, CLIENT_NEW, error);

	if (r == FAULTLINE_OK && !address)
		r = bad_argument(error, "The mapping's address is NULL");
	if (r == FAULTLINE_OK)
		r = check_sizes(size, image_offset, page_size, error);
	if (r == FAULTLINE_OK && !is_aligned(start, page_size))
		r = result_set(error, FAULTLINE_BAD_ARGUMENT, 0, "",
			       "Address %p is not a multiple of the page size, %" PRIu64, address, page_size);
	if (r == FAULTLINE_OK && (!checked_add(start, size, &end) || end > UINTPTR_MAX))
		r = result_set(error, FAULTLINE_BAD_ARGUMENT, EOVERFLOW, "",
			       "0x%" PRIx64 " bytes at %p end past the address space", size, address);
	if (r == FAULTLINE_OK)
		r = make_room(c, error);
	for (size_t i = 0; r == FAULTLINE_OK && i < c->count; i++) {
		const struct handover_region *other = &c->mappings[i].region;

		if (start < other->address + other->size && end > other->address)
			r = result_set(error, FAULTLINE_BAD_ARGUMENT, 0, "",
				       "0x%" PRIx64 " bytes at %p overlap with mapping %zu, 0x%" PRIx64
				       " bytes at 0x%" PRIxPTR,
				       size, address, i, other->size, other->address);
	}
	if (r < 0)
		return r;
	c->mappings[c->count++] = (struct mapping){ .region = { (uintptr_t)address, size, image_offset, page_size } };
	return FAULTLINE_OK;
}

/* ---- connecting ---- */

/* The caller's memory must be empty. Looked at when it is registered: from then on nobody but the server can put a page there. */
static int check_empty(const struct mapping *m, size_t index, struct faultline_error *error)
{
	size_t offset;
	int r = m->ours ? 0 : memory_find_page((void *)m->region.address, m->region.size, &offset);

	if (r == 0)
		return FAULTLINE_OK;
	if (r > 0)
		return result_set(error, FAULTLINE_BAD_ARGUMENT, 0,
				  "Hand it over before anything touches it, or empty it by madvise(MADV_DONTNEED) first",
				  "Mapping %zu has a page already, at offset 0x%zx: it would not come from the image",
				  index, offset);
	return result_set(error, FAULTLINE_BAD_ARGUMENT, -r, "Map all of it first",
			  "Mapping %zu, 0x%" PRIx64 " bytes at 0x%" PRIxPTR ", is not mapped from end to end", index,
			  m->region.size, m->region.address);
}

static int register_mappings(struct faultline_client *c, struct faultline_error *error)
{
	for (size_t i = 0; i < c->count; i++) {
		struct mapping *m = &c->mappings[i];

		m->registered = true; /* undone if it comes to nothing: some of it may be */
		int r = handover_register(&c->handover, &m->region, error);
		if (r == FAULTLINE_OK)
			r = check_empty(m, i, error);
		if (r < 0)
			return r;
	}
	return FAULTLINE_OK;
}

static int send_mappings(const struct faultline_client *c, uint64_t deadline, struct faultline_error *error)
{
	_cleanup_free_ struct handover_region *regions = calloc(c->count, sizeof *regions);

	if (!regions)
		return no_resources(error, ENOMEM, "There is no memory for the handshake");
	for (size_t i = 0; i < c->count; i++)
		regions[i] = c->mappings[i].region;
	return handover_send(&c->handover, regions, c->count, c->answers, deadline, error);
}

static int open_up(const struct faultline_client *c, struct faultline_error *error)
{
	for (size_t i = 0; i < c->count; i++) {
		const struct mapping *m = &c->mappings[i];

		if (m->ours && mprotect((void *)m->region.address, m->region.size, PROT_READ | PROT_WRITE) < 0)
			return result_set(error, FAULTLINE_NO_RESOURCES, errno,
					  "Raise vm.max_map_count, or the limit on memory",
					  "Mapping %zu can't be made accessible", i);
	}
	return FAULTLINE_OK;
}

/*
 * A server that got the userfaultfd may have put pages there: they go as well, as the next one may serve another image. One that has not hung
 * up may put more there, once the memory is registered again.
 */
static void take_back(struct faultline_client *c, bool sent, int patience_ms)
{
	for (size_t i = 0; i < c->count; i++) {
		struct mapping *m = &c->mappings[i];
		void *address = (void *)m->region.address;
		struct uffdio_range range = { .start = m->region.address, .len = m->region.size };

		if (!m->registered)
			continue;
		m->registered = false;
		ioctl(c->handover.uffd, UFFDIO_UNREGISTER, &range);
		if (m->ours)
			mprotect(address, m->region.size, PROT_NONE);
		if (sent) {
			memory_advise(address, m->region.size, MADV_REMOVE); /* for shared memory; else it is refused */
			/* Linux before 5.18 can't for huge pages. */
			if (memory_advise(address, m->region.size, MADV_DONTNEED) < 0 && m->ours)
				reserve(address, m->region.size, m->region.page_size);
		}
	}
	if (sent) {
		c->spoiled = talk_finish(&c->talk, handover_deadline(patience_ms), NULL) < 0;
		talk_clear(&c->talk);
	}
	handover_clear(&c->handover);
}

static int hand_over(struct faultline_client *c, const char *path, uint64_t deadline, bool *ret_sent,
		     struct faultline_error *error)
{
	bool huge = false;

	for (size_t i = 0; i < c->count; i++)
		huge |= c->mappings[i].region.page_size == HUGE_PAGE_SIZE;
	int r = handover_open(&c->handover, huge, error);
	/* All mistakes that can be found here come first: whoever connects uses the fork up. */
	if (r == FAULTLINE_OK)
		r = register_mappings(c, error);
	if (r == FAULTLINE_OK)
		r = handover_connect(&c->handover, path, deadline, error);
	if (r < 0)
		return r;
	talk_init(&c->talk, c->handover.socket);
	*ret_sent = true;
	r = send_mappings(c, deadline, error);
	if (r < 0)
		return r;

	if (c->answers)
		r = talk_wait_connected(&c->talk, deadline, error);
	return r < 0 ? r : open_up(c, error);
}

int faultline_connect(struct faultline_client *c, const char *socket_path, int timeout_ms, unsigned int flags,
		      struct faultline_error *error)
{
	const char *path = socket_path ? socket_path : getenv("FAULTLINE_SOCKET");
	bool sent = false;
	int r = check_state(c, CLIENT_NEW, error);

	if (r < 0)
		return r;
	if (flags & ~FAULTLINE_CONNECT_UNANSWERED)
		return result_set(error, FAULTLINE_BAD_ARGUMENT, 0, "",
				  "Flags 0x%x are none that this version of libfaultline knows", flags);
	if (timeout_ms < -1)
		return bad_argument(error, "The timeout is negative");
	if (c->spoiled)
		return result_set(error, FAULTLINE_BAD_STATE, 0, "Use faultline_map_image, or a new client",
				  "A server that did not answer may still write to this client's memory");
	if (c->count == 0)
		return result_set(error, FAULTLINE_BAD_ARGUMENT, 0, "Call faultline_map or faultline_add first",
				  "The client has no mappings");
	if (!path || (!socket_path && !*path))
		return result_set(error, FAULTLINE_NOT_SUPPORTED, 0,
				  "Set FAULTLINE_SOCKET to what `faultline fork create` prints, to use one",
				  "No page server is configured");

	c->answers = !(flags & FAULTLINE_CONNECT_UNANSWERED);
	r = hand_over(c, path, handover_deadline(timeout_ms == -1 ? HANDOVER_TIMEOUT_MS : timeout_ms), &sent, error);
	if (r < 0) {
		take_back(c, sent, r == FAULTLINE_TIMED_OUT ? 0 : REFUSAL_TIMEOUT_MS);
		return r;
	}
	c->state = CLIENT_CONNECTED;
	return FAULTLINE_OK;
}

/* ---- connected ---- */

/* Connected to a server that answers. */
static int check_answering(const struct faultline_client *c, struct faultline_error *error)
{
	int r = check_state(c, CLIENT_CONNECTED, error);

	if (r == FAULTLINE_OK && !c->answers)
		r = result_set(error, FAULTLINE_BAD_STATE, 0, "Use `faultline fork ready` and `faultline fork wait`",
			       "The client was connected with FAULTLINE_CONNECT_UNANSWERED, and can't talk with its server");
	return r;
}

int faultline_wait_prefetched(struct faultline_client *c, int timeout_ms, struct faultline_error *error)
{
	int r = check_answering(c, error);

	if (r == FAULTLINE_OK && timeout_ms < -1)
		r = bad_argument(error, "The timeout is negative");
	return r < 0 ? r : talk_wait_prefetched(&c->talk, handover_deadline(timeout_ms), error);
}

int faultline_ready(struct faultline_client *c, struct faultline_error *error)
{
	int r = check_answering(c, error);

	return r < 0 ? r : talk_say_ready(&c->talk, error);
}

int faultline_server_fd(const struct faultline_client *c)
{
	return c && c->state == CLIENT_CONNECTED && c->owner == getpid() ? c->handover.socket : -1;
}

int faultline_server_gone(const struct faultline_client *c)
{
	return faultline_server_fd(c) >= 0 && talk_is_over(&c->talk);
}

/* ---- without a server ---- */

int faultline_map_image(struct faultline_client *c, int image_fd, struct faultline_error *error)
{
	int r = check_state(c, CLIENT_NEW, error);

	if (r == FAULTLINE_OK)
		r = client_map_image(c, image_fd, error);
	if (r == FAULTLINE_OK)
		c->state = CLIENT_IMAGE;
	return r;
}

/* ---- the end ---- */

/* Nothing of the memory can be touched from here on, so that the userfaultfd may be closed. */
static int retire_memory(struct faultline_client *c, struct faultline_error *error)
{
	for (size_t i = 0; i < c->count; i++) {
		const struct handover_region *m = &c->mappings[i].region;
		int r = memory_retire(c->handover.uffd, m->address, m->size);

		if (r < 0)
			return result_set(error, FAULTLINE_NO_RESOURCES, -r, "Raise vm.max_map_count",
					  "Mapping %zu can't be made inaccessible, so its userfaultfd stays open", i);
	}
	return FAULTLINE_OK;
}

static void client_free(struct faultline_client *c)
{
	if (c->state == CLIENT_CONNECTED)
		talk_clear(&c->talk);
	handover_clear(&c->handover);
	free(c->mappings);
	free(c);
}

int faultline_close(struct faultline_client **client, struct faultline_error *error)
{
	int r = FAULTLINE_OK;

	if (!client)
		return bad_argument(error, "There is no client: the pointer to it is NULL");
	struct faultline_client *c = *client;
	if (!c)
		return FAULTLINE_OK;

	/* A child has none of the memory, and what it says on the socket would be said for the parent. */
	bool owner = c->owner == getpid();
	if (owner && c->state == CLIENT_CONNECTED) {
		r = retire_memory(c, error);
		if (r < 0)
			return r;
		if (c->answers)
			r = talk_finish(&c->talk, handover_deadline(CLOSE_TIMEOUT_MS), error);
	}
	for (size_t i = 0; owner && i < c->count; i++) {
		const struct mapping *m = &c->mappings[i];

		/* Addresses that a server may still write to stay taken: that costs nothing. */
		if (m->ours && (r < 0 || c->spoiled))
			memory_map((void *)m->region.address, m->region.size, PROT_NONE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
		else if (m->ours)
			munmap((void *)m->region.address, m->region.size);
	}
	*client = NULL;
	client_free(c);
	return r;
}
