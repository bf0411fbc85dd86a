/* What subcommands print: errors, JSON, tables, numbers with units. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "cli/api_client.h"
#include "cli/cli.h"

void cli_error(const char *format, ...)
{
	va_list ap;

	fflush(stdout);
	fputs("faultline: ", stderr);
	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fputc('\n', stderr);
}

int cli_fail(bool json, const struct error *err)
{
	if (json) {
		json_t *value = json_pack("{s:{s:s,s:s}}", "error", "code", err->code, "message", err->message);

		/* A message that isn't UTF-8 (a file's name in it) can't be JSON; the sentence still gets out. */
		if (value) {
			fflush(stdout);
			json_dumpf(value, stderr, JSON_COMPACT);
			fputc('\n', stderr);
			json_decref(value);
			return api_exit_code(err);
		}
	}
	cli_error("%s", err->message);
	return api_exit_code(err);
}

int cli_finish_output(void)
{
	if (fflush(stdout) || ferror(stdout)) {
		cli_error("can't write to standard output: %s", strerror(errno));
		return EXIT_FAILED;
	}
	return EXIT_OK;
}

int cli_print_bytes(const void *data, size_t size)
{
	if (size)
		fwrite(data, 1, size, stdout);
	return cli_finish_output();
}

int cli_print_json(const json_t *value)
{
	json_dumpf(value, stdout, JSON_COMPACT | JSON_REAL_PRECISION(15));
	putchar('\n');
	return cli_finish_output();
}

void cli_format_size(uint64_t bytes, char *buffer, size_t size)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	unsigned unit = 0;

	while (unit + 1 < sizeof units / sizeof *units && bytes >> (10 * (unit + 1)))
		unit++;

	uint64_t whole = bytes >> (10 * unit);

	if (whole << (10 * unit) == bytes)
		snprintf(buffer, size, "%" PRIu64 " %s", whole, units[unit]);
	else
		snprintf(buffer, size, "%.1f %s", (double)bytes / (double)(1ull << (10 * unit)), units[unit]);
}

void cli_format_ms(double ms, char *buffer, size_t size)
{
	if (ms < 0.0005)
		snprintf(buffer, size, "0");
	else if (ms < 1)
		snprintf(buffer, size, "%.0f µs", ms * 1000);
	else if (ms < 1000)
		snprintf(buffer, size, "%.1f ms", ms);
	else
		snprintf(buffer, size, "%.2f s", ms / 1000);
}

/* ---- tables ---- */

struct cli_table {
	const char *const *headings;
	size_t columns;
	char **cells; /* row after row */
	size_t count, capacity;
};

struct cli_table *cli_table_new(const char *const *headings, size_t columns)
{
	struct cli_table *table = calloc(1, sizeof *table);

	if (table) {
		table->headings = headings;
		table->columns = columns < CLI_COLUMNS_MAX ? columns : CLI_COLUMNS_MAX;
	}
	return table;
}

static bool grow(struct cli_table *table)
{
	size_t capacity = table->capacity ? 2 * table->capacity : 64;
	char **cells = reallocarray(table->cells, capacity, sizeof *cells);

	if (!cells)
		return false;
	table->cells = cells;
	table->capacity = capacity;
	return true;
}

void cli_table_cell(struct cli_table *table, const char *format, ...)
{
	char *text = NULL;
	va_list ap;

	if (table->count == table->capacity && !grow(table))
		return;
	va_start(ap, format);
	if (vasprintf(&text, format, ap) < 0)
		text = NULL;
	va_end(ap);
	table->cells[table->count++] = text;
}

/* Columns of a terminal that TEXT takes: its characters, of which UTF-8 continuation bytes are none. */
static size_t width_of(const char *text)
{
	size_t width = 0;

	for (; *text; text++)
		width += ((unsigned char)*text & 0xc0) != 0x80;
	return width;
}

static size_t next_column(const struct cli_table *table, size_t column)
{
	return column + 1 < table->columns ? column + 1 : 0;
}

static void print_padded(const char *text, size_t width, bool right, bool last)
{
	int padding = (int)(width - width_of(text));

	if (right)
		printf("%*s%s", padding, "", text);
	else
		printf("%s%*s", text, last ? 0 : padding, "");
	fputs(last ? "\n" : "  ", stdout);
}

void cli_table_print(struct cli_table *table)
{
	size_t widths[CLI_COLUMNS_MAX] = { 0 };

	for (size_t c = 0; c < table->columns; c++)
		widths[c] = width_of(table->headings[c] + (table->headings[c][0] == '>'));
	for (size_t i = 0, c = 0; i < table->count; i++, c = next_column(table, c)) {
		size_t width = width_of(table->cells[i] ?: "");

		if (width > widths[c])
			widths[c] = width;
	}

	for (size_t c = 0; c < table->columns; c++) {
		bool right = table->headings[c][0] == '>';

		print_padded(table->headings[c] + right, widths[c], right, c + 1 == table->columns);
	}
	for (size_t i = 0, c = 0; i < table->count; i++, c = next_column(table, c)) {
		print_padded(table->cells[i] ?: "", widths[c], table->headings[c][0] == '>', c + 1 == table->columns);
		free(table->cells[i]);
	}
	free(table->cells);
	free(table);
}
