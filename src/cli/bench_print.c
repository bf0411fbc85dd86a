#include "cli/bench_print.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/client.h"

#define CASE_METRICS_MAX (CLI_COLUMNS_MAX - 1)

/* As many digits as say something. */
#define BY_SIZE (-1)

/* Fewer rounds than this are for a first look. */
#define ROUNDS_WORTH_QUOTING 9

/* How metrics are called in headings; '>' aligns to the right. Without a heading, it is in no table. */
static const struct heading {
	const char *name, *heading;
	int digits;
} headings[] = {
	{ "p50_us", ">p50, us", BY_SIZE },
	{ "p90_us", ">p90, us", BY_SIZE },
	{ "p99_us", ">p99, us", BY_SIZE },
	{ "max_us", ">max, us", BY_SIZE },
	{ "faults_per_s", ">faults/s", BY_SIZE },
	{ "there_ms", ">until there, ms", BY_SIZE },
	{ "touch_ms", ">touching, ms", BY_SIZE },
	{ "total_ms", ">together, ms", BY_SIZE },
	{ "server_ms", ">by the server's clock, ms", BY_SIZE },
	{ "kib_per_fork", ">memory/fork, KiB", BY_SIZE },
	{ "cpu_ms_per_s", ">CPU, ms/s", BY_SIZE },
	{ "median_fork_p50_us", ">median fork's p50, us", BY_SIZE },
	{ "median_fork_p99_us", ">its p99, us", BY_SIZE },
	{ "worst_fork_p99_us", ">worst fork's, us", BY_SIZE },
	{ "worst_to_median_p99", ">worst/median p99", BY_SIZE },
	{ "observer_ms_per_s", ">observer's CPU, ms/s", BY_SIZE },
	{ "wakeups_per_s", ">wake-ups/s", BY_SIZE },
	{ "seen", ">events seen", 0 },
	{ "lost", ">lost", 0 },
	{ "rank", ">rank", 4 },
	{ "area", ">area", 4 },
	{ "below_best", NULL, 4 },
	{ "lacking", ">lacks", 0 },
	{ "extra", ">extra", 0 },
	{ "present", ">there", 0 },
	{ "late", ">late", 0 },
	{ "unused", ">unused", 0 },
	{ "missing", ">missing", 0 },
	{ "faults", ">faults", 0 },
	{ "added_ms", ">added, ms", 1 },
};

static struct heading heading_of(const char *metric)
{
	for (size_t i = 0; i < sizeof headings / sizeof *headings; i++)
		if (!strcmp(headings[i].name, metric))
			return headings[i];
	return (struct heading){ metric, metric, BY_SIZE };
}

static double number(const json_t *object, const char *name)
{
	return json_number_value(json_object_get(object, name));
}

static bool is_true(const json_t *object, const char *name)
{
	return json_is_true(json_object_get(object, name));
}

int bench_digits(const char *metric, double value)
{
	struct heading heading = heading_of(metric);

	if (heading.digits != BY_SIZE)
		return heading.digits;
	return value >= 1000 ? 0 : value >= 100 ? 1 : 2;
}

static void add_metric(struct cli_table *table, const char *name, const json_t *metric)
{
	if (!metric) {
		cli_table_cell(table, "-");
		return;
	}
	double median = number(metric, "median");
	int digits = bench_digits(name, median);

	bool same = digits == 0 && number(metric, "q1") == median && number(metric, "q3") == median;

	if (same || json_array_size(json_object_get(metric, "rounds")) < 2)
		cli_table_cell(table, "%.*f", digits, median);
	else
		cli_table_cell(table, "%.*f (%.*f-%.*f)", digits, median, digits, number(metric, "q1"), digits,
			       number(metric, "q3"));
}

/* The metrics of all sides, each once, in the order in which they come. */
static size_t collect_metrics(const json_t *sides, const char *names[CASE_METRICS_MAX])
{
	const json_t *side;
	size_t index, count = 0;

	json_array_foreach(sides, index, side) {
		json_t *metrics = json_object_get(side, "metrics"), *metric;
		const char *name;

		json_object_foreach(metrics, name, metric) {
			size_t i = 0;

			while (i < count && strcmp(names[i], name))
				i++;
			if (i == count && count < CASE_METRICS_MAX && heading_of(name).heading)
				names[count++] = name;
		}
	}
	return count;
}

static void print_sides(const json_t *sides)
{
	const char *names[CASE_METRICS_MAX], *columns[CLI_COLUMNS_MAX] = { "" };
	size_t count = collect_metrics(sides, names), index;
	const json_t *side;

	for (size_t i = 0; i < count; i++)
		columns[1 + i] = heading_of(names[i]).heading;
	struct cli_table *table = cli_table_new(columns, 1 + count);
	if (!table)
		return;
	json_array_foreach(sides, index, side) {
		const json_t *metrics = json_object_get(side, "metrics");

		cli_table_cell(table, "  %s", client_string(side, "label", ""));
		for (size_t i = 0; i < count; i++)
			add_metric(table, names[i], json_object_get(metrics, names[i]));
	}
	cli_table_print(table);
}

/* "<= 1.10", and whether it is met; "?" where noise could have decided that. */
static void add_target(struct cli_table *table, const json_t *figure, bool noisy)
{
	const json_t *target = json_object_get(figure, "target");

	if (!json_is_object(target)) {
		cli_table_cell(table, "%s", "");
		cli_table_cell(table, "%s", "");
		return;
	}
	bool at_least = json_object_get(target, "at_least") != NULL;

	cli_table_cell(table, "%s %g", at_least ? "≥" : "≤", number(target, at_least ? "at_least" : "at_most"));
	cli_table_cell(table, "%s%s", is_true(figure, "met") ? "✓" : "✗",
		       noisy || is_true(figure, "too_noisy") ? " ?" : "");
}

static void print_ratios(const json_t *c, bool noisy)
{
	static const char *const columns[] = { "", ">value", "rounds", "target", "" };
	struct cli_table *table = cli_table_new(columns, 5);
	const json_t *figure;
	size_t index;

	if (!table)
		return;
	json_array_foreach(json_object_get(c, "ratios"), index, figure) {
		const json_t *rounds = json_object_get(figure, "rounds");

		cli_table_cell(table, "  %s", client_string(figure, "label", ""));
		cli_table_cell(table, "%.3f", number(figure, "value"));
		cli_table_cell(table, "(%.3f-%.3f)", number(rounds, "q1"), number(rounds, "q3"));
		add_target(table, figure, noisy);
	}
	json_array_foreach(json_object_get(c, "limits"), index, figure) {
		cli_table_cell(table, "  %s", client_string(figure, "label", ""));
		const char *metric = client_string(figure, "metric", "");

		cli_table_cell(table, "%.*f", bench_digits(metric, number(figure, "value")), number(figure, "value"));
		cli_table_cell(table, "%s", "");
		add_target(table, figure, noisy);
	}
	cli_table_print(table);
}

/* What the floor's differing from itself leaves open. */
static void print_doubts(const json_t *c)
{
	const json_t *ratio;
	size_t index;

	json_array_foreach(json_object_get(c, "ratios"), index, ratio)
		if (is_true(ratio, "too_noisy"))
			printf("  Too noisy to tell: %s. The floor, measured twice in turn, differs from itself by %.0f %%.\n",
			       client_string(ratio, "label", ""), number(ratio, "noise") * 100);
}

static void print_case(const json_t *c, bool noisy)
{
	const json_t *skipped = json_object_get(c, "skipped");

	printf("\n%s\n  %s\n", client_string(c, "title", ""), client_string(c, "details", ""));
	if (json_is_string(skipped)) {
		printf("  not run: %s\n", json_string_value(skipped));
		return;
	}
	print_sides(json_object_get(c, "sides"));
	print_ratios(c, noisy);
	print_doubts(c);
}

/* In how many cases each target is met, where there are many of both. */
static void print_score(const json_t *group)
{
	static const char *const kinds[] = { "rank", "below_best" };
	static const char *const texts[] = { "Voted lists at a rank correlation of 0.98 or more",
					     "Voted lists at most 0.001 below the best single order" };

	for (unsigned k = 0; k < 2; k++) {
		unsigned met = 0, all = 0;
		const json_t *c, *limit;
		size_t i, n;

		json_array_foreach(json_object_get(group, "cases"), i, c)
			json_array_foreach(json_object_get(c, "limits"), n, limit) {
				bool this = !strcmp(client_string(limit, "metric", ""), kinds[k]);

				all += this;
				met += this && is_true(limit, "met");
			}
		if (all)
			printf("%s  %s: %u of %u.\n", k ? "" : "\n", texts[k], met, all);
	}
}

static void print_group(const json_t *group)
{
	const json_t *noise = json_object_get(group, "noise"), *other = json_object_get(noise, "other_load"), *c;
	bool noisy = is_true(noise, "too_noisy");
	size_t index;

	printf("\n== %s ", client_string(group, "name", ""));
	if (json_is_number(other))
		printf("(%.0f s; others took %.1f %% of the CPUs, the hypervisor %.1f %%)", number(group, "seconds"),
		       json_number_value(other) * 100, number(noise, "steal") * 100);
	printf("\n");
	json_array_foreach(json_object_get(group, "cases"), index, c)
		print_case(c, noisy);
	print_score(group);
	if (noisy)
		printf("\n  Too noisy to tell: while %s was measured, %s.\n", client_string(group, "name", ""),
		       client_string(noise, "reason", ""));
}

static void print_head(const json_t *report)
{
	const json_t *machine = json_object_get(report, "machine"), *cpu;
	const char *build = client_string(report, "build", "");
	int rounds = (int)number(report, "rounds");
	char memory[32];
	size_t index;

	cli_format_size((uint64_t)number(machine, "memory"), memory, sizeof memory);
	printf("faultline %s on %s, Linux %s, %s, %s\n", client_string(report, "version", ""),
	       client_string(machine, "cpu", ""), client_string(machine, "kernel", ""), memory,
	       client_string(report, "date", ""));
	printf("CPUs:");
	json_array_foreach(json_object_get(machine, "cpus"), index, cpu)
		printf(" %lld", (long long)json_integer_value(cpu));
	printf(". Medians of %d round%s (in brackets: first to third quartile); the sides took turns.\n", rounds,
	       rounds == 1 ? "" : "s");
	if (strcmp(build, "optimised"))
		printf("This is a %s build: its figures say nothing about speed.\n", build);
	if (rounds < ROUNDS_WORTH_QUOTING || is_true(report, "quick"))
		printf("A quick look: leave out --quick, and take %d rounds or more, for figures to quote.\n",
		       ROUNDS_WORTH_QUOTING);
}

void bench_print(const json_t *report)
{
	const json_t *group;
	size_t index;

	print_head(report);
	double seconds = 0;

	json_array_foreach(json_object_get(report, "groups"), index, group) {
		print_group(group);
		seconds += number(group, "seconds");
	}
	printf("\nAll of it took %.0f s.\n", seconds);
}
