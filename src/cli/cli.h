/* What subcommands share: exit codes, and what they print. Their list is in commands.h. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum exit_code {
	EXIT_OK = 0,
	EXIT_FAILED = 1,
	EXIT_USAGE = 2,
	EXIT_NO_SERVER = 3, /* nothing answers at DIR/control.sock */
	EXIT_UNKNOWN = 4,   /* no such template or fork */
	EXIT_TIMEOUT = 5,   /* fork wait */
};

/* Prints "faultline: …" to stderr. */
void cli_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

/*
 * Prints ERR to stderr: as a sentence, or as the API's {"error":…} where JSON is asked for. Returns the exit code that its
 * code stands for.
 */
int cli_fail(bool json, const struct error *err);

/* Prints VALUE to stdout as --json does: one line. Returns EXIT_OK, or EXIT_FAILED where stdout took no more. */
int cli_print_json(const json_t *value);

/* Flushes stdout. Returns EXIT_OK, or EXIT_FAILED with a message where not all of it could be written. */
int cli_finish_output(void);

/* Prints the bytes that the server answered with to stdout as they are. Returns as cli_finish_output. */
int cli_print_bytes(const void *data, size_t size);

/* "512 MiB": the largest unit that leaves a number of 1 or more, with a decimal where there is one. */
void cli_format_size(uint64_t bytes, char *buffer, size_t size);

/* "850 µs", "12.3 ms", "4.56 s". */
void cli_format_ms(double ms, char *buffer, size_t size);

/* ---- tables ---- */

#define CLI_COLUMNS_MAX 12

/* Rows of text, printed with aligned columns. Add cells row by row, COLUMNS to a row. */
struct cli_table;

/* HEADINGS: COLUMNS of them. One that starts with '>' (not printed) has its column aligned to the right. NULL: no memory. */
struct cli_table *cli_table_new(const char *const *headings, size_t columns);
void cli_table_cell(struct cli_table *table, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Prints to stdout and frees. */
void cli_table_print(struct cli_table *table);
