/* VMMs that end in every way, with faults in flight: the server forgets them, and the others never notice. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/chaos.h"
#include "integration/harness/client.h"
#include "integration/harness/list.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"

#define PAGES 2048ul

struct guest {
	char socket[SOCKET_PATH_MAX];
	struct test_image *image;
	struct vmm_form form;
	uint64_t salt;
};

struct scene {
	struct test_image image;
	struct guest guest;
	struct client *bystander;
};

static void bystander_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct chaos chaos = {
		.threads = 2, .removals_of_100 = 3, .writes_of_100 = 5, .progress = &self->shared->counter[0]
	};
	struct vmm vmm;

	vmm_init(&vmm, self, guest->image);
	vmm_start(&vmm, guest->socket, guest->form);
	chaos_run_until(&vmm, &chaos, 'q');
	vmm_check_all(&vmm);
}

/* Templates "base" and "slow" of one image, and a fork that is busy all the time. */
static void set_scene(struct test_server *server, struct scene *scene)
{
	memset(scene, 0, sizeof *scene);
	test_image_make(&scene->image, server->dir, "base", PAGES * PAGE);
	template_add(server, "base", &scene->image);
	template_add_inject(server, "slow", &scene->image, "delay=20ms");
	scene->guest.image = &scene->image;
	fork_create(server, "base", "bystander", NULL, scene->guest.socket);
	scene->bystander = client_start("bystander", bystander_body, &scene->guest);
}

static void end_scene(struct test_server *server, struct scene *scene)
{
	/* It goes on after all that. */
	client_await_counter(scene->bystander, 0, client_counter(scene->bystander, 0) + 100);
	client_tell(scene->bystander, 'q');
	client_join(scene->bystander);
	fork_check_good(server, "base", "afterwards", &scene->image);
}

static unsigned open_fds(pid_t pid)
{
	char path[40];
	unsigned count = 0;

	snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
	DIR *dir = opendir(path);
	if (!dir)
		fail_msg("cannot read %s: %s", path, strerror(errno));
	while (readdir(dir))
		count++;
	closedir(dir);
	return count;
}

static void victim_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct chaos chaos = { .threads = 4, .removals_of_100 = 5, .writes_of_100 = 5, .salt = guest->salt };
	struct vmm vmm;

	vmm_init(&vmm, self, guest->image);
	vmm_start(&vmm, guest->socket, guest->form);
	self->shared->counter[1] = (uint64_t)vmm.uffd;
	client_say(self, 'c');
	chaos_run(&vmm, &chaos);
}

static void kill_with_faults_in_flight(struct test_server *server, struct scene *scene, const char *template,
				       unsigned round)
{
	char id[32];

	scene->guest.salt = round;
	scene->guest.form = (struct vmm_form){ .json = round & 1, .fd = round & 1 };
	snprintf(id, sizeof id, "victim-%s-%u", template, round);
	fork_create(server, template, id, NULL, scene->guest.socket);
	struct client *client = client_start(id, victim_body, &scene->guest);
	client_await(client, 'c');
	fork_wait(server, id, "connected");
	assert_true(client_await_stuck(client, (int)client_counter(client, 1), 1 + round % 4, WAIT_S));
	client_kill(client);
	fork_wait(server, id, "gone");
	json_decref(command_ok(server, ARGS("fork", "remove", id)));
}

static void test_killed_with_faults_in_flight(void **state)
{
	struct test_server *server = *state;
	unsigned rounds = scaled(20);
	struct scene scene;

	set_scene(server, &scene);
	/* The first one opens what stays open. */
	kill_with_faults_in_flight(server, &scene, "slow", 1000);
	unsigned before = open_fds(server->pid);
	for (unsigned i = 0; i < rounds; i++)
		kill_with_faults_in_flight(server, &scene, "slow", i);
	unsigned after = open_fds(server->pid);
	/* A few for connections of commands that are being closed just now. */
	if (after > before + 4)
		fail_msg("%u rounds left %u descriptors open in the server", rounds, after - before);
	end_scene(server, &scene);
}

static void test_killed_under_prefetch(void **state)
{
	struct test_server *server = *state;
	struct list_entry list[PAGES];
	struct scene scene;
	char path[160], id[32];

	set_scene(server, &scene);
	template_add_inject(server, "crawling", &scene.image, "rate=4MB/s");
	for (uint64_t i = 0; i < PAGES; i++)
		list[i] = (struct list_entry){ 0, i * PAGE };
	snprintf(path, sizeof path, "%s/all.hpl", server->dir);
	list_write(path, list, PAGES);
	for (unsigned i = 0; i < scaled(8); i++) {
		struct test_command prefetch;

		snprintf(id, sizeof id, "victim%u", i);
		fork_create(server, "crawling", id, NULL, scene.guest.socket);
		struct client *client = client_start(id, victim_body, &scene.guest);
		client_await(client, 'c');
		fork_wait(server, id, "connected");
		command_start(&prefetch, server, ARGS("fork", "prefetch", id, path));
		assert_true(fork_await_prefetching(server, id, &prefetch));
		client_kill(client);
		struct test_result result = command_wait(&prefetch);
		if (result.exit_code == 0)
			fail_msg("prefetch into a VMM that was killed says that it succeeded: %s", result.out);
		result_clear(&result);
		fork_wait(server, id, "gone");
	}
	end_scene(server, &scene);
}

static void quiet_exit_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	vmm_init(&vmm, self, guest->image);
	vmm_start(&vmm, guest->socket, guest->form);
	vmm_check_all(&vmm);
}

static void test_quiet_end(void **state)
{
	struct test_server *server = *state;
	struct scene scene;

	set_scene(server, &scene);
	fork_create(server, "base", "quiet", NULL, scene.guest.socket);
	client_join(client_start("quiet", quiet_exit_body, &scene.guest));
	fork_wait(server, "quiet", "gone");
	_cleanup_free_ char *error = fork_string(server, "quiet", "error");
	assert_string_equal(error, "");
	end_scene(server, &scene);
}

static void exec_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	vmm_init(&vmm, self, guest->image);
	vmm_start(&vmm, guest->socket, guest->form);
	vmm_check_page(&vmm, &vmm.regions[0], 5);
	if (guest->salt)
		fcntl(vmm.conn, F_SETFD, 0); /* the socket outlives the memory */
	if (guest->salt == 2)
		fcntl(vmm.uffd, F_SETFD, 0);
	/* Waits for the test's letter as another program. */
	fcntl(self->talk, F_SETFD, 0);
	dup2(self->talk, 0);
	dup2(open("/dev/null", O_WRONLY), 1);
	client_say(self, 'e');
	execlp("head", "head", "-c1", NULL);
	_exit(1);
}

static void test_exec(void **state)
{
	static const char *const ids[] = { "exec", "exec-with-socket", "exec-with-both" };
	struct test_server *server = *state;
	struct scene scene;
	struct list_entry list[] = { { 0, 0 }, { 0, 100 * PAGE } };
	char path[160];

	set_scene(server, &scene);
	snprintf(path, sizeof path, "%s/list.hpl", server->dir);
	list_write(path, list, 2);
	for (unsigned i = 0; i < 3; i++) {
		char *id = (char *)ids[i];

		scene.guest.salt = i;
		fork_create(server, "base", id, NULL, scene.guest.socket);
		struct client *client = client_start(id, exec_body, &scene.guest);
		client_await(client, 'e');
		if (i == 0) {
			/* The end of the socket is the end of the VMM, also if the process goes on as something else. */
			fork_wait(server, id, "gone");
		} else {
			/* Its memory is gone at some moment now: no prefetch may hang or bring the server down. */
			struct test_result result = command(server, ARGS("fork", "prefetch", id, path));
			result_clear(&result);
		}
		client_tell(client, 'x');
		client_join_any(client);
		fork_wait(server, id, "gone");
	}
	end_scene(server, &scene);
}

static void hang_up_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct chaos chaos = { .threads = 2, .rounds = 40, .salt = guest->salt };
	struct vmm vmm;

	vmm_init(&vmm, self, guest->image);
	vmm_start(&vmm, guest->socket, guest->form);
	vmm_check_page(&vmm, &vmm.regions[0], 0);
	if (guest->salt)
		close(vmm.uffd); /* the server's is the only one now: closing it would turn faults into zero pages */
	client_say(self, 'c');
	client_hear(self, 'h');
	close(vmm.conn);
	chaos_run(&vmm, &chaos);
}

static void test_closes_its_socket_and_goes_on(void **state)
{
	struct test_server *server = *state;
	struct scene scene;

	set_scene(server, &scene);
	for (unsigned i = 0; i < scaled(20); i++) {
		char id[32];

		scene.guest.salt = i & 1;
		snprintf(id, sizeof id, "hang-up%u", i);
		fork_create(server, i & 2 ? "slow" : "base", id, NULL, scene.guest.socket);
		struct client *client = client_start(id, hang_up_body, &scene.guest);
		client_await(client, 'c');
		fork_wait(server, id, "connected");
		client_tell(client, 'h');
		/* Killed, or served to its end: it may not hang, and not read a wrong byte. */
		client_join_any(client);
		fork_wait(server, id, "gone");
	}
	end_scene(server, &scene);
}

static void orphan_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	vmm_init(&vmm, self, guest->image);
	vmm_start(&vmm, guest->socket, guest->form);
	vmm_check_page(&vmm, &vmm.regions[0], 1);
	pid_t child = fork();
	client_require(self, child >= 0, "fork failed");
	if (child == 0) {
		char letter;

		/* Holds the socket and the userfaultfd open for as long as the test wants. */
		_exit(read(self->talk, &letter, 1) == 1 ? 0 : 1);
	}
	client_say(self, 'f');
	for (;;)
		pause();
}

static void test_killed_while_a_child_holds_its_socket(void **state)
{
	struct test_server *server = *state;
	struct scene scene;

	set_scene(server, &scene);
	fork_create(server, "base", "parent", NULL, scene.guest.socket);
	struct client *client = client_start("parent", orphan_body, &scene.guest);
	client_await(client, 'f');
	fork_wait(server, "parent", "connected");
	kill(client->pid, SIGKILL);
	/* The process is what counts, not who else has its socket. */
	fork_wait(server, "parent", "gone");
	client_tell(client, 'x');
	client_join_killed(client);
	end_scene(server, &scene);
}

static void test_stopped_with_faults_in_flight(void **state)
{
	struct test_server *server = *state;
	struct scene scene;

	set_scene(server, &scene);
	fork_create(server, "slow", "stopped", NULL, scene.guest.socket);
	struct client *client = client_start("stopped", victim_body, &scene.guest);
	client_await(client, 'c');
	fork_wait(server, "stopped", "connected");
	assert_true(client_await_stuck(client, (int)client_counter(client, 1), 3, WAIT_S));
	kill(client->pid, SIGSTOP);
	int status;
	assert_int_equal(waitpid(client->pid, &status, WUNTRACED), client->pid);
	assert_true(WIFSTOPPED(status));
	client_await_counter(scene.bystander, 0, client_counter(scene.bystander, 0) + 2000);
	fork_check_good(server, "base", "meanwhile", &scene.image);
	kill(client->pid, SIGCONT);
	client_kill(client);
	fork_wait(server, "stopped", "gone");
	end_scene(server, &scene);
}

static void test_removed_by_force(void **state)
{
	struct test_server *server = *state;
	struct scene scene;

	set_scene(server, &scene);
	fork_create(server, "slow", "live", NULL, scene.guest.socket);
	struct client *client = client_start("live", victim_body, &scene.guest);
	client_await(client, 'c');
	fork_wait(server, "live", "connected");
	command_fails(server, ARGS("fork", "remove", "live"), 1, "live|connected|force");
	client_await_counter(scene.bystander, 0, client_counter(scene.bystander, 0) + 100);
	assert_false(client_has_ended(client));
	/* Whoever takes a fork away takes its VMM away: it could not go on with right bytes. */
	json_decref(command_ok(server, ARGS("fork", "remove", "live", "--force")));
	client_join_killed(client);
	command_fails(server, ARGS("fork", "show", "live"), 4, "live");
	end_scene(server, &scene);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_killed_with_faults_in_flight),
		SERVED(test_killed_under_prefetch),
		SERVED(test_quiet_end),
		SERVED(test_exec),
		SERVED(test_closes_its_socket_and_goes_on),
		SERVED(test_killed_while_a_child_holds_its_socket),
		SERVED(test_stopped_with_faults_in_flight),
		SERVED(test_removed_by_force),
	};

	return harness_run(tests);
}
