/*
 * faultline-docs: writes what users read and complete with, out of the tables that the program itself works by.
 *
 *   faultline-docs DIR       man pages and completion, in DIR/man1, DIR/bash, DIR/zsh and DIR/fish
 *   faultline-docs --tables  the tables, one synopsis, option or argument a line, for the tests
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "cli/docs/docs.h"

static int make_directory(const char *path)
{
	if (mkdir(path, 0777) < 0 && errno != EEXIST) {
		fprintf(stderr, "faultline-docs: can't make the directory %s: %s\n", path, strerror(errno));
		return -1;
	}
	return 0;
}

/* Opens DIR/FOLDER/NAME for writing. */
static FILE *open_file(const char *dir, const char *folder, const char *name)
{
	char path[512];

	snprintf(path, sizeof path, "%s/%s", dir, folder);
	if (make_directory(path) < 0)
		return NULL;
	snprintf(path, sizeof path, "%s/%s/%s", dir, folder, name);
	FILE *file = fopen(path, "we");
	if (!file)
		fprintf(stderr, "faultline-docs: can't write %s: %s\n", path, strerror(errno));
	return file;
}

static int close_file(FILE *file)
{
	bool failed = ferror(file);

	if (fclose(file) == 0 && !failed)
		return 0;
	fprintf(stderr, "faultline-docs: a file could not be written whole: %s\n", strerror(errno));
	return -1;
}

static int write_page(const char *dir, const struct cli_command *command)
{
	char name[64];

	snprintf(name, sizeof name, "faultline%s%s.1", command ? "-" : "", command ? command->name : "");
	FILE *file = open_file(dir, "man1", name);
	if (!file)
		return -1;
	write_man_page(file, command);
	return close_file(file);
}

static int write_completion(const char *dir, const char *folder, const char *name, void (*write)(FILE *out))
{
	FILE *file = open_file(dir, folder, name);

	if (!file)
		return -1;
	write(file);
	return close_file(file);
}

static int write_all(const char *dir)
{
	int r = make_directory(dir) ?: write_page(dir, NULL);

	for (const struct cli_command *const *c = cli_commands; r == 0 && *c; c++)
		r = write_page(dir, *c);
	return r ?: write_completion(dir, "bash", "faultline", write_bash_completion)
		    ?: write_completion(dir, "zsh", "_faultline", write_zsh_completion)
		       ?: write_completion(dir, "fish", "faultline.fish", write_fish_completion);
}

/* As docs/cli.md has it: without the options that are common to all actions. */
static void print_synopsis(const struct cli_command *command, const struct cli_action *action)
{
	for (const char *line = action->synopsis; line; line = next_line(line))
		printf("synopsis\t%s\t%s\tfaultline %s%s%s %.*s\n", command->name, is_named(action) ? action->name : "-",
		       command->name, is_named(action) ? " " : "", action->name, (int)strcspn(line, "\n"), line);
	if (action->synopsis)
		return;

	printf("synopsis\t%s\t%s\tfaultline %s%s%s%s%s", command->name, is_named(action) ? action->name : "-",
	       command->name, is_named(action) ? " " : "", action->name, action->arguments[0] ? " " : "",
	       action->arguments);
	for (const struct cli_option *o = action->options; o && o->name; o++) {
		char *value = o->value ? option_value(o) : NULL;

		printf(" %s--%s%s%s%s", o->required ? "" : "[", o->name, value ? " " : "", value ?: "",
		       o->required ? "" : "]");
		free(value);
	}
	putchar('\n');
}

/* Lines of words with tabs between, the first of which says what it is; '-' where the table has nothing. */
static void print_action(const struct cli_command *command, const struct cli_action *action)
{
	struct argument argument;
	const char *name = is_named(action) ? action->name : "-";

	print_synopsis(command, action);
	for (const struct cli_option *o = next_option(action, NULL); o; o = next_option(action, o))
		printf("option\t%s\t%s\t%s\t%c\t%s\t%s\n", command->name, name, o->name, o->letter ?: '-',
		       o->value ?: "-", o->value ? option_offer(o) : "");
	for (size_t i = 0; argument_at(action, i, &argument); i++)
		printf("argument\t%s\t%s\t%s\t%s\n", command->name, name, argument.name, argument.offer);
}

static int print_tables(void)
{
	for (const struct cli_command *const *c = cli_commands; *c; c++)
		for (const struct cli_action *a = (*c)->actions; a->name; a++)
			print_action(*c, a);
	return fflush(stdout) == 0 ? 0 : -1;
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "--tables"))
		return print_tables() == 0 ? 0 : 1;
	if (argc == 2 && argv[1][0] != '-')
		return write_all(argv[1]) == 0 ? 0 : 1;
	fprintf(stderr, "usage: faultline-docs DIR | --tables\n");
	return 2;
}
