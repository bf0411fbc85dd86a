/* faultline serve: the daemon, in the foreground. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <systemd/sd-daemon.h>

#include "base/log.h"
#include "cli/api_client.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/serve_observe.h"
#include "control/control.h"
#include "serve/server.h"

struct daemon {
	struct serve_observe observing;
	struct server *server;
	struct control *control;
};

/* Each fork takes a handful of fds, and each client of the API one: what the administrator allows is taken whole. */
static void raise_file_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur == limit.rlim_max)
		return;
	limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
		log_warning(NULL, "can't raise the limit on open files: %m, ignoring");
}

/* NAME is one of those that the table of options allows. */
static enum log_level parse_log_level(const char *name)
{
	static const char *const names[] = { "error", "warning", "info", "debug" };
	int i = 0;

	while (i < LOG_LEVEL_DEBUG && strcmp(names[i], name))
		i++;
	return (enum log_level)i;
}

static void set_up_log(const struct cli_args *args)
{
	const char *format = cli_value(args, "log-format") ?: "text";
	const char *level = cli_value(args, "log-level") ?: "info";

	log_setup(parse_log_level(level), !strcmp(format, "json"));
}

static void on_ready(void *data)
{
	struct daemon *daemon = data;

	sd_notifyf(0, "READY=1\nSTATUS=Serving forks; the API is at %s/" CONTROL_SOCKET_NAME,
		   server_run_dir(daemon->server));
}

/* The API goes first, so that nobody starts a fork that the server is about to end. */
static void on_stop(void *data)
{
	struct daemon *daemon = data;

	sd_notify(0, "STOPPING=1\nSTATUS=Stopping: live forks' VMMs are ended");
	control_stop(TAKE_PTR(daemon->control));
}

static int fail(const struct error *err)
{
	log_error(NULL, "%s", err->message);
	return EXIT_FAILED;
}

static int serve(struct daemon *daemon, const struct server_config *config)
{
	struct error err = { 0 };

	if (server_new(config, &daemon->server, &err) < 0)
		return fail(&err);
	server_on_stop(daemon->server, on_stop, daemon);
	if (control_start(daemon->server, FAULTLINE_VERSION, &daemon->control, &err) < 0)
		return fail(&err);
	log_info(NULL, "faultline %s serves in %s: API at %s/" CONTROL_SOCKET_NAME ", %u pager%s, %s", FAULTLINE_VERSION,
		 server_run_dir(daemon->server), server_run_dir(daemon->server), server_pager_count(daemon->server),
		 server_pager_count(daemon->server) == 1 ? "" : "s", daemon->observing.summary);
	if (server_run(daemon->server, on_ready, daemon, &err) < 0)
		return fail(&err);
	log_info(NULL, "stopped");
	return EXIT_OK;
}

static int run(const struct cli_args *args)
{
	const char *run_dir = cli_value(args, "run-dir") ?: getenv("FAULTLINE_RUN_DIR");
	struct daemon daemon = { 0 };
	struct server_config config = {
		.run_dir = run_dir && *run_dir ? run_dir : API_DEFAULT_RUN_DIR,
		.cpus = cli_value(args, "cpus"),
		.observe = serve_observe_start,
		.observe_data = &daemon.observing,
	};
	int r = serve_observe_parse(args, &daemon.observing);

	if (r != EXIT_OK)
		return r;

	set_up_log(args);
	raise_file_limit();
	int exit_code = serve(&daemon, &config);
	control_stop(daemon.control);
	server_free(daemon.server);
	serve_observe_stop(&daemon.observing);
	return exit_code;
}

static const struct cli_option options[] = {
	{ .name = "run-dir",
	  .value = "DIR",
	  .help = "its sockets and state; made with mode 0700 (default: $FAULTLINE_RUN_DIR, or /run/faultline)",
	  .manual = "Its parent must exist. A lock in it keeps a second server out." },
	{ .name = "cpus",
	  .value = "LIST",
	  .help = "CPUs that pagers stand on, like 0,2-3 (default: all that it may run on)",
	  .complete = "" },
	{ .name = "observe",
	  .value = "MODE",
	  .help = "auto (default): look into the kernel as well as it lets; require: or don't serve; off: not at all",
	  .words = "auto require off",
	  .manual =
		  "What the kernel sees of each fork (faults, their latency by phase, touches of pages that are there) is read by BPF programs. "
		  "The log says at the start by which tier, or why by none; 'faultline doctor' says more. No page is served later for it." },
	{ .name = "observe-ring",
	  .value = "SIZE",
	  .help = "room for events that aren't read yet (default: 4M)",
	  .manual = "A power of two from 4K to 512M; other sizes are rounded up. Events that find no room are counted, fork by fork: 'faultline fork show' has "
		    "the number.",
	  .complete = "" },
	{ .name = "log-format",
	  .value = "FORMAT",
	  .help = "text (default) or json: one object a line, on stderr",
	  .words = "text json",
	  .manual = "An object has the members time, level, object and message." },
	{ .name = "log-level",
	  .value = "LEVEL",
	  .help = "error, warning, info (default) or debug",
	  .words = "error warning info debug" },
	{ 0 },
};

static const struct cli_action actions[] = {
	{ .name = "", .arguments = "", .summary = "", .options = options, .run = run },
	{ 0 },
};

const struct cli_command serve_command = {
	.name = "serve",
	.summary = "Runs the page server in the foreground until SIGTERM or SIGINT.",
	.details =
		"It tells systemd when it is ready (Type=notify). Where it stops while forks live, it ends their VMMs\n"
		"first: a guest without its server would go on with wrong memory. Two servers can't share a run\n"
		"directory.",
	.actions = actions,
	.brief = "run the page server",
	.manual =
		"Each fork has a socket of its own, which 'faultline fork create' prints. A VMM that connects there hands over its "
		"memory regions and a userfaultfd; from then on the server supplies each page of the guest's memory when the "
		"guest first touches it, or before.\n\n"
		"The server needs userfaultfd, best for faults of the kernel's too (KVM has those): root, CAP_SYS_PTRACE, access to "
		"/dev/userfaultfd, or vm.unprivileged_userfaultfd=1; 'faultline doctor' says which it has. It raises its limit on open files to what the administrator allows.\n\n"
		"When it stops, requests that wait are answered with shutting_down. Templates are remembered in the run "
		"directory; forks are not.",
	.examples = "Serve in a directory of one's own, with pagers on two CPUs:\n\n"
		    "    faultline serve --run-dir /tmp/faultline --cpus 0,1\n\n"
		    "As a service:\n\n"
		    "    systemctl start faultline",
	.files = "- DIR/control.sock: the HTTP+JSON API, mode 0600\n\n"
		 "- DIR/ID.uffd: the socket that the VMM of fork ID connects to\n\n"
		 "- DIR/templates/: what is known of the templates",
	.see_also = "systemctl(1), userfaultfd(2)",
};
