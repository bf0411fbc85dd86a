#include "replay/trace.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/checked.h"
#include "replay/unpack.h"

/* As compressed, on disk: 4 million touches need about 60 MiB. */
#define FILE_MAX_BYTES (256ull << 20)
/* Five numbers of 20 digits, and room for columns that we don't know. */
#define LINE_MAX_BYTES 512
#define COLUMNS_MAX    16
/* Of ns and instructions each: 146 years, and sums and differences of them fit 64 bits with a sign. */
#define NUMBER_MAX (UINT64_MAX >> 2)

#define BAD_TRACE(err, ...) error_set(err, -EBADMSG, "bad_trace", __VA_ARGS__)

enum column { NS, INSTRUCTIONS, PAGE, VCPU, KIND, COLUMN_COUNT };

static const char *const column_names[] = { "ns", "instructions", "page", "vcpu", "kind" };

struct parser {
	struct trace *trace;
	size_t capacity;
	char line[LINE_MAX_BYTES + 1];
	size_t length;
	uint64_t number;	  /* of the line, counted from 1 */
	int columns[COLUMNS_MAX]; /* what each position holds: enum column, or -1 */
	int column_count;
	uint64_t instructions[TRACE_VCPUS_MAX]; /* of each vCPU's last touch */
	struct error *err;
};

struct field {
	const char *text;
	size_t length;
};

/* Takes LINE apart at its commas. -1: more than COLUMNS_MAX. */
static int split(const char *line, struct field fields[COLUMNS_MAX])
{
	int count = 0;

	for (;;) {
		size_t length = strcspn(line, ",");

		if (count == COLUMNS_MAX)
			return -1;
		fields[count++] = (struct field){ line, length };
		if (!line[length])
			return count;
		line += length + 1;
	}
}

static int split_line(struct parser *p, struct field fields[COLUMNS_MAX])
{
	int count = split(p->line, fields);

	if (count < 0)
		return BAD_TRACE(p->err, "line %" PRIu64 ": more than %d columns", p->number, COLUMNS_MAX);
	return count;
}

static int find_column(const struct field *field)
{
	for (int c = 0; c < COLUMN_COUNT; c++)
		if (strlen(column_names[c]) == field->length && !memcmp(column_names[c], field->text, field->length))
			return c;
	return -1;
}

static int parse_header(struct parser *p)
{
	struct field fields[COLUMNS_MAX];
	unsigned seen = 0;
	int count = split_line(p, fields);

	if (count < 0)
		return count;
	for (int i = 0; i < count; i++) {
		int column = find_column(&fields[i]);

		p->columns[i] = column;
		if (column >= 0 && seen & 1u << column)
			return BAD_TRACE(p->err, "line 1: the column \"%s\" is there twice", column_names[column]);
		if (column >= 0)
			seen |= 1u << column;
	}
	for (int c = 0; c < COLUMN_COUNT; c++)
		if (!(seen & 1u << c))
			return BAD_TRACE(p->err,
					 "line 1: no column \"%s\": a trace begins with a row that names its columns, "
					 "ns,instructions,page,vcpu,kind",
					 column_names[c]);
	p->column_count = count;
	return 0;
}

/* What a user may see of a field in a message, whatever is in it. */
static const char *printable(const struct field *field, char buffer[static 32])
{
	size_t n = field->length < 24 ? field->length : 24;

	for (size_t i = 0; i < n; i++)
		buffer[i] = field->text[i] >= ' ' && field->text[i] <= '~' ? field->text[i] : '?';
	strcpy(buffer + n, n < field->length ? "..." : "");
	return buffer;
}

static int bad_number(struct parser *p, enum column column, const struct field *field, uint64_t max)
{
	char text[32];

	return BAD_TRACE(p->err, "line %" PRIu64 ": %s is \"%s\" and not a whole number from 0 to %" PRIu64, p->number,
			 column_names[column], printable(field, text), max);
}

static int parse_number(struct parser *p, enum column column, const struct field *field, uint64_t max, uint64_t *ret)
{
	uint64_t value = 0;

	for (size_t i = 0; i < field->length; i++) {
		char c = field->text[i];

		if (c < '0' || c > '9' || !checked_mul(value, 10, &value) ||
		    !checked_add(value, (uint64_t)(c - '0'), &value))
			return bad_number(p, column, field, max);
	}
	if (!field->length || value > max)
		return bad_number(p, column, field, max);
	*ret = value;
	return 0;
}

static int parse_kind(struct parser *p, const struct field *field, char *ret)
{
	char text[32];

	if (field->length != 1 || !strchr("rwx", field->text[0]))
		return BAD_TRACE(p->err, "line %" PRIu64 ": kind is \"%s\" and not r, w or x", p->number,
				 printable(field, text));
	*ret = field->text[0];
	return 0;
}

static int parse_field(struct parser *p, enum column column, const struct field *field, struct trace_touch *touch)
{
	uint64_t number = 0;
	int r;

	switch (column) {
	case NS:
		return parse_number(p, column, field, NUMBER_MAX, &touch->ns);
	case INSTRUCTIONS:
		return parse_number(p, column, field, NUMBER_MAX, &touch->instructions);
	case PAGE:
		r = parse_number(p, column, field, TRACE_PAGES_MAX - 1, &number);
		touch->page = (uint32_t)number;
		return r;
	case VCPU:
		r = parse_number(p, column, field, TRACE_VCPUS_MAX - 1, &number);
		touch->vcpu = (uint16_t)number;
		return r;
	default:
		return parse_kind(p, field, &touch->kind);
	}
}

static int add_touch(struct parser *p, const struct trace_touch *touch)
{
	struct trace *trace = p->trace;

	if (trace->count == TRACE_TOUCHES_MAX)
		return BAD_TRACE(p->err, "line %" PRIu64 ": more than %u touches, of which a trace can't have more",
				 p->number, TRACE_TOUCHES_MAX);
	if (trace->count == p->capacity) {
		size_t capacity = p->capacity ? 2 * p->capacity : 1024;
		struct trace_touch *touches = reallocarray(trace->touches, capacity, sizeof *touches);

		if (!touches)
			return error_set(p->err, -ENOMEM, "no_memory", "there is not enough memory for its touches");
		trace->touches = touches;
		p->capacity = capacity;
	}
	trace->touches[trace->count++] = *touch;
	return 0;
}

/* Time goes on from line to line, and so does each vCPU's count. */
static int check_order(struct parser *p, const struct trace_touch *touch)
{
	const struct trace *trace = p->trace;
	uint64_t *instructions = &p->instructions[touch->vcpu];

	if (trace->count && touch->ns < trace->touches[trace->count - 1].ns)
		return BAD_TRACE(p->err,
				 "line %" PRIu64 ": ns %" PRIu64
				 " is less than the line before has: sort the rows by ns",
				 p->number, touch->ns);
	if (touch->instructions < *instructions)
		return BAD_TRACE(p->err,
				 "line %" PRIu64 ": vCPU %u has executed %" PRIu64 " instructions, but it had %" PRIu64
				 " before: the counts are of another run, or not of this vCPU",
				 p->number, touch->vcpu, touch->instructions, *instructions);
	*instructions = touch->instructions;
	return 0;
}

static int parse_row(struct parser *p)
{
	struct trace_touch touch = { 0 };
	struct field fields[COLUMNS_MAX];
	int r = split_line(p, fields);

	if (r < 0)
		return r;
	if (r != p->column_count)
		return BAD_TRACE(p->err, "line %" PRIu64 ": %d columns where the header row has %d", p->number, r,
				 p->column_count);
	r = 0;
	for (int i = 0; r >= 0 && i < p->column_count; i++)
		if (p->columns[i] >= 0)
			r = parse_field(p, (enum column)p->columns[i], &fields[i], &touch);
	if (r >= 0)
		r = check_order(p, &touch);
	return r < 0 ? r : add_touch(p, &touch);
}

static int end_line(struct parser *p)
{
	p->number++;
	if (p->length && p->line[p->length - 1] == '\r')
		p->length--;
	p->line[p->length] = '\0';
	if (strlen(p->line) != p->length)
		return BAD_TRACE(p->err, "line %" PRIu64 ": it holds a zero byte: this is no text", p->number);
	p->length = 0;
	return p->number == 1 ? parse_header(p) : parse_row(p);
}

/* Takes a piece of the text; lines may go on from one to the next. */
static int take_text(void *user, const char *bytes, size_t size)
{
	struct parser *p = user;

	while (size) {
		const char *newline = memchr(bytes, '\n', size);
		size_t n = newline ? (size_t)(newline - bytes) : size;

		if (n > LINE_MAX_BYTES - p->length)
			return BAD_TRACE(p->err, "line %" PRIu64 ": longer than %d bytes: this is no trace",
					 p->number + 1, LINE_MAX_BYTES);
		memcpy(p->line + p->length, bytes, n);
		p->length += n;
		if (!newline)
			return 0;
		int r = end_line(p);
		if (r < 0)
			return r;
		bytes += n + 1;
		size -= n + 1;
	}
	return 0;
}

/* A page is touched first only once. Lines are numbered from 1, and the first is the header. */
static int check_pages(struct parser *p)
{
	const struct trace *trace = p->trace;
	uint32_t highest = 0;

	for (size_t i = 0; i < trace->count; i++)
		highest = trace->touches[i].page > highest ? trace->touches[i].page : highest;
	_cleanup_free_ uint8_t *seen = calloc(highest / 8 + 1, 1);
	if (!seen)
		return error_set(p->err, -ENOMEM, "no_memory", "there is not enough memory to check its pages");
	for (size_t i = 0; i < trace->count; i++) {
		uint32_t page = trace->touches[i].page;

		if (seen[page / 8] >> page % 8 & 1)
			return BAD_TRACE(p->err,
					 "line %zu: page %u was touched in a line before, and a trace has first touches only",
					 i + 2, page);
		seen[page / 8] |= (uint8_t)(1u << page % 8);
	}
	return 0;
}

/*
 * The recording machine was slow, and slow by different amounts: instructions are the true clock. Half a nanosecond each is a fair
 * guess for hardware. All vCPUs' instructions together give the length, as they take turns more than they run at once.
 */
static int set_clock(struct parser *p)
{
	struct trace *trace = p->trace;
	uint64_t last = trace->touches[trace->count - 1].ns, all = 0;

	for (unsigned v = 0; v < TRACE_VCPUS_MAX; v++)
		if (!checked_add(all, p->instructions[v], &all))
			return BAD_TRACE(p->err, "the vCPUs' instructions add up to more than 64 bits hold");
	if (!last || all < 2)
		return BAD_TRACE(p->err, "line %" PRIu64 ": no time has passed by the last touch: %s", p->number,
				 last ? "instructions are all 0" : "ns is 0");
	trace->length_ns = all / 2;
	for (size_t i = 0; i < trace->count; i++) {
		struct trace_touch *touch = &trace->touches[i];

		touch->at = (uint64_t)((unsigned __int128)touch->ns * trace->length_ns / last);
		if (touch->vcpu >= trace->vcpus)
			trace->vcpus = touch->vcpu + 1u;
	}
	return 0;
}

static int finish(struct parser *p)
{
	int r = p->length ? end_line(p) : 0;

	if (r < 0)
		return r;
	if (!p->number)
		return BAD_TRACE(p->err, "it is empty");
	if (!p->trace->count)
		return BAD_TRACE(p->err, "it has a header row and no touches");
	r = check_pages(p);
	return r < 0 ? r : set_clock(p);
}

int trace_parse(const void *data, size_t size, struct trace **ret, struct error *err)
{
	_cleanup_trace_ struct trace *trace = calloc(1, sizeof *trace);
	_cleanup_free_ struct parser *p = calloc(1, sizeof *p);

	if (!trace || !p)
		return error_set(err, -ENOMEM, "no_memory", "there is not enough memory to parse it");
	p->trace = trace;
	p->err = err;
	int r = unpack(data, size, take_text, p, err);
	if (r < 0 && p->number && err && !strcmp(err->code, "bad_gzip"))
		return error_prefix(err, r, "after line %" PRIu64 ", ", p->number);
	if (r >= 0)
		r = finish(p);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(trace);
	return 0;
}

int trace_load(const char *path, struct trace **ret, struct error *err)
{
	_cleanup_free_ void *data = NULL;
	size_t size;
	int r = unpack_read_file(path, FILE_MAX_BYTES, &data, &size, err);

	if (r < 0)
		return r;
	r = trace_parse(data, size, ret, err);
	return r < 0 ? error_prefix(err, r, "%s is no trace: ", path) : 0;
}

void trace_free(struct trace *trace)
{
	if (!trace)
		return;
	free(trace->touches);
	free(trace);
}
