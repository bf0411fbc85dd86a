/*
 * What one demand fault costs with the server, and with the least that could serve it: a loop of poll, read and copy from a mapped
 * image. The two take turns, page by page of fresh memory, with client and server on one CPU, so that a machine's moods hit both.
 *
 *	bench-fault-latency [-p PAGES] [-r ROUNDS] [-c CPU] [-w]
 *
 * -w: somebody has the image open for writing, as a QEMU whose memory backend it is: the server gets no lease on it.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "uffd/uffd.h"

#define PAGE 4096ul

static size_t pages = 8192;
static int rounds = 9;
static int cpu;
static bool writer;
static char dir[] = "/tmp/faultline-bench-XXXXXX";
static char image_path[128];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void pin(int to)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((size_t)to, &set);
	if (sched_setaffinity(0, sizeof set, &set) < 0)
		die("sched_setaffinity");
}

static uint64_t word_of(size_t page)
{
	return page * 0x9e3779b97f4a7c15ull + 1;
}

static void make_image(void)
{
	snprintf(image_path, sizeof image_path, "%s/image", dir);
	_cleanup_close_ int fd = open(image_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		die(image_path);
	uint64_t page[PAGE / 8];
	for (size_t i = 0; i < pages; i++) {
		for (size_t k = 0; k < PAGE / 8; k++)
			page[k] = word_of(i) + k;
		if (write(fd, page, sizeof page) != sizeof page)
			die("write");
	}
	fsync(fd);
}

static char *map_registered(int *ret_fd)
{
	char *memory =
		mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int fd = uffd_open();

	if (memory == MAP_FAILED || fd < 0)
		die("userfaultfd");
	madvise(memory, pages * PAGE, MADV_NOHUGEPAGE);
	if (uffd_negotiate(fd, UFFD_FEATURE_EVENT_REMOVE) != 1 ||
	    uffd_register_missing(fd, (uintptr_t)memory, pages * PAGE) < 0)
		die("register");
	*ret_fd = fd;
	return memory;
}

static void send_handshake(const char *socket_path, const char *memory, int uffd)
{
	char text[512];
	int n = snprintf(text, sizeof text,
			 "[{\"base_host_virt_addr\":%lu,\"size\":%lu,\"offset\":0,\"page_size\":4096,\"page_size_kib\":4096}]",
			 (unsigned long)(uintptr_t)memory, pages * PAGE);
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	snprintf(address.sun_path, sizeof address.sun_path, "%s", socket_path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
		die(socket_path);

	char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { .iov_base = text, .iov_len = (size_t)n };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &uffd, sizeof uffd);
	if (sendmsg(fd, &msg, 0) != n)
		die("sendmsg"); /* the socket stays open until this process ends */
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* Touches every page in a scattered order, checks it, and gives the sorted times. */
static void touch_all(char *memory, uint64_t *ns)
{
	for (size_t i = 0, page = 0; i < pages; i++, page = (page + 5003) % pages) {
		volatile uint64_t *p = (volatile uint64_t *)(memory + page * PAGE);
		uint64_t start = now_ns(), word = p[7];
		ns[i] = now_ns() - start;
		if (word != word_of(page) + 7) {
			fprintf(stderr, "page %zu has wrong bytes\n", page);
			exit(1);
		}
	}
	qsort(ns, pages, sizeof *ns, compare);
}

/* The child maps and touches; in the parent the round's p50 and p99 come back through a pipe. */
static void run_client(const char *socket_path, double *ret_p50, double *ret_p99)
{
	int result[2], handover[2];
	if (pipe(result) < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, handover) < 0)
		die("pipe");

	pid_t client = fork();
	if (client == 0) {
		int uffd;
		char *memory = map_registered(&uffd);
		uint64_t *ns = malloc(pages * sizeof *ns);
		memset(ns, 1, pages * sizeof *ns);
		if (socket_path) {
			send_handshake(socket_path, memory, uffd);
		} else {
			pid_t loop = fork();
			if (loop == 0) {
				int image = open(image_path, O_RDONLY);
				const char *bytes =
					mmap(NULL, pages * PAGE, PROT_READ, MAP_SHARED | MAP_POPULATE, image, 0);
				struct pollfd poll_fd = { .fd = uffd, .events = POLLIN };
				struct uffd_msg msg;
				for (;;) {
					if (poll(&poll_fd, 1, -1) < 0)
						_exit(1);
					if (read(uffd, &msg, sizeof msg) != sizeof msg)
						continue;
					uint64_t at = (msg.arg.pagefault.address & ~(PAGE - 1)) - (uintptr_t)memory;
					struct uffdio_copy copy = { .dst = (uintptr_t)memory + at,
								    .src = (uintptr_t)bytes + at,
								    .len = PAGE };
					if (ioctl(uffd, UFFDIO_COPY, &copy) < 0 && errno == ESRCH)
						_exit(0);
				}
			}
			touch_all(memory, ns);
			kill(loop, SIGKILL);
			waitpid(loop, NULL, 0);
		}
		if (socket_path)
			touch_all(memory, ns);
		double out[2] = { (double)ns[pages / 2] / 1e3, (double)ns[pages * 99 / 100] / 1e3 };
		_exit(write(result[1], out, sizeof out) != sizeof out);
	}
	close(result[1]);
	double in[2];
	if (read(result[0], in, sizeof in) != sizeof in)
		exit(1);
	waitpid(client, NULL, 0);
	close(result[0]);
	close(handover[0]);
	close(handover[1]);
	*ret_p50 = in[0];
	*ret_p99 = in[1];
}

static int run(const char *format, ...) __attribute__((format(printf, 1, 2)));
static int run(const char *format, ...)
{
	char command[1024];
	va_list ap;

	va_start(ap, format);
	vsnprintf(command, sizeof command, format, ap);
	va_end(ap);
	return system(command);
}

static pid_t start_server(const char *faultline)
{
	char notify_path[64], buffer[256];
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	snprintf(notify_path, sizeof notify_path, "%s/notify", dir);
	snprintf(address.sun_path, sizeof address.sun_path, "%s", notify_path);
	int notify = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (bind(notify, (struct sockaddr *)&address, sizeof address) < 0)
		die("bind");
	pid_t pid = fork();
	if (pid == 0) {
		setenv("NOTIFY_SOCKET", notify_path, 1);
		execl(faultline, "faultline", "serve", "--run-dir", dir, "--log-level", "error", (char *)NULL);
		die(faultline);
	}
	if (recv(notify, buffer, sizeof buffer, 0) < 0)
		die("recv");
	close(notify);
	return pid;
}

static double median(double *v, int n)
{
	for (int i = 0; i < n; i++)
		for (int k = i + 1; k < n; k++)
			if (v[k] < v[i]) {
				double t = v[i];
				v[i] = v[k];
				v[k] = t;
			}
	return v[n / 2];
}

int main(int argc, char **argv)
{
	const char *faultline = getenv("FAULTLINE") ?: "faultline";
	int option;

	while ((option = getopt(argc, argv, "p:r:c:w")) != -1) {
		if (option == 'p')
			pages = strtoul(optarg, NULL, 10);
		else if (option == 'r')
			rounds = atoi(optarg);
		else if (option == 'c')
			cpu = atoi(optarg);
		else if (option == 'w')
			writer = true;
		else
			return 2;
	}
	if (!mkdtemp(dir))
		die("mkdtemp");
	make_image();
	_cleanup_close_ int held = writer ? open(image_path, O_RDWR | O_CLOEXEC) : -1;
	if (writer && held < 0)
		die(image_path);
	pin(cpu); /* the server, its one pager and the clients inherit it */
	pid_t server = start_server(faultline);
	if (run("'%s' template add base --memory '%s' --run-dir '%s' >/dev/null", faultline, image_path, dir) != 0)
		return 1;

	double bare50[99], bare99[99], ours50[99], ours99[99], ratio[99];
	printf("round   bare loop p50  p99 us   server p50  p99 us   ratio of p50\n");
	for (int i = 0; i < rounds && i < 99; i++) {
		char socket_path[256];
		snprintf(socket_path, sizeof socket_path, "%s/r%d.uffd", dir, i);
		if (run("'%s' fork create base --id r%d --run-dir '%s' >/dev/null", faultline, i, dir) != 0)
			return 1;
		if (i % 2 == 0)
			run_client(NULL, &bare50[i], &bare99[i]);
		run_client(socket_path, &ours50[i], &ours99[i]);
		if (i % 2 == 1)
			run_client(NULL, &bare50[i], &bare99[i]);
		ratio[i] = ours50[i] / bare50[i];
		printf("%5d   %13.2f %7.2f   %10.2f %7.2f   %.3f\n", i + 1, bare50[i], bare99[i], ours50[i], ours99[i],
		       ratio[i]);
	}
	double middle = median(ratio, rounds);
	printf("median %14.2f %7.2f   %10.2f %7.2f   %.3f (%.3f to %.3f)\n", median(bare50, rounds),
	       median(bare99, rounds), median(ours50, rounds), median(ours99, rounds), middle, ratio[0],
	       ratio[rounds - 1]);
	kill(server, SIGTERM);
	waitpid(server, NULL, 0);
	run("rm -rf '%s'", dir);
	return 0;
}
