#include "client/talk.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "client/handover.h"
#include "client/result.h"

void talk_init(struct talk *talk, int socket)
{
	pthread_condattr_t monotonic;

	*talk = (struct talk){ .socket = socket };
	pthread_mutex_init(&talk->lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&talk->idle, &monotonic);
	pthread_condattr_destroy(&monotonic);
}

void talk_clear(struct talk *talk)
{
	pthread_cond_destroy(&talk->idle);
	pthread_mutex_destroy(&talk->lock);
}

bool talk_is_over(const struct talk *talk)
{
	struct pollfd server = { .fd = talk->socket, .events = POLLRDHUP };

	return poll(&server, 1, 0) > 0;
}

static int server_gone(int system_error, struct faultline_error *error)
{
	return result_set(error, FAULTLINE_SERVER_GONE, system_error,
			  "Its log, and `faultline fork show` for this fork, say why. Pages that are not there yet will not come: "
			  "end this VM if it runs",
			  "The page server has hung up");
}

static int too_late(struct faultline_error *error)
{
	return result_set(error, FAULTLINE_TIMED_OUT, 0, "", "The page server has not answered in the time given");
}

/* Bytes read, 0 at the server's end, -EAGAIN at the deadline, or another negative errno. */
static ssize_t receive(int socket, void *data, size_t size, uint64_t deadline)
{
	for (;;) {
		struct pollfd server = { .fd = socket, .events = POLLIN | POLLRDHUP };
		int ready = poll(&server, 1, handover_time_left(deadline));

		if (ready < 0 && errno != EINTR)
			return -errno;
		if (ready == 0 && handover_time_left(deadline) == 0)
			return -EAGAIN;
		if (ready <= 0)
			continue;
		ssize_t n = recv(socket, data, size, MSG_DONTWAIT);
		if (n >= 0)
			return n;
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
	}
}

/* The next line into LINE, without its newline. What is there already is read even after the server's end. */
static int read_line(struct talk *talk, char line[static TALK_LINE_MAX], uint64_t deadline,
		     struct faultline_error *error)
{
	char *end;

	while (!(end = memchr(talk->line, '\n', talk->length))) {
		if (talk->length == sizeof talk->line)
			return result_set(error, FAULTLINE_UNEXPECTED, EBADMSG, "Is this a faultline server's socket?",
					  "What answers is no page server that this library knows");
		ssize_t n = receive(talk->socket, talk->line + talk->length, sizeof talk->line - talk->length, deadline);
		if (n == -EAGAIN)
			return too_late(error);
		if (n <= 0)
			return server_gone((int)-n, error);
		talk->length += (size_t)n;
	}
	size_t length = (size_t)(end - talk->line);
	memcpy(line, talk->line, length);
	line[length] = '\0';
	talk->length -= length + 1;
	memmove(talk->line, end + 1, talk->length);
	return FAULTLINE_OK;
}

/* Reads an answer: "ok WORD" is success. "error CODE SENTENCE": the result is MEANING, or what the code says better. */
static int read_answer(struct talk *talk, const char *word, int meaning, uint64_t deadline,
		       struct faultline_error *error)
{
	char line[TALK_LINE_MAX];
	int r = read_line(talk, line, deadline, error);

	if (r < 0)
		return r;
	if (strncmp(line, "ok ", 3) == 0 && strcmp(line + 3, word) == 0)
		return FAULTLINE_OK;
	const char *code = strncmp(line, "error ", 6) == 0 ? line + 6 : NULL;
	const char *sentence = code ? strchr(code, ' ') : NULL;
	if (!sentence)
		return result_set(error, FAULTLINE_UNEXPECTED, EBADMSG, "Is this a faultline server's socket?",
				  "The page server's answer makes no sense: %.80s", line);
	if (strncmp(code, "not_prefetching ", 16) == 0)
		meaning = FAULTLINE_NOT_PREFETCHING;
	return result_set(error, meaning, 0, "", "The page server says: %s", sentence + 1);
}

int talk_wait_connected(struct talk *talk, uint64_t deadline, struct faultline_error *error)
{
	int r = read_answer(talk, "connected", FAULTLINE_REFUSED, deadline, error);

	if (r == FAULTLINE_SERVER_GONE)
		return result_set(error, r, error ? error->system_error : 0,
				  "Its log, and `faultline fork show` for this fork, say why",
				  "The page server hung up instead of answering the handshake");
	if (r == FAULTLINE_TIMED_OUT)
		return result_set(error, r, 0,
				  "If it is no faultline server but one that never answers, connect with "
				  "FAULTLINE_CONNECT_UNANSWERED; else its log may say what it is doing",
				  "The page server took the connection, and has not answered the handshake in the time given");
	return r;
}

/* One line, which the server gets in one piece or not at all. Never waits. */
static int say(struct talk *talk, const char *line, struct faultline_error *error)
{
	ssize_t n;

	do
		n = send(talk->socket, line, strlen(line), MSG_DONTWAIT | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n == (ssize_t)strlen(line))
		return FAULTLINE_OK;
	if (n >= 0 || errno == EAGAIN)
		return result_set(error, FAULTLINE_TIMED_OUT, 0, "It seems to be stuck: look at its log",
				  "The page server does not read what is said to it");
	return server_gone(errno, error);
}

/* One thread reads at a time. False: none of the others was done by the deadline. */
static bool begin_reading(struct talk *talk, uint64_t deadline)
{
	struct timespec at = { .tv_sec = (time_t)(deadline / NSEC_PER_SEC), .tv_nsec = (long)(deadline % NSEC_PER_SEC) };
	int r = 0;

	LOCK_SCOPE(&talk->lock);
	while (talk->reading && r == 0)
		r = deadline == HANDOVER_NO_DEADLINE ? pthread_cond_wait(&talk->idle, &talk->lock)
						     : pthread_cond_timedwait(&talk->idle, &talk->lock, &at);
	if (talk->reading)
		return false;
	talk->reading = true;
	return true;
}

static void end_reading(struct talk *talk)
{
	LOCK_SCOPE(&talk->lock);
	talk->reading = false;
	pthread_cond_signal(&talk->idle);
}

int talk_wait_prefetched(struct talk *talk, uint64_t deadline, struct faultline_error *error)
{
	int r = FAULTLINE_OK;

	if (!begin_reading(talk, deadline))
		return too_late(error);
	/* One question at a time: the answer to one that nobody waited for any more is as good. */
	if (!talk->outstanding)
		r = say(talk, "wait prefetched\n", error);
	if (r == FAULTLINE_OK) {
		talk->outstanding = true;
		r = read_answer(talk, "prefetched", FAULTLINE_PREFETCH_FAILED, deadline, error);
		talk->outstanding = r == FAULTLINE_TIMED_OUT;
	}
	end_reading(talk);
	return r;
}

int talk_say_ready(struct talk *talk, struct faultline_error *error)
{
	return say(talk, "ready\n", error);
}

int talk_finish(struct talk *talk, uint64_t deadline, struct faultline_error *error)
{
	char unread[512];
	ssize_t n;

	shutdown(talk->socket, SHUT_WR);
	do
		n = receive(talk->socket, unread, sizeof unread, deadline);
	while (n > 0);
	return n == -EAGAIN ? too_late(error) : FAULTLINE_OK;
}
