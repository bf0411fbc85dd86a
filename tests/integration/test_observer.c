/* What a server tells its observer: forks that come, move, are ready and go, and a stamp for each demand fault that it serves. */
#include <errno.h>
#include <inttypes.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "integration/harness/chaos.h"
#include "integration/harness/client.h"
#include "integration/harness/fake_observer.h"
#include "integration/harness/list.h"
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
	assert_true(fork->moves >= 2);
	assert_int_equal(fork->region_count, 4);
	expect_region(region_at(fork, values[ADDRESS_0]), values[ADDRESS_0], 10, 0, 0);
	expect_region(region_at(fork, values[TOUCHES]), values[TOUCHES], 9, 0, 10);
	expect_region(region_at(fork, values[ADDRESS_0] + 20 * PAGE), values[ADDRESS_0] + 20 * PAGE, FIRST - 20, 0, 20);
	/* The stamp names the page where it is now. The guest may be told before the pager has stamped. */
	await_stamps(server, "fork");
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

/* ---- figures and recordings ---- */

static struct phase_figures phase(uint64_t first)
{
	return (struct phase_figures){ first, first + 1000, first + 2000, first + 3000, first + 4000 };
}

static void expect_phase(const json_t *latency, const char *name, uint64_t first)
{
	const json_t *p = json_object_get(latency, name);

	assert_int_equal(json_integer_value(json_object_get(p, "count")), first);
	assert_true(json_number_value(json_object_get(p, "p50_us")) == (double)(first + 1000) / 1e3);
	assert_true(json_number_value(json_object_get(p, "p90_us")) == (double)(first + 2000) / 1e3);
	assert_true(json_number_value(json_object_get(p, "p99_us")) == (double)(first + 3000) / 1e3);
	assert_true(json_number_value(json_object_get(p, "max_us")) == (double)(first + 4000) / 1e3);
}

static void test_figures_stay_when_the_fork_is_gone(void **state)
{
	static const char *const words[] = { "observed by         fake",
					     "faults            11, stalled for 13.0 ms",
					     "touches, there    12",
					     "events lost       14: ",
					     "--observe-ring SIZE",
					     "15 faults, whose phases are not known",
					     "queue" };
	struct test_server *server = *state;
	struct scene scene;
	char command[300], text[4096];

	set_scene(server, &scene, NULL);
	fake_observer()->figures =
		(struct observed_figures){ 11,	       12,	   13000000,   14,	   15,	       16,
					   phase(100), phase(200), phase(300), phase(400), phase(500), 17 };
	fork_check_good(server, "base", "fork", &scene.image);
	fork_wait(server, "fork", "gone");
	json_t *fork = fork_show(server, "fork"), *observed = json_object_get(fork, "observed");
	assert_int_equal(json_integer_value(json_object_get(observed, "faults")), 11);
	assert_int_equal(json_integer_value(json_object_get(observed, "present_touches")), 12);
	assert_true(json_number_value(json_object_get(observed, "stall_ms")) == 13);
	assert_int_equal(json_integer_value(json_object_get(observed, "events_lost")), 14);
	assert_int_equal(json_integer_value(json_object_get(observed, "unjoined_faults")), 15);
	assert_int_equal(json_integer_value(json_object_get(observed, "vcpus")), 16);
	const json_t *latency = json_object_get(observed, "latency");
	expect_phase(latency, "total", 100);
	expect_phase(latency, "queue", 200);
	expect_phase(latency, "source", 300);
	expect_phase(latency, "copy", 400);
	expect_phase(latency, "wake", 500);
	json_decref(fork);

	snprintf(command, sizeof command, "%s fork show fork --run-dir %s", getenv("FAULTLINE"), server->run_dir);
	FILE *f = popen(command, "re");
	text[fread(text, 1, sizeof text - 1, f)] = '\0';
	assert_int_equal(pclose(f), 0);
	for (size_t i = 0; i < sizeof words / sizeof *words; i++)
		if (!strstr(text, words[i]))
			fail_msg("no '%s' in:\n%s", words[i], text);
}

static void reading_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	vmm_check_all(&vmm);
	client_say(self, 'd');
	client_hear(self, 'q');
}

/* The list as CSV; what was said of it must be FROM and have WORD in its reason. */
static size_t expect_from(const struct test_server *server, const char *asked, const char *from, const char *word,
			  struct list_entry **ret)
{
	char path[100];
	size_t count;

	snprintf(path, sizeof path, "%s/list.csv", server->dir);
	json_t *said = command_ok(server, ARGS("fork", "hot-list", "fork", "-o", path, "--format", "csv", "--from",
					       (char *)asked));
	assert_string_equal(json_string_value(json_object_get(said, "from")), from);
	const char *why = json_string_value(json_object_get(said, "why"));
	if (!strstr(why, word))
		fail_msg("'%s' does not say '%s'", why, word);
	json_decref(said);
	*ret = list_read_csv(path, &count);
	return count;
}

/* The kernel's pages: those of the image backwards, but for the first SKIPPED of them. */
static void set_kernel_list(size_t skipped)
{
	struct fake_observer *fake = fake_observer();

	fake->page_count = 0;
	for (uint64_t page = PAGES; page-- > skipped; fake->page_count++)
		fake->pages[fake->page_count] =
			(struct hot_page){ .region = page >= FIRST,
					   .offset = (page >= FIRST ? page - FIRST : page) * PAGE };
}

static void test_the_better_recording_is_taken(void **state)
{
	struct test_server *server = *state;
	struct list_entry *list;
	struct scene scene;

	set_scene(server, &scene, NULL);
	fork_create(server, "base", "fork", ARGS("--record"), scene.socket);
	struct client *client = client_start("fork", reading_body, &scene);
	client_await(client, 'd');
	client_tell(client, 'q');
	client_join(client);
	fork_wait(server, "fork", "gone");

	/* All seen, nothing lost: the kernel's, in its order. */
	set_kernel_list(0);
	assert_int_equal(expect_from(server, "best", "kernel", "no event was lost", &list), PAGES);
	assert_int_equal(list[0].region, 1);
	assert_int_equal(list[PAGES - 1].offset, 0);
	free(list);
	assert_int_equal(expect_from(server, "loop", "loop", "asked for", &list), PAGES);
	assert_int_equal(list[0].region, 0);
	assert_int_equal(list[0].offset, 0);
	free(list);

	/* A few events lost: still. Many: the loop's, and what to do about it. */
	fake_observer()->events_lost = PAGES / 100;
	assert_int_equal(expect_from(server, "best", "kernel", "only 6 events were lost", &list), PAGES);
	free(list);
	fake_observer()->events_lost = PAGES / 100 + 1;
	assert_int_equal(expect_from(server, "best", "loop", "--observe-ring", &list), PAGES);
	free(list);
	assert_int_equal(expect_from(server, "kernel", "kernel", "asked for", &list), PAGES);
	free(list);

	/* Pages that only the loop saw are filled in; where these are many, its list is the better one. */
	fake_observer()->events_lost = 0;
	set_kernel_list(20);
	assert_int_equal(expect_from(server, "best", "kernel", "20 pages come from the fault loop", &list), PAGES);
	free(list);
	assert_int_equal(expect_from(server, "kernel", "kernel", "", &list), PAGES - 20);
	free(list);
	set_kernel_list(100);
	assert_int_equal(expect_from(server, "best", "loop", "the kernel saw 500 pages", &list), PAGES);
	free(list);
}

/* Gives back pages 0 to 49 before they were ever touched, and pages 50 to 99 after. */
static void giving_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	vmm_remove(&vmm, &vmm.regions[0], 0, 50);
	for (uint64_t page = 50; page < 100; page++)
		vmm_check_page(&vmm, &vmm.regions[0], page);
	vmm_remove(&vmm, &vmm.regions[0], 50, 50);
	vmm_check_all(&vmm);
	client_say(self, 'd');
	client_hear(self, 'q');
}

static void test_pages_given_back_untouched_are_not_hot(void **state)
{
	struct test_server *server = *state;
	struct list_entry *list;
	struct scene scene;

	set_scene(server, &scene, NULL);
	fork_create(server, "base", "fork", ARGS("--record"), scene.socket);
	struct client *client = client_start("fork", giving_body, &scene);
	client_await(client, 'd');
	await_stamps(server, "fork");
	set_kernel_list(0);
	assert_int_equal(expect_from(server, "kernel", "kernel", "", &list), PAGES - 50);
	for (size_t i = 0; i < PAGES - 50; i++)
		assert_true(list[i].region == 1 || list[i].offset >= 50 * PAGE);
	free(list);
	client_tell(client, 'q');
	client_join(client);
}

static void test_lists_say_where_they_come_from(void **state)
{
	struct test_server *server = *state;
	struct scene scene;
	char path[100];
	struct error err;

	set_scene(server, &scene, NULL);
	fork_create(server, "base", "fork", ARGS("--record"), scene.socket);
	struct client *client = client_start("fork", reading_body, &scene);
	client_await(client, 'd');
	json_decref(command_ok(server, ARGS("fork", "ready", "fork")));
	client_tell(client, 'q');
	client_join(client);
	set_kernel_list(0);
	fake_observer()->window_end = HOT_WINDOW_SETTLED;

	snprintf(path, sizeof path, "%s/list.hpl2", server->dir);
	for (int kernel = 0; kernel < 2; kernel++) {
		_cleanup_hotlist_ struct hotlist *list = NULL;

		json_decref(command_ok(server, ARGS("fork", "hot-list", "fork", "-o", path, "--from",
						    kernel ? "kernel" : "loop")));
		assert_int_equal(hotlist_load(path, &list, &err), 0);
		assert_int_equal(list->format, HOTLIST_HPL2);
		const struct hotlist_origin *origin = list->origin;
		assert_non_null(origin);
		assert_string_equal(origin->tier, kernel ? FAKE_TIER : "loop");
		assert_int_equal(origin->page_size, PAGE);
		assert_int_equal(origin->template_size, PAGES * PAGE);
		assert_true(hotlist_origin_is_bound(origin));
		assert_int_equal(origin->runs, 1);
		assert_int_equal(origin->region_count, 2);
		assert_int_equal(origin->regions[1].size, (PAGES - FIRST) * PAGE);
		assert_int_equal(origin->regions[1].offset, FIRST * PAGE);
		assert_int_equal(origin->window_end, kernel ? HOT_WINDOW_SETTLED : HOT_WINDOW_READY);
		assert_true(origin->window_ns > 0);
		for (size_t i = 1; i < list->count; i++)
			assert_true(list->touches[i].raw_ns >= list->touches[i - 1].raw_ns);
		assert_true(list->touches[0].raw_ns > 0 && list->touches[list->count - 1].raw_ns <= origin->window_ns);
	}
}

/* What `fork create` says of a recording's window comes to its observer. */
static void test_a_recordings_window_is_what_was_asked_for(void **state)
{
	static const struct {
		const char *timeout, *settle;
		uint64_t timeout_ns, settle_ns;
	} cases[] = {
		{ NULL, NULL, 0, 0 },
		{ "600", NULL, 600000000000, 0 },
		{ "0.25", "1.5", 250000000, 1500000000 },
		{ NULL, "0", 0, UINT64_MAX }, /* never */
		{ "86400", "86400", 86400000000000, 86400000000000 },
	};
	struct test_server *server = *state;
	struct scene scene;
	char id[16];

	set_scene(server, &scene, NULL);
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		char *args[6] = { "--record" };
		unsigned n = 1;

		if (cases[i].timeout) {
			args[n++] = "--window-timeout";
			args[n++] = (char *)cases[i].timeout;
		}
		if (cases[i].settle) {
			args[n++] = "--settle";
			args[n++] = (char *)cases[i].settle;
		}
		snprintf(id, sizeof id, "fork%zu", i);
		fork_create(server, "base", id, args, scene.socket);
		struct client *client = client_start(id, reading_body, &scene);
		client_await(client, 'd');
		assert_int_equal(fake_fork(id)->window_timeout_ns, cases[i].timeout_ns);
		assert_int_equal(fake_fork(id)->window_settle_ns, cases[i].settle_ns);
		client_tell(client, 'q');
		client_join(client);
	}
	command_fails(server, ARGS("fork", "create", "base", "--window-timeout", "0"), 1, "window_timeout_s");
	command_fails(server, ARGS("fork", "create", "base", "--window-timeout", "1e3"), 2, "--window-timeout");
	command_fails(server, ARGS("fork", "create", "base", "--settle", "-1"), 2, "--settle");
}

/* ---- lists that are kept fresh ---- */

static void prefetched_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	start_vmm(&vmm, self, scene);
	client_say(self, 'c');
	client_hear(self, 'q');
	vmm_check_all(&vmm);
}

/* A production fork with the list LISTED. READY: its guest says so before it ends. */
static void run_production_fork(struct test_server *server, struct scene *scene, const char *id, bool ready)
{
	fork_create(server, "listed", id, ARGS("--prefetch", "eager"), scene->socket);
	struct client *client = client_start(id, prefetched_body, scene);
	client_await(client, 'c');
	fork_wait(server, id, "prefetched");
	if (ready)
		json_decref(command_ok(server, ARGS("fork", "ready", (char *)id)));
	client_tell(client, 'q');
	client_join(client);
	fork_wait(server, id, "gone");
}

/* Waits until the server's log has a line with both in it. */
static void await_log(const struct test_server *server, const char *word, const char *other)
{
	uint64_t deadline = deadline_in(WAIT_S);
	char line[600];

	while (deadline_ms(deadline) > 0) {
		_cleanup_fclose_ FILE *log = fopen(server->log, "re");
		while (fgets(line, sizeof line, log))
			if (strstr(line, word) && strstr(line, other))
				return;
		fork_number(server, "first", "faults"); /* takes a moment */
	}
	fail_msg("the log has no line with '%s' and '%s'", word, other);
}

static bool lists(const char *path, uint64_t page, size_t *ret_count)
{
	_cleanup_hotlist_ struct hotlist *list = NULL;
	struct error err;
	bool found = false;

	assert_int_equal(hotlist_load(path, &list, &err), 0);
	for (size_t i = 0; i < list->count; i++)
		found |= list->pages[i].region == 0 && list->pages[i].offset == page * PAGE;
	*ret_count = list->count;
	return found;
}

/* The kernel saw touches of region 0's pages from FIRST_PAGE on, 100 of them. */
static void set_touched(uint64_t first_page)
{
	struct fake_observer *fake = fake_observer();

	for (uint64_t i = 0; i < 100; i++)
		fake->pages[i] = (struct hot_page){ .region = 0, .offset = (first_page + i) * PAGE };
	fake->page_count = 100;
	fake->present = true;
}

static void test_a_list_learns_from_production_forks(void **state)
{
	struct test_server *server = *state;
	struct list_entry entries[100];
	struct scene scene;
	char path[100], id[16];
	size_t count;

	set_scene(server, &scene, NULL);
	snprintf(path, sizeof path, "%s/list", server->dir);
	for (uint64_t i = 0; i < 100; i++)
		entries[i] = (struct list_entry){ 0, i * PAGE };
	list_write(path, entries, 100);
	json_t *template = command_ok(server, ARGS("template", "add", "listed", "--memory", scene.image.path,
						   "--hot-list", path, "--refresh-hot-list"));
	assert_true(json_is_true(json_object_get(template, "refresh_hot_list")));
	json_decref(template);

	/* What is not to be believed changes nothing. */
	set_touched(20);
	fake_observer()->events_lost = 1;
	run_production_fork(server, &scene, "first", true);
	await_log(server, "nothing from fork first", "events of its recording were lost");
	assert_true(fake_fork("first")->record);
	fake_observer()->events_lost = 0;
	run_production_fork(server, &scene, "dead", false);
	await_log(server, "nothing from fork dead", "before it was ready");
	fake_observer()->present = false;
	run_production_fork(server, &scene, "blind", true);
	await_log(server, "nothing from fork blind", "does not see touches");
	fake_observer()->present = true;
	fake_observer()->page_count = 10;
	fake_observer()->window_end = HOT_WINDOW_SETTLED;
	run_production_fork(server, &scene, "brief", false);
	await_log(server, "nothing from fork brief", "too little");
	assert_true(lists(path, 0, &count) && count == 100);

	/* New pages enter at once; those that no fork touches any more leave after 5. */
	set_touched(20);
	fake_observer()->window_end = HOT_WINDOW_READY;
	run_production_fork(server, &scene, "good", true);
	await_log(server, "learnt from fork good", "20 are new");
	assert_true(lists(path, 119, &count) && count == 120);
	fake_observer()->window_end = HOT_WINDOW_SETTLED;
	for (unsigned i = 2; i <= 5; i++) {
		assert_true(lists(path, 0, &count) && count == 120);
		snprintf(id, sizeof id, "more%u", i);
		run_production_fork(server, &scene, id, false);
		await_log(server, "learnt from", id);
	}
	assert_false(lists(path, 0, &count));
	assert_true(lists(path, 20, &count) && count == 100);

	/* Under KVM, a run that found nothing there has seen all the same what was touched. */
	set_touched(0);
	fake_observer()->page_count = 30;
	fake_observer()->present = false;
	fake_observer()->figures.kvm_touches = 30;
	fake_observer()->window_end = HOT_WINDOW_READY;
	for (unsigned i = 1; i <= 5; i++) {
		snprintf(id, sizeof id, "kvm%u", i);
		run_production_fork(server, &scene, id, true);
		await_log(server, "learnt from", id);
	}
	assert_true(lists(path, 0, &count) && count == 30);
}

static void test_only_lists_that_ask_for_it_learn(void **state)
{
	struct test_server *server = *state;
	struct list_entry entry = { 0, 0 };
	struct scene scene;
	char path[100];
	size_t count;

	set_scene(server, &scene, NULL);
	snprintf(path, sizeof path, "%s/list", server->dir);
	list_write(path, &entry, 1);
	command_fails(server, ARGS("template", "add", "x", "--memory", scene.image.path, "--refresh-hot-list"), 1,
		      "--hot-list");
	json_decref(command_ok(server,
			       ARGS("template", "add", "listed", "--memory", scene.image.path, "--hot-list", path)));
	set_touched(0);
	run_production_fork(server, &scene, "first", true);
	assert_false(fake_fork("first")->record);
	assert_true(lists(path, 0, &count) && count == 1);
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
		OBSERVED(test_figures_stay_when_the_fork_is_gone),
		OBSERVED(test_the_better_recording_is_taken),
		OBSERVED(test_pages_given_back_untouched_are_not_hot),
		OBSERVED(test_lists_say_where_they_come_from),
		OBSERVED(test_a_recordings_window_is_what_was_asked_for),
		OBSERVED(test_a_list_learns_from_production_forks),
		OBSERVED(test_only_lists_that_ask_for_it_learn),
	};

	return harness_run(tests);
}
