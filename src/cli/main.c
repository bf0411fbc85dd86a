/* faultline: finds the subcommand and hands over. */
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/options.h"

#define COMMANDS_MAX 32

static int print_help(void)
{
	printf("Usage: faultline COMMAND [ARGUMENT...] [OPTION...]\n\n"
	       "A userfaultfd page server for microVM snapshot forks.\n\nCommands:\n");
	for (const struct cli_command *const *c = cli_commands; *c; c++) {
		printf("  %-12s%s", (*c)->name, (*c)->brief);
		for (const struct cli_action *a = (*c)->actions; a->name && a->name[0]; a++)
			printf("%s%s", a == (*c)->actions ? ": " : ", ", a->name);
		putchar('\n');
	}
	printf("\nOptions:\n"
	       "  --help      print this; 'faultline COMMAND --help' describes a command\n"
	       "  --version   print the version\n"
	       "\nExit status:\n");
	for (const struct cli_exit_status *s = cli_exit_statuses; s->meaning; s++)
		printf("  %d  %s\n", s->code, s->meaning);
	printf("\nEnvironment:\n");
	for (const struct cli_variable *v = cli_environment; v->name; v++)
		printf("  %-20s%s\n", v->name, v->meaning);
	return cli_finish_output();
}

static int unknown_command(const char *word)
{
	const char *names[COMMANDS_MAX];
	size_t count = 0;

	for (const struct cli_command *const *c = cli_commands; *c && count < COMMANDS_MAX; c++)
		names[count++] = (*c)->name;

	const char *nearest = cli_nearest(word, names, count);
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
	/* A limit on file sizes (ulimit -f) shall be an error that is reported and cleaned up after, not a death. */
	signal(SIGXFSZ, SIG_IGN);

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
	for (const struct cli_command *const *c = cli_commands; *c; c++)
		if (!strcmp(argv[1], (*c)->name))
			return cli_run(*c, argc - 1, argv + 1);
	return unknown_command(argv[1]);
}
