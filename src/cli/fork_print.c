/* Forks as text: see fork_print.h. */
#include "cli/fork_print.h"

#include <inttypes.h>
#include <stdio.h>

#include "cli/cli.h"
#include "cli/client.h"
#include "cli/observed_print.h"

void fork_print_nothing(const json_t *fork)
{
	(void)fork;
}

void fork_print_socket(const json_t *fork)
{
	printf("%s\n", client_string(fork, "socket", ""));
}

void fork_print_prefetched(const json_t *fork)
{
	char time[32];

	cli_format_ms(client_number(fork, "prefetch_ms"), time, sizeof time);
	printf("%.0f pages prefetched in %s; %.0f were there already, %.0f removed by the guest\n",
	       client_number(fork, "prefetched_pages"), time, client_number(fork, "prefetch_present_pages"),
	       client_number(fork, "prefetch_removed_pages"));
}

/* ---- one fork ---- */

static void print_text(const char *label, const json_t *fork, const char *name)
{
	printf("%-20s%s\n", label, client_string(fork, name, "-"));
}

static void print_count(const char *label, const json_t *fork, const char *name)
{
	printf("%-20s%.0f\n", label, client_number(fork, name));
}

static void print_time(const char *label, const json_t *fork, const char *name, double unit_ms)
{
	char text[32];

	cli_format_ms(client_number(fork, name) * unit_ms, text, sizeof text);
	printf("%-20s%s\n", label, text);
}

/* What hasn't come yet has no line. */
static void print_moment(const char *label, const json_t *fork, const char *name)
{
	if (json_is_number(json_object_get(fork, name)))
		print_time(label, fork, name, 1);
}

static void print_pagers(const json_t *fork)
{
	const json_t *cpu;
	size_t i;

	json_array_foreach(json_object_get(fork, "pager_cpus"), i, cpu)
		printf(i ? ", %" JSON_INTEGER_FORMAT : "pagers on CPUs      %" JSON_INTEGER_FORMAT,
		       json_integer_value(cpu));
	if (i > 0)
		printf("\n");
}

static void print_regions(const json_t *fork)
{
	const json_t *region;
	size_t i;

	json_array_foreach(json_object_get(fork, "regions"), i, region) {
		char size[32], page_size[32];

		cli_format_size((uint64_t)client_number(region, "size"), size, sizeof size);
		cli_format_size((uint64_t)client_number(region, "page_size"), page_size, sizeof page_size);
		printf("%-20s%s at 0x%" PRIx64 ", from offset 0x%" PRIx64 " of the image, pages of %s\n",
		       i ? "" : "regions", size, (uint64_t)json_integer_value(json_object_get(region, "address")),
		       (uint64_t)json_integer_value(json_object_get(region, "offset")), page_size);
	}
}

/* What became of a list that is streamed. */
static void print_stream(const json_t *stream)
{
	static const struct {
		const char *label, *name;
		bool always;
	} rows[] = {
		{ "stream, pages", "planned", true },
		{ "  in time", "prefetched", true },
		{ "  late", "late", true },
		{ "  there already", "present", false },
		{ "  removed before", "removed", false },
		{ "  unmapped", "skipped", false },
		{ "  unreadable", "unreadable", false },
		{ "  still to come", "pending", false },
		{ "not in the list", "missing", true },
		{ "place in the list", "place", true },
		{ "  before the guest", "lead", true },
		{ "  moved by faults", "moves", true },
	};

	if (!json_is_object(stream))
		return;
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
		if (rows[i].always || client_number(stream, rows[i].name) > 0)
			print_count(rows[i].label, stream, rows[i].name);
}

void fork_print(const json_t *fork)
{
	const double us = 0.001;

	print_text("id", fork, "id");
	print_text("template", fork, "template");
	print_text("state", fork, "state");
	if (!json_is_null(json_object_get(fork, "error")))
		print_text("error", fork, "error");
	print_text("socket", fork, "socket");
	if (!json_is_null(json_object_get(fork, "pid"))) {
		print_count("pid", fork, "pid");
		print_text("handshake", fork, "handshake");
	}
	print_pagers(fork);
	print_regions(fork);
	print_moment("connected after", fork, "connected_ms");
	print_moment("ready after", fork, "ready_ms");
	print_moment("gone after", fork, "gone_ms");

	printf("\n");
	print_count("faults", fork, "faults");
	print_count("  pages copied", fork, "copied_pages");
	print_count("  pages zeroed", fork, "zeroed_pages");
	print_count("  neighbours", fork, "neighbour_pages");
	print_count("  pages poisoned", fork, "poisoned_pages");
	print_count("  read from disk", fork, "slow_faults");
	print_count("  deferred", fork, "deferred_faults");
	print_time("stall, all faults", fork, "stall_ms", 1);
	print_time("  median", fork, "stall_p50_us", us);
	print_time("  99th percentile", fork, "stall_p99_us", us);
	print_time("  longest", fork, "stall_max_us", us);
	print_count("pages removed", fork, "removed_pages");

	printf("\n");
	printf("%-20s%s, %s\n", "prefetch", client_string(fork, "prefetch", "-"),
	       client_string(fork, "prefetch_state", "-"));
	print_text("hot list", fork, "hot_list");
	print_count("pages prefetched", fork, "prefetched_pages");
	print_count("  there already", fork, "prefetch_present_pages");
	print_count("  removed before", fork, "prefetch_removed_pages");
	if (!json_is_null(json_object_get(fork, "prefetch_budget")))
		print_count("  over the budget", fork, "prefetch_over_budget_pages");
	print_time("  in", fork, "prefetch_ms", 1);
	print_stream(json_object_get(fork, "stream"));
	printf("%-20s%s\n", "recording", json_is_true(json_object_get(fork, "record")) ? "yes" : "no");
	print_count("pages recorded", fork, "recorded_pages");
	fork_print_observed(fork);
}

/* ---- all forks ---- */

void fork_print_list(const json_t *answer)
{
	static const char *const headings[] = { "ID",	   "TEMPLATE",	  "STATE",     ">PID",	 ">FAULTS",
						">COPIED", ">PREFETCHED", ">RECORDED", ">STALL", "PREFETCH" };
	struct cli_table *table = cli_table_new(headings, sizeof headings / sizeof *headings);
	const json_t *fork;
	size_t i;

	if (!table)
		return;
	json_array_foreach(json_object_get(answer, "forks"), i, fork) {
		char stall[32], pid[24] = "-";

		cli_format_ms(client_number(fork, "stall_ms"), stall, sizeof stall);
		if (!json_is_null(json_object_get(fork, "pid")))
			snprintf(pid, sizeof pid, "%.0f", client_number(fork, "pid"));
		cli_table_cell(table, "%s", client_string(fork, "id", "-"));
		cli_table_cell(table, "%s", client_string(fork, "template", "-"));
		cli_table_cell(table, "%s", client_string(fork, "state", "-"));
		cli_table_cell(table, "%s", pid);
		cli_table_cell(table, "%.0f", client_number(fork, "faults"));
		cli_table_cell(table, "%.0f", client_number(fork, "copied_pages"));
		cli_table_cell(table, "%.0f", client_number(fork, "prefetched_pages"));
		cli_table_cell(table, "%.0f", client_number(fork, "recorded_pages"));
		cli_table_cell(table, "%s", stall);
		cli_table_cell(table, "%s", client_string(fork, "prefetch_state", "-"));
	}
	cli_table_print(table);
}
