/*
 * Command lines. A subcommand describes its actions in tables; parsing, --help, usage errors, "did you mean", the man pages and the
 * shells' completion (src/cli/docs/) all come from them, so that what a user reads is written once.
 *
 * Text for man pages: paragraphs stand apart by an empty line, and their line ends mean nothing. A paragraph that starts with blanks
 * is shown as it stands (a command to type), one that starts with "- " is an item of a list.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#define CLI_OPTIONS_MAX	  32  /* of one action, those that every action has not counted */
#define CLI_ARGUMENTS_MAX 512 /* words that are not options; a VMM's whole command line may be among them */

struct cli_option {
	const char *name;  /* without the dashes */
	char letter;	   /* its short form; 0: none */
	const char *value; /* what its value is called in help; NULL: it takes none */
	const char *help;
	const char *words;    /* the only values there are: "off eager"; NULL: others too */
	const char *complete; /* what shells offer for its value, see cli_completion(); NULL: as VALUE's name says */
	const char *manual;   /* more sentences for the man page; may be NULL */
	bool required;	      /* the line is wrong without it */
};

struct cli_args;

struct cli_action {
	const char *name; /* "create"; "" where the subcommand has no actions, and its table has this one row */
	const char *arguments; /* "ID LIST", in order; all are required, but "IN..." at the end takes one or more, "[IN...]" any number */
	const char *summary;			 /* half a sentence for the list of actions */
	const char *details;			 /* more for its own --help; may be NULL */
	const struct cli_option *options;	 /* ends with a row without a name; may be NULL */
	int (*run)(const struct cli_args *args); /* returns the process's exit code */
	bool client;				 /* talks to a server: takes --run-dir and --json too */
	const char *complete; /* what shells offer for its arguments, in turn: "@fork;@file"; NULL: as their names say */
	const char *manual;   /* more paragraphs for the man page; may be NULL */
	const char *synopsis; /* what stands behind its name there, a line for each form, where its options in a row say too little; or NULL */
};

struct cli_command {
	const char *name;		  /* "fork" */
	const char *summary;		  /* one sentence */
	const char *details;		  /* more for its --help; may be NULL */
	const struct cli_action *actions; /* ends with a row without a name */
	const char *brief; /* what 'faultline --help' and the man page's title say: no sentence, no full stop */
	/* Of the man page alone; each may be NULL. */
	const char *manual;	 /* paragraphs */
	const char *examples;	 /* paragraphs */
	const char *files;	 /* paragraphs */
	const char *exit_status; /* paragraphs, after the list of those that all commands share */
	const char *see_also; /* "faultline-fork(1), curl(1)"; pages of the other subcommands are named without that */
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

/* Those that are in no table: of every action that talks to a server, and of every action. */
extern const struct cli_option cli_client_options[], cli_help_options[];

/*
 * What shells offer where NAME stands ("FILE", "ID"), for those who don't say it themselves: words separated by blanks, of which some
 * are kinds: @file, @dir, @template, @fork. "": nothing to offer.
 */
const char *cli_completion(const char *name);

/* Takes ARGV (its own name first) apart, and runs the action or prints the help asked for. Returns the exit code. */
int cli_run(const struct cli_command *command, int argc, char **argv);

/* The option's value ("" for a switch), NULL where it wasn't given. NAME must be in the action's table. */
const char *cli_value(const struct cli_args *args, const char *name);

/* Prints a usage error with a pointer to the help, in the form that --json asked for. Returns EXIT_USAGE. */
int cli_usage_error(const struct cli_args *args, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The name of the COUNT in NAMES that is nearest to WORD, or NULL where none is near. */
const char *cli_nearest(const char *word, const char *const *names, size_t count);

/* The option as seconds, OTHERWISE where it isn't given. EXIT_OK, or EXIT_USAGE after a message. */
#define CLI_SECONDS_MAX 86400
int cli_seconds(const struct cli_args *args, const char *name, double otherwise, double *ret);
