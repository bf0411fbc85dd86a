/* The inputs of a merge: pages numbered, and each list's order by either clock. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "hotlist/merge_internal.h"

struct timed_page {
	uint64_t time_ns, other_ns;
	uint32_t at; /* in the list */
	uint32_t page;
};

static int compare_timed(const void *a, const void *b)
{
	const struct timed_page *x = a, *y = b;

	if (x->time_ns != y->time_ns)
		return x->time_ns < y->time_ns ? -1 : 1;
	if (x->other_ns != y->other_ns)
		return x->other_ns < y->other_ns ? -1 : 1;
	return (x->at > y->at) - (x->at < y->at);
}

static int number_pages(struct merge *merge, struct merge_input *input)
{
	const struct hotlist *list = input->list;
	_cleanup_page_index_ struct page_index own = { .pages = NULL };

	input->pages = calloc(list->count + 1, sizeof *input->pages);
	input->entries = calloc(list->count + 1, sizeof *input->entries);
	if (!input->pages || !input->entries)
		return -ENOMEM;
	for (size_t i = 0; i < list->count; i++) {
		const struct hot_page *page = &list->pages[i];
		uint32_t number;

		if (page_index_add(&own, page->region, page->offset, &number) < 0)
			return -ENOMEM;
		if (number != input->count)
			continue; /* listed before */
		if (page_index_add(&merge->index, page->region, page->offset, &input->pages[input->count]) < 0)
			return -ENOMEM;
		input->entries[input->count++] = (uint32_t)i;
	}
	return 0;
}

static uint32_t *order_by(const struct merge_input *input, int clock)
{
	_cleanup_free_ struct timed_page *sorted = calloc(input->count + 1, sizeof *sorted);
	uint32_t *order = calloc(input->count + 1, sizeof *order);

	if (!sorted || !order) {
		free(order);
		return NULL;
	}
	for (size_t i = 0; i < input->count; i++) {
		const struct hot_touch *touch = &input->list->touches[input->entries[i]];

		sorted[i] = (struct timed_page){ merge_time(touch, clock), merge_time(touch, !clock), input->entries[i],
						 input->pages[i] };
	}
	qsort(sorted, input->count, sizeof *sorted, compare_timed);
	for (size_t i = 0; i < input->count; i++)
		order[i] = sorted[i].page;
	return order;
}

static bool has_times(const struct merge_input *input)
{
	for (size_t i = 0; input->list->touches && i < input->count; i++)
		if (input->list->touches[input->entries[i]].raw_ns ||
		    input->list->touches[input->entries[i]].corrected_ns)
			return true;
	return false;
}

static int open_input(struct merge *merge, struct merge_input *input)
{
	if (number_pages(merge, input) < 0)
		return -ENOMEM;
	input->timed = has_times(input);
	input->ordered = input->timed || !hotlist_is_sorted(input->list);
	if (!input->ordered)
		return 0;
	if (!input->timed) {
		input->order[BY_RAW] = input->order[BY_CORRECTED] = input->pages;
		return 0;
	}
	for (int clock = 0; clock < CLOCKS; clock++) {
		input->order[clock] = order_by(input, clock);
		if (!input->order[clock])
			return -ENOMEM;
	}
	if (!memcmp(input->order[BY_RAW], input->order[BY_CORRECTED], input->count * sizeof *input->order[BY_RAW])) {
		free(input->order[BY_CORRECTED]);
		input->order[BY_CORRECTED] = input->order[BY_RAW];
	}
	return 0;
}

int merge_open(struct merge *merge, const struct hotlist *const *lists, const char *const *names, size_t count)
{
	merge->inputs = calloc(count, sizeof *merge->inputs);
	if (!merge->inputs)
		return -ENOMEM;
	for (size_t i = 0; i < count; i++) {
		struct merge_input *input = &merge->inputs[merge->input_count++];
		const struct hotlist_origin *origin = lists[i]->origin;

		*input = (struct merge_input){ .list = lists[i], .name = names[i], .runs = 1, .weight = 1 };
		if (origin && origin->runs > 1)
			input->runs = origin->runs;
		if (__builtin_add_overflow(merge->runs, input->runs, &merge->runs))
			merge->runs = UINT32_MAX;
		if (open_input(merge, input) < 0)
			return -ENOMEM;
	}
	return 0;
}

void merge_close(struct merge *merge)
{
	for (size_t i = 0; i < merge->input_count; i++) {
		struct merge_input *input = &merge->inputs[i];

		if (input->order[BY_CORRECTED] != input->order[BY_RAW])
			free(input->order[BY_CORRECTED]);
		if (input->order[BY_RAW] != input->pages)
			free(input->order[BY_RAW]);
		free(input->pages);
		free(input->entries);
	}
	free(merge->inputs);
	page_index_clear(&merge->index);
	*merge = (struct merge){ .inputs = NULL };
}
