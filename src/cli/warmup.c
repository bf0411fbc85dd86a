/* faultline warmup: a command as N recorded forks of a template, one after another, and one hot list of what they touched. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/warmup.h"
#include "hotlist/merge.h"

#define RUNS_DEFAULT 3
#define RUNS_MAX     1000
#define CONNECT_S    30
#define WINDOW_S     60
#define SETTLE_S     2
#define GRACE_S	     5

int warmup_no_memory(struct error *err)
{
	return error_set(err, -ENOMEM, "no_memory", "there is not enough memory");
}

int warmup_read_signal(const struct warmup_job *job)
{
	struct signalfd_siginfo info;

	return job->signals >= 0 && read(job->signals, &info, sizeof info) == sizeof info ? (int)info.ssi_signo : 0;
}

/* ---- the command line ---- */

static int parse_runs(struct warmup_job *job)
{
	const char *text = cli_value(job->args, "runs");
	char *end;

	job->runs = RUNS_DEFAULT;
	if (!text)
		return EXIT_OK;
	errno = 0;
	unsigned long n = strtoul(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno || n < 1 || n > RUNS_MAX)
		return cli_usage_error(job->args, "--runs is a number from 1 to %d, not '%s'", RUNS_MAX, text);
	job->runs = (unsigned)n;
	return EXIT_OK;
}

static int parse(struct warmup_job *job)
{
	const struct cli_args *args = job->args;
	struct error err;
	int exit_code = parse_runs(job);

	if (exit_code == EXIT_OK)
		exit_code = cli_seconds(args, "connect-timeout", CONNECT_S, &job->connect_s);
	if (exit_code == EXIT_OK)
		exit_code = cli_seconds(args, "window-timeout", WINDOW_S, &job->window_s);
	if (exit_code == EXIT_OK)
		exit_code = cli_seconds(args, "settle", SETTLE_S, &job->settle_s);
	if (exit_code == EXIT_OK)
		exit_code = cli_seconds(args, "grace", GRACE_S, &job->grace_s);
	if (exit_code != EXIT_OK)
		return exit_code;
	job->template = args->arguments[0];
	job->command = args->arguments + 1;
	job->list_path = cli_value(args, "output");
	job->wait = cli_value(args, "wait") != NULL;
	job->vary_cache = cli_value(args, "vary-cache") != NULL;
	job->progress = isatty(STDERR_FILENO);
	if (job->vary_cache && job->runs < 2)
		return cli_usage_error(args, "--vary-cache needs at least two runs: one cold, one warm");
	if (hotlist_format_parse(cli_value(args, "format") ?: "hpl2", &job->format, &err) < 0)
		return cli_usage_error(args, "%s", err.message);
	return EXIT_OK;
}

/* ---- before the first run ---- */

/* The command may change its directory, and is to find the server still. */
static int find_run_dir(struct warmup_job *job, struct error *err)
{
	const char *given = job->args->run_dir;

	if (!given || !*given)
		given = getenv("FAULTLINE_RUN_DIR");
	return api_absolute_path(given && *given ? given : API_DEFAULT_RUN_DIR, &job->run_dir, err);
}

/* Found out before minutes of warm-ups have been spent. */
static int check_list_path(struct warmup_job *job, struct error *err)
{
	if (!job->list_path)
		return error_set(err, -EINVAL, "no_list",
				 "template %s has no list of its own ('template add --hot-list' names one): say where this one goes, with -o LIST",
				 job->template);
	if (!strcmp(job->list_path, "-"))
		return 0;

	_cleanup_free_ char *dir = strdup(job->list_path);

	if (!dir)
		return warmup_no_memory(err);

	char *slash = strrchr(dir, '/');

	if (slash)
		slash[slash == dir] = '\0';
	if (access(slash ? dir : ".", W_OK | X_OK) < 0)
		return error_set(err, -errno, "io_error", "cannot write %s: %s", job->list_path, strerror(errno));
	return 0;
}

static void catch_signals(struct warmup_job *job)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	job->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	/* stderr may be a pipe that somebody has left; the VMM is to be ended all the same. */
	signal(SIGPIPE, SIG_IGN);
}

static int prepare(struct warmup_job *job, struct error *err)
{
	int r = find_run_dir(job, err);

	if (r >= 0)
		r = warmup_template_get(job, err);
	if (r >= 0)
		r = check_list_path(job, err);
	if (r < 0)
		return r;
	job->done = calloc(job->runs, sizeof *job->done);
	return job->done ? 0 : warmup_no_memory(err);
}

/* ---- the whole ---- */

static int run_all(struct warmup_job *job, struct error *err)
{
	int r = 0;

	for (unsigned number = 0; r >= 0 && number < job->runs; number++) {
		/* The first is cold, which leaves the second what it needs in the page cache. */
		if (job->vary_cache && number % 2 == 0)
			r = warmup_template_cool(job, &job->done[number], err);
		if (r >= 0)
			r = warmup_run_once(job, number, err);
		job->done_count += r >= 0;
	}
	warmup_template_clear(job);
	return r;
}

static int merge(const struct warmup_job *job, struct merge_result *ret, struct error *err)
{
	_cleanup_free_ const struct hotlist **lists = calloc(job->runs, sizeof *lists);
	_cleanup_free_ const char **names = calloc(job->runs, sizeof *names);

	if (!lists || !names)
		return warmup_no_memory(err);
	for (unsigned i = 0; i < job->runs; i++) {
		/* The window was ended here, which the server can't know. */
		if (job->done[i].list->origin)
			job->done[i].list->origin->window_end = job->done[i].end;
		lists[i] = job->done[i].list;
		names[i] = job->done[i].name;
	}
	return merge_lists(lists, names, job->runs, ret, err);
}

static int save(const struct warmup_job *job, const struct hotlist *list, struct error *err)
{
	_cleanup_free_ void *data = NULL;
	size_t size;

	if (strcmp(job->list_path, "-") != 0)
		return hotlist_save(list, job->format, job->list_path, err);
	int r = hotlist_encode(list, job->format, &data, &size, err);
	if (r >= 0 && cli_print_bytes(data, size) != EXIT_OK)
		r = error_set(err, -EIO, "io_error", "the list could not be written to standard output");
	return r;
}

static void job_clear(struct warmup_job *job)
{
	for (unsigned i = 0; job->done && i < job->runs; i++)
		hotlist_free(job->done[i].list);
	free(job->done);
	free(job->run_dir);
	free(job->memory);
	free(job->state);
	free(job->inject);
	free(job->own_list);
	cleanup_close(&job->signals);
}

static int warm_up(struct warmup_job *job, struct merge_result *merged, struct error *err)
{
	int r = prepare(job, err);

	if (r >= 0)
		r = run_all(job, err);
	if (r >= 0)
		r = merge(job, merged, err);
	return r < 0 ? r : save(job, merged->list, err);
}

static int run(const struct cli_args *args)
{
	_cleanup_(job_clear) struct warmup_job job = { .args = args, .signals = -1 };
	struct merge_result merged = { 0 };
	struct error err = { 0 };
	int exit_code = parse(&job);

	if (exit_code != EXIT_OK)
		return exit_code;
	catch_signals(&job);
	if (warm_up(&job, &merged, &err) >= 0)
		exit_code = warmup_report(&job, &merged);
	else
		exit_code = job.interrupted_by ? 128 + job.interrupted_by : cli_fail(args->json, &err);
	hotlist_free(merged.list);
	return exit_code;
}

static const struct cli_option options[] = {
	{ .name = "output",
	  .letter = 'o',
	  .value = "LIST",
	  .help = "where the list goes, replaced as a whole or not at all; '-' is standard output (default: the template's own list)",
	  .manual = "The template's own is the one that 'faultline template add --hot-list' named, which need not exist before: its forks prefetch what they find "
		    "there, from the next one on." },
	{ .name = "runs", .value = "N", .help = "how many warm-up forks, one after another (default: 3)" },
	{ .name = "format",
	  .value = "FORMAT",
	  .help = "hpl2 (default), hpl1, json or csv",
	  .words = "hpl2 hpl1 json csv",
	  .manual = "HPL1 has neither order nor anything else that the runs agreed on: pages alone." },
	{ .name = "window-timeout",
	  .value = "S",
	  .help = "a fork's recording ends S seconds after its VMM has connected, if not before (default: 60)" },
	{ .name = "settle",
	  .value = "S",
	  .help = "it ends when hardly any page was touched for S seconds; 0: not for that (default: 2)",
	  .manual = "Hardly any: no more than a hundredth of those so far. A guest that says when it is ready, and waits for something on the way there, "
		    "is better off with 0." },
	{ .name = "connect-timeout",
	  .value = "S",
	  .help = "fail where no VMM has connected S seconds after COMMAND's start (default: 30)" },
	{ .name = "wait", .help = "let COMMAND run on until it ends by itself, instead of ending it with the window" },
	{ .name = "grace",
	  .value = "S",
	  .help = "SIGKILL comes S seconds after SIGTERM, where COMMAND is ended (default: 5)" },
	{ .name = "vary-cache",
	  .help = "every other run, from the first on, with the image out of the page cache",
	  .manual =
		  "Order that repeats while stalls don't is the guest's own: runs under unlike conditions show better which clock is right. It takes a "
		  "second template of the same image while it runs. Pages that anybody has mapped, as the server has those of its templates, stay in the "
		  "page cache: then it is a template of a copy of the image, in $TMPDIR or /var/tmp. What stayed in memory all the same is in the report." },
	{ 0 },
};

static const struct cli_action actions[] = {
	{ .name = "",
	  .arguments = "TEMPLATE COMMAND...",
	  .summary = "",
	  .options = options,
	  .run = run,
	  .client = true,
	  .complete = "@template",
	  .synopsis = "TEMPLATE [--output LIST] [OPTION...] -- COMMAND..." },
	{ 0 },
};

const struct cli_command warmup_command = {
	.name = "warmup",
	.summary = "Runs a command as recorded forks of a template, and makes one hot list of what they touched.",
	.details =
		"COMMAND starts a VMM that connects to $FAULTLINE_SOCKET. It has $FAULTLINE_FORK, the fork's id, and\n"
		"$FAULTLINE_RUN_DIR as well, so that 'faultline fork ready $FAULTLINE_FORK' says from wherever that is known\n"
		"that the guest is ready; libfaultline's faultline_ready() says the same. That ends the recording's window, or\n"
		"else that the guest has settled, the time-out, or the VMM's end. Then COMMAND is ended.\n\n"
		"Words after '--' are COMMAND's own. It gets no stdin, and its stdout is joined to stderr.",
	.actions = actions,
	.brief = "make a hot list from recorded runs of a command",
	.manual =
		"Prefetching is off for these forks. Their lists are merged as by 'faultline hotlist merge': pages in the order "
		"in which the runs touched them, by the clock under which their orders agree most.\n\n"
		"COMMAND runs in a process group of its own, and all of that group is ended. Where a run fails, nothing is "
		"written: COMMAND can't be started, no VMM connects, or COMMAND ends by itself with another status than 0. A COMMAND that ends by itself "
		"with status 0 ends its run.\n\n"
		"$FAULTLINE_MEMORY is set to the template's image, for the preload library, unless it is set already.",
	.examples = "Three runs of an unchanged QEMU, whose list the template's forks get from then on:\n\n"
		    "    faultline warmup base --set -o base.hpl2 -- \\\n"
		    "        env LD_PRELOAD=/usr/local/lib/faultline/libfaultline-preload.so qemu-system-x86_64 ...\n\n"
		    "A VMM that says itself when its guest is ready:\n\n"
		    "    faultline warmup base --runs 5 --settle 0 -o base.hpl2 -- ./vmm base.mem",
	.exit_status =
		"Interrupted by a signal, it ends COMMAND, removes the fork, writes nothing, and exits with 128 plus the signal's number.",
	.see_also = "faultline-fork(1), faultline-hotlist(1), faultline-profile(1)",
};
