/* The guest's half of vmm.h: reads, writes and removals of pages, and the rule for what each page may show at each time. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/vmm.h"

#define SHOWS_MASK 0xffu
#define GENERATION 0x100u

static uint64_t guest_word(const struct vmm_region *region, uint64_t page, unsigned word)
{
	return (mix64((uintptr_t)region->address + page) ^ word) | 1ull << 63 | 1;
}

/*
 * The state is read before and after the words: one that did not change says exactly what they may be. Between two states
 * anything that came up since is allowed, but the template's bytes never come back once a page has been given up.
 */
bool vmm_page_is_right(struct vmm *vmm, struct vmm_region *region, uint64_t page, char *why, size_t why_size)
{
	const _Atomic uint64_t *at = (const _Atomic uint64_t *)(region->address + page * PAGE);
	uint64_t image_page = region->offset / PAGE + page;
	uint64_t words[PAGE / 8];

	uint32_t before = atomic_load(&region->shows[page]);
	for (unsigned i = 0; i < PAGE / 8; i++)
		words[i] = atomic_load_explicit(&at[i], memory_order_relaxed);
	atomic_thread_fence(memory_order_seq_cst);
	uint32_t after = atomic_load(&region->shows[page]);

	uint32_t may = before & SHOWS_MASK;
	if (before != after)
		may |= (after & ~SHOWS_TEMPLATE & SHOWS_MASK) | SHOWS_ZERO | SHOWS_GUEST;
	for (unsigned i = 0; i < PAGE / 8; i++) {
		uint64_t template = test_image_word(vmm->image, image_page, i);

		if (((may & SHOWS_TEMPLATE) && words[i] == template) || ((may & SHOWS_ZERO) && words[i] == 0) ||
		    ((may & SHOWS_GUEST) && words[i] == guest_word(region, page, i)))
			continue;
		if (why)
			snprintf(why, why_size,
				 "region %u page %" PRIu64 " (image page %" PRIu64 ") word %u is %#" PRIx64
				 "%s; it may be%s%s%s (template %#" PRIx64 ")",
				 (unsigned)(region - vmm->regions), page, image_page, i, words[i],
				 words[i] == 0		? ", zero"
				 : words[i] == template ? ", the template's bytes after removal"
							: "",
				 may & SHOWS_TEMPLATE ? " the template's" : "", may & SHOWS_ZERO ? " zero" : "",
				 may & SHOWS_GUEST ? " the guest's own" : "", template);
		return false;
	}
	atomic_fetch_add(&vmm->reads, 1);
	return true;
}

void vmm_check_page(struct vmm *vmm, struct vmm_region *region, uint64_t page)
{
	char why[400];

	if (!vmm_page_is_right(vmm, region, page, why, sizeof why))
		client_fail(vmm->self, "%s", why);
}

void vmm_check_all(struct vmm *vmm)
{
	for (unsigned i = 0; i < vmm->region_count; i++)
		for (uint64_t page = 0; page < vmm_pages(&vmm->regions[i]); page++)
			vmm_check_page(vmm, &vmm->regions[i], page);
}

static void check_shuffled(struct vmm *vmm, unsigned index, void *data)
{
	struct random random = random_from(*(uint64_t *)data * 64 + index);
	_cleanup_free_ uint32_t *regions = malloc(vmm->region_count * sizeof *regions);

	random_order(&random, regions, vmm->region_count);
	for (unsigned i = 0; i < vmm->region_count; i++) {
		struct vmm_region *region = &vmm->regions[regions[i]];
		uint32_t count = (uint32_t)vmm_pages(region);
		_cleanup_free_ uint32_t *pages = malloc(count * sizeof *pages);

		random_order(&random, pages, count);
		for (uint32_t p = 0; p < count; p++)
			vmm_check_page(vmm, region, pages[p]);
	}
}

void vmm_check_all_shuffled(struct vmm *vmm, unsigned threads, uint64_t salt)
{
	vmm_threads(vmm, threads, check_shuffled, &salt);
}

void vmm_remove(struct vmm *vmm, struct vmm_region *region, uint64_t page, uint64_t count)
{
	for (uint64_t p = page; p < page + count; p++) {
		uint32_t now = atomic_load(&region->shows[p]);

		atomic_store(&region->shows[p], (now & ~SHOWS_MASK) + GENERATION + ((now & SHOWS_MASK) | SHOWS_ZERO));
	}
	client_require(vmm->self, madvise(region->address + page * PAGE, count * PAGE, MADV_DONTNEED) == 0,
		       "madvise(MADV_DONTNEED): %s", strerror(errno));
	for (uint64_t p = page; p < page + count; p++)
		atomic_store(&region->shows[p],
			     (atomic_load(&region->shows[p]) & ~SHOWS_MASK) + GENERATION + SHOWS_ZERO);
}

void vmm_write_page(struct vmm *vmm, struct vmm_region *region, uint64_t page)
{
	_Atomic uint64_t *at = (_Atomic uint64_t *)(region->address + page * PAGE);
	uint32_t now = atomic_load(&region->shows[page]);

	(void)vmm;
	atomic_store(&region->shows[page], (now & ~SHOWS_MASK) + GENERATION + ((now & SHOWS_MASK) | SHOWS_GUEST));
	for (unsigned i = 0; i < PAGE / 8; i++)
		atomic_store_explicit(&at[i], guest_word(region, page, i), memory_order_relaxed);
	atomic_store(&region->shows[page], (atomic_load(&region->shows[page]) & ~SHOWS_MASK) + GENERATION + SHOWS_GUEST);
}

static _Thread_local sigjmp_buf bus_return;
static _Thread_local volatile sig_atomic_t bus_expected;

static void on_bus(int signal_number)
{
	if (bus_expected)
		siglongjmp(bus_return, 1);
	signal(signal_number, SIG_DFL);
	raise(signal_number);
}

bool vmm_touch_raises(struct vmm *vmm, struct vmm_region *region, uint64_t page)
{
	struct sigaction action = { .sa_handler = on_bus, .sa_flags = SA_NODEFER };

	client_require(vmm->self, sigaction(SIGBUS, &action, NULL) == 0, "sigaction: %s", strerror(errno));
	if (sigsetjmp(bus_return, 1)) {
		bus_expected = 0;
		return true;
	}
	bus_expected = 1;
	(void)*(volatile char *)(region->address + page * PAGE);
	bus_expected = 0;
	return false;
}

uint64_t vmm_present_count(struct vmm *vmm, const struct vmm_region *region)
{
	_cleanup_close_ int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t count = 0, entries[512];
	uint64_t pages = vmm_pages(region);

	client_require(vmm->self, fd >= 0, "/proc/self/pagemap: %s", strerror(errno));
	for (uint64_t done = 0; done < pages; done += 512) {
		size_t n = pages - done < 512 ? pages - done : 512;
		off_t at = (off_t)(((uintptr_t)region->address / PAGE + done) * 8);

		client_require(vmm->self, pread(fd, entries, n * 8, at) == (ssize_t)(n * 8), "pagemap: %s",
			       strerror(errno));
		for (size_t i = 0; i < n; i++)
			count += entries[i] >> 63;
	}
	return count;
}

bool vmm_is_present(struct vmm *vmm, const struct vmm_region *region, uint64_t page)
{
	struct vmm_region one = *region;

	one.address += page * PAGE;
	one.size = PAGE;
	return vmm_present_count(vmm, &one) == 1;
}
