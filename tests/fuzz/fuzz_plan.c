/*
 * Plans: a list laid against regions, both decided by the input. A list that names something outside the regions is refused whole; of any
 * other, each page that it names is in the plan exactly once, and nothing else is; a run lies in one region; small pages come by
 * address, and then huge ones in the order in which the list first names a part of them. A stream of the list has the same pages, window by
 * window in the order of the list.
 */
#include <inttypes.h>
#include <stdbool.h>

#include "fuzz/fuzz.h"
#include "prefetch/plan.h"
#include "prefetch/stream.h"

#define SMALL	  4096ull
#define HUGE	  (2ull << 20)
#define REGIONS	  4
#define PAGES_MAX (REGIONS * 64)

struct layout {
	struct region regions[REGIONS];
	size_t count;
	uint64_t pages;
};

static void make_layout(struct fuzz_input *input, struct layout *layout)
{
	struct error err = { .message = "" };
	uint64_t address = HUGE;

	layout->count = 1 + fuzz_below(input, REGIONS);
	for (size_t i = 0; i < layout->count; i++) {
		uint64_t page_size = fuzz_below(input, 3) ? SMALL : HUGE, size = page_size * (1 + fuzz_below(input, 64));

		layout->regions[i] = (struct region){ .address = address, .size = size, .page_size = page_size };
		/* Sometimes neighbours: the runs of two regions must not grow together. */
		address += (size + HUGE - 1) / HUGE * HUGE;
	}
	PROMISE(regions_validate(layout->regions, layout->count, 1ull << 30, &err) == 0, "%s", err.message);
	layout->pages = regions_page_count(layout->regions, layout->count);
	PROMISE(layout->pages <= PAGES_MAX, "%" PRIu64 " pages", layout->pages);
}

/* Mostly pages that exist; now and then one that does not, or an offset that is no page's. */
static struct hotlist *make_list(struct fuzz_input *input, const struct layout *layout, bool *ret_good)
{
	struct hotlist *list = hotlist_new();

	PROMISE(list, "no memory");
	*ret_good = true;
	while (input->at < input->end) {
		uint8_t decision = fuzz_u8(input);
		uint64_t region = decision == 255 ? layout->count + fuzz_u8(input) : decision % layout->count;
		uint64_t size = region < layout->count ? layout->regions[region].size : SMALL;
		uint64_t offset = decision == 254   ? size + SMALL * fuzz_u16(input)
				  : decision == 253 ? 1ull + fuzz_u8(input)
						    : SMALL * fuzz_below(input, (unsigned)(size / SMALL));

		*ret_good = *ret_good && decision < 253;
		PROMISE(hotlist_add(list, region, offset) == 0, "no memory");
	}
	return list;
}

static uint64_t page_of(const struct layout *layout, const struct hot_page *hot)
{
	const struct region *region = &layout->regions[hot->region];

	return region->first_page + hot->offset / region->page_size;
}

static bool is_huge(const struct layout *layout, uint64_t page)
{
	return regions_of_page(layout->regions, layout->count, page)->page_size == HUGE;
}

/* ORDER: where the list first names each page, counted from 1; 0: it does not. */
static void check_plan(const struct plan *plan, const struct layout *layout, const size_t *order)
{
	bool planned[PAGES_MAX] = { false };
	uint64_t pages = 0, last = 0;

	for (size_t i = 0; i < plan->count; i++) {
		const struct plan_run *run = &plan->runs[i];

		PROMISE(run->count > 0 && run->count <= layout->pages && run->page <= layout->pages - run->count,
			"run %zu", i);
		PROMISE(regions_of_page(layout->regions, layout->count, run->page) ==
				regions_of_page(layout->regions, layout->count, run->page + run->count - 1),
			"run %zu lies in two regions", i);
		for (uint64_t page = run->page; page < run->page + run->count; page++, pages++) {
			PROMISE(order[page], "page %" PRIu64 " is not in the list", page);
			PROMISE(!planned[page], "page %" PRIu64 " is planned twice", page);
			planned[page] = true;
			if (pages > 0 && is_huge(layout, page) == is_huge(layout, last))
				PROMISE(is_huge(layout, page) ? order[page] > order[last] : page > last,
					"page %" PRIu64 " after %" PRIu64, page, last);
			else
				PROMISE(pages == 0 || is_huge(layout, page), "a small page after huge ones");
			last = page;
		}
	}
	PROMISE(plan->pages == pages, "%" PRIu64 " pages, not %" PRIu64, pages, plan->pages);
	for (uint64_t page = 0; page < layout->pages; page++)
		PROMISE(planned[page] == (order[page] > 0), "page %" PRIu64 " is missing", page);
}

/* Nobody asks for anything meanwhile: places follow each other. */
static void check_stream(struct stream *stream, const struct layout *layout, const size_t *order, uint64_t pages)
{
	struct page_states *states = page_states_new(layout->pages);
	struct stream_window window;
	uint64_t taken = 0;
	size_t last = 0;

	PROMISE(states, "no memory");
	while (stream_take(stream, states, true, &window)) {
		size_t first = last;
		unsigned at = 0;

		for (unsigned r = 0; r < window.run_count; r++)
			for (uint64_t i = 0; i < window.runs[r].count; i++, at++) {
				size_t place = order[window.runs[r].page + i];
				PROMISE(place > first, "page %" PRIu64 " comes too late", window.runs[r].page + i);
				PROMISE(window.places[at] - taken < window.count, "place %u", window.places[at]);
				last = place > last ? place : last;
			}
		PROMISE(at == window.count && at <= STREAM_WINDOW, "a window of %u pages", at);
		taken += at;
		stream_settle(stream, &window, 0, &(struct stream_outcome){ .copied = at });
	}
	PROMISE(taken == pages, "%" PRIu64 " pages streamed, %" PRIu64 " planned", taken, pages);
	page_states_free(states);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_input input = { data, data + size };
	_cleanup_plan_ struct plan *plan = NULL;
	_cleanup_stream_ struct stream *stream = NULL;
	struct error err = { .code = "" };
	struct layout layout;
	size_t order[PAGES_MAX] = { 0 };
	bool good;

	make_layout(&input, &layout);
	_cleanup_hotlist_ struct hotlist *list = make_list(&input, &layout, &good);
	for (size_t i = 0; good && i < list->count; i++) {
		size_t *first = &order[page_of(&layout, &list->pages[i])];
		*first = *first ?: i + 1;
	}

	int streamed = stream_new(list, layout.regions, layout.count, &stream, &err);
	PROMISE((streamed == 0) == good, "a list that is %s: %s", good ? "good" : "bad", err.message);
	int r = plan_new(list, layout.regions, layout.count, &plan, &err);
	PROMISE((r == 0) == good, "a list that is %s: %s", good ? "good" : "bad", err.message);
	if (r == 0) {
		check_plan(plan, &layout, order);
		check_stream(stream, &layout, order, plan->pages);
	} else {
		PROMISE(!plan && (!strcmp(err.code, "bad_region") || !strcmp(err.code, "bad_offset")), "%s", err.code);
	}
	return 0;
}
