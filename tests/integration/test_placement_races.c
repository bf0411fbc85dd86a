/* Forks whose threads move about the CPUs all the time, so that pagers come and go while they have faults, removals, prefetch, and ends. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/chaos.h"
#include "integration/harness/client.h"
#include "integration/harness/cpus.h"
#include "integration/harness/list.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"
#include "uffd/abi.h"

#define PAGES 4096ul

enum { ACTIONS }; /* counter of actions done */

static struct cpu_choice choice;

struct guest {
	char socket[SOCKET_PATH_MAX];
	const struct test_image *image;
	struct vmm_form form;
	struct chaos chaos;
	unsigned regions;
};

/* ---- a guest that migrates ---- */

struct migrator {
	struct vmm *vmm;
	uint64_t salt;
};

static void *migrator_main(void *data)
{
	struct migrator *migrator = data;

	migrate_all_threads(migrator->vmm, &choice, migrator->salt);
	return NULL;
}

static void start_vmm(struct vmm *vmm, struct client_self *self, struct guest *guest)
{
	uint64_t size = guest->image->size / guest->regions;

	vmm_init(vmm, self, guest->image);
	for (unsigned i = 0; i < guest->regions; i++)
		vmm_add_region(vmm, size, i * size);
	vmm_start(vmm, guest->socket, guest->form);
}

static void migrating_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;
	struct migrator migrator = { &vmm, guest->chaos.salt };
	pthread_t thread;

	start_vmm(&vmm, self, guest);
	guest->chaos.progress = &self->shared->counter[ACTIONS];
	client_require(self, pthread_create(&thread, NULL, migrator_main, &migrator) == 0, "no thread");
	client_say(self, 'c');
	chaos_run(&vmm, &guest->chaos);
	vmm_check_all_shuffled(&vmm, 2, guest->chaos.salt);
	atomic_store(&vmm.stop, true);
	pthread_join(thread, NULL);
	client_say(self, 'd');
	client_hear(self, 'q');
	vmm_check_all(&vmm);
}

static void add_templates(struct test_server *server, struct test_image *image)
{
	test_image_make(image, server->dir, "base", PAGES * PAGE);
	template_add(server, "base", image);
	/* Its faults are in flight for longer than a pager stays. */
	template_add_inject(server, "slow", image, "delay=3ms");
}

static void write_whole_list(const char *path, unsigned regions)
{
	_cleanup_free_ struct list_entry *list = calloc(PAGES, sizeof *list);
	uint64_t each = PAGES / regions;

	for (uint64_t i = 0; i < PAGES; i++)
		list[i] = (struct list_entry){ i / each, i % each * PAGE };
	list_write(path, list, PAGES);
}

static void test_faults_removals_and_prefetch_on_the_move(void **state)
{
	static const char *const templates[] = { "base", "slow", "base" };
	struct test_server *server = *state;
	struct test_image image = { 0 };
	char path[160], id[24];

	add_templates(server, &image);
	snprintf(path, sizeof path, "%s/all.hpl", server->dir);
	write_whole_list(path, 2);
	for (unsigned round = 0; round < scaled(6); round++) {
		struct client *clients[3];
		struct test_command prefetch[3];

		for (unsigned i = 0; i < 3; i++) {
			struct guest guest = {
				.image = &image,
				.form = { .json = i & 1, .fd = round & 1 },
				.chaos = { .threads = i + 1,
					   .rounds = scaled(i == 1 ? 2500 : 8000),
					   .removals_of_100 = 8,
					   .writes_of_100 = 10,
					   .salt = round * 10 + i },
				.regions = 2,
			};
			snprintf(id, sizeof id, "round%u-%u", round, i);
			fork_create(server, templates[i], id, NULL, guest.socket);
			clients[i] = client_start(id, migrating_body, &guest);
		}
		for (unsigned i = 0; i < 3; i++) {
			snprintf(id, sizeof id, "round%u-%u", round, i);
			client_await(clients[i], 'c');
			fork_wait(server, id, "connected");
			client_await_counter(clients[i], ACTIONS, 100);
			command_start(&prefetch[i], server, ARGS("fork", "prefetch", id, path));
		}
		for (unsigned i = 0; i < 3; i++) {
			struct test_result result = command_wait(&prefetch[i]);
			if (result.exit_code != 0) {
				/* One that found a wrong byte has ended, and says so. */
				if (client_has_ended(clients[i]))
					client_join(clients[i]);
				fail_msg("prefetch %u: %s", i, result.err);
			}
			result_clear(&result);
		}
		for (unsigned i = 0; i < 3; i++) {
			snprintf(id, sizeof id, "round%u-%u", round, i);
			client_await(clients[i], 'd');
			json_decref(command_ok(server, ARGS("fork", "prefetch", id, path)));
			client_tell(clients[i], 'q');
			client_join(clients[i]);
		}
	}
}

/* ---- ends ---- */

static struct client *start_endless(struct test_server *server, const struct test_image *image, const char *template,
				    const char *id, uint64_t salt)
{
	struct guest guest = {
		.image = image,
		.form = { .json = salt & 1, .fd = salt >> 1 & 1 },
		.chaos = { .threads = 3, .removals_of_100 = 10, .writes_of_100 = 5, .salt = salt },
		.regions = 1,
	};

	fork_create(server, template, id, NULL, guest.socket);
	return client_start(id, migrating_body, &guest);
}

static void test_vmms_that_die_on_the_move(void **state)
{
	struct test_server *server = *state;
	struct test_image image = { 0 };
	struct random random = random_from(5);
	char id[24];

	add_templates(server, &image);
	struct client *witness = start_endless(server, &image, "base", "witness", 1);
	for (unsigned round = 0; round < scaled(40); round++) {
		snprintf(id, sizeof id, "fork%u", round);
		struct client *client = start_endless(server, &image, round % 3 ? "base" : "slow", id, round);
		client_await(client, 'c');
		client_await_counter(client, ACTIONS, random_below(&random, 3000));
		if (round & 1) {
			client_kill(client);
			fork_wait(server, id, "gone");
		} else {
			json_decref(command_ok(server, ARGS("fork", "remove", id, "--force")));
			client_join_killed(client);
		}
		/* Nobody else is held up. */
		client_await_counter(witness, ACTIONS, client_counter(witness, ACTIONS) + 200);
	}
	client_kill(witness);
	fork_wait(server, "witness", "gone");
	fork_check_good(server, "base", "after", &image);
}

static void test_server_that_stops_on_the_move(void **state)
{
	struct test_server *server = *state;
	struct test_image image = { 0 };
	struct random random = random_from(6);

	for (unsigned round = 0; round < scaled(12); round++) {
		struct client *clients[4];
		char id[24];

		if (round == 0)
			add_templates(server, &image);
		else
			test_server_start(server);
		for (unsigned i = 0; i < 4; i++) {
			snprintf(id, sizeof id, "fork%u-%u", round, i);
			clients[i] = start_endless(server, &image, i % 2 ? "base" : "slow", id, round * 4 + i);
		}
		for (unsigned i = 0; i < 4; i++) {
			client_await(clients[i], 'c');
			client_await_counter(clients[i], ACTIONS, 1 + random_below(&random, 500));
		}
		test_server_signal(server, SIGTERM);
		assert_int_equal(test_server_wait_end(server), 0);
		for (unsigned i = 0; i < 4; i++)
			client_join_killed(clients[i]);
		test_server_check_log(server);
	}
}

/* ---- a descriptor that becomes blocking ---- */

struct flip {
	_Atomic bool stop;
	_Atomic uint64_t pages;
	uint64_t after;
};

static void flip_thread(struct vmm *vmm, unsigned index, void *data)
{
	struct flip *flip = data;
	struct vmm_region *region = &vmm->regions[0];

	if (index == 0) {
		for (uint64_t i = 0; !atomic_load(&flip->stop); i++) {
			uint64_t page = i % vmm_pages(region);
			if (page == 0 && i > 0)
				vmm_remove(vmm, region, 0, vmm_pages(region));
			vmm_check_page(vmm, region, page);
			atomic_fetch_add(&flip->pages, 1);
		}
		return;
	}
	while (atomic_load(&flip->pages) < flip->after)
		sched_yield();
	client_require(vmm->self, fcntl(vmm->uffd, F_SETFL, 0) == 0, "fcntl: %s", strerror(errno));
	atomic_store(&flip->stop, true);
}

static void flipping_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct flip flip = { .after = guest->chaos.salt };
	struct vmm vmm;

	start_vmm(&vmm, self, guest);
	vmm_threads(&vmm, 2, flip_thread, &flip);
	client_say(self, 'd');
	client_hear(self, 'q');
	vmm_check_all(&vmm);
}

static bool kernel_reads_without_waiting(void)
{
	_cleanup_close_ int fd = vmm_new_uffd();
	struct uffdio_api api = { .api = UFFD_API };
	struct uffd_msg message;
	struct iovec iov = { &message, sizeof message };

	return fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0 && preadv2(fd, &iov, 1, -1, RWF_NOWAIT) < 0 &&
	       errno == EAGAIN;
}

/* At any moment, also when a pager is about to read and nothing is there: it would wait for this fork, and all its others with it. */
static void test_blocking_descriptors_hold_nobody_up(void **state)
{
	struct test_server *server = *state;
	struct test_image image = { 0 };
	struct random random = random_from(7);
	char id[24];

	if (!kernel_reads_without_waiting()) {
		print_message("skipped: this kernel (before 6.10) can't read a blocking userfaultfd without waiting\n");
		skip();
	}
	add_templates(server, &image);
	struct client *witness = start_endless(server, &image, "base", "witness", 1);
	client_await(witness, 'c');
	for (unsigned round = 0; round < scaled(60); round++) {
		struct guest guest = { .image = &image,
				       .form = { .json = round & 1, .fd = round & 1 },
				       .chaos.salt = random_below(&random, PAGES * 3 / 2),
				       .regions = 1 };

		snprintf(id, sizeof id, "fork%u", round);
		fork_create(server, "base", id, NULL, guest.socket);
		struct client *client = client_start(id, flipping_body, &guest);
		client_await(client, 'd');
		client_await_counter(witness, ACTIONS, client_counter(witness, ACTIONS) + 200);
		client_tell(client, 'q');
		client_join(client);
	}
	client_kill(witness);
}

/* ---- many come and go ---- */

#define CROWD	   200
#define AT_ONCE	   20
#define WITNESSES  3
#define CROWD_SIZE 64ul

static void short_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	client_require(self, cpu_pin(0, choice.cpus[guest->chaos.salt & 1]) == 0, "cannot be on that CPU");
	start_vmm(&vmm, self, guest);
	vmm_check_all_shuffled(&vmm, 1 + guest->chaos.salt % 2, guest->chaos.salt);

	client_require(self, cpu_pin(0, choice.cpus[~guest->chaos.salt & 1]) == 0, "cannot be on that CPU");
	vmm_remove(&vmm, &vmm.regions[0], guest->chaos.salt % CROWD_SIZE, 1);
	vmm_check_all(&vmm);
}

static void test_forks_come_and_go_beside_others(void **state)
{
	struct test_server *server = *state;
	struct test_image image = { 0 }, small = { 0 };
	struct client *witnesses[WITNESSES], *crowd[AT_ONCE];
	uint64_t seen[WITNESSES];
	char id[24];

	add_templates(server, &image);
	test_image_make(&small, server->dir, "small", CROWD_SIZE * PAGE);
	template_add(server, "small", &small);
	for (unsigned i = 0; i < WITNESSES; i++) {
		snprintf(id, sizeof id, "witness%u", i);
		witnesses[i] = start_endless(server, &image, i ? "base" : "slow", id, i);
	}
	for (unsigned i = 0; i < WITNESSES; i++)
		client_await(witnesses[i], 'c');

	unsigned waves = scaled(CROWD / AT_ONCE);
	for (unsigned wave = 0; wave < waves; wave++) {
		for (unsigned i = 0; i < WITNESSES; i++)
			seen[i] = client_counter(witnesses[i], ACTIONS);
		for (unsigned i = 0; i < AT_ONCE; i++) {
			struct guest guest = { .image = &small,
					       .form = { .json = i & 1, .fd = i >> 1 & 1 },
					       .chaos.salt = wave * AT_ONCE + i,
					       .regions = 1 };

			snprintf(id, sizeof id, "fork%u-%u", wave, i);
			fork_create(server, "small", id, NULL, guest.socket);
			crowd[i] = client_start(id, short_body, &guest);
		}
		for (unsigned i = 0; i < AT_ONCE; i++)
			client_join(crowd[i]);
		for (unsigned i = 0; i < AT_ONCE; i++) {
			snprintf(id, sizeof id, "fork%u-%u", wave, i);
			fork_wait(server, id, "gone");
		}
		for (unsigned i = 0; i < WITNESSES; i++)
			client_await_counter(witnesses[i], ACTIONS, seen[i] + 100);
	}
	for (unsigned i = 0; i < WITNESSES; i++)
		client_kill(witnesses[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_faults_removals_and_prefetch_on_the_move),
		SERVED(test_vmms_that_die_on_the_move),
		SERVED(test_server_that_stops_on_the_move),
		SERVED(test_blocking_descriptors_hold_nobody_up),
		SERVED(test_forks_come_and_go_beside_others),
	};

	cpus_require(choice.cpus, 2);
	return harness_run(tests);
}
