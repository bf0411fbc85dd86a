/* Completion for zsh: a function for _arguments, with each action's options and arguments as its specifications. */
#include <string.h>

#include "cli/docs/docs.h"

static const char beginning[] =
	"#compdef faultline\n"
	"# Completion of faultline(1) for zsh. Made out of the program's tables of options.\n"
	"\n"
	"# Offers names of a running server's templates or forks; nothing where there is none, or where it takes long.\n"
	"_faultline_names() {\n"
	"\tlocal -a names run_dir\n"
	"\tlocal i\n"
	"\n"
	"\tfor ((i = 1; i <= $#faultline_words; i++)); do\n"
	"\t\tcase $faultline_words[i] in\n"
	"\t\t--run-dir) run_dir=(--run-dir \"${(Q)faultline_words[i + 1]/#\\~/$HOME}\") ;;\n"
	"\t\t--run-dir=*) run_dir=(--run-dir \"${(Q)${faultline_words[i]#*=}/#\\~/$HOME}\") ;;\n"
	"\t\tesac\n"
	"\tdone\n"
	"\tnames=(${(f)\"$(timeout 2 \"${(Q)faultline_words[1]/#\\~/$HOME}\" $1 list --names $run_dir 2>/dev/null)\"})\n"
	"\tcompadd -a names\n"
	"}\n"
	"\n";

/* TEXT in a quoted specification: the quotes' and the specification's own characters are escaped. */
static void put_quoted(FILE *out, const char *text)
{
	for (; *text; text++) {
		if (*text == '\'')
			fputs("'\\''", out);
		else if (strchr("[]:\\", *text))
			fprintf(out, "\\%c", *text);
		else
			fputc(*text, out);
	}
}

/* ":NAME:ACTION" of a specification. */
static void put_offer(FILE *out, const char *name, const char *offer)
{
	char word[WORD_MAX];
	const char *separator = "";

	fputc(':', out);
	put_quoted(out, name);
	fputc(':', out);
	if (!strchr(offer, '@')) {
		if (*offer)
			fprintf(out, "(%s)", offer);
		return;
	}
	fputs("{ ", out);
	while (next_word(&offer, word)) {
		fputs(separator, out);
		if (!strcmp(word, "@file"))
			fputs("_files", out);
		else if (!strcmp(word, "@dir"))
			fputs("_files -/", out);
		else if (word[0] == '@')
			fprintf(out, "_faultline_names %s", word + 1);
		else
			fprintf(out, "compadd %s", word);
		separator = "; ";
	}
	fputs(" }", out);
}

static void put_option(FILE *out, const struct cli_option *option)
{
	if (option->letter)
		fprintf(out, " \\\n\t\t\t'(-%c --%s)'{-%c%s,--%s%s}'[", option->letter, option->name, option->letter,
			option->value ? "+" : "", option->name, option->value ? "=" : "");
	else
		fprintf(out, " \\\n\t\t\t'--%s%s[", option->name, option->value ? "=" : "");
	put_quoted(out, option->help);
	fputc(']', out);
	if (option->value)
		put_offer(out, option->value, option_offer(option));
	fputc('\'', out);
}

static void put_arguments(FILE *out, const struct cli_action *action)
{
	struct argument argument;

	fputs("_arguments -s", out);
	for (const struct cli_option *o = next_option(action, NULL); o; o = next_option(action, o))
		put_option(out, o);
	for (size_t i = 0; argument_at(action, i, &argument); i++) {
		if (argument.repeats)
			fputs(" \\\n\t\t\t'*", out);
		else
			fprintf(out, " \\\n\t\t\t'%zu", i + 1);
		put_offer(out, argument.name, argument.offer);
		fputc('\'', out);
	}
	fputc('\n', out);
}

static void put_described(FILE *out, const char *name, const char *summary)
{
	fprintf(out, " \\\n\t\t\t'%s:", name);
	for (; *summary; summary++)
		fputs(*summary == '\'' ? "'\\''" : (char[]){ *summary, '\0' }, out);
	fputc('\'', out);
}

static void put_command(FILE *out, const struct cli_command *command)
{
	fprintf(out, "_faultline_%s() {\n", command->name);
	if (!is_named(command->actions)) {
		fputs("\t", out);
		put_arguments(out, command->actions);
		fputs("}\n\n", out);
		return;
	}
	fputs("\tlocal curcontext=$curcontext state line\n\tlocal -a actions\n\ttypeset -A opt_args\n\n"
	      "\t_arguments -C '--run-dir=[where the server is]:DIR:_files -/' '--json[print JSON]' '(-h --help)'{-h,--help}'[print help]' \\\n"
	      "\t\t'1:action:->action' '*::argument:->argument'\n\tcase $state in\n\taction)\n\t\tactions=(",
	      out);
	for (const struct cli_action *a = command->actions; a->name; a++)
		put_described(out, a->name, a->summary);
	fputs("\n\t\t)\n\t\t_describe action actions\n\t\t;;\n\targument)\n\t\tcase $words[1] in\n", out);
	for (const struct cli_action *a = command->actions; a->name; a++) {
		fprintf(out, "\t\t%s)\n\t\t\t", a->name);
		put_arguments(out, a);
		fputs("\t\t\t;;\n", out);
	}
	fputs("\t\tesac\n\t\t;;\n\tesac\n}\n\n", out);
}

void write_zsh_completion(FILE *out)
{
	fputs(beginning, out);
	for (const struct cli_command *const *c = cli_commands; *c; c++)
		put_command(out, *c);
	fputs("_faultline() {\n\tlocal curcontext=$curcontext state line\n\tlocal -a commands faultline_words=(\"${words[@]}\")\n"
	      "\ttypeset -A opt_args\n\n"
	      "\t_arguments -C '(-h --help)'{-h,--help}'[print help]' '--version[print the version]' \\\n"
	      "\t\t'1:command:->command' '*::argument:->argument'\n\tcase $state in\n\tcommand)\n\t\tcommands=(",
	      out);
	for (const struct cli_command *const *c = cli_commands; *c; c++)
		put_described(out, (*c)->name, (*c)->brief);
	fputs("\n\t\t)\n\t\t_describe command commands\n\t\t;;\n"
	      "\targument) (($+functions[_faultline_$words[1]])) && _faultline_$words[1] ;;\n\tesac\n}\n\n_faultline \"$@\"\n",
	      out);
}
