/* Requests taken apart: see request.h. */
#include "control/request.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "control/utf8.h"

void request_clear(struct request *request)
{
	json_decref(request->json);
	free(request->body);
	free(request->uri);
	*request = (struct request){ 0 };
}

/* ---- path and query ---- */

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (char)tolower((unsigned char)c);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Resolves %XX in place. A decoded NUL would cut the text off unseen, so it is refused. */
static int decode(char *text, struct error *err)
{
	char *out = text;

	for (const char *in = text; *in; in++) {
		if (*in != '%') {
			*out++ = *in;
			continue;
		}
		int high = hex_digit(in[1]), low = high >= 0 ? hex_digit(in[2]) : -1;

		if (low < 0 || !(high | low))
			return error_set(err, -EINVAL, "bad_uri",
					 "the request's path or query has '%.3s', which stands for no character: write '%%' as "
					 "'%%25'",
					 in);
		*out++ = (char)(high << 4 | low);
		in += 2;
	}
	*out = '\0';
	if (!utf8_valid(text))
		return error_set(err, -EINVAL, "bad_uri", "the request's path or query is not valid UTF-8");
	return 0;
}

static int split_path(struct request *request, char *path, struct error *err)
{
	if (*path != '/')
		return error_set(err, -EINVAL, "bad_uri", "the request's path does not start with '/'");

	for (char *rest = path + 1; rest;) {
		char *segment = strsep(&rest, "/");

		if (request->segment_count == REQUEST_SEGMENTS_MAX)
			return error_set(err, -EINVAL, "bad_uri", "the request's path has more than %d segments",
					 REQUEST_SEGMENTS_MAX);
		int r = decode(segment, err);
		if (r < 0)
			return r;
		request->segments[request->segment_count++] = segment;
	}
	return 0;
}

static int split_query(struct request *request, char *query, struct error *err)
{
	while (query && *query) {
		char *value = strsep(&query, "&");
		char *name = strsep(&value, "=");

		if (request->query_count == REQUEST_QUERY_MAX)
			return error_set(err, -EINVAL, "bad_query", "the request has more than %d query parameters",
					 REQUEST_QUERY_MAX);
		if (!value)
			return error_set(err, -EINVAL, "bad_query",
					 "the query parameter '%.64s' has no value: write '%.64s=VALUE'", name, name);
		int r = decode(name, err);
		if (r >= 0)
			r = decode(value, err);
		if (r < 0)
			return r;
		request->query[request->query_count++] = (struct query_parameter){ name, value };
	}
	return 0;
}

int request_set_target(struct request *request, const char *target, struct error *err)
{
	if (strlen(target) > REQUEST_URI_MAX)
		return error_set(err, -EINVAL, "bad_uri", "the request's path and query are longer than %d bytes",
				 REQUEST_URI_MAX);
	request->uri = strdup(target);
	if (!request->uri)
		return error_set(err, -ENOMEM, "no_memory", "the server has no memory for the request");

	char *query = request->uri;
	char *path = strsep(&query, "?");
	int r = split_path(request, path, err);

	return r < 0 ? r : split_query(request, query, err);
}

const char *request_query(const struct request *request, const char *name)
{
	for (size_t i = 0; i < request->query_count; i++)
		if (!strcmp(request->query[i].name, name))
			return request->query[i].value;
	return NULL;
}

static bool is_listed(const char *const *list, const char *name)
{
	for (; list && *list; list++)
		if (!strcmp(*list, name))
			return true;
	return false;
}

int request_check_query(const struct request *request, const char *const *allowed, struct error *err)
{
	for (size_t i = 0; i < request->query_count; i++) {
		const struct query_parameter *p = &request->query[i];

		if (!is_listed(allowed, p->name))
			return error_set(err, -EINVAL, "bad_query", "this request takes no query parameter '%.64s'",
					 p->name);
		if (request_query(request, p->name) != p->value)
			return error_set(err, -EINVAL, "bad_query", "the query parameter '%s' is given twice", p->name);
	}
	return 0;
}

int request_query_word(const struct request *request, const char *name, const char *const *words, int default_index,
		       struct error *err)
{
	const char *value = request_query(request, name);
	char all[128] = "";

	if (!value)
		return default_index;
	for (int i = 0; words[i]; i++) {
		size_t n = strlen(all);

		if (!strcmp(words[i], value))
			return i;
		snprintf(all + n, sizeof all - n, "%s'%s'", i ? ", " : "", words[i]);
	}
	return error_set(err, -EINVAL, "bad_query", "the query parameter '%s' is one of %s, not '%.64s'", name, all,
			 value);
}

int request_query_seconds(const struct request *request, const char *name, unsigned default_s, unsigned max_s,
			  uint64_t *ret_ns, struct error *err)
{
	const char *value = request_query(request, name);

	if (!value) {
		*ret_ns = default_s * NSEC_PER_SEC;
		return 0;
	}

	/* strtod alone would take "1e3", "0x10", "inf" and leading spaces. */
	size_t whole = strspn(value, "0123456789");
	size_t fraction = value[whole] == '.' ? strspn(value + whole + 1, "0123456789") : 0;
	size_t length = whole + (fraction ? 1 + fraction : 0);
	double seconds = whole && !value[length] ? strtod(value, NULL) : -1;

	if (seconds < 0 || seconds > max_s)
		return error_set(err, -EINVAL, "bad_query",
				 "the query parameter '%s' is a number of seconds from 0 to %u (like 30 or 0.5), not '%.64s'",
				 name, max_s, value);
	*ret_ns = (uint64_t)(seconds * (double)NSEC_PER_SEC);
	return 0;
}

/* ---- body ---- */

int request_add_body(struct request *request, const void *data, size_t size)
{
	if (!size)
		return 0;
	if (request->body_size > REQUEST_BODY_MAX || size > REQUEST_BODY_MAX - request->body_size) {
		request->body_size = REQUEST_BODY_MAX + 1;
		return 0;
	}
	if (request->body_size + size > request->body_capacity) {
		size_t capacity = 2 * (request->body_size + size);
		char *body = realloc(request->body, capacity);

		if (!body)
			return -ENOMEM;
		request->body = body;
		request->body_capacity = capacity;
	}
	memcpy(request->body + request->body_size, data, size);
	request->body_size += size;
	return 0;
}

int request_check_no_body(const struct request *request, struct error *err)
{
	if (request->body_size)
		return error_set(err, -EINVAL, "unexpected_body", "this request takes no body");
	return 0;
}

/* What parsing a text would take. */
struct extent {
	size_t depth;  /* how deep its brackets nest */
	size_t values; /* at most, found by what stands before each */
};

/* Strings are left out. Text that isn't JSON is the parser's to refuse. */
static struct extent measure(const char *text, size_t size)
{
	struct extent extent = { 0 };
	size_t depth = 0;
	bool in_string = false;

	for (size_t i = 0; i < size; i++) {
		char c = text[i];

		if (in_string && c == '\\')
			i++;
		else if (c == '"')
			in_string = !in_string;
		else if (!in_string && (c == '{' || c == '['))
			depth++;
		else if (!in_string && (c == '}' || c == ']') && depth)
			depth--;
		if (!in_string && (c == '{' || c == '[' || c == ','))
			extent.values++;
		if (depth > extent.depth)
			extent.depth = depth;
	}
	return extent;
}

static int parse_body(struct request *request, struct error *err)
{
	json_error_t problem;

	if (!request->body_size)
		return error_set(err, -EINVAL, "missing_body", "this request needs a body: a JSON object");
	struct extent extent = measure(request->body, request->body_size);
	if (extent.depth > REQUEST_DEPTH_MAX)
		return error_set(err, -EINVAL, "bad_json", "the body nests more than %d brackets", REQUEST_DEPTH_MAX);
	if (extent.values > REQUEST_VALUES_MAX)
		return error_set(err, -EINVAL, "bad_json", "the body holds more than %d values", REQUEST_VALUES_MAX);
	request->json = json_loadb(request->body, request->body_size, JSON_REJECT_DUPLICATES, &problem);
	if (!request->json)
		return error_set(err, -EINVAL, "bad_json", "the body is not valid JSON: line %d, column %d: %s",
				 problem.line, problem.column, problem.text);
	if (!json_is_object(request->json))
		return error_set(err, -EINVAL, "bad_body", "the body is valid JSON, but not an object ({…})");
	return 0;
}

static const char *type_name(const json_t *value)
{
	switch (json_typeof(value)) {
	case JSON_OBJECT:
		return "an object";
	case JSON_ARRAY:
		return "an array";
	case JSON_STRING:
		return "a string";
	case JSON_INTEGER:
		return "an integer";
	case JSON_REAL:
		return "a fraction";
	case JSON_TRUE:
	case JSON_FALSE:
		return "a boolean";
	case JSON_NULL:
		return "null";
	}
	return "something else";
}

static int wrong_type(const struct member *member, const char *expected, const json_t *value, struct error *err)
{
	return error_set(err, -EINVAL, "bad_member", "the member '%s' is %s, not %s", member->name, expected,
			 type_name(value));
}

static int read_string(const struct member *member, const json_t *value, struct error *err)
{
	if (!json_is_string(value))
		return wrong_type(member, "a string", value, err);
	if (!json_string_length(value))
		return error_set(err, -EINVAL, "bad_member", "the member '%s' is an empty string", member->name);
	*(const char **)member->value = json_string_value(value);
	return 0;
}

static int read_path(const struct member *member, const json_t *value, struct error *err)
{
	if (!json_is_string(value))
		return wrong_type(member, "a path in a string", value, err);

	const char *path = json_string_value(value);

	if (*path != '/')
		return error_set(err, -EINVAL, "bad_path",
				 "the member '%s' is an absolute path, because the server has a working directory of its own: "
				 "'%.200s' does not start with '/'",
				 member->name, path);
	if (strlen(path) >= PATH_MAX)
		return error_set(err, -EINVAL, "bad_path", "the path in the member '%s' is longer than %d bytes",
				 member->name, PATH_MAX - 1);
	*(const char **)member->value = path;
	return 0;
}

static int read_uid(const struct member *member, const json_t *value, struct error *err)
{
	if (!json_is_integer(value))
		return wrong_type(member, "a user id (an integer)", value, err);

	json_int_t uid = json_integer_value(value);

	/* (uid_t)-1 means "leave it" to the kernel and is nobody. */
	if (uid < 0 || uid >= (json_int_t)(uid_t)-1)
		return error_set(err, -EINVAL, "bad_member",
				 "the member '%s' is a user id from 0 to %u, not %" JSON_INTEGER_FORMAT, member->name,
				 (uid_t)-2, uid);
	*(uid_t *)member->value = (uid_t)uid;
	return 0;
}

static int read_bytes(const struct member *member, const json_t *value, struct error *err)
{
	if (!json_is_integer(value))
		return wrong_type(member, "a number of bytes (an integer)", value, err);

	json_int_t bytes = json_integer_value(value);

	if (bytes < MEMBER_BYTES_MIN || bytes > MEMBER_BYTES_MAX)
		return error_set(err, -EINVAL, "bad_member",
				 "the member '%s' is a number of bytes from %d to %lld, not %" JSON_INTEGER_FORMAT,
				 member->name, MEMBER_BYTES_MIN, MEMBER_BYTES_MAX, bytes);
	*(uint64_t *)member->value = (uint64_t)bytes;
	return 0;
}

static int read_seconds(const struct member *member, const json_t *value, struct error *err)
{
	if (!json_is_number(value))
		return wrong_type(member, "a number of seconds", value, err);

	double seconds = json_number_value(value);

	if (!(seconds >= 0 && seconds <= MEMBER_SECONDS_MAX))
		return error_set(err, -EINVAL, "bad_member",
				 "the member '%s' is a number of seconds from 0 to %d, not %g", member->name,
				 MEMBER_SECONDS_MAX, seconds);
	*(uint64_t *)member->value = (uint64_t)(seconds * (double)NSEC_PER_SEC);
	return 0;
}

static int read_member(const struct member *member, const json_t *value, struct error *err)
{
	switch (member->type) {
	case MEMBER_STRING:
		return read_string(member, value, err);
	case MEMBER_PATH:
		return read_path(member, value, err);
	case MEMBER_UID:
		return read_uid(member, value, err);
	case MEMBER_BYTES:
		return read_bytes(member, value, err);
	case MEMBER_SECONDS:
		return read_seconds(member, value, err);
	case MEMBER_BOOL:
		break;
	}
	if (!json_is_boolean(value))
		return wrong_type(member, "true or false", value, err);
	*(bool *)member->value = json_is_true(value);
	return 0;
}

static bool is_member(const struct member *members, size_t count, const char *name)
{
	for (size_t i = 0; i < count; i++)
		if (!strcmp(members[i].name, name))
			return true;
	return false;
}

int request_read_body(struct request *request, const struct member *members, size_t count, struct error *err)
{
	const char *name;
	json_t *value;
	int r = parse_body(request, err);

	if (r < 0)
		return r;
	json_object_foreach(request->json, name, value)
		if (!is_member(members, count, name))
			return error_set(err, -EINVAL, "unknown_member",
					 "the body has a member '%.64s', which this request does not know", name);
	for (size_t i = 0; i < count; i++) {
		value = json_object_get(request->json, members[i].name);
		if (!value && members[i].required)
			return error_set(err, -EINVAL, "missing_member", "the body lacks the member '%s'",
					 members[i].name);
		r = value ? read_member(&members[i], value, err) : 0;
		if (r < 0)
			return r;
	}
	return 0;
}
