/*
 * Guests at random: several threads read, write, give back, move and split memory of small and huge pages, while prefetch runs again and again
 * and the image leaves memory. FAULTLINE_TEST_SEED and FAULTLINE_TEST_SCALE make other and longer runs of it.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/client.h"
#include "integration/harness/huge.h"
#include "integration/harness/list.h"
#include "integration/harness/server.h"
#include "uffd/abi.h"

#define SMALL	   (HUGE / PAGE)
#define IMAGE_SIZE (16 * HUGE - 3 * PAGE - 77)
#define THREADS	   4
#define REGIONS	   5
#define HOLEY	   4  /* the region that loses pages by munmap; the others move */
#define BLOCK	   16 /* small pages that belong together to one thread */
/* For all regions, and what threads hold that are in the middle of reading or giving back a page that somebody else asks for anew. */
#define HUGE_NEEDED  (10 + THREADS)
#define LIST_ENTRIES 60

enum { COUNT_ACTIONS, COUNT_MOVES, COUNT_REMOVALS, COUNT_UNMAPS };

struct guest {
	char socket[SOCKET_PATH_MAX];
	char list[160];
	struct test_image image;
	uint64_t salt;
	unsigned actions; /* of each thread */
	bool moves;	  /* negotiates the events for it */
};

/* What the threads of one guest share. A region's lock is held shared to use it, and exclusively to move it or to cut pieces out. */
struct scene {
	const struct guest *guest;
	pthread_rwlock_t locks[REGIONS];
	pthread_mutex_t map_lock; /* held while memory is away from where it belongs, and somebody else's could be put there */
	_Atomic uint64_t *count;
};

static const struct {
	bool huge;
	enum huge_kind kind;
	uint64_t size, offset;
} layout[REGIONS] = {
	{ true, HUGE_ANONYMOUS, 6 * HUGE, 0 },	      { false, 0, 5 * HUGE, 4 * HUGE + 5 * PAGE },
	{ true, HUGE_MEMFD, 4 * HUGE, 12 * HUGE },    { false, 0, 40 * PAGE, 3 * PAGE },
	{ false, 0, 2 * HUGE, 10 * HUGE - 7 * PAGE },
};

static void start_vmm(struct vmm *vmm, struct client_self *self, const struct guest *guest)
{
	struct vmm_form form = { 0 };

	vmm_init(vmm, self, &guest->image);
	for (unsigned i = 0; i < REGIONS; i++) {
		if (layout[i].huge)
			vmm_add_huge_region(vmm, layout[i].kind, layout[i].size, layout[i].offset);
		else
			vmm_add_region(vmm, layout[i].size, layout[i].offset);
	}
	if (guest->moves)
		form.features = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP;
	vmm_start(vmm, guest->socket, form);
}

/* Pages that are given back together at least. */
static uint64_t unit_of(const struct vmm_region *region)
{
	return region->page_size / PAGE;
}

/* Pages that belong to one thread together. */
static uint64_t block_of(const struct vmm_region *region)
{
	return region->page_size == HUGE ? SMALL : BLOCK;
}

/* A random page that is this thread's to change. */
static uint64_t own_page(const struct vmm_region *region, unsigned index, struct random *random)
{
	uint64_t block = block_of(region), blocks = vmm_pages(region) / block;
	uint64_t mine = random_below(random, (blocks + THREADS - 1 - index) / THREADS ?: 1) * THREADS + index;

	return mine < blocks ? mine * block + random_below(random, block) : UINT64_MAX;
}

/* Unmapped pages show nothing. */
static bool is_mapped(const struct vmm_region *region, uint64_t page)
{
	return atomic_load(&region->shows[page]) & 0xff;
}

static void read_some(struct vmm *vmm, struct vmm_region *region, struct random *random)
{
	uint64_t page = random_below(random, vmm_pages(region)), count = random_below(random, 4) ? 1 : 30;

	for (uint64_t i = page; i < page + count && i < vmm_pages(region); i++)
		if (is_mapped(region, i))
			vmm_check_page(vmm, region, i);
}

static void remove_some(struct vmm *vmm, struct vmm_region *region, uint64_t page, struct random *random)
{
	uint64_t unit = unit_of(region), end = (page / block_of(region) + 1) * block_of(region);
	uint64_t first = page / unit * unit, count = unit == 1 ? 1 + random_below(random, end - page) : unit;

	for (uint64_t i = first; i < first + count; i++)
		if (!is_mapped(region, i))
			return;
	vmm_remove(vmm, region, first, count);
	if (random_below(random, 2))
		vmm_check_page(vmm, region, page);
}

/* Through the kernel, without the region's lock: it may be moving, and a fault may be under way where it was or will be. */
static void touch_blindly(const struct vmm_region *region, struct random *random)
{
	char bytes[8];
	struct iovec local = { bytes, sizeof bytes };

	for (unsigned i = 0; i < 6; i++) {
		char *address = __atomic_load_n(&region->address, __ATOMIC_RELAXED);
		struct iovec remote = { address + random_below(random, vmm_pages(region)) * PAGE, sizeof bytes };

		process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
	}
}

/* Splits the mapping, and lets the pieces grow together again. */
static void split(struct vmm *vmm, const struct vmm_region *region, struct random *random)
{
	uint64_t unit = unit_of(region), units = vmm_pages(region) / unit, first = random_below(random, units);
	uint64_t count = 1 + random_below(random, units - first);
	char *address = region->address + first * unit * PAGE;

	for (unsigned i = 0; i < 2; i++)
		client_require(vmm->self,
			       mprotect(address, count * unit * PAGE, PROT_READ | PROT_WRITE | (i ? 0 : PROT_EXEC)) == 0,
			       "mprotect: %s", strerror(errno));
}

/* What the guest wrote is told by where it stands, so that it can't move along. */
static void remove_written(struct vmm *vmm, struct vmm_region *region)
{
	uint64_t unit = unit_of(region);

	for (uint64_t page = 0; page < vmm_pages(region); page += unit) {
		bool written = false;

		for (uint64_t i = page; i < page + unit; i++)
			written |= (atomic_load(&region->shows[i]) & SHOWS_GUEST) != 0;
		if (written)
			vmm_remove(vmm, region, page, unit);
	}
}

/* An address that the region fits to, with nothing there. */
static char *find_place(struct vmm *vmm, uint64_t size, void **ret_area)
{
	void *area = mmap(NULL, size + 2 * HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	client_require(vmm->self, area != MAP_FAILED, "no address space");
	*ret_area = area;
	return (char *)(((uintptr_t)area + HUGE - 1) & ~(HUGE - 1));
}

/* In halves where the memory is in several mappings, which one call can't move. */
static void move_to(struct vmm *vmm, char *from, char *to, uint64_t units, uint64_t unit)
{
	uint64_t size = units * unit, half = units / 2;
	void *p = mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to);

	if (p == to)
		return;
	client_require(vmm->self, errno == EFAULT && half > 0, "mremap: %s", strerror(errno));
	move_to(vmm, from, to, half, unit);
	move_to(vmm, from + half * unit, to + half * unit, units - half, unit);
}

/* Moves the whole region, or a part of it away and back again. The region's lock is held exclusively. */
static void move(struct vmm *vmm, struct vmm_region *region, struct random *random)
{
	uint64_t unit = unit_of(region), units = vmm_pages(region) / unit;
	void *area;
	char *to = find_place(vmm, region->size, &area);

	if (random_below(random, 2)) {
		remove_written(vmm, region);
		move_to(vmm, region->address, to, units, unit * PAGE);
		__atomic_store_n(&region->address, to, __ATOMIC_RELAXED);
		return;
	}
	uint64_t first = random_below(random, units), count = 1 + random_below(random, units - first);
	char *part = region->address + first * unit * PAGE;

	move_to(vmm, part, to, count, unit * PAGE);
	(void)*(volatile char *)(to + random_below(random, count * unit) * PAGE);
	move_to(vmm, to, part, count, unit * PAGE);
	munmap(area, region->size + 2 * HUGE);
}

/* Takes pages out for good, a quarter of the region at most. */
static void cut(struct vmm *vmm, struct scene *scene, struct vmm_region *region, struct random *random)
{
	uint64_t page = random_below(random, vmm_pages(region) - 4), count = 1 + random_below(random, 4);

	if (atomic_fetch_add(&scene->count[COUNT_UNMAPS], 1) > vmm_pages(region) / 16)
		return;
	client_require(vmm->self, munmap(region->address + page * PAGE, count * PAGE) == 0, "munmap: %s",
		       strerror(errno));
	for (uint64_t i = page; i < page + count; i++)
		atomic_store(&region->shows[i], 0);
}

static void change_map(struct vmm *vmm, struct scene *scene, unsigned which, struct random *random)
{
	struct vmm_region *region = &vmm->regions[which];

	if (!scene->guest->moves)
		return;
	atomic_fetch_add(&scene->count[COUNT_MOVES], 1);
	pthread_rwlock_wrlock(&scene->locks[which]);
	pthread_mutex_lock(&scene->map_lock);
	if (which == HOLEY)
		cut(vmm, scene, region, random);
	else
		move(vmm, region, random);
	pthread_mutex_unlock(&scene->map_lock);
	pthread_rwlock_unlock(&scene->locks[which]);
}

static void act(struct vmm *vmm, struct scene *scene, unsigned index, struct random *random)
{
	unsigned which = (unsigned)random_below(random, REGIONS), choice = (unsigned)random_below(random, 100);
	struct vmm_region *region = &vmm->regions[which];

	if (choice < 3) {
		change_map(vmm, scene, which, random);
		return;
	}
	if (choice < 15) {
		touch_blindly(region, random);
		return;
	}
	pthread_rwlock_rdlock(&scene->locks[which]);
	uint64_t own = own_page(region, index, random);
	if (choice < 30 && own != UINT64_MAX) {
		remove_some(vmm, region, own, random);
		atomic_fetch_add(&scene->count[COUNT_REMOVALS], 1);
	} else if (choice < 40 && own != UINT64_MAX) {
		if (is_mapped(region, own))
			vmm_write_page(vmm, region, own);
	} else if (choice < 43 && which != HOLEY) {
		split(vmm, region, random);
	} else {
		read_some(vmm, region, random);
	}
	pthread_rwlock_unlock(&scene->locks[which]);
}

static void thread_body(struct vmm *vmm, unsigned index, void *data)
{
	struct scene *scene = data;
	struct random random = random_from(scene->guest->salt * 16 + index);

	for (unsigned i = 0; i < scene->guest->actions; i++) {
		act(vmm, scene, index, &random);
		atomic_fetch_add(&scene->count[COUNT_ACTIONS], 1);
	}
}

static void check_part(struct vmm *vmm, unsigned index, void *data)
{
	(void)data;
	for (unsigned i = 0; i < vmm->region_count; i++)
		for (uint64_t page = index; page < vmm_pages(&vmm->regions[i]); page += THREADS)
			if (is_mapped(&vmm->regions[i], page))
				vmm_check_page(vmm, &vmm->regions[i], page);
}

static void check_all(struct vmm *vmm)
{
	vmm_threads(vmm, THREADS, check_part, NULL);
}

static void guest_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct scene scene = { .guest = guest, .map_lock = PTHREAD_MUTEX_INITIALIZER, .count = self->shared->counter };
	struct vmm vmm;

	/* Writers first, or nothing would ever move. */
	pthread_rwlockattr_t attr;
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	for (unsigned i = 0; i < REGIONS; i++)
		pthread_rwlock_init(&scene.locks[i], &attr);
	start_vmm(&vmm, self, guest);
	client_say(self, 'c');
	vmm_threads(&vmm, THREADS, thread_body, &scene);
	check_all(&vmm);
	client_say(self, 'd');
	client_hear(self, 'q');
	check_all(&vmm);
}

/* ---- what goes on outside the guests ---- */

static void write_random_list(const struct guest *guest, struct random *random)
{
	struct list_entry entries[LIST_ENTRIES];

	for (unsigned i = 0; i < LIST_ENTRIES; i++) {
		uint64_t region = random_below(random, REGIONS);

		entries[i] = (struct list_entry){ region, random_below(random, layout[region].size / PAGE) * PAGE };
	}
	list_write(guest->list, entries, LIST_ENTRIES);
}

/* Prefetch over and over, until the client has done what it had to do. */
static void disturb(struct test_server *server, const struct guest *guest, const char *id, struct client *client,
		    uint64_t actions)
{
	struct random random = random_from(guest->salt + 1000);
	uint64_t deadline = deadline_in(WAIT_S);

	/* One that hangs is waited for by the caller, who says so. */
	for (unsigned i = 0;
	     client_counter(client, COUNT_ACTIONS) < actions && !client_has_ended(client) && deadline_ms(deadline); i++) {
		if (i % 8 == 7)
			test_image_evict(&guest->image);
		write_random_list(guest, &random);
		struct test_result result = command(server, ARGS("fork", "prefetch", (char *)id, (char *)guest->list));
		if (result.exit_code != 0)
			fail_msg("prefetching for %s: %s%s", id, result.out, result.err);
		result_clear(&result);
	}
}

static void run_guests(struct test_server *server, const char *inject, bool moves, unsigned rounds)
{
	struct guest guests[2] = { { .moves = moves }, { .moves = moves } };
	struct client *clients[2];

	huge_pool_set_free(2 * HUGE_NEEDED);
	test_image_make(&guests[0].image, server->dir, "base", IMAGE_SIZE);
	template_add_inject(server, "base", &guests[0].image, inject);
	uint64_t sum = test_image_sum(&guests[0].image);
	guests[1].image = guests[0].image;
	for (unsigned round = 0; round < rounds; round++) {
		for (unsigned i = 0; i < 2; i++) {
			char id[32];

			guests[i].salt = round * 2 + i;
			guests[i].actions = inject ? 200 : 1500;
			snprintf(guests[i].list, sizeof guests[i].list, "%s/list%u.hpl", server->dir, i);
			snprintf(id, sizeof id, "g%u-%u", round, i);
			fork_create(server, "base", id, NULL, guests[i].socket);
			clients[i] = client_start(id, guest_body, &guests[i]);
			client_await(clients[i], 'c');
			fork_wait(server, id, "connected");
		}
		for (unsigned i = 0; i < 2; i++)
			disturb(server, &guests[i], clients[i]->name, clients[i], (uint64_t)guests[i].actions * THREADS);
		for (unsigned i = 0; i < 2; i++)
			client_await(clients[i], 'd');
		for (unsigned i = 0; i < 2; i++) {
			assert_true(!moves || client_counter(clients[i], COUNT_MOVES) > 0);
			assert_true(client_counter(clients[i], COUNT_REMOVALS) > 0);
			client_tell(clients[i], 'q');
			client_join(clients[i]);
		}
		huge_pool_await_free(2 * HUGE_NEEDED);
	}
	assert_true(sum == test_image_sum(&guests[0].image));
}

static void test_touches_removals_and_prefetch(void **state)
{
	run_guests(*state, NULL, false, scaled(4));
}

static void test_and_memory_that_moves(void **state)
{
	run_guests(*state, NULL, true, scaled(4));
}

static void test_and_a_slow_image(void **state)
{
	run_guests(*state, "delay=200us", true, scaled(2));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_touches_removals_and_prefetch),
		SERVED(test_and_memory_that_moves),
		SERVED(test_and_a_slow_image),
	};

	huge_require();
	return harness_run(tests);
}
