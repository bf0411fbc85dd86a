/* What a fork touched, as a hot list: by the pagers' own notes, or by the observer's. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "hotlist/identity.h"
#include "hotlist/page_index.h"
#include "serve/recordings.h"

/* A recording that lost one event in so many is still better in its order than one that saw the other pages in a bent one. */
#define LOST_ONE_IN 100
/* The same for pages that the kernel saw nothing of, and the loop served: those can be filled in. */
#define MISSED_ONE_IN 10

const char *recording_source_name(enum recording_source source)
{
	static const char *const names[] = { "best", "loop", "kernel" };

	return names[source];
}

void fork_recording_clear(struct fork_recording *recording)
{
	hotlist_free(recording->list);
	*recording = (struct fork_recording){ 0 };
}

void notes_clear(struct notes *notes)
{
	session_unref(notes->session);
	template_unref(notes->template);
	free(notes->regions);
	free(notes->pages);
	free(notes->zeroed);
}

/* A copy, as a pager must not wait while a list is made. */
static int copy_pages(struct notes *ret)
{
	struct session *s = ret->session;

	LOCK_SCOPE(&s->lock);
	ret->pages_lost = s->record_lost;
	ret->page_count = s->record_count;
	ret->pages = malloc((s->record_count ?: 1) * sizeof ret->pages[0]);
	if (!ret->pages)
		return -ENOMEM;
	if (s->record_count > 0)
		memcpy(ret->pages, s->record, s->record_count * sizeof ret->pages[0]);
	if (!s->given_zeros)
		return 0;
	for (size_t i = 0; i < ret->region_count; i++)
		ret->page_total += ret->regions[i].size / ret->regions[i].page_size;
	ret->zeroed = malloc(ret->page_total / 8 + 1);
	if (!ret->zeroed)
		return -ENOMEM;
	memcpy(ret->zeroed, s->given_zeros, ret->page_total / 8 + 1);
	return 0;
}

struct placed_page {
	struct recorded_page page;
	size_t place;
};

static int by_time(const void *a, const void *b)
{
	const struct placed_page *x = a, *y = b;

	if (x->page.time_ns != y->page.time_ns)
		return x->page.time_ns < y->page.time_ns ? -1 : 1;
	return x->place < y->place ? -1 : x->place > y->place;
}

/* Pages that had to come from the device are served later than others that were asked for after them. */
static int sort_pages(struct notes *notes)
{
	_cleanup_free_ struct placed_page *placed = calloc(notes->page_count ?: 1, sizeof *placed);

	if (!placed)
		return -ENOMEM;
	for (size_t i = 0; i < notes->page_count; i++)
		placed[i] = (struct placed_page){ .page = notes->pages[i], .place = i };
	qsort(placed, notes->page_count, sizeof *placed, by_time);
	for (size_t i = 0; i < notes->page_count; i++)
		notes->pages[i] = placed[i].page;
	return 0;
}

static void note_window(const struct fork *fork, struct notes *ret)
{
	uint64_t end = fork->ready_ns ?: fork->gone_ns ?: now_ns();

	ret->window_ns = end - fork->connected_ns;
	ret->window_end = fork->ready_ns ? HOT_WINDOW_READY : fork->gone_ns ? HOT_WINDOW_GONE : HOT_WINDOW_UNKNOWN;
}

int notes_take(const struct server *server, const struct fork *fork, struct notes *ret)
{
	memcpy(ret->id, fork->id, sizeof ret->id);
	ret->recorded = fork->record;
	ret->template = template_ref(fork->template);
	ret->page_size = server->host_page_size;
	if (!fork->session)
		return 0;
	ret->session = session_ref(fork->session);
	note_window(fork, ret);
	ret->regions = calloc(fork->region_count ?: 1, sizeof ret->regions[0]);
	if (!ret->regions)
		return -ENOMEM;
	memcpy(ret->regions, fork->regions, fork->region_count * sizeof ret->regions[0]);
	ret->region_count = fork->region_count;
	return copy_pages(ret);
}

static int out_of_memory(struct error *err)
{
	return error_set(err, -ENOMEM, "io_error", "out of memory");
}

/* ---- where a list comes from ---- */

static int add_regions(struct hotlist_origin *origin, const struct notes *notes)
{
	if (origin->region_count > 0 || notes->region_count == 0 || notes->region_count > HOTLIST_REGIONS_MAX)
		return 0;
	origin->regions = calloc(notes->region_count, sizeof origin->regions[0]);
	if (!origin->regions)
		return -ENOMEM;
	for (size_t i = 0; i < notes->region_count; i++)
		origin->regions[i] = (struct hotlist_region_size){ .size = notes->regions[i].size,
								   .offset = notes->regions[i].offset,
								   .page_size = notes->regions[i].page_size };
	origin->region_count = notes->region_count;
	return 0;
}

/* Fills in what only the server knows, and what the recorder has left open. */
static int add_origin(struct hotlist *list, const struct notes *notes, const char *tier)
{
	struct hotlist_origin *origin = list->origin;
	int r;

	if (!origin)
		origin = list->origin = calloc(1, sizeof *origin);
	if (!origin)
		return -ENOMEM;
	if (!origin->tier[0])
		snprintf(origin->tier, sizeof origin->tier, "%s", tier);
	if (!origin->window_ns)
		origin->window_ns = notes->window_ns;
	if (origin->window_end == HOT_WINDOW_UNKNOWN)
		origin->window_end = notes->window_end;
	if (origin->clock == HOT_CLOCK_UNKNOWN)
		origin->clock = HOT_CLOCK_RAW;
	origin->runs = origin->runs ?: 1;
	origin->page_size = notes->page_size;
	origin->template_size = notes->template->size;
	r = template_identity(notes->template, image_identity, origin->template_digest);
	if (r < 0)
		log_warning(NULL, "fork %s: its hot list is not bound to the image '%s', as that can't be read: %s",
			    notes->id, notes->template->memory, strerror(-r));
	return add_regions(origin, notes);
}

/* ---- the two recordings ---- */

/* The region that a page number lies in, and the page's offset there. */
static size_t region_of(const struct notes *notes, uint64_t page, uint64_t *ret_offset)
{
	const struct fork_region_info *region = notes->regions;

	for (; page >= region->size / region->page_size; region++)
		page -= region->size / region->page_size;
	*ret_offset = page * region->page_size;
	return (size_t)(region - notes->regions);
}

static struct hot_touch loop_touch(const struct recorded_page *page)
{
	return (struct hot_touch){
		.raw_ns = page->time_ns, .corrected_ns = page->time_ns, .seen = 1, .vcpu = HOT_VCPU_UNKNOWN
	};
}

static int loop_list(const struct notes *notes, struct hotlist **ret, struct error *err)
{
	if (!notes->recorded)
		return error_set(err, -EINVAL, "not_recorded",
				 "fork '%s' is not recorded: create it with --record to have a hot list of it",
				 notes->id);
	if (notes->pages_lost)
		return error_set(err, -ENOMEM, "io_error", "the server ran out of memory while it recorded fork '%s'",
				 notes->id);

	_cleanup_hotlist_ struct hotlist *list = hotlist_new();
	if (!list)
		return out_of_memory(err);
	for (size_t i = 0; i < notes->page_count; i++) {
		const struct hot_touch touch = loop_touch(&notes->pages[i]);
		uint64_t offset;
		size_t region = region_of(notes, notes->pages[i].page, &offset);

		if (hotlist_add_touch(list, region, offset, &touch) < 0)
			return out_of_memory(err);
	}
	if (add_origin(list, notes, "loop") < 0)
		return out_of_memory(err);
	*ret = TAKE_PTR(list);
	return 0;
}

/* Whether the page was given as zeros, and never as the image has it: its guest had given it back. */
static bool was_only_zero(const struct notes *notes, const struct page_index *copied, const struct hot_page *page)
{
	uint64_t number = 0;

	if (page->region >= notes->region_count)
		return false;
	for (uint64_t i = 0; i < page->region; i++)
		number += notes->regions[i].size / notes->regions[i].page_size;
	number += page->offset / notes->regions[page->region].page_size;
	return number < notes->page_total && (notes->zeroed[number / 8] >> number % 8 & 1) &&
	       page_index_find(copied, page->region, page->offset & ~(notes->regions[page->region].page_size - 1)) ==
		       PAGE_INDEX_NONE;
}

/* Takes those pages out that the guest had given back before it first touched them: no fork wants the image's bytes there. */
static int drop_zero_pages(const struct notes *notes, struct hotlist *list)
{
	_cleanup_page_index_ struct page_index copied = { 0 };
	size_t kept = 0;

	if (!notes->zeroed || !list->touches)
		return 0;
	for (size_t i = 0; i < notes->page_count; i++) {
		uint64_t offset;
		size_t region = region_of(notes, notes->pages[i].page, &offset);
		uint32_t number;

		if (page_index_add(&copied, region, offset, &number) < 0)
			return -ENOMEM;
	}
	for (size_t i = 0; i < list->count; i++) {
		if (!(list->touches[i].flags & HOT_WAS_PRESENT) && was_only_zero(notes, &copied, &list->pages[i]))
			continue;
		list->pages[kept] = list->pages[i];
		list->touches[kept++] = list->touches[i];
	}
	list->count = kept;
	return 0;
}

/*
 * Pages that the loop served within the window, and that the kernel's list lacks, as their events were lost or the fork's first faults had begun before
 * it was known: they enter where their time is. How many, or -ENOMEM.
 */
static ssize_t fill_holes(const struct notes *notes, struct hotlist **list)
{
	_cleanup_hotlist_ struct hotlist *filled = hotlist_new();
	_cleanup_page_index_ struct page_index seen = { 0 };
	const struct hotlist *old = *list;
	size_t at = 0;
	ssize_t holes = 0;

	if (!filled || page_index_add_list(&seen, old) < 0)
		return -ENOMEM;
	for (size_t i = 0; i <= old->count; i++) {
		uint64_t until = i < old->count ? old->touches[i].raw_ns : old->origin->window_ns;

		for (; at < notes->page_count && notes->pages[at].time_ns <= until; at++) {
			const struct hot_touch touch = loop_touch(&notes->pages[at]);
			uint64_t offset;
			size_t region = region_of(notes, notes->pages[at].page, &offset);

			if (page_index_find(&seen, region, offset) != PAGE_INDEX_NONE)
				continue;
			if (hotlist_add_touch(filled, region, offset, &touch) < 0)
				return -ENOMEM;
			holes++;
		}
		if (i < old->count &&
		    hotlist_add_touch(filled, old->pages[i].region, old->pages[i].offset, &old->touches[i]) < 0)
			return -ENOMEM;
	}
	if (holes == 0)
		return 0;
	if (hotlist_set_origin(filled, old->origin) < 0)
		return -ENOMEM;
	hotlist_free(*list);
	*list = TAKE_PTR(filled);
	return holes;
}

int notes_kernel_list(const struct notes *notes, struct hotlist **ret, struct error *err)
{
	const struct session *s = notes->session;

	if (!s || !s->observer)
		return error_set(err, -ENODATA, "not_observed",
				 "the kernel has no recording of fork '%s', as %s: take the fault loop's with --from loop",
				 notes->id,
				 s ? "it is not observed; 'faultline doctor' says what observation needs"
				   : "no VMM has connected to it yet");
	if (!notes->recorded)
		return error_set(err, -EINVAL, "not_recorded",
				 "fork '%s' is not recorded: create it with --record to have a hot list of it",
				 notes->id);

	_cleanup_hotlist_ struct hotlist *list = NULL;
	int r = s->observer->hot_list(s->observer->data, s->observed, &list, err);
	if (r == -ENODATA)
		return error_set(err, r, "not_observed",
				 "the kernel has no recording of fork '%s': take the fault loop's with --from loop",
				 notes->id);
	if (r < 0)
		return r;
	if (add_origin(list, notes, s->observer->tier) < 0 || drop_zero_pages(notes, list) < 0)
		return out_of_memory(err);
	*ret = TAKE_PTR(list);
	return 0;
}

/* ---- which of them ---- */

/* Pages that the loop had brought by the end of the kernel's window. */
static size_t loop_pages_within(const struct notes *notes, uint64_t window_ns)
{
	size_t n = 0;

	for (size_t i = 0; i < notes->page_count; i++)
		n += notes->pages[i].time_ns <= window_ns;
	return n;
}

/* Whether the kernel's list can stand for what the fork touched; WHY either way. */
static bool kernel_will_do(const struct notes *notes, const struct hotlist *list, char *why, size_t size)
{
	uint64_t lost = list->origin->events_lost;
	size_t served = loop_pages_within(notes, list->origin->window_ns);

	if (lost > list->count / LOST_ONE_IN) {
		snprintf(why, size,
			 "the kernel's recording lost %" PRIu64
			 " events beside %zu pages: a larger ring keeps them, 'faultline serve --observe-ring SIZE'",
			 lost, list->count);
		return false;
	}
	if (list->count < served - served / MISSED_ONE_IN) {
		snprintf(why, size, "the kernel saw %zu pages where the fault loop served %zu", list->count, served);
		return false;
	}
	if (lost > 0)
		snprintf(why, size, "only %" PRIu64 " events were lost", lost);
	else
		snprintf(why, size, "no event was lost");
	return true;
}

static int best_list(const struct notes *notes, struct fork_recording *ret, struct error *err)
{
	_cleanup_hotlist_ struct hotlist *kernel = NULL;
	char why[sizeof ret->why - 60]; /* room to add to it */
	struct error kernel_err;

	if (!notes->session || !notes->session->observer)
		snprintf(why, sizeof why, "the kernel does not observe this fork");
	else if (notes_kernel_list(notes, &kernel, &kernel_err) < 0)
		snprintf(why, sizeof why, "%.*s", (int)sizeof why - 1, kernel_err.message);
	else if (kernel_will_do(notes, kernel, why, sizeof why)) {
		ssize_t holes = fill_holes(notes, &kernel);
		if (holes < 0)
			return out_of_memory(err);
		if (holes > 0)
			snprintf(ret->why, sizeof ret->why, "%s; %zd page%s from the fault loop's notes", why, holes,
				 holes == 1 ? " comes" : "s come");
		else
			memcpy(ret->why, why, sizeof why);
		ret->list = TAKE_PTR(kernel);
		ret->from = RECORDED_BY_KERNEL;
		return 0;
	}
	int r = loop_list(notes, &ret->list, err);
	if (r < 0)
		return r;
	ret->from = RECORDED_BY_LOOP;
	memcpy(ret->why, why, sizeof why);
	return 0;
}

int server_fork_hot_list(struct server *server, const char *id, enum recording_source from, struct fork_recording *ret,
			 struct error *err)
{
	_cleanup_notes_ struct notes notes = { 0 };
	struct fork_recording recording = { .from = from, .why = "it was asked for" };

	pthread_mutex_lock(&server->lock);
	const struct fork *fork = server_find_fork(server, id);
	int r = fork ? notes_take(server, fork, &notes) : fork_unknown(id, err);
	pthread_mutex_unlock(&server->lock);
	if (r == 0)
		r = sort_pages(&notes);
	if (r == -ENOMEM)
		return out_of_memory(err);
	if (r < 0)
		return r;

	if (from == RECORDED_BEST)
		r = best_list(&notes, &recording, err);
	else if (from == RECORDED_BY_LOOP)
		r = loop_list(&notes, &recording.list, err);
	else
		r = notes_kernel_list(&notes, &recording.list, err);
	if (r < 0)
		return r;
	*ret = recording;
	return 0;
}
