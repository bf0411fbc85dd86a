/* What the actions of `faultline hotlist` print alike. */
#pragma once

#include <stddef.h>

#include "hotlist/hotlist.h"

struct cli_args;

#define SHOWN_PAGES 20 /* a screenful, where nobody asked for another number */

/* --limit: how many pages to print, SIZE_MAX for all. Returns EXIT_OK, or EXIT_USAGE with the message printed. */
int print_parse_limit(const struct cli_args *args, size_t otherwise, size_t *ret);

/* TEXT as a JSON string; a file's name that is not UTF-8 becomes null. */
void print_json_string(const char *text);

/* ,"KEY":[…] */
void print_json_pages(const char *key, const struct hotlist *list, size_t limit);

/* A table of the first LIMIT pages with what is known of them, and how many more there are. */
void print_pages(const struct hotlist *list, size_t limit);
