/* The list of subcommands, and what they have in common. */
#include "cli/commands.h"

const struct cli_command *const cli_commands[] = {
	&serve_command,	 &doctor_command,  &template_command, &fork_command,  &trace_command, &hotlist_command,
	&warmup_command, &profile_command, &replay_command,   &bench_command, NULL,
};

const struct cli_exit_status cli_exit_statuses[] = {
	{ EXIT_OK, "done" },
	{ EXIT_FAILED, "failed; the message says why" },
	{ EXIT_USAGE, "the command line is wrong" },
	{ EXIT_NO_SERVER, "no server answers in the run directory", true },
	{ EXIT_UNKNOWN, "there is no such template or fork", true },
	{ EXIT_TIMEOUT, "what was waited for did not come in time", true },
	{ 0 },
};

const struct cli_variable cli_environment[] = {
	{ "FAULTLINE_RUN_DIR", "the run directory where --run-dir isn't given" },
	{ 0 },
};
