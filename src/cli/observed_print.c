#include "cli/observed_print.h"

#include <stdio.h>

#include "cli/cli.h"
#include "cli/client.h"

static void print_us(struct cli_table *table, const json_t *phase, const char *name)
{
	char text[32];

	cli_format_ms(client_number(phase, name) / 1000, text, sizeof text);
	cli_table_cell(table, "%s", text);
}

static void print_latency(const json_t *latency)
{
	static const char *const headings[] = { "each fault", ">p50", ">p90", ">p99", ">max", "" };
	static const struct {
		const char *label, *name, *what;
	} rows[] = {
		{ "  total", "total", "the thread's touch to its running again" },
		{ "    queue", "queue", "touch to the server's reading it" },
		{ "    source", "source", "its bytes from the image" },
		{ "    copy", "copy", "into the guest" },
		{ "    wake", "wake", "until the thread ran" },
	};
	struct cli_table *table = cli_table_new(headings, sizeof headings / sizeof *headings);

	if (!table)
		return;
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
		const json_t *phase = json_object_get(latency, rows[i].name);

		cli_table_cell(table, "%-18s", rows[i].label);
		print_us(table, phase, "p50_us");
		print_us(table, phase, "p90_us");
		print_us(table, phase, "p99_us");
		print_us(table, phase, "max_us");
		cli_table_cell(table, "%s", rows[i].what);
	}
	cli_table_print(table);
}

void fork_print_observed(const json_t *fork)
{
	const json_t *observed = json_object_get(fork, "observed");
	double lost = client_number(observed, "events_lost"), unjoined = client_number(observed, "unjoined_faults");
	char stall[32];

	printf("\n%-20s%s\n", "observed by", client_string(fork, "observe_tier", "none"));
	if (!json_is_object(observed))
		return;
	cli_format_ms(client_number(observed, "stall_ms"), stall, sizeof stall);
	printf("%-20s%.0f, stalled for %s\n", "  faults", client_number(observed, "faults"), stall);
	printf("%-20s%.0f\n", "  touches, there", client_number(observed, "present_touches"));
	printf("%-20s%.0f\n", "  threads", client_number(observed, "vcpus"));
	if (lost > 0)
		printf("%-20s%.0f: a larger ring keeps them, 'faultline serve --observe-ring SIZE'\n", "  events lost",
		       lost);
	else
		printf("%-20snone\n", "  events lost");
	if (unjoined > 0)
		printf("%-20s%.0f faults, whose phases are not known\n", "  not joined", unjoined);
	print_latency(json_object_get(observed, "latency"));
}
