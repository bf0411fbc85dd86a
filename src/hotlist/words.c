#include "hotlist/words.h"

#include <string.h>

/* Each starts at 1: 0 is what isn't known. */
static const char *const kinds[] = {
	[HOT_READ] = "read",
	[HOT_WRITE] = "write",
	[HOT_FETCH] = "fetch",
	[HOT_WALK] = "walk",
};
static const char *const window_ends[] = {
	[HOT_WINDOW_READY] = "ready",
	[HOT_WINDOW_SETTLED] = "settled",
	[HOT_WINDOW_TIMEOUT] = "timeout",
	[HOT_WINDOW_GONE] = "gone",
};
static const char *const clocks[] = {
	[HOT_CLOCK_RAW] = "raw",
	[HOT_CLOCK_CORRECTED] = "corrected",
};

#define COUNT(words) (sizeof(words) / sizeof *(words))

static const char *name(const char *const *words, size_t count, unsigned n)
{
	return n < count ? words[n] : NULL;
}

/* 0: none. */
static unsigned parse(const char *const *words, size_t count, const char *text, size_t length)
{
	for (unsigned i = 1; i < count; i++)
		if (strlen(words[i]) == length && !memcmp(words[i], text, length))
			return i;
	return 0;
}

const char *hot_kind_word(unsigned kind)
{
	return name(kinds, COUNT(kinds), kind);
}

const char *hot_window_end_word(unsigned end)
{
	return name(window_ends, COUNT(window_ends), end);
}

const char *hot_clock_word(unsigned clock)
{
	return name(clocks, COUNT(clocks), clock);
}

bool hot_kind_parse(const char *text, size_t length, uint8_t *ret)
{
	static const char letters[] = "?rwx";
	const char *letter = length == 1 && *text ? strchr(letters + 1, *text) : NULL;
	unsigned n = letter ? (unsigned)(letter - letters) : parse(kinds, COUNT(kinds), text, length);

	return n && (*ret = (uint8_t)n, true);
}

bool hot_window_end_parse(const char *text, size_t length, uint32_t *ret)
{
	unsigned n = parse(window_ends, COUNT(window_ends), text, length);

	return n && (*ret = n, true);
}

bool hot_clock_parse(const char *text, size_t length, enum hot_clock *ret)
{
	unsigned n = parse(clocks, COUNT(clocks), text, length);

	return n && (*ret = (enum hot_clock)n, true);
}
