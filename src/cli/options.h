/*
 * Command lines. A subcommand describes its actions in tables; parsing, --help, usage errors and "did you mean" all come
 * from them, so that what a user reads is written once.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#define CLI_OPTIONS_MAX	  16 /* of one action, those that every action has not counted */
#define CLI_ARGUMENTS_MAX 64 /* words that are not options */

struct cli_option {
	const char *name;  /* without the dashes */
	char letter;	   /* its short form; 0: none */
	const char *value; /* what its value is called in help; NULL: it takes none */
	const char *help;
};

struct cli_args;

struct cli_action {
	const char *name;      /* "create"; "" where the subcommand has no actions, and its table has this one row */
	const char *arguments; /* "ID LIST", in order; all are required, but "IN..." at the end takes one or more */
	const char *summary;   /* half a sentence for the list of actions */
	const char *details;   /* more for its own --help; may be NULL */
	const struct cli_option *options;	 /* ends with a row without a name; may be NULL */
	int (*run)(const struct cli_args *args); /* returns the process's exit code */
	bool client;				 /* talks to a server: takes --run-dir and --json too */
};

struct cli_command {
	const char *name;		  /* "fork" */
	const char *summary;		  /* one sentence */
	const char *details;		  /* more for its --help; may be NULL */
	const struct cli_action *actions; /* ends with a row without a name */
};

/* One command line, taken apart. */
struct cli_args {
	const struct cli_command *command;
	const struct cli_action *action;
	const char *arguments[CLI_ARGUMENTS_MAX];
	int argument_count;
	const char *values[CLI_OPTIONS_MAX]; /* by row of action->options; a switch's is "" */
	const char *run_dir;		     /* --run-dir, or NULL */
	bool json;			     /* --json */
};

/* Takes ARGV (its own name first) apart, and runs the action or prints the help asked for. Returns the exit code. */
int cli_run(const struct cli_command *command, int argc, char **argv);

/* The option's value ("" for a switch), NULL where it wasn't given. NAME must be in the action's table. */
const char *cli_value(const struct cli_args *args, const char *name);

/* Prints a usage error with a pointer to the help, in the form that --json asked for. Returns EXIT_USAGE. */
int cli_usage_error(const struct cli_args *args, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The name of the COUNT in NAMES that is nearest to WORD, or NULL where none is near. */
const char *cli_nearest(const char *word, const char *const *names, size_t count);
