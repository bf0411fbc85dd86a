/* faultline: finds the subcommand and hands over. */
#include <locale.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/options.h"

struct subcommand {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *summary;
};

static const struct subcommand subcommands[] = {
	{ "serve", cli_serve, "run the page server" },
	{ "template", cli_template, "memory images that forks start from: add, list, show, remove" },
	{ "fork", cli_fork, "VMs that are restored from a template: create, list, show, wait, ready, prefetch, ..." },
	{ "hotlist", cli_hotlist, "files of hot pages: show, convert, verify, diff" },
};

#define SUBCOMMAND_COUNT (sizeof subcommands / sizeof *subcommands)

static int print_help(void)
{
	printf("Usage: faultline COMMAND [ARGUMENT...] [OPTION...]\n\n"
	       "A userfaultfd page server for microVM snapshot forks.\n\nCommands:\n");
	for (size_t i = 0; i < SUBCOMMAND_COUNT; i++)
		printf("  %-12s%s\n", subcommands[i].name, subcommands[i].summary);
	printf("\nOptions:\n"
	       "  --help      print this; 'faultline COMMAND --help' describes a command\n"
	       "  --version   print the version\n"
	       "\nExit status:\n"
	       "  0  done\n"
	       "  1  failed; the message says why\n"
	       "  2  the command line is wrong\n"
	       "  3  no server answers in the run directory\n"
	       "  4  there is no such template or fork\n"
	       "  5  what was waited for did not come in time\n"
	       "\nEnvironment:\n"
	       "  FAULTLINE_RUN_DIR   the run directory where --run-dir isn't given\n");
	return cli_finish_output();
}

static int unknown_command(const char *word)
{
	const char *names[SUBCOMMAND_COUNT];

	for (size_t i = 0; i < SUBCOMMAND_COUNT; i++)
		names[i] = subcommands[i].name;

	const char *nearest = cli_nearest(word, names, SUBCOMMAND_COUNT);
	const char *kind = word[0] == '-' ? "option" : "command";

	if (nearest)
		cli_error("there is no %s '%s': did you mean '%s'? See 'faultline --help'", kind, word, nearest);
	else
		cli_error("there is no %s '%s'; see 'faultline --help'", kind, word);
	return EXIT_USAGE;
}

int main(int argc, char **argv)
{
	/* Characters only: numbers stay as JSON and CSV write them. */
	setlocale(LC_CTYPE, "");

	if (argc < 2) {
		cli_error("a command is missing; see 'faultline --help'");
		return EXIT_USAGE;
	}
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || (!strcmp(argv[1], "help") && argc == 2))
		return print_help();
	if (!strcmp(argv[1], "--version")) {
		printf("faultline %s\n", FAULTLINE_VERSION);
		return cli_finish_output();
	}
	for (size_t i = 0; i < SUBCOMMAND_COUNT; i++)
		if (!strcmp(argv[1], subcommands[i].name))
			return subcommands[i].run(argc - 1, argv + 1);
	return unknown_command(argv[1]);
}
