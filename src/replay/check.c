/* After a run: every byte of every page that is there, against what the image holds and the guest wrote. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "replay/content.h"
#include "replay/internal.h"

enum { CHUNK_PAGES = 8192 };

struct check {
	const struct replay_config *config;
	struct replay_shared *shared;
	const struct memory *memory;
	uint8_t *touched; /* a bit a page */
};

static const uint64_t *page_at(const struct check *check, uint64_t page)
{
	return (const uint64_t *)(check->memory->base + page * TRACE_PAGE);
}

static void wrong(struct check *check, uint64_t page, unsigned word, uint64_t expected, uint64_t found, const char *what)
{
	struct replay_wrong *w = &check->shared->wrong;

	if (w->count++)
		return;
	w->page = page;
	w->expected = expected;
	w->found = found;
	for (w->byte = word * 8; (expected & 0xff) == (found & 0xff); w->byte++) {
		expected >>= 8;
		found >>= 8;
	}
	if (what)
		snprintf(w->what, sizeof w->what, "%s", what);
	else
		content_describe(check->config->image, check->config->seed, page_at(check, page), w->what,
				 sizeof w->what);
}

/* WRITTEN: the guest has left its mark there. True where the page is right. */
static bool check_page(struct check *check, uint64_t page, bool written)
{
	const struct replay_config *config = check->config;
	const uint64_t *memory = page_at(check, page);

	for (unsigned i = 0; i < CONTENT_WORDS; i++) {
		uint64_t expected = content_expected(config->image, config->seed, page, i);

		if (written && i == touched_word(page))
			expected += WRITE_MARK;
		if (memory[i] != expected) {
			wrong(check, page, i, expected, memory[i], NULL);
			return false;
		}
	}
	return true;
}

static void check_touched(struct check *check)
{
	const struct replay_config *config = check->config;

	for (unsigned l = 0; l < check->shared->lane_count; l++) {
		const struct lane *lane = &check->shared->lanes[l];

		for (size_t i = 0; i < lane->count; i++) {
			const struct trace_touch *touch = &config->trace->touches[lane->touches[i]];
			unsigned word = touched_word(touch->page);
			uint64_t expected = content_expected(config->image, config->seed, touch->page, word);
			uint64_t found = check->shared->records[lane->first + i].value;

			check->touched[touch->page / 8] |= (uint8_t)(1u << touch->page % 8);
			check->shared->checked++;
			if (check_page(check, touch->page, touch->kind == 'w') && found != expected)
				wrong(check, touch->page, word, expected, found,
				      "when it was first touched; later it was right");
		}
	}
}

/* What came without having been asked for. Looking at other pages would bring them. */
static void check_unasked(struct check *check)
{
	static unsigned char present[CHUNK_PAGES];
	uint64_t pages = check->config->image->pages;

	for (uint64_t first = 0; first < pages; first += CHUNK_PAGES) {
		uint64_t n = pages - first < CHUNK_PAGES ? pages - first : CHUNK_PAGES;

		if (mincore(check->memory->base + first * TRACE_PAGE, n * TRACE_PAGE, present) < 0)
			return;
		for (uint64_t page = first; page < first + n; page++) {
			if (!(present[page - first] & 1) || check->touched[page / 8] >> page % 8 & 1)
				continue;
			check->shared->unasked++;
			check_page(check, page, false);
		}
	}
}

int check_memory(const struct replay_config *config, struct replay_shared *shared, const struct memory *memory)
{
	_cleanup_free_ uint8_t *touched = calloc(config->image->pages / 8 + 1, 1);
	struct check check = { config, shared, memory, touched };

	if (!touched)
		return -ENOMEM;
	check_touched(&check);
	/* Of a mapped file, mincore tells what is in the page cache, and not what is mapped. */
	if (config->memory != REPLAY_PLAIN)
		check_unasked(&check);
	return 0;
}

int check_tail(const struct replay_config *config, struct replay_shared *shared, const struct memory *memory)
{
	_cleanup_free_ uint8_t *touched = calloc(config->image->pages / 8 + 1, 1);
	struct check check = { config, shared, memory, touched };
	size_t left = config->tail;

	if (!touched)
		return -ENOMEM;
	for (size_t i = 0; i < config->trace->count; i++)
		touched[config->trace->touches[i].page / 8] |= (uint8_t)(1u << config->trace->touches[i].page % 8);
	for (uint64_t page = 0; page < config->image->pages && left; page++) {
		if (touched[page / 8] >> page % 8 & 1 || !trace_image_has_data(config->image, page))
			continue;
		check_page(&check, page, false);
		left--;
	}
	return 0;
}
