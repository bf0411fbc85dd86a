/* The words that text formats and users have for what the numbers of a list mean: "write", "settled", "corrected". */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hotlist/hotlist.h"

/* NULL for HOT_UNKNOWN, HOT_WINDOW_UNKNOWN and HOT_CLOCK_UNKNOWN, and for what is no such number. */
const char *hot_kind_word(unsigned kind);
const char *hot_window_end_word(unsigned end);
const char *hot_clock_word(unsigned clock);

/* False where TEXT, of LENGTH bytes, is none of the words. Kinds can also be r, w and x, as traces have them. */
bool hot_kind_parse(const char *text, size_t length, uint8_t *ret);
bool hot_window_end_parse(const char *text, size_t length, uint32_t *ret);
bool hot_clock_parse(const char *text, size_t length, enum hot_clock *ret);
