/* Images that fail, shrink or are slow: the guest gets SIGBUS or is stopped, never a wrong byte, and nobody else notices. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "integration/harness/chaos.h"
#include "integration/harness/client.h"
#include "integration/harness/list.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"

#define PAGES 256ul

struct guest {
	char socket[SOCKET_PATH_MAX];
	struct test_image image;
	struct vmm_form form;
	uint64_t first_bad, bad_count; /* pages that can't be read */
	uint64_t removed;	       /* of the bad ones, the first so many are given back before they are touched */
};

/* ---- bytes that can't be read ---- */

static bool is_bad(const struct guest *guest, uint64_t page)
{
	return page >= guest->first_bad && page < guest->first_bad + guest->bad_count;
}

struct bad_touch {
	struct guest *guest;
	_Atomic unsigned raised;
};

static void touch_bad(struct vmm *vmm, unsigned index, void *data)
{
	struct bad_touch *touch = data;
	struct guest *guest = touch->guest;

	(void)index;
	for (uint64_t page = guest->first_bad + guest->removed; page < guest->first_bad + guest->bad_count; page++) {
		if (vmm_touch_raises(vmm, &vmm->regions[0], page))
			atomic_fetch_add(&touch->raised, 1);
		else
			client_fail(vmm->self, "page %" PRIu64 " can't be read, but touching it raised nothing", page);
	}
}

static void check_good_pages(struct vmm *vmm, const struct guest *guest)
{
	for (uint64_t page = 0; page < vmm_pages(&vmm->regions[0]); page++)
		if (!is_bad(guest, page) || page < guest->first_bad + guest->removed)
			vmm_check_page(vmm, &vmm->regions[0], page);
}

static void unreadable_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct bad_touch touch = { .guest = guest };
	struct vmm vmm;

	vmm_init(&vmm, self, &guest->image);
	vmm_start(&vmm, guest->socket, guest->form);
	if (guest->removed)
		vmm_remove(&vmm, &vmm.regions[0], guest->first_bad, guest->removed);
	/* Neighbours first, then the bad ones, by several threads at once, then everything again. */
	check_good_pages(&vmm, guest);
	vmm_threads(&vmm, 3, touch_bad, &touch);
	client_require(self, touch.raised == 3 * (guest->bad_count - guest->removed), "%u touches raised SIGBUS",
		       touch.raised);
	touch_bad(&vmm, 0, &touch);
	check_good_pages(&vmm, guest);
	client_say(self, 'd');
	client_hear(self, 'q');
	/* A page that the guest gives back is zero, readable or not. */
	vmm_remove(&vmm, &vmm.regions[0], guest->first_bad, guest->bad_count);
	vmm_check_all(&vmm);
}

/* The way out where the kernel can't poison a page: the VMM is stopped, and says why. True if that is what happened. */
static bool was_stopped(struct test_server *server, struct client *client, const char *id)
{
	if (client_await_or_death(client, 'd'))
		return false;
	client_join_killed(client);
	fork_expect_error(server, id, "gone", "read");
	return true;
}

static void run_unreadable(struct test_server *server, struct guest *guest, const char *id)
{
	fork_create(server, "broken", id, NULL, guest->socket);
	struct client *client = client_start(id, unreadable_body, guest);

	if (was_stopped(server, client, id))
		return;
	assert_int_equal(fork_number(server, id, "poisoned_pages"), guest->bad_count - guest->removed);
	assert_int_equal(fork_number(server, id, "copied_pages"), PAGES - guest->bad_count);
	client_tell(client, 'q');
	client_join(client);
}

static void test_unreadable_pages_raise_sigbus(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { .first_bad = 16, .bad_count = 3 };
	struct test_image good = { 0 };

	test_image_make(&guest.image, server->dir, "broken", PAGES * PAGE);
	test_image_make(&good, server->dir, "good", PAGES * PAGE);
	/* One whole page, and one byte of each neighbour: a page that is bad in part is bad. */
	template_add_inject(server, "broken", &guest.image, "error=0x10fff+0x1002");
	template_add(server, "good", &good);
	run_unreadable(server, &guest, "array");
	fork_check_good(server, "good", "beside", &good);
	guest.form = (struct vmm_form){ VMM_HYPEMAN, VMM_HYPEMAN, 0, 0 };
	run_unreadable(server, &guest, "object");
	/* Given back before they were ever read: zero, as any. */
	guest.removed = 2;
	run_unreadable(server, &guest, "removed");
	fork_check_good(server, "good", "after", &good);
}

static void test_slow_and_unreadable(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { .first_bad = 10, .bad_count = 30 };

	test_image_make(&guest.image, server->dir, "broken", PAGES * PAGE);
	template_add_inject(server, "broken", &guest.image, "delay=2ms,error=40960+122880,rate=100MB/s");
	run_unreadable(server, &guest, "slow");
}

static void bystander_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct chaos chaos = {
		.threads = 2, .removals_of_100 = 3, .writes_of_100 = 3, .progress = &self->shared->counter[0]
	};
	struct vmm vmm;

	vmm_init(&vmm, self, &guest->image);
	vmm_start(&vmm, guest->socket, guest->form);
	chaos_run_until(&vmm, &chaos, 'q');
	vmm_check_all(&vmm);
}

static void all_bad_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct bad_touch touch = { .guest = guest };
	struct vmm vmm;

	vmm_init(&vmm, self, &guest->image);
	vmm_start(&vmm, guest->socket, guest->form);
	vmm_threads(&vmm, 4, touch_bad, &touch);
	client_say(self, 'd');
}

static void test_wholly_unreadable_image_beside_a_good_one(void **state)
{
	struct test_server *server = *state;
	struct guest good = { 0 }, bad = { .first_bad = 0, .bad_count = PAGES };
	char id[16];

	test_image_make(&good.image, server->dir, "good", PAGES * PAGE);
	template_add(server, "good", &good.image);
	bad.image = good.image;
	template_add_inject(server, "broken", &bad.image, "error=0+1048576");
	fork_create(server, "good", "bystander", NULL, good.socket);
	struct client *bystander = client_start("bystander", bystander_body, &good);
	for (unsigned i = 0; i < scaled(8); i++) {
		snprintf(id, sizeof id, "bad%u", i);
		fork_create(server, "broken", id, NULL, bad.socket);
		struct client *client = client_start(id, all_bad_body, &bad);
		if (!was_stopped(server, client, id))
			client_join(client);
	}
	client_await_counter(bystander, 0, client_counter(bystander, 0) + 100);
	client_tell(bystander, 'q');
	client_join(bystander);
}

/* ---- prefetch over unreadable pages ---- */

static void prefetched_bad_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct bad_touch touch = { .guest = guest };
	struct vmm vmm;

	vmm_init(&vmm, self, &guest->image);
	vmm_start(&vmm, guest->socket, guest->form);
	client_say(self, 'c');
	client_hear(self, 'p');
	check_good_pages(&vmm, guest);
	touch_bad(&vmm, 0, &touch);
	client_say(self, 'd');
}

static void test_prefetch_over_unreadable_pages(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { .first_bad = 100, .bad_count = 2 };
	struct list_entry list[PAGES];
	char path[160];

	test_image_make(&guest.image, server->dir, "broken", PAGES * PAGE);
	template_add_inject(server, "broken", &guest.image, "error=409600+8192");
	for (uint64_t i = 0; i < PAGES; i++)
		list[i] = (struct list_entry){ 0, i * PAGE };
	snprintf(path, sizeof path, "%s/all.hpl", server->dir);
	list_write(path, list, PAGES);
	fork_create(server, "broken", "fork", NULL, guest.socket);
	struct client *client = client_start("fork", prefetched_bad_body, &guest);
	client_await(client, 'c');
	fork_wait(server, "fork", "connected");
	/* It says that not all could be had; what could be is there, and what couldn't is not made up. */
	command_fails(server, ARGS("fork", "prefetch", "fork", path), 1, "read");
	client_tell(client, 'p');
	if (!was_stopped(server, client, "fork"))
		client_join(client);
}

/* ---- images that shrink ---- */

static void shrunk_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &guest->image);
	vmm_start(&vmm, guest->socket, guest->form);
	for (uint64_t page = 0; page < PAGES; page += 8)
		vmm_check_page(&vmm, &vmm.regions[0], page);
	client_say(self, 'c');
	client_hear(self, 't');
	/* What came before stays; of the rest each page is right or raises SIGBUS, never zero or anything else. */
	for (uint64_t page = 0; page < PAGES; page++) {
		if (page % 8 == 0 || !vmm_touch_raises(&vmm, &vmm.regions[0], page))
			vmm_check_page(&vmm, &vmm.regions[0], page);
		else
			self->shared->counter[0]++;
	}
	client_say(self, 'd');
}

static void cut_image(const struct test_image *image, uint64_t size)
{
	if (truncate(image->path, (off_t)size) < 0)
		fail_msg("truncate %s: %s", image->path, strerror(errno));
}

static void test_image_cut_under_live_forks(void **state)
{
	/* At a page, in the middle of one (whose first part is still there), at its last byte, and to nothing. */
	static const uint64_t sizes[] = { 128 * PAGE, 100 * PAGE + 2000, 64 * PAGE - 1, 33 * PAGE + 1, 0 };
	struct test_server *server = *state;
	struct test_image good = { 0 };

	test_image_make(&good, server->dir, "good", PAGES * PAGE);
	template_add(server, "good", &good);
	for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
		struct guest guest = { 0 };
		char name[32];

		for (int cold = 0; cold < 2; cold++) {
			snprintf(name, sizeof name, "cut-%" PRIu64 "%s", sizes[i], cold ? "-cold" : "");
			test_image_make(&guest.image, server->dir, name, PAGES * PAGE);
			template_add(server, name, &guest.image);
			fork_create(server, name, name, NULL, guest.socket);
			struct client *client = client_start(name, shrunk_body, &guest);
			client_await(client, 'c');
			if (cold)
				test_image_evict(&guest.image);
			cut_image(&guest.image, sizes[i]);
			client_tell(client, 't');
			if (!was_stopped(server, client, name))
				client_join(client);
		}
	}
	fork_check_good(server, "good", "others", &good);
}

#define COPIES 1000u

/* The same page of the image in a thousand regions: as many chances to be served while the image is being cut in it. */
static void thousandfold_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &guest->image);
	for (unsigned i = 0; i < COPIES; i++)
		vmm_add_region(&vmm, PAGE, guest->first_bad * PAGE);
	vmm_start(&vmm, guest->socket, guest->form);
	for (unsigned i = 0; i < COPIES; i++) {
		if (vmm_touch_raises(&vmm, &vmm.regions[i], 0))
			self->shared->counter[1]++;
		else
			vmm_check_page(&vmm, &vmm.regions[i], 0);
		self->shared->counter[0]++;
	}
}

static void test_image_cut_while_the_page_is_served(void **state)
{
	struct test_server *server = *state;
	unsigned right = 0, raised = 0, stopped = 0;
	char name[32];

	for (unsigned i = 0; i < scaled(40); i++) {
		struct guest guest = { .first_bad = 8 };

		snprintf(name, sizeof name, "cut%u", i);
		test_image_make(&guest.image, server->dir, name, PAGES * PAGE);
		template_add(server, name, &guest.image);
		fork_create(server, name, name, NULL, guest.socket);
		struct client *client = client_start(name, thousandfold_body, &guest);
		/* At another moment each time. */
		client_await_counter(client, 0, 1 + i * 17 % 300);
		cut_image(&guest.image, guest.first_bad * PAGE + 2000);
		client_await_end(client);
		right += (unsigned)(client_counter(client, 0) - client_counter(client, 1));
		raised += (unsigned)client_counter(client, 1);
		if (client_join_any(client)) {
			stopped++;
			fork_expect_error(server, name, "gone", NULL);
		}
	}
	print_message("%u pages came right, %u raised SIGBUS, %u VMMs were stopped\n", right, raised, stopped);
	assert_true(raised > 0 || stopped > 0);
}

/* Looks at pages as a prefetch brings them, without ever asking for one, until the test says that it is over. */
static void onlooker_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct pollfd p = { .fd = self->talk, .events = POLLIN };
	struct vmm vmm;

	vmm_init(&vmm, self, &guest->image);
	for (unsigned i = 0; i < COPIES; i++)
		vmm_add_region(&vmm, PAGE, guest->first_bad * PAGE);
	vmm_start(&vmm, guest->socket, guest->form);
	client_say(self, 'c');
	for (unsigned i = 0; i < COPIES; i++) {
		while (!vmm_is_present(&vmm, &vmm.regions[i], 0) && poll(&p, 1, 0) == 0)
			;
		if (!vmm_is_present(&vmm, &vmm.regions[i], 0))
			break;
		vmm_check_page(&vmm, &vmm.regions[i], 0);
		self->shared->counter[0]++;
	}
	client_hear(self, 'q');
}

static void test_image_cut_while_the_page_is_prefetched(void **state)
{
	struct test_server *server = *state;
	struct list_entry list[COPIES];
	char name[32], path[160];

	for (unsigned i = 0; i < COPIES; i++)
		list[i] = (struct list_entry){ i, 0 };
	snprintf(path, sizeof path, "%s/list.hpl", server->dir);
	list_write(path, list, COPIES);
	for (unsigned i = 0; i < scaled(40); i++) {
		struct guest guest = { .first_bad = 8 };
		struct test_command prefetch;

		snprintf(name, sizeof name, "cut%u", i);
		test_image_make(&guest.image, server->dir, name, PAGES * PAGE);
		template_add(server, name, &guest.image);
		fork_create(server, name, name, NULL, guest.socket);
		struct client *client = client_start(name, onlooker_body, &guest);
		client_await(client, 'c');
		fork_wait(server, name, "connected");
		command_start(&prefetch, server, ARGS("fork", "prefetch", name, path));
		client_await_counter(client, 0, 1 + i * 17 % 300);
		cut_image(&guest.image, guest.first_bad * PAGE + 2000);
		struct test_result result = command_wait(&prefetch);
		result_clear(&result);
		client_tell(client, 'q');
		if (client_join_any(client))
			fork_expect_error(server, name, "gone", NULL);
	}
}

static void test_image_cut_before_the_fork(void **state)
{
	struct test_server *server = *state;
	struct test_image image = { 0 }, good = { 0 };

	test_image_make(&image, server->dir, "base", PAGES * PAGE);
	test_image_make(&good, server->dir, "good", PAGES * PAGE);
	template_add(server, "base", &image);
	template_add(server, "good", &good);
	cut_image(&image, 50 * PAGE + 100);
	command_fails(server, ARGS("fork", "create", "base", "--id", "late"), 1, "bytes|chang|written");
	fork_check_good(server, "good", "others", &good);
}

static void refused_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &guest->image);
	vmm_add_region(&vmm, PAGES * PAGE, 0);
	vmm_make_uffd(&vmm, guest->form);
	vmm_connect(&vmm, guest->socket);
	vmm_handshake(&vmm, guest->form);
	for (uint64_t page = 0; page < PAGES; page++) {
		struct pollfd p = { .fd = vmm.conn, .events = POLLRDHUP };

		/* Turned away is fine; served, it has to be right or raise SIGBUS. */
		if (poll(&p, 1, page ? 0 : 1000) > 0)
			break;
		if (!vmm_touch_raises(&vmm, &vmm.regions[0], page))
			vmm_check_page(&vmm, &vmm.regions[0], page);
	}
}

static void test_image_cut_before_the_handshake(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { 0 };

	test_image_make(&guest.image, server->dir, "base", PAGES * PAGE);
	template_add(server, "base", &guest.image);
	fork_create(server, "base", "early", NULL, guest.socket);
	cut_image(&guest.image, 50 * PAGE + 100);
	client_join_any(client_start("early", refused_body, &guest));
	_cleanup_free_ char *error = fork_string(server, "early", "error");
	assert_string_not_equal(error, "");
}

/* ---- images that can't be had at all ---- */

static void test_what_is_no_image_is_refused(void **state)
{
	struct test_server *server = *state;
	struct test_image image = { 0 };
	char path[160];

	test_image_make(&image, server->dir, "base", PAGES * PAGE);
	command_fails(server, ARGS("template", "add", "none", "--memory", "/nonexistent/file"), 1, "nonexistent");
	command_fails(server, ARGS("template", "add", "none", "--memory", "/dev/null"), 1, "regular|file");
	command_fails(server, ARGS("template", "add", "none", "--memory", server->dir), 1, "regular|file|directory");
	snprintf(path, sizeof path, "%s/fifo", server->dir);
	assert_int_equal(mkfifo(path, 0600), 0);
	command_fails(server, ARGS("template", "add", "none", "--memory", path), 1, "regular|file");
	snprintf(path, sizeof path, "%s/empty", server->dir);
	int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	close(fd);
	command_fails(server, ARGS("template", "add", "none", "--memory", path), 1, "empty");
	command_fails(server, ARGS("template", "add", "none", "--memory", image.path, "--inject", "explode"), 1,
		      "explode");
	template_add(server, "base", &image);
	fork_check_good(server, "base", "good", &image);
}

/* ---- a slow image delays nobody else ---- */

#define DELAY_MS 20

struct measure {
	struct guest guest;
	unsigned samples;
};

static void measured_body(struct client_self *self, void *data)
{
	struct measure *measure = data;
	struct random random = random_from(5);
	struct vmm vmm;
	uint32_t pages = (uint32_t)(measure->guest.image.size / PAGE);
	_cleanup_free_ uint32_t *order = malloc(pages * sizeof *order);

	random_order(&random, order, pages);
	vmm_init(&vmm, self, &measure->guest.image);
	vmm_pin(&vmm, 0);
	vmm_start(&vmm, measure->guest.socket, measure->guest.form);
	vmm_check_page(&vmm, &vmm.regions[0], order[0]);
	for (unsigned i = 0; i < measure->samples; i++) {
		uint64_t started = now_ns();

		(void)*(volatile char *)(vmm.regions[0].address + order[i + 1] * PAGE);
		self->shared->values[i] = now_ns() - started;
	}
	vmm_check_all_shuffled(&vmm, 1, 1);
}

static void slow_reader_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct chaos chaos = { .threads = 4, .removals_of_100 = 1, .progress = &self->shared->counter[0] };
	struct vmm vmm;

	vmm_init(&vmm, self, &guest->image);
	/* On the same CPU as the one that is measured, so that the same pager has both. */
	vmm_pin(&vmm, 0);
	vmm_start(&vmm, guest->socket, guest->form);
	chaos_run_until(&vmm, &chaos, 'q');
}

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static double median_us(struct test_server *server, struct measure *measure, const char *id, uint64_t *ret_p90)
{
	fork_create(server, "quick", id, NULL, measure->guest.socket);
	struct client *client = client_start_sized(id, measure->samples, measured_body, measure);
	uint64_t *values = malloc(measure->samples * sizeof *values);

	client_await_end(client);
	memcpy(values, client->shared->values, measure->samples * sizeof *values);
	client_join(client);
	qsort(values, measure->samples, sizeof *values, compare_u64);
	uint64_t median = values[measure->samples / 2];
	*ret_p90 = values[measure->samples * 9 / 10];
	free(values);
	return (double)median / 1e3;
}

static void test_slow_image_does_not_slow_down_others(void **state)
{
	struct test_server *server = *state;
	struct measure measure = { .samples = scaled(2000) };
	struct guest slow = { 0 };
	uint64_t alone_p90, beside_p90;

	test_image_make(&slow.image, server->dir, "slow", 4096 * PAGE);
	test_image_make(&measure.guest.image, server->dir, "quick", (measure.samples + 1) * PAGE);
	template_add_inject(server, "slow", &slow.image, "delay=20ms");
	template_add(server, "quick", &measure.guest.image);

	double alone = median_us(server, &measure, "alone", &alone_p90);
	fork_create(server, "slow", "slow", NULL, slow.socket);
	struct client *client = client_start("slow", slow_reader_body, &slow);
	client_await_counter(client, 0, 8);
	double beside = median_us(server, &measure, "beside", &beside_p90);
	client_tell(client, 'q');
	client_join(client);

	print_message("median of a fault: %.1f us alone, %.1f us beside a slow image (90%%: %.1f and %.1f us)\n", alone,
		      beside, (double)alone_p90 / 1e3, (double)beside_p90 / 1e3);
	/* A pager that waited would take at least the image's delay for nearly every fault. */
	assert_true(beside < alone * 20 || beside < DELAY_MS * 1000 / 20.0);
	assert_true((double)beside_p90 / 1e3 < DELAY_MS * 1000 / 2.0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_unreadable_pages_raise_sigbus),
		SERVED(test_slow_and_unreadable),
		SERVED(test_wholly_unreadable_image_beside_a_good_one),
		SERVED(test_prefetch_over_unreadable_pages),
		SERVED(test_image_cut_under_live_forks),
		SERVED(test_image_cut_while_the_page_is_served),
		SERVED(test_image_cut_while_the_page_is_prefetched),
		SERVED(test_image_cut_before_the_fork),
		SERVED(test_image_cut_before_the_handshake),
		SERVED(test_what_is_no_image_is_refused),
		SERVED(test_slow_image_does_not_slow_down_others),
	};

	return harness_run(tests);
}
