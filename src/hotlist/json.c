/*
 * The JSON form of a list. Read in one pass and without a tree: jansson takes 440 bytes and 1.6 µs a page, can be made to take 75
 * bytes for each byte of input, and stops at offsets of 2^63.
 */
#include "hotlist/format.h"

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FORMAT_NAME    "faultline-hotlist"
#define FORMAT_VERSION 1
#define DEPTH_MAX      32 /* values within values, in parts that are skipped: bounds the stack */
#define TEXT_MAX       32 /* longer than every key and value that means something here */

struct reader {
	const char *at, *end;
	const char *line_start;
	unsigned line;
	struct error *err;
};

/* Callers return what this returns. */
__attribute__((format(printf, 2, 3))) static int bad(struct reader *r, const char *format, ...)
{
	char what[200];

	va_list ap;
	va_start(ap, format);
	vsnprintf(what, sizeof what, format, ap);
	va_end(ap);
	return BAD_LIST(r->err, "line %u, column %td: %s", r->line, r->at - r->line_start + 1, what);
}

static void skip_space(struct reader *r)
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
static char peek(struct reader *r)
{
	skip_space(r);
	return r->at < r->end ? *r->at : '\0';
}

static int expect(struct reader *r, char c)
{
	if (peek(r) != c)
		return r->at == r->end ? bad(r, "the text ends where '%c' is needed", c)
				       : bad(r, "'%c' is needed here", c);
	r->at++;
	return 0;
}

/* After an element of an object or array that CLOSE ends: 1: another follows, 0: it has ended. */
static int next_element(struct reader *r, char close)
{
	char c = peek(r);

	if (c != ',' && c != close)
		return r->at == r->end ? bad(r, "the text ends where ',' or '%c' is needed", close)
				       : bad(r, "',' or '%c' is needed here", close);
	r->at++;
	return c == ',';
}

/* Takes the opening character. 1: an element follows, 0: it is empty and has been taken whole. */
static int open_container(struct reader *r, char open, char close)
{
	int ret = expect(r, open);

	if (ret < 0)
		return ret;
	if (peek(r) != close)
		return 1;
	r->at++;
	return 0;
}

/* After the backslash: the character that is meant; '?' for one outside ASCII, which no text that matters here has. */
static int read_escape(struct reader *r, char *ret)
{
	static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";

	if (r->at == r->end)
		return bad(r, "the text ends within a string");
	if (*r->at != 'u') {
		const char *found = *r->at ? strchr(names, *r->at) : NULL;
		if (!found)
			return bad(r, "a backslash stands before something that JSON does not escape");
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
			return bad(r, "four hexadecimal digits are needed after \\u");
		code = code * 16 + (unsigned)(digit - digits);
	}
	*ret = code && code < 0x80 ? (char)code : '?';
	r->at += 5;
	return 0;
}

/* A string, cut to TEXT_MAX - 1 characters: enough to tell whether it is one of those that mean something. */
static int read_string(struct reader *r, char ret[static TEXT_MAX])
{
	size_t length = 0;
	int error = expect(r, '"');

	if (error < 0)
		return error;
	for (;;) {
		if (r->at == r->end)
			return bad(r, "the text ends within a string");
		char c = *r->at;
		if ((unsigned char)c < 0x20)
			return bad(r, "a control character within a string");
		r->at++;
		if (c == '"')
			break;
		if (c == '\\') {
			error = read_escape(r, &c);
			if (error < 0)
				return error;
		}
		if (length < TEXT_MAX - 1)
			ret[length++] = c;
	}
	ret[length] = '\0';
	return 0;
}

static int read_key(struct reader *r, char ret[static TEXT_MAX])
{
	int error = read_string(r, ret);

	return error < 0 ? error : expect(r, ':');
}

static bool is_digit(const struct reader *r)
{
	return r->at < r->end && *r->at >= '0' && *r->at <= '9';
}

static int read_number(struct reader *r, const char *name, uint64_t *ret)
{
	uint64_t n = 0;

	skip_space(r);
	if (!is_digit(r))
		return bad(r, "\"%s\" must be a whole number of 0 or more", name);
	const char *first = r->at;
	for (; is_digit(r); r->at++)
		if (__builtin_mul_overflow(n, 10, &n) || __builtin_add_overflow(n, (uint64_t)(*r->at - '0'), &n))
			return bad(r, "\"%s\" is over 64 bits", name);
	if (*first == '0' && r->at - first > 1)
		return bad(r, "\"%s\" has a leading zero", name);
	if (r->at < r->end && strchr(".eE", *r->at) && *r->at)
		return bad(r, "\"%s\" must be a whole number of 0 or more", name);
	*ret = n;
	return 0;
}

static int skip_digits(struct reader *r)
{
	if (!is_digit(r))
		return bad(r, "a digit is needed here");
	while (is_digit(r))
		r->at++;
	return 0;
}

static int skip_number(struct reader *r)
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

static int skip_value(struct reader *r, int depth);

static int skip_container(struct reader *r, char open, char close, int depth)
{
	char key[TEXT_MAX];

	if (depth == DEPTH_MAX)
		return bad(r, "more than %d values within each other", DEPTH_MAX);
	int more = open_container(r, open, close);
	while (more > 0) {
		int error = open == '{' ? read_key(r, key) : 0;
		if (error < 0)
			return error;
		error = skip_value(r, depth + 1);
		if (error < 0)
			return error;
		more = next_element(r, close);
	}
	return more;
}

static int skip_value(struct reader *r, int depth)
{
	static const char *const words[] = { "true", "false", "null" };
	char text[TEXT_MAX];

	switch (peek(r)) {
	case '{':
		return skip_container(r, '{', '}', depth);
	case '[':
		return skip_container(r, '[', ']', depth);
	case '"':
		return read_string(r, text);
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
	return bad(r, r->at == r->end ? "the text ends where a value is needed" : "a value is needed here");
}

/* Notes in *SEEN that KEY has come; a second time is an error, since readers differ in which of the two they take. */
static int once(struct reader *r, const char *key, bool *seen)
{
	if (*seen)
		return bad(r, "\"%s\" is there twice", key);
	*seen = true;
	return 0;
}

static int read_page(struct reader *r, struct hotlist *list)
{
	bool has_region = false, has_offset = false;
	uint64_t region = 0, offset = 0;
	char key[TEXT_MAX];

	int more = open_container(r, '{', '}');
	while (more > 0) {
		int error = read_key(r, key);
		if (error < 0)
			return error;
		if (!strcmp(key, "region"))
			error = once(r, key, &has_region) ?: read_number(r, key, &region);
		else if (!strcmp(key, "offset"))
			error = once(r, key, &has_offset) ?: read_number(r, key, &offset);
		else
			error = skip_value(r, 0);
		if (error < 0)
			return error;
		more = next_element(r, '}');
	}
	if (more < 0)
		return more;
	if (!has_region || !has_offset)
		return bad(r, "the page has no \"%s\"", has_region ? "offset" : "region");
	return hotlist_add(list, region, offset);
}

static int read_pages(struct reader *r, struct hotlist *list)
{
	int more = open_container(r, '[', ']');

	while (more > 0) {
		int error = read_page(r, list);
		if (error < 0)
			return error;
		more = next_element(r, ']');
	}
	return more;
}

static int read_format(struct reader *r)
{
	char text[TEXT_MAX];
	int error = read_string(r, text);

	if (error < 0)
		return error;
	if (strcmp(text, FORMAT_NAME))
		return bad(r, "\"format\" must be \"" FORMAT_NAME "\"");
	return 0;
}

static int read_version(struct reader *r)
{
	uint64_t version;
	int error = read_number(r, "version", &version);

	if (error < 0)
		return error;
	if (version != FORMAT_VERSION)
		return bad(r, "version %" PRIu64 " of the format; this faultline reads version %d", version,
			   FORMAT_VERSION);
	return 0;
}

int json_list_decode(const char *text, size_t size, struct hotlist *list, struct error *err)
{
	struct reader r = { .at = text, .end = text + size, .line_start = text, .line = 1, .err = err };
	bool has_format = false, has_version = false, has_pages = false;
	char key[TEXT_MAX];

	if (size >= 3 && !memcmp(text, "\xef\xbb\xbf", 3))
		r.at = r.line_start = text + 3;

	int more = open_container(&r, '{', '}');
	while (more > 0) {
		int error = read_key(&r, key);
		if (error < 0)
			return error;
		if (!strcmp(key, "format"))
			error = once(&r, key, &has_format) ?: read_format(&r);
		else if (!strcmp(key, "version"))
			error = once(&r, key, &has_version) ?: read_version(&r);
		else if (!strcmp(key, "pages"))
			error = once(&r, key, &has_pages) ?: read_pages(&r, list);
		else
			error = skip_value(&r, 0);
		if (error < 0)
			return error;
		more = next_element(&r, '}');
	}
	if (more < 0)
		return more;
	if (!has_format || !has_version || !has_pages)
		return bad(&r, "the object has no \"%s\"", !has_format ? "format" : !has_version ? "version" : "pages");
	if (peek(&r) || r.at != r.end)
		return bad(&r, "something follows the end of the list");
	return 0;
}

int json_list_encode(const struct hotlist *list, void **ret_data, size_t *ret_size)
{
	_cleanup_free_ char *text = NULL;
	size_t size;

	FILE *f = open_memstream(&text, &size);
	if (!f)
		return -ENOMEM;
	fprintf(f, "{\"format\":\"%s\",\"version\":%d,\"pages\":[", FORMAT_NAME, FORMAT_VERSION);
	/* One page a line, so that diff, grep and head work on it. */
	for (size_t i = 0; i < list->count; i++)
		fprintf(f, "%s\n{\"region\":%" PRIu64 ",\"offset\":%" PRIu64 "}", i ? "," : "", list->pages[i].region,
			list->pages[i].offset);
	fputs(list->count ? "\n]}\n" : "]}\n", f);
	bool failed = ferror(f);
	if (fclose(f) != 0 || failed)
		return -ENOMEM;
	*ret_data = TAKE_PTR(text);
	*ret_size = size;
	return 0;
}
