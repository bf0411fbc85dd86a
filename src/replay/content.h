/* What the pages of a replay's memory image hold: a function of seed and page number, so that every byte of each can be checked. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "replay/trace.h"

#define CONTENT_WORDS	     (TRACE_PAGE / 8)
#define CONTENT_DEFAULT_SEED 1

/* The word (0 to CONTENT_WORDS - 1) of a page with data. Never 0, so that a lost page is seen in each of its words. */
uint64_t content_word(uint64_t seed, uint64_t page, unsigned word);

/* What IMAGE has there: 0 for a page without data. */
uint64_t content_expected(const struct trace_image *image, uint64_t seed, uint64_t page, unsigned word);

/*
 * Writes the memory image that a trace needs to PATH, replacing what is there: pages without data are holes. On failure nothing of it
 * remains. Codes: disk_full, io_error.
 */
int content_make_template(const char *path, const struct trace_image *image, uint64_t seed, struct error *err);

/* Says in a few words what MEMORY (a whole page) is, where it isn't what it should be: "all zeros", "the bytes of page 7", ... */
void content_describe(const struct trace_image *image, uint64_t seed, const uint64_t *memory, char *buffer, size_t size);
