/* What is made out of the tables of options: man pages, and completion for three shells. Runs at build time only. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"

/* The page of COMMAND; NULL: of the program as a whole. */
void write_man_page(FILE *out, const struct cli_command *command);

void write_bash_completion(FILE *out);
void write_zsh_completion(FILE *out);
void write_fish_completion(FILE *out);

/* ---- going through the tables ---- */

/* An action's options in turn, with those that are in no table behind its own: NULL first, then what was returned last. NULL: the end. */
const struct cli_option *next_option(const struct cli_action *action, const struct cli_option *last);

static inline bool is_named(const struct cli_action *action)
{
	return action->name[0] != '\0';
}

/* The line after the one at TEXT; NULL: there is none. */
static inline const char *next_line(const char *text)
{
	const char *end = strchr(text, '\n');

	return end ? end + 1 : NULL;
}

/* What shells offer for an option's value, and for the argument at INDEX; see cli_completion. */
const char *option_offer(const struct cli_option *option);

#define OFFER_MAX 128
#define WORD_MAX  64

/* What a synopsis calls the option's value: its name, or all its words with bars between. The caller frees. */
char *option_value(const struct cli_option *option);

/* Takes the next word off TEXT. False: there is none. */
bool next_word(const char **text, char word[static WORD_MAX]);

struct argument {
	char name[WORD_MAX]; /* as help has it: "IN...", "[IN...]" */
	char offer[OFFER_MAX];
	bool repeats;
};

/* The argument at INDEX. False: the action takes none there. */
bool argument_at(const struct cli_action *action, size_t index, struct argument *ret);

/* Whether OFFER has the word WORD. */
bool offers(const char *offer, const char *word);
