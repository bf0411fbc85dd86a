/* faultline serve: the daemon, in the foreground. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <systemd/sd-daemon.h>

#include "base/log.h"
#include "cli/api_client.h"
#include "cli/cli.h"
#include "cli/options.h"
#include "control/control.h"
#include "serve/server.h"

struct daemon {
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

static int parse_log_level(const char *name)
{
	static const char *const names[] = { "error", "warning", "info", "debug" };

	for (int i = 0; i < 4; i++)
		if (!strcmp(names[i], name))
			return i;
	return -1;
}

static int set_up_log(const struct cli_args *args)
{
	const char *format = cli_value(args, "log-format") ?: "text";
	const char *level_name = cli_value(args, "log-level") ?: "info";
	int level = parse_log_level(level_name);

	if (strcmp(format, "text") && strcmp(format, "json"))
		return cli_usage_error(args, "--log-format is 'text' or 'json', not '%s'", format);
	if (level < 0)
		return cli_usage_error(args, "--log-level is 'error', 'warning', 'info' or 'debug', not '%s'",
				       level_name);
	log_setup((enum log_level)level, !strcmp(format, "json"));
	return EXIT_OK;
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
	log_info(NULL, "faultline %s serves in %s: API at %s/" CONTROL_SOCKET_NAME ", %u pager%s", FAULTLINE_VERSION,
		 server_run_dir(daemon->server), server_run_dir(daemon->server), server_pager_count(daemon->server),
		 server_pager_count(daemon->server) == 1 ? "" : "s");
	if (server_run(daemon->server, on_ready, daemon, &err) < 0)
		return fail(&err);
	log_info(NULL, "stopped");
	return EXIT_OK;
}

static int run(const struct cli_args *args)
{
	const char *run_dir = cli_value(args, "run-dir") ?: getenv("FAULTLINE_RUN_DIR");
	struct server_config config = {
		.run_dir = run_dir && *run_dir ? run_dir : API_DEFAULT_RUN_DIR,
		.cpus = cli_value(args, "cpus"),
	};
	struct daemon daemon = { 0 };
	int exit_code = set_up_log(args);

	if (exit_code != EXIT_OK)
		return exit_code;
	raise_file_limit();
	exit_code = serve(&daemon, &config);
	control_stop(daemon.control);
	server_free(daemon.server);
	return exit_code;
}

static const struct cli_option options[] = {
	{ "run-dir", 0, "DIR",
	  "its sockets and state; made with mode 0700 (default: $FAULTLINE_RUN_DIR, or /run/faultline)" },
	{ "cpus", 0, "LIST", "CPUs that pagers stand on, like 0,2-3 (default: all that it may run on)" },
	{ "log-format", 0, "FORMAT", "text (default) or json: one object a line, on stderr" },
	{ "log-level", 0, "LEVEL", "error, warning, info (default) or debug" },
	{ 0 },
};

static const struct cli_action actions[] = {
	{ .name = "", .arguments = "", .summary = "", .options = options, .run = run },
	{ 0 },
};

int cli_serve(int argc, char **argv)
{
	static const struct cli_command command = {
		.name = "serve",
		.summary = "Runs the page server in the foreground until SIGTERM or SIGINT.",
		.details =
			"It tells systemd when it is ready (Type=notify). Where it stops while forks live, it ends their VMMs\n"
			"first: a guest without its server would go on with wrong memory. Two servers can't share a run\n"
			"directory.",
		.actions = actions,
	};

	return cli_run(&command, argc, argv);
}
