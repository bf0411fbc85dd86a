/* The subcommands: one table each, from which come the program, its man pages and its completion. */
#pragma once

#include "cli/cli.h"
#include "cli/options.h"

extern const struct cli_command serve_command, template_command, fork_command, hotlist_command, replay_command,
	doctor_command, bench_command, warmup_command, profile_command, trace_command;

/* In the order in which 'faultline --help' lists them; ends with NULL. */
extern const struct cli_command *const cli_commands[];

/* What all subcommands say about themselves in the same way. */
struct cli_exit_status {
	enum exit_code code;
	const char *meaning;
	bool client; /* only of those that talk to a server */
};
extern const struct cli_exit_status cli_exit_statuses[]; /* ends with a row without a meaning */

struct cli_variable {
	const char *name, *meaning;
};
extern const struct cli_variable cli_environment[]; /* ends with a row without a name */
