/* Trace files and their bitmaps: what is read from them, the clock of a replay, and what is refused, with the line. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <zlib.h>

#include "replay/content.h"
#include "replay/list.h"
#include "replay/trace.h"

#define HEADER "ns,instructions,page,vcpu,kind\n"

/* The caller frees. */
static void *gzip(const void *data, size_t size, size_t *ret_size)
{
	z_stream stream = { 0 };
	size_t room = compressBound(size) + 64;
	void *packed = malloc(room);

	assert_int_equal(deflateInit2(&stream, 9, Z_DEFLATED, MAX_WBITS + 16, 9, Z_DEFAULT_STRATEGY), Z_OK);
	stream.next_in = (Bytef *)data;
	stream.avail_in = (uInt)size;
	stream.next_out = packed;
	stream.avail_out = (uInt)room;
	assert_int_equal(deflate(&stream, Z_FINISH), Z_STREAM_END);
	*ret_size = stream.total_out;
	deflateEnd(&stream);
	return packed;
}

static struct trace *parse(const char *text)
{
	struct trace *trace = NULL;
	struct error err = { .message = "" };

	if (trace_parse(text, strlen(text), &trace, &err) < 0)
		fail_msg("refused: %s", err.message);
	return trace;
}

/* The message must have WORDS in it. */
static void assert_refused_bytes(const void *data, size_t size, const char *words)
{
	struct trace *trace = NULL;
	struct error err = { .message = "" };
	int r = trace_parse(data, size, &trace, &err);

	assert_null(trace);
	assert_int_equal(r, -EBADMSG);
	if (!strstr(err.message, words))
		fail_msg("expected \"%s\" in \"%s\"", words, err.message);
}

static void assert_refused(const char *text, const char *words)
{
	assert_refused_bytes(text, strlen(text), words);
}

static void rows_become_touches(void **state)
{
	_cleanup_trace_ struct trace *trace = parse(HEADER "10,2,7,0,x\n10,5,900,3,w\n40,6,8,0,r\n");

	(void)state;
	assert_int_equal(trace->count, 3);
	assert_int_equal(trace->vcpus, 4);
	assert_int_equal(trace->touches[1].ns, 10);
	assert_int_equal(trace->touches[1].instructions, 5);
	assert_int_equal(trace->touches[1].page, 900);
	assert_int_equal(trace->touches[1].vcpu, 3);
	assert_int_equal(trace->touches[0].kind, 'x');
	assert_int_equal(trace->touches[1].kind, 'w');
	assert_int_equal(trace->touches[2].kind, 'r');
}

/* The clock: half a nanosecond for each instruction of all vCPUs together, spread as the recorded times are. */
static void instructions_give_the_length(void **state)
{
	_cleanup_trace_ struct trace *trace =
		parse(HEADER "1000,50,1,0,r\n4000,300,2,1,r\n5000,100,3,0,r\n10000,700,4,1,r\n");

	(void)state;
	assert_int_equal(trace->length_ns, (100 + 700) / 2);
	assert_int_equal(trace->touches[0].at, 40);
	assert_int_equal(trace->touches[1].at, 160);
	assert_int_equal(trace->touches[2].at, 200);
	assert_int_equal(trace->touches[3].at, 400);
}

/* Products of the two are beyond 64 bits. */
static void the_clock_holds_the_largest_numbers(void **state)
{
	char text[200];
	uint64_t most = UINT64_MAX >> 2;

	(void)state;
	snprintf(text, sizeof text, HEADER "%llu,%llu,1,0,r\n%llu,%llu,2,1,r\n", (unsigned long long)most / 2,
		 (unsigned long long)most, (unsigned long long)most, (unsigned long long)most);
	_cleanup_trace_ struct trace *trace = parse(text);
	assert_int_equal(trace->length_ns, most);
	assert_int_equal(trace->touches[0].at, most / 2);
	assert_int_equal(trace->touches[1].at, most);
}

static void columns_are_found_by_name(void **state)
{
	_cleanup_trace_ struct trace *trace = parse("kind,thread,page,ns,vcpu,instructions\nw,a b,7,10,1,20\n");

	(void)state;
	assert_int_equal(trace->touches[0].page, 7);
	assert_int_equal(trace->touches[0].ns, 10);
	assert_int_equal(trace->touches[0].vcpu, 1);
	assert_int_equal(trace->touches[0].kind, 'w');
	assert_int_equal(trace->length_ns, 10);
}

static void line_ends_may_be_any(void **state)
{
	_cleanup_trace_ struct trace *dos = parse("ns,instructions,page,vcpu,kind\r\n1,2,3,0,r\r\n2,4,5,0,r\r\n");
	_cleanup_trace_ struct trace *cut = parse(HEADER "1,2,3,0,r\n2,4,5,0,r");

	(void)state;
	assert_int_equal(dos->count, 2);
	assert_int_equal(cut->count, 2);
	assert_int_equal(cut->touches[1].page, 5);
}

static void broken_headers_are_refused(void **state)
{
	(void)state;
	assert_refused("", "empty");
	assert_refused(HEADER, "no touches");
	assert_refused("10,2,7,0,x\n", "line 1: no column \"ns\"");
	assert_refused("ns,instructions,page,kind\n1,2,3,r\n", "line 1: no column \"vcpu\"");
	assert_refused("ns,ns,instructions,page,vcpu,kind\n", "line 1: the column \"ns\" is there twice");
	assert_refused("a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q\n", "line 1: more than 16 columns");
	assert_refused("\n" HEADER, "line 1");
}

static void broken_rows_are_refused_with_their_line(void **state)
{
	(void)state;
	assert_refused(HEADER "1,2,3,0,r\n2,3,4,0\n", "line 3: 4 columns where the header row has 5");
	assert_refused(HEADER "1,2,3,0,r\n\n2,3,4,0,r\n", "line 3: 1 columns");
	assert_refused(HEADER "-1,2,3,0,r\n", "line 2: ns is \"-1\"");
	assert_refused(HEADER "1,-2,3,0,r\n", "line 2: instructions is \"-2\"");
	assert_refused(HEADER "1,2,-3,0,r\n", "line 2: page is \"-3\"");
	assert_refused(HEADER "1.5,2,3,0,r\n", "line 2: ns is \"1.5\"");
	assert_refused(HEADER " 1,2,3,0,r\n", "line 2: ns is \" 1\"");
	assert_refused(HEADER ",2,3,0,r\n", "line 2: ns is \"\"");
	assert_refused(HEADER "18446744073709551616,2,3,0,r\n", "line 2: ns is \"18446744073709551616\"");
	assert_refused(HEADER "99999999999999999999999999999,2,3,0,r\n",
		       "line 2: ns is \"999999999999999999999999...\"");
	assert_refused(HEADER "4611686018427387904,2,3,0,r\n", "to 4611686018427387903");
	assert_refused(HEADER "1,2,268435456,0,r\n", "line 2: page is \"268435456\"");
	assert_refused(HEADER "1,2,3,64,r\n", "line 2: vcpu is \"64\"");
	assert_refused(HEADER "1,2,3,0,q\n", "line 2: kind is \"q\"");
	assert_refused(HEADER "1,2,3,0,rw\n", "line 2: kind is \"rw\"");
	assert_refused(HEADER "1,2,3,0,\033\n", "line 2: kind is \"?\"");
}

static void what_is_no_order_is_refused(void **state)
{
	(void)state;
	assert_refused(HEADER "5,1,3,0,r\n4,2,4,0,r\n", "line 3: ns 4 is less than the line before has");
	assert_refused(HEADER "5,9,3,0,r\n6,8,4,0,r\n", "line 3: vCPU 0 has executed 8 instructions, but it had 9");
	assert_refused(HEADER "5,1,3,0,r\n6,2,4,0,r\n7,3,3,0,r\n", "line 4: page 3 was touched in a line before");
	assert_refused(HEADER "0,5,3,0,r\n", "line 2: no time has passed");
	assert_refused(HEADER "5,0,3,0,r\n6,0,4,1,r\n", "line 3: no time has passed");
}

static void sums_that_overflow_are_refused(void **state)
{
	char text[400] = HEADER;

	(void)state;
	for (unsigned v = 0; v < 5; v++)
		snprintf(text + strlen(text), sizeof text - strlen(text), "%u,4611686018427387903,%u,%u,r\n", v + 1, v,
			 v);
	assert_refused(text, "add up to more than 64 bits");
}

static void what_is_no_text_is_refused(void **state)
{
	char text[2000] = HEADER;

	(void)state;
	assert_refused_bytes(HEADER "1,2,3\0,0,r\n", sizeof(HEADER "1,2,3\0,0,r\n") - 1, "line 2: it holds a zero byte");
	memset(text + strlen(HEADER), '1', 1000);
	assert_refused(text, "line 2: longer than 512 bytes");
}

/* Text of many rows, so that lines lie across the pieces in which it is unpacked. The caller frees. */
static char *long_text(unsigned rows)
{
	char *text = malloc(64 + rows * 48ul), *p = text;

	p += sprintf(p, HEADER);
	for (unsigned i = 0; i < rows; i++)
		p += sprintf(p, "%u,%u,%u,%u,%c\n", i * 977 + 1, i * 31 + 2, i, i % 2, "rwx"[i % 3]);
	return text;
}

static void compressed_is_the_same(void **state)
{
	enum { ROWS = 20000 };
	_cleanup_free_ char *text = long_text(ROWS);
	_cleanup_trace_ struct trace *plain = parse(text), *unpacked = NULL;
	size_t size;
	_cleanup_free_ void *packed = gzip(text, strlen(text), &size);
	struct error err;

	(void)state;
	assert_int_equal(trace_parse(packed, size, &unpacked, &err), 0);
	assert_int_equal(unpacked->count, ROWS);
	assert_memory_equal(unpacked->touches, plain->touches, ROWS * sizeof *plain->touches);
}

static void several_members_are_one_text(void **state)
{
	size_t first_size, second_size;
	_cleanup_free_ char *first = gzip(HEADER "1,2,3,", strlen(HEADER "1,2,3,"), &first_size);
	_cleanup_free_ char *second = gzip("0,r\n2,4,5,0,w\n", 14, &second_size);
	_cleanup_free_ char *both = malloc(first_size + second_size);
	_cleanup_trace_ struct trace *trace = NULL;
	struct error err;

	(void)state;
	memcpy(both, first, first_size);
	memcpy(both + first_size, second, second_size);
	assert_int_equal(trace_parse(both, first_size + second_size, &trace, &err), 0);
	assert_int_equal(trace->count, 2);
}

static void damaged_compression_is_refused(void **state)
{
	_cleanup_free_ char *text = long_text(5000);
	size_t size;
	_cleanup_free_ uint8_t *packed = gzip(text, strlen(text), &size);
	_cleanup_free_ uint8_t *longer = malloc(size + 4);

	(void)state;
	for (size_t cut = 3; cut < size; cut += 997)
		assert_refused_bytes(packed, cut, "cut off");
	assert_refused_bytes(packed, size - 1, "after line 5001, its compressed data is cut off");
	memcpy(longer, packed, size);
	memcpy(longer + size, "more", 4);
	assert_refused_bytes(longer, size + 4, "damaged");
	packed[size - 5] ^= 0xff; /* of the checksum */
	assert_refused_bytes(packed, size, "damaged");
}

/* Whatever one byte becomes, it is parsed or refused, and nothing is lost (the sanitizers say so). */
static void any_byte_may_be_wrong(void **state)
{
	_cleanup_free_ char *text = long_text(40);
	size_t length = strlen(text);

	(void)state;
	for (size_t i = 0; i < length; i++)
		for (unsigned c = 0; c < 256; c += 5) {
			struct trace *trace = NULL;
			struct error err = { .message = "" };
			char kept = text[i];

			text[i] = (char)c;
			int r = trace_parse(text, length, &trace, &err);
			assert_true((r == 0) == (trace != NULL));
			assert_true(r == 0 || err.message[0]);
			trace_free(trace);
			text[i] = kept;
		}
}

static void bits_are_pages(void **state)
{
	const uint8_t bits[] = { 0x80, 0x01, 0xff };
	_cleanup_trace_image_ struct trace_image *image = NULL, *unpacked = NULL;
	size_t size;
	_cleanup_free_ void *packed = gzip(bits, sizeof bits, &size);
	struct error err;

	(void)state;
	assert_int_equal(trace_image_parse(bits, sizeof bits, &image, &err), 0);
	assert_int_equal(image->pages, 24);
	assert_int_equal(image->nonzero, 10);
	assert_true(trace_image_has_data(image, 0));
	assert_false(trace_image_has_data(image, 1));
	assert_false(trace_image_has_data(image, 14));
	assert_true(trace_image_has_data(image, 15));
	assert_true(trace_image_has_data(image, 16));
	assert_int_equal(trace_image_parse(packed, size, &unpacked, &err), 0);
	assert_int_equal(unpacked->pages, 24);
	assert_memory_equal(unpacked->bits, bits, sizeof bits);
}

static void broken_bitmaps_are_refused(void **state)
{
	struct trace_image *image = NULL;
	struct error err;
	size_t size;
	_cleanup_free_ void *zeros = calloc(1, (TRACE_PAGES_MAX / 8) + 1);
	_cleanup_free_ void *packed = gzip(zeros, TRACE_PAGES_MAX / 8 + 1, &size);

	(void)state;
	assert_int_equal(trace_image_parse("", 0, &image, &err), -EBADMSG);
	assert_non_null(strstr(err.message, "empty"));
	assert_int_equal(trace_image_parse(packed, size, &image, &err), -EBADMSG);
	assert_non_null(strstr(err.message, "1 TiB"));
	assert_int_equal(trace_image_parse(packed, size / 2, &image, &err), -EBADMSG);
	assert_null(image);
}

static void a_page_outside_of_the_image_is_named(void **state)
{
	const uint8_t bits[] = { 0xff };
	_cleanup_trace_ struct trace *inside = parse(HEADER "1,2,7,0,r\n"),
				     *outside = parse(HEADER "1,2,7,0,r\n2,3,8,0,r\n");
	_cleanup_trace_image_ struct trace_image *image = NULL;
	struct error err;

	(void)state;
	assert_int_equal(trace_image_parse(bits, sizeof bits, &image, &err), 0);
	assert_int_equal(trace_check_image(inside, image, &err), 0);
	assert_int_equal(trace_check_image(outside, image, &err), -EINVAL);
	assert_non_null(strstr(err.message, "line 3 of the trace touches page 8"));
}

static void the_bitmap_lies_beside_the_trace(void **state)
{
	static const char *const cases[][2] = {
		{ "a/b.1.csv.gz", "a/b.1.nonzero.gz" },
		{ "b.csv", "b.nonzero.gz" },
		{ "b", "b.nonzero.gz" },
		{ "b.gz", "b.nonzero.gz" },
		{ ".csv", ".csv.nonzero.gz" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		_cleanup_free_ char *path = trace_image_path(cases[i][0]);

		assert_string_equal(path, cases[i][1]);
	}
}

static void a_list_has_the_pages_in_their_order(void **state)
{
	_cleanup_trace_ struct trace *trace = parse(HEADER "1,2,9,0,r\n2,3,4,1,w\n3,4,7,0,x\n");
	_cleanup_hotlist_ struct hotlist *list = NULL;
	struct error err;

	(void)state;
	assert_int_equal(trace_hot_list(trace, &list, &err), 0);
	assert_int_equal(list->count, 3);
	assert_int_equal(list->pages[0].offset, 9 * TRACE_PAGE);
	assert_int_equal(list->pages[1].offset, 4 * TRACE_PAGE);
	assert_int_equal(list->pages[2].offset, 7 * TRACE_PAGE);
	assert_int_equal(list->pages[2].region, 0);
}

/* A lost, misplaced or foreign page must show in each of its words. */
static void no_two_pages_share_a_word(void **state)
{
	(void)state;
	for (unsigned word = 0; word < CONTENT_WORDS; word += 37)
		for (uint64_t page = 0; page < 200; page++) {
			uint64_t value = content_word(1, page, word);

			assert_true(value != 0);
			assert_true(value != content_word(2, page, word));
			for (uint64_t other = 0; other < page; other++)
				assert_true(value != content_word(1, other, word));
		}
}

static void spreading_deals_bursts_out(void **state)
{
	(void)state;
	_cleanup_trace_ struct trace *trace =
					     parse(HEADER
						   "0,0,1,0,r\n1,1,2,1,w\n2,2,3,0,x\n3,3,4,0,r\n4,4,5,1,r\n5,5,6,0,r\n"),
				     *spread = NULL;
	/* Of vCPU 0, two to each from the first on; of vCPU 1, from the third on. */
	static const uint16_t expected[] = { 0, 2, 0, 1, 2, 1 };

	assert_int_equal(trace_spread(trace, 4, 2, &spread, NULL), 0);
	assert_int_equal(spread->count, 6);
	assert_int_equal(spread->vcpus, 4);
	assert_int_equal(spread->length_ns, trace->length_ns);
	for (size_t i = 0; i < spread->count; i++) {
		assert_int_equal(spread->touches[i].vcpu, expected[i]);
		assert_int_equal(spread->touches[i].page, trace->touches[i].page);
		assert_int_equal(spread->touches[i].at, trace->touches[i].at);
		assert_int_equal(spread->touches[i].kind, trace->touches[i].kind);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rows_become_touches),
		cmocka_unit_test(instructions_give_the_length),
		cmocka_unit_test(the_clock_holds_the_largest_numbers),
		cmocka_unit_test(columns_are_found_by_name),
		cmocka_unit_test(line_ends_may_be_any),
		cmocka_unit_test(broken_headers_are_refused),
		cmocka_unit_test(broken_rows_are_refused_with_their_line),
		cmocka_unit_test(what_is_no_order_is_refused),
		cmocka_unit_test(sums_that_overflow_are_refused),
		cmocka_unit_test(what_is_no_text_is_refused),
		cmocka_unit_test(compressed_is_the_same),
		cmocka_unit_test(several_members_are_one_text),
		cmocka_unit_test(damaged_compression_is_refused),
		cmocka_unit_test(any_byte_may_be_wrong),
		cmocka_unit_test(bits_are_pages),
		cmocka_unit_test(broken_bitmaps_are_refused),
		cmocka_unit_test(a_page_outside_of_the_image_is_named),
		cmocka_unit_test(the_bitmap_lies_beside_the_trace),
		cmocka_unit_test(a_list_has_the_pages_in_their_order),
		cmocka_unit_test(spreading_deals_bursts_out),
		cmocka_unit_test(no_two_pages_share_a_word),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
