/* faultline trace: a fork's faults and touches as they happen. */
#include "cli/trace.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/options.h"

/* Far over any line that the server writes: what is longer is no trace. */
#define LINE_MAX_SIZE 65536

struct tracing {
	const struct cli_args *args;
	struct trace_filter filter;
	uint64_t count; /* so many and no more; 0: any number */
	struct perfetto *perfetto;
	bool heading;

	char *line; /* that has come in part */
	size_t size;
	uint64_t shown, seen, lost;
	bool unread;  /* whoever read standard output has gone */
	char end[32]; /* why the server ended it, or "" */
	struct error err;
	int result;
};

/* ---- events ---- */

static void show_touch(struct tracing *t, const char *line, const struct trace_touch *touch)
{
	if (t->perfetto) {
		perfetto_touch(t->perfetto, touch);
	} else if (t->args->json) {
		puts(line);
	} else {
		if (!t->heading)
			trace_print_heading();
		t->heading = true;
		trace_print_touch(touch);
	}
	t->shown++;
}

static void show_lost(struct tracing *t, const char *line, uint64_t count)
{
	t->lost += count;
	if (t->perfetto)
		perfetto_lost(t->perfetto, count);
	else if (t->args->json)
		puts(line);
	else
		printf("%14s  %" PRIu64 " events were lost here, as they came faster than they were read\n", "", count);
}

static void show_begin(struct tracing *t, const char *line, const json_t *event)
{
	const char *fork = client_string(event, "fork", ""), *tier = client_string(event, "observe_tier", "");

	if (t->perfetto)
		perfetto_begin(t->perfetto, fork, tier);
	else if (t->args->json)
		puts(line);
}

/* False: that is enough. */
static bool handle(struct tracing *t, const char *line)
{
	json_t *event = json_loads(line, 0, NULL);
	const char *kind = client_string(event, "event", "");
	struct trace_touch touch;

	if (trace_touch_from(event, &touch)) {
		t->seen++;
		if (trace_wanted(&t->filter, &touch))
			show_touch(t, line, &touch);
	} else if (!strcmp(kind, "lost")) {
		show_lost(t, line, (uint64_t)client_number(event, "count"));
	} else if (!strcmp(kind, "begin")) {
		show_begin(t, line, event);
	} else if (!strcmp(kind, "end")) {
		snprintf(t->end, sizeof t->end, "%s", client_string(event, "reason", ""));
		if (t->args->json && !t->perfetto)
			puts(line);
	} else {
		t->result =
			error_set(&t->err, -EPROTO, "bad_answer", "what came from the server is no trace: %.80s", line);
	}
	json_decref(event);
	return t->result == 0 && (t->count == 0 || t->shown < t->count);
}

/* What has come is shown at once, also where standard output is a pipe. */
static bool flush(struct tracing *t)
{
	if (t->perfetto)
		perfetto_flush(t->perfetto);
	if (fflush(stdout) == 0)
		return true;
	t->unread = errno == EPIPE;
	return false;
}

static bool take(void *data, const char *bytes, size_t size)
{
	struct tracing *t = data;
	bool more = true;

	while (more && size > 0) {
		const char *end = memchr(bytes, '\n', size);
		size_t length = end ? (size_t)(end - bytes) : size;

		if (t->size + length >= LINE_MAX_SIZE) {
			t->result = error_set(&t->err, -EPROTO, "bad_answer", "what came from the server is no trace");
			return false;
		}
		memcpy(t->line + t->size, bytes, length);
		t->size += length;
		t->line[t->size] = '\0';
		if (!end)
			break;
		more = handle(t, t->line);
		t->size = 0;
		bytes += length + 1;
		size -= length + 1;
	}
	return flush(t) && more;
}

/* ---- one trace ---- */

/* Ctrl-C is the usual way to end it: it is heard between two events, so that a file is ended as it should be. */
static int hear_signals(void)
{
	sigset_t signals;

	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGHUP);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	/* Who reads our output may go away first: then writing fails, and that is the end. */
	signal(SIGPIPE, SIG_IGN);
	return signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
}

static int run_stream(struct tracing *t, int64_t duration_ns)
{
	_cleanup_api_client_ struct api_client *client = NULL;
	_cleanup_free_ char *path = NULL;
	_cleanup_close_ int signals = hear_signals();
	struct api_stream stream = {
		.take = take,
		.data = t,
		.stop_fd = signals,
		.deadline_ns = duration_ns ? now_ns() + (uint64_t)duration_ns : 0,
	};
	int r = api_client_new(t->args->run_dir, &client, &t->err);

	if (r >= 0)
		r = api_path("/v1/forks/", t->args->arguments[0], "/trace", &path, &t->err);
	if (r >= 0)
		r = api_stream(client, path, &stream, &t->err);
	return r < 0 ? r : t->result;
}

static void report(const struct tracing *t)
{
	fprintf(stderr, "%" PRIu64 " touches", t->seen);
	if (t->shown != t->seen)
		fprintf(stderr, ", %" PRIu64 " of them shown", t->shown);
	if (t->lost)
		fprintf(stderr, "; %" PRIu64 " lost, as they came faster than they were read", t->lost);
	fprintf(stderr, "%s\n",
		!strcmp(t->end, "gone")	      ? "; the fork has ended"
		: !strcmp(t->end, "stopping") ? "; the server is stopping"
					      : "");
}

static int finish(struct tracing *t, int r)
{
	if (t->perfetto) {
		struct error err;
		int closed = perfetto_close(TAKE_PTR(t->perfetto), &err);
		if (closed < 0 && r >= 0) {
			r = closed;
			t->err = err;
		}
	}
	if (r >= 0 && t->end[0] && strcmp(t->end, "gone") != 0 && strcmp(t->end, "stopping") != 0)
		r = error_set(&t->err, -ENODATA, "not_observed",
			      "fork '%s' has connected, but can't be observed: the server's log says why",
			      t->args->arguments[0]);
	if (r < 0)
		return cli_fail(t->args->json, &t->err);
	/* As with a program that SIGPIPE ends: `trace ID | head` is no failure. */
	if (t->unread)
		return EXIT_OK;
	if (!t->args->json)
		report(t);
	return cli_finish_output();
}

static bool parse_number(const char *text, long long *ret)
{
	char *end;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	*ret = strtoll(text, &end, 10);
	return !*end && !errno;
}

static int parse_filter(const struct cli_args *args, struct tracing *t)
{
	const char *vcpu = cli_value(args, "vcpu"), *region = cli_value(args, "region"),
		   *range = cli_value(args, "range"), *stall = cli_value(args, "min-stall"),
		   *count = cli_value(args, "count");
	long long number = 0;

	t->filter.vcpu = t->filter.region = -1;
	t->filter.demand_only = cli_value(args, "demand-only") != NULL;
	if (vcpu && !parse_number(vcpu, &t->filter.vcpu))
		return cli_usage_error(args, "--vcpu is a number from 0 on, not '%s'", vcpu);
	if (region && !parse_number(region, &t->filter.region))
		return cli_usage_error(args, "--region is a number from 0 on, not '%s'", region);
	if (range && !trace_parse_range(range, &t->filter))
		return cli_usage_error(args, "--range is FROM-TO, such as 0x100000-2M, with FROM before TO, not '%s'",
				       range);
	if (stall && !trace_parse_duration(stall, &t->filter.min_stall_ns))
		return cli_usage_error(args, "--min-stall is a time such as 50us or 2ms, not '%s'", stall);
	if (count && (!parse_number(count, &number) || number == 0))
		return cli_usage_error(args, "--count is a number from 1 on, not '%s'", count);
	t->count = (uint64_t)number;
	return EXIT_OK;
}

static int run(const struct cli_args *args)
{
	const char *duration = cli_value(args, "duration"), *file = cli_value(args, "perfetto");
	_cleanup_free_ char *line = malloc(LINE_MAX_SIZE);
	struct tracing t = { .args = args, .line = line };
	int64_t duration_ns = 0;
	int r = parse_filter(args, &t);

	if (r != EXIT_OK)
		return r;
	if (duration && !trace_parse_duration(duration, &duration_ns))
		return cli_usage_error(args, "--duration is a time such as 10s, not '%s'", duration);
	if (!line)
		r = error_set(&t.err, -ENOMEM, "no_memory", "there is not enough memory for a trace");
	if (r >= 0 && file)
		r = perfetto_new(file, &t.perfetto, &t.err);
	if (r >= 0)
		r = run_stream(&t, duration_ns);
	return finish(&t, r);
}

static const struct cli_option options[] = {
	{ .name = "vcpu", .value = "N", .help = "of this vCPU only", .complete = "" },
	{ .name = "region", .value = "N", .help = "in this region only", .complete = "" },
	{ .name = "range",
	  .value = "FROM-TO",
	  .help = "only touches whose address, or offset in its region, is from FROM to before TO",
	  .manual = "Numbers are decimal, hexadecimal with 0x, or have a unit: 512K, 64M, 1G.",
	  .complete = "" },
	{ .name = "demand-only", .help = "no touches of pages that were there" },
	{ .name = "min-stall", .value = "TIME", .help = "only faults that stalled so long: 50us, 2ms", .complete = "" },
	{ .name = "count", .value = "N", .help = "end after N lines", .complete = "" },
	{ .name = "duration", .value = "TIME", .help = "end after that time: 10s, 500ms", .complete = "" },
	{ .name = "perfetto",
	  .value = "FILE",
	  .help = "write a trace file for Perfetto or chrome://tracing, and print none",
	  .manual =
		  "Chrome's JSON format: a lane for each vCPU, whose faults have their phases inside, and one for the pager. The file is whole at any "
		  "moment, also if the trace is interrupted. Open it at ui.perfetto.dev, which keeps it in the browser." },
	{ 0 },
};

static const struct cli_action actions[] = {
	{ .name = "", .arguments = "ID", .summary = "", .options = options, .run = run, .client = true, .complete = "@fork" },
	{ 0 },
};

const struct cli_command trace_command = {
	.name = "trace",
	.summary = "Prints a fork's faults and touches as they happen, until it ends or Ctrl-C.",
	.details =
		"Where the fork's VMM is yet to connect, it waits for that, and misses nothing. The phases of a fault, in\n"
		"microseconds: queue (touch until the server read it), source (until its bytes were at hand), copy (into\n"
		"the guest), wake (until the thread ran again). \"there\": the page was there, nobody waited.",
	.actions = actions,
	.brief = "a fork's faults and touches, live",
	.manual =
		"Needs a server that observes: see the option --observe of faultline-serve(1). Times are since the fork connected. With --json each event is "
		"an object on a line of its own, as the API has it: begin, touch, lost, end.\n\n"
		"Events that come faster than they are read are lost and counted; they are missing here, but not in the figures of "
		"'faultline fork show'.",
	.examples = "Who waits long, and for what:\n\n"
		    "    faultline trace a1 --min-stall 200us\n\n"
		    "The start of a VM as a picture:\n\n"
		    "    socket=$(faultline fork create base --id a1)\n"
		    "    faultline trace a1 --duration 20s --perfetto a1.json &\n"
		    "    start-the-vmm --uffd-socket \"$socket\"",
};
