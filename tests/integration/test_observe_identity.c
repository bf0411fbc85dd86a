/* Whose fault is it? Told by the userfaultfd and the address space, so PIDs in any namespace, used twice or not, can't mislead. */
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "integration/observed_guest.h"

#define PAGES 300u

/* A guest in another process: it maps, hands its userfaultfd over, and reads its pages each time a byte comes. */
struct child {
	pid_t pid;
	int socket;
};

static void send_guest(int socket, const struct observed_guest *g)
{
	char room[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { .iov_base = (void *)g, .iov_len = sizeof *g };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &g->uffd, sizeof(int));
	assert_int_equal(sendmsg(socket, &message, 0), sizeof *g);
}

static void receive_guest(int socket, struct observed_guest *ret)
{
	char room[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { .iov_base = ret, .iov_len = sizeof *ret };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room };

	assert_int_equal(recvmsg(socket, &message, MSG_CMSG_CLOEXEC), sizeof *ret);
	memcpy(&ret->uffd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
	ret->stop_fd = eventfd(0, EFD_CLOEXEC);
}

/* What the child does: 'r' reads all its pages and compares them, 'q' ends it, and so does the end of the socket. */
static void be_guest(int socket)
{
	struct observed_guest g;
	char letter;

	observed_guest_map(&g, PAGES, -1);
	send_guest(socket, &g);
	while (read(socket, &letter, 1) == 1 && letter == 'r') {
		bool right = true;
		for (size_t page = 0; page < PAGES; page++)
			right = right && *(volatile uint64_t *)(g.memory + page * PAGE) == observed_guest_content(page);
		letter = right ? 'y' : 'n';
		if (write(socket, &letter, 1) != 1)
			break;
	}
	_exit(0);
}

/* With that PID (0: any), in a PID namespace of its own where FLAGS say so. */
static struct child child_new(uint64_t flags, pid_t pid)
{
	struct child child;
	int ends[2];
	struct clone_args args = {
		.flags = flags, .exit_signal = SIGCHLD, .set_tid = pid ? (uintptr_t)&pid : 0, .set_tid_size = pid != 0
	};

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	child.pid = (pid_t)syscall(SYS_clone3, &args, sizeof args);
	if (child.pid == 0) {
		close(ends[0]);
		be_guest(ends[1]);
	}
	assert_true(child.pid > 0);
	close(ends[1]);
	child.socket = ends[0];
	return child;
}

static void child_read(const struct child *child)
{
	char letter = 'r';

	assert_int_equal(write(child->socket, &letter, 1), 1);
	assert_int_equal(read(child->socket, &letter, 1), 1);
	assert_int_equal(letter, 'y');
}

static void child_end(struct child *child)
{
	assert_int_equal(write(child->socket, "q", 1), 1);
	close(child->socket);
	assert_int_equal(waitpid(child->pid, NULL, 0), child->pid);
}

/* Serves the child's memory, observed as ID. */
static void serve_child(struct observed_guest *g, const struct child *child, struct observe *observe, const char *id)
{
	receive_guest(child->socket, g);
	struct observer_region region = observed_guest_region(g);
	struct observer_fork fork = { .id = id,
				      .pid = child->pid,
				      .uffd = g->uffd,
				      .record = true,
				      .connected_ns = now_ns(),
				      .regions = &region,
				      .region_count = 1 };

	g->observer = observe_observer(observe);
	assert_int_equal(g->observer->attach(g->observer->data, &fork, &g->fork), 0);
	assert_int_equal(pthread_create(&g->pager, NULL, observed_guest_serve, g), 0);
}

static void stop_serving(struct observed_guest *g)
{
	eventfd_write(g->stop_fd, 1);
	pthread_join(g->pager, NULL);
	g->observer->release(g->observer->data, g->fork);
	close(g->uffd);
	close(g->stop_fd);
}

static void a_fork_in_another_pid_namespace_is_seen(void **state)
{
	struct observe *observe = observer_new(0);
	struct child child = child_new(CLONE_NEWPID, 0);
	struct observed_guest guest;

	(void)state;
	serve_child(&guest, &child, observe, "a");
	child_read(&child);
	struct observed_figures figures = observed_guest_wait_joined(&guest, PAGES);
	assert_int_equal(figures.faults, PAGES);
	assert_int_equal(figures.queue.count, PAGES);
	child_end(&child);
	stop_serving(&guest);
	observe_free(observe);
}

/* Both map at the same addresses, as children of one process do. */
static void two_processes_at_the_same_addresses_are_told_apart(void **state)
{
	struct observe *observe = observer_new(0);
	struct child a = child_new(0, 0), b = child_new(0, 0);
	struct observed_guest guest_a, guest_b;

	(void)state;
	serve_child(&guest_a, &a, observe, "a");
	serve_child(&guest_b, &b, observe, "b");
	assert_ptr_equal(guest_a.memory, guest_b.memory);
	child_read(&a);
	assert_int_equal(observed_guest_wait_joined(&guest_a, PAGES).faults, PAGES);
	assert_int_equal(observed_guest_figures(&guest_b).faults, 0);
	child_read(&b);
	assert_int_equal(observed_guest_wait_joined(&guest_b, PAGES).faults, PAGES);
	assert_int_equal(observed_guest_figures(&guest_a).faults, PAGES);
	child_end(&a);
	child_end(&b);
	stop_serving(&guest_a);
	stop_serving(&guest_b);
	observe_free(observe);
}

/* The first fork is dead and not yet detached; its PID, and its addresses, are somebody else's by now. */
static void a_pid_that_is_used_again_is_another_fork(void **state)
{
	struct observe *observe = observer_new(0);
	struct child first = child_new(0, 0);
	struct observed_guest old, stranger, young;
	pid_t pid = first.pid;

	(void)state;
	serve_child(&old, &first, observe, "old");
	child_read(&first);
	assert_int_equal(observed_guest_wait_joined(&old, PAGES).faults, PAGES);
	child_end(&first);

	/* Not observed at all: served by a guest's pager without a fork. */
	struct child second = child_new(0, pid);
	receive_guest(second.socket, &stranger);
	stranger.observer = observe_observer(observe);
	assert_int_equal(pthread_create(&stranger.pager, NULL, observed_guest_serve, &stranger), 0);
	child_read(&second);
	assert_int_equal(observed_guest_figures(&old).faults, PAGES);
	child_end(&second);
	eventfd_write(stranger.stop_fd, 1);
	pthread_join(stranger.pager, NULL);
	close(stranger.uffd);
	close(stranger.stop_fd);

	struct child third = child_new(0, pid);
	assert_int_equal(third.pid, pid);
	serve_child(&young, &third, observe, "young");
	child_read(&third);
	assert_int_equal(observed_guest_wait_joined(&young, PAGES).faults, PAGES);
	assert_int_equal(observed_guest_figures(&old).faults, PAGES);
	child_end(&third);
	stop_serving(&young);
	stop_serving(&old);
	observe_free(observe);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_fork_in_another_pid_namespace_is_seen),
		cmocka_unit_test(two_processes_at_the_same_addresses_are_told_apart),
		cmocka_unit_test(a_pid_that_is_used_again_is_another_fork),
	};

	return harness_run(tests);
}
