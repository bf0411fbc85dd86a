#include "integration/harness/chaos.h"

#include <pthread.h>

/* Pages that belong together to one thread. */
#define BLOCK 16

static void remove_some(struct vmm *vmm, const struct chaos *chaos, unsigned index, struct random *random)
{
	struct vmm_region *region = &vmm->regions[random_below(random, vmm->region_count)];
	uint64_t blocks = vmm_pages(region) / BLOCK;

	if (blocks < chaos->threads)
		return;
	uint64_t block = random_below(random, blocks / chaos->threads) * chaos->threads + index;
	uint64_t first = random_below(random, BLOCK), count = 1 + random_below(random, BLOCK - first);
	vmm_remove(vmm, region, block * BLOCK + first, count);
	vmm_check_page(vmm, region, block * BLOCK + first + random_below(random, count));
}

static void write_one(struct vmm *vmm, const struct chaos *chaos, unsigned index, struct random *random)
{
	struct vmm_region *region = &vmm->regions[random_below(random, vmm->region_count)];
	uint64_t blocks = vmm_pages(region) / BLOCK;

	if (blocks < chaos->threads)
		return;
	uint64_t block = random_below(random, blocks / chaos->threads) * chaos->threads + index;
	uint64_t page = block * BLOCK + random_below(random, BLOCK);
	vmm_write_page(vmm, region, page);
	vmm_check_page(vmm, region, page);
}

static void chaos_thread(struct vmm *vmm, unsigned index, void *data)
{
	struct chaos *chaos = data;
	struct random random = random_from(chaos->salt * 100 + index);

	for (unsigned i = 0; (!chaos->rounds || i < chaos->rounds) && !atomic_load(&vmm->stop); i++) {
		uint64_t choice = random_below(&random, 100);

		if (choice < chaos->removals_of_100) {
			remove_some(vmm, chaos, index, &random);
		} else if (choice < chaos->removals_of_100 + chaos->writes_of_100) {
			write_one(vmm, chaos, index, &random);
		} else {
			struct vmm_region *region = &vmm->regions[random_below(&random, vmm->region_count)];

			vmm_check_page(vmm, region, random_below(&random, vmm_pages(region)));
		}
		if (chaos->progress)
			atomic_fetch_add(chaos->progress, 1);
	}
}

void chaos_run(struct vmm *vmm, struct chaos *chaos)
{
	vmm_threads(vmm, chaos->threads, chaos_thread, chaos);
}

struct listener {
	struct vmm *vmm;
	char letter;
};

static void *listen_for(void *data)
{
	struct listener *listener = data;

	client_hear(listener->vmm->self, listener->letter);
	atomic_store(&listener->vmm->stop, true);
	return NULL;
}

void chaos_run_until(struct vmm *vmm, struct chaos *chaos, char letter)
{
	struct listener listener = { vmm, letter };
	pthread_t thread;

	chaos->rounds = 0;
	client_require(vmm->self, pthread_create(&thread, NULL, listen_for, &listener) == 0, "no thread");
	chaos_run(vmm, chaos);
	pthread_join(thread, NULL);
	atomic_store(&vmm->stop, false);
}
