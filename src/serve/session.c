#include "serve/session.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"

int session_new(const char *fork_id, pid_t pid, int pidfd, struct guest_memory *memory, struct template *template,
		bool record, struct session **ret)
{
	struct session *s = calloc(1, sizeof *s);
	if (!s)
		return -ENOMEM;

	atomic_init(&s->refs, 1);
	atomic_init(&s->users, 1);
	snprintf(s->name, sizeof s->name, "fork %s", fork_id);
	s->pid = pid;
	s->pidfd = pidfd;
	s->memory = memory;
	s->template = template_ref(template);
	for (size_t i = 0; i < sizeof s->orphans / sizeof s->orphans[0]; i++)
		s->orphans[i] = -1;
	atomic_init(&s->recording, record);
	atomic_init(&s->spare, INT64_MAX);
	pthread_mutex_init(&s->lock, NULL);
	pthread_rwlock_init(&s->hot_lock, NULL);
	*ret = s;
	return 0;
}

struct session *session_ref(struct session *s)
{
	atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
	return s;
}

void session_unref(struct session *s)
{
	if (!s || atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) != 1)
		return;
	if (s->observer)
		s->observer->release(s->observer->data, s->observed);
	cleanup_close(&s->pidfd);
	pthread_mutex_destroy(&s->lock);
	pthread_rwlock_destroy(&s->hot_lock);
	free(s->record);
	free(s->given_zeros);
	free(s);
}

struct session *session_use(struct session *s)
{
	atomic_fetch_add_explicit(&s->users, 1, memory_order_relaxed);
	return session_ref(s);
}

void session_unuse(struct session *s)
{
	if (atomic_fetch_sub_explicit(&s->users, 1, memory_order_acq_rel) == 1) {
		stream_free(atomic_exchange(&s->stream, NULL));
		hot_reader_clear(&s->hot);
		guest_memory_free(TAKE_PTR(s->memory));
		template_unref(TAKE_PTR(s->template));
		for (size_t i = 0; i < sizeof s->orphans / sizeof s->orphans[0]; i++)
			cleanup_close(&s->orphans[i]);
	}
	session_unref(s);
}

bool session_end(struct session *s)
{
	return !atomic_exchange(&s->ended, true);
}

int session_keep_orphan(struct session *s, int child)
{
	LOCK_SCOPE(&s->lock);
	for (size_t i = 0; i < sizeof s->orphans / sizeof s->orphans[0]; i++)
		if (s->orphans[i] < 0) {
			s->orphans[i] = child;
			return 0;
		}
	return -ENOSPC;
}

void session_stop_vmm(struct session *s, const char *format, ...)
{
	char reason[sizeof s->reason];
	va_list ap;

	va_start(ap, format);
	vsnprintf(reason, sizeof reason, format, ap);
	va_end(ap);

	pthread_mutex_lock(&s->lock);
	bool first = s->reason[0] == '\0';
	if (first)
		memcpy(s->reason, reason, sizeof reason);
	pthread_mutex_unlock(&s->lock);
	if (!first)
		return;

	if (syscall(SYS_pidfd_send_signal, s->pidfd, SIGKILL, NULL, 0) < 0 && errno != ESRCH)
		log_error(s->name, "cannot stop its VMM (pid %d): %s", (int)s->pid, strerror(errno));
	else
		log_warning(s->name, "stopped its VMM (pid %d): %s", (int)s->pid, reason);
}

bool session_note_trouble(struct session *s, const char *format, ...)
{
	va_list ap;

	pthread_mutex_lock(&s->lock);
	bool first = s->trouble[0] == '\0';
	if (first) {
		va_start(ap, format);
		vsnprintf(s->trouble, sizeof s->trouble, format, ap);
		va_end(ap);
	}
	pthread_mutex_unlock(&s->lock);
	return first;
}

void session_record(struct session *s, uint64_t page, uint64_t ns)
{
	pthread_mutex_lock(&s->lock);
	if (s->record_count == s->record_capacity) {
		size_t capacity = s->record_capacity ? 2 * s->record_capacity : 1024;
		struct recorded_page *record = realloc(s->record, capacity * sizeof *record);
		if (!record) {
			s->record_lost = true;
			pthread_mutex_unlock(&s->lock);
			return;
		}
		s->record = record;
		s->record_capacity = capacity;
	}
	s->record[s->record_count++] = (struct recorded_page){ .page = page, .time_ns = ns - s->connected_ns };
	pthread_mutex_unlock(&s->lock);
}

void session_record_zero(struct session *s, uint64_t page)
{
	LOCK_SCOPE(&s->lock);
	if (!s->given_zeros)
		s->given_zeros = calloc(1, s->memory->page_count / 8 + 1);
	if (s->given_zeros)
		s->given_zeros[page / 8] |= (uint8_t)(1u << page % 8);
}
