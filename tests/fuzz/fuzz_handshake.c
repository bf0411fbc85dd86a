/*
 * Handshakes of both forms. The input's last byte decides in what pieces the rest arrives. Whatever it is, the scanner finds the same
 * end in pieces as in one; the parser takes only what the scanner took, within bounded memory; regions that are found valid lie
 * where they should; and what was understood is understood again when it is written anew, in either form.
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdbool.h>

#include "base/cleanup.h"
#include "fuzz/fuzz.h"
#include "serve/handshake.h"

#define HOST_PAGE  4096
#define IMAGE_SIZE (1ull << 32)
/* For one value, whatever it is, and the entry of its key. */
#define VALUE_BYTES 400

/* ---- what the JSON library takes ---- */

static size_t held, held_most;

/* The size stands in front of each block. */
static void *counting_malloc(size_t size)
{
	max_align_t *block = malloc(sizeof *block + size);

	if (!block)
		return NULL;
	*(size_t *)block = size;
	held += size;
	if (held > held_most)
		held_most = held;
	return block + 1;
}

static void counting_free(void *data)
{
	if (!data)
		return;

	max_align_t *block = (max_align_t *)data - 1;

	held -= *(size_t *)block;
	free(block);
}

/* ---- promises ---- */

static enum handshake_progress scan_in_pieces(const char *text, size_t size, uint8_t pattern)
{
	struct handshake_scan scan = { 0 };
	enum handshake_progress progress = handshake_scan(&scan, text, 0);
	uint32_t random = pattern;

	for (size_t at = 0; at < size && progress != HANDSHAKE_MALFORMED;) {
		random = random * 1664525 + 1013904223;
		size_t length = 1 + (random >> 16) % (1 + (pattern & 63));
		if (length > size - at)
			length = size - at;
		char *piece = fuzz_exact_copy(text + at, length);
		progress = handshake_scan(&scan, piece, length);
		free(piece);
		at += length;
	}
	return progress;
}

static void check_regions(struct region *regions, size_t count)
{
	struct error err = { .code = "" };
	uint64_t pages = 0;

	if (regions_validate(regions, count, IMAGE_SIZE, &err) < 0) {
		PROMISE(!strcmp(err.code, "bad_region") && err.message[0], "%s: %s", err.code, err.message);
		return;
	}
	for (size_t i = 0; i < count; i++) {
		const struct region *r = &regions[i];

		PROMISE(r->page_size == HOST_PAGE || r->page_size == 2 << 20, "region %zu", i);
		PROMISE(r->size && !((r->address | r->size | r->offset) & (r->page_size - 1)), "region %zu", i);
		PROMISE(r->offset < IMAGE_SIZE && r->size <= IMAGE_SIZE - r->offset, "region %zu", i);
		PROMISE(r->address && r->address + r->size > r->address, "region %zu", i);
		PROMISE(r->first_page == pages, "region %zu", i);
		pages += r->size / r->page_size;
		for (size_t j = 0; j < i; j++)
			PROMISE(regions[j].address + regions[j].size <= r->address ||
					r->address + r->size <= regions[j].address,
				"regions %zu and %zu overlap", i, j);
	}
	PROMISE(regions_page_count(regions, count) == pages, "%" PRIu64 " pages", pages);
}

static char *write_anew(const struct handshake *handshake, bool hypeman, size_t *ret_size)
{
	char *text = NULL;
	FILE *f = open_memstream(&text, ret_size);

	PROMISE(f, "no memory");
	fputs(hypeman ? "{\"mappings\":[" : "[", f);
	for (size_t i = 0; i < handshake->region_count; i++)
		fprintf(f,
			"%s{\"base_host_virt_addr\":%" PRIu64 ",\"size\":%" PRIu64 ",\"offset\":%" PRIu64
			",\"page_size\":%" PRIu64 "}",
			i ? "," : "", handshake->regions[i].address, handshake->regions[i].size,
			handshake->regions[i].offset, handshake->regions[i].page_size);
	fputs(hypeman ? "]}" : "]", f);
	fclose(f);
	return text;
}

static void check_written_anew(const struct handshake *handshake, bool hypeman)
{
	struct handshake_scan scan = { 0 };
	struct handshake again;
	struct error err;
	size_t size;
	_cleanup_free_ char *text = write_anew(handshake, hypeman, &size);

	PROMISE(handshake_scan(&scan, text, size) == HANDSHAKE_COMPLETE, "%s", text);
	PROMISE(handshake_parse(text, size, HOST_PAGE, &again, &err) == 0, "%s: %s", text, err.message);
	PROMISE(!strcmp(again.kind, hypeman ? "hypeman" : "firecracker"), "%s", again.kind);
	PROMISE(again.region_count == handshake->region_count, "%zu regions", again.region_count);
	PROMISE(!memcmp(again.regions, handshake->regions, again.region_count * sizeof *again.regions), "%s", text);
	free(again.regions);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct handshake_scan scan = { 0 };
	struct handshake handshake = { .regions = NULL };
	struct error err = { .code = "" };

	if (size == 0)
		return 0;
	json_set_alloc_funcs(counting_malloc, counting_free);

	uint8_t pattern = data[--size];
	_cleanup_free_ char *text = fuzz_exact_copy(data, size);
	enum handshake_progress progress = handshake_scan(&scan, text, size);
	PROMISE(scan_in_pieces(text, size, pattern) == progress, "pieces after pattern %u", pattern);

	held_most = held;
	size_t before = held;
	int r = handshake_parse(text, size, HOST_PAGE, &handshake, &err);
	PROMISE(held == before, "%zu bytes are still held", held - before);
	PROMISE(held_most - before <= HANDSHAKE_MAX_VALUES * VALUE_BYTES + 4 * size, "%zu bytes were held at once",
		held_most - before);
	if (r < 0) {
		PROMISE(!strcmp(err.code, "bad_handshake") && err.message[0], "%s: %s", err.code, err.message);
		PROMISE(!handshake.regions, "a refused handshake left regions");
		return 0;
	}
	PROMISE(progress == HANDSHAKE_COMPLETE, "the parser took what the scanner did not: %d", progress);
	PROMISE(handshake.region_count > 0 && handshake.region_count <= REGIONS_MAX, "%zu regions",
		handshake.region_count);
	check_written_anew(&handshake, false);
	check_written_anew(&handshake, true);
	check_regions(handshake.regions, handshake.region_count);
	free(handshake.regions);
	return 0;
}
