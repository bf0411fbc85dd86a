#include "uffd/page_state.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#define PAGES_PER_WORD	32
#define WORDS_PER_CHUNK 256
#define PAGES_PER_CHUNK (PAGES_PER_WORD * WORDS_PER_CHUNK)

struct chunk {
	_Atomic uint64_t words[WORDS_PER_CHUNK];
};

struct page_states {
	uint64_t pages;
	size_t chunk_count;
	_Atomic(struct chunk *) chunks[];
};

struct page_states *page_states_new(uint64_t pages)
{
	size_t chunk_count = (size_t)((pages + PAGES_PER_CHUNK - 1) / PAGES_PER_CHUNK);
	struct page_states *states = calloc(1, sizeof *states + chunk_count * sizeof states->chunks[0]);

	if (!states)
		return NULL;
	states->pages = pages;
	states->chunk_count = chunk_count;
	return states;
}

void page_states_free(struct page_states *states)
{
	if (!states)
		return;
	for (size_t i = 0; i < states->chunk_count; i++)
		free(atomic_load_explicit(&states->chunks[i], memory_order_relaxed));
	free(states);
}

static unsigned shift_of(uint64_t page)
{
	return (unsigned)(page % PAGES_PER_WORD) * 2;
}

/* The word that holds PAGE, or NULL where its chunk does not exist. */
static _Atomic uint64_t *word_of(const struct page_states *states, uint64_t page)
{
	struct chunk *chunk = atomic_load_explicit(&states->chunks[page / PAGES_PER_CHUNK], memory_order_acquire);

	return chunk ? &chunk->words[page % PAGES_PER_CHUNK / PAGES_PER_WORD] : NULL;
}

static _Atomic uint64_t *make_word(struct page_states *states, uint64_t page)
{
	_Atomic uint64_t *word = word_of(states, page);
	if (word)
		return word;

	struct chunk *fresh = calloc(1, sizeof *fresh), *expected = NULL;
	if (!fresh)
		return NULL;
	if (!atomic_compare_exchange_strong(&states->chunks[page / PAGES_PER_CHUNK], &expected, fresh))
		free(fresh); /* another thread was quicker */
	return word_of(states, page);
}

enum page_state page_states_get(const struct page_states *states, uint64_t page)
{
	_Atomic uint64_t *word = word_of(states, page);

	return word ? (enum page_state)(atomic_load(word) >> shift_of(page) & 3) : PAGE_ABSENT;
}

int page_states_change(struct page_states *states, uint64_t page, enum page_state from, enum page_state to)
{
	_Atomic uint64_t *word = make_word(states, page);
	if (!word)
		return -ENOMEM;

	unsigned shift = shift_of(page);
	uint64_t old = atomic_load(word);
	do {
		if ((old >> shift & 3) != from)
			return 0;
	} while (!atomic_compare_exchange_weak(word, &old, (old & ~(3ull << shift)) | (uint64_t)to << shift));
	return 1;
}

/* Two bits for each of COUNT pages from the word's page FIRST on. */
static uint64_t word_mask(unsigned first, unsigned count)
{
	uint64_t mask = count == PAGES_PER_WORD ? ~0ull : (1ull << count * 2) - 1;

	return mask << first * 2;
}

/* STATE in every page of a word. */
static uint64_t word_fill(enum page_state state)
{
	return 0x5555555555555555ull * (uint64_t)state;
}

/* Both bits set for every page of WORD that is in STATE. */
static uint64_t word_matches(uint64_t word, enum page_state state)
{
	uint64_t differs = word ^ word_fill(state);

	differs = (differs | differs >> 1) & 0x5555555555555555ull;
	return ~(differs | differs << 1);
}

int page_states_set(struct page_states *states, uint64_t first, uint64_t count, enum page_state to,
		    uint64_t *ret_changed)
{
	uint64_t changed = 0, end = first + count;

	while (first < end) {
		unsigned in_word = (unsigned)(first % PAGES_PER_WORD);
		uint64_t here = PAGES_PER_WORD - in_word;
		if (here > end - first)
			here = end - first;

		_Atomic uint64_t *word = make_word(states, first);
		if (!word)
			return -ENOMEM;
		uint64_t mask = word_mask(in_word, (unsigned)here), old = atomic_load(word);
		while (!atomic_compare_exchange_weak(word, &old, (old & ~mask) | (word_fill(to) & mask)))
			;
		changed += (uint64_t)__builtin_popcountll(~word_matches(old, to) & mask) / 2;
		first += here;
	}
	if (ret_changed)
		*ret_changed = changed;
	return 0;
}

uint64_t page_states_run(const struct page_states *states, uint64_t first, uint64_t max, enum page_state state)
{
	uint64_t page = first, end = first + max;

	while (page < end) {
		_Atomic uint64_t *word = word_of(states, page);
		if (!word) {
			if (state != PAGE_ABSENT)
				break;
			page = (page / PAGES_PER_CHUNK + 1) * PAGES_PER_CHUNK;
			continue;
		}
		unsigned in_word = (unsigned)(page % PAGES_PER_WORD);
		uint64_t other = ~word_matches(atomic_load(word), state) >> in_word * 2;
		if (other) {
			page += (uint64_t)__builtin_ctzll(other) / 2;
			break;
		}
		page += PAGES_PER_WORD - in_word;
	}
	return (page < end ? page : end) - first;
}
