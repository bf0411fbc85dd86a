/* Every error code that the API can answer with, and the HTTP status that goes with it: one table. */
#pragma once

#include <stddef.h>

struct api_error_status {
	const char *code;
	unsigned status;
};

/* Sorted by code. */
extern const struct api_error_status api_error_table[];
extern const size_t api_error_table_size;

/* 500 for a code that isn't in the table. */
unsigned api_error_status(const char *code);
