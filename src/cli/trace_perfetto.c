/*
 * Chrome's trace format in JSON, which Perfetto and chrome://tracing open: a lane for each thread that touched memory, with each of its faults and
 * their phases inside, and for the server what it did at the time. The format is described in "Trace Event Format"; times are microseconds.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "cli/trace.h"

/* Processes in the trace: the guest's threads, and the server's pagers. Made-up numbers: only names are shown. */
enum { GUEST = 1, SERVER = 2 };

/* What the server did at the same time stands side by side: slow reads last while other faults are served. Over that, it is left out. */
#define SERVER_LANES 16

#define TAIL "\n]}\n"

struct perfetto {
	char *path;
	FILE *f;
	bool regular; /* it can be made whole after each piece */
	bool tail;    /* the end stands behind what was written last */
	bool any;
	long long *threads; /* that have a lane */
	size_t thread_count;
	int64_t busy_until[SERVER_LANES];
	unsigned lanes;
	int error;
};

int perfetto_new(const char *path, struct perfetto **ret, struct error *err)
{
	struct perfetto *p = calloc(1, sizeof *p);
	struct stat st;

	if (p)
		p->path = strdup(path);
	if (!p || !p->path) {
		free(p);
		return error_set(err, -ENOMEM, "no_memory", "there is not enough memory for a trace");
	}
	p->f = fopen(path, "we");
	if (!p->f) {
		int r = error_set(err, -errno, "io_error", "can't write the trace to %s: %s", path, strerror(errno));
		perfetto_free(p);
		return r;
	}
	p->regular = fstat(fileno(p->f), &st) == 0 && S_ISREG(st.st_mode);
	fputs("{\"displayTimeUnit\":\"ns\",\"traceEvents\":[", p->f);
	*ret = p;
	return 0;
}

/* Before each event. */
static void separate(struct perfetto *p)
{
	if (p->tail)
		fseek(p->f, -(long)strlen(TAIL), SEEK_CUR);
	p->tail = false;
	fputs(p->any ? ",\n" : "\n", p->f);
	p->any = true;
}

/* NAME has no character that JSON would want escaped: the server sees to that for threads, and an id has none. */
static void name_lane(struct perfetto *p, const char *what, int process, long long lane, const char *name)
{
	separate(p);
	fprintf(p->f, "{\"ph\":\"M\",\"name\":\"%s\",\"pid\":%d,\"tid\":%lld,\"args\":{\"name\":\"%s\"}}", what,
		process, lane, name);
}

static void sort_lane(struct perfetto *p, int process, long long lane, long long place)
{
	separate(p);
	fprintf(p->f,
		"{\"ph\":\"M\",\"name\":\"thread_sort_index\",\"pid\":%d,\"tid\":%lld,\"args\":{\"sort_index\":%lld}}",
		process, lane, place);
}

void perfetto_begin(struct perfetto *p, const char *fork, const char *tier)
{
	char name[160];

	snprintf(name, sizeof name, "fork %s, observed by %s", fork, tier);
	name_lane(p, "process_name", GUEST, 0, name);
	name_lane(p, "process_name", SERVER, 0, "faultline serve");
}

static void print_time(struct perfetto *p, const char *name, int64_t ns)
{
	int64_t whole = ns < 0 ? -ns : ns;

	fprintf(p->f, ",\"%s\":%s%" PRId64 ".%03" PRId64, name, ns < 0 ? "-" : "", whole / 1000, whole % 1000);
}

/* A slice without its end. */
static void begin_slice(struct perfetto *p, const char *name, int process, long long lane, int64_t start, int64_t length)
{
	separate(p);
	fprintf(p->f, "{\"ph\":\"X\",\"cat\":\"fault\",\"name\":\"%s\",\"pid\":%d,\"tid\":%lld", name, process, lane);
	print_time(p, "ts", start);
	print_time(p, "dur", length);
}

static void slice(struct perfetto *p, const char *name, int process, long long lane, int64_t start, int64_t length)
{
	if (length == 0)
		return;
	begin_slice(p, name, process, lane, start, length);
	fputc('}', p->f);
}

static void print_where(struct perfetto *p, const struct trace_touch *t)
{
	fprintf(p->f,
		",\"args\":{\"address\":\"0x%" PRIx64 "\",\"region\":%" PRIu64 ",\"offset\":\"0x%" PRIx64
		"\",\"kind\":\"%s\",\"cpu\":%lld}}",
		t->address, t->region, t->offset, t->kind, t->cpu);
}

static void thread_lane(struct perfetto *p, const struct trace_touch *t)
{
	char name[80];

	for (size_t i = 0; i < p->thread_count; i++)
		if (p->threads[i] == t->tid)
			return;
	long long *threads = reallocarray(p->threads, p->thread_count + 1, sizeof *threads);
	if (!threads) {
		p->error = p->error ?: -ENOMEM;
		return;
	}
	p->threads = threads;
	threads[p->thread_count++] = t->tid;
	if (t->vcpu >= 0)
		snprintf(name, sizeof name, "vCPU %lld: %s", t->vcpu, t->thread);
	else
		snprintf(name, sizeof name, "%s%s", t->kthread ? "kernel thread: " : "", t->thread);
	name_lane(p, "thread_name", GUEST, t->tid, name);
	sort_lane(p, GUEST, t->tid, t->vcpu >= 0 ? t->vcpu : 100000 + t->tid);
}

/* The server's lane that is free from START on; 0: none. They are numbered from 1. */
static unsigned server_lane(struct perfetto *p, int64_t start)
{
	char name[32];

	for (unsigned i = 0; i < p->lanes; i++)
		if (p->busy_until[i] <= start)
			return i + 1;
	if (p->lanes == SERVER_LANES)
		return 0;
	unsigned lane = ++p->lanes;
	snprintf(name, sizeof name, lane == 1 ? "pager" : "pager, beside it (%u)", lane);
	name_lane(p, "thread_name", SERVER, lane, name);
	sort_lane(p, SERVER, lane, lane);
	return lane;
}

static void server_slices(struct perfetto *p, const struct trace_touch *t)
{
	int64_t read = t->time_ns + t->queue_ns, length = t->source_ns + t->copy_ns;
	unsigned lane = length > 0 ? server_lane(p, read) : 0;

	if (lane == 0)
		return;
	p->busy_until[lane - 1] = read + length;
	begin_slice(p, "serve", SERVER, lane, read, length);
	print_where(p, t);
	slice(p, "source", SERVER, lane, read, t->source_ns);
	slice(p, "copy", SERVER, lane, read + t->source_ns, t->copy_ns);
}

void perfetto_touch(struct perfetto *p, const struct trace_touch *t)
{
	int64_t at = t->time_ns;

	thread_lane(p, t);
	if (!t->demand) {
		separate(p);
		fprintf(p->f, "{\"ph\":\"i\",\"s\":\"t\",\"cat\":\"touch\",\"name\":\"touch\",\"pid\":%d,\"tid\":%lld",
			GUEST, t->tid);
		print_time(p, "ts", at);
		print_where(p, t);
		return;
	}
	begin_slice(p, "fault", GUEST, t->tid, at, t->total_ns);
	print_where(p, t);
	if (!t->phased)
		return;
	slice(p, "queue", GUEST, t->tid, at, t->queue_ns);
	slice(p, "source", GUEST, t->tid, at + t->queue_ns, t->source_ns);
	slice(p, "copy", GUEST, t->tid, at + t->queue_ns + t->source_ns, t->copy_ns);
	slice(p, "wake", GUEST, t->tid, at + t->total_ns - t->wake_ns, t->wake_ns);
	server_slices(p, t);
}

void perfetto_lost(struct perfetto *p, uint64_t count)
{
	int64_t last = 0;

	for (unsigned i = 0; i < p->lanes; i++)
		last = p->busy_until[i] > last ? p->busy_until[i] : last;
	separate(p);
	fprintf(p->f,
		"{\"ph\":\"i\",\"s\":\"g\",\"cat\":\"lost\",\"name\":\"%" PRIu64 " events lost\",\"pid\":%d,\"tid\":0",
		count, GUEST);
	print_time(p, "ts", last);
	fputc('}', p->f);
}

static void write_tail(struct perfetto *p)
{
	if (!p->tail)
		fputs(TAIL, p->f);
	p->tail = true;
}

void perfetto_flush(struct perfetto *p)
{
	if (!p->regular)
		return;
	write_tail(p);
	fflush(p->f);
}

int perfetto_close(struct perfetto *p, struct error *err)
{
	int r = p->error;

	write_tail(p);
	if (ferror(p->f) && r == 0)
		r = -EIO;
	if (fclose(TAKE_PTR(p->f)) < 0 && r == 0)
		r = -errno;
	if (r < 0)
		error_set(err, r, "io_error", "can't write all of the trace to %s: %s", p->path, strerror(-r));
	perfetto_free(p);
	return r;
}

void perfetto_free(struct perfetto *p)
{
	if (!p)
		return;
	if (p->f)
		fclose(p->f);
	free(p->threads);
	free(p->path);
	free(p);
}
