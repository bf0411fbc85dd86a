/* What a server tells its observer: forks that come, move, are ready and go, and a stamp for each demand fault that it serves. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "integration/harness/chaos.h"
#include "integration/harness/client.h"
#include "integration/harness/fake_observer.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"

#define PAGES 600ul
#define FIRST 200ul /* pages of region 0 */

struct scene {
	char socket[SOCKET_PATH_MAX];
	struct test_image image;
	uint64_t features;
	uint64_t salt;
};

static void set_scene(struct test_server *server, struct scene *scene, const char *inject)
{
	*scene = (struct scene){ 0 };
	test_image_make(&scene->image, server->dir, "base", PAGES * PAGE);
	if (inject)
		template_add_inject(server, "base", &scene->image, inject);
	else
		template_add(server, "base", &scene->image);
}

static void start_vmm(struct vmm *vmm, struct client_self *self, struct scene *scene)
{
	vmm_init(vmm, self, &scene->image);
	vmm_add_region(vmm, FIRST * PAGE, 0);
	vmm_add_region(vmm, (PAGES - FIRST) * PAGE, FIRST * PAGE);
	vmm_start(vmm, scene->socket, (struct vmm_form){ .features = scene->features });
}

/* ---- stamps ---- */

/* The child's values: its regions' addresses, then before and after each page's first touch. */
enum { ADDRESS_0, ADDRESS_1, TOUCHES };

static void timed_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	uint64_t *values = self->shared->values;
	values[ADDRESS_0] = (uint64_t)vmm.regions[0].address;
	values[ADDRESS_1] = (uint64_t)vmm.regions[1].address;
	for (uint64_t page = 0; page < PAGES; page++) {
		values[TOUCHES + 2 * page] = now_ns();
		vmm_check_page(&vmm, &vmm.regions[page >= FIRST], page >= FIRST ? page - FIRST : page);
		values[TOUCHES + 2 * page + 1] = now_ns();
	}
	client_say(self, 'd');
	client_hear(self, 'q');
}

/* The page of the image that a stamp is about. */
static uint64_t page_of(const struct client *client, uint64_t address)
{
	const uint64_t *values = client->shared->values;

	assert_int_equal(address % PAGE, 0);
	for (unsigned i = 0; i < 2; i++)
		if (address - values[ADDRESS_0 + i] < (i ? PAGES - FIRST : FIRST) * PAGE)
			return (address - values[ADDRESS_0 + i]) / PAGE + (i ? FIRST : 0);
	fail_msg("a stamp for 0x%" PRIx64 ", which is in no region", address);
	return 0;
}

/* Waits until all faults that the fork's pagers have read are stamped: the vCPU runs on a moment before its page's stamp is there. */
static void await_stamps(const struct test_server *server, const char *id)
{
	const struct fake_fork *fork = fake_fork(id);
	uint64_t deadline = deadline_in(WAIT_S), faults = (uint64_t)fork_number(server, id, "faults");

	while (fork->stamps < faults && deadline_ms(deadline) > 0)
		faults = (uint64_t)fork_number(server, id, "faults");
	assert_int_equal(fork->stamps, faults);
}

static void expect_phases_in_order(const struct observer_stamp *s)
{
	if (s->read_ns == 0 || s->read_ns > s->source_ns || s->source_ns > s->copied_ns)
		fail_msg("read %" PRIu64 ", source %" PRIu64 ", copied %" PRIu64, s->read_ns, s->source_ns,
			 s->copied_ns);
}

/* Each page has one stamp, whose times lie where the guest saw that they can. */
static void expect_stamps_of_all_pages(const struct client *client, observed_fork fork, uint64_t least_source_ns)
{
	const uint64_t *values = client->shared->values;
	bool seen[PAGES] = { 0 };
	uint64_t count = 0;

	for (uint64_t i = 0; i < fake_observer()->stamp_count; i++) {
		const struct observer_stamp *s = &fake_observer()->stamps[i].stamp;
		if (s->fork != fork)
			continue;
		uint64_t page = page_of(client, s->address);
		uint64_t before = values[TOUCHES + 2 * page], after = values[TOUCHES + 2 * page + 1];

		assert_false(seen[page]);
		seen[page] = true;
		count++;
		expect_phases_in_order(s);
		assert_in_range(s->read_ns, before, after);
		assert_in_range(s->source_ns, before, after);
		if (s->source_ns - s->read_ns < least_source_ns)
			fail_msg("page %" PRIu64 ": its bytes were there after %" PRIu64 " ns", page,
				 s->source_ns - s->read_ns);
	}
	assert_int_equal(count, PAGES);
}

static void check_stamps(struct test_server *server, const char *inject, uint64_t least_source_ns)
{
	struct scene scene;

	set_scene(server, &scene, inject);
	for (int i = 0; i < 2; i++) {
		const char *id = i ? "second" : "first";

		fork_create(server, "base", id, NULL, scene.socket);
		struct client *client = client_start_sized(id, TOUCHES + 2 * PAGES, timed_body, &scene);
		client_await(client, 'd');
		await_stamps(server, id);
		expect_stamps_of_all_pages(client, fake_number(fake_fork(id)), least_source_ns);
		client_tell(client, 'q');
		client_join(client);
	}
}

static void test_stamps_of_an_image_in_memory(void **state)
{
	check_stamps(*state, NULL, 0);
}

static void test_stamps_of_an_image_on_a_slow_disk(void **state)
{
	check_stamps(*state, "delay=2ms", 2 * NSEC_PER_MSEC);
}

static void removing_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	for (uint64_t page = 0; page < FIRST; page++)
		vmm_check_page(&vmm, &vmm.regions[0], page);
	vmm_remove(&vmm, &vmm.regions[0], 0, FIRST);
	for (uint64_t page = 0; page < FIRST; page++)
		vmm_check_page(&vmm, &vmm.regions[0], page);
	client_say(self, 'd');
	client_hear(self, 'q');
}

static void test_zero_pages_need_no_bytes(void **state)
{
	struct test_server *server = *state;
	struct scene scene;
	uint64_t zeros = 0;

	set_scene(server, &scene, "delay=1ms");
	fork_create(server, "base", "fork", NULL, scene.socket);
	struct client *client = client_start("fork", removing_body, &scene);
	client_await(client, 'd');
	await_stamps(server, "fork");
	assert_int_equal(fake_fork("fork")->stamps, 2 * FIRST);
	for (uint64_t i = 0; i < 2 * FIRST; i++) {
		expect_phases_in_order(&fake_observer()->stamps[i].stamp);
		zeros += fake_observer()->stamps[i].stamp.source_ns == fake_observer()->stamps[i].stamp.read_ns;
	}
	assert_int_equal(zeros, FIRST);
	client_tell(client, 'q');
	client_join(client);
}

static void failing_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	client_require(self, vmm_touch_raises(&vmm, &vmm.regions[0], 16), "no SIGBUS");
	client_say(self, 'd');
	client_hear(self, 'q');
}

static void test_an_unreadable_page_is_stamped_too(void **state)
{
	struct test_server *server = *state;
	struct scene scene;

	set_scene(server, &scene, "error=0x10000+0x1000");
	fork_create(server, "base", "fork", NULL, scene.socket);
	struct client *client = client_start("fork", failing_body, &scene);
	client_await(client, 'd');
	await_stamps(server, "fork");
	assert_int_equal(fork_number(server, "fork", "poisoned_pages"), 1);
	expect_phases_in_order(&fake_observer()->stamps[0].stamp);
	client_tell(client, 'q');
	client_join(client);
}

static void chaotic_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct chaos chaos = {
		.threads = 4, .rounds = 1500, .removals_of_100 = 5, .writes_of_100 = 5, .salt = scene->salt
	};
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	chaos_run(&vmm, &chaos);
	vmm_check_all(&vmm);
	client_say(self, 'd');
	client_hear(self, 'q');
}

/* Faults that find their page there, deferred ones, pages asked for by several at once. */
static void test_stamps_whatever_happens(void **state)
{
	static const char *const injects[] = { NULL, "delay=300us" };
	struct test_server *server = *state;
	struct scene scene;

	for (unsigned i = 0; i < 2; i++) {
		const char *id = i ? "slow" : "fast";

		set_scene(server, &scene, injects[i]);
		scene.salt = i;
		fork_create(server, "base", id, NULL, scene.socket);
		struct client *client = client_start(id, chaotic_body, &scene);
		client_await(client, 'd');
		client_tell(client, 'q');
		client_join(client);
		fork_wait(server, id, "gone");

		uint64_t supplied = (uint64_t)fork_number(server, id, "copied_pages") +
				    (uint64_t)fork_number(server, id, "zeroed_pages");
		assert_true(fake_fork(id)->stamps >= supplied);
		json_decref(command_ok(server, ARGS("fork", "remove", (char *)id)));
		json_decref(command_ok(server, ARGS("template", "remove", "base")));
	}
	for (uint64_t i = 0; i < fake_observer()->stamp_count; i++)
		expect_phases_in_order(&fake_observer()->stamps[i].stamp);
}

/* ---- a fork's life ---- */

static void moving_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	uint64_t *values = self->shared->values;
	values[ADDRESS_0] = (uint64_t)vmm.regions[0].address;
	values[ADDRESS_1] = (uint64_t)vmm.regions[1].address;
	client_say(self, 'c');
	client_hear(self, 'm');

	/* Pages 10 to 19 of region 0 go elsewhere, where their last one is unmapped. */
	char *to = mmap(NULL, 10 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *from = vmm.regions[0].address + 10 * PAGE;
	client_require(self, to != MAP_FAILED, "mmap: %s", strerror(errno));
	client_require(self, mremap(from, 10 * PAGE, 10 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "mremap: %s",
		       strerror(errno));
	client_require(self, munmap(to + 9 * PAGE, PAGE) == 0, "munmap: %s", strerror(errno));
	values[TOUCHES] = (uint64_t)to;
	client_require(self, *(volatile uint64_t *)(to + 3 * PAGE) == test_image_word(&scene->image, 13, 0),
		       "the moved page is not that of the image");
	client_say(self, 'd');
	client_hear(self, 'q');
}

static void expect_region(const struct observer_region *region, uint64_t address, uint64_t pages, uint32_t index,
			  uint64_t first)
{
	assert_int_equal(region->address, address);
	assert_int_equal(region->size, pages * PAGE);
	assert_int_equal(region->page_size, PAGE);
	assert_int_equal(region->region, index);
	assert_int_equal(region->offset, first * PAGE);
}

static const struct observer_region *region_at(const struct fake_fork *fork, uint64_t address)
{
	for (size_t i = 0; i < fork->region_count; i++)
		if (fork->regions[i].address == address)
			return &fork->regions[i];
	fail_msg("no region at 0x%" PRIx64, address);
	return NULL;
}

static void test_the_life_of_a_fork(void **state)
{
	struct test_server *server = *state;
	struct scene scene;

	set_scene(server, &scene, NULL);
	scene.features = UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMOVE;
	fork_create(server, "base", "fork", ARGS("--record"), scene.socket);
	uint64_t before = now_ns();
	struct client *client = client_start_sized("fork", TOUCHES + 1, moving_body, &scene);
	client_await(client, 'c');
	fork_wait(server, "fork", "connected");

	const struct fake_fork *fork = fake_fork("fork");
	const uint64_t *values = client->shared->values;
	assert_int_equal(fork->pid, client->pid);
	assert_true(fork->record && fork->had_uffd);
	assert_in_range(fork->connected_ns, before, now_ns());
	assert_int_equal(fork->region_count, 2);
	expect_region(region_at(fork, values[ADDRESS_0]), values[ADDRESS_0], FIRST, 0, 0);
	expect_region(region_at(fork, values[ADDRESS_1]), values[ADDRESS_1], PAGES - FIRST, 1, 0);
	assert_int_equal(fork->moves, 0);

	client_tell(client, 'm');
	client_await(client, 'd');
	assert_int_equal(fork->moves, 2);
	assert_int_equal(fork->region_count, 4);
	expect_region(region_at(fork, values[ADDRESS_0]), values[ADDRESS_0], 10, 0, 0);
	expect_region(region_at(fork, values[TOUCHES]), values[TOUCHES], 9, 0, 10);
	expect_region(region_at(fork, values[ADDRESS_0] + 20 * PAGE), values[ADDRESS_0] + 20 * PAGE, FIRST - 20, 0, 20);
	/* The stamp names the page where it is now. */
	assert_int_equal(fake_observer()->stamps[0].stamp.address, values[TOUCHES] + 3 * PAGE);

	assert_int_equal(fork->ready, 0);
	json_decref(command_ok(server, ARGS("fork", "ready", "fork")));
	json_decref(command_ok(server, ARGS("fork", "ready", "fork")));
	assert_int_equal(fork->ready, 1);
	assert_int_equal(fork->detached, 0);
	client_tell(client, 'q');
	client_join(client);
	fork_wait(server, "fork", "gone");
	assert_int_equal(fork->detached, 1);
	assert_int_equal(fork->released, 0);
	json_decref(command_ok(server, ARGS("fork", "remove", "fork")));
	uint64_t deadline = deadline_in(WAIT_S);
	while (!fork->released && deadline_ms(deadline) > 0)
		json_decref(command_ok(server, ARGS("fork", "list")));
	assert_int_equal(fork->released, 1);
}

static void test_a_fork_that_cannot_be_observed_is_served(void **state)
{
	struct test_server *server = *state;
	struct scene scene;
	char line[256];
	unsigned told = 0;

	set_scene(server, &scene, NULL);
	fake_observer()->attach_result = -EPERM;
	fork_check_good(server, "base", "blind", &scene.image);
	fake_observer()->attach_result = 0;
	fork_check_good(server, "base", "seen", &scene.image);

	_cleanup_free_ char *blind = fork_string(server, "blind", "observe_tier");
	_cleanup_free_ char *seen = fork_string(server, "seen", "observe_tier");
	assert_string_equal(blind, "none");
	assert_string_equal(seen, FAKE_TIER);
	assert_int_equal(fake_observer()->fork_count, 1);

	_cleanup_fclose_ FILE *log = fopen(server->log, "re");
	while (fgets(line, sizeof line, log))
		told += strstr(line, "fork blind") && strstr(line, "not observed: Operation not permitted");
	assert_int_equal(told, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		OBSERVED(test_stamps_of_an_image_in_memory),
		OBSERVED(test_stamps_of_an_image_on_a_slow_disk),
		OBSERVED(test_zero_pages_need_no_bytes),
		OBSERVED(test_an_unreadable_page_is_stamped_too),
		OBSERVED(test_stamps_whatever_happens),
		OBSERVED(test_the_life_of_a_fork),
		OBSERVED(test_a_fork_that_cannot_be_observed_is_served),
	};

	return harness_run(tests);
}
