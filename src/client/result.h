/* Filling a struct faultline_error: what happened, and what to do about it. */
#pragma once

#include "faultline/result.h"

#define OUT_OF_MEMORY "Give this process more memory"

/*
 * Fills ERROR (may be NULL) and returns RESULT. SYSTEM_ERROR is an errno, 0 for none: its text is put behind WHAT in brackets.
 * REMEDY is a sentence without a full stop, or "".
 */
int result_set(struct faultline_error *error, int result, int system_error, const char *remedy, const char *what, ...)
	__attribute__((format(printf, 5, 6)));
