/* Going through the tables of options: see docs.h. */
#include <stdlib.h>
#include <string.h>

#include "cli/docs/docs.h"

static const struct cli_option *first_of(const struct cli_option *options)
{
	return options && options->name ? options : NULL;
}

static bool is_in(const struct cli_option *options, const struct cli_option *option)
{
	for (; options && options->name; options++)
		if (options == option)
			return true;
	return false;
}

const struct cli_option *next_option(const struct cli_action *action, const struct cli_option *last)
{
	const struct cli_option *lists[] = { action->options, action->client ? cli_client_options : NULL,
					     cli_help_options };
	size_t i = 0;

	if (last) {
		while (!is_in(lists[i], last))
			i++;
		if (last[1].name)
			return last + 1;
		i++;
	}
	for (; i < sizeof lists / sizeof *lists; i++)
		if (first_of(lists[i]))
			return lists[i];
	return NULL;
}

const char *option_offer(const struct cli_option *option)
{
	if (option->words)
		return option->words;
	return option->complete ?: cli_completion(option->value);
}

bool next_word(const char **text, char word[static WORD_MAX])
{
	const char *start = *text + strspn(*text, " ");
	size_t length = strcspn(start, " ");

	if (!length)
		return false;
	snprintf(word, WORD_MAX, "%.*s", (int)length, start);
	*text = start + length;
	return true;
}

bool argument_at(const struct cli_action *action, size_t index, struct argument *ret)
{
	const char *names = action->arguments, *all = action->complete;

	for (size_t i = 0; i <= index; i++)
		if (!next_word(&names, ret->name))
			return false;
	/* The last offer goes for the arguments behind it too. */
	for (size_t i = 0; all && i < index && strchr(all, ';'); i++)
		all = strchr(all, ';') + 1;
	snprintf(ret->offer, sizeof ret->offer, "%.*s", all ? (int)strcspn(all, ";") : OFFER_MAX,
		 all ?: cli_completion(ret->name));
	ret->repeats = strstr(ret->name, "...") != NULL;
	return true;
}

char *option_value(const struct cli_option *option)
{
	char *value = strdup(option->words ?: option->value);

	for (char *p = value; p && option->words && *p; p++)
		if (*p == ' ')
			*p = '|';
	if (!value)
		abort();
	return value;
}

bool offers(const char *offer, const char *word)
{
	char each[WORD_MAX];

	while (next_word(&offer, each))
		if (!strcmp(each, word))
			return true;
	return false;
}
