/*
 * Lists as JSON are read in one pass and without a tree: jansson takes 440 bytes and 1.6 µs a page, can be made to take 75 bytes for each byte of
 * input, and stops at offsets of 2^63.
 */
#include "hotlist/json_reader.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "hotlist/format.h"

#define DEPTH_MAX 32 /* values within values, in parts that are skipped: bounds the stack */

int jr_bad(struct json_reader *r, const char *format, ...)
{
	char what[200];

	va_list ap;
	va_start(ap, format);
	vsnprintf(what, sizeof what, format, ap);
	va_end(ap);
	return BAD_LIST(r->err, "line %u, column %td: %s", r->line, r->at - r->line_start + 1, what);
}

static void skip_space(struct json_reader *r)
{
	for (; r->at < r->end; r->at++) {
		if (*r->at == '\n') {
			r->line++;
			r->line_start = r->at + 1;
		} else if (*r->at != ' ' && *r->at != '\t' && *r->at != '\r') {
			return;
		}
	}
}

/* The next character that is no blank, not taken; '\0' at the end, which no JSON has anywhere but in an error. */
char jr_peek(struct json_reader *r)
{
	skip_space(r);
	return r->at < r->end ? *r->at : '\0';
}

static int expect(struct json_reader *r, char c)
{
	if (jr_peek(r) != c)
		return r->at == r->end ? jr_bad(r, "the text ends where '%c' is needed", c)
				       : jr_bad(r, "'%c' is needed here", c);
	r->at++;
	return 0;
}

/* After an element of an object or array that CLOSE ends: 1: another follows, 0: it has ended. */
int jr_next(struct json_reader *r, char close)
{
	char c = jr_peek(r);

	if (c != ',' && c != close)
		return r->at == r->end ? jr_bad(r, "the text ends where ',' or '%c' is needed", close)
				       : jr_bad(r, "',' or '%c' is needed here", close);
	r->at++;
	return c == ',';
}

/* Takes the opening character. 1: an element follows, 0: it is empty and has been taken whole. */
int jr_open(struct json_reader *r, char open, char close)
{
	int ret = expect(r, open);

	if (ret < 0)
		return ret;
	if (jr_peek(r) != close)
		return 1;
	r->at++;
	return 0;
}

/* After the backslash: the character that is meant; '?' for one outside ASCII, which no text that matters here has. */
static int read_escape(struct json_reader *r, char *ret)
{
	static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";

	if (r->at == r->end)
		return jr_bad(r, "the text ends within a string");
	if (*r->at != 'u') {
		const char *found = *r->at ? strchr(names, *r->at) : NULL;
		if (!found)
			return jr_bad(r, "a backslash stands before something that JSON does not escape");
		*ret = values[found - names];
		r->at++;
		return 0;
	}

	unsigned code = 0;
	for (int i = 1; i <= 4; i++) {
		char c = r->end - r->at > i ? r->at[i] : '\0';
		const char *digits = "0123456789abcdef";
		const char *digit = c ? strchr(digits, c >= 'A' && c <= 'F' ? c - 'A' + 'a' : c) : NULL;
		if (!digit)
			return jr_bad(r, "four hexadecimal digits are needed after \\u");
		code = code * 16 + (unsigned)(digit - digits);
	}
	*ret = code && code < 0x80 ? (char)code : '?';
	r->at += 5;
	return 0;
}

/* A string, cut to JSON_TEXT_MAX - 1 characters: enough to tell whether it is one of those that mean something. */
int jr_string(struct json_reader *r, char ret[static JSON_TEXT_MAX])
{
	size_t length = 0;
	int error = expect(r, '"');

	if (error < 0)
		return error;
	for (;;) {
		if (r->at == r->end)
			return jr_bad(r, "the text ends within a string");
		char c = *r->at;
		if ((unsigned char)c < 0x20)
			return jr_bad(r, "a control character within a string");
		r->at++;
		if (c == '"')
			break;
		if (c == '\\') {
			error = read_escape(r, &c);
			if (error < 0)
				return error;
		}
		if (length < JSON_TEXT_MAX - 1)
			ret[length++] = c;
	}
	ret[length] = '\0';
	return 0;
}

int jr_key(struct json_reader *r, char ret[static JSON_TEXT_MAX])
{
	int error = jr_string(r, ret);

	return error < 0 ? error : expect(r, ':');
}

static bool is_digit(const struct json_reader *r)
{
	return r->at < r->end && *r->at >= '0' && *r->at <= '9';
}

int jr_number(struct json_reader *r, const char *name, uint64_t *ret)
{
	uint64_t n = 0;

	skip_space(r);
	if (!is_digit(r))
		return jr_bad(r, "\"%s\" must be a whole number of 0 or more", name);
	const char *first = r->at;
	for (; is_digit(r); r->at++)
		if (__builtin_mul_overflow(n, 10, &n) || __builtin_add_overflow(n, (uint64_t)(*r->at - '0'), &n))
			return jr_bad(r, "\"%s\" is over 64 bits", name);
	if (*first == '0' && r->at - first > 1)
		return jr_bad(r, "\"%s\" has a leading zero", name);
	if (r->at < r->end && strchr(".eE", *r->at) && *r->at)
		return jr_bad(r, "\"%s\" must be a whole number of 0 or more", name);
	*ret = n;
	return 0;
}

static int skip_digits(struct json_reader *r)
{
	if (!is_digit(r))
		return jr_bad(r, "a digit is needed here");
	while (is_digit(r))
		r->at++;
	return 0;
}

static int skip_number(struct json_reader *r)
{
	int error;

	if (*r->at == '-')
		r->at++;
	if (r->at < r->end && *r->at == '0') {
		r->at++;
	} else {
		error = skip_digits(r);
		if (error < 0)
			return error;
	}
	if (r->at < r->end && *r->at == '.') {
		r->at++;
		error = skip_digits(r);
		if (error < 0)
			return error;
	}
	if (r->at < r->end && (*r->at == 'e' || *r->at == 'E')) {
		r->at++;
		if (r->at < r->end && (*r->at == '+' || *r->at == '-'))
			r->at++;
		return skip_digits(r);
	}
	return 0;
}

static int skip_value(struct json_reader *r, int depth);

static int skip_container(struct json_reader *r, char open, char close, int depth)
{
	char key[JSON_TEXT_MAX];

	if (depth == DEPTH_MAX)
		return jr_bad(r, "more than %d values within each other", DEPTH_MAX);
	int more = jr_open(r, open, close);
	while (more > 0) {
		int error = open == '{' ? jr_key(r, key) : 0;
		if (error < 0)
			return error;
		error = skip_value(r, depth + 1);
		if (error < 0)
			return error;
		more = jr_next(r, close);
	}
	return more;
}

static int skip_value(struct json_reader *r, int depth)
{
	static const char *const words[] = { "true", "false", "null" };
	char text[JSON_TEXT_MAX];

	switch (jr_peek(r)) {
	case '{':
		return skip_container(r, '{', '}', depth);
	case '[':
		return skip_container(r, '[', ']', depth);
	case '"':
		return jr_string(r, text);
	}
	if (is_digit(r) || (r->at < r->end && *r->at == '-'))
		return skip_number(r);
	for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
		size_t length = strlen(words[i]);
		if ((size_t)(r->end - r->at) >= length && !memcmp(r->at, words[i], length)) {
			r->at += length;
			return 0;
		}
	}
	return jr_bad(r, r->at == r->end ? "the text ends where a value is needed" : "a value is needed here");
}

/* Notes in *SEEN that KEY has come; a second time is an error, since readers differ in which of the two they take. */
int jr_once(struct json_reader *r, const char *key, bool *seen)
{
	if (*seen)
		return jr_bad(r, "\"%s\" is there twice", key);
	*seen = true;
	return 0;
}

int jr_skip(struct json_reader *r)
{
	return skip_value(r, 0);
}

int jr_bool(struct json_reader *r, const char *name, bool *ret)
{
	bool value = jr_peek(r) == 't';
	const char *word = value ? "true" : "false";
	size_t length = strlen(word);

	if ((size_t)(r->end - r->at) < length || memcmp(r->at, word, length))
		return jr_bad(r, "\"%s\" must be true or false", name);
	r->at += length;
	*ret = value;
	return 0;
}

int jr_millionths(struct json_reader *r, const char *name, int32_t *ret)
{
	int32_t n = 0, unit = 1000000;
	bool negative = jr_peek(r) == '-';

	if (negative)
		r->at++;
	if (r->at == r->end || (*r->at != '0' && *r->at != '1'))
		return jr_bad(r, "\"%s\" must be a number from -1 to 1", name);
	n = (*r->at++ - '0') * unit;
	if (r->at < r->end && *r->at == '.') {
		r->at++;
		if (!is_digit(r))
			return jr_bad(r, "a digit is needed here");
		for (; is_digit(r); r->at++) {
			unit /= 10;
			n += (*r->at - '0') * unit;
		}
	}
	if (n > 1000000 || (r->at < r->end && (is_digit(r) || *r->at == 'e' || *r->at == 'E')))
		return jr_bad(r, "\"%s\" must be a number from -1 to 1, written with a decimal point", name);
	*ret = negative ? -n : n;
	return 0;
}
