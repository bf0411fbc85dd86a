/* The plain work: every page of every kind of image, touched in every way, has the template's bytes. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/chaos.h"
#include "integration/harness/client.h"
#include "integration/harness/list.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"
#include "uffd/abi.h"

struct guest {
	char socket[SOCKET_PATH_MAX];
	struct test_image image;
	struct vmm_form form;
	unsigned threads;
	unsigned removals;
	uint64_t salt;
};

static void read_all_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &guest->image);
	vmm_start(&vmm, guest->socket, guest->form);
	vmm_check_all_shuffled(&vmm, guest->threads, guest->salt);
	/* Once more: what was right when it came must stay so. */
	vmm_check_all(&vmm);
}

static void read_all(struct test_server *server, struct guest *guest, const char *template, const char *id)
{
	fork_create(server, template, id, NULL, guest->socket);
	client_join(client_start(id, read_all_body, guest));
}

static void test_sizes_that_are_no_multiple_of_a_page(void **state)
{
	static const uint64_t sizes[] = { 1, 7, 4095, 4096, 4097, 2 * PAGE - 1, 33 * PAGE + 2048, 100 * PAGE + 13 };
	struct test_server *server = *state;

	for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
		struct guest guest = { .threads = 2, .salt = i };
		char name[32], id[40];

		snprintf(name, sizeof name, "size-%" PRIu64, sizes[i]);
		test_image_make(&guest.image, server->dir, name, sizes[i]);
		template_add(server, name, &guest.image);
		read_all(server, &guest, name, name);
		/* From the disk, where the last read comes back short. */
		test_image_evict(&guest.image);
		snprintf(id, sizeof id, "%s-cold", name);
		read_all(server, &guest, name, id);
	}
}

static void test_images_with_holes(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { .threads = 4, .image = { .hole_every = 3 } };
	struct guest mostly = { .threads = 4, .image = { .data_every = 17 } };

	test_image_make(&guest.image, server->dir, "holes", 500 * PAGE + 100);
	template_add(server, "holes", &guest.image);
	read_all(server, &guest, "holes", "holes");

	test_image_make(&mostly.image, server->dir, "sparse", 2000 * PAGE);
	test_image_evict(&mostly.image);
	template_add(server, "sparse", &mostly.image);
	read_all(server, &mostly, "sparse", "sparse");
}

static void test_cold_image_is_read_right_and_left_alone(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { .threads = 4 };

	test_image_make(&guest.image, server->dir, "cold", scaled(6000) * PAGE);
	uint64_t before = test_image_sum(&guest.image);
	test_image_evict(&guest.image);
	template_add(server, "cold", &guest.image);
	read_all(server, &guest, "cold", "cold");
	assert_true(before == test_image_sum(&guest.image));
}

struct together {
	pthread_barrier_t barrier;
	const uint32_t *order;
};

static void same_pages_thread(struct vmm *vmm, unsigned index, void *data)
{
	struct together *together = data;

	(void)index;
	for (uint64_t i = 0; i < vmm_pages(&vmm->regions[0]); i++) {
		/* In sixes, so that some threads run ahead onto the next page while others still wait on this one. */
		if (i % 6 == 0)
			pthread_barrier_wait(&together->barrier);
		vmm_check_page(vmm, &vmm->regions[0], together->order[i]);
	}
}

static void same_pages_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct together together;
	struct random random = random_from(11);
	uint32_t pages = (uint32_t)(guest->image.size / PAGE);
	_cleanup_free_ uint32_t *order = malloc(pages * sizeof *order);
	struct vmm vmm;

	random_order(&random, order, pages);
	together.order = order;
	pthread_barrier_init(&together.barrier, NULL, guest->threads);
	vmm_init(&vmm, self, &guest->image);
	vmm_start(&vmm, guest->socket, guest->form);
	vmm_threads(&vmm, guest->threads, same_pages_thread, &together);
	client_say(self, 'd');
	client_hear(self, 'q');
}

static void test_eight_threads_on_the_same_pages(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { .threads = 8 };

	test_image_make(&guest.image, server->dir, "base", scaled(3000) * PAGE);
	template_add(server, "base", &guest.image);
	for (int style = 0; style < 2; style++) {
		const char *id = style == VMM_HYPEMAN ? "raw" : "ready-made";

		guest.form = (struct vmm_form){ .json = style, .fd = style };
		fork_create(server, "base", id, NULL, guest.socket);
		struct client *client = client_start(id, same_pages_body, &guest);
		client_await(client, 'd');
		/* Eight asked, one copy was made. */
		assert_int_equal(fork_number(server, id, "copied_pages"), guest.image.size / PAGE);
		client_tell(client, 'q');
		client_join(client);
	}
}

static void mixed_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct chaos chaos = {
		.threads = guest->threads,
		.rounds = scaled(6000),
		.removals_of_100 = 6,
		.writes_of_100 = 10,
		.salt = guest->salt,
	};
	struct vmm vmm;

	vmm_init(&vmm, self, &guest->image);
	vmm_add_region(&vmm, guest->image.size / 2, 0);
	vmm_add_region(&vmm, guest->image.size / 2, guest->image.size / 2);
	vmm_start(&vmm, guest->socket, guest->form);
	client_say(self, 'c');
	chaos_run(&vmm, &chaos);
	vmm_check_all(&vmm);
	client_say(self, 'd');
	client_hear(self, 'q');
	vmm_check_all(&vmm);
}

static void test_touches_removals_and_prefetch_at_once(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { .threads = 4 };
	uint64_t pages = 4096;
	_cleanup_free_ struct list_entry *list = calloc(pages, sizeof *list);
	char path[160], id[16];

	test_image_make(&guest.image, server->dir, "base", pages * PAGE);
	template_add(server, "base", &guest.image);
	for (uint64_t i = 0; i < pages; i++)
		list[i] = (struct list_entry){ i / (pages / 2), i % (pages / 2) * PAGE };
	snprintf(path, sizeof path, "%s/all.hpl", server->dir);
	list_write(path, list, pages);

	for (unsigned round = 0; round < scaled(8); round++) {
		guest.form = (struct vmm_form){ .json = round & 1, .fd = round & 1 };
		guest.salt = round;
		snprintf(id, sizeof id, "mix%u", round);
		fork_create(server, "base", id, NULL, guest.socket);
		struct client *client = client_start(id, mixed_body, &guest);
		client_await(client, 'c');
		fork_wait(server, id, "connected");
		json_decref(command_ok(server, ARGS("fork", "prefetch", id, path)));
		client_await(client, 'd');
		json_decref(command_ok(server, ARGS("fork", "prefetch", id, path)));
		client_tell(client, 'q');
		client_join(client);
	}
}

static void system_calls_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;
	int ends[2];
	char buffer[PAGE];

	vmm_init(&vmm, self, &guest->image);
	vmm_start(&vmm, guest->socket, guest->form);
	client_require(self, pipe(ends) == 0, "pipe failed");
	for (uint64_t page = 0; page < vmm_pages(&vmm.regions[0]); page++) {
		char *at = vmm.regions[0].address + page * PAGE;

		if (page % 2) {
			/* The kernel reads the absent page. */
			client_require(self, write(ends[1], at, PAGE) == (ssize_t)PAGE, "write from guest memory: %s",
				       strerror(errno));
			client_require(self, read(ends[0], buffer, PAGE) == (ssize_t)PAGE, "short pipe");
			for (unsigned i = 0; i < PAGE / 8; i++)
				client_require(self, ((uint64_t *)buffer)[i] == test_image_word(&guest->image, page, i),
					       "page %" PRIu64 " word %u as the kernel read it is wrong", page, i);
		} else {
			/* The kernel writes 16 bytes into the absent page: the rest must be the template's. */
			client_require(self, write(ends[1], "0123456789abcdef", 16) == 16, "short pipe");
			client_require(self, read(ends[0], at + 64, 16) == 16, "read into guest memory: %s",
				       strerror(errno));
			for (unsigned i = 0; i < PAGE / 8; i++)
				client_require(self,
					       i == 8 || i == 9 ||
						       ((uint64_t *)at)[i] == test_image_word(&guest->image, page, i),
					       "page %" PRIu64 " word %u beside what the kernel wrote is wrong", page,
					       i);
			client_require(self, !memcmp(at + 64, "0123456789abcdef", 16), "what the kernel wrote is lost");
		}
	}
}

static void test_faults_of_the_kernel_itself(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { 0 };

	test_image_make(&guest.image, server->dir, "base", 200 * PAGE);
	template_add(server, "base", &guest.image);
	for (int style = 0; style < 2; style++) {
		guest.form = (struct vmm_form){ .json = style, .fd = style };
		const char *id = style ? "raw" : "ready-made";

		fork_create(server, "base", id, NULL, guest.socket);
		client_join(client_start(id, system_calls_body, &guest));
	}
}

#define WAITERS 4

static void waiting_thread(struct vmm *vmm, unsigned index, void *data)
{
	struct vmm_region *region = &vmm->regions[0];
	uint64_t page = *(uint64_t *)data;

	if (index < WAITERS) {
		vmm_check_page(vmm, region, page);
		return;
	}
	/* Puts the page there behind the server's back, without waking those who wait for it. */
	uint64_t words[PAGE / 8];
	for (unsigned i = 0; i < PAGE / 8; i++)
		words[i] = test_image_word(vmm->image, page, i);
	unsigned pending, total = 0;
	while (total < WAITERS && !vmm_is_present(vmm, region, page))
		client_require(vmm->self, uffd_waiters(getpid(), vmm->uffd, &pending, &total), "no fdinfo");
	struct uffdio_copy copy = {
		.dst = (uintptr_t)region->address + page * PAGE,
		.src = (uintptr_t)words,
		.len = PAGE,
		.mode = UFFDIO_COPY_MODE_DONTWAKE,
	};
	client_require(vmm->self, ioctl(vmm->uffd, UFFDIO_COPY, &copy) == 0 || errno == EEXIST, "UFFDIO_COPY: %s",
		       strerror(errno));
}

static void waiting_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &guest->image);
	vmm_start(&vmm, guest->socket, guest->form);
	for (uint64_t page = 0; page < vmm_pages(&vmm.regions[0]); page++)
		vmm_threads(&vmm, WAITERS + 1, waiting_thread, &page);
}

/* A copy that finds the page there wakes nobody: whoever had faulted before would sleep for ever. */
static void test_waiters_on_a_page_that_is_there_are_woken(void **state)
{
	struct test_server *server = *state;
	struct guest guest = { 0 };

	test_image_make(&guest.image, server->dir, "base", 12 * PAGE);
	template_add_inject(server, "slow", &guest.image, "delay=100ms");
	fork_create(server, "slow", "fork", NULL, guest.socket);
	client_join(client_start("fork", waiting_body, &guest));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_sizes_that_are_no_multiple_of_a_page),	SERVED(test_images_with_holes),
		SERVED(test_cold_image_is_read_right_and_left_alone),	SERVED(test_eight_threads_on_the_same_pages),
		SERVED(test_touches_removals_and_prefetch_at_once),	SERVED(test_faults_of_the_kernel_itself),
		SERVED(test_waiters_on_a_page_that_is_there_are_woken),
	};

	return harness_run(tests);
}
