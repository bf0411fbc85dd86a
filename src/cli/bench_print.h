/* A benchmark's report for people. */
#pragma once

#include <jansson.h>

/* To stdout. */
void bench_print(const json_t *report);

/* The same as tables in Markdown, as docs/ has them: what docs/ordering.md and docs/benchmarks.md are kept fresh with. */
void bench_print_markdown(const json_t *report);

/* How many digits a metric's value deserves behind the point. */
int bench_digits(const char *metric, double value);
