#include "vmm.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"

const struct slot *memory_slot(const struct vmm *vmm, uint64_t page)
{
	return page * PAGE_SIZE < vmm->slots[0].size ? &vmm->slots[0] : &vmm->slots[1];
}

uint64_t memory_guest_address(const void *data, uint64_t page)
{
	const struct slot *slot = memory_slot(data, page);

	return slot->guest_address + page * PAGE_SIZE - slot->offset;
}

const unsigned char *memory_of(const struct vmm *vmm, uint64_t page)
{
	const struct slot *slot = memory_slot(vmm, page);

	return slot->memory + (page * PAGE_SIZE - slot->offset);
}

void memory_open_image(struct vmm *vmm)
{
	struct stat st;

	vmm->image = open(vmm->options.image, O_RDONLY | O_CLOEXEC);
	if (vmm->image < 0 || fstat(vmm->image, &st) < 0)
		fail("%s: %s", vmm->options.image, strerror(errno));
	vmm->pages = (uint64_t)st.st_size / PAGE_SIZE;
	if (st.st_size == 0 || (uint64_t)st.st_size % PAGE_SIZE)
		fail("%s: its size, %jd bytes, is no multiple of %" PRIu64, vmm->options.image, (intmax_t)st.st_size,
		     PAGE_SIZE);
	if (vmm->script.page_end > vmm->pages)
		fail("the script touches page %" PRIu64 ", and %s has only %" PRIu64, vmm->script.page_end - 1,
		     vmm->options.image, vmm->pages);
	if (vmm->options.split >= vmm->pages)
		fail("--split %" PRIu64 " leaves nothing of %" PRIu64 " pages for the second slot", vmm->options.split,
		     vmm->pages);
}

void memory_lay_out(struct vmm *vmm)
{
	uint64_t size = vmm->pages * PAGE_SIZE, low = size;

	if (vmm->options.split)
		low = vmm->options.split * PAGE_SIZE;
	else if (low > GUEST_LOW_SIZE)
		low = GUEST_LOW_SIZE;
	if (low > GUEST_LOW_SIZE || size - low > GUEST_HIGH_SIZE)
		fail("at most %llu MiB of the image fit in the first slot, and %llu in the second",
		     GUEST_LOW_SIZE >> 20, GUEST_HIGH_SIZE >> 20);
	vmm->slots[0] = (struct slot){ GUEST_LOW, 0, low, NULL };
	vmm->slots[1] = (struct slot){ GUEST_HIGH, low, size - low, NULL };
	vmm->slot_count = low < size ? 2 : 1;
}

void memory_fill(struct vmm *vmm)
{
	struct faultline_error error;
	int r;

	if (faultline_new(&vmm->client, &error) < 0)
		fail("%s", error.what);
	for (unsigned i = 0; i < vmm->slot_count; i++) {
		struct slot *slot = &vmm->slots[i];
		void *memory;

		if (faultline_map(vmm->client, slot->size, slot->offset, PAGE_SIZE, &memory, &error) < 0)
			fail("%s. %s", error.what, error.remedy);
		slot->memory = memory;
	}
	if (vmm->options.server)
		r = faultline_connect(vmm->client, vmm->options.socket, -1, 0, &error);
	else
		r = faultline_map_image(vmm->client, vmm->image, &error);
	vmm->connected_ns = now_ns();
	if (r == FAULTLINE_OK && vmm->options.wait_prefetched)
		r = faultline_wait_prefetched(vmm->client, -1, &error);
	if (r != FAULTLINE_OK)
		fail("%s. %s", error.what, error.remedy);
}

/* By the process's page table: asks without touching. */
void memory_note_present(struct vmm *vmm)
{
	_cleanup_close_ int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entries[512];

	if (pagemap < 0)
		fail("/proc/self/pagemap: %s", strerror(errno));
	for (uint64_t page = 0, got; page < vmm->pages; page += got) {
		const struct slot *slot = memory_slot(vmm, page);
		uint64_t left = (slot->offset + slot->size) / PAGE_SIZE - page;
		size_t want = (left < 512 ? left : 512) * sizeof *entries;
		uint64_t at = (uintptr_t)memory_of(vmm, page) / PAGE_SIZE * sizeof *entries;
		ssize_t r = pread(pagemap, entries, want, (off_t)at);

		if (r < (ssize_t)sizeof *entries)
			fail("reading /proc/self/pagemap: %s", r < 0 ? strerror(errno) : "it has ended");
		got = (uint64_t)r / sizeof *entries;
		for (uint64_t i = 0; i < got; i++)
			vmm->present[page + i] = entries[i] >> 63;
	}
}

void memory_read_image_page(const struct vmm *vmm, uint64_t page, uint64_t words[static PAGE_SIZE / 8])
{
	if (pread(vmm->image, words, PAGE_SIZE, (off_t)(page * PAGE_SIZE)) != (ssize_t)PAGE_SIZE)
		fail("reading page %" PRIu64 " of %s: %s", page, vmm->options.image, strerror(errno));
}

void memory_check_fetched_pages(const struct vmm *vmm)
{
	unsigned char first;

	for (unsigned i = 0; i < vmm->script.vcpu_count; i++)
		for (size_t k = 0; k < vmm->script.vcpus[i].count; k++) {
			const struct action *action = &vmm->script.vcpus[i].actions[k];

			if (action->kind != ACTION_TOUCH || action->touch != TOUCH_FETCH)
				continue;
			if (pread(vmm->image, &first, 1, (off_t)(action->value * PAGE_SIZE)) != 1 || first != 0xc3)
				fail("page %" PRIu64 " of %s can't be run: its first byte is not 0xc3", action->value,
				     vmm->options.image);
		}
}
