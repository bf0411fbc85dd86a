/* A fork's trace: touches as they happen, one JSON object a line. */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control/routes.h"
#include "serve/server.h"

/* Touches taken from the server at once. */
#define BATCH 128

/* The longest line: numbers of 20 digits, and a thread's name. */
#define LINE_MAX_SIZE 768

struct trace_stream {
	struct server_trace *trace;
	char id[NAME_MAX_LENGTH + 1];
	const char *tier;
	struct observed_touch touches[BATCH];
	size_t count, at;
	uint64_t lost; /* not told yet */
	bool begun, ended;
	const char *why_ended;
};

/* A thread may call itself anything: what JSON would need an escape for is no loss in a name. */
static void clean_name(const char *name, char ret[static 17])
{
	size_t n = 0;

	for (; n < 16 && name[n]; n++)
		ret[n] = isascii((unsigned char)name[n]) && isprint((unsigned char)name[n]) && name[n] != '"' &&
					 name[n] != '\\'
				 ? name[n]
				 : '?';
	ret[n] = '\0';
}

static const char *kind_of(const struct observed_touch *touch)
{
	return touch->write ? "write" : touch->fetch ? "fetch" : "read";
}

/* ",\"NAME_us\":1.234" */
static int print_us(char *line, size_t size, const char *name, uint64_t ns)
{
	return snprintf(line, size, ",\"%s_us\":%" PRIu64 ".%03" PRIu64, name, ns / 1000, ns % 1000);
}

static uint64_t between(uint64_t low, uint64_t value, uint64_t high)
{
	return value < low ? low : value > high ? high : value;
}

#define NO_PHASES ",\"queue_us\":null,\"source_us\":null,\"copy_us\":null,\"wake_us\":null"

/*
 * The phases of a demand fault: they follow each other and sum to the whole. A page that somebody else had asked for before was read, or even in,
 * before this touch began; and a thread runs as soon as its page is in, before the server's call has returned.
 */
static int print_phases(char *line, size_t size, const struct observed_touch *t)
{
	uint64_t end = t->run_ns > t->touch_ns ? t->run_ns : t->touch_ns;
	int n = print_us(line, size, "total", end - t->touch_ns);

	if (!t->read_ns || !t->copied_ns)
		return n + snprintf(line + n, size - (size_t)n, NO_PHASES);
	uint64_t read = between(t->touch_ns, t->read_ns, end), source = between(read, t->source_ns, end),
		 copied = between(source, t->copied_ns, end);
	n += print_us(line + n, size - (size_t)n, "queue", read - t->touch_ns);
	n += print_us(line + n, size - (size_t)n, "source", source - read);
	n += print_us(line + n, size - (size_t)n, "copy", copied - source);
	n += print_us(line + n, size - (size_t)n, "wake", end - copied);
	return n;
}

/* A touch may come before the fork was known to be connected. */
static int print_time(char *line, size_t size, uint64_t ns, uint64_t connected_ns)
{
	bool before = ns < connected_ns;
	uint64_t distance = before ? connected_ns - ns : ns - connected_ns;

	return snprintf(line, size, "{\"event\":\"touch\",\"time_us\":%s%" PRIu64 ".%03" PRIu64, before ? "-" : "",
			distance / 1000, distance % 1000);
}

static int print_vcpu(char *line, size_t size, uint16_t vcpu)
{
	return vcpu == HOT_VCPU_UNKNOWN ? snprintf(line, size, ",\"vcpu\":null")
					: snprintf(line, size, ",\"vcpu\":%u", vcpu);
}

static size_t print_touch(char *line, const struct observed_touch *t, uint64_t connected_ns)
{
	const size_t size = LINE_MAX_SIZE;
	char thread[17];
	int n = print_time(line, size, t->touch_ns, connected_ns);

	clean_name(t->thread, thread);
	n += print_vcpu(line + n, size - (size_t)n, t->vcpu);
	n += snprintf(line + n, size - (size_t)n,
		      ",\"tid\":%d,\"thread\":\"%s\",\"cpu\":%u,\"address\":%" PRIu64
		      ",\"region\":%u,\"offset\":%" PRIu64 ",\"kind\":\"%s\",\"demand\":%s,\"kthread\":%s,\"kvm\":%s",
		      (int)t->tid, thread, t->cpu, t->address, t->region, t->offset, kind_of(t),
		      t->demand ? "true" : "false", t->kthread ? "true" : "false", t->kvm ? "true" : "false");
	n += t->demand ? print_phases(line + n, size - (size_t)n, t)
		       : snprintf(line + n, size - (size_t)n, ",\"total_us\":null" NO_PHASES);
	n += snprintf(line + n, size - (size_t)n, "}\n");
	return (size_t)n;
}

static size_t print_begin(struct trace_stream *stream, char *line)
{
	stream->begun = true;
	return (size_t)snprintf(line, LINE_MAX_SIZE, "{\"event\":\"begin\",\"fork\":\"%s\",\"observe_tier\":\"%s\"}\n",
				stream->id, stream->tier);
}

static size_t print_lost(struct trace_stream *stream, char *line)
{
	uint64_t lost = stream->lost;

	stream->lost = 0;
	return (size_t)snprintf(line, LINE_MAX_SIZE, "{\"event\":\"lost\",\"count\":%" PRIu64 "}\n", lost);
}

static size_t print_end(struct trace_stream *stream, char *line)
{
	stream->ended = true;
	return (size_t)snprintf(line, LINE_MAX_SIZE, "{\"event\":\"end\",\"reason\":\"%s\"}\n", stream->why_ended);
}

/* Takes the next touches, or finds that there are no more. Whether there is anything to print. */
static bool take(struct trace_stream *stream, uint64_t slice_ns, bool stopping)
{
	uint64_t lost = 0;

	if (stopping) {
		stream->why_ended = "stopping";
		return true;
	}
	ssize_t n = server_trace_read(stream->trace, stream->touches, BATCH, slice_ns, &lost);
	stream->lost += lost;
	stream->at = 0;
	stream->count = n > 0 ? (size_t)n : 0;
	if (n < 0)
		stream->why_ended = n == -ESHUTDOWN ? "gone" : n == -ENODATA ? "not_observed" : "failed";
	return n != 0 || lost > 0;
}

/* One line; there is something to print. */
static size_t print_next(struct trace_stream *stream, char *line, uint64_t connected_ns)
{
	if (!stream->begun)
		return print_begin(stream, line);
	if (stream->lost > 0)
		return print_lost(stream, line);
	if (stream->at < stream->count)
		return print_touch(line, &stream->touches[stream->at++], connected_ns);
	return print_end(stream, line);
}

static bool has_more(const struct trace_stream *stream)
{
	return !stream->begun || stream->lost > 0 || stream->at < stream->count || stream->why_ended;
}

static ssize_t read_trace(void *data, char *ret, size_t size, uint64_t slice_ns, bool stopping)
{
	struct trace_stream *stream = data;
	size_t n = 0;

	/* Whoever has no room for a line gets none. */
	if (stream->ended || size < LINE_MAX_SIZE)
		return -1;
	if (!has_more(stream) && !take(stream, slice_ns, stopping))
		return 0;
	uint64_t connected_ns = server_trace_connected_ns(stream->trace);
	while (!stream->ended && has_more(stream) && size - n >= LINE_MAX_SIZE)
		n += print_next(stream, ret + n, connected_ns);
	return (ssize_t)n;
}

static void close_trace(void *data)
{
	struct trace_stream *stream = data;

	server_trace_close(stream->trace);
	free(stream);
}

int handle_fork_trace(struct request *request, struct reply *reply, struct error *err)
{
	_cleanup_free_ struct trace_stream *stream = calloc(1, sizeof *stream);

	if (!stream)
		return error_set(err, -ENOMEM, "no_memory", "the server has no memory for a trace: try again later");
	int r = server_trace_open(request->server, ROUTE_NAME(request), &stream->trace, err);
	if (r < 0)
		return r;
	snprintf(stream->id, sizeof stream->id, "%s", ROUTE_NAME(request));
	stream->tier = server_observe_tier(request->server);
	reply->status = 200;
	reply->stream = (struct reply_stream){ .read = read_trace,
					       .close = close_trace,
					       .data = TAKE_PTR(stream),
					       .content_type = "application/x-ndjson" };
	return 0;
}
