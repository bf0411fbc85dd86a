/* Man pages, in the man(7) language, out of the tables of options. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "cli/api_client.h"
#include "cli/docs/docs.h"

/* Of the source; escapes make it somewhat longer. */
#define LINE_WIDTH 68

/* ---- text ---- */

/* What troff would take for a command, or for another character. */
static void put_escaped(FILE *out, const char *text, size_t length)
{
	for (size_t i = 0; i < length; i++) {
		switch (text[i]) {
		case '\\':
			fputs("\\e", out);
			break;
		case '-':
			fputs("\\-", out);
			break;
		case '~':
			fputs("\\(ti", out);
			break;
		case '^':
			fputs("\\(ha", out);
			break;
		case '`':
			fputs("\\(ga", out);
			break;
		default:
			fputc(text[i], out);
		}
	}
}

static void put_literal(FILE *out, const char *text)
{
	put_escaped(out, text, strlen(text));
}

/* A hyphen in prose is one; in an option it is a minus, as which it can be copied. */
static void put_word(FILE *out, const char *word, size_t length)
{
	size_t dashes = strspn(word, "-'(\"");
	bool is_option = memchr(word, '-', dashes) != NULL && length > dashes;

	if (!is_option) {
		for (size_t i = 0; i < length; i++) {
			if (word[i] == '-')
				fputc('-', out);
			else
				put_escaped(out, word + i, 1);
		}
		return;
	}

	size_t end = length;
	while (end > dashes && strchr(".,;:')\"", word[end - 1]))
		end--;
	size_t start = strcspn(word, "-");
	put_escaped(out, word, start);
	fputs("\\fB", out);
	put_escaped(out, word + start, end - start);
	fputs("\\fP", out);
	put_escaped(out, word + end, length - end);
}

static bool ends_sentence(const char *word, size_t length)
{
	return length > 1 && strchr(".:?!", word[length - 1]) && strncmp(word, "...", 3) != 0;
}

/* LENGTH bytes of prose, filled anew; a sentence starts a line. */
static void put_prose(FILE *out, const char *text, size_t length)
{
	const char *end = text + length;
	size_t column = 0;

	while (text < end) {
		size_t blanks = strspn(text, " \t\n");
		if (blanks >= (size_t)(end - text))
			break;
		text += blanks;

		size_t n = strcspn(text, " \t\n");
		if (n > (size_t)(end - text))
			n = (size_t)(end - text);
		if (column > 0 && column + 1 + n > LINE_WIDTH) {
			fputc('\n', out);
			column = 0;
		}
		if (column > 0)
			fputc(' ', out);
		else if (*text == '.' || *text == '\'')
			fputs("\\&", out);
		put_word(out, text, n);
		column += n + 1;
		if (ends_sentence(text, n)) {
			fputc('\n', out);
			column = 0;
		}
		text += n;
	}
	if (column > 0)
		fputc('\n', out);
}

/* Lines as they stand, but for the blanks that all of them begin with. */
static void put_verbatim(FILE *out, const char *text, size_t length, bool first)
{
	size_t indent = strspn(text, " ");

	fputs(first ? ".RS 4\n.EX\n" : ".PP\n.RS 4\n.EX\n", out);
	while (length > 0) {
		size_t n = strcspn(text, "\n"), skip = strspn(text, " ");
		if (n > length)
			n = length;
		if (skip > indent)
			skip = indent;
		if (n > skip && (text[skip] == '.' || text[skip] == '\''))
			fputs("\\&", out);
		for (size_t i = skip; i < n; i++)
			if (text[i] == '\'')
				fputs("\\(aq", out);
			else
				put_escaped(out, text + i, 1);
		fputc('\n', out);
		n += n < length;
		text += n;
		length -= n;
	}
	fputs(".EE\n.RE\n", out);
}

/* How much of a paragraph is prose, before a line that begins with two blanks. */
static size_t prose_length(const char *text, size_t length)
{
	for (size_t i = 0; i + 2 < length; i++)
		if ((i == 0 || text[i - 1] == '\n') && text[i] == ' ' && text[i + 1] == ' ')
			return i;
	return length;
}

/* Paragraphs as options.h describes them. INDENTED: they go on below a tag. FIRST: the first one needs no space above. */
static void put_paragraphs(FILE *out, const char *text, bool indented, bool first)
{
	while (text && *text) {
		const char *end = strstr(text, "\n\n");
		size_t length = end ? (size_t)(end - text) : strlen(text);

		if (!strncmp(text, "- ", 2)) {
			fputs(".IP \\(bu 2\n", out);
			put_prose(out, text + 2, length - 2);
		} else {
			size_t prose = prose_length(text, length);

			if (prose > 0 && !first)
				fputs(indented ? ".IP\n" : ".PP\n", out);
			put_prose(out, text, prose);
			if (prose < length)
				put_verbatim(out, text + prose, length - prose, first && prose == 0);
		}
		first = false;
		text = end ? end + 2 : NULL;
	}
}

/* SUMMARY as a sentence, where it is half of one. */
static void put_sentence(FILE *out, const char *summary)
{
	char *sentence = NULL;

	if (asprintf(&sentence, "%c%s.", toupper((unsigned char)summary[0]), summary + 1) < 0)
		abort();
	put_prose(out, sentence, strlen(sentence));
	free(sentence);
}

static void put_section(FILE *out, const char *title, const char *text)
{
	if (!text)
		return;
	fprintf(out, ".SH %s\n", title);
	put_paragraphs(out, text, false, true);
}

/* ---- synopsis ---- */

static void put_name(FILE *out, const struct cli_command *command, const struct cli_action *action)
{
	fputs(".SY faultline\n\\fB", out);
	put_literal(out, command->name);
	if (is_named(action)) {
		fputc(' ', out);
		put_literal(out, action->name);
	}
	fputs("\\fP\n", out);
}

/* LINE as its author wrote it: options bold, and what is in capitals in italics. */
static void put_written_synopsis(FILE *out, const char *line)
{
	while (*line && *line != '\n') {
		size_t n = strcspn(line, " |[]\n");
		bool is_option = n > 2 && line[0] == '-', is_value = n > 0 && isupper((unsigned char)line[0]);

		if (n > 0)
			fputs(is_option ? "\\fB" : is_value ? "\\fI" : "\\fR", out);
		put_escaped(out, line, n);
		if (n > 0)
			fputs("\\fP", out);
		line += n;
		for (; *line && strchr(" |[]", *line); line++)
			fputc(*line, out);
	}
	fputc('\n', out);
}

static void put_synopsis(FILE *out, const struct cli_command *command, const struct cli_action *action)
{
	for (const char *line = action->synopsis; line; line = next_line(line)) {
		put_name(out, command, action);
		put_written_synopsis(out, line);
		fputs(".YS\n", out);
	}
	if (action->synopsis)
		return;
	put_name(out, command, action);

	const char *arguments = action->arguments;
	char word[WORD_MAX];
	while (next_word(&arguments, word)) {
		fputs("\\fI", out);
		put_literal(out, word);
		fputs("\\fP\n", out);
	}
	for (const struct cli_option *o = action->options; o && o->name; o++) {
		fputs(o->required ? "\\fB\\-\\-" : "[\\fB\\-\\-", out);
		put_literal(out, o->name);
		fputs("\\fP", out);
		if (o->value) {
			char *value = option_value(o);

			fputs(o->words ? "\\ \\fB" : "\\ \\fI", out);
			put_literal(out, value);
			fputs("\\fP", out);
			free(value);
		}
		fputs(o->required ? "\n" : "]\n", out);
	}
	if (action->client)
		fputs("[\\fB\\-\\-run\\-dir\\fP \\fIDIR\\fP]\n[\\fB\\-\\-json\\fP]\n", out);
	fputs(".YS\n", out);
}

/* ---- options ---- */

static void put_option(FILE *out, const struct cli_option *option)
{
	fputs(".TP\n", out);
	if (option->letter)
		fprintf(out, "\\fB\\-%c\\fP, ", option->letter);
	fputs("\\fB\\-\\-", out);
	put_literal(out, option->name);
	fputs("\\fP", out);
	if (option->value) {
		fputs(" \\fI", out);
		put_literal(out, option->value);
		fputs("\\fP", out);
	}
	fputc('\n', out);

	char *text = NULL;
	if (asprintf(&text, "%s%s%s", option->help, option->manual ? ". " : "", option->manual ?: "") < 0)
		abort();
	put_paragraphs(out, text, true, true);
	free(text);
}

static void put_options(FILE *out, const struct cli_option *options)
{
	for (; options && options->name; options++)
		put_option(out, options);
}

static bool talks_to_server(const struct cli_command *command)
{
	for (const struct cli_action *a = command->actions; a->name; a++)
		if (a->client)
			return true;
	return false;
}

static void put_actions(FILE *out, const struct cli_command *command)
{
	fputs(".SH ACTIONS\n", out);
	for (const struct cli_action *a = command->actions; a->name; a++) {
		fputs(".SS ", out);
		put_literal(out, a->name);
		if (a->arguments[0]) {
			fputc(' ', out);
			put_literal(out, a->arguments);
		}
		fputc('\n', out);
		put_sentence(out, a->summary);
		put_paragraphs(out, a->details, false, false);
		put_paragraphs(out, a->manual, false, false);
		put_options(out, a->options);
	}
	fputs(".SH COMMON OPTIONS\nOptions stand anywhere after the command, as\n"
	      "\\fB\\-\\-name\\fP \\fIVALUE\\fP or \\fB\\-\\-name=\\fP\\fIVALUE\\fP;\n\\fB\\-\\-\\fP ends them.\n",
	      out);
	if (talks_to_server(command)) {
		fputs("Actions that talk to a server take these:\n", out);
		put_options(out, cli_client_options);
	}
	fputs(".PP\nEvery action takes this one:\n", out);
	put_options(out, cli_help_options);
}

static void put_single_action(FILE *out, const struct cli_action *action)
{
	fputs(".SH OPTIONS\n", out);
	put_options(out, action->options);
	if (action->client)
		put_options(out, cli_client_options);
	put_options(out, cli_help_options);
}

/* ---- what all pages end with ---- */

static void put_exit_status(FILE *out, bool client, const char *more)
{
	fputs(".SH EXIT STATUS\n", out);
	for (const struct cli_exit_status *s = cli_exit_statuses; s->meaning; s++) {
		if (s->client && !client)
			continue;
		fprintf(out, ".TP\n.B %d\n", s->code);
		put_prose(out, s->meaning, strlen(s->meaning));
	}
	put_paragraphs(out, more, false, false);
}

static void put_environment(FILE *out)
{
	fputs(".SH ENVIRONMENT\n", out);
	for (const struct cli_variable *v = cli_environment; v->name; v++) {
		fprintf(out, ".TP\n.B %s\n", v->name);
		put_prose(out, v->meaning, strlen(v->meaning));
	}
}

/* The one variable that there is stands for --run-dir. */
static bool takes_run_dir(const struct cli_command *command)
{
	for (const struct cli_action *a = command->actions; a->name; a++)
		for (const struct cli_option *o = next_option(a, NULL); o; o = next_option(a, o))
			if (!strcmp(o->name, "run-dir"))
				return true;
	return false;
}

/* COMMAND's own page is not among them. */
static void put_see_also(FILE *out, const struct cli_command *command)
{
	const char *separator = "";

	fputs(".SH SEE ALSO\n", out);
	if (command) {
		fputs("\\fBfaultline\\fP(1)", out);
		separator = ",\n";
	}
	for (const struct cli_command *const *c = cli_commands; *c; c++) {
		if (*c == command)
			continue;
		fprintf(out, "%s\\fBfaultline\\-%s\\fP(1)", separator, (*c)->name);
		separator = ",\n";
	}

	const char *more = command && command->see_also ? command->see_also : "";
	char word[WORD_MAX];
	while (next_word(&more, word)) {
		word[strcspn(word, ",")] = '\0';
		fprintf(out, "%s\\fB%.*s\\fP%s", separator, (int)strcspn(word, "("), word, word + strcspn(word, "("));
	}
	fputs("\n", out);
}

static void put_title(FILE *out, const char *page, const char *brief)
{
	fputs(".\\\" Made out of the program's tables of options.\n.TH ", out);
	for (const char *p = page; *p; p++)
		fputc(toupper((unsigned char)*p), out);
	fprintf(out, " 1 %s \"faultline %s\" \"faultline manual\"\n.SH NAME\n", FAULTLINE_DATE, FAULTLINE_VERSION);
	put_literal(out, page);
	fprintf(out, " \\- %s\n.SH SYNOPSIS\n", brief);
}

static void write_program_page(FILE *out)
{
	put_title(out, "faultline", "userfaultfd page server for microVM snapshot forks");
	fputs(".SY faultline\n\\fICOMMAND\\fP\n[\\fIARGUMENT\\fP...]\n[\\fIOPTION\\fP...]\n.YS\n", out);
	put_section(out, "DESCRIPTION",
		    "Platforms start virtual machines by restoring many of them (forks) from one memory snapshot (a template). "
		    "With userfaultfd each gets its pages on demand, and every first touch costs a round trip. faultline serves "
		    "those faults, records which pages a warm-up fork touches, and gives them to later forks before they "
		    "ask.\n\n"
		    "'faultline COMMAND --help' is a short form of that command's page.");
	fputs(".SH COMMANDS\n", out);
	for (const struct cli_command *const *c = cli_commands; *c; c++) {
		fprintf(out, ".TP\n\\fBfaultline\\-%s\\fP(1)\n", (*c)->name);
		put_sentence(out, (*c)->brief);
	}
	fputs(".SH OPTIONS\n.TP\n\\fB\\-h\\fP, \\fB\\-\\-help\\fP\nPrint the commands.\n.TP\n\\fB\\-\\-version\\fP\n"
	      "Print the version.\n",
	      out);
	put_exit_status(out, true, NULL);
	put_environment(out);
	fputs(".SH FILES\n.TP\n.I " API_DEFAULT_RUN_DIR "\nThe run directory where nothing else is said.\n", out);
	put_see_also(out, NULL);
}

void write_man_page(FILE *out, const struct cli_command *command)
{
	char page[64];

	if (!command) {
		write_program_page(out);
		return;
	}
	snprintf(page, sizeof page, "faultline-%s", command->name);
	put_title(out, page, command->brief);
	for (const struct cli_action *a = command->actions; a->name; a++)
		put_synopsis(out, command, a);

	fputs(".SH DESCRIPTION\n", out);
	put_paragraphs(out, command->summary, false, true);
	if (!is_named(command->actions))
		put_paragraphs(out, command->actions->details, false, false);
	put_paragraphs(out, command->details, false, false);
	put_paragraphs(out, command->manual, false, false);
	if (is_named(command->actions)) {
		put_actions(out, command);
	} else {
		put_paragraphs(out, command->actions->manual, false, false);
		put_single_action(out, command->actions);
	}
	put_exit_status(out, talks_to_server(command), command->exit_status);
	if (takes_run_dir(command))
		put_environment(out);
	put_section(out, "FILES", command->files);
	put_section(out, "EXAMPLES", command->examples);
	put_see_also(out, command);
}
