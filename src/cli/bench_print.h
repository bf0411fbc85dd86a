/* How the report of a benchmark looks on a terminal. */
#pragma once

#include <jansson.h>

/* REPORT is what bench_run made. */
void bench_print(const json_t *report);
