/* What hotlist.c and hotlist_verify.c share. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "cli/options.h"

struct hotlist;

/* PATH as users name lists: "-" is standard input, a pipe is read to its end, and a file that isn't there is noted on stderr. */
int hotlist_cli_load(const struct cli_args *args, const char *path, struct hotlist **ret, struct error *err);

/* "4096", "0x1000", "512M": bytes. False where TEXT is no such number or over 64 bits. */
bool hotlist_cli_parse_size(const char *text, uint64_t *ret);
bool hotlist_cli_page_size_ok(uint64_t page_size);

/* The actions `show`, `diff` and `verify`. */
int hotlist_cli_show(const struct cli_args *args);
int hotlist_cli_diff(const struct cli_args *args);
int hotlist_cli_verify(const struct cli_args *args);

/* The actions `merge` and `plot`, and their options. */
int hotlist_cli_merge(const struct cli_args *args);
extern const struct cli_option hotlist_merge_options[];
int hotlist_cli_plot(const struct cli_args *args);
extern const struct cli_option hotlist_plot_options[];
