/* Completion for fish: a function that tells where on the line the cursor is, and a `complete` for each thing that may stand there. */
#include <string.h>

#include "cli/docs/docs.h"

static const char functions[] =
	"# The words before the cursor's, \"--name=value\" as two.\n"
	"function __faultline_line\n"
	"    for word in (commandline -opc)\n"
	"        string match -qr -- '^--[^=]+=' $word; and string split -m 1 = -- $word; or echo -- $word\n"
	"    end\n"
	"end\n"
	"\n"
	"# Prints the command, its action and the number of arguments that stand before the cursor, one a line.\n"
	"function __faultline_where\n"
	"    set -l line (__faultline_line)\n"
	"    set -l action ''\n"
	"    set -l count 0\n"
	"    set -l value 0\n"
	"    set -l ended 0\n"
	"\n"
	"    for word in $line[3..-1]\n"
	"        if test $value = 1\n"
	"            set value 0\n"
	"        else if test $ended = 0 -a \"x$word\" = x--\n"
	"            set ended 1\n"
	"        else if test $ended = 0; and string match -q -- '-?*' $word\n"
	"            __faultline_takes_value $line[2] $word; and set value 1\n"
	"        else if test -z \"$action\"; and __faultline_has_actions $line[2]\n"
	"            set action $word\n"
	"        else\n"
	"            set count (math $count + 1)\n"
	"        end\n"
	"    end\n"
	"    echo \"$line[2]\"\n"
	"    echo \"$action\"\n"
	"    echo $count\n"
	"end\n"
	"\n"
	"# Whether the cursor is at $argv: a command, an action ('' before there is one), and maybe the number of an argument.\n"
	"function __faultline_at\n"
	"    set -l where (__faultline_where)\n"
	"    test \"$where[1]\" = \"$argv[1]\" -a \"$where[2]\" = \"$argv[2]\"; or return 1\n"
	"    set -q argv[3]; or return 0\n"
	"    test $where[3] -eq $argv[3]; or test \"$argv[4]\" = more -a $where[3] -gt $argv[3]\n"
	"end\n"
	"\n"
	"# Prints names of a running server's templates or forks; nothing where there is none, or where it takes long.\n"
	"function __faultline_names\n"
	"    set -l line (__faultline_line)\n"
	"    set -l run_dir\n"
	"    if set -l i (contains -i -- --run-dir $line)\n"
	"        set run_dir --run-dir (string replace -r '^~' $HOME -- $line[(math $i + 1)])\n"
	"    end\n"
	"    timeout 2 (string replace -r '^~' $HOME -- $line[1]) $argv[1] list --names $run_dir 2>/dev/null\n"
	"end\n"
	"\n"
	"complete -c faultline -f\n";

static void put_quoted(FILE *out, const char *text)
{
	fputc('\'', out);
	for (; *text; text++) {
		if (strchr("'\\", *text))
			fputc('\\', out);
		fputc(*text, out);
	}
	fputc('\'', out);
}

/* "-a 'words' -F": what OFFER comes to. */
static void put_offer(FILE *out, const char *offer)
{
	char word[WORD_MAX];
	bool files = offers(offer, "@file");
	const char *separator = "";

	if (files)
		fputs(" -F", out);
	if (!*offer || !strcmp(offer, "@file"))
		return;
	fputs(" -a '", out);
	while (next_word(&offer, word)) {
		if (!strcmp(word, "@file"))
			continue;
		fputs(separator, out);
		if (!strcmp(word, "@dir"))
			fputs("(__fish_complete_directories)", out);
		else if (word[0] == '@')
			fprintf(out, "(__faultline_names %s)", word + 1);
		else
			fputs(word, out);
		separator = " ";
	}
	fputc('\'', out);
}

static void put_option(FILE *out, const struct cli_command *command, const struct cli_action *action,
		       const struct cli_option *option)
{
	fprintf(out, "complete -c faultline -n '__faultline_at %s \"%s\"' -l %s", command->name, action->name,
		option->name);
	if (option->letter)
		fprintf(out, " -s %c", option->letter);
	if (option->value) {
		fputs(offers(option_offer(option), "@file") ? " -r" : " -x", out);
		put_offer(out, option_offer(option));
	}
	fputs(" -d ", out);
	put_quoted(out, option->help);
	fputc('\n', out);
}

static void put_action(FILE *out, const struct cli_command *command, const struct cli_action *action)
{
	struct argument argument;

	if (is_named(action)) {
		fprintf(out, "complete -c faultline -n '__faultline_at %s \"\"' -a %s -d ", command->name, action->name);
		put_quoted(out, action->summary);
		fputc('\n', out);
	}
	for (const struct cli_option *o = next_option(action, NULL); o; o = next_option(action, o))
		put_option(out, command, action, o);
	for (size_t i = 0; argument_at(action, i, &argument); i++) {
		if (!argument.offer[0])
			continue;
		fprintf(out, "complete -c faultline -n '__faultline_at %s \"%s\" %zu%s'", command->name, action->name,
			i, argument.repeats ? " more" : "");
		put_offer(out, argument.offer);
		fputc('\n', out);
	}
}

static void put_tables(FILE *out)
{
	fputs("function __faultline_has_actions\n    contains -- $argv[1]", out);
	for (const struct cli_command *const *c = cli_commands; *c; c++)
		if (is_named((*c)->actions))
			fprintf(out, " %s", (*c)->name);
	fputs("\nend\n\nfunction __faultline_takes_value\n    contains -- \"$argv\"", out);
	for (const struct cli_command *const *c = cli_commands; *c; c++)
		for (const struct cli_action *a = (*c)->actions; a->name; a++)
			for (const struct cli_option *o = next_option(a, NULL); o; o = next_option(a, o)) {
				if (!o->value)
					continue;
				fprintf(out, " '%s --%s'", (*c)->name, o->name);
				if (o->letter)
					fprintf(out, " '%s -%c'", (*c)->name, o->letter);
			}
	fputs("\nend\n\n", out);
}

void write_fish_completion(FILE *out)
{
	fputs("# Completion of faultline(1) for fish. Made out of the program's tables of options.\n\n", out);
	put_tables(out);
	fputs(functions, out);
	for (const struct cli_command *const *c = cli_commands; *c; c++) {
		fprintf(out, "complete -c faultline -n '__faultline_at \"\" \"\"' -a %s -d ", (*c)->name);
		put_quoted(out, (*c)->brief);
		fputc('\n', out);
	}
	fputs("complete -c faultline -n '__faultline_at \"\" \"\"' -l help -s h -d 'print help'\n"
	      "complete -c faultline -n '__faultline_at \"\" \"\"' -l version -d 'print the version'\n",
	      out);
	for (const struct cli_command *const *c = cli_commands; *c; c++)
		for (const struct cli_action *a = (*c)->actions; a->name; a++)
			put_action(out, *c, a);
}
