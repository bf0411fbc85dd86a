/* The CSV form of a list: a header row, then a row a page. Columns are found by name; those not known are passed over. */
#include "hotlist/format.h"

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEADER "region,offset,first_touch_ns,seen\n"

struct reader {
	const char *at, *end;
	unsigned line;	      /* of the row that is being read */
	unsigned lines_taken; /* line ends within the row so far */
};

/* A field's text where it stands, without the quotes around it; a doubled quote inside stays doubled. */
struct field {
	const char *text;
	size_t length;
	bool last; /* of its row */
};

static bool is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r';
}

static void skip_blanks(struct reader *r)
{
	while (r->at < r->end && is_blank(*r->at))
		r->at++;
}

static bool at_field_end(const struct reader *r)
{
	return r->at == r->end || *r->at == ',' || *r->at == '\n';
}

static int read_quoted(struct reader *r, struct field *field, struct error *err)
{
	field->text = ++r->at;
	for (; r->at < r->end; r->at++) {
		if (*r->at == '\n')
			r->lines_taken++;
		if (*r->at != '"')
			continue;
		if (r->end - r->at > 1 && r->at[1] == '"') {
			r->at++;
			continue;
		}
		field->length = (size_t)(r->at++ - field->text);
		skip_blanks(r);
		return at_field_end(r)
			       ? 0
			       : BAD_LIST(err, "line %u: something follows the closing quote of a field", r->line);
	}
	return BAD_LIST(err, "line %u: a quoted field does not end", r->line);
}

static void read_plain(struct reader *r, struct field *field)
{
	field->text = r->at;
	while (!at_field_end(r))
		r->at++;
	field->length = (size_t)(r->at - field->text);
	while (field->length && is_blank(field->text[field->length - 1]))
		field->length--;
}

static int read_field(struct reader *r, struct field *ret, struct error *err)
{
	struct field field;

	skip_blanks(r);
	if (r->at < r->end && *r->at == '"') {
		int error = read_quoted(r, &field, err);
		if (error < 0)
			return error;
	} else {
		read_plain(r, &field);
	}
	field.last = r->at == r->end || *r->at == '\n';
	if (r->at < r->end)
		r->at++;
	*ret = field;
	return 0;
}

static bool field_is(const struct field *field, const char *name)
{
	return field->length == strlen(name) && !memcmp(field->text, name, field->length);
}

/* Before each row: passes over empty lines. False at the end of the text. */
static bool next_row(struct reader *r)
{
	r->line += r->lines_taken;
	r->lines_taken = 0;
	for (const char *p = r->at; p < r->end; p++) {
		if (*p == '\n') {
			r->line++;
			r->at = p + 1;
		} else if (*p != ' ' && *p != '\t' && *p != '\r') {
			return true;
		}
	}
	return false;
}

static struct reader reader_start(const char *text, size_t size)
{
	size_t skip = size >= 3 && !memcmp(text, "\xef\xbb\xbf", 3) ? 3 : 0;

	return (struct reader){ .at = text + skip, .end = text + size, .line = 1 };
}

struct columns {
	int region, offset; /* positions in a row, -1: not there */
	int count;
};

static int read_header(struct reader *r, struct columns *ret, struct error *err)
{
	struct columns columns = { .region = -1, .offset = -1 };
	struct field field = { .last = false };

	while (!field.last) {
		int error = read_field(r, &field, err);
		if (error < 0)
			return error;
		int *column = field_is(&field, "region")   ? &columns.region
			      : field_is(&field, "offset") ? &columns.offset
							   : NULL;
		if (column && *column >= 0)
			return BAD_LIST(err, "line %u: the column \"%.*s\" is there twice", r->line, (int)field.length,
					field.text);
		if (column)
			*column = columns.count;
		columns.count++;
	}
	r->lines_taken++;
	*ret = columns;
	return 0;
}

bool csv_list_detect(const char *text, size_t size)
{
	struct reader r = reader_start(text, size);
	struct field field = { .last = !next_row(&r) };

	while (!field.last) {
		if (read_field(&r, &field, NULL) < 0)
			return false;
		if (field_is(&field, "region") || field_is(&field, "offset"))
			return true;
	}
	return false;
}

static int parse_number(const struct reader *r, const struct field *field, const char *name, uint64_t *ret,
			struct error *err)
{
	uint64_t n = 0;

	if (!field->length)
		return BAD_LIST(err, "line %u: %s is empty", r->line, name);
	for (size_t i = 0; i < field->length; i++) {
		char c = field->text[i];
		if (c < '0' || c > '9')
			return BAD_LIST(err, "line %u: %s must be a whole number of 0 or more", r->line, name);
		if (__builtin_mul_overflow(n, 10, &n) || __builtin_add_overflow(n, (uint64_t)(c - '0'), &n))
			return BAD_LIST(err, "line %u: %s is over 64 bits", r->line, name);
	}
	*ret = n;
	return 0;
}

static int read_row(struct reader *r, const struct columns *columns, struct hotlist *list, struct error *err)
{
	uint64_t region = 0, offset = 0;
	struct field field = { .last = false };
	int count = 0;

	for (; !field.last; count++) {
		int error = read_field(r, &field, err);
		if (error < 0)
			return error;
		if (count == columns->region)
			error = parse_number(r, &field, "region", &region, err);
		else if (count == columns->offset)
			error = parse_number(r, &field, "offset", &offset, err);
		if (error < 0)
			return error;
	}
	if (count != columns->count)
		return BAD_LIST(err, "line %u: %d fields, where the header has %d", r->line, count, columns->count);
	r->lines_taken++;
	return hotlist_add(list, region, offset);
}

int csv_list_decode(const char *text, size_t size, struct hotlist *list, struct error *err)
{
	struct reader r = reader_start(text, size);
	struct columns columns = { .region = -1, .offset = -1 };

	if (next_row(&r)) {
		int error = read_header(&r, &columns, err);
		if (error < 0)
			return error;
	}
	if (columns.region < 0 || columns.offset < 0)
		return BAD_LIST(err, "line %u: the header has no column \"%s\"", r.line,
				columns.region < 0 ? "region" : "offset");

	while (next_row(&r)) {
		int error = read_row(&r, &columns, list, err);
		if (error < 0)
			return error;
	}
	return 0;
}

int csv_list_encode(const struct hotlist *list, void **ret_data, size_t *ret_size)
{
	_cleanup_free_ char *text = NULL;
	size_t size;

	FILE *f = open_memstream(&text, &size);
	if (!f)
		return -ENOMEM;
	fputs(HEADER, f);
	/* A list does not hold times yet: the page was seen once, when is not known. */
	for (size_t i = 0; i < list->count; i++)
		fprintf(f, "%" PRIu64 ",%" PRIu64 ",,1\n", list->pages[i].region, list->pages[i].offset);
	bool failed = ferror(f);
	if (fclose(f) != 0 || failed)
		return -ENOMEM;
	*ret_data = TAKE_PTR(text);
	*ret_size = size;
	return 0;
}
