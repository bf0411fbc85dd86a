#include "serve/vmm_talk.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/log.h"
#include "serve/internal.h"

/* One line: "ok WORD", or "error CODE SENTENCE". */
static void say(int fd, const char *first, const char *second, const char *third)
{
	char line[ERROR_CODE_MAX + ERROR_MESSAGE_MAX + 16];
	int length = snprintf(line, sizeof line - 1, "%s %s%s%s", first, second, *third ? " " : "", third);

	if (length > (int)sizeof line - 2)
		length = (int)sizeof line - 2;
	/* A path in a sentence may have anything in it. */
	for (int i = 0; i < length; i++)
		if (iscntrl((unsigned char)line[i]))
			line[i] = ' ';
	line[length++] = '\n';
	(void)!send(fd, line, (size_t)length, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void vmm_talk_connected(const struct fork *fork)
{
	if (fork->answers && fork->socket_fd >= 0)
		say(fork->socket_fd, "ok", "connected", "");
}

void vmm_talk_refused(const struct peer *peer, const struct error *err)
{
	if (peer->answers)
		say(peer->fd, "error", err->code, err->message);
}

void vmm_talk_prefetched(struct fork *fork)
{
	struct error err;

	if (!fork->awaits_prefetched || fork->socket_fd < 0)
		return;
	int r = fork_reached(fork, MILESTONE_PREFETCHED, &err);
	if (r == 0)
		return;
	fork->awaits_prefetched = false;
	if (r > 0)
		say(fork->socket_fd, "ok", "prefetched", "");
	else
		say(fork->socket_fd, "error", err.code, err.message);
}

static bool is_line(const struct fork *fork, const char *line)
{
	return fork->heard_length == strlen(line) && memcmp(fork->heard, line, fork->heard_length) == 0;
}

/* A whole line has come. False: it means nothing. */
static bool obey(struct server *server, struct fork *fork)
{
	if (is_line(fork, "ready")) {
		fork_set_ready(server, fork);
		return true;
	}
	if (is_line(fork, "wait prefetched")) {
		fork->awaits_prefetched = true;
		vmm_talk_prefetched(fork);
		return true;
	}
	return false;
}

static void ignore(struct fork *fork)
{
	if (!fork->socket_spoke)
		log_warning(fork->session->name, "its VMM says more after the handshake: ignoring it");
	fork->socket_spoke = true;
}

void vmm_talk_heard(struct server *server, struct fork *fork, const char *text, size_t size)
{
	if (!fork->answers) {
		ignore(fork);
		return;
	}
	for (; size > 0; size--, text++) {
		if (*text == '\n') {
			if (!obey(server, fork))
				ignore(fork);
			fork->heard_length = 0;
		} else if (fork->heard_length < sizeof fork->heard) {
			fork->heard[fork->heard_length++] = *text;
		} else {
			fork->heard_length = sizeof fork->heard + 1;
		}
	}
}
