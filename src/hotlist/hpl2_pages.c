/* The pages of an HPL2 file: one entry a page in list order, each as its difference from the entry before. */
#include "hotlist/hpl2.h"

#include <stdlib.h>
#include <string.h>

#include "hotlist/page_set.h"

/* Numbers of an entry: place, region, then raw, corrected, seen, spread, what. Each can be padded to UVARINT_MAX_BYTES. */
#define ENTRY_NUMBERS	 7
#define ENTRY_MAX_BYTES	 (ENTRY_NUMBERS * UVARINT_MAX_BYTES)
#define ENTRY_MIN	 1 /* bytes: the place */
#define ENTRY_MIN_TOUCH	 6 /* place, and five numbers of a touch */
#define PAGE_NUMBERS	 (UINT64_MAX / HOTLIST_PAGE_SIZE + 1)
#define PLACE_NEW_REGION 1u /* lowest bit of the place */
#define BLOCK		 64 /* entries that are held against those before them at once */
#define WHAT_KIND	 7u /* bits of the number that holds kind, presence and vCPU */
#define WHAT_PRESENT	 8u
#define WHAT_VCPU_SHIFT	 4

/* Small for small differences of either sign. */
static uint64_t zigzag(uint64_t difference)
{
	return difference << 1 ^ (difference >> 63 ? UINT64_MAX : 0);
}

static uint64_t unzigzag(uint64_t n)
{
	return n >> 1 ^ (n & 1 ? UINT64_MAX : 0);
}

/* What the next entry is the difference from. */
struct before {
	uint64_t region;
	uint64_t next; /* number of the page after the last one */
	uint64_t raw_ns, corrected_ns;
};

/* ---- reading ---- */

struct decoder {
	struct hpl2_reader *reader;
	struct before before;
	struct hotlist *list;
	struct page_set *seen;
	size_t file_at;
	bool touches;
	struct error *err;
};

static int take(struct decoder *d, const char *field, uint64_t limit, uint64_t *ret)
{
	struct hpl2_reader *reader = d->reader;
	uint64_t n;
	int r = uvarint_decode(reader->window + reader->at, reader->end - reader->at, &n);

	if (r == -EOVERFLOW)
		return BAD_LIST(d->err,
				"varint over 64 bits in entry %zu (%s) at byte %" PRIu64 " of the inflated pages",
				d->list->count, field, reader->taken);
	if (r < 0)
		return BAD_LIST(d->err,
				"the inflated pages end at byte %" PRIu64
				", within or before entry %zu (%s) at byte %" PRIu64,
				reader->taken + (reader->end - reader->at), d->list->count, field, reader->taken);
	if (n > limit)
		return BAD_LIST(d->err,
				"bad %s in entry %zu at byte %" PRIu64 " of the inflated pages: %" PRIu64
				", and at most %" PRIu64 " is known",
				field, d->list->count, reader->taken, n, limit);
	reader->at += (size_t)r;
	reader->taken += (uint64_t)r;
	*ret = n;
	return 0;
}

static int take_page(struct decoder *d, struct hot_page *ret)
{
	uint64_t region = d->before.region, place, at = d->reader->taken;
	int r = take(d, "place", UINT64_MAX, &place);

	if (r < 0)
		return r;
	uint64_t from = d->before.next, difference = unzigzag(place >> 1);
	if (place & PLACE_NEW_REGION) {
		r = take(d, "region", UINT64_MAX, &region);
		if (r < 0)
			return r;
		from = 0;
	}
	/* Both are below 2^63, so the sum wraps only where it is below zero. */
	uint64_t page = from + difference;
	if (page >= PAGE_NUMBERS)
		return BAD_LIST(d->err,
				"bad place in entry %zu at byte %" PRIu64
				" of the inflated pages: it leads out of the 64 bits of an offset",
				d->list->count, at);
	d->before.region = region;
	d->before.next = page + 1;
	*ret = (struct hot_page){ .region = region, .offset = page * HOTLIST_PAGE_SIZE };
	return 0;
}

static int take_touch(struct decoder *d, struct hot_touch *ret)
{
	uint64_t raw, corrected, seen, spread, what, at;
	int r = take(d, "raw time", UINT64_MAX, &raw);

	if (r == 0)
		r = take(d, "corrected time", UINT64_MAX, &corrected);
	if (r == 0)
		r = take(d, "times seen", UINT32_MAX, &seen);
	if (r == 0)
		r = take(d, "spread", UINT32_MAX, &spread);
	at = d->reader->taken;
	if (r == 0)
		r = take(d, "vCPU", ((uint64_t)UINT16_MAX << WHAT_VCPU_SHIFT) | WHAT_PRESENT | WHAT_KIND, &what);
	if (r < 0)
		return r;
	if ((what & WHAT_KIND) > HOT_WALK)
		return BAD_LIST(d->err, "bad kind in entry %zu at byte %" PRIu64 " of the inflated pages: %u",
				d->list->count, at, (unsigned)(what & WHAT_KIND));
	d->before.raw_ns += unzigzag(raw);
	d->before.corrected_ns += unzigzag(corrected);
	*ret = (struct hot_touch){
		.raw_ns = d->before.raw_ns,
		.corrected_ns = d->before.corrected_ns,
		.seen = (uint32_t)seen,
		.spread = (uint32_t)spread,
		.vcpu = what >> WHAT_VCPU_SHIFT ? (uint16_t)((what >> WHAT_VCPU_SHIFT) - 1) : HOT_VCPU_UNKNOWN,
		.kind = (uint8_t)(what & WHAT_KIND),
		.flags = what & WHAT_PRESENT ? HOT_WAS_PRESENT : 0,
	};
	return 0;
}

static int take_entry(struct decoder *d)
{
	struct hotlist *list = d->list;

	int r = hpl2_reader_fill(d->reader, ENTRY_MAX_BYTES, d->file_at, d->err);
	if (r == 0)
		r = take_page(d, &list->pages[list->count]);
	if (r == 0 && d->touches)
		r = take_touch(d, &list->touches[list->count]);
	if (r == 0)
		page_set_prefetch(d->seen, &list->pages[list->count++]);
	return r;
}

/* The next COUNT entries, BLOCK at most. */
static int take_block(struct decoder *d, size_t count)
{
	size_t first = d->list->count;
	uint64_t at[BLOCK];
	int r = 0;

	for (size_t i = 0; r == 0 && i < count; i++) {
		at[i] = d->reader->taken;
		r = take_entry(d);
	}
	for (size_t i = 0; r == 0 && i < count; i++) {
		size_t other = page_set_add(d->seen, d->list->pages, first + i);
		if (other != first + i)
			return BAD_LIST(d->err,
					"duplicate: entry %zu at byte %" PRIu64
					" of the inflated pages is the page of entry %zu",
					first + i, at[i], other);
	}
	return r;
}

static int check_sizes(const struct hpl2_header *header, struct error *err)
{
	size_t entry = header->flags & HPL2_HAS_TOUCHES ? ENTRY_MIN_TOUCH : ENTRY_MIN;

	if (header->pages > HPL2_PAGES_MAX)
		return BAD_LIST(err, "bad count at byte 12: %u pages, and a list has at most %u", header->pages,
				HPL2_PAGES_MAX);
	if (header->body_size > HPL2_BODY_MAX)
		return BAD_LIST(err, "bad size of the pages at byte 16: %u bytes inflated, and at most %u are read",
				header->body_size, HPL2_BODY_MAX);
	if (header->pages > header->body_size / entry)
		return BAD_LIST(err, "bad count at byte 12: %u pages do not fit in the %u bytes that they are inflated",
				header->pages, header->body_size);
	if (header->body_size > HPL2_BODY_FREE + (uint64_t)header->packed_size * HPL2_RATIO_MAX)
		return BAD_LIST(err,
				"bad size of the pages at byte 16: %u bytes out of %u compressed ones are more than %u times as "
				"many",
				header->body_size, header->packed_size, HPL2_RATIO_MAX);
	return 0;
}

static int take_entries(struct decoder *d, const struct hpl2_header *header, const void *packed)
{
	int r = hpl2_reader_start(d->reader, packed, header->packed_size, header->body_size);

	if (r < 0)
		return r;
	while (r == 0 && d->list->count < header->pages) {
		size_t left = header->pages - d->list->count;
		r = take_block(d, left < BLOCK ? left : BLOCK);
	}
	if (r == 0)
		r = hpl2_reader_finish(d->reader, d->file_at, d->err);
	hpl2_reader_end(d->reader);
	return r;
}

int hpl2_pages_decode(const struct hpl2_header *header, const void *packed, size_t file_at, struct hotlist *list,
		      struct error *err)
{
	int r = check_sizes(header, err);
	if (r < 0)
		return r;

	_cleanup_page_set_ struct page_set *seen = page_set_new(header->pages);
	_cleanup_free_ struct hpl2_reader *reader = malloc(sizeof *reader);
	if (!seen || !reader || hotlist_reserve(list, header->pages) < 0)
		return -ENOMEM;
	struct decoder decoder = {
		.reader = reader,
		.list = list,
		.seen = seen,
		.file_at = file_at,
		.touches = header->flags & HPL2_HAS_TOUCHES,
		.err = err,
	};
	if (decoder.touches && hotlist_reserve_touches(list) < 0)
		return -ENOMEM;
	return take_entries(&decoder, header, packed);
}

/* ---- writing ---- */

static size_t put_page(const struct hot_page *page, struct before *before, uint8_t *out)
{
	uint64_t number = page->offset / HOTLIST_PAGE_SIZE;
	bool same = page->region == before->region;
	size_t at = uvarint_encode(zigzag(number - (same ? before->next : 0)) << 1 | (same ? 0 : PLACE_NEW_REGION), out);

	if (!same)
		at += uvarint_encode(page->region, out + at);
	before->region = page->region;
	before->next = number + 1;
	return at;
}

static size_t put_touch(const struct hot_touch *touch, struct before *before, uint8_t *out)
{
	uint64_t vcpu = touch->vcpu == HOT_VCPU_UNKNOWN ? 0 : touch->vcpu + 1u;
	size_t at = uvarint_encode(zigzag(touch->raw_ns - before->raw_ns), out);

	at += uvarint_encode(zigzag(touch->corrected_ns - before->corrected_ns), out + at);
	at += uvarint_encode(touch->seen, out + at);
	at += uvarint_encode(touch->spread, out + at);
	at += uvarint_encode(vcpu << WHAT_VCPU_SHIFT | (touch->flags & HOT_WAS_PRESENT ? WHAT_PRESENT : 0) | touch->kind,
			     out + at);
	before->raw_ns = touch->raw_ns;
	before->corrected_ns = touch->corrected_ns;
	return at;
}

static int check_entries(const struct hotlist *list, bool touches, struct error *err)
{
	if (list->count > HPL2_PAGES_MAX)
		return error_set(err, -E2BIG, "bad_hot_list", "%zu pages are too many for hpl2, which has at most %u",
				 list->count, HPL2_PAGES_MAX);
	for (size_t i = 0; i < list->count; i++) {
		if (list->pages[i].offset % HOTLIST_PAGE_SIZE)
			return error_set(err, -EINVAL, "bad_offset",
					 "entry %zu of the list is at offset %" PRIu64 " of region %" PRIu64
					 ", which is not a multiple of 4096: hpl2 cannot hold it, nor can anybody use it",
					 i, list->pages[i].offset, list->pages[i].region);
		if (touches && (list->touches[i].kind > HOT_WALK || list->touches[i].flags & ~HOT_WAS_PRESENT))
			return error_set(err, -EINVAL, "bad_hot_list",
					 "entry %zu of the list has a kind of touch or a flag that hpl2 does not have",
					 i);
	}
	return 0;
}

static int put_entries(const struct hotlist *list, bool touches, struct hpl2_writer *writer)
{
	struct before before = { .next = 0 };
	uint8_t entry[ENTRY_MAX_BYTES];
	int r = 0;

	for (size_t i = 0; r == 0 && i < list->count; i++) {
		size_t size = put_page(&list->pages[i], &before, entry);
		if (touches)
			size += put_touch(&list->touches[i], &before, entry + size);
		r = hpl2_writer_put(writer, entry, size);
	}
	return r == 0 ? hpl2_writer_finish(writer) : r;
}

static int pack(const struct hotlist *list, bool touches, int strategy, uint8_t **ret, struct hpl2_header *header)
{
	_cleanup_free_ struct hpl2_writer *writer = malloc(sizeof *writer);

	if (!writer || hpl2_writer_start(writer, strategy) < 0)
		return -ENOMEM;
	int r = put_entries(list, touches, writer);
	if (r == 0 && (writer->written > HPL2_BODY_MAX || writer->size > UINT32_MAX))
		r = -E2BIG;
	if (r == 0) {
		header->body_size = (uint32_t)writer->written;
		header->packed_size = (uint32_t)writer->size;
		*ret = TAKE_PTR(writer->data);
	}
	hpl2_writer_end(writer);
	return r;
}

int hpl2_pages_encode(const struct hotlist *list, bool touches, uint8_t **ret, struct hpl2_header *header,
		      struct error *err)
{
	_cleanup_free_ uint8_t *packed = NULL;
	int r = check_entries(list, touches, err);

	if (r < 0)
		return r;
	header->pages = (uint32_t)list->count;
	r = pack(list, touches, Z_DEFAULT_STRATEGY, &packed, header);
	if (r == 0 && check_sizes(header, NULL) < 0) {
		free(TAKE_PTR(packed));
		r = pack(list, touches, Z_HUFFMAN_ONLY, &packed, header);
	}
	if (r == -E2BIG)
		return error_set(err, r, "bad_hot_list",
				 "%zu pages are too many for hpl2: they take more than %u MiB before compression",
				 list->count, HPL2_BODY_MAX >> 20);
	if (r == 0)
		*ret = TAKE_PTR(packed);
	return r;
}
