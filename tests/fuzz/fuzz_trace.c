/*
 * Traces and their bitmaps, plain and compressed. The input's last byte decides how it is compressed as well. Compressed, a text means
 * what it means plain; a trace that is accepted keeps what src/replay/trace.h says of traces, and stays itself when it is written anew.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <zlib.h>

#include "fuzz/fuzz.h"
#include "replay/list.h"
#include "replay/trace.h"

enum { GZIP = 16 + MAX_WBITS };

/* ---- what is true of every trace ---- */

static void check_trace(const struct trace *trace)
{
	uint64_t instructions[TRACE_VCPUS_MAX] = { 0 };
	const struct trace_touch *before = NULL;

	PROMISE(trace->count > 0 && trace->count <= TRACE_TOUCHES_MAX, "%zu touches", trace->count);
	PROMISE(trace->vcpus > 0 && trace->vcpus <= TRACE_VCPUS_MAX, "%u vCPUs", trace->vcpus);
	for (size_t i = 0; i < trace->count; i++) {
		const struct trace_touch *touch = &trace->touches[i];

		PROMISE(touch->vcpu < trace->vcpus && touch->page < TRACE_PAGES_MAX, "touch %zu", i);
		PROMISE(strchr("rwx", touch->kind) && touch->kind, "touch %zu", i);
		PROMISE(!before || (touch->ns >= before->ns && touch->at >= before->at), "touch %zu goes back", i);
		PROMISE(touch->instructions >= instructions[touch->vcpu], "touch %zu goes back", i);
		instructions[touch->vcpu] = touch->instructions;
		before = touch;
	}
	PROMISE(before->at == trace->length_ns && trace->length_ns > 0, "it lasts %" PRIu64 " ns", trace->length_ns);
}

static int compare_numbers(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static void check_list(const struct trace *trace)
{
	_cleanup_hotlist_ struct hotlist *list = NULL;
	_cleanup_free_ uint64_t *pages = calloc(trace->count, sizeof *pages);
	struct error err;

	PROMISE(pages && trace_hot_list(trace, &list, &err) == 0, "no memory");
	PROMISE(list->count == trace->count, "%zu pages", list->count);
	for (size_t i = 0; i < list->count; i++) {
		PROMISE(list->pages[i].offset == trace->touches[i].page * TRACE_PAGE, "page %zu", i);
		pages[i] = trace->touches[i].page;
	}
	qsort(pages, trace->count, sizeof *pages, compare_numbers);
	for (size_t i = 1; i < trace->count; i++)
		PROMISE(pages[i] != pages[i - 1], "page %" PRIu64 " is touched first twice", pages[i]);
}

static void check_same(const struct trace *a, const struct trace *b)
{
	PROMISE(a->count == b->count && a->vcpus == b->vcpus && a->length_ns == b->length_ns, "%zu and %zu touches",
		a->count, b->count);
	for (size_t i = 0; i < a->count; i++) {
		const struct trace_touch *x = &a->touches[i], *y = &b->touches[i];

		PROMISE(x->ns == y->ns && x->instructions == y->instructions && x->at == y->at && x->page == y->page &&
				x->vcpu == y->vcpu && x->kind == y->kind,
			"touch %zu", i);
	}
}

static void check_written_anew(const struct trace *trace)
{
	_cleanup_trace_ struct trace *again = NULL;
	struct error err = { .message = "" };
	char *text = NULL;
	size_t size;
	FILE *f = open_memstream(&text, &size);

	PROMISE(f, "no memory");
	fputs("kind,page,ns,vcpu,more,instructions\r\n", f);
	for (size_t i = 0; i < trace->count; i++) {
		const struct trace_touch *touch = &trace->touches[i];

		fprintf(f, "%c,%u,%" PRIu64 ",%u,,%" PRIu64 "\r\n", touch->kind, touch->page, touch->ns, touch->vcpu,
			touch->instructions);
	}
	fclose(f);
	PROMISE(trace_parse(text, size, &again, &err) == 0, "%s", err.message);
	check_same(trace, again);
	free(text);
}

/* ---- compression ---- */

/* One gzip member for each of two parts of DATA. */
static void *compress_members(const void *data, size_t size, size_t first, size_t *ret_size)
{
	size_t room = compressBound(size) + 64, done = 0;
	uint8_t *out = malloc(room);

	PROMISE(out, "no memory");
	for (int part = 0; part < 2; part++) {
		z_stream stream = { 0 };

		PROMISE(deflateInit2(&stream, 1, Z_DEFLATED, GZIP, 1, Z_DEFAULT_STRATEGY) == Z_OK, "no memory");
		stream.next_in = (Bytef *)data + (part ? first : 0);
		stream.avail_in = (uInt)(part ? size - first : first);
		stream.next_out = out + done;
		stream.avail_out = (uInt)(room - done);
		PROMISE(deflate(&stream, Z_FINISH) == Z_STREAM_END, "%zu bytes are not room enough", room);
		done = room - stream.avail_out;
		deflateEnd(&stream);
	}
	void *exact = fuzz_exact_copy(out, done);
	free(out);
	*ret_size = done;
	return exact;
}

static bool is_gzip(const uint8_t *data, size_t size)
{
	return size >= 3 && data[0] == 0x1f && data[1] == 0x8b && data[2] == 8;
}

static void check_refused(int r, const struct error *err, const char *code)
{
	PROMISE(r == -EBADMSG && (!strcmp(err->code, code) || !strcmp(err->code, "bad_gzip")), "%d: %s: %s", r,
		err->code, err->message);
	PROMISE(err->message[0], "no message");
}

static void try_trace(const uint8_t *data, size_t size, const void *packed, size_t packed_size)
{
	_cleanup_trace_ struct trace *plain = NULL, *unpacked = NULL;
	struct error err = { .code = "" };
	int r = trace_parse(data, size, &plain, &err), r2;

	if (r < 0)
		check_refused(r, &err, "bad_trace");
	if (plain) {
		check_trace(plain);
		check_list(plain);
		check_written_anew(plain);
	}
	if (is_gzip(data, size))
		return; /* and compressed twice is another thing */
	r2 = trace_parse(packed, packed_size, &unpacked, &err);
	PROMISE(r == r2 && !plain == !unpacked, "plain %d, compressed %d: %s", r, r2, err.message);
	if (plain)
		check_same(plain, unpacked);
}

static void check_image(const struct trace_image *image)
{
	uint64_t set = 0;

	PROMISE(image->pages > 0 && image->pages <= TRACE_PAGES_MAX, "%" PRIu64 " pages", image->pages);
	for (uint64_t page = 0; page < image->pages; page++)
		set += trace_image_has_data(image, page);
	PROMISE(set == image->nonzero, "%" PRIu64 " bits, not %" PRIu64, set, image->nonzero);
}

static void try_image(const uint8_t *data, size_t size, const void *packed, size_t packed_size)
{
	_cleanup_trace_image_ struct trace_image *plain = NULL, *unpacked = NULL;
	struct error err = { .code = "" };
	int r = trace_image_parse(data, size, &plain, &err), r2;

	if (r < 0)
		check_refused(r, &err, "bad_bitmap");
	else
		check_image(plain);
	if (is_gzip(data, size))
		return;
	r2 = trace_image_parse(packed, packed_size, &unpacked, &err);
	PROMISE(r == r2, "plain %d, compressed %d: %s", r, r2, err.message);
	if (r == 0)
		PROMISE(plain->pages == unpacked->pages && plain->nonzero == unpacked->nonzero &&
				!memcmp(plain->bits, unpacked->bits, plain->pages / 8),
			"compressed, it is another bitmap");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t packed_size;

	if (size == 0)
		return 0;
	uint8_t decision = data[--size];
	_cleanup_free_ uint8_t *exact = fuzz_exact_copy(data, size);
	_cleanup_free_ void *packed = compress_members(exact, size, size * decision / 255, &packed_size);

	try_trace(exact, size, packed, packed_size);
	try_image(exact, size, packed, packed_size);
	return 0;
}
