/* The CSV form of a list: a header row, then a row a page. Columns are found by name; those not known are passed over. */
#include "hotlist/format.h"

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hotlist/words.h"

enum column { REGION, OFFSET, RAW, SEEN, CORRECTED, VCPU, KIND, SPREAD, PRESENT, COLUMNS };

/* In the order in which they are written. */
static const char *const column_names[COLUMNS] = {
	[REGION] = "region", [OFFSET] = "offset",	   [RAW] = "first_touch_ns",
	[SEEN] = "seen",     [CORRECTED] = "corrected_ns", [VCPU] = "vcpu",
	[KIND] = "kind",     [SPREAD] = "spread",	   [PRESENT] = "present",
};

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
	int at[COLUMNS]; /* positions in a row, -1: not there */
	int count;
};

static enum column find_column(const struct field *field)
{
	enum column i = 0;

	while (i < COLUMNS && !field_is(field, column_names[i]))
		i++;
	return i;
}

static int read_header(struct reader *r, struct columns *columns, struct error *err)
{
	struct field field = { .last = false };

	while (!field.last) {
		int error = read_field(r, &field, err);
		if (error < 0)
			return error;
		enum column column = find_column(&field);
		if (column < COLUMNS && columns->at[column] >= 0)
			return BAD_LIST(err, "line %u: the column \"%.*s\" is there twice", r->line, (int)field.length,
					field.text);
		if (column < COLUMNS)
			columns->at[column] = columns->count;
		columns->count++;
	}
	r->lines_taken++;
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

/* At most LIMIT. */
static int parse_number(const struct reader *r, const struct field *field, const char *name, uint64_t limit,
			uint64_t *ret, struct error *err)
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
	if (n > limit)
		return BAD_LIST(err, "line %u: %s must be at most %" PRIu64, r->line, name, limit);
	*ret = n;
	return 0;
}

/* The numbers of a row as they stand in it. */
struct row {
	uint64_t numbers[COLUMNS]; /* 0 where the field is empty or not there */
	bool filled[COLUMNS];
	uint8_t kind;
};

static int parse_field(const struct reader *r, const struct field *field, enum column column, struct row *row,
		       struct error *err)
{
	static const uint64_t limits[COLUMNS] = {
		[REGION] = UINT64_MAX,	  [OFFSET] = UINT64_MAX,	 [RAW] = UINT64_MAX,	[SEEN] = UINT32_MAX,
		[CORRECTED] = UINT64_MAX, [VCPU] = HOT_VCPU_UNKNOWN - 1, [SPREAD] = UINT32_MAX, [PRESENT] = 1,
	};
	const char *name = column_names[column];

	if (!field->length && column != REGION && column != OFFSET)
		return 0;
	row->filled[column] = true;
	if (column != KIND)
		return parse_number(r, field, name, limits[column], &row->numbers[column], err);
	if (!hot_kind_parse(field->text, field->length, &row->kind))
		return BAD_LIST(err, "line %u: %s must be read, write, fetch or walk", r->line, name);
	return 0;
}

/* A row that says only that the page was seen once says nothing: so are lists without touches written. */
static bool row_has_touch(const struct row *row)
{
	return row->filled[RAW] || row->filled[CORRECTED] || row->filled[VCPU] || row->filled[KIND] ||
	       row->filled[SPREAD] || row->filled[PRESENT] || row->numbers[SEEN] > 1;
}

static int add_row(const struct row *row, struct hotlist *list)
{
	const struct hot_touch touch = {
		.raw_ns = row->numbers[RAW],
		.corrected_ns = row->numbers[CORRECTED],
		.seen = (uint32_t)row->numbers[SEEN],
		.spread = (uint32_t)row->numbers[SPREAD],
		.vcpu = row->filled[VCPU] ? (uint16_t)row->numbers[VCPU] : HOT_VCPU_UNKNOWN,
		.kind = row->kind,
		.flags = row->numbers[PRESENT] ? HOT_WAS_PRESENT : 0,
	};

	if (!row_has_touch(row) || hot_touch_says_nothing(&touch))
		return hotlist_add(list, row->numbers[REGION], row->numbers[OFFSET]);
	return hotlist_add_touch(list, row->numbers[REGION], row->numbers[OFFSET], &touch);
}

static int read_row(struct reader *r, const struct columns *columns, struct hotlist *list, struct error *err)
{
	struct field field = { .last = false };
	struct row row = { .kind = HOT_UNKNOWN };
	int count = 0;

	for (; !field.last; count++) {
		int error = read_field(r, &field, err);
		for (enum column i = 0; error == 0 && i < COLUMNS; i++)
			if (columns->at[i] == count)
				error = parse_field(r, &field, i, &row, err);
		if (error < 0)
			return error;
	}
	if (count != columns->count)
		return BAD_LIST(err, "line %u: %d fields, where the header has %d", r->line, count, columns->count);
	r->lines_taken++;
	return add_row(&row, list);
}

int csv_list_decode(const char *text, size_t size, struct hotlist *list, struct error *err)
{
	struct reader r = reader_start(text, size);
	struct columns columns = { .count = 0 };

	for (size_t i = 0; i < COLUMNS; i++)
		columns.at[i] = -1;
	if (next_row(&r)) {
		int error = read_header(&r, &columns, err);
		if (error < 0)
			return error;
	}
	if (columns.at[REGION] < 0 || columns.at[OFFSET] < 0)
		return BAD_LIST(err, "line %u: the header has no column \"%s\"", r.line,
				column_names[columns.at[REGION] < 0 ? REGION : OFFSET]);

	while (next_row(&r)) {
		int error = read_row(&r, &columns, list, err);
		if (error < 0)
			return error;
	}
	return 0;
}

static void write_touch(FILE *f, const struct hot_touch *touch)
{
	fprintf(f, "%" PRIu64 ",%" PRIu32 ",%" PRIu64 ",", touch->raw_ns, touch->seen, touch->corrected_ns);
	if (touch->vcpu != HOT_VCPU_UNKNOWN)
		fprintf(f, "%u", touch->vcpu);
	fprintf(f, ",%s,%" PRIu32 ",%d\n", hot_kind_word(touch->kind) ?: "", touch->spread,
		!!(touch->flags & HOT_WAS_PRESENT));
}

int csv_list_encode(const struct hotlist *list, void **ret_data, size_t *ret_size)
{
	_cleanup_free_ char *text = NULL;
	size_t size;

	FILE *f = open_memstream(&text, &size);
	if (!f)
		return -ENOMEM;
	for (size_t i = 0; i < COLUMNS; i++)
		fprintf(f, "%s%c", column_names[i], i == COLUMNS - 1 ? '\n' : ',');
	for (size_t i = 0; i < list->count; i++) {
		fprintf(f, "%" PRIu64 ",%" PRIu64 ",", list->pages[i].region, list->pages[i].offset);
		if (list->touches && !hot_touch_says_nothing(&list->touches[i]))
			write_touch(f, &list->touches[i]);
		else
			fputs(",1,,,,,\n", f);
	}
	bool failed = ferror(f);
	if (fclose(f) != 0 || failed)
		return -ENOMEM;
	*ret_data = TAKE_PTR(text);
	*ret_size = size;
	return 0;
}
