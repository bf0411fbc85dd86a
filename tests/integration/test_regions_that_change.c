/* VMMs that change their memory map under the server: unmap, move, protect, fork. Right bytes, or stopped with a reason. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/chaos.h"
#include "integration/harness/client.h"
#include "integration/harness/list.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"
#include "uffd/abi.h"

#define PAGES 256ul
#define ALL_EVENTS \
	(UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_FORK)

struct scene {
	char socket[SOCKET_PATH_MAX];
	char list[160]; /* all pages */
	struct test_image image;
	struct vmm_form form;
};

static void set_scene(struct test_server *server, struct scene *scene, uint64_t features)
{
	struct list_entry list[PAGES];

	*scene = (struct scene){ .form = { .features = features } };
	test_image_make(&scene->image, server->dir, "base", PAGES * PAGE);
	template_add(server, "base", &scene->image);
	template_add_inject(server, "slow", &scene->image, "delay=1ms");
	for (uint64_t i = 0; i < PAGES; i++)
		list[i] = (struct list_entry){ 0, i * PAGE };
	snprintf(scene->list, sizeof scene->list, "%s/all.hpl", server->dir);
	list_write(scene->list, list, PAGES);
}

static void start_vmm(struct vmm *vmm, struct client_self *self, struct scene *scene)
{
	vmm_init(vmm, self, &scene->image);
	vmm_start(vmm, scene->socket, scene->form);
}

static void check_range(struct vmm *vmm, struct vmm_region *region, uint64_t from, uint64_t to)
{
	for (uint64_t page = from; page < to; page++)
		vmm_check_page(vmm, region, page);
}

/* The region as it is found elsewhere now. */
static struct vmm_region moved(const struct vmm_region *region, char *address)
{
	struct vmm_region there = *region;

	there.address = address;
	return there;
}

static char *reserve(struct vmm *vmm, uint64_t pages)
{
	char *p = mmap(NULL, pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	client_require(vmm->self, p != MAP_FAILED, "no address space");
	return p;
}

/*
 * Runs BODY as a fork, which says 'c' when a prefetch of all pages may come, and hears 'p' after it. True: the server has
 * stopped it, with a reason.
 */
static bool run_or_stop(struct test_server *server, struct scene *scene, const char *template, const char *id,
			void (*body)(struct client_self *, void *))
{
	fork_create(server, template, id, NULL, scene->socket);
	struct client *client = client_start(id, body, scene);

	if (client_await_or_death(client, 'c')) {
		fork_wait(server, id, "connected");
		struct test_result result = command(server, ARGS("fork", "prefetch", (char *)id, scene->list));
		result_clear(&result);
		client_tell(client, 'p');
	}
	bool stopped = client_join_any(client);
	if (stopped)
		fork_expect_error(server, id, "gone", NULL);
	fork_check_good(server, "base", "beside", &scene->image);
	fork_wait(server, "beside", "gone");
	json_decref(command_ok(server, ARGS("fork", "remove", "beside")));
	return stopped;
}

/* The same for what is to be served to the end. */
static void run(struct test_server *server, struct scene *scene, const char *template, const char *id,
		void (*body)(struct client_self *, void *))
{
	if (!run_or_stop(server, scene, template, id, body))
		return;
	_cleanup_free_ char *error = fork_string(server, id, "error");
	fail_msg("the VMM of fork %s was stopped: %s", id, error);
}

/* ---- unmap ---- */

static void unmap_body(struct client_self *self, void *data)
{
	struct vmm vmm;

	start_vmm(&vmm, self, data);
	struct vmm_region *region = &vmm.regions[0];
	check_range(&vmm, region, 90, 110);
	/* Once over pages that are there and pages that aren't, once at the end. */
	client_require(self, munmap(region->address + 100 * PAGE, 50 * PAGE) == 0, "munmap: %s", strerror(errno));
	client_require(self, munmap(region->address + 250 * PAGE, 6 * PAGE) == 0, "munmap: %s", strerror(errno));
	check_range(&vmm, region, 50, 100);
	check_range(&vmm, region, 150, 160);
	/* Other memory where the region was: none of the server's business. */
	char *other = mmap(region->address + 120 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	client_require(self, other != MAP_FAILED, "mmap: %s", strerror(errno));
	client_say(self, 'c');
	client_hear(self, 'p');
	for (unsigned i = 0; i < 4 * PAGE; i++)
		client_require(self, other[i] == 0, "memory of the VMM's own got bytes of the template");
	check_range(&vmm, region, 0, 100);
	check_range(&vmm, region, 150, 250);
}

static void test_unmap(void **state)
{
	struct scene scene;

	set_scene(*state, &scene, UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP);
	run(*state, &scene, "base", "told", unmap_body);
	scene.form.features = UFFD_FEATURE_EVENT_REMOVE;
	run(*state, &scene, "base", "untold", unmap_body);
	scene.form.features = ALL_EVENTS;
	run(*state, &scene, "slow", "told-slow", unmap_body);
	scene.form = (struct vmm_form){ VMM_HYPEMAN, VMM_HYPEMAN, 0, 0 };
	run(*state, &scene, "base", "raw", unmap_body);
}

static void unmap_all_body(struct client_self *self, void *data)
{
	struct vmm vmm;

	start_vmm(&vmm, self, data);
	vmm_check_page(&vmm, &vmm.regions[0], 7);
	client_require(self, munmap(vmm.regions[0].address, PAGES * PAGE) == 0, "munmap: %s", strerror(errno));
	client_say(self, 'c');
	client_hear(self, 'p');
}

static void test_unmap_everything(void **state)
{
	struct scene scene;

	set_scene(*state, &scene, ALL_EVENTS);
	run(*state, &scene, "base", "told", unmap_all_body);
	scene.form.features = UFFD_FEATURE_EVENT_REMOVE;
	run(*state, &scene, "base", "untold", unmap_all_body);
}

/* ---- move ---- */

static void move_body(struct client_self *self, void *data)
{
	struct vmm vmm;

	start_vmm(&vmm, self, data);
	struct vmm_region *region = &vmm.regions[0];
	char *elsewhere = reserve(&vmm, 100);

	check_range(&vmm, region, 0, 60);
	vmm_remove(&vmm, region, 55, 10);
	/* Pages that are there, pages given back, pages never touched. */
	void *p = mremap(region->address + 40 * PAGE, 60 * PAGE, 60 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
			 elsewhere + 20 * PAGE);
	client_require(self, p == elsewhere + 20 * PAGE, "mremap: %s", strerror(errno));
	struct vmm_region there = moved(region, elsewhere - 20 * PAGE);
	check_range(&vmm, &there, 40, 80);
	check_range(&vmm, region, 30, 40);
	vmm_remove(&vmm, &there, 75, 10);
	client_say(self, 'c');
	client_hear(self, 'p');
	check_range(&vmm, &there, 40, 100);
	check_range(&vmm, region, 0, 40);
	check_range(&vmm, region, 100, PAGES);
	/* And back. */
	p = mremap(elsewhere + 20 * PAGE, 60 * PAGE, 60 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
		   region->address + 40 * PAGE);
	client_require(self, p == region->address + 40 * PAGE, "mremap: %s", strerror(errno));
	check_range(&vmm, region, 0, PAGES);
}

static void test_move(void **state)
{
	struct scene scene;

	set_scene(*state, &scene, UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_REMAP);
	run(*state, &scene, "base", "told", move_body);
	scene.form.features = ALL_EVENTS;
	run(*state, &scene, "base", "told-all", move_body);
	run(*state, &scene, "slow", "slow", move_body);
}

/*
 * Pages 100 to 129 come to stand where 50 to 79 were, before anything was touched: in the guest's eyes that is one mapping still, in the list one run.
 */
static void move_onto_body(struct client_self *self, void *data)
{
	struct vmm vmm;

	start_vmm(&vmm, self, data);
	struct vmm_region *region = &vmm.regions[0];
	char *onto = region->address + 50 * PAGE;
	void *p = mremap(region->address + 100 * PAGE, 30 * PAGE, 30 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, onto);

	client_require(self, p == onto, "mremap: %s", strerror(errno));
	struct vmm_region there = moved(region, region->address - 50 * PAGE);
	client_say(self, 'c');
	client_hear(self, 'p');
	check_range(&vmm, &there, 100, 130);
	check_range(&vmm, region, 0, 50);
	check_range(&vmm, region, 80, 100);
	check_range(&vmm, region, 130, PAGES);
}

static void test_move_onto_others(void **state)
{
	struct scene scene;

	set_scene(*state, &scene, ALL_EVENTS);
	run(*state, &scene, "base", "onto", move_onto_body);
	run(*state, &scene, "slow", "slow-onto", move_onto_body);
}

/* Keeps moving a block while others read, remove and write the rest, and a prefetch goes over all of it. */
static void *keep_moving(void *data)
{
	struct vmm *vmm = data;
	struct vmm_region *region = &vmm->regions[1];
	char *elsewhere = reserve(vmm, vmm_pages(region)), *at = region->address, *to = elsewhere;
	uint64_t page = 0;

	while (!atomic_load(&vmm->stop)) {
		void *p = mremap(at, region->size, region->size, MREMAP_MAYMOVE | MREMAP_FIXED, to);

		client_require(vmm->self, p == to, "mremap: %s", strerror(errno));
		/* Back to the old place next time, unless another thread's memory has come there meanwhile. */
		to = mmap(at, region->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
		if (to == MAP_FAILED)
			to = reserve(vmm, vmm_pages(region));
		at = p;
		struct vmm_region now = moved(region, at);
		vmm_check_page(vmm, &now, page++ % vmm_pages(region));
		if (page % 5 == 0)
			vmm_remove(vmm, &now, page % 60, 2);
		vmm_check_page(vmm, &now, page * 7 % vmm_pages(region));
	}
	struct vmm_region now = moved(region, at);
	check_range(vmm, &now, 0, vmm_pages(region));
	return NULL;
}

static void moving_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct chaos chaos = { .threads = 2, .removals_of_100 = 3, .writes_of_100 = 3 };
	pthread_t mover;
	struct vmm vmm;

	vmm_init(&vmm, self, &scene->image);
	vmm_add_region(&vmm, (PAGES - 64) * PAGE, 0);
	vmm_add_region(&vmm, 64 * PAGE, (PAGES - 64) * PAGE);
	vmm_start(&vmm, scene->socket, scene->form);
	client_require(self, pthread_create(&mover, NULL, keep_moving, &vmm) == 0, "no thread");
	client_say(self, 'c');
	/* The readers know nothing of the block that moves. */
	vmm.region_count = 1;
	chaos_run_until(&vmm, &chaos, 'p');
	vmm.stop = true;
	pthread_join(mover, NULL);
	vmm_check_all(&vmm);
}

static void test_moving_all_the_time(void **state)
{
	struct test_server *server = *state;
	struct list_entry list[PAGES];
	struct scene scene;
	char id[24];

	set_scene(server, &scene, UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_REMAP);
	for (uint64_t i = 0; i < PAGES; i++)
		list[i] = i < PAGES - 64 ? (struct list_entry){ 0, i * PAGE }
					 : (struct list_entry){ 1, (i - (PAGES - 64)) * PAGE };
	list_write(scene.list, list, PAGES);
	for (unsigned i = 0; i < scaled(16); i++) {
		snprintf(id, sizeof id, "moving%u", i);
		run(server, &scene, i & 1 ? "slow" : "base", id, moving_body);
	}
}

static void resize_body(struct client_self *self, void *data)
{
	struct vmm vmm;

	start_vmm(&vmm, self, data);
	struct vmm_region *region = &vmm.regions[0];
	check_range(&vmm, region, 200, 230);
	void *p = mremap(region->address, PAGES * PAGE, 220 * PAGE, 0);
	client_require(self, p == region->address, "mremap to a smaller size: %s", strerror(errno));
	check_range(&vmm, region, 0, 100);
	client_say(self, 'c');
	client_hear(self, 'p');
	check_range(&vmm, region, 0, 220);
}

static void test_shrink(void **state)
{
	struct scene scene;

	set_scene(*state, &scene, ALL_EVENTS);
	run(*state, &scene, "base", "told", resize_body);
	scene.form.features = UFFD_FEATURE_EVENT_REMOVE;
	run(*state, &scene, "base", "untold", resize_body);
}

/* Memory that is registered, but in no region of the handshake: there is nothing right to be read there. */
static void more_than_said_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &scene->image);
	vmm_add_region(&vmm, PAGES * PAGE, 0);
	vmm_add_region(&vmm, 16 * PAGE, 0);
	vmm_make_uffd(&vmm, scene->form);
	vmm.region_count = 1;
	vmm_connect(&vmm, scene->socket);
	vmm_handshake(&vmm, scene->form);
	vmm_check_all(&vmm);
	(void)*(volatile char *)vmm.regions[1].address;
	client_fail(self, "memory that nobody knows of was supplied");
}

static void test_faults_outside_all_regions(void **state)
{
	struct test_server *server = *state;
	struct scene scene;

	set_scene(server, &scene, UFFD_FEATURE_EVENT_REMOVE);
	fork_create(server, "base", "more", NULL, scene.socket);
	/* It may neither hang nor go on. */
	client_join_killed(client_start("more", more_than_said_body, &scene));
	fork_expect_error(server, "more", "gone", "region");
	fork_check_good(server, "base", "beside", &scene.image);
}

/* ---- protect ---- */

static void protect_body(struct client_self *self, void *data)
{
	struct vmm vmm;

	start_vmm(&vmm, self, data);
	struct vmm_region *region = &vmm.regions[0];
	check_range(&vmm, region, 30, 40);
	/* Cuts the mapping into many: no call may go over their borders. */
	for (uint64_t page = 5; page + 3 <= PAGES; page += 10)
		client_require(self, mprotect(region->address + page * PAGE, 3 * PAGE, PROT_READ) == 0, "mprotect: %s",
			       strerror(errno));
	check_range(&vmm, region, 60, 90);
	client_require(self, mprotect(region->address + 200 * PAGE, 20 * PAGE, PROT_NONE) == 0, "mprotect: %s",
		       strerror(errno));
	client_say(self, 'c');
	client_hear(self, 'p');
	check_range(&vmm, region, 0, 200);
	client_require(self, mprotect(region->address, PAGES * PAGE, PROT_READ | PROT_WRITE) == 0, "mprotect: %s",
		       strerror(errno));
	check_range(&vmm, region, 0, PAGES);
	vmm_remove(&vmm, region, 100, 60);
	check_range(&vmm, region, 0, PAGES);
	self->shared->counter[0] = vmm_present_count(&vmm, region);
}

static void test_protect(void **state)
{
	struct scene scene;

	for (int style = 0; style < 2; style++) {
		const char *id = style ? "raw" : "ready-made";

		if (style == 0)
			set_scene(*state, &scene, 0);
		scene.form = (struct vmm_form){ .json = style, .fd = style };
		run(*state, &scene, "base", id, protect_body);
		/* The prefetch has reached every page that was not there. */
		assert_int_equal(fork_number(*state, id, "prefetched_pages") + fork_number(*state, id, "copied_pages"),
				 PAGES);
		assert_true(fork_number(*state, id, "prefetched_pages") >= 256 - 40 - 10);
	}
}

/* ---- fork ---- */

/* The child of a VMM has a userfaultfd of its own that only the server knows of: right bytes, SIGBUS, or stopped. */
static void child_of_vmm(struct vmm *vmm)
{
	unsigned raised = 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (uint64_t page = 0; page < PAGES; page++) {
		if (vmm_touch_raises(vmm, &vmm->regions[0], page)) {
			raised++;
			continue;
		}
		vmm_check_page(vmm, &vmm->regions[0], page);
	}
	vmm->self->shared->counter[1] = raised;
	_exit(0);
}

static void forking_body(struct client_self *self, void *data)
{
	struct vmm vmm;
	int status;

	start_vmm(&vmm, self, data);
	check_range(&vmm, &vmm.regions[0], 0, 50);
	pid_t child = fork();
	client_require(self, child >= 0, "fork: %s", strerror(errno));
	if (child == 0)
		child_of_vmm(&vmm);
	client_require(self, waitpid(child, &status, 0) == child, "waitpid: %s", strerror(errno));
	client_require(self, (WIFEXITED(status) && WEXITSTATUS(status) == 0) || WIFSIGNALED(status),
		       "the child of the VMM read a wrong byte");
	client_say(self, 'c');
	client_hear(self, 'p');
	vmm_check_all(&vmm);
}

static void test_fork_of_the_vmm(void **state)
{
	struct scene scene;

	set_scene(*state, &scene, UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_FORK);
	run_or_stop(*state, &scene, "base", "told", forking_body);
	scene.form.features = ALL_EVENTS;
	run_or_stop(*state, &scene, "base", "told-all", forking_body);
	run_or_stop(*state, &scene, "slow", "slow", forking_body);
}

/* ---- descriptors that change ---- */

static void blocking_again_body(struct client_self *self, void *data)
{
	struct vmm vmm;

	start_vmm(&vmm, self, data);
	for (uint64_t page = 0; page < PAGES; page++) {
		/* The flag belongs to the open file, which is the server's as well. */
		client_require(self, fcntl(vmm.uffd, F_SETFL, 0) == 0, "fcntl: %s", strerror(errno));
		vmm_check_page(&vmm, &vmm.regions[0], page);
	}
	client_say(self, 'c');
	client_hear(self, 'p');
}

/* A server that read() such a descriptor with nothing to read would stand still, and all forks with it. */
static void test_userfaultfd_made_blocking_again(void **state)
{
	struct scene scene;

	set_scene(*state, &scene, 0);
	for (int style = 0; style < 2; style++) {
		scene.form = (struct vmm_form){ .json = style, .fd = style };
		run_or_stop(*state, &scene, "base", style ? "raw" : "ready-made", blocking_again_body);
	}
}

static void no_events_body(struct client_self *self, void *data)
{
	struct vmm vmm;

	start_vmm(&vmm, self, data);
	vmm_check_all_shuffled(&vmm, 2, 1);
	/* Nobody is told of this, and still a page that was there and is given back may not come as the template's. */
	vmm_remove(&vmm, &vmm.regions[0], 10, 50);
	vmm_check_all(&vmm);
	client_say(self, 'c');
	client_hear(self, 'p');
	vmm_check_all(&vmm);
}

static void test_no_events_negotiated(void **state)
{
	struct scene scene;

	/* Some feature that tells of no event. */
	set_scene(*state, &scene, UFFD_FEATURE_THREAD_ID);
	run(*state, &scene, "base", "none", no_events_body);
}

/* ---- threads that wait for a page where it no longer is ---- */

static void *read_by_kernel(void *address)
{
	char bytes[8];
	struct iovec local = { bytes, sizeof bytes }, remote = { address, sizeof bytes };

	/* A system call: at the old address it fails, where an access of its own would end the process. */
	process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
	return NULL;
}

static void left_behind_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	pthread_t moving, going;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	struct vmm_region *region = &vmm.regions[0];
	char *to = reserve(&vmm, 16);

	client_require(self, pthread_create(&moving, NULL, read_by_kernel, region->address + 3 * PAGE) == 0,
		       "no thread");
	client_require(self, pthread_create(&going, NULL, read_by_kernel, region->address + 33 * PAGE) == 0,
		       "no thread");
	vmm_await_waiters(&vmm, 2);
	client_require(self,
		       mremap(region->address, 16 * PAGE, 16 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to &&
			       munmap(region->address + 32 * PAGE, 16 * PAGE) == 0,
		       "mremap or munmap: %s", strerror(errno));
	/* No copy will wake them where they sleep: what has gone from there must. */
	pthread_join(moving, NULL);
	pthread_join(going, NULL);
	struct vmm_region there = moved(region, to);
	check_range(&vmm, &there, 0, 5);
	check_range(&vmm, region, 30, 32);
	check_range(&vmm, region, 48, 50);
}

static void test_waiting_where_memory_was(void **state)
{
	struct test_server *server = *state;
	struct scene scene;

	set_scene(server, &scene, ALL_EVENTS);
	template_add_inject(server, "slower", &scene.image, "delay=50ms");
	fork_create(server, "slower", "left", NULL, scene.socket);
	client_join(client_start("left", left_behind_body, &scene));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_unmap),
		SERVED(test_unmap_everything),
		SERVED(test_move),
		SERVED(test_move_onto_others),
		SERVED(test_moving_all_the_time),
		SERVED(test_shrink),
		SERVED(test_faults_outside_all_regions),
		SERVED(test_protect),
		SERVED(test_fork_of_the_vmm),
		SERVED(test_userfaultfd_made_blocking_again),
		SERVED(test_no_events_negotiated),
		SERVED(test_waiting_where_memory_was),
	};

	return harness_run(tests);
}
