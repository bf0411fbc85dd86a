/* One pager's part in serving one fork: reads messages, serves the faults, keeps those that have to wait. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/clock.h"
#include "base/log.h"
#include "serve/observing.h"
#include "serve/pager_internal.h"
#include "serve/placement.h"

/* One read takes up to so many messages; more wait for the next round, so that one fork cannot keep the others out. */
#define BATCH_MESSAGES 64

/*
 * The kernel lets a vCPU run as soon as its page is there, and a copy's call returns when it waits for the next one: so another read, without
 * waiting first, mostly finds something. A fork that has the pager to itself for the moment gets so many in a row.
 */
#define BATCHES_ALONE 8

/* A guest that is changing its map lets nothing in and does not say when it is done: look again after this, then less often. */
#define RETRY_MIN_NS (20 * NSEC_PER_USEC)
#define RETRY_MAX_NS (1 * NSEC_PER_MSEC)

/* How often a peer may turn its userfaultfd into a blocking one, which would stop all forks of the pager. */
#define MADE_BLOCKING_MAX 3

/* ---- batches ---- */

void watcher_wake_later(struct watcher *w, uint64_t page)
{
	struct pager *pager = w->pager;

	if (pager->to_wake_count < sizeof pager->to_wake / sizeof pager->to_wake[0])
		pager->to_wake[pager->to_wake_count++] = page;
	else
		guest_memory_wake(w->session->memory, page, 1);
}

/* With the gate held shared. */
static void begin_batch(struct watcher *w)
{
	unsigned watchers = atomic_load_explicit(&w->session->watcher_count, memory_order_relaxed);

	w->pager->wake = watchers > 1 ? WAKE_LATER : WAKE_NOW;
}

/* Leaves the gate, and only then lets those run who waited. */
static void end_batch(struct watcher *w)
{
	struct pager *pager = w->pager;
	struct guest_memory *memory = w->session->memory;
	struct {
		uint64_t address, size;
	} wakes[sizeof pager->to_wake / sizeof pager->to_wake[0]];
	unsigned count = pager->to_wake_count;

	for (unsigned i = 0; i < count; i++) {
		const struct map_piece *piece = guest_memory_piece(memory, pager->to_wake[i]);
		wakes[i].address = piece ? piece_address(piece, pager->to_wake[i]) : 0;
		wakes[i].size = piece ? piece->page_size : 0;
	}
	pager->to_wake_count = 0;
	guest_memory_leave(memory);
	for (unsigned i = 0; i < count; i++)
		if (wakes[i].size > 0)
			uffd_wake(memory->fd, wakes[i].address, wakes[i].size);
}

/* ---- faults to try again ---- */

static void put_in_deferred_list(struct watcher *w)
{
	struct pager *pager = w->pager;

	if (w->in_deferred_list)
		return;
	w->in_deferred_list = true;
	w->next_deferred = pager->deferred;
	pager->deferred = w;
}

void watcher_defer(struct watcher *w, uint64_t address, uint64_t read_ns)
{
	if (w->deferred_count == w->deferred_capacity) {
		size_t capacity = w->deferred_capacity ? 2 * w->deferred_capacity : 16;
		struct fault *deferred = realloc(w->deferred, capacity * sizeof *deferred);
		if (!deferred) {
			session_stop_vmm(w->session, "out of memory: one of its faults would have been lost");
			return;
		}
		w->deferred = deferred;
		w->deferred_capacity = capacity;
	}
	w->deferred[w->deferred_count++] = (struct fault){ .address = address, .read_ns = read_ns };
	if (!w->in_deferred_list) {
		put_in_deferred_list(w);
		w->pager->retry_ns = RETRY_MIN_NS;
	}
	bump(&w->session->deferrals);
}

/* Tries the deferred faults again; those that still can't be served are deferred once more. The gate is held shared. */
static void retry(struct watcher *w)
{
	size_t count = w->deferred_count;

	for (size_t i = 0; i < count && !session_ended(w->session); i++)
		serve_fault(w, w->deferred[i].address, w->deferred[i].read_ns);
	w->deferred_count -= count;
	memmove(w->deferred, w->deferred + count, w->deferred_count * sizeof w->deferred[0]);
	if (session_ended(w->session))
		w->deferred_count = 0;
}

void pager_retry_deferred(struct pager *pager)
{
	struct watcher *list = pager->deferred;

	pager->deferred = NULL;
	while (list) {
		struct watcher *w = list;
		list = w->next_deferred;
		w->in_deferred_list = false;
		if (w->deferred_count == 0 || session_ended(w->session))
			continue;
		uint64_t backoff = pager->retry_ns;
		guest_memory_enter(w->session->memory);
		begin_batch(w);
		retry(w);
		end_batch(w);
		pager->retry_ns = backoff;
		if (w->deferred_count > 0)
			put_in_deferred_list(w);
	}
	pager->retry_ns =
		pager->deferred ? (pager->retry_ns * 2 < RETRY_MAX_NS ? pager->retry_ns * 2 : RETRY_MAX_NS) : 0;
}

/* ---- messages ---- */

/* The VMM forked with EVENT_FORK negotiated; guest_memory_read has seen to it that the child never reads a wrong byte. */
static void refuse_child(struct session *s, int child)
{
	if (child < 0) {
		log_warning(s->name,
			    "its VMM forked with EVENT_FORK negotiated: the child is not served, and gets SIGBUS "
			    "where it touches memory that was not there yet");
		return;
	}
	if (session_keep_orphan(s, child) < 0)
		close(child);
	session_stop_vmm(s, "it forked with EVENT_FORK negotiated, which is not served, and this kernel can't poison the "
			    "child's pages (Linux 6.6 can)");
}

static void end_session(struct session *s, int error)
{
	if (!session_end(s) || error == -ESRCH)
		return;
	if (error == -EOPNOTSUPP)
		session_stop_vmm(s, "it gave back a part of a huge page that was not there yet: give back whole pages");
	else
		session_stop_vmm(s, "its userfaultfd cannot be read: %s", strerror(-error));
}

/* poll() on a blocking userfaultfd says nothing but POLLERR, and reading one could stop this thread. */
static bool keep_nonblocking(struct session *s)
{
	int flags = fcntl(s->memory->fd, F_GETFL);

	if (flags < 0) {
		end_session(s, -EIO);
		return false;
	}
	/* Another pager has put it right, or it is an error that reading will tell. */
	if (flags & O_NONBLOCK)
		return true;
	if (atomic_fetch_add_explicit(&s->made_blocking, 1, memory_order_relaxed) >= MADE_BLOCKING_MAX ||
	    fcntl(s->memory->fd, F_SETFL, flags | O_NONBLOCK) < 0) {
		session_stop_vmm(s, "it keeps making its userfaultfd blocking");
		session_end(s);
		return false;
	}
	return true;
}

/* Serves one batch, with the gate held since it was read. Its messages; 0: there was none, or nothing more is to be done. */
static int serve_batch(struct watcher *w, unsigned most)
{
	struct session *s = w->session;
	struct uffd_msg messages[BATCH_MESSAGES];

	int n = guest_memory_read(s->memory, messages, most);
	if (n < 0)
		end_session(s, n);
	if (n <= 0)
		return 0;

	uint64_t read_ns = now_ns();
	bool moved = false;
	for (int i = 0; i < n; i++) {
		if (messages[i].event == UFFD_EVENT_FORK)
			refuse_child(s, (int)messages[i].arg.fork.ufd);
		moved |= messages[i].event == UFFD_EVENT_REMAP || messages[i].event == UFFD_EVENT_UNMAP;
		if (messages[i].event != UFFD_EVENT_PAGEFAULT)
			atomic_store_explicit(&s->strays, 0, memory_order_relaxed);
	}

	/* With the gate shared no other change can overtake this one. */
	if (moved)
		observing_map_changed(s);
	atomic_fetch_add_explicit(&s->memory->demands, 1, memory_order_relaxed);
	begin_batch(w);
	if (w->deferred_count > 0)
		retry(w);
	for (int i = 0; i < n && !session_ended(s); i++) {
		if (messages[i].event != UFFD_EVENT_PAGEFAULT)
			continue;
		if (messages[i].arg.pagefault.flags & (UFFD_PAGEFAULT_FLAG_WP | UFFD_PAGEFAULT_FLAG_MINOR)) {
			session_stop_vmm(s,
					 "it registered memory for write-protect or minor faults, which are not served: "
					 "register it for missing pages only");
			break;
		}
		bump(&s->faults);
		serve_fault(w, messages[i].arg.pagefault.address, read_ns);
	}
	placement_note_faults(s->placement);
	end_batch(w);
	return session_ended(s) ? 0 : n;
}

/*
 * Where several pagers watch, each takes one fault at a time, and looks who else wants something before the next: the other faults are
 * most likely those of vCPUs on the other pagers' CPUs, and those pagers are on their way.
 */
void watcher_serve(struct watcher *w, uint32_t events, bool alone)
{
	bool only = atomic_load_explicit(&w->session->watcher_count, memory_order_relaxed) == 1;
	unsigned batches = only && alone ? BATCHES_ALONE : 1, messages = only ? BATCH_MESSAGES : 1;

	if (session_ended(w->session) || ((events & EPOLLERR) && !keep_nonblocking(w->session))) {
		/* What it has to say stays unread, and would be heard again and again until its end is known. */
		epoll_ctl(w->pager->epoll_fd, EPOLL_CTL_DEL, w->session->memory->fd, NULL);
		return;
	}
	while (batches-- > 0 && serve_batch(w, messages) > 0)
		;
}

/* ---- coming and going ---- */

int pager_watch(struct pager *pager, struct session *s)
{
	LOCK_SCOPE(&s->lock);
	for (struct watcher *w = s->watchers; w; w = w->next)
		if (w->pager == pager && !s->closed) {
			bool was_leaving = w->leaving;
			w->leaving = false;
			return was_leaving;
		}
	if (s->closed)
		return -ESRCH;

	struct watcher *w = calloc(1, sizeof *w);
	if (!w)
		return -ENOMEM;
	w->pager = pager;
	w->session = s;
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = w };
	session_use(s);
	if (epoll_ctl(pager->epoll_fd, EPOLL_CTL_ADD, s->memory->fd, &event) < 0) {
		int r = -errno;
		session_unuse(s); /* not the last: the caller has one */
		free(w);
		return r;
	}
	atomic_fetch_add_explicit(&pager->sessions, 1, memory_order_relaxed);
	w->next = s->watchers;
	s->watchers = w;
	atomic_fetch_add_explicit(&s->watcher_count, 1, memory_order_relaxed);
	return 1;
}

/* With session->lock held. */
static void ask_to_leave(struct watcher *w)
{
	struct pager *pager = w->pager;

	w->leaving = true;
	if (w->in_mailbox)
		return;
	w->in_mailbox = true;
	pthread_mutex_lock(&pager->lock);
	w->next_mail = pager->mailbox;
	pager->mailbox = w;
	pthread_mutex_unlock(&pager->lock);
	eventfd_write(pager->mailbox_fd, 1);
}

void pager_unwatch(struct pager *pager, struct session *s)
{
	LOCK_SCOPE(&s->lock);
	for (struct watcher *w = s->watchers; w; w = w->next)
		if (w->pager == pager)
			ask_to_leave(w);
}

void session_close(struct session *s)
{
	LOCK_SCOPE(&s->lock);
	s->closed = true;
	for (struct watcher *w = s->watchers; w; w = w->next)
		ask_to_leave(w);
}

unsigned session_cpus(struct session *s, int *ret_cpus, unsigned max)
{
	unsigned n = 0;

	LOCK_SCOPE(&s->lock);
	for (struct watcher *w = s->watchers; w; w = w->next)
		if (!w->leaving && n < max)
			ret_cpus[n++] = w->pager->cpu;
	return n;
}

/* Faults that were read and not served: who waits for them is woken and faults again, for another pager to read. */
static void give_back(struct watcher *w)
{
	struct guest_memory *memory = w->session->memory;

	guest_memory_enter(memory);
	for (size_t i = 0; i < w->deferred_count; i++) {
		uint64_t address = w->deferred[i].address;
		const struct map_piece *piece = address_map_find(&memory->map, address);
		uint64_t size = piece ? piece->page_size : w->pager->host_page_size;
		uffd_wake(memory->fd, address & ~(size - 1), size);
	}
	guest_memory_leave(memory);
}

void watcher_leave(struct watcher *w)
{
	struct pager *pager = w->pager;
	struct session *s = w->session;

	pthread_mutex_lock(&s->lock);
	bool leaving = w->leaving;
	w->in_mailbox = false;
	if (leaving)
		for (struct watcher **p = &s->watchers; *p; p = &(*p)->next)
			if (*p == w) {
				*p = w->next;
				atomic_fetch_sub_explicit(&s->watcher_count, 1, memory_order_relaxed);
				break;
			}
	if (leaving)
		epoll_ctl(pager->epoll_fd, EPOLL_CTL_DEL, s->memory->fd, NULL);
	pthread_mutex_unlock(&s->lock);
	if (!leaving)
		return; /* wanted back meanwhile */

	for (struct watcher **p = &pager->deferred; *p; p = &(*p)->next_deferred)
		if (*p == w) {
			*p = w->next_deferred;
			break;
		}
	if (w->deferred_count > 0 && !session_ended(s))
		give_back(w);
	atomic_fetch_sub_explicit(&pager->sessions, 1, memory_order_relaxed);
	session_unuse(s);
	free(w->deferred);
	free(w);
}
