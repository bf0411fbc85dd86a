#include "serve/pager.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"

/* One read takes up to so many messages; more wait for the next round, so that one fork cannot keep the others out. */
#define BATCH_MESSAGES 64
#define EPOLL_EVENTS   64
#define SESSION_EVENTS (EPOLLIN | EPOLLET)

/* Reads of pages that are not in memory, under way at once in one pager: enough to keep a fast disk busy. */
#define SLOW_FAULTS_MAX 128

/* Largest page served. */
#define BUFFER_SIZE (2u << 20)

/* A guest that is changing its map lets nothing in and does not say when it is done: look again after this, then less often. */
#define RETRY_MIN_NS (20 * NSEC_PER_USEC)
#define RETRY_MAX_NS (1 * NSEC_PER_MSEC)

/* Faults outside a fork's regions without an event that would explain them. A page that moves gives a few. */
#define STRAYS_MAX 1000

/* How often a peer may turn its userfaultfd into a blocking one, which would stop all forks of the pager. */
#define MADE_BLOCKING_MAX 3

/* A demand fault whose page is on its way from the device. */
struct slow_fault {
	struct io_read read; /* first: completions give this */
	struct pager *pager;
	struct session *session; /* a use */
	uint64_t page;
	uint64_t read_ns;
	size_t buffer_size;
	struct slow_fault *next;
};

struct message {
	struct session *session;
	struct message *next;
};

struct pager {
	pthread_t thread;
	int cpu;
	int epoll_fd;
	int mailbox_fd;
	struct keeper *keeper;
	struct lease_section leasing;
	struct io *io;
	void *buffer;
	uint64_t host_page_size;
	_Atomic unsigned sessions;

	struct session *deferred; /* sessions with faults to try again */
	uint64_t retry_ns;

	unsigned slow_count;				      /* under way */
	struct slow_fault *slow_waiting, **slow_waiting_tail; /* more than the device may be asked for at once */
	struct slow_fault *slow_free;			      /* with buffers of one small page */

	pthread_mutex_t lock;	 /* innermost */
	struct message *mailbox; /* sessions to let go */
	bool stopping;
};

static void bump(_Atomic uint64_t *counter)
{
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + 1, memory_order_relaxed);
}

/* ---- supplying one page ---- */

static void defer(struct pager *pager, struct session *s, uint64_t address, uint64_t read_ns)
{
	if (s->deferred_count == s->deferred_capacity) {
		size_t capacity = s->deferred_capacity ? 2 * s->deferred_capacity : 16;
		struct fault *deferred = realloc(s->deferred, capacity * sizeof *deferred);
		if (!deferred) {
			session_stop_vmm(s, "out of memory: one of its faults would have been lost");
			return;
		}
		s->deferred = deferred;
		s->deferred_capacity = capacity;
	}
	s->deferred[s->deferred_count++] = (struct fault){ .address = address, .read_ns = read_ns };
	if (!s->in_deferred_list) {
		s->in_deferred_list = true;
		s->next_deferred = pager->deferred;
		pager->deferred = s;
		pager->retry_ns = RETRY_MIN_NS;
	}
	bump(&s->deferrals);
}

static void poison(struct pager *pager, struct session *s, uint64_t page, uint64_t read_ns, int error)
{
	const struct region *region = regions_of_page(s->memory->regions, s->memory->region_count, page);
	uint64_t offset = region->offset + (page - region->first_page) * region->page_size;
	const char *why =
		error == -ENODATA ? "the image has become shorter than it was when it was added" : strerror(-error);
	struct supply supply = guest_memory_poison(s->memory, page);

	switch (supply.outcome) {
	case SUPPLY_DONE:
		if (supply.copied == 0)
			return; /* prefetch was there first, or it is unmapped */
		if (session_note_trouble(s,
					 "its template's image '%s' can't be read at offset 0x%" PRIx64
					 ": %s; the guest gets SIGBUS there, and wherever else this happens",
					 s->template->memory, offset, why))
			log_error(s->name, "%s", s->trouble);
		bump(&s->poisoned);
		return;
	case SUPPLY_RETRY: {
		const struct map_piece *piece = guest_memory_piece(s->memory, page);
		page_states_change(s->memory->states, page, PAGE_COMING, PAGE_ABSENT);
		if (piece)
			defer(pager, s, piece_address(piece, page), read_ns);
		return;
	}
	case SUPPLY_GONE:
		s->ended = true;
		return;
	default:
		session_stop_vmm(s,
				 "cannot read its template's image '%s' at offset 0x%" PRIx64
				 ": %s; this kernel can't poison single pages (Linux 6.6 can)",
				 s->template->memory, offset, why);
	}
}

/* What a supply for a demand fault came to. ADDRESS is where the fault was, or where the page is now. */
static void settle(struct pager *pager, struct session *s, uint64_t page, uint64_t address, uint64_t read_ns, bool zero,
		   const struct supply *supply)
{
	switch (supply->outcome) {
	case SUPPLY_DONE:
		if (supply->copied > 0) {
			bump(zero ? &s->zeroed : &s->copied);
			if (!zero && atomic_load_explicit(&s->recording, memory_order_relaxed))
				session_record(s, page);
		}
		/* Unmapped without an event: should memory come back there, its faults must not be taken for ones in progress. */
		if (supply->skipped > 0)
			page_states_change(s->memory->states, page, PAGE_COMING, PAGE_ABSENT);
		histogram_add(&s->stall, now_ns() - read_ns);
		return;
	case SUPPLY_RETRY:
		page_states_change(s->memory->states, page, PAGE_COMING, PAGE_ABSENT);
		defer(pager, s, address, read_ns);
		return;
	case SUPPLY_GONE:
		s->ended = true;
		return;
	case SUPPLY_NO_MEMORY: {
		const struct region *region = regions_of_page(s->memory->regions, s->memory->region_count, page);
		session_stop_vmm(s, "no memory for a page of %" PRIu64 " bytes: %s", region->page_size,
				 region->page_size > pager->host_page_size
					 ? "the hugetlbfs pool is empty: raise vm.nr_hugepages"
					 : "raise the memory limit of its cgroup, or free memory");
		return;
	}
	default:
		session_stop_vmm(s, "the kernel refused a page at 0x%" PRIx64 ": %s", address, strerror(-supply->error));
	}
}

static void supply_zero(struct pager *pager, struct session *s, uint64_t page, uint64_t address, uint64_t read_ns)
{
	struct supply supply = guest_memory_zero(s->memory, page);

	settle(pager, s, page, address, read_ns, true, &supply);
}

/* ---- pages that are not in memory ---- */

static void slow_done(struct io_read *read, int result);

static struct slow_fault *slow_new(struct pager *pager, size_t size)
{
	struct slow_fault *slow = pager->slow_free;

	if (slow && size == slow->buffer_size) {
		pager->slow_free = slow->next;
		return slow;
	}
	slow = calloc(1, sizeof *slow);
	if (!slow)
		return NULL;
	slow->pager = pager;
	slow->buffer_size = size;
	slow->read.buffer = aligned_alloc(4096, size);
	if (!slow->read.buffer) {
		free(slow);
		return NULL;
	}
	return slow;
}

static void slow_release(struct pager *pager, struct slow_fault *slow)
{
	if (slow->buffer_size == pager->host_page_size) {
		slow->next = pager->slow_free;
		pager->slow_free = slow;
		return;
	}
	free(slow->read.buffer);
	free(slow);
}

static void slow_start(struct pager *pager, struct slow_fault *slow)
{
	const struct guest_memory *memory = slow->session->memory;
	const struct region *region = regions_of_page(memory->regions, memory->region_count, slow->page);

	slow->read.offset = region->offset + (slow->page - region->first_page) * region->page_size;
	slow->read.length = region->page_size;
	slow->read.done = slow_done;
	slow->next = NULL;
	if (pager->slow_count < SLOW_FAULTS_MAX) {
		pager->slow_count++;
		int r = source_submit(slow->session->template->source, pager->io, &slow->read);
		if (r < 0) {
			slow->read.done(&slow->read, r);
		}
		return;
	}
	*pager->slow_waiting_tail = slow;
	pager->slow_waiting_tail = &slow->next;
}

static void slow_done(struct io_read *read, int result)
{
	struct slow_fault *slow = (struct slow_fault *)read;
	struct pager *pager = slow->pager;
	struct session *s = slow->session;

	guest_memory_enter(s->memory);
	const struct map_piece *piece = guest_memory_piece(s->memory, slow->page);
	if (s->ended || !piece) {
		page_states_change(s->memory->states, slow->page, PAGE_COMING, PAGE_ABSENT);
	} else if (page_states_get(s->memory->states, slow->page) == PAGE_REMOVED) {
		supply_zero(pager, s, slow->page, piece_address(piece, slow->page), slow->read_ns);
	} else if (result < 0) {
		poison(pager, s, slow->page, slow->read_ns, result);
	} else {
		struct supply supply = guest_memory_supply(s->memory, slow->page, 1, read->buffer);
		settle(pager, s, slow->page, piece_address(piece, slow->page), slow->read_ns, false, &supply);
	}
	guest_memory_leave(s->memory);

	slow_release(pager, slow);
	session_unuse(s);
	pager->slow_count--;
	if (pager->slow_waiting) {
		struct slow_fault *next = pager->slow_waiting;
		pager->slow_waiting = next->next;
		if (!pager->slow_waiting)
			pager->slow_waiting_tail = &pager->slow_waiting;
		slow_start(pager, next);
	}
}

/* The page is absent and not in memory: asks the device, and goes on with other faults. */
static void fetch(struct pager *pager, struct session *s, uint64_t page, uint64_t address, uint64_t read_ns,
		  size_t page_size)
{
	struct slow_fault *slow = slow_new(pager, page_size);

	if (!slow) {
		defer(pager, s, address, read_ns);
		return;
	}
	if (page_states_change(s->memory->states, page, PAGE_ABSENT, PAGE_COMING) < 0) {
		slow_release(pager, slow);
		defer(pager, s, address, read_ns);
		return;
	}
	slow->session = session_use(s);
	slow->page = page;
	slow->read_ns = read_ns;
	bump(&s->slow);
	slow_start(pager, slow);
}

/* ---- one fault ---- */

/* An address outside the regions: a page on the move, whose event is not read yet; or a peer that registered more than it said. */
static void stray(struct session *s, uint64_t address, uint64_t page_size)
{
	if (++s->strays > STRAYS_MAX) {
		session_stop_vmm(s, "it faults at 0x%" PRIx64 ", outside every region of its handshake", address);
		return;
	}
	uffd_wake(s->memory->fd, address & ~(page_size - 1), page_size);
}

/*
 * Copies a page from the image's mapping. Without a lease the image may be cut short at this moment: then whoever waits for the page is
 * not woken before it is known to be right. False: it is not known to be, and the VMM has been stopped.
 */
static bool supply_mapped(struct pager *pager, struct session *s, uint64_t page, const void *bytes, uint64_t size,
			  uint64_t offset, struct supply *ret)
{
	struct source *source = s->template->source;

	if (atomic_load_explicit(&source->leased, memory_order_relaxed)) {
		atomic_store(&pager->leasing.busy, true);
		bool leased = atomic_load(&source->leased); /* still, now that keeper_break would wait for us? */
		if (leased)
			*ret = guest_memory_supply(s->memory, page, 1, bytes);
		atomic_store_explicit(&pager->leasing.busy, false, memory_order_release);
		if (leased)
			return true;
	}

	/* Where inotify tells of changes a first look is not worth its system call. */
	if (!atomic_load_explicit(&source->guarded, memory_order_relaxed) && !source_intact(source, size, offset)) {
		*ret = (struct supply){ .outcome = SUPPLY_FAILED, .error = -EFAULT };
		return true;
	}
	*ret = guest_memory_supply_held(s->memory, page, 1, bytes);
	if (ret->copied == 0)
		return true;
	if (!source_intact(source, size, offset)) {
		session_stop_vmm(s, "can't read a page of its template's image '%s': it was cut short there meanwhile",
				 s->template->memory);
		s->ended = true;
		return false;
	}
	guest_memory_wake(s->memory, page, 1);
	return true;
}

/* The gate is held shared. */
static void serve_fault(struct pager *pager, struct session *s, uint64_t fault_address, uint64_t read_ns)
{
	struct guest_memory *memory = s->memory;
	const struct map_piece *piece = address_map_find(&memory->map, fault_address);

	if (!piece) {
		stray(s, fault_address, pager->host_page_size);
		return;
	}

	uint64_t page = piece_page(piece, fault_address), address = piece_address(piece, page), size = piece->page_size;
	switch (page_states_get(memory->states, page)) {
	case PAGE_COMING:
		return; /* its copy will wake this thread as well */
	case PAGE_THERE:
		/*
		 * Read late, and supplied since: only a wake is needed. Or dropped without an event that we would have been told by:
		 * then it is a zero page, like every page that a guest gives back.
		 */
	case PAGE_REMOVED:
		supply_zero(pager, s, page, address, read_ns);
		return;
	case PAGE_ABSENT:
		break;
	}

	const struct region *region = regions_of_page(memory->regions, memory->region_count, page);
	uint64_t offset = region->offset + (page - region->first_page) * size;
	struct source *source = s->template->source;
	const void *bytes = source_peek(source, size, offset, read_ns);
	if (bytes) {
		struct supply supply;
		if (!supply_mapped(pager, s, page, bytes, size, offset, &supply))
			return;
		if (supply.outcome != SUPPLY_FAILED || supply.error != -EFAULT) {
			settle(pager, s, page, address, read_ns, false, &supply);
			return;
		}
		/* the image has been cut short: reading it tells */
	} else if (atomic_load_explicit(&source->stale, memory_order_relaxed)) {
		keeper_ask(pager->keeper, s->template);
	}

	int r = source_read_now(source, pager->buffer, size, offset);
	if (r == -EAGAIN) {
		fetch(pager, s, page, address, read_ns, size);
	} else if (r < 0) {
		poison(pager, s, page, read_ns, r);
	} else {
		struct supply supply = guest_memory_supply(memory, page, 1, pager->buffer);
		settle(pager, s, page, address, read_ns, false, &supply);
	}
}

/* Tries the deferred faults again; those that still can't be served are deferred once more. The gate is held shared. */
static void retry_deferred(struct pager *pager, struct session *s)
{
	size_t count = s->deferred_count;

	for (size_t i = 0; i < count && !s->ended; i++)
		serve_fault(pager, s, s->deferred[i].address, s->deferred[i].read_ns);
	s->deferred_count -= count;
	memmove(s->deferred, s->deferred + count, s->deferred_count * sizeof s->deferred[0]);
	if (s->ended)
		s->deferred_count = 0;
}

/* ---- one session ---- */

/* The VMM forked with EVENT_FORK negotiated; guest_memory_read has seen to it that the child never reads a wrong byte. */
static void refuse_child(struct session *s, int child)
{
	if (child < 0) {
		log_warning(s->name,
			    "its VMM forked with EVENT_FORK negotiated: the child is not served, and gets SIGBUS "
			    "where it touches memory that was not there yet");
		return;
	}
	for (size_t i = 0; i < sizeof s->orphans / sizeof s->orphans[0] && child >= 0; i++)
		if (s->orphans[i] < 0)
			s->orphans[i] = TAKE_FD(child);
	cleanup_close(&child);
	session_stop_vmm(s, "it forked with EVENT_FORK negotiated, which is not served, and this kernel can't poison the "
			    "child's pages (Linux 6.6 can)");
}

static void end_session(struct session *s, int error)
{
	if (s->ended)
		return;
	s->ended = true;
	if (error != -ESRCH)
		session_stop_vmm(s, "its userfaultfd cannot be read: %s", strerror(-error));
}

/* poll() on a blocking userfaultfd says nothing but POLLERR, and reading one could stop this thread. */
static bool keep_nonblocking(struct session *s)
{
	int flags = fcntl(s->memory->fd, F_GETFL);

	if (flags < 0 || flags & O_NONBLOCK) {
		end_session(s, -EIO);
		return false;
	}
	if (++s->made_blocking > MADE_BLOCKING_MAX || fcntl(s->memory->fd, F_SETFL, flags | O_NONBLOCK) < 0) {
		session_stop_vmm(s, "it keeps making its userfaultfd blocking");
		s->ended = true;
		return false;
	}
	return true;
}

/* Serves one batch, with the gate held since it was read. True: it was a full one, and there may be more. */
static bool serve_batch(struct pager *pager, struct session *s)
{
	struct uffd_msg messages[BATCH_MESSAGES];

	int n = guest_memory_read(s->memory, messages, BATCH_MESSAGES);
	if (n < 0)
		end_session(s, n);
	if (n <= 0)
		return false;

	uint64_t read_ns = now_ns();
	for (int i = 0; i < n; i++) {
		if (messages[i].event == UFFD_EVENT_FORK)
			refuse_child(s, (int)messages[i].arg.fork.ufd);
		if (messages[i].event != UFFD_EVENT_PAGEFAULT)
			s->strays = 0;
	}

	atomic_fetch_add_explicit(&s->memory->demands, 1, memory_order_relaxed);
	if (s->deferred_count > 0)
		retry_deferred(pager, s);
	for (int i = 0; i < n && !s->ended; i++) {
		if (messages[i].event != UFFD_EVENT_PAGEFAULT)
			continue;
		if (messages[i].arg.pagefault.flags & (UFFD_PAGEFAULT_FLAG_WP | UFFD_PAGEFAULT_FLAG_MINOR)) {
			session_stop_vmm(s,
					 "it registered memory for write-protect or minor faults, which are not served: "
					 "register it for missing pages only");
			break;
		}
		bump(&s->faults);
		serve_fault(pager, s, messages[i].arg.pagefault.address, read_ns);
	}
	guest_memory_leave(s->memory);
	return n == BATCH_MESSAGES && !s->ended;
}

static void serve_session(struct pager *pager, struct session *s, uint32_t events)
{
	if (s->ended || ((events & EPOLLERR) && !keep_nonblocking(s)))
		return;
	if (!serve_batch(pager, s))
		return;

	/* Edge-triggered, which spares a poll of the descriptor for each fault: what was left is asked for again, after the others. */
	struct epoll_event event = { .events = SESSION_EVENTS, .data.ptr = s };
	epoll_ctl(pager->epoll_fd, EPOLL_CTL_MOD, s->memory->fd, &event);
}

/* ---- the thread ---- */

static void retry_all_deferred(struct pager *pager)
{
	struct session *list = pager->deferred;

	pager->deferred = NULL;
	while (list) {
		struct session *s = list;
		list = s->next_deferred;
		s->in_deferred_list = false;
		if (s->deferred_count == 0 || s->ended)
			continue;
		guest_memory_enter(s->memory);
		uint64_t backoff = pager->retry_ns;
		retry_deferred(pager, s);
		pager->retry_ns = backoff;
		guest_memory_leave(s->memory);
		if (s->deferred_count > 0 && !s->in_deferred_list) {
			s->in_deferred_list = true;
			s->next_deferred = pager->deferred;
			pager->deferred = s;
		}
	}
	pager->retry_ns =
		pager->deferred ? (pager->retry_ns * 2 < RETRY_MAX_NS ? pager->retry_ns * 2 : RETRY_MAX_NS) : 0;
}

/* A session that leaves may still be in the list of those with deferred faults. */
static void forget_deferred(struct pager *pager, struct session *s)
{
	for (struct session **p = &pager->deferred; *p; p = &(*p)->next_deferred)
		if (*p == s) {
			*p = s->next_deferred;
			break;
		}
	s->in_deferred_list = false;
}

static void let_go(struct pager *pager, struct session *s)
{
	epoll_ctl(pager->epoll_fd, EPOLL_CTL_DEL, s->memory->fd, NULL);
	s->ended = true;
	forget_deferred(pager, s);
	atomic_fetch_sub_explicit(&pager->sessions, 1, memory_order_relaxed);
	session_unuse(s);
}

/* Last in a batch, so that no event of the batch is for a session that has gone. */
static bool empty_mailbox(struct pager *pager)
{
	eventfd_t ignored;

	eventfd_read(pager->mailbox_fd, &ignored);
	pthread_mutex_lock(&pager->lock);
	struct message *message = TAKE_PTR(pager->mailbox);
	bool stopping = pager->stopping;
	pthread_mutex_unlock(&pager->lock);

	while (message) {
		struct message *next = message->next;
		let_go(pager, message->session);
		free(message);
		message = next;
	}
	return stopping;
}

static int wait_for_events(struct pager *pager, struct epoll_event *events)
{
	int n;

	if (pager->deferred) {
		struct timespec wait = { .tv_nsec = (long)pager->retry_ns };
		n = epoll_pwait2(pager->epoll_fd, events, EPOLL_EVENTS, &wait, NULL);
	} else {
		n = epoll_wait(pager->epoll_fd, events, EPOLL_EVENTS, -1);
	}
	return n < 0 ? 0 : n;
}

static void *pager_main(void *data)
{
	struct pager *pager = data;
	struct epoll_event events[EPOLL_EVENTS];
	bool stopping = false;

	while (!stopping) {
		bool mail = false;
		int n = wait_for_events(pager, events);

		for (int i = 0; i < n; i++) {
			if (events[i].data.ptr == pager)
				mail = true;
			else if (events[i].data.ptr == pager->io)
				io_reap(pager->io);
			else
				serve_session(pager, events[i].data.ptr, events[i].events);
		}
		if (pager->deferred)
			retry_all_deferred(pager);
		if (mail)
			stopping = empty_mailbox(pager);
	}
	return NULL;
}

static int watch(struct pager *pager, int fd, uint32_t events, void *tag)
{
	struct epoll_event event = { .events = events, .data.ptr = tag };

	return epoll_ctl(pager->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static int start_thread(struct pager *pager)
{
	char name[16];
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET((size_t)pager->cpu, &cpus);
	snprintf(name, sizeof name, "pager/%d", pager->cpu);

	pthread_attr_t attr;
	pthread_attr_init(&attr);
	pthread_attr_setaffinity_np(&attr, sizeof cpus, &cpus);
	int r = pthread_create(&pager->thread, &attr, pager_main, pager);
	pthread_attr_destroy(&attr);
	if (r == 0)
		pthread_setname_np(pager->thread, name);
	return -r;
}

static void destroy(struct pager *pager)
{
	io_free(pager->io);
	for (struct slow_fault *slow = pager->slow_free, *next; slow; slow = next) {
		next = slow->next;
		free(slow->read.buffer);
		free(slow);
	}
	if (pager->buffer)
		munmap(pager->buffer, BUFFER_SIZE);
	cleanup_close(&pager->mailbox_fd);
	cleanup_close(&pager->epoll_fd);
	pthread_mutex_destroy(&pager->lock);
	free(pager);
}

int pager_new(int cpu, struct keeper *keeper, struct pager **ret, struct error *err)
{
	struct pager *pager = calloc(1, sizeof *pager);
	if (!pager)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	pager->cpu = cpu;
	pager->keeper = keeper;
	pager->host_page_size = (uint64_t)sysconf(_SC_PAGESIZE);
	pager->slow_waiting_tail = &pager->slow_waiting;
	pthread_mutex_init(&pager->lock, NULL);
	pager->mailbox_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	pager->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	void *buffer = mmap(NULL, BUFFER_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pager->buffer = buffer == MAP_FAILED ? NULL : buffer;

	int r = pager->mailbox_fd < 0 || pager->epoll_fd < 0 || !pager->buffer ? -errno : 0;
	if (r == 0)
		r = io_new(SLOW_FAULTS_MAX, &pager->io, err);
	if (r == 0)
		r = watch(pager, pager->mailbox_fd, EPOLLIN, pager);
	if (r == 0)
		r = watch(pager, io_fd(pager->io), EPOLLIN, pager->io);
	if (r == 0)
		r = start_thread(pager);
	if (r < 0) {
		destroy(pager);
		return error_set(err, r, "io_error", "cannot start a pager on CPU %d: %s", cpu, strerror(-r));
	}
	keeper_add_section(keeper, &pager->leasing);
	*ret = pager;
	return 0;
}

void pager_free(struct pager *pager)
{
	if (!pager)
		return;
	pthread_mutex_lock(&pager->lock);
	pager->stopping = true;
	pthread_mutex_unlock(&pager->lock);
	eventfd_write(pager->mailbox_fd, 1);
	pthread_join(pager->thread, NULL);
	keeper_remove_section(pager->keeper, &pager->leasing);
	destroy(pager);
}

int pager_cpu(const struct pager *pager)
{
	return pager->cpu;
}

unsigned pager_sessions(const struct pager *pager)
{
	return atomic_load_explicit(&pager->sessions, memory_order_relaxed);
}

int pager_add(struct pager *pager, struct session *session)
{
	session_use(session);
	atomic_fetch_add_explicit(&pager->sessions, 1, memory_order_relaxed);
	int r = watch(pager, session->memory->fd, SESSION_EVENTS, session);
	if (r < 0) {
		atomic_fetch_sub_explicit(&pager->sessions, 1, memory_order_relaxed);
		session_unuse(session);
	}
	return r;
}

void pager_remove(struct pager *pager, struct session *session)
{
	struct message *message = malloc(sizeof *message);
	if (!message)
		return; /* it stays until the pager ends: its memory with it, nothing else */

	pthread_mutex_lock(&pager->lock);
	message->session = session;
	message->next = pager->mailbox;
	pager->mailbox = message;
	pthread_mutex_unlock(&pager->lock);
	eventfd_write(pager->mailbox_fd, 1);
}
