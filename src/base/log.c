#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static struct {
	enum log_level max;
	bool json;
} settings = { .max = LOG_LEVEL_INFO };

static const char *const level_names[] = { "error", "warning", "info", "debug" };

void log_setup(enum log_level max, bool json)
{
	settings.max = max;
	settings.json = json;
}

/* Copies TEXT as the inside of a JSON string; what is not printable ASCII or UTF-8 goes as \u00XX. */
static size_t escape_json(char *out, size_t size, const char *text)
{
	size_t n = 0;

	for (const unsigned char *p = (const unsigned char *)text; *p && n + 7 < size; p++) {
		if (*p == '"' || *p == '\\') {
			out[n++] = '\\';
			out[n++] = (char)*p;
		} else if (*p < 0x20 || *p == 0x7f) {
			n += (size_t)snprintf(out + n, size - n, "\\u%04x", *p);
		} else {
			out[n++] = (char)*p;
		}
	}
	out[n] = '\0';
	return n;
}

/* A record stays on one line whatever a peer put in it. */
static void flatten(char *text)
{
	for (unsigned char *p = (unsigned char *)text; *p; p++)
		if (*p < 0x20 || *p == 0x7f)
			*p = '?';
}

void log_write(enum log_level level, const char *object, const char *format, ...)
{
	if (level > settings.max)
		return;

	int saved_errno = errno;
	char message[1024], line[4096];
	struct timeval tv;
	struct tm tm;
	char stamp[32];

	va_list ap;
	va_start(ap, format);
	vsnprintf(message, sizeof message, format, ap);
	va_end(ap);

	gettimeofday(&tv, NULL);
	gmtime_r(&tv.tv_sec, &tm);
	strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &tm);

	int n;
	if (settings.json) {
		char escaped[2560], escaped_object[256];
		escape_json(escaped, sizeof escaped, message);
		escape_json(escaped_object, sizeof escaped_object, object ?: "");
		n = snprintf(line, sizeof line,
			     "{\"time\":\"%s.%03dZ\",\"level\":\"%s\",\"object\":\"%s\",\"message\":\"%s\"}\n", stamp,
			     (int)(tv.tv_usec / 1000), level_names[level], escaped_object, escaped);
	} else {
		flatten(message);
		n = snprintf(line, sizeof line, "%s.%03dZ %-7s %s%s%s\n", stamp, (int)(tv.tv_usec / 1000),
			     level_names[level], object ?: "", object ? ": " : "", message);
	}
	if (n > 0) {
		size_t length = (size_t)n < sizeof line ? (size_t)n : sizeof line - 1;
		ssize_t ignored = write(STDERR_FILENO, line, length);
		(void)ignored;
	}
	errno = saved_errno;
}
