/* Command lines against tables: see options.h. */
#include "cli/options.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

const struct cli_option cli_client_options[] = {
	{ "run-dir", 0, "DIR", "where the server is (default: $FAULTLINE_RUN_DIR, or else /run/faultline)" },
	{ "json", 0, NULL, "print the API's JSON, and errors as JSON on stderr" },
	{ 0 },
};

const struct cli_option cli_help_options[] = {
	{ "help", 'h', NULL, "print this" },
	{ 0 },
};

const char *cli_completion(const char *name)
{
	static const struct {
		const char *name, *offer;
	} offers[] = {
		{ "FILE", "@file" },	     { "LIST", "@file" }, { "IMAGE", "@file" }, { "IN", "@file" },
		{ "OUT", "@file" },	     { "A", "@file" },	  { "B", "@file" },	{ "DIR", "@dir" },
		{ "TEMPLATE", "@template" }, { "ID", "@fork" },
	};

	name += *name == '[';
	for (size_t i = 0; i < sizeof offers / sizeof *offers; i++)
		if (strlen(offers[i].name) == strcspn(name, ".]") &&
		    !strncmp(name, offers[i].name, strlen(offers[i].name)))
			return offers[i].offer;
	return "";
}

/* ---- finding names ---- */

static size_t smallest(size_t a, size_t b, size_t c)
{
	size_t m = a < b ? a : b;

	return m < c ? m : c;
}

/* Levenshtein distance; words longer than any name of ours are as far as can be. */
static size_t edit_distance(const char *a, const char *b)
{
	enum { LONGEST = 32 };
	size_t n = strlen(a), m = strlen(b), row[LONGEST + 1];

	if (n > LONGEST || m > LONGEST)
		return SIZE_MAX;
	for (size_t j = 0; j <= m; j++)
		row[j] = j;
	for (size_t i = 1; i <= n; i++) {
		size_t diagonal = row[0];

		row[0] = i;
		for (size_t j = 1; j <= m; j++) {
			size_t above = row[j];

			row[j] = smallest(above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1]));
			diagonal = above;
		}
	}
	return row[m];
}

const char *cli_nearest(const char *word, const char *const *names, size_t count)
{
	size_t best = SIZE_MAX;
	const char *nearest = NULL;

	for (size_t i = 0; i < count; i++) {
		size_t distance = edit_distance(word, names[i]);
		size_t length = strlen(names[i]);

		/* One slip, or one more for every four letters: beyond that it is another word. */
		if (distance < best && distance <= 1 + length / 4) {
			best = distance;
			nearest = names[i];
		}
	}
	return nearest;
}

static const struct cli_option *find_option(const struct cli_option *options, const char *name, size_t length)
{
	for (; options && options->name; options++)
		if (strlen(options->name) == length && !memcmp(options->name, name, length))
			return options;
	return NULL;
}

static const struct cli_option *find_letter(const struct cli_option *options, char letter)
{
	for (; options && options->name; options++)
		if (options->letter == letter)
			return options;
	return NULL;
}

static const struct cli_action *find_action(const struct cli_command *command, const char *name)
{
	for (const struct cli_action *a = command->actions; a->name; a++)
		if (!strcmp(a->name, name))
			return a;
	return NULL;
}

static bool has_actions(const struct cli_command *command)
{
	return command->actions->name[0] != '\0';
}

static bool is_option(const char *word)
{
	return word[0] == '-' && word[1] != '\0';
}

/*
 * Whether the option WORD is followed by its value, before it is known which action it belongs to: an option of the same name means
 * the same in all actions of a command.
 */
static bool takes_next_word(const struct cli_command *command, const char *word)
{
	if (!strncmp(word, "--", 2)) {
		if (strchr(word, '='))
			return false;
		const struct cli_option *option = find_option(cli_client_options, word + 2, strlen(word + 2));
		for (const struct cli_action *a = command->actions; !option && a->name; a++)
			option = find_option(a->options, word + 2, strlen(word + 2));
		return option && option->value;
	}
	for (const struct cli_action *a = command->actions; a->name; a++) {
		const struct cli_option *option = find_letter(a->options, word[1]);
		if (option)
			return option->value && word[2] == '\0';
	}
	return false;
}

/* The index in ARGV of the word that names the action, 0 where there is none. */
static int find_action_word(const struct cli_command *command, int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--"))
			return i + 1 < argc ? i + 1 : 0;
		if (!is_option(argv[i]))
			return i;
		if (takes_next_word(command, argv[i]))
			i++;
	}
	return 0;
}

/* ---- help ---- */

/* Help stands in one column: names that are too long for it get a line of their own. */
static void print_help_line(const char *name, const char *help)
{
	enum { COLUMN = 26 };

	if (strlen(name) + 2 >= COLUMN)
		printf("  %s\n%*s%s\n", name, COLUMN, "", help);
	else
		printf("  %-*s%s\n", COLUMN - 2, name, help);
}

static void print_options(const struct cli_option *options)
{
	for (; options && options->name; options++) {
		char name[80];

		snprintf(name, sizeof name, "%s%c%s--%s%s%s", options->letter ? "-" : "",
			 options->letter ? options->letter : ' ', options->letter ? ", " : "   ", options->name,
			 options->value ? " " : "", options->value ?: "");
		print_help_line(name, options->help);
	}
}

static void print_all_options(const struct cli_action *action)
{
	printf("\nOptions, anywhere on the line:\n");
	print_options(action->options);
	if (action->client)
		print_options(cli_client_options);
	print_options(cli_help_options);
}

static void print_usage(const struct cli_command *command, const struct cli_action *action)
{
	const char *space = action->name[0] ? " " : "";

	for (const char *line = action->synopsis; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
		printf("%s faultline %s%s%s %.*s\n", line == action->synopsis ? "Usage:" : "      ", command->name,
		       space, action->name, (int)strcspn(line, "\n"), line);
	if (!action->synopsis) {
		printf("Usage: faultline %s%s%s%s%s", command->name, space, action->name,
		       action->arguments[0] ? " " : "", action->arguments);
		for (const struct cli_option *o = action->options; o && o->name; o++)
			if (o->required)
				printf(" --%s %s", o->name, o->value);
		printf(" [OPTION...]\n");
	}
	putchar('\n');
}

static int print_action_help(const struct cli_command *command, const struct cli_action *action)
{
	bool named = action->name[0] != '\0';

	print_usage(command, action);
	if (named)
		printf("%c%s.\n", toupper((unsigned char)action->summary[0]), action->summary + 1);
	else
		printf("%s\n", command->summary);
	if (action->details)
		printf("\n%s\n", action->details);
	if (!named && command->details)
		printf("\n%s\n", command->details);
	print_all_options(action);
	return cli_finish_output();
}

static int print_command_help(const struct cli_command *command)
{
	bool client = false;

	printf("Usage: faultline %s ACTION [ARGUMENT...] [OPTION...]\n\n%s\n\nActions:\n", command->name,
	       command->summary);
	for (const struct cli_action *a = command->actions; a->name; a++) {
		char name[80];

		snprintf(name, sizeof name, "%s%s%s", a->name, a->arguments[0] ? " " : "", a->arguments);
		print_help_line(name, a->summary);
		client = client || a->client;
	}
	if (command->details)
		printf("\n%s\n", command->details);
	if (client) {
		printf("\nOptions of every action that talks to a server:\n");
		print_options(cli_client_options);
	}
	printf("\n'faultline %s ACTION --help' describes an action and its options, 'faultline --help' the exit status.\n",
	       command->name);
	return cli_finish_output();
}

/* ---- taking a line apart ---- */

static int usage_error(const struct cli_args *args, const char *message)
{
	const char *action = args->action ? args->action->name : "";
	struct error err;

	error_set(&err, 0, "usage", "%s; see 'faultline %s%s%s --help'", message, args->command->name,
		  action[0] ? " " : "", action);
	return cli_fail(args->json, &err);
}

int cli_usage_error(const struct cli_args *args, const char *format, ...)
{
	char message[ERROR_MESSAGE_MAX / 2];
	va_list ap;

	va_start(ap, format);
	vsnprintf(message, sizeof message, format, ap);
	va_end(ap);
	return usage_error(args, message);
}

static int unknown_action(const struct cli_args *args, const char *word)
{
	const char *names[CLI_ARGUMENTS_MAX];
	size_t count = 0;

	for (const struct cli_action *a = args->command->actions; a->name && count < CLI_ARGUMENTS_MAX; a++)
		names[count++] = a->name;
	const char *nearest = cli_nearest(word, names, count);
	if (nearest)
		return cli_usage_error(args, "%s has no action '%s': did you mean '%s'?", args->command->name, word,
				       nearest);
	return cli_usage_error(args, "%s has no action '%s'", args->command->name, word);
}

static int unknown_option(const struct cli_args *args, const char *word)
{
	const char *names[CLI_OPTIONS_MAX + 8];
	size_t count = 0;
	char bare[64];

	for (const struct cli_option *o = args->action->options; o && o->name && count < CLI_OPTIONS_MAX; o++)
		names[count++] = o->name;
	for (const struct cli_option *o = cli_client_options; args->action->client && o->name; o++)
		names[count++] = o->name;
	names[count++] = cli_help_options[0].name;

	snprintf(bare, sizeof bare, "%.*s", (int)strcspn(word, "="), word);
	const char *nearest = !strncmp(bare, "--", 2) ? cli_nearest(bare + 2, names, count) : NULL;
	if (nearest)
		return cli_usage_error(args, "there is no option '%s' here: did you mean '--%s'?", bare, nearest);
	return cli_usage_error(args, "there is no option '%s' here", bare);
}

static void store_value(struct cli_args *args, const struct cli_option *option, const char *value)
{
	if (option == &cli_client_options[0])
		args->run_dir = value;
	else if (option == &cli_client_options[1])
		args->json = true;
	else
		args->values[option - args->action->options] = value ?: "";
}

/* Finds the option that WORD ("--name", "--name=value", "-o", "-oVALUE") is, and where its value stands if that is in WORD. */
static const struct cli_option *match_option(const struct cli_action *action, const char *word, const char **ret_value)
{
	const struct cli_option *option;

	if (word[1] != '-') {
		*ret_value = word[2] ? word + 2 : NULL;
		return find_letter(action->options, word[1]);
	}

	size_t length = strcspn(word + 2, "=");

	*ret_value = word[2 + length] == '=' ? word + 2 + length + 1 : NULL;
	option = find_option(action->options, word + 2, length);
	if (!option && action->client)
		option = find_option(cli_client_options, word + 2, length);
	return option;
}

/* "'off', 'eager' or 'stream'". */
static void list_words(const char *words, char *buffer, size_t size)
{
	size_t n = 0;

	buffer[0] = '\0';
	while (*words && n < size) {
		size_t length = strcspn(words, " ");
		const char *rest = words + length + strspn(words + length, " ");
		const char *separator = n == 0 ? "" : *rest ? ", " : " or ";

		n += (size_t)snprintf(buffer + n, size - n, "%s'%.*s'", separator, (int)length, words);
		words = rest;
	}
}

static bool is_one_of(const char *value, const char *words)
{
	while (*words) {
		size_t length = strcspn(words, " ");

		if (strlen(value) == length && !memcmp(value, words, length))
			return true;
		words += length + strspn(words + length, " ");
	}
	return false;
}

static int check_value(const struct cli_args *args, const struct cli_option *option, const char *value)
{
	char words[200];

	if (!option->words || is_one_of(value, option->words))
		return EXIT_OK;
	list_words(option->words, words, sizeof words);
	return cli_usage_error(args, "--%s is %s, not '%s'", option->name, words, value);
}

/* Takes the option at ARGV[*I], and moves *I to its value where that is the next word. Returns EXIT_OK or EXIT_USAGE. */
static int parse_option(struct cli_args *args, int argc, char **argv, int *i)
{
	const char *word = argv[*i], *value;
	const struct cli_option *option = match_option(args->action, word, &value);

	if (!option)
		return unknown_option(args, word);
	if (!option->value && value)
		return cli_usage_error(args, "'--%s' takes no value", option->name);
	if (option->value && !value) {
		if (*i + 1 >= argc)
			return cli_usage_error(args, "'%s' needs a value (%s)", word, option->value);
		value = argv[++*i];
	}
	int exit_code = option->value ? check_value(args, option, value) : EXIT_OK;
	if (exit_code == EXIT_OK)
		store_value(args, option, value);
	return exit_code;
}

/* Those that must be there: a word in brackets need not. */
static int count_words(const char *arguments)
{
	int n = 0;

	for (const char *p = arguments; *p; p += strspn(p, " ")) {
		n += *p != '[';
		p += strcspn(p, " ");
	}
	return n;
}

static int check_required(const struct cli_args *args)
{
	for (const struct cli_option *o = args->action->options; o && o->name; o++)
		if (o->required && !args->values[o - args->action->options])
			return cli_usage_error(args, "--%s %s is missing: %s", o->name, o->value, o->help);
	return EXIT_OK;
}

static int check_argument_count(const struct cli_args *args)
{
	const char *expected = args->action->arguments;
	int wanted = count_words(expected);
	bool more = strstr(expected, "...") != NULL;

	if (args->argument_count < wanted)
		return cli_usage_error(args, "something is missing: expected %s", expected);
	if (args->argument_count > wanted && !more)
		return cli_usage_error(args, "'%s' is one word too many", args->arguments[wanted]);
	return EXIT_OK;
}

/* --help counts wherever it stands, but not as another option's value and not after "--". */
static bool wants_help(const struct cli_command *command, int argc, char **argv)
{
	for (int i = 1; i < argc && strcmp(argv[i], "--"); i++) {
		if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))
			return true;
		if (is_option(argv[i]) && takes_next_word(command, argv[i]))
			i++;
	}
	return false;
}

/* --json shapes usage errors too, so it is looked for before anything can be wrong. */
static bool wants_json(const struct cli_command *command, int argc, char **argv)
{
	for (int i = 1; i < argc && strcmp(argv[i], "--"); i++) {
		if (!strcmp(argv[i], "--json"))
			return true;
		if (is_option(argv[i]) && takes_next_word(command, argv[i]))
			i++;
	}
	return false;
}

static int parse_words(struct cli_args *args, int argc, char **argv, int action_word)
{
	bool options_end = false;

	for (int i = 1; i < argc; i++) {
		if (i == action_word)
			continue;
		if (!options_end && !strcmp(argv[i], "--")) {
			options_end = true;
		} else if (!options_end && is_option(argv[i])) {
			int exit_code = parse_option(args, argc, argv, &i);
			if (exit_code != EXIT_OK)
				return exit_code;
		} else if (args->argument_count >= CLI_ARGUMENTS_MAX) {
			return cli_usage_error(args, "more than %d words on the line", CLI_ARGUMENTS_MAX);
		} else {
			args->arguments[args->argument_count++] = argv[i];
		}
	}
	int exit_code = check_argument_count(args);
	return exit_code == EXIT_OK ? check_required(args) : exit_code;
}

int cli_run(const struct cli_command *command, int argc, char **argv)
{
	struct cli_args args = { .command = command, .json = wants_json(command, argc, argv) };
	bool help = wants_help(command, argc, argv);
	int action_word = 0;

	if (has_actions(command)) {
		action_word = find_action_word(command, argc, argv);
		if (!action_word && help)
			return print_command_help(command);
		if (!action_word)
			return cli_usage_error(&args, "%s needs an action", command->name);
		args.action = find_action(command, argv[action_word]);
		if (!args.action)
			return unknown_action(&args, argv[action_word]);
	} else {
		args.action = command->actions;
	}
	if (help)
		return print_action_help(command, args.action);

	int exit_code = parse_words(&args, argc, argv, action_word);
	if (exit_code != EXIT_OK)
		return exit_code;
	return args.action->run(&args);
}

const char *cli_value(const struct cli_args *args, const char *name)
{
	const struct cli_option *option = find_option(args->action->options, name, strlen(name));

	return option ? args->values[option - args->action->options] : NULL;
}

int cli_seconds(const struct cli_args *args, const char *name, double otherwise, double *ret)
{
	const char *text = cli_value(args, name);
	double seconds;
	char *end;

	*ret = otherwise;
	if (!text)
		return EXIT_OK;
	/* strtod alone would take "1e3", "0x10", "inf" and leading spaces. */
	seconds = strtod(text, &end);
	if (end == text || *end || strspn(text, "0123456789.") != strlen(text) || seconds > CLI_SECONDS_MAX)
		return cli_usage_error(args, "--%s is a number of seconds from 0 to %d, not '%s'", name,
				       CLI_SECONDS_MAX, text);
	*ret = seconds;
	return EXIT_OK;
}
