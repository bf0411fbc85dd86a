/*
 * Random histories of a fork's memory: regions, then REMOVE, UNMAP, REMAP, FORK and PAGEFAULT messages in batches (through a pipe in
 * place of the userfaultfd) and pages that come in between. After each batch, where every page is and what is known of it is compared with a
 * model that has one entry for each 4 KiB of the address space.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "fuzz/fuzz.h"
#include "uffd/guest_memory.h"

#define SMALL	   4096ull
#define HUGE	   (2ull << 20)
#define HUGE_SLOTS (HUGE / SMALL)
#define BASE	   (1ull << 30)
/* The part of the address space in which all happens. A slot is 4 KiB of it. */
#define SLOTS	    (4 * HUGE_SLOTS)
#define PAGES_MAX   256
#define REGIONS	    4
#define BATCH_MAX   16
#define HISTORY_MAX 200 /* operations */

struct model {
	uint16_t slots[SLOTS];	   /* page number plus one; 0: nothing of ours */
	uint8_t states[PAGES_MAX]; /* enum page_state */
	bool huge[PAGES_MAX];
	unsigned pages;
	uint64_t removed;
};

struct history {
	struct model model;
	struct guest_memory *memory;
	int feed; /* the end that messages are written to */
	struct uffd_msg batch[BATCH_MAX];
	unsigned batched;
	bool refused; /* the model expects that the batch can't be applied */
};

/* ---- regions ---- */

/* Returns whether they are such as the server serves. */
static bool make_regions(struct fuzz_input *input, struct model *model, struct region *regions, size_t count)
{
	struct error err = { .code = "" };
	bool good = true;

	for (size_t i = 0; i < count; i++) {
		bool huge = fuzz_below(input, 4) == 0;
		unsigned unit = huge ? HUGE_SLOTS : 1, slot = unit * fuzz_below(input, SLOTS / unit);
		unsigned pages = 1 + fuzz_below(input, huge ? 2 : 60);

		regions[i] = (struct region){ .address = BASE + slot * SMALL,
					      .size = pages * unit * SMALL,
					      .page_size = unit * SMALL };
		for (unsigned s = slot; s < slot + pages * unit; s++) {
			if (s >= SLOTS)
				return false; /* beyond the model */
			good = good && !model->slots[s];
			model->slots[s] = (uint16_t)(model->pages + (s - slot) / unit + 1);
		}
		for (unsigned p = 0; p < pages; p++)
			model->huge[model->pages++] = huge;
	}
	int r = regions_validate(regions, count, 1ull << 30, &err);
	PROMISE((r == 0) == good, "regions that %s: %s", good ? "are good" : "overlap", err.message);
	return good;
}

/* ---- the model ---- */

/* Whether a huge page goes on over SLOT's beginning. */
static bool cuts_huge(const struct model *model, unsigned slot)
{
	return slot > 0 && slot < SLOTS && model->slots[slot] && model->slots[slot] == model->slots[slot - 1];
}

static bool has_huge(const struct model *model, unsigned from, unsigned to)
{
	for (unsigned s = from; s < to; s++)
		if (model->slots[s] && model->huge[model->slots[s] - 1])
			return true;
	return false;
}

/* A part of a huge page can only be taken back where it is known what the rest of it is. */
static void model_remove(struct history *h, unsigned from, unsigned to)
{
	struct model *model = &h->model;
	unsigned in_range[PAGES_MAX] = { 0 };

	for (unsigned s = from; s < to; s++)
		if (model->slots[s])
			in_range[model->slots[s] - 1]++;
	for (unsigned p = 0; p < model->pages; p++) {
		if (!in_range[p])
			continue;
		if (in_range[p] < (model->huge[p] ? HUGE_SLOTS : 1)) {
			if (model->states[p] != PAGE_THERE && model->states[p] != PAGE_REMOVED)
				h->refused = true;
			continue;
		}
		model->removed += model->states[p] != PAGE_REMOVED;
		model->states[p] = PAGE_REMOVED;
	}
}

static void model_unmap(struct model *model, unsigned from, unsigned to)
{
	memset(model->slots + from, 0, (to - from) * sizeof model->slots[0]);
}

static void model_move(struct model *model, unsigned from, unsigned to, unsigned count)
{
	memcpy(model->slots + to, model->slots + from, count * sizeof model->slots[0]);
	model_unmap(model, from, from + count);
}

/* ---- what is true of both ---- */

static void check_map(const struct guest_memory *memory, const struct model *model)
{
	const struct address_map *map = &memory->map;
	uint64_t mapped = 0, in_pieces = 0;

	for (unsigned s = 0; s < SLOTS; s++) {
		uint64_t address = BASE + s * SMALL;
		const struct map_piece *piece = address_map_find(map, address + 123);

		PROMISE(!piece == !model->slots[s], "slot %u", s);
		if (!piece)
			continue;
		mapped += SMALL;
		PROMISE(piece_page(piece, address) == model->slots[s] - 1u, "slot %u holds page %" PRIu64, s,
			piece_page(piece, address));
	}
	for (size_t i = 0; i < map->count; i++) {
		const struct map_piece *piece = &map->pieces[i];

		PROMISE(piece->length && !(piece->length % piece->page_size), "piece %zu", i);
		PROMISE(i == 0 || map->pieces[i - 1].address + map->pieces[i - 1].length <= piece->address, "piece %zu",
			i);
		in_pieces += piece->length;
	}
	PROMISE(mapped == in_pieces, "%" PRIu64 " bytes are mapped, %" PRIu64 " in pieces", mapped, in_pieces);
}

static void check_pages(const struct guest_memory *memory, const struct model *model)
{
	unsigned at[PAGES_MAX] = { 0 }; /* a page's first slot, plus one */

	for (unsigned s = SLOTS; s-- > 0;)
		if (model->slots[s])
			at[model->slots[s] - 1] = s + 1;
	for (unsigned p = 0; p < model->pages; p++) {
		const struct map_piece *piece = guest_memory_piece(memory, p);

		PROMISE(!piece == !at[p], "page %u", p);
		PROMISE(!piece || piece_address(piece, p) == BASE + (at[p] - 1) * SMALL, "page %u is at 0x%" PRIx64, p,
			piece_address(piece, p));
		PROMISE(page_states_get(memory->states, p) == (enum page_state)model->states[p],
			"page %u is in state %d, not %u", p, page_states_get(memory->states, p), model->states[p]);
	}
	PROMISE(memory->removed_pages == model->removed, "%" PRIu64 " pages removed, not %" PRIu64,
		(uint64_t)memory->removed_pages, model->removed);
}

/* ---- a history ---- */

/* Gives the batch to the code under test. Returns whether the history goes on. */
static bool flush(struct history *h, unsigned at_a_time)
{
	struct uffd_msg messages[BATCH_MAX];
	size_t size = h->batched * sizeof h->batch[0];
	unsigned got = 0;
	int n = 0;

	if (!h->batched)
		return true;
	PROMISE(write(h->feed, h->batch, size) == (ssize_t)size, "the pipe is full");
	while ((n = guest_memory_read(h->memory, messages, at_a_time)) > 0) {
		got += (unsigned)n;
		guest_memory_leave(h->memory);
	}
	if (h->refused) {
		PROMISE(n < 0, "a batch that can't be applied was");
		return false;
	}
	PROMISE(n == 0 && got == h->batched, "%u of %u messages, then %d", got, h->batched, n);
	h->batched = 0;
	check_map(h->memory, &h->model);
	check_pages(h->memory, &h->model);
	return true;
}

static struct uffd_msg *add_message(struct history *h, uint8_t event)
{
	struct uffd_msg *message = &h->batch[h->batched++];

	*message = (struct uffd_msg){ .event = event };
	return message;
}

static void add_range(struct history *h, uint8_t event, unsigned from, unsigned to)
{
	struct uffd_msg *message = add_message(h, event);

	message->arg.remove.start = BASE + from * SMALL;
	message->arg.remove.end = BASE + to * SMALL;
}

/* The kernel does not cut huge pages when it unmaps. */
static void unmap(struct history *h, unsigned from, unsigned to)
{
	while (cuts_huge(&h->model, from))
		from--;
	while (cuts_huge(&h->model, to))
		to++;
	add_range(h, UFFD_EVENT_UNMAP, from, to);
	model_unmap(&h->model, from, to);
}

static void move(struct history *h, unsigned from, unsigned to, unsigned count)
{
	if (has_huge(&h->model, from, from + count)) {
		from -= from % HUGE_SLOTS;
		to -= to % HUGE_SLOTS;
		count += HUGE_SLOTS - 1;
		count -= count % HUGE_SLOTS;
	}
	if (from + count > SLOTS || to + count > SLOTS || (from < to + count && to < from + count))
		return;
	if (cuts_huge(&h->model, from) || cuts_huge(&h->model, from + count) || cuts_huge(&h->model, to) ||
	    cuts_huge(&h->model, to + count))
		return;

	struct uffd_msg *message = add_message(h, UFFD_EVENT_REMAP);
	message->arg.remap.from = BASE + from * SMALL;
	message->arg.remap.to = BASE + to * SMALL;
	message->arg.remap.len = count * SMALL;
	model_move(&h->model, from, to, count);
}

static void page_comes(struct history *h, unsigned page, enum page_state from, enum page_state to)
{
	int r = page_states_change(h->memory->states, page, from, to);

	PROMISE(r == (h->model.states[page] == from), "page %u from %d to %d: %d", page, from, to, r);
	if (r)
		h->model.states[page] = to;
}

/* Returns whether the history goes on. */
static bool operate(struct history *h, struct fuzz_input *input)
{
	unsigned operation = fuzz_below(input, 8), from, to;

	if ((operation >= 4 || h->batched == BATCH_MAX) && !flush(h, 1 + fuzz_below(input, BATCH_MAX)))
		return false;
	if (operation >= 5) {
		unsigned page = fuzz_below(input, h->model.pages);
		page_comes(h, page, operation == 7 ? PAGE_COMING : PAGE_ABSENT,
			   operation == 6 ? PAGE_COMING : PAGE_THERE);
		return true;
	}
	from = fuzz_below(input, SLOTS);
	to = from + 1 + fuzz_below(input, operation == 4 ? 1 : fuzz_below(input, 2) ? 16 : SLOTS);
	if (to > SLOTS)
		to = SLOTS;
	switch (operation) {
	case 0:
		add_range(h, UFFD_EVENT_REMOVE, from, to);
		model_remove(h, from, to);
		break;
	case 1:
		unmap(h, from, to);
		break;
	case 2:
		move(h, from, fuzz_below(input, SLOTS), to - from);
		break;
	case 3:
		add_message(h, UFFD_EVENT_PAGEFAULT)->arg.pagefault.address = BASE + from * SMALL;
		break;
	default:
		/* No descriptor that a child could be poisoned through: it is left to the caller. */
		add_message(h, UFFD_EVENT_FORK)->arg.fork.ufd = (uint32_t)-1;
	}
	return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_input input = { data, data + size };
	struct history history = { .batched = 0 };
	size_t count = 1 + fuzz_below(&input, REGIONS);
	struct region *regions = calloc(count, sizeof *regions);
	int ends[2];

	PROMISE(regions, "no memory");
	if (!make_regions(&input, &history.model, regions, count)) {
		free(regions);
		return 0;
	}
	PROMISE(pipe2(ends, O_NONBLOCK | O_CLOEXEC) == 0, "no pipe: %s", strerror(errno));
	PROMISE(guest_memory_new(ends[0], regions, count, &history.memory) == 0, "no memory");
	history.feed = ends[1];

	bool going = true;
	for (unsigned i = 0; going && i < HISTORY_MAX && input.at < input.end; i++)
		going = operate(&history, &input);
	if (going)
		flush(&history, BATCH_MAX);
	guest_memory_free(history.memory);
	close(history.feed);
	return 0;
}
