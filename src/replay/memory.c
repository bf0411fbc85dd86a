/* The memory of a replaying guest: served, mapped, or there before. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "replay/connect.h"
#include "replay/content.h"
#include "replay/internal.h"

static int map_failed(uint64_t size, struct error *err)
{
	return error_set(err, -errno, "guest_failed", "cannot map the guest's memory, %" PRIu64 " MiB: %s", size >> 20,
			 strerror(errno));
}

static int map_empty(struct memory *memory, struct error *err)
{
	void *p = mmap(NULL, memory->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return map_failed(memory->size, err);
	/* A page each, whatever the machine's policy on huge ones. */
	madvise(p, memory->size, MADV_NOHUGEPAGE);
	memory->base = p;
	return 0;
}

/* Twice the same pages: what is put into one mapping is in memory for the other, but not mapped there. */
static int map_shared(struct memory *memory, void **ret_prefetched, struct error *err)
{
	_cleanup_close_ int fd = memfd_create("replay", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)memory->size) < 0)
		return map_failed(memory->size, err);
	void *prefetched = mmap(NULL, memory->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	void *touched = mmap(NULL, memory->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (prefetched == MAP_FAILED || touched == MAP_FAILED)
		return map_failed(memory->size, err);
	memory->base = touched;
	*ret_prefetched = prefetched;
	return 0;
}

static int map_image(struct memory *memory, const char *path, struct error *err)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return error_set(err, -errno, "guest_failed", "cannot open the memory image %s: %s", path,
				 strerror(errno));
	void *p = mmap(NULL, memory->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
	if (p == MAP_FAILED)
		return map_failed(memory->size, err);
	memory->base = p;
	return 0;
}

/* Pages without data are written to as well: else they would be the kernel's one zero page, and a fault when they are written. */
static void fill_page(const struct replay_config *config, char *base, uint64_t page)
{
	volatile uint64_t *words = (volatile uint64_t *)(base + page * TRACE_PAGE);

	for (unsigned i = 0; i < CONTENT_WORDS; i++)
		words[i] = content_expected(config->image, config->seed, page, i);
}

static void fill(const struct replay_config *config, char *base)
{
	for (uint64_t page = 0; page < config->image->pages; page++)
		if (trace_image_has_data(config->image, page))
			fill_page(config, base, page);
	for (size_t i = 0; i < config->trace->count; i++)
		if (!trace_image_has_data(config->image, config->trace->touches[i].page))
			fill_page(config, base, config->trace->touches[i].page);
}

int memory_open(const struct replay_config *config, struct memory *ret, uint64_t *ret_handshake_ns, struct error *err)
{
	struct memory memory = { .size = config->image->pages * TRACE_PAGE, .connection = -1 };
	void *prefetched = NULL;
	int r;

	if (config->memory == REPLAY_PLAIN) {
		*ret_handshake_ns = now_ns();
		r = map_image(&memory, config->template_path, err);
	} else if (config->memory == REPLAY_SHARED) {
		r = map_shared(&memory, &prefetched, err);
	} else {
		r = map_empty(&memory, err);
	}
	if (r >= 0 && config->memory == REPLAY_PRESENT)
		fill(config, memory.base);
	if (config->memory != REPLAY_PLAIN)
		*ret_handshake_ns = now_ns();
	if (r >= 0 && replay_is_served(config)) {
		/* In the order of REGION_PREFETCHED and REGION_TOUCHED, where there are both. */
		void *mappings[] = { prefetched ?: memory.base, memory.base };

		r = connect_memory(config->socket, config->answers, mappings, prefetched ? 2 : 1, memory.size,
				   &memory.connection, err);
	}
	if (r < 0)
		return r;
	*ret = memory;
	return 0;
}
