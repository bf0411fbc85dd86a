/* faultline replay: a trace of a real guest's first touches against a server, or against none; every page checked. */
#include <errno.h>
#include <ftw.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/replay.h"
#include "hotlist/hotlist.h"
#include "replay/content.h"
#include "replay/list.h"

/* ---- runs ---- */

/* The part of a run in which the guest lives. */
static int run_guest(struct replay_job *job, unsigned number, const char *socket, struct error *err)
{
	static const enum replay_memory memories[] = {
		[SOURCE_OWN_SERVER] = REPLAY_SERVED, [SOURCE_RUN_DIR] = REPLAY_SERVED,	[SOURCE_SOCKET] = REPLAY_SERVED,
		[SOURCE_PLAIN] = REPLAY_PLAIN,	     [SOURCE_PRESENT] = REPLAY_PRESENT,
	};
	struct replay_config config = {
		.trace = job->trace,
		.image = job->image,
		.seed = job->seed,
		.memory = memories[job->source],
		.vcpus = job->vcpus,
		.pace = job->pace,
		.template_path = job->template,
		.socket = socket,
		.answers = replay_has_api(job),
		.cpus = job->cpus,
		.cpu_count = job->cpu_count,
		.interrupt_fd = job->signals,
	};
	const char *touches = cli_value(job->args, "touches");
	struct replay_done *done = &job->done[number];
	_cleanup_replay_guest_ struct replay_guest *guest = NULL;
	int r = replay_start(&config, &guest, err);

	if (r >= 0 && job->prefetch && job->wait)
		r = replay_fork_await_prefetched(job, number, err);
	if (r >= 0)
		r = replay_run(guest, &done->result, err);
	if (r >= 0 && touches && number + 1 == job->runs)
		r = replay_write_touches(guest, touches, err);
	/* Before its process is gone, so that the fork still stands as it was. */
	if (r >= 0 && replay_has_api(job))
		r = replay_fork_finish(job, number, &done->server, err);
	return r;
}

static int check_result(const struct replay_job *job, unsigned number, struct error *err)
{
	const struct replay_wrong *wrong = &job->done[number].result.wrong;
	char more[64] = "";

	if (!wrong->count)
		return 0;
	if (wrong->count > 1)
		snprintf(more, sizeof more, "; %zu other pages are wrong as well", wrong->count - 1);
	return error_set(err, -EBADMSG, "wrong_page",
			 "run %u: page %" PRIu64 " (offset 0x%" PRIx64
			 ") is wrong from byte %u on, where a word is 0x%016" PRIx64 " and should be 0x%016" PRIx64
			 ": %s%s",
			 number + 1, wrong->page, wrong->page * TRACE_PAGE, wrong->byte, wrong->found, wrong->expected,
			 wrong->what, more);
}

static int run_once(struct replay_job *job, unsigned number, struct error *err)
{
	_cleanup_free_ char *socket = NULL;
	int r = 0;

	if (job->cold) {
		/* A server keeps its templates' images mapped. */
		r = replay_template_remove(job, err);
		if (r >= 0)
			r = replay_evict_image(job, err);
	}
	if (r >= 0 && replay_has_api(job))
		r = replay_fork_create(job, number, &socket, err);
	if (r >= 0)
		r = run_guest(job, number, replay_has_api(job) ? socket : cli_value(job->args, "socket"), err);
	return r < 0 ? r : check_result(job, number, err);
}

static int run_all(struct replay_job *job, struct error *err)
{
	bool progress = isatty(STDERR_FILENO) && job->runs > 1;
	int r = 0;

	job->done = calloc(job->runs, sizeof *job->done);
	if (!job->done)
		return error_set(err, -ENOMEM, "no_memory", "there is not enough memory for %u runs", job->runs);
	for (unsigned number = 0; r >= 0 && number < job->runs; number++) {
		if (progress)
			fprintf(stderr, "\rrun %u of %u ", number + 1, job->runs);
		r = run_once(job, number, err);
		job->done_count += r >= 0;
	}
	if (progress)
		fputs("\r\033[K", stderr);
	return r;
}

/* ---- the whole ---- */

/* As many touches one after another are one thread's: what an interrupt handler or a system call makes. */
#define SPREAD_BURST 32

static int load_trace(struct replay_job *job, struct error *err)
{
	_cleanup_trace_ struct trace *trace = NULL;
	int r = trace_load(job->trace_path, &trace, err);

	if (r >= 0 && job->spread)
		r = trace_spread(trace, job->spread, SPREAD_BURST, &job->trace, err);
	else if (r >= 0)
		job->trace = TAKE_PTR(trace);
	return r;
}

static int load(struct replay_job *job, struct error *err)
{
	_cleanup_free_ char *path = NULL;
	const char *bitmap = cli_value(job->args, "nonzero");
	int r = load_trace(job, err);

	if (r < 0)
		return r;
	if (!bitmap)
		bitmap = path = trace_image_path(job->trace_path);
	if (!bitmap)
		return error_set(err, -ENOMEM, "no_memory", "there is not enough memory");
	r = trace_image_load(bitmap, &job->image, err);
	return r < 0 ? r : trace_check_image(job->trace, job->image, err);
}

/* Interruptions come as something to read, so that whatever was begun is ended in order. */
static void catch_signals(struct replay_job *job)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	job->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	/* A limit on file sizes (ulimit -f) shall be an error that is reported and cleaned up after, not a death. */
	signal(SIGXFSZ, SIG_IGN);
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *where)
{
	(void)st;
	(void)type;
	(void)where;
	return remove(path);
}

static void remove_files(const struct replay_job *job)
{
	if (job->dir)
		nftw(job->dir, remove_entry, 8, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
}

static void job_clear(struct replay_job *job)
{
	for (unsigned i = 0; job->done && i < job->runs; i++)
		json_decref(job->done[i].server);
	free(job->done);
	trace_free(job->trace);
	trace_image_free(job->image);
	free(job->cpus);
	free(job->template);
	free(job->run_dir);
	free(job->dir);
	cleanup_close(&job->signals);
}

static int replay(struct replay_job *job, struct error *err)
{
	struct error ignored;
	int r = load(job, err);

	if (r >= 0)
		r = replay_prepare_image(job, err);
	if (r >= 0 && job->source == SOURCE_OWN_SERVER)
		r = replay_server_start(job, err);
	if (r >= 0)
		r = run_all(job, err);
	/* Whatever came before: nothing of ours stays behind. The first failure is the one to tell. */
	int removed = replay_template_remove(job, r < 0 ? &ignored : err);
	r = r < 0 ? r : removed;
	int stopped = replay_server_stop(job, r < 0 ? &ignored : err);
	return r < 0 ? r : stopped;
}

/* What needs no guest: files made of the trace. */
static int write_files(struct replay_job *job, struct error *err)
{
	const char *template = cli_value(job->args, "make-template"),
		   *list_path = cli_value(job->args, "write-hot-list");
	_cleanup_hotlist_ struct hotlist *list = NULL;
	enum hotlist_format format = HOTLIST_HPL1;
	int r = 0;

	if (template) {
		r = load(job, err);
		return r < 0 ? r : content_make_template(template, job->image, job->seed, err);
	}
	if (cli_value(job->args, "format"))
		r = hotlist_format_parse(cli_value(job->args, "format"), &format, err);
	if (r >= 0)
		r = trace_load(job->trace_path, &job->trace, err);
	if (r >= 0)
		r = trace_hot_list(job->trace, &list, err);
	return r < 0 ? r : hotlist_save(list, format, list_path, err);
}

/* Whether the server's log may tell why. */
static bool is_servers_doing(const struct error *err)
{
	static const char *const codes[] = { "server_gone", "server_failed", "guest_stuck", "bad_page",
					     "wrong_page",  "no_server",     "no_answer",   "bad_answer" };

	for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
		if (!strcmp(err->code, codes[i]))
			return true;
	return false;
}

static int finish(struct replay_job *job, int r, const struct error *err)
{
	int signal_number = r < 0 && !strcmp(err->code, "interrupted") ? replay_interrupted(job) : 0, exit_code;

	if (r >= 0) {
		exit_code = job->done ? replay_report(job) : EXIT_OK;
	} else if (signal_number) {
		exit_code = 128 + signal_number;
	} else {
		exit_code = cli_fail(job->args->json, err);
		if (!job->args->json && is_servers_doing(err))
			replay_server_show_log(job);
	}
	return exit_code;
}

static int run(const struct cli_args *args)
{
	struct replay_job job = {
		.args = args, .trace_path = args->arguments[0], .api = *args, .signals = -1, .server_pidfd = -1
	};
	bool files = cli_value(args, "make-template") || cli_value(args, "write-hot-list");
	struct error err = { 0 };
	int exit_code;

	if (cli_value(args, "make-template") && cli_value(args, "write-hot-list"))
		return cli_usage_error(args, "--make-template and --write-hot-list exclude each other");
	exit_code = replay_parse_options(&job);
	if (exit_code == EXIT_OK) {
		snprintf(job.name, sizeof job.name, "replay-%d", (int)getpid());
		catch_signals(&job);
		int r = files ? write_files(&job, &err) : replay(&job, &err);
		exit_code = finish(&job, r, &err);
		remove_files(&job);
	}
	job_clear(&job);
	return exit_code;
}

static const struct cli_option options[] = {
	{ .name = "serve",
	  .help = "against a page server of its own, started for this (the default without a run directory)" },
	{ .name = "run-dir",
	  .value = "DIR",
	  .help = "against the page server in DIR (default: $FAULTLINE_RUN_DIR, where that is set)",
	  .manual = "The image becomes a template there, under a name of the replay's own, and is removed afterwards." },
	{ .name = "socket",
	  .value = "PATH",
	  .help = "against any server that listens there and speaks Firecracker's handshake; needs --template",
	  .complete = "@file" },
	{ .name = "plain", .help = "against no server: a private mapping of the image" },
	{ .name = "present", .help = "against no server, with every page there before: what the replay itself costs" },
	{ .name = "vcpus",
	  .value = "HOW",
	  .help = "waiting (default): for each other, halting: the same asleep, independent, or one: all in one thread",
	  .words = "waiting halting independent one" },
	{ .name = "pace",
	  .value = "PACE",
	  .help = "between touches vCPUs spin (default), idle: asleep until a timer wakes them, or compute",
	  .words = "spin idle compute",
	  .manual = "Those that compute go by the time that they get of a CPU, so that nothing is lost where there are more of them "
		    "than CPUs. The last two are for --vcpus independent." },
	{ .name = "spread", .value = "N", .help = "deal the touches out to N vCPUs, 32 to each in turn", .complete = "" },
	{ .name = "pin",
	  .value = "LIST",
	  .help = "CPUs that the vCPUs' threads stand on, in turn, like 0,1",
	  .complete = "" },
	{ .name = "cpus",
	  .value = "LIST",
	  .help = "CPUs that the pagers of the replay's own server stand on",
	  .complete = "" },
	{ .name = "runs",
	  .value = "N",
	  .help = "so many runs, each a new guest; with their median and spread",
	  .complete = "" },
	{ .name = "cold", .help = "put the image out of the page cache before each run" },
	{ .name = "prefetch",
	  .value = "MODE",
	  .help = "eager: all of the hot list, before the guest runs; stream: beside it, in the list's order; off: none",
	  .words = "eager stream off" },
	{ .name = "hot-list", .value = "LIST", .help = "what to prefetch", .complete = "@file" },
	{ .name = "no-wait", .help = "let the guest run while its pages are prefetched" },
	{ .name = "record", .help = "record the guest, and save the list in -o FILE: the last run's" },
	{ .name = "output", .letter = 'o', .value = "FILE", .help = "where the recording goes", .complete = "@file" },
	{ .name = "format",
	  .value = "FORMAT",
	  .help = "of the lists that are written: hpl1 (default), hpl2, json or csv",
	  .words = "hpl1 hpl2 json csv" },
	{ .name = "touches",
	  .value = "FILE",
	  .help = "write each touch with its times to FILE, as CSV: the last run's",
	  .complete = "@file",
	  .manual = "Columns: page, vcpu, kind, at_ns (when the trace has it), started_ns and ended_ns (when it was), all since the "
		    "guest's start." },
	{ .name = "template",
	  .value = "FILE",
	  .help = "the memory image (default: one is made for this in $TMPDIR, and removed)",
	  .complete = "@file" },
	{ .name = "nonzero",
	  .value = "FILE",
	  .help = "the bitmap of pages with data (default: NAME.nonzero.gz for NAME.csv.gz)",
	  .complete = "@file" },
	{ .name = "seed", .value = "N", .help = "what the image's pages hold depends on it (default: 1)", .complete = "" },
	{ .name = "make-template",
	  .value = "FILE",
	  .help = "only write the trace's memory image to FILE, for --template",
	  .complete = "@file" },
	{ .name = "write-hot-list",
	  .value = "FILE",
	  .help = "only write the trace's pages to FILE, as a hot list",
	  .complete = "@file" },
	{ .name = "json", .help = "print JSON, and errors as JSON on stderr" },
	{ 0 },
};

static const struct cli_action actions[] = {
	{ .name = "",
	  .arguments = "TRACE",
	  .summary = "",
	  .options = options,
	  .run = run,
	  .complete = "@file",
	  .synopsis = "TRACE [--serve | --run-dir DIR | --socket PATH | --plain | --present] [OPTION...]\n"
		      "TRACE --make-template FILE [--seed N]\n"
		      "TRACE --write-hot-list FILE [--format hpl1|hpl2|json|csv]" },
	{ 0 },
};

const struct cli_command replay_command = {
	.name = "replay",
	.brief = "replay the first touches of a real guest, against a server or none",
	.summary = "Replays a trace of a real guest's first touches, and says what its pages' arrival has cost.",
	.details =
		"Threads touch pages when the trace's vCPUs did, and spin in between, as running vCPUs do. Every byte of every\n"
		"page is checked: the memory image is made for the trace, and each page holds what no other does. A page that\n"
		"is wrong is named, with exit status 1.",
	.actions = actions,
	.manual =
		"A stall delays whatever comes later, on the other vCPUs too: a touch starts at its time in the trace plus the "
		"largest lag that any touch has had, and not before all touches that came 50 µs earlier have ended.\n\n"
		"How a trace is recorded is described in docs/traces.md; some are in traces/.",
	.examples = "    faultline replay traces/gcc-compile.2.csv.gz --runs 5 --pin 0,1\n\n"
		    "    faultline replay traces/gcc-compile.1.csv.gz --write-hot-list gcc.hpl1\n\n"
		    "    faultline replay traces/gcc-compile.2.csv.gz --runs 5 --pin 0,1 --hot-list gcc.hpl1",
};
