/*
 * Completion for bash: fixed functions, and the tables as `case` statements that they ask. Needs neither the package bash-completion nor
 * a server.
 */
#include <string.h>

#include "cli/docs/docs.h"

static const char functions[] =
	"# Prints names of a running server's templates or forks; nothing where there is none, or where it takes long.\n"
	"_faultline_names() {\n"
	"\tlocal kind=$1 i run_dir=()\n"
	"\n"
	"\tfor ((i = 0; i + 1 < ${#_faultline_line[@]}; i++)); do\n"
	"\t\tif [[ ${_faultline_line[i]} == --run-dir ]]; then\n"
	"\t\t\trun_dir=(--run-dir \"${_faultline_line[i + 1]/#\\~/$HOME}\")\n"
	"\t\tfi\n"
	"\tdone\n"
	"\ttimeout 2 \"${COMP_WORDS[0]/#\\~/$HOME}\" \"$kind\" list --names \"${run_dir[@]}\" 2>/dev/null\n"
	"}\n"
	"\n"
	"# Adds what $1 (words and kinds) has for the word $2 to COMPREPLY.\n"
	"_faultline_offer() {\n"
	"\tlocal each name found\n"
	"\n"
	"\tfor each in $1; do\n"
	"\t\tfound=()\n"
	"\t\tcase $each in\n"
	"\t\t@file)\n"
	"\t\t\tmapfile -t found < <(compgen -f -- \"$2\")\n"
	"\t\t\tcompopt -o filenames 2>/dev/null\n"
	"\t\t\t;;\n"
	"\t\t@dir)\n"
	"\t\t\tmapfile -t found < <(compgen -d -- \"$2\")\n"
	"\t\t\tcompopt -o filenames 2>/dev/null\n"
	"\t\t\t;;\n"
	"\t\t@template | @fork) mapfile -t found < <(_faultline_names \"${each#@}\") ;;\n"
	"\t\t*) found=(\"$each\") ;;\n"
	"\t\tesac\n"
	"\t\tfor name in \"${found[@]}\"; do\n"
	"\t\t\t[[ $name != \"$2\"* ]] || COMPREPLY+=(\"$name\")\n"
	"\t\tdone\n"
	"\tdone\n"
	"}\n"
	"\n"
	"# The words before the one that is completed, \"--name=value\" as two; $cur is the one, $option the option it is the value of.\n"
	"_faultline_split() {\n"
	"\tlocal i word\n"
	"\n"
	"\t_faultline_line=()\n"
	"\tfor ((i = 1; i < COMP_CWORD; i++)); do\n"
	"\t\tword=${COMP_WORDS[i]}\n"
	"\t\tif [[ $word == = && ${COMP_WORDS[i - 1]} == --* ]]; then\n"
	"\t\t\tcontinue\n"
	"\t\telif [[ $word == --*=* ]]; then\n"
	"\t\t\t_faultline_line+=(\"${word%%=*}\" \"${word#*=}\")\n"
	"\t\telse\n"
	"\t\t\t_faultline_line+=(\"$word\")\n"
	"\t\tfi\n"
	"\tdone\n"
	"\tcur=${COMP_WORDS[COMP_CWORD]}\n"
	"\tprefix=''\n"
	"\tif [[ $cur == = && ${COMP_WORDS[COMP_CWORD - 1]} == --* ]]; then\n"
	"\t\tcur=''\n"
	"\telif [[ $cur == --*=* ]]; then\n"
	"\t\tprefix=${cur%%=*}=\n"
	"\t\t_faultline_line+=(\"${cur%%=*}\")\n"
	"\t\tcur=${cur#*=}\n"
	"\tfi\n"
	"}\n"
	"\n"
	"_faultline() {\n"
	"\tlocal _faultline_line cur prefix command action='' count=0 i word option='' ended='' offer i\n"
	"\n"
	"\tCOMPREPLY=()\n"
	"\t_faultline_split\n"
	"\tif ((${#_faultline_line[@]} == 0)); then\n"
	"\t\t_faultline_offer \"$(_faultline_commands) --help --version\" \"$cur\"\n"
	"\t\treturn\n"
	"\tfi\n"
	"\n"
	"\tcommand=${_faultline_line[0]}\n"
	"\t_faultline_actions \"$command\" >/dev/null || return\n"
	"\tfor ((i = 1; i < ${#_faultline_line[@]}; i++)); do\n"
	"\t\tword=${_faultline_line[i]}\n"
	"\t\tif [[ -n $option ]]; then\n"
	"\t\t\toption=''\n"
	"\t\telif [[ -z $ended && $word == -- ]]; then\n"
	"\t\t\tended=yes\n"
	"\t\telif [[ -z $ended && $word == -?* ]]; then\n"
	"\t\t\t! _faultline_value \"$command $word\" >/dev/null || option=$word\n"
	"\t\telif [[ -z $action && -n $(_faultline_actions \"$command\") ]]; then\n"
	"\t\t\taction=$word\n"
	"\t\telse\n"
	"\t\t\t((++count))\n"
	"\t\tfi\n"
	"\tdone\n"
	"\n"
	"\tif [[ -n $option ]]; then\n"
	"\t\toffer=$(_faultline_value \"$command $option\")\n"
	"\telif [[ -z $ended && $cur == -* ]]; then\n"
	"\t\toffer=$(_faultline_options \"$command $action\")\n"
	"\telif [[ -z $action && -n $(_faultline_actions \"$command\") ]]; then\n"
	"\t\toffer=$(_faultline_actions \"$command\")\n"
	"\telse\n"
	"\t\toffer=$(_faultline_argument \"$command $action $count\")\n"
	"\tfi\n"
	"\t_faultline_offer \"$offer\" \"$cur\"\n"
	"\tfor i in \"${!COMPREPLY[@]}\"; do\n"
	"\t\tCOMPREPLY[i]=$prefix${COMPREPLY[i]}\n"
	"\tdone\n"
	"}\n"
	"\n"
	"complete -F _faultline faultline\n";

static void put_commands(FILE *out)
{
	fputs("_faultline_commands() {\n\techo '", out);
	for (const struct cli_command *const *c = cli_commands; *c; c++)
		fprintf(out, "%s%s", c == cli_commands ? "" : " ", (*c)->name);
	fputs("'\n}\n\n", out);
}

static void put_actions(FILE *out)
{
	fputs("# The actions of command $1; fails where there is no such command.\n_faultline_actions() {\n\tcase $1 in\n",
	      out);
	for (const struct cli_command *const *c = cli_commands; *c; c++) {
		fprintf(out, "\t%s) echo '", (*c)->name);
		for (const struct cli_action *a = (*c)->actions; a->name; a++)
			fprintf(out, "%s%s", a == (*c)->actions ? "" : " ", a->name);
		fputs("' ;;\n", out);
	}
	fputs("\t*) return 1 ;;\n\tesac\n}\n\n", out);
}

static void put_action_options(FILE *out, const struct cli_command *command, const struct cli_action *action)
{
	fprintf(out, "\t'%s %s') echo '", command->name, action->name);
	for (const struct cli_option *o = next_option(action, NULL); o; o = next_option(action, o))
		fprintf(out, "%s--%s", o == next_option(action, NULL) ? "" : " ", o->name);
	fputs("' ;;\n", out);
}

static void put_options(FILE *out)
{
	fputs("# The options of \"COMMAND ACTION\".\n_faultline_options() {\n\tcase $1 in\n", out);
	for (const struct cli_command *const *c = cli_commands; *c; c++) {
		for (const struct cli_action *a = (*c)->actions; a->name; a++)
			put_action_options(out, *c, a);
		if (is_named((*c)->actions))
			fprintf(out, "\t'%s ') echo '--run-dir --json --help' ;;\n", (*c)->name);
	}
	fputs("\tesac\n}\n\n", out);
}

/* An option of the same name means the same in all actions of a command: whether one before ACTION has it. */
static bool seen_before(const struct cli_command *command, const struct cli_action *action, const char *name)
{
	for (const struct cli_action *a = command->actions; a < action; a++)
		for (const struct cli_option *o = next_option(a, NULL); o; o = next_option(a, o))
			if (!strcmp(o->name, name))
				return true;
	return false;
}

static void put_value(FILE *out, const struct cli_command *command, const struct cli_option *option)
{
	fprintf(out, "\t'%s --%s'", command->name, option->name);
	if (option->letter)
		fprintf(out, " | '%s -%c'", command->name, option->letter);
	fprintf(out, ") echo '%s' ;;\n", option_offer(option));
}

static void put_values(FILE *out)
{
	fputs("# What is offered for the value of \"COMMAND OPTION\"; fails where that takes none.\n_faultline_value() {\n"
	      "\tcase $1 in\n",
	      out);
	for (const struct cli_command *const *c = cli_commands; *c; c++)
		for (const struct cli_action *a = (*c)->actions; a->name; a++)
			for (const struct cli_option *o = next_option(a, NULL); o; o = next_option(a, o))
				if (o->value && !seen_before(*c, a, o->name))
					put_value(out, *c, o);
	fputs("\t*) return 1 ;;\n\tesac\n}\n\n", out);
}

static void put_action_arguments(FILE *out, const struct cli_command *command, const struct cli_action *action)
{
	struct argument argument;

	for (size_t i = 0; argument_at(action, i, &argument); i++) {
		fprintf(out, "\t'%s %s ", command->name, action->name);
		/* Those before one that repeats have matched by then. */
		if (argument.repeats)
			fputs("'*", out);
		else
			fprintf(out, "%zu'", i);
		fprintf(out, ") echo '%s' ;;\n", argument.offer);
	}
}

static void put_arguments(FILE *out)
{
	fputs("# What is offered for an argument: \"COMMAND ACTION NUMBER\", counted from 0.\n_faultline_argument() {\n\tcase $1 in\n",
	      out);
	for (const struct cli_command *const *c = cli_commands; *c; c++)
		for (const struct cli_action *a = (*c)->actions; a->name; a++)
			put_action_arguments(out, *c, a);
	fputs("\tesac\n}\n\n", out);
}

void write_bash_completion(FILE *out)
{
	fputs("# Completion of faultline(1) for bash. Made out of the program's tables of options.\n\n", out);
	put_commands(out);
	put_actions(out);
	put_options(out);
	put_values(out);
	put_arguments(out);
	fputs(functions, out);
}
