/* What a replay has shown, as tables for people and as JSON for programs. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/replay.h"

#define MS(ns) ((double)(ns) / (double)NSEC_PER_MSEC)
#define US(ns) ((double)(ns) / (double)NSEC_PER_USEC)

static const char *const source_names[] = {
	[SOURCE_OWN_SERVER] = "serve", [SOURCE_RUN_DIR] = "run-dir", [SOURCE_SOCKET] = "socket",
	[SOURCE_PLAIN] = "plain",      [SOURCE_PRESENT] = "present",
};

static const char *const vcpus_names[] = {
	[REPLAY_WAITING] = "waiting",
	[REPLAY_HALTING] = "halting",
	[REPLAY_INDEPENDENT] = "independent",
	[REPLAY_ONE] = "one",
};

/* ---- over several runs ---- */

/* One number of a run, or of one of its vCPUs. */
struct measure {
	const char *name;				      /* as JSON has it, unit and all */
	double (*of_run)(const struct replay_result *result); /* or */
	double (*of_figures)(const struct replay_figures *figures);
};

static double added_ms(const struct replay_result *r)
{
	return MS(r->added_ns);
}
static double before_ms(const struct replay_result *r)
{
	return MS(r->before_ns);
}
static double run_ms(const struct replay_result *r)
{
	return MS(r->run_ns);
}
static double faults(const struct replay_figures *f)
{
	return (double)f->faults;
}
static double slow(const struct replay_figures *f)
{
	return (double)f->slow;
}
static double stall_ms(const struct replay_figures *f)
{
	return MS(f->stall_ns);
}
static double p50_us(const struct replay_figures *f)
{
	return US(f->p50_ns);
}
static double p90_us(const struct replay_figures *f)
{
	return US(f->p90_ns);
}
static double p99_us(const struct replay_figures *f)
{
	return US(f->p99_ns);
}
static double max_us(const struct replay_figures *f)
{
	return US(f->max_ns);
}
static double minor_faults(const struct replay_figures *f)
{
	return (double)f->minor_faults;
}

enum { RUN_MEASURES = 3, MEASURES = 11 };

static const struct measure measures[MEASURES] = {
	{ "added_ms", added_ms, NULL },	  { "before_ms", before_ms, NULL },	  { "run_ms", run_ms, NULL },
	{ "faults", NULL, faults },	  { "slow_touches", NULL, slow },	  { "stall_ms", NULL, stall_ms },
	{ "stall_p50_us", NULL, p50_us }, { "stall_p90_us", NULL, p90_us },	  { "stall_p99_us", NULL, p99_us },
	{ "stall_max_us", NULL, max_us }, { "minor_faults", NULL, minor_faults },
};

/* VCPU: -1 for all of them. */
static double value_of(const struct measure *measure, const struct replay_result *result, int vcpu)
{
	if (measure->of_run)
		return measure->of_run(result);
	return measure->of_figures(vcpu < 0 ? &result->all : &result->vcpus[vcpu]);
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

struct spread {
	double median, min, max;
};

static struct spread spread_of(const struct replay_job *job, const struct measure *measure, int vcpu)
{
	unsigned n = job->done_count;
	_cleanup_free_ double *values = calloc(n ?: 1, sizeof *values);

	if (!values || !n)
		return (struct spread){ 0 };
	for (unsigned i = 0; i < n; i++)
		values[i] = value_of(measure, &job->done[i].result, vcpu);
	qsort(values, n, sizeof *values, compare);
	double median = n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
	return (struct spread){ median, values[0], values[n - 1] };
}

/* ---- JSON ---- */

static json_t *measured_json(const struct replay_result *result, int vcpu)
{
	json_t *object = json_object();

	for (int m = vcpu < 0 ? 0 : RUN_MEASURES; m < MEASURES; m++)
		json_object_set_new(object, measures[m].name, json_real(value_of(&measures[m], result, vcpu)));
	return object;
}

/* Counts are whole numbers to whoever reads them. */
static void make_counts_whole(json_t *object)
{
	static const char *const counts[] = { "faults", "slow_touches", "minor_faults" };

	for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
		json_object_set_new(object, counts[i], json_integer((json_int_t)client_number(object, counts[i])));
}

/* Of what the server says of the fork, its counters. */
static json_t *server_json(const json_t *fork)
{
	static const char *const members[] = { "faults",	   "copied_pages", "zeroed_pages",   "slow_faults",
					       "stall_ms",	   "stall_p50_us", "stall_p99_us",   "stall_max_us",
					       "prefetched_pages", "prefetch_ms",  "recorded_pages", "stream" };
	json_t *object = fork ? json_object() : json_null();

	for (size_t i = 0; fork && i < sizeof members / sizeof *members; i++)
		json_object_set(object, members[i], json_object_get(fork, members[i]) ?: json_null());
	return object;
}

static json_t *run_json(const struct replay_job *job, const struct replay_done *done)
{
	const struct replay_result *result = &done->result;
	json_t *run = measured_json(result, -1), *vcpus = json_array();

	make_counts_whole(run);
	for (unsigned v = 0; v < job->trace->vcpus; v++) {
		json_t *vcpu = measured_json(result, (int)v);

		make_counts_whole(vcpu);
		json_object_set_new(vcpu, "vcpu", json_integer(v));
		json_object_set_new(vcpu, "touches", json_integer((json_int_t)result->vcpus[v].touches));
		if (job->vcpus == REPLAY_ONE) {
			/* The one thread's. */
			json_object_set_new(vcpu, "faults", json_null());
			json_object_set_new(vcpu, "minor_faults", json_null());
		}
		json_array_append_new(vcpus, vcpu);
	}
	json_object_set_new(run, "checked_pages", json_integer((json_int_t)result->checked));
	json_object_set_new(run, "checked_unasked_pages", json_integer((json_int_t)result->unasked));
	json_object_set_new(run, "wrong_pages", json_integer((json_int_t)result->wrong.count));
	json_object_set_new(run, "vcpus", vcpus);
	json_object_set_new(run, "server", server_json(done->server));
	return run;
}

static json_t *spread_json(const struct replay_job *job)
{
	json_t *object = json_object();

	for (int m = 0; m < MEASURES; m++) {
		struct spread s = spread_of(job, &measures[m], -1);

		json_object_set_new(object, measures[m].name,
				    json_pack("{s:f,s:f,s:f}", "median", s.median, "min", s.min, "max", s.max));
	}
	return object;
}

/* A path that is not UTF-8 becomes null. */
static json_t *path_json(const char *path)
{
	return (path ? json_string(path) : NULL) ?: json_null();
}

static json_t *setting_json(const struct replay_job *job)
{
	json_t *object = json_object(), *cpus = json_array();

	for (size_t i = 0; i < job->cpu_count; i++)
		json_array_append_new(cpus, json_integer(job->cpus[i]));
	json_object_set_new(object, "trace", path_json(job->trace_path));
	json_object_set_new(object, "touches", json_integer((json_int_t)job->trace->count));
	json_object_set_new(object, "length_ms", json_real(MS(job->trace->length_ns)));
	json_object_set_new(object, "image_pages", json_integer((json_int_t)job->image->pages));
	json_object_set_new(object, "image_pages_with_data", json_integer((json_int_t)job->image->nonzero));
	json_object_set_new(object, "memory", json_string(source_names[job->source]));
	json_object_set_new(object, "vcpus", json_string(vcpus_names[job->vcpus]));
	json_object_set_new(object, "pinned_to", cpus);
	json_object_set_new(object, "crowded", json_boolean(job->done[0].result.crowded));
	json_object_set_new(object, "cold", json_boolean(job->cold));
	json_object_set_new(object, "prefetch", json_string(job->prefetch ?: "off"));
	json_object_set_new(object, "waited_for_prefetch", json_boolean(job->prefetch && job->wait));
	json_object_set_new(object, "hot_list", path_json(cli_value(job->args, "hot-list")));
	return object;
}

static int report_json(const struct replay_job *job)
{
	json_t *object = setting_json(job), *runs = json_array();

	for (unsigned i = 0; i < job->done_count; i++)
		json_array_append_new(runs, run_json(job, &job->done[i]));
	json_object_set_new(object, "runs", runs);
	json_object_set_new(object, "all_runs", spread_json(job));
	int exit_code = cli_print_json(object);
	json_decref(object);
	return exit_code;
}

/* ---- text ---- */

static void print_vcpus(const struct replay_job *job)
{
	static const char *const names[] = {
		[REPLAY_WAITING] = "a thread each, waiting for each other",
		[REPLAY_HALTING] = "a thread each, asleep while they wait for each other",
		[REPLAY_INDEPENDENT] = "a thread each, independent of each other",
		[REPLAY_ONE] = "all in one thread",
	};

	static const char *const paces[] = {
		[REPLAY_SPINS] = "",
		[REPLAY_COMPUTES] = ", their time that of their CPU",
		[REPLAY_IDLES] = ", asleep between touches",
	};

	printf("vCPUs     %s%s", names[job->vcpus], paces[job->pace]);
	for (size_t i = 0; i < job->cpu_count; i++)
		printf("%s%d", i ? ", " : job->cpu_count == 1 ? "; on CPU " : "; on CPUs ", job->cpus[i]);
	if (job->done[0].result.crowded)
		printf("\n          more of them than CPUs: they gave way to each other while they waited, and times say little");
	putchar('\n');
}

static void print_memory(const struct replay_job *job)
{
	printf("Memory    ");
	switch (job->source) {
	case SOURCE_OWN_SERVER:
		printf("from a page server of its own");
		break;
	case SOURCE_RUN_DIR:
		printf("from the page server in %s", job->api.run_dir);
		break;
	case SOURCE_SOCKET:
		printf("from the page server at %s", cli_value(job->args, "socket"));
		break;
	case SOURCE_PLAIN:
		printf("a private mapping of the image");
		break;
	case SOURCE_PRESENT:
		printf("every page there before");
		break;
	}
	if (job->source != SOURCE_PRESENT && job->source != SOURCE_SOCKET)
		printf(", %s page cache", job->cold ? "cold" : "warm");
	putchar('\n');
	if (job->prefetch)
		printf("Prefetch  %s, %s\n", cli_value(job->args, "hot-list") ?: "-",
		       job->wait			      ? "all of it before the guest ran"
		       : strcmp(job->prefetch, "stream") == 0 ? "streamed beside the guest"
							      : "beside the guest");
}

static void print_head(const struct replay_job *job)
{
	char size[32];

	cli_format_size(job->image->pages * TRACE_PAGE, size, sizeof size);
	printf("Trace     %s: %zu touches in %.1f ms\n", job->trace_path, job->trace->count, MS(job->trace->length_ns));
	printf("Image     %s, %" PRIu64 " of its %" PRIu64 " pages with data\n", size, job->image->nonzero,
	       job->image->pages);
	print_memory(job);
	print_vcpus(job);
	putchar('\n');
}

static const char *const headings[] = { "",	">ADDED", ">BEFORE", ">FAULTS",	      ">STALL",	      ">P50",
					">P90", ">P99",	  ">MAX",    ">SLOW TOUCHES", ">MINOR FAULTS" };
enum { COLUMNS = sizeof headings / sizeof *headings };
/* Of each column but the first, the measure. */
static const int shown[COLUMNS - 1] = { 0, 1, 3, 5, 6, 7, 8, 9, 4, 10 };

static void print_value(struct cli_table *table, int measure, double value)
{
	const char *name = measures[measure].name;
	size_t length = strlen(name);
	char text[32];
	bool ms = !strcmp(name + length - 3, "_ms"), us = !strcmp(name + length - 3, "_us");

	if (!ms && !us) {
		cli_table_cell(table, "%.0f", value);
		return;
	}
	if (us)
		value /= 1000;
	/* Added time may be a little less than nothing: instructions are counted to a block of code, and not to the access in it. */
	cli_format_ms(value < 0 ? -value : value, text, sizeof text);
	cli_table_cell(table, "%s%s", value < 0 ? "-" : "", text);
}

static void print_row(struct cli_table *table, const char *name, const double values[MEASURES])
{
	cli_table_cell(table, "%s", name);
	for (int c = 0; c < COLUMNS - 1; c++)
		print_value(table, shown[c], values[shown[c]]);
}

static void print_runs(const struct replay_job *job)
{
	struct cli_table *table = cli_table_new(headings, COLUMNS);
	double values[3][MEASURES];
	char name[24];

	if (!table)
		return;
	for (unsigned i = 0; i < job->done_count; i++) {
		for (int m = 0; m < MEASURES; m++)
			values[0][m] = value_of(&measures[m], &job->done[i].result, -1);
		snprintf(name, sizeof name, "run %u", i + 1);
		print_row(table, name, values[0]);
	}
	for (int m = 0; m < MEASURES; m++) {
		struct spread s = spread_of(job, &measures[m], -1);

		values[0][m] = s.median;
		values[1][m] = s.min;
		values[2][m] = s.max;
	}
	if (job->done_count > 1) {
		print_row(table, "median", values[0]);
		print_row(table, "least", values[1]);
		print_row(table, "most", values[2]);
	}
	cli_table_print(table);
}

static void print_each_vcpu(const struct replay_job *job)
{
	static const char *const titles[] = { "",     ">TOUCHES", ">FAULTS", ">STALL",	      ">P50",
					      ">P90", ">P99",	  ">MAX",    ">SLOW TOUCHES", ">MINOR FAULTS" };
	struct cli_table *table = cli_table_new(titles, sizeof titles / sizeof *titles);

	if (!table)
		return;
	for (unsigned v = 0; v < job->trace->vcpus; v++) {
		cli_table_cell(table, "vCPU %u", v);
		cli_table_cell(table, "%zu", job->done[0].result.vcpus[v].touches);
		for (int c = 2; c < COLUMNS - 1; c++) {
			int m = shown[c];

			if (job->vcpus == REPLAY_ONE &&
			    (measures[m].of_figures == faults || measures[m].of_figures == minor_faults))
				cli_table_cell(table, "-");
			else
				print_value(table, m, spread_of(job, &measures[m], (int)v).median);
		}
	}
	printf("\n%s", job->done_count > 1 ? "Medians of each vCPU:\n" : "");
	cli_table_print(table);
}

static void print_server(const struct replay_job *job)
{
	const json_t *server = job->done[job->done_count - 1].server;

	if (server)
		printf("\n%she server counted %.0f demand faults, and %.0f pages prefetched.",
		       job->done_count > 1 ? "In the last run t" : "T", client_number(server, "faults"),
		       client_number(server, "prefetched_pages"));

	const json_t *stream = json_object_get(server, "stream");
	if (json_is_object(stream))
		printf("\nOf %.0f pages in the list %.0f came in time and %.0f late; %.0f that were asked for are not in it.",
		       client_number(stream, "planned"), client_number(stream, "prefetched"),
		       client_number(stream, "late"), client_number(stream, "missing"));
}

static void print_legend(void)
{
	printf("\nadded   from the handshake to the end of the last touch, less the trace's own length\n"
	       "before  the part of it before the guest ran\n"
	       "faults  pages that a vCPU waited for, from the server or from the disk\n"
	       "stall   slow touches, %llu µs and more, all together; percentiles are of those\n",
	       REPLAY_SLOW_NS / NSEC_PER_USEC);
}

static void report_text(const struct replay_job *job)
{
	const struct replay_result *last = &job->done[job->done_count - 1].result;

	print_head(job);
	print_runs(job);
	print_each_vcpu(job);
	print_legend();
	print_server(job);
	printf("\nChecked: every byte of the %zu pages touched%s", last->checked,
	       job->done_count > 1 ? ", in each run" : "");
	if (last->unasked)
		printf(", and of %zu that came unasked", last->unasked);
	printf(".\n");
}

int replay_report(const struct replay_job *job)
{
	if (job->args->json)
		return report_json(job);
	report_text(job);
	return cli_finish_output();
}
