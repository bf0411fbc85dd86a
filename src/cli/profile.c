/*
 * faultline profile: what a VM touches that maps its image itself, seen by the kernel alone. Nothing is in its way, so its order is bent by
 * nothing but the disk.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/profile.h"
#include "observe/observe.h"
#include "serve/observer.h"

#define SETTLE_S    2
#define MAP_S	    60
#define GRACE_S	    5
#define SECONDS_MAX 86400
/* How often touches are counted, to see whether the guest has settled, and its mappings looked at. */
#define SAMPLE_MS 250
/* A guest that still has this share of its touches within the settling time hasn't settled. */
#define SETTLED_SHARE 100
/* A VMM maps its memory in one go: who hasn't mapped the rest of the image by then is traced no longer. */
#define REST_NS (NSEC_PER_SEC / 4)

/* ---- the command line ---- */

static int parse_seconds(const struct cli_args *args, const char *name, double otherwise, double *ret)
{
	const char *text = cli_value(args, name);
	char *end;

	*ret = otherwise;
	if (!text)
		return EXIT_OK;
	*ret = strtod(text, &end);
	if (end == text || *end || strspn(text, "0123456789.") != strlen(text) || *ret > SECONDS_MAX)
		return cli_usage_error(args, "--%s is a number of seconds from 0 to %d, not '%s'", name, SECONDS_MAX,
				       text);
	return EXIT_OK;
}

static int parse_target(struct profile *profile)
{
	const struct cli_args *args = profile->args;
	const char *text = cli_value(args, "pid");
	char *end;

	if (text && args->argument_count)
		return cli_usage_error(args, "--pid and a command exclude each other");
	if (!text && !args->argument_count)
		return cli_usage_error(args,
				       "there is nothing to profile: name a process with --pid, or a command after '--'");
	if (!text) {
		profile->command = args->arguments;
		return EXIT_OK;
	}
	if (profile->wait)
		return cli_usage_error(args, "--wait is for a command, and --pid names a process");
	errno = 0;
	long pid = strtol(text, &end, 10);
	if (errno || *text < '0' || *text > '9' || *end || pid < 1 || pid > INT32_MAX)
		return cli_usage_error(args, "--pid is the number of a process, not '%s'", text);
	profile->pid = (pid_t)pid;
	return EXIT_OK;
}

static int parse(struct profile *profile)
{
	const struct cli_args *args = profile->args;
	struct error err;

	profile->list_path = cli_value(args, "output");
	profile->memory = cli_value(args, "memory");
	profile->wait = cli_value(args, "wait") != NULL;
	profile->progress = isatty(STDERR_FILENO);
	if (hotlist_format_parse(cli_value(args, "format") ?: "hpl2", &profile->format, &err) < 0)
		return cli_usage_error(args, "%s", err.message);
	int exit_code = parse_target(profile);
	if (exit_code == EXIT_OK)
		exit_code = parse_seconds(args, "duration", 0, &profile->duration_s);
	if (exit_code == EXIT_OK)
		exit_code = parse_seconds(args, "settle", SETTLE_S, &profile->settle_s);
	if (exit_code == EXIT_OK)
		exit_code = parse_seconds(args, "map-timeout", MAP_S, &profile->map_s);
	return exit_code == EXIT_OK ? parse_seconds(args, "grace", GRACE_S, &profile->grace_s) : exit_code;
}

/* ---- the process ---- */

static void catch_signals(struct profile *profile)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	profile->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	signal(SIGPIPE, SIG_IGN);
}

static int follow(struct profile *profile, struct error *err)
{
	int pidfd = (int)syscall(SYS_pidfd_open, profile->pid, 0);

	if (pidfd < 0)
		return error_set(err, -errno, "no_process",
				 errno == ESRCH ? "there is no process %d" : "cannot follow process %d: %m",
				 (int)profile->pid);
	cleanup_close(&profile->pidfd);
	profile->pidfd = pidfd;
	profile->kvm = process_has_kvm(profile->pid);
	return 0;
}

/* The process that a thread belongs to. */
static pid_t process_of(pid_t thread)
{
	_cleanup_free_ char *line = NULL;
	char path[64];
	size_t size = 0;
	int pid = 0;

	snprintf(path, sizeof path, "/proc/%d/status", (int)thread);
	_cleanup_fclose_ FILE *file = fopen(path, "re");
	while (file && !pid && getline(&line, &size, file) > 0)
		sscanf(line, "Tgid: %d", &pid);
	return (pid_t)pid;
}

static bool has_all(const struct profile *profile)
{
	struct stat st;

	/* A guess may be outdone by a larger file. */
	return profile->memory && stat(profile->memory, &st) == 0 && profile->maps.size >= (uint64_t)st.st_size;
}

/* A thread of the command's stands still, and may have mapped something. True: there is more to come. */
static bool mapped(pid_t thread, void *data)
{
	struct profile *profile = data;
	pid_t pid = process_of(thread);
	struct error err;
	bool followed = profile->pidfd >= 0 && pid == profile->pid;
	int r = pid ? profile_look(profile, pid, &err) : 0;

	/* Now, as it may end as soon as it runs again. */
	if (pid && r >= 0 && !followed)
		r = follow(profile, &err);
	/* The image isn't there so far, or the process isn't any more. */
	if (!pid || (r < 0 && (!strcmp(err.code, "not_mapped") || !strcmp(err.code, "no_process"))))
		return true;
	if (r < 0) {
		profile->failed = r;
		profile->failure = err;
		return false;
	}
	if (!profile->watch_until_ns)
		profile->watch_until_ns = now_ns() + REST_NS;
	return !has_all(profile);
}

/* ---- events ---- */

static void handle_signals(struct profile *profile)
{
	struct signalfd_siginfo info;

	while (read(profile->signals, &info, sizeof info) == sizeof info) {
		if (info.ssi_signo == SIGCHLD)
			map_watch_handle(&profile->watch, mapped, profile);
		else if (info.ssi_signo == SIGINT && profile->attached)
			profile->end = PROFILE_STOPPED;
		else
			profile->interrupted_by = (int)info.ssi_signo;
	}
}

static double seconds_since(uint64_t ns)
{
	return (double)(now_ns() - ns) / NSEC_PER_SEC;
}

static void show_progress(const struct profile *profile)
{
	if (profile->progress)
		fprintf(stderr, "\r\033[K%llu touches, %.1f s ", (unsigned long long)profile->touches,
			seconds_since(profile->attached_ns));
}

static bool has_settled(struct profile *profile)
{
	const struct observer *observer = observe_observer(profile->observe);
	struct observed_figures figures;

	if (observer->figures(observer->data, profile->fork, &figures) == 0)
		profile->touches = figures.faults + figures.present;
	show_progress(profile);
	if (!profile->touches || profile->touches - profile->mark_touches > profile->touches / SETTLED_SHARE) {
		profile->mark_touches = profile->touches;
		profile->mark_ns = now_ns();
	}
	return profile->settle_s > 0 && seconds_since(profile->mark_ns) >= profile->settle_s;
}

/* Of a process that has just ended, what was counted last stays. */
static void count_mapped(struct profile *profile)
{
	uint64_t mapped = image_maps_present(profile->pid, &profile->maps);

	if (mapped)
		profile->mapped = mapped;
}

static int sample(struct profile *profile, struct error *err)
{
	struct error ignored;

	if (!profile->attached) {
		if (seconds_since(profile->started_ns) < profile->map_s)
			return 0;
		return error_set(err, -ETIMEDOUT, "not_mapped", "nothing that '%s' started has mapped %s within %g s",
				 profile->command[0], profile->memory ?: "a file that could be a guest's memory",
				 profile->map_s);
	}
	if (profile->watch_until_ns && now_ns() > profile->watch_until_ns && !profile->watch.leaving)
		map_watch_leave(&profile->watch);
	/* It may have grown, or be about to end. */
	count_mapped(profile);
	(void)profile_look(profile, profile->pid, &ignored);
	if (profile->duration_s > 0 && seconds_since(profile->attached_ns) >= profile->duration_s)
		profile->end = PROFILE_DURATION;
	else if (has_settled(profile))
		profile->end = PROFILE_SETTLED;
	return 0;
}

/* Until the next look, or the end of the profile if that is nearer. */
static int wait_ms(const struct profile *profile)
{
	if (!profile->attached || profile->duration_s <= 0)
		return SAMPLE_MS;

	double left_ms = (profile->duration_s - seconds_since(profile->attached_ns)) * 1e3;

	return left_ms <= 0 ? 0 : left_ms < SAMPLE_MS ? (int)left_ms + 1 : SAMPLE_MS;
}

/* The command has ended by itself. 0 where that was all right. */
static int check_exit(struct profile *profile, struct error *err)
{
	char how[120];
	int status = child_end(&profile->child, 0, -1);

	child_describe(status, how, sizeof how);
	if (status)
		return error_set(err, -ECHILD, "command_failed", "'%s' %s", profile->command[0], how);
	if (!profile->attached)
		return error_set(err, -ENOENT, "not_mapped", "'%s' %s, and nothing had mapped %s", profile->command[0],
				 how, profile->memory ?: "a file that could be a guest's memory");
	return 0;
}

static int run_until_end(struct profile *profile, struct error *err)
{
	int r = 0;

	while (r >= 0 && profile->end == PROFILE_RUNS && !profile->interrupted_by) {
		struct pollfd p[] = {
			{ .fd = profile->signals, .events = POLLIN },
			{ .fd = profile->child.pidfd, .events = POLLIN },
			{ .fd = profile->pidfd, .events = POLLIN },
		};

		if (poll(p, 3, wait_ms(profile)) < 0 && errno != EINTR)
			return error_set(err, -errno, "io_error", "waiting failed: %m");
		if (p[0].revents)
			handle_signals(profile);
		if (profile->failed < 0) {
			*err = profile->failure;
			return profile->failed;
		}
		if (p[1].revents && r >= 0)
			r = check_exit(profile, err);
		if (p[1].revents || p[2].revents)
			profile->end = PROFILE_GONE;
		else if (r >= 0 && profile->end == PROFILE_RUNS)
			r = sample(profile, err);
	}
	if (profile->progress)
		fputs("\r\033[K", stderr);
	if (r >= 0 && profile->interrupted_by)
		return error_set(err, -EINTR, "interrupted", "interrupted");
	return r;
}

/* Until the command ends by itself: it has a status to tell where its VM is gone, or is to be waited for. */
static int await_command(struct profile *profile, struct error *err)
{
	int timeout = profile->wait ? -1 : (int)(profile->grace_s * 1000), n = 0;

	if (!profile->child.pid || (!profile->wait && profile->end != PROFILE_GONE))
		return 0;
	while (!profile->interrupted_by) {
		struct pollfd p[] = {
			{ .fd = profile->signals, .events = POLLIN },
			{ .fd = profile->child.pidfd, .events = POLLIN },
		};

		n = poll(p, 2, timeout);
		if (p[0].revents)
			handle_signals(profile);
		if (p[1].revents)
			return check_exit(profile, err);
		if (n == 0 || profile->end == PROFILE_STOPPED)
			return 0;
	}
	return error_set(err, -EINTR, "interrupted", "interrupted");
}

/* ---- the whole ---- */

static int start(struct profile *profile, struct error *err)
{
	const struct child_variable none[] = { { 0 } };
	const struct child_hold hold = { map_watch_seize, map_watch_wait, &profile->watch };

	struct stat st;

	profile->started_ns = now_ns();
	if (profile->memory && stat(profile->memory, &st) < 0)
		return error_set(err, -errno, "bad_memory", "cannot look at the memory image %s: %m", profile->memory);
	/*
	 * Inherited by the command: where the page cache has the image in pieces of 2 MiB, a touch would map 512 pages at once. Linux 6.18 does so all
	 * the same; of a process that runs already it can't be had.
	 */
	if (profile->command)
		prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	if (profile->command)
		return child_start_held(profile->command, none, &hold, &profile->child, err);
	int r = follow(profile, err);
	return r < 0 ? r : profile_look(profile, profile->pid, err);
}

static int no_pages(const struct profile *profile, struct error *err)
{
	const char *why = "it may have touched all of them before, or run nothing";

	if (profile->kvm)
		why = "it is a KVM guest, whose touches this kernel may not tell: see 'faultline doctor'";
	return error_set(err, -ENODATA, "no_pages", "process %d was not seen to touch any page of %s: %s",
			 (int)profile->pid, profile->maps.path, why);
}

static int save(struct profile *profile, struct hotlist *list, struct error *err)
{
	_cleanup_free_ void *data = NULL;
	size_t size;

	if (!list->count)
		return no_pages(profile, err);
	if (strcmp(profile->list_path, "-") != 0)
		return hotlist_save(list, profile->format, profile->list_path, err);
	int r = hotlist_encode(list, profile->format, &data, &size, err);
	if (r >= 0 && cli_print_bytes(data, size) != EXIT_OK)
		r = error_set(err, -EIO, "io_error", "the list could not be written to standard output");
	return r;
}

static int observe(struct profile *profile, struct error *err)
{
	const struct observe_config config = { 0 };
	int r;

	/* A process of its own, which is to have none of the descriptors below. */
	if (!strcmp(cli_value(profile->args, "fault-around") ?: "page", "page"))
		fault_around_narrow(&profile->around);
	else
		fault_around_keep(&profile->around);
	r = observe_new(&config, &profile->observe, err);
	if (r < 0)
		return error_prefix(err, r, "touches can't be observed: ");
	return start(profile, err);
}

static int take_profile(struct profile *profile, struct hotlist **ret, struct error *err)
{
	_cleanup_hotlist_ struct hotlist *list = NULL;
	int r = observe(profile, err);

	if (r >= 0)
		r = run_until_end(profile, err);
	if (r >= 0) {
		profile->window_s = seconds_since(profile->attached_ns);
		count_mapped(profile);
		r = profile_list(profile, &list, err);
	}
	fault_around_restore(&profile->around);
	if (r >= 0)
		r = await_command(profile, err);
	if (r >= 0)
		r = save(profile, list, err);
	if (r >= 0)
		*ret = TAKE_PTR(list);
	return r;
}

static void profile_clear(struct profile *profile)
{
	const struct observer *observer = profile->observe ? observe_observer(profile->observe) : NULL;

	child_end(&profile->child, profile->grace_s, -1);
	map_watch_clear(&profile->watch);
	if (profile->attached)
		observer->release(observer->data, profile->fork);
	observe_free(profile->observe);
	fault_around_restore(&profile->around);
	image_maps_clear(&profile->maps);
	cleanup_close(&profile->pidfd);
	cleanup_close(&profile->signals);
}

static int run(const struct cli_args *args)
{
	_cleanup_(profile_clear) struct profile profile = {
		.args = args, .pidfd = -1, .signals = -1, .child = CHILD_NONE, .around.end = -1
	};
	_cleanup_hotlist_ struct hotlist *list = NULL;
	struct error err = { 0 };
	int exit_code = parse(&profile);

	if (exit_code != EXIT_OK)
		return exit_code;
	catch_signals(&profile);
	if (take_profile(&profile, &list, &err) >= 0)
		return profile_report(&profile, list);
	return profile.interrupted_by ? 128 + profile.interrupted_by : cli_fail(args->json, &err);
}

static const struct cli_option options[] = {
	{ .name = "output",
	  .letter = 'o',
	  .value = "LIST",
	  .help = "where the list goes, replaced as a whole or not at all; '-' is standard output",
	  .required = true },
	{ .name = "pid", .value = "PID", .help = "a VMM that runs already, instead of a command", .complete = "" },
	{ .name = "memory",
	  .value = "FILE",
	  .help = "the memory image whose mapping is the guest's memory (default: the largest file that is mapped)" },
	{ .name = "duration",
	  .value = "S",
	  .help = "the profile ends after S seconds, if not before (default: 0, which is no such end)" },
	{ .name = "settle",
	  .value = "S",
	  .help = "it ends when hardly any page was touched for S seconds; 0: not for that (default: 2)" },
	{ .name = "map-timeout",
	  .value = "S",
	  .help = "fail where nothing has mapped the image S seconds after COMMAND's start (default: 60)" },
	{ .name = "fault-around",
	  .value = "HOW",
	  .help = "page (default): have the kernel map one page at a touch meanwhile; keep: leave it as it is",
	  .words = "page keep",
	  .manual =
		  "The setting (fault_around_bytes in debugfs) is the whole machine's. A process of its own puts back what was there, also when "
		  "faultline is killed. Without it, a touch that only reads brings up to 15 neighbours along, whose own touches aren't seen." },
	{ .name = "format", .value = "FORMAT", .help = "hpl2 (default), hpl1, json or csv", .words = "hpl2 hpl1 json csv" },
	{ .name = "wait", .help = "let COMMAND run on until it ends by itself, instead of ending it with the profile" },
	{ .name = "grace",
	  .value = "S",
	  .help = "SIGKILL comes S seconds after SIGTERM, where COMMAND is ended (default: 5)" },
	{ .name = "json", .help = "print the report as JSON: one object" },
	{ 0 },
};

static const struct cli_action actions[] = {
	{ .name = "",
	  .arguments = "[COMMAND...]",
	  .summary = "",
	  .options = options,
	  .run = run,
	  .complete = "@file",
	  .synopsis = "--pid PID --output LIST [OPTION...]\n--output LIST [OPTION...] -- COMMAND..." },
	{ 0 },
};

const struct cli_command profile_command = {
	.name = "profile",
	.summary = "Makes a hot list of a VM that maps its memory image itself, by watching it from the kernel alone.",
	.details =
		"It needs no page server, and none is in the way: the VMM maps the image (MAP_PRIVATE, mostly), and the kernel\n"
		"tells of each first touch. A VMM is started, as COMMAND, or named by --pid; then touches from now on count.\n"
		"The profile ends with --duration, when the guest has settled, when the VMM ends, or at Ctrl-C, which saves the\n"
		"list as the others do. Then COMMAND is ended.\n\n"
		"It needs root, or the capabilities that 'faultline doctor' names.",
	.actions = actions,
	.brief = "make a hot list by kernel observation alone",
	.manual =
		"COMMAND, and what it starts, is traced (ptrace) from its start until it has mapped the image, so that no touch is missed; then it runs "
		"free. Words after '--' are its own. It gets no stdin, and its stdout is joined to stderr.\n\n"
		"Regions are numbered as the pieces of the image are mapped, by their offset in it, which is as VMMs hand them to a page server.\n\n"
		"Touches of a KVM guest are told where the kernel has the tracepoint kvm_page_fault; those of an emulated one, and of the VMM itself, by the page "
		"faults of its mapping. Pages that were mapped in advance (MAP_POPULATE), or by huge pages, are not seen to be touched.",
	.examples = "Two VMs that map their image, and one list:\n\n"
		    "    faultline profile --memory base.mem -o 1.hpl2 -- ./start-vm\n\n"
		    "    faultline profile --memory base.mem -o 2.hpl2 -- ./start-vm\n\n"
		    "    faultline hotlist merge -o base.hpl2 1.hpl2 2.hpl2\n\n"
		    "Ten seconds of one that runs:\n\n"
		    "    faultline profile --pid 4711 --duration 10 --settle 0 -o now.csv --format csv",
	.exit_status =
		"0 also where Ctrl-C has ended the profile; 128 plus the signal's number where another signal did, or before there was anything to save.",
	.see_also = "faultline-warmup(1), faultline-hotlist(1), faultline-doctor(1)",
};
