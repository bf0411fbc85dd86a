#include "vmm.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

static uint64_t to_ns(const struct vmm *vmm, uint64_t tsc)
{
	int64_t ticks = (int64_t)(tsc - vmm->start.tsc);
	__int128 ns = (__int128)ticks * (int64_t)(vmm->end.ns - vmm->start.ns);

	return vmm->start.ns + (uint64_t)(int64_t)(ns / (int64_t)(vmm->end.tsc - vmm->start.tsc));
}

struct touch {
	const struct guest_result *result;
	uint64_t page;
	uint8_t vcpu, kind;
};

static int compare_touches(const void *a, const void *b)
{
	const struct touch *x = a, *y = b;

	return x->result->sequence < y->result->sequence ? -1 : 1;
}

static struct touch *collect(const struct vmm *vmm, size_t *ret_count)
{
	size_t count = 0;

	for (unsigned i = 0; i < vmm->script.vcpu_count; i++)
		count += vmm->script.vcpus[i].touches;
	struct touch *touches = calloc(count ? count : 1, sizeof *touches);
	if (!touches)
		fail("no memory for %zu touches", count);
	count = 0;
	for (unsigned i = 0; i < vmm->script.vcpu_count; i++) {
		const struct program *program = &vmm->script.vcpus[i];
		const struct guest_result *result = guest_control_results(&vmm->control, i);

		for (size_t k = 0; k < program->count; k++)
			if (program->actions[k].kind == ACTION_TOUCH)
				touches[count++] = (struct touch){ result++, program->actions[k].value, (uint8_t)i,
								   program->actions[k].touch };
	}
	qsort(touches, count, sizeof *touches, compare_touches);
	*ret_count = count;
	return touches;
}

/* What the guest saw: the words that it doesn't write. */
static bool saw_right(const struct vmm *vmm, const struct touch *touch)
{
	uint64_t words[PAGE_SIZE / 8];

	memory_read_image_page(vmm, touch->page, words);
	if (guest_checksum(words) == touch->result->checksum)
		return true;
	fprintf(stderr, "faultline-tiny-vmm: vCPU %u saw something else in page %" PRIu64 " than the image has\n",
		touch->vcpu, touch->page);
	return false;
}

/* What is there in the end: all of the image's page, and what was written. */
static bool is_right(const struct vmm *vmm, uint64_t page)
{
	uint64_t words[PAGE_SIZE / 8];

	memory_read_image_page(vmm, page, words);
	for (unsigned vcpu = 0; vcpu < VCPUS_MAX; vcpu++)
		if (vmm->writers[page] >> vcpu & 1)
			words[GUEST_WRITTEN_WORD(vcpu)] = guest_written(memory_guest_address(vmm, page), vcpu);
	if (memcmp(words, memory_of(vmm, page), PAGE_SIZE) == 0)
		return true;
	fprintf(stderr, "faultline-tiny-vmm: page %" PRIu64 " is not what it should be after the guest has ended\n",
		page);
	return false;
}

static void print_touch(const struct vmm *vmm, const struct touch *touch)
{
	const struct slot *slot = memory_slot(vmm, touch->page);

	printf("{\"touch\":%" PRIu64 ",\"vcpu\":%u,\"page\":%" PRIu64 ",\"region\":%td,\"offset\":%" PRIu64
	       ",\"kind\":\"%c\",\"first\":%s,\"present\":%s,\"touch_ns\":%" PRIu64 ",\"done_ns\":%" PRIu64 "}\n",
	       touch->result->sequence, touch->vcpu, touch->page, slot - vmm->slots,
	       touch->page * PAGE_SIZE - slot->offset, "rwx"[touch->kind],
	       vmm -> touched[touch->page] ? "false" : "true", vmm->present[touch->page] ? "true" : "false",
	       to_ns(vmm, touch->result->touch_tsc), to_ns(vmm, touch->result->done_tsc));
}

uint64_t report(struct vmm *vmm)
{
	size_t count;
	_cleanup_free_ struct touch *touches = collect(vmm, &count);
	uint64_t pages = 0, absent = 0, wrong = 0;

	for (size_t i = 0; i < count; i++) {
		const struct touch *touch = &touches[i];

		if (!vmm->options.quiet)
			print_touch(vmm, touch);
		if (!vmm->touched[touch->page]) {
			pages++;
			absent += !vmm->present[touch->page];
		}
		vmm->touched[touch->page] = 1;
		if (touch->kind == TOUCH_WRITE)
			vmm->writers[touch->page] |= (unsigned char)(1u << touch->vcpu);
		wrong += !saw_right(vmm, touch);
	}
	for (uint64_t page = 0; page < vmm->pages; page++)
		if (vmm->touched[page])
			wrong += !is_right(vmm, page);
	printf("{\"event\":\"end\",\"touches\":%zu,\"pages\":%" PRIu64 ",\"absent\":%" PRIu64 ",\"wrong\":%" PRIu64
	       ",\"start_ns\":%" PRIu64 ",\"end_ns\":%" PRIu64 "}\n",
	       count, pages, absent, wrong, vmm->start.ns, vmm->end.ns);
	return wrong;
}
