/* What guests under KVM do in the group "order": the beginning of a workload, on an image of its pages alone, as a script for their VMM. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/order.h"
#include "replay/list.h"

static int no_memory(struct error *err)
{
	return error_set(err, -ENOMEM, "bench_failed", "there is not enough memory for the traces");
}

/* ---- the image ---- */

#define UNUSED_PAGE UINT32_MAX

/* Numbers the pages that the traces' first TOUCHES have, in order of address. Between two that aren't neighbours one stays free. */
static uint32_t *number_pages(const struct workload *whole, size_t touches, uint64_t *ret_count)
{
	uint32_t *numbers = malloc(whole->image->pages * sizeof *numbers);
	uint32_t next = 0;

	if (!numbers)
		return NULL;
	memset(numbers, 0xff, whole->image->pages * sizeof *numbers);
	for (unsigned t = 0; t < 2; t++)
		for (size_t i = 0; i < whole->traces[t]->count && i < touches; i++)
			numbers[whole->traces[t]->touches[i].page] = 0;
	for (uint64_t page = 0; page < whole->image->pages; page++) {
		if (numbers[page] == UNUSED_PAGE)
			continue;
		if (page > 0 && numbers[page - 1] == UNUSED_PAGE)
			next++;
		numbers[page] = next++;
	}
	*ret_count = next;
	return numbers;
}

static struct trace *cut_trace(const struct trace *whole, size_t touches, const uint32_t *numbers)
{
	_cleanup_trace_ struct trace *cut = calloc(1, sizeof *cut);
	size_t count = touches < whole->count ? touches : whole->count;

	if (!cut)
		return NULL;
	cut->touches = calloc(count, sizeof *cut->touches);
	if (!cut->touches)
		return NULL;
	memcpy(cut->touches, whole->touches, count * sizeof *cut->touches);
	for (size_t i = 0; i < count; i++)
		cut->touches[i].page = numbers[cut->touches[i].page];
	cut->count = count;
	cut->vcpus = whole->vcpus;
	cut->length_ns = cut->touches[count - 1].at;
	return TAKE_PTR(cut);
}

static void set_bit(struct trace_image *image, uint64_t page)
{
	image->bits[page / 8] |= (uint8_t)(0x80u >> page % 8);
	image->nonzero++;
}

/* Pages that nobody touches have data: one that comes in another's place is then seen. */
static struct trace_image *fold_image(const struct trace_image *whole, const uint32_t *numbers, uint64_t count)
{
	_cleanup_trace_image_ struct trace_image *image = calloc(1, sizeof *image);
	uint64_t next = 0;

	if (!image)
		return NULL;
	image->pages = (count + 7) / 8 * 8;
	image->bits = calloc(image->pages / 8 ?: 1, 1);
	if (!image->bits)
		return NULL;
	for (uint64_t page = 0; page < whole->pages; page++) {
		if (numbers[page] == UNUSED_PAGE)
			continue;
		for (; next < numbers[page]; next++)
			set_bit(image, next);
		if (trace_image_has_data(whole, page))
			set_bit(image, next);
		next++;
	}
	for (; next < image->pages; next++)
		set_bit(image, next);
	return TAKE_PTR(image);
}

int workload_fold(const struct workload *whole, size_t touches, struct workload *ret, struct error *err)
{
	struct workload w = { .name = whole->name };
	uint64_t count = 0;
	_cleanup_free_ uint32_t *numbers = number_pages(whole, touches, &count);
	int r = 0;

	if (!numbers)
		return no_memory(err);
	snprintf(w.image_path, sizeof w.image_path, "%.390s.folded", whole->image_path);
	snprintf(w.slow_path, sizeof w.slow_path, "%.390s.folded", whole->slow_path);
	for (unsigned i = 0; i < 2 && r >= 0; i++) {
		w.traces[i] = cut_trace(whole->traces[i], touches, numbers);
		r = w.traces[i] ? trace_hot_list(w.traces[i], &w.truth[i], err) : no_memory(err);
	}
	if (r >= 0) {
		w.image = fold_image(whole->image, numbers, count);
		r = w.image ? workload_make_image(&w, err) : no_memory(err);
	}
	if (r < 0) {
		workload_clear(&w);
		return r;
	}
	*ret = w;
	return 0;
}

/* ---- the script ---- */

/* Some microseconds of a processor, and more than what the rest of a touch costs it. */
#define ROUNDS_BETWEEN 50000

/* The traces' image can't be run: what they fetch is read. */
static char verb_of(const struct trace_touch *touch)
{
	return touch->kind == 'w' ? 'w' : 'r';
}

/* Each vCPU computes, and touches; the times of the trace don't count, as those of the processor are not known. */
static void write_free(FILE *file, const struct trace *trace)
{
	for (size_t i = 0; i < trace->count; i++)
		fprintf(file, "%u work %d\n%u %c %" PRIu32 "\n", trace->touches[i].vcpu, ROUNDS_BETWEEN,
			trace->touches[i].vcpu, verb_of(&trace->touches[i]), trace->touches[i].page);
}

/* Who has to wait for its turn sleeps, or spins. */
static void write_in_turns(FILE *file, const struct trace *trace, const char *wait, size_t *done)
{
	for (size_t i = 0; i < trace->count; i++) {
		const struct trace_touch *touch = &trace->touches[i], *before = touch - 1;

		if (i > 0 && before->vcpu != touch->vcpu)
			fprintf(file, "%u %s %u %zu\n", touch->vcpu, wait, before->vcpu, done[before->vcpu]);
		if (i > 0 && touch->at > before->at)
			fprintf(file, "%u pause %" PRIu64 "\n", touch->vcpu, touch->at - before->at);
		fprintf(file, "%u %c %" PRIu32 "\n", touch->vcpu, verb_of(touch), touch->page);
		done[touch->vcpu]++;
	}
}

int order_write_script(const struct trace *trace, enum replay_vcpus vcpus, const char *path, struct error *err)
{
	_cleanup_fclose_ FILE *file = fopen(path, "we");
	_cleanup_free_ size_t *done = calloc(trace->vcpus, sizeof *done);

	if (!done)
		return no_memory(err);
	if (file && vcpus == REPLAY_INDEPENDENT)
		write_free(file, trace);
	else if (file)
		write_in_turns(file, trace, vcpus == REPLAY_HALTING ? "halt" : "spin", done);
	if (!file || fflush(file) != 0)
		return error_set(err, -errno, "bench_failed", "can't write %s: %s", path, strerror(errno));
	return 0;
}
