/* A benchmark's report as Markdown: what the documents quote. */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "cli/bench_print.h"
#include "cli/client.h"

/* The group whose cases are named SITUATION:WORKLOAD; each situation is one table. */
#define ORDER "order"

static double number(const json_t *object, const char *name)
{
	return json_number_value(json_object_get(object, name));
}

static bool starts_with(const char *text, const char *start, size_t length)
{
	return !strncmp(text, start, length) && (text[length] == ':' || text[length] == '\0');
}

/* ---- order ---- */

static const json_t *find_side(const json_t *c, const char *id)
{
	const json_t *side;
	size_t i;

	json_array_foreach(json_object_get(c, "sides"), i, side)
		if (!strcmp(client_string(side, "id", ""), id))
			return side;
	return NULL;
}

/* " 0.9912 |", or the values of all workloads one after another. */
static void print_cell(const json_t *cases, const char *situation, size_t length, const char *side_id,
		       const char *metric)
{
	const json_t *c;
	bool first = true;
	size_t i;

	putchar(' ');
	json_array_foreach(cases, i, c) {
		if (!starts_with(client_string(c, "id", ""), situation, length))
			continue;
		const json_t *m = json_object_get(json_object_get(find_side(c, side_id), "metrics"), metric);

		if (!first)
			fputs(" · ", stdout);
		first = false;
		if (m)
			printf("%.*f", bench_digits(metric, number(m, "median")), number(m, "median"));
		else
			putchar('-');
	}
	fputs(" |", stdout);
}

/* The details of each workload's case: which clock won. */
static void print_notes(const json_t *cases, const char *situation, size_t length)
{
	const json_t *c;
	size_t i;

	json_array_foreach(cases, i, c) {
		const char *id = client_string(c, "id", "");

		if (!starts_with(id, situation, length))
			continue;
		const json_t *skipped = json_object_get(c, "skipped");
		printf("- %s: %s%s\n", id + length + 1, json_is_string(skipped) ? "not run: " : "",
		       json_is_string(skipped) ? json_string_value(skipped) : client_string(c, "details", ""));
	}
}

static void print_situation(const json_t *cases, const json_t *first)
{
	static const char *const metrics[] = { "rank", "area", "late", "unused", "missing", "faults", "added_ms" };
	static const char *const headings[] = { "rank", "area", "late", "unused", "missing", "faults", "added, ms" };
	const char *id = client_string(first, "id", ""), *title = client_string(first, "title", "");
	size_t length = strcspn(id, ":"), i;
	const json_t *side, *c;
	const char *separator = "";
	const char *colon = strrchr(title, ':');

	printf("\n### `%.*s`: %.*s\n\n", (int)length, id, colon ? (int)(colon - title) : (int)strlen(title), title);
	json_array_foreach(cases, i, c)
		if (starts_with(client_string(c, "id", ""), id, length)) {
			printf("%s%s", separator, client_string(c, "id", "") + length + 1);
			separator = " · ";
		}
	printf("\n\n| |");
	for (unsigned m = 0; m < sizeof metrics / sizeof *metrics; m++)
		printf(" %s |", headings[m]);
	printf("\n|---|");
	for (unsigned m = 0; m < sizeof metrics / sizeof *metrics; m++)
		printf("---|");
	putchar('\n');
	json_array_foreach(json_object_get(first, "sides"), i, side) {
		printf("| %s |", client_string(side, "label", ""));
		for (unsigned m = 0; m < sizeof metrics / sizeof *metrics; m++)
			print_cell(cases, id, length, client_string(side, "id", ""), metrics[m]);
		putchar('\n');
	}
	putchar('\n');
	print_notes(cases, id, length);
}

/* By how much the voted list is ahead of the loop's, and whether it reaches its targets: a row a situation, the worst of its workloads. */
static void print_overview(const json_t *cases)
{
	const json_t *c;
	size_t i;

	printf("\n| situation | workload | by address | fault loop | raw | corrected | voted | voted - loop, rounds |\n"
	       "|---|---|---|---|---|---|---|---|\n");
	json_array_foreach(cases, i, c) {
		static const char *const sides[] = { "address", "loop", "raw", "corrected" };
		const char *id = client_string(c, "id", "");
		const json_t *voted = find_side(c, "voted_10") ?: find_side(c, "voted_3");
		const json_t *rank = json_object_get(json_object_get(voted, "metrics"), "rank");
		const json_t *loop = json_object_get(json_object_get(find_side(c, "loop"), "metrics"), "rank");
		size_t length = strcspn(id, ":");

		printf("| `%.*s` | %s |", (int)length, id, id[length] ? id + length + 1 : "");
		for (unsigned s = 0; s < sizeof sides / sizeof *sides; s++) {
			const json_t *m = json_object_get(json_object_get(find_side(c, sides[s]), "metrics"), "rank");

			if (m)
				printf(" %.4f |", number(m, "median"));
			else
				printf(" - |");
		}
		if (rank && loop)
			printf(" %.4f | %+.4f (%+.4f to %+.4f) |\n", number(rank, "median"),
			       number(rank, "median") - number(loop, "median"),
			       number(rank, "median") - number(loop, "max"),
			       number(rank, "median") - number(loop, "min"));
		else
			printf(" - | - |\n");
	}
}

static void print_order(const json_t *group)
{
	const json_t *cases = json_object_get(group, "cases"), *c, *before;
	size_t i, k;

	print_overview(cases);
	json_array_foreach(cases, i, c) {
		const char *id = client_string(c, "id", "");
		bool seen = false;

		json_array_foreach(cases, k, before) {
			if (k == i)
				break;
			seen |= starts_with(client_string(before, "id", ""), id, strcspn(id, ":"));
		}
		if (!seen)
			print_situation(cases, c);
	}
}

/* ---- the others ---- */

static void print_figure(const json_t *figure)
{
	const json_t *target = json_object_get(figure, "target"), *rounds = json_object_get(figure, "rounds");
	bool at_least = json_object_get(target, "at_least") != NULL;

	printf("| %s | ", client_string(figure, "label", ""));
	if (json_is_object(target))
		printf("%s %g", at_least ? "≥" : "≤", number(target, at_least ? "at_least" : "at_most"));
	if (rounds)
		printf(" | %.3f (%.3f-%.3f) |", number(figure, "value"), number(rounds, "q1"), number(rounds, "q3"));
	else
		printf(" | %.*f |", bench_digits(client_string(figure, "metric", ""), number(figure, "value")),
		       number(figure, "value"));
	if (json_is_object(target))
		printf(" %s |\n", json_is_true(json_object_get(figure, "too_noisy")) ? "?"
				  : json_is_true(json_object_get(figure, "met"))     ? "✓"
										     : "✗");
	else
		printf(" |\n");
}

static void print_sides(const json_t *c)
{
	const json_t *side, *metric;
	const char *name;
	size_t i;

	json_array_foreach(json_object_get(c, "sides"), i, side) {
		printf("| %s, %s: ", client_string(c, "title", ""), client_string(side, "label", ""));
		const char *separator = "";

		json_object_foreach(json_object_get(side, "metrics"), name, metric) {
			double median = number(metric, "median");

			printf("%s%s %.*f", separator, name, bench_digits(name, median), median);
			separator = ", ";
		}
		printf(" | | | |\n");
	}
}

static void print_figures(const json_t *group)
{
	const json_t *c, *figure;
	size_t i, k;

	printf("\n| `%s` | target | measured | |\n|---|---|---|---|\n", client_string(group, "name", ""));
	json_array_foreach(json_object_get(group, "cases"), i, c) {
		print_sides(c);
		json_array_foreach(json_object_get(c, "ratios"), k, figure)
			print_figure(figure);
		json_array_foreach(json_object_get(c, "limits"), k, figure)
			print_figure(figure);
	}
}

void bench_print_markdown(const json_t *report)
{
	const json_t *machine = json_object_get(report, "machine"), *group;
	size_t index;

	printf("%s, Linux %s, %zu CPUs, %s. In a group others took this share of the CPUs:",
	       client_string(machine, "cpu", ""), client_string(machine, "kernel", ""),
	       json_array_size(json_object_get(machine, "cpus")), client_string(report, "date", ""));
	json_array_foreach(json_object_get(report, "groups"), index, group)
		printf(" %s %.1f %%, %.0f s;", client_string(group, "name", ""),
		       number(json_object_get(group, "noise"), "other_load") * 100, number(group, "seconds"));
	putchar('\n');
	json_array_foreach(json_object_get(report, "groups"), index, group) {
		if (!strcmp(client_string(group, "name", ""), ORDER))
			print_order(group);
		else
			print_figures(group);
	}
}
