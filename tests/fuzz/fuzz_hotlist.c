/*
 * Hot lists, in every format. Bytes that are a list stay that list when it is written and read again, in their own format and in each
 * other; bytes that are none are refused with the place where they go wrong. What is said about a list (its check against regions, its
 * summary, its comparison) holds when it is counted again.
 *
 * Checksums and compression would keep a fuzzer out of HPL2. So what begins with "HPL2" gets the right sizes and checksum, and what begins with
 * "hpl2" is the parts of a file that is put together here: a byte of flags, one for the size of the origin, two for the number of pages, the
 * origin, and the pages before compression.
 */
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <zlib.h>

#include "fuzz/fuzz.h"
#include "hotlist/hotlist.h"

static const enum hotlist_format formats[] = { HOTLIST_HPL1, HOTLIST_JSON, HOTLIST_CSV, HOTLIST_HPL2 };

#define HPL2_HEADER 24
#define HPL2_END    4 /* bytes of the checksum */

static void put_u32(uint8_t *at, size_t n)
{
	for (int i = 0; i < 4; i++)
		at[i] = (uint8_t)(n >> 8 * i);
}

static uint8_t *seal(uint8_t *file, size_t size)
{
	put_u32(file + size - HPL2_END, crc32(0, file, (uInt)(size - HPL2_END)));
	return file;
}

/* The bytes with right sizes and checksum; the caller frees them. */
static uint8_t *mend(const uint8_t *data, size_t size)
{
	uint8_t *file = fuzz_exact_copy(data, size);

	if (size < HPL2_HEADER + HPL2_END)
		return file;
	size_t rest = size - HPL2_HEADER - HPL2_END, origin = file[8] < rest ? file[8] : rest;
	put_u32(file + 8, origin);
	put_u32(file + 20, rest - origin);
	return seal(file, size);
}

/* The parts as a file; the caller frees it. */
static uint8_t *assemble(const uint8_t *data, size_t size, size_t *ret_size)
{
	struct fuzz_input input = { .at = data, .end = data + size };
	uint8_t flags = fuzz_u8(&input);
	size_t origin = fuzz_u8(&input), pages = fuzz_u16(&input), left = (size_t)(input.end - input.at);

	origin = origin < left ? origin : left;
	size_t body = left - origin;
	uLongf packed = compressBound(body);
	uint8_t *file = calloc(1, HPL2_HEADER + origin + packed + HPL2_END);
	PROMISE(file, "no memory");
	memcpy(file, "HPL2\1", 5);
	file[6] = flags;
	put_u32(file + 8, origin);
	put_u32(file + 12, pages);
	put_u32(file + 16, body);
	if (origin)
		memcpy(file + HPL2_HEADER, input.at, origin);
	PROMISE(compress2(file + HPL2_HEADER + origin, &packed, input.at + origin, body, 0) == Z_OK, "no memory");
	put_u32(file + 20, packed);
	*ret_size = HPL2_HEADER + origin + packed + HPL2_END;
	return seal(file, *ret_size);
}

static uint8_t *input_file(const uint8_t *data, size_t size, size_t *ret_size)
{
	*ret_size = size;
	if (size >= 4 && !memcmp(data, "HPL2", 4))
		return mend(data, size);
	if (size >= 4 && !memcmp(data, "hpl2", 4))
		return assemble(data + 4, size - 4, ret_size);
	return fuzz_exact_copy(data, size);
}

static int compare_pages(const void *a, const void *b)
{
	const struct hot_page *x = a, *y = b;

	if (x->region != y->region)
		return x->region < y->region ? -1 : 1;
	return (x->offset > y->offset) - (x->offset < y->offset);
}

static void check_same_pages(const struct hotlist *a, const struct hotlist *b, const char *how)
{
	PROMISE(a->count == b->count, "%s: %zu pages became %zu", how, a->count, b->count);
	for (size_t i = 0; i < a->count; i++)
		PROMISE(compare_pages(&a->pages[i], &b->pages[i]) == 0, "%s: page %zu differs", how, i);
}

/* Without what fills it up. */
#define TOUCH_BYTES (offsetof(struct hot_touch, flags) + sizeof(uint8_t))

static void check_same_touches(const struct hotlist *a, const struct hotlist *b, const char *how)
{
	PROMISE(hotlist_has_touches(a) == hotlist_has_touches(b), "%s: touches came or went", how);
	for (size_t i = 0; hotlist_has_touches(a) && i < a->count; i++)
		PROMISE(!memcmp(&a->touches[i], &b->touches[i], TOUCH_BYTES), "%s: touch %zu differs", how, i);
}

static void check_same_origin(const struct hotlist *a, const struct hotlist *b, const char *how)
{
	const struct hotlist_origin *x = a->origin, *y = b->origin;

	PROMISE(!x == !y, "%s: the origin came or went", how);
	if (!x)
		return;
	PROMISE(x->page_size == y->page_size && x->template_size == y->template_size && x->runs == y->runs &&
			x->events_lost == y->events_lost && x->window_ns == y->window_ns &&
			x->window_end == y->window_end && x->clock == y->clock &&
			x->agreement_raw == y->agreement_raw && x->agreement_corrected == y->agreement_corrected,
		"%s: a number of the origin differs", how);
	PROMISE(!strcmp(x->tier, y->tier) && !memcmp(x->template_digest, y->template_digest, sizeof x->template_digest),
		"%s: tier or identity differs", how);
	PROMISE(x->region_count == y->region_count, "%s: %zu regions became %zu", how, x->region_count, y->region_count);
	for (size_t i = 0; i < x->region_count; i++)
		PROMISE(!memcmp(&x->regions[i], &y->regions[i], sizeof x->regions[i]), "%s: region %zu differs", how, i);
}

static bool is_aligned(const struct hotlist *list)
{
	for (size_t i = 0; i < list->count; i++)
		if (list->pages[i].offset % HOTLIST_PAGE_SIZE)
			return false;
	return true;
}

/* EXPECTED is what the format makes of LIST. */
static void check_round_trip(const struct hotlist *list, const struct hotlist *expected, enum hotlist_format format)
{
	_cleanup_hotlist_ struct hotlist *again = NULL;
	_cleanup_free_ void *data = NULL, *data_again = NULL;
	const char *name = hotlist_format_name(format);
	struct error err = { .message = "" };
	size_t size, size_again;

	if (format == HOTLIST_HPL2 && !is_aligned(list)) {
		PROMISE(hotlist_encode(list, format, &data, &size, &err) == -EINVAL && !strcmp(err.code, "bad_offset"),
			"%s: %s", err.code, err.message);
		return;
	}
	PROMISE(hotlist_encode(list, format, &data, &size, &err) == 0, "%s: %s", name, err.message);
	PROMISE(hotlist_decode(data, size, &again, &err) == 0, "%s: %s", name, err.message);
	PROMISE(again->format == format, "%s was taken for %s", name, hotlist_format_name(again->format));
	check_same_pages(expected, again, name);
	if (format != HOTLIST_HPL1)
		check_same_touches(expected, again, name);
	if (format == HOTLIST_HPL2 || format == HOTLIST_JSON)
		check_same_origin(expected, again, name);
	else
		PROMISE(!again->origin, "%s has an origin", name);

	PROMISE(hotlist_encode(again, format, &data_again, &size_again, &err) == 0, "%s: %s", name, err.message);
	PROMISE(size == size_again && !memcmp(data, data_again, size), "%s is not written the same way twice", name);
}

static void check_round_trips(const struct hotlist *list, const struct hotlist *sorted)
{
	_cleanup_hotlist_ struct hotlist *distinct = hotlist_copy(list);
	size_t count;

	PROMISE(distinct && hotlist_dedupe(distinct) == 0, "no memory");
	PROMISE(hotlist_count_distinct(list, &count) == 0 && count == distinct->count && count == sorted->count,
		"%zu distinct pages, and %zu without duplicates", count, distinct->count);
	PROMISE(list->format != HOTLIST_HPL2 || count == list->count, "HPL2 with duplicates was read");
	for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
		check_round_trip(list,
				 formats[i] == HOTLIST_HPL1   ? sorted
				 : formats[i] == HOTLIST_HPL2 ? distinct
							      : list,
				 formats[i]);
}

/* The most pages that SIZE bytes of the format can be. */
static size_t pages_in(enum hotlist_format format, size_t size)
{
	switch (format) {
	case HOTLIST_HPL1:
		return size / 2;
	case HOTLIST_CSV:
		return size / 3;
	case HOTLIST_JSON:
		return size / strlen("{\"region\":0,\"offset\":0}");
	case HOTLIST_HPL2:
		break;
	}
	return (64 << 10) + 16 * size;
}

static void check_summary(const struct hotlist *list, const struct hotlist *sorted, uint64_t page_size)
{
	struct hotlist_summary summary;
	size_t pages = 0, runs = 0;

	PROMISE(hotlist_summarize(list, page_size, &summary) == 0, "no memory");
	PROMISE(summary.pages == sorted->count, "%zu pages of %zu", summary.pages, sorted->count);
	PROMISE(summary.pages + summary.duplicates == list->count, "%zu duplicates", summary.duplicates);
	PROMISE(summary.sorted == hotlist_is_sorted(list), "sorted: %d", summary.sorted);
	PROMISE(summary.longest_run <= summary.pages && summary.runs <= summary.pages, "%zu runs", summary.runs);
	PROMISE(!summary.pages == !summary.longest_run, "longest run %zu", summary.longest_run);
	for (size_t i = 0; i < summary.region_count; i++) {
		const struct hotlist_region_summary *region = &summary.regions[i];

		PROMISE(i == 0 || region->region > summary.regions[i - 1].region, "region %" PRIu64, region->region);
		PROMISE(region->lowest == sorted->pages[pages].offset, "region %" PRIu64, region->region);
		pages += region->pages;
		runs += region->runs;
		PROMISE(pages <= sorted->count && region->highest == sorted->pages[pages - 1].offset, "region %" PRIu64,
			region->region);
	}
	PROMISE(pages == summary.pages && runs == summary.runs, "%zu pages, %zu runs", pages, runs);
	hotlist_summary_clear(&summary);
}

/* The list against its own second half. */
static void check_comparison(const struct hotlist *list, const struct hotlist *sorted)
{
	_cleanup_hotlist_ struct hotlist *half = hotlist_new();
	struct hotlist_comparison comparison;

	PROMISE(half, "no memory");
	for (size_t i = sorted->count / 2; i < sorted->count; i++)
		PROMISE(hotlist_add(half, sorted->pages[i].region, sorted->pages[i].offset) == 0, "no memory");
	PROMISE(hotlist_compare(list, half, &comparison) == 0, "no memory");
	PROMISE(comparison.only_a->count == sorted->count / 2 && comparison.only_b->count == 0,
		"only A %zu, only B %zu", comparison.only_a->count, comparison.only_b->count);
	PROMISE(comparison.both == half->count, "both %zu", comparison.both);
	hotlist_comparison_clear(&comparison);
}

static void check_against_regions(const struct hotlist *list)
{
	const struct hotlist_region regions[] = { { 1 << 20, 4096 }, { 4 << 20, 2 << 20 }, { UINT64_MAX, 4096 } };
	const size_t count = sizeof regions / sizeof *regions;
	struct error err = { .code = "" };
	int r = hotlist_check(list, regions, count, &err);
	bool good = true;

	for (size_t i = 0; i < list->count && good; i++) {
		const struct hot_page *page = &list->pages[i];
		good = page->region < count && page->offset < regions[page->region].size &&
		       page->offset % HOTLIST_PAGE_SIZE == 0;
	}
	PROMISE((r == 0) == good, "check says %d: %s", r, err.message);
	PROMISE(good || !strcmp(err.code, "bad_region") || !strcmp(err.code, "bad_offset"), "%s", err.code);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_hotlist_ struct hotlist *list = NULL, *sorted = NULL;
	_cleanup_free_ void *file = input_file(data, size, &size);
	struct error err = { .code = "" };
	int r = hotlist_decode(file, size, &list, &err);

	if (r < 0) {
		PROMISE(!list && !strcmp(err.code, "bad_hot_list"), "%s: %s", err.code, err.message);
		PROMISE(strstr(err.message, "byte ") || strstr(err.message, "line "), "no place in: %s", err.message);
		return 0;
	}
	PROMISE(list->count <= pages_in(list->format, size), "%zu pages in %zu bytes", list->count, size);
	if (list->format == HOTLIST_HPL2)
		PROMISE(list->capacity == list->count, "room for %zu pages, of which there are %zu", list->capacity,
			list->count);
	else
		PROMISE(list->capacity * sizeof *list->pages <= 1024 + 8 * size, "room for %zu pages for %zu bytes",
			list->capacity, size);

	sorted = hotlist_copy(list);
	PROMISE(sorted, "no memory");
	PROMISE(hotlist_sort(sorted) == 0, "no memory");
	PROMISE(hotlist_is_sorted(sorted), "sorting leaves disorder");
	check_round_trips(list, sorted);
	check_summary(list, sorted, size & 1 ? 4096 : 2 << 20);
	check_comparison(list, sorted);
	check_against_regions(list);
	return 0;
}
