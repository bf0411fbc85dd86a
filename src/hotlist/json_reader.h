/* Reading JSON token by token. Errors name line and column. Internal to this folder. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

#define JSON_TEXT_MAX 80 /* longer than every key and value that means something here */

struct json_reader {
	const char *at, *end;
	const char *line_start;
	unsigned line;
	struct error *err;
};

/* The reader's place is put before the message. Callers return what this returns. */
int jr_bad(struct json_reader *r, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The next character that is no blank, not taken; '\0' at the end, which no JSON has anywhere but in an error. */
char jr_peek(struct json_reader *r);

/* Takes the opening character. 1: an element follows, 0: it is empty and has been taken whole. */
int jr_open(struct json_reader *r, char open, char close);

/* After an element of an object or array that CLOSE ends: 1: another follows, 0: it has ended. */
int jr_next(struct json_reader *r, char close);

/* A string, cut to JSON_TEXT_MAX - 1 characters: enough to tell whether it is one of those that mean something. */
int jr_string(struct json_reader *r, char ret[static JSON_TEXT_MAX]);

/* A string and the colon after it. */
int jr_key(struct json_reader *r, char ret[static JSON_TEXT_MAX]);

/* A whole number of 0 or more; NAME is for messages. */
int jr_number(struct json_reader *r, const char *name, uint64_t *ret);
int jr_bool(struct json_reader *r, const char *name, bool *ret);

/* A number from -1 to 1, times a million; decimals after the sixth are dropped. */
int jr_millionths(struct json_reader *r, const char *name, int32_t *ret);

/* Any value. */
int jr_skip(struct json_reader *r);

/* Notes in *SEEN that KEY has come; a second time is an error, since readers differ in which of the two they take. */
int jr_once(struct json_reader *r, const char *key, bool *seen);
