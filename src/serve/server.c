/* The server's life: run directory, main loop, stop. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "serve/hot_sets.h"
#include "serve/internal.h"
#include "serve/refresh.h"
#include "serve/vmm_talk.h"

#define EPOLL_EVENTS 64

/* Prefetch has threads of its own; two keep a second CPU busy without crowding out the guests. */
#define PREFETCH_WORKERS 2

/* Between SIGKILL to the VMMs and giving up on those that do not die. */
#define STOP_TIMEOUT_NS (10 * NSEC_PER_SEC)

/* A VMM that has closed its socket but runs on is looked at this often. */
#define LINGER_NS (100 * NSEC_PER_MSEC)

/* ---- epoll ---- */

int server_watch(struct server *server, int fd, struct watch *watch, enum watch_kind kind, void *object)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLRDHUP, .data.ptr = watch };

	*watch = (struct watch){ .kind = kind, .object = object };
	return epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

void server_unwatch(struct server *server, int fd)
{
	if (fd >= 0)
		epoll_ctl(server->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
}

void server_wake(struct server *server)
{
	eventfd_write(server->wake_fd, 1);
}

static bool any_lingering(const struct server *server)
{
	for (const struct fork *fork = server->forks; fork; fork = fork->next)
		if (fork->lingering)
			return true;
	return false;
}

void server_arm_timer(struct server *server)
{
	uint64_t at = server_next_deadline(server);
	struct itimerspec spec = { 0 };

	if (any_lingering(server)) {
		uint64_t look = now_ns() + LINGER_NS;
		if (at == 0 || look < at)
			at = look;
	}
	if (at) {
		spec.it_value.tv_sec = (time_t)(at / NSEC_PER_SEC);
		spec.it_value.tv_nsec = (long)(at % NSEC_PER_SEC);
	}
	timerfd_settime(server->timer_fd, TFD_TIMER_ABSTIME, &spec, NULL);
}

/* ---- forks' VMMs ---- */

/* Hears what the VMM says after the handshake; descriptors with it mean nothing, and are closed. False: end of stream. */
static bool drain_socket(struct server *server, struct fork *fork)
{
	char bytes[4096], control[CMSG_SPACE(16 * sizeof(int))];
	struct iovec iov = { .iov_base = bytes, .iov_len = sizeof bytes };

	for (int rounds = 0; rounds < 16; rounds++) {
		struct msghdr msg = {
			.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control
		};
		ssize_t n = recvmsg(fork->socket_fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

		if (n < 0)
			return errno == EAGAIN || errno == EINTR;
		for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
			if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
				continue;
			size_t fds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
			for (size_t i = 0; i < fds; i++) {
				int fd;
				memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
				close(fd);
			}
		}
		if (n == 0)
			return false;
		vmm_talk_heard(server, fork, bytes, (size_t)n);
	}
	return true;
}

/*
 * WHAT says that the VMM is gone. One whose memory is still mapped and registered would read zeros or hang if that were believed: it is
 * served on until the memory goes.
 */
static void end_or_linger(struct server *server, struct fork *fork, const char *what)
{
	if (!fork_memory_mapped(fork)) {
		fork_end(server, fork);
		return;
	}
	/* A process that is being killed may be seen in the middle of it. */
	if (!fork->stopping && !fork->lingering && !fork_process_ended(fork))
		log_warning(fork->session->name, "%s (pid %d), but its memory is still mapped: serving it on", what,
			    (int)fork->pid);
	fork->lingering = true;
}

static void socket_readable(struct server *server, struct fork *fork)
{
	if (drain_socket(server, fork))
		return;
	server_unwatch(server, fork->socket_fd);
	end_or_linger(server, fork, "its VMM has closed its socket");
}

static void process_readable(struct server *server, struct fork *fork)
{
	server_unwatch(server, fork->session->pidfd);
	end_or_linger(server, fork, "the process that made its connection has ended");
}

static void look_at_lingering(struct server *server)
{
	for (struct fork *fork = server->forks, *next; fork; fork = next) {
		next = fork->next;
		if (fork->lingering && !fork_memory_mapped(fork))
			fork_end(server, fork);
	}
}

/* ---- main loop ---- */

static void begin_stop(struct server *server)
{
	if (server->stopping)
		return;
	server->stopping = true;
	pthread_cond_broadcast(&server->changed);
	log_info(NULL, "stopping");
	for (struct fork *fork = server->forks, *next; fork; fork = next) {
		next = fork->next;
		if (fork->state == FORK_WAITING) {
			fork_drop(server, fork);
		} else if (fork->state != FORK_GONE) {
			fork->stopping = true;
			session_stop_vmm(fork->session,
					 "the server was stopped, and its memory would have been incomplete from then on");
		}
	}
}

static void handle(struct server *server, struct watch *watch)
{
	struct fork *fork = watch->object;

	switch (watch->kind) {
	case WATCH_SIGNAL: {
		struct signalfd_siginfo info;
		while (read(server->signal_fd, &info, sizeof info) == sizeof info)
			if (info.ssi_signo == SIGTERM || info.ssi_signo == SIGINT)
				begin_stop(server);
			else
				keeper_break(server->keeper);
		break;
	}
	case WATCH_WAKE: {
		eventfd_t ignored;
		eventfd_read(server->wake_fd, &ignored);
		break;
	}
	case WATCH_TIMER: {
		uint64_t ignored;
		if (read(server->timer_fd, &ignored, sizeof ignored) < 0)
			break;
		server_expire_peers(server, now_ns());
		look_at_lingering(server);
		break;
	}
	case WATCH_IMAGES:
		keeper_look(server->keeper);
		break;
	case WATCH_LISTENER:
		if (!fork->removed && fork->state == FORK_WAITING)
			fork_accept(server, fork);
		break;
	case WATCH_PEER: {
		struct peer *peer = watch->object;
		if (peer->fd >= 0)
			peer_readable(server, peer);
		break;
	}
	case WATCH_SOCKET:
		if (!fork->removed && fork->state != FORK_GONE)
			socket_readable(server, fork);
		break;
	case WATCH_PROCESS:
		if (!fork->removed && fork->state != FORK_GONE)
			process_readable(server, fork);
		break;
	}
}

/* After a batch no event can name them any more. */
static void bury(struct server *server)
{
	while (server->dead_peers) {
		struct peer *peer = server->dead_peers;
		server->dead_peers = peer->next;
		free(peer->text);
		free(peer);
	}
	while (server->dead_forks) {
		struct fork *fork = server->dead_forks;
		server->dead_forks = fork->next;
		fork_free(fork);
	}
}

static bool any_live(const struct server *server)
{
	for (const struct fork *fork = server->forks; fork; fork = fork->next)
		if (fork->state == FORK_CONNECTED || fork->state == FORK_READY)
			return true;
	return false;
}

int server_run(struct server *server, void (*on_ready)(void *), void *data, struct error *err)
{
	struct epoll_event events[EPOLL_EVENTS];
	uint64_t give_up_ns = 0;
	bool told = false;

	if (on_ready)
		on_ready(data);
	for (;;) {
		int timeout = give_up_ns ? 100 : -1;
		int n = epoll_wait(server->epoll_fd, events, EPOLL_EVENTS, timeout);
		if (n < 0 && errno != EINTR)
			return error_set(err, -errno, "io_error", "epoll_wait failed: %s", strerror(errno));

		pthread_mutex_lock(&server->lock);
		for (int i = 0; i < n; i++)
			handle(server, events[i].data.ptr);
		bury(server);
		server_arm_timer(server);
		bool stopping = server->stopping, live = stopping && any_live(server);
		pthread_mutex_unlock(&server->lock);

		if (!stopping)
			continue;
		if (!told) {
			told = true;
			give_up_ns = now_ns() + STOP_TIMEOUT_NS;
			if (server->on_stop)
				server->on_stop(server->on_stop_data);
		}
		if (!live)
			return 0;
		if (now_ns() > give_up_ns) {
			log_error(NULL, "not all VMMs have ended %llu s after SIGKILL: leaving all the same",
				  (unsigned long long)(STOP_TIMEOUT_NS / NSEC_PER_SEC));
			return 0;
		}
	}
}

void server_on_stop(struct server *server, void (*on_stop)(void *), void *data)
{
	server->on_stop = on_stop;
	server->on_stop_data = data;
}

/* ---- setting up ---- */

static int take_lock(struct server *server, struct error *err)
{
	_cleanup_free_ char *path = NULL;
	if (asprintf(&path, "%s/lock", server->run_dir) < 0)
		return error_set(err, -ENOMEM, "io_error", "out of memory");

	server->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (server->lock_fd < 0)
		return error_set(err, -errno, "bad_run_dir", "cannot open '%s': %s", path, strerror(errno));

	char pid[32] = "";
	if (flock(server->lock_fd, LOCK_EX | LOCK_NB) < 0) {
		ssize_t n = read(server->lock_fd, pid, sizeof pid - 1);
		if (n > 0)
			pid[strcspn(pid, "\n")] = '\0';
		return error_set(err, -EBUSY, "run_dir_busy",
				 "another faultline server%s%s has the run directory '%s': stop it, or give this one a "
				 "directory of its own with --run-dir",
				 n > 0 ? ", pid " : "", pid, server->run_dir);
	}
	int length = snprintf(pid, sizeof pid, "%d\n", (int)getpid());
	if (ftruncate(server->lock_fd, 0) < 0 || write(server->lock_fd, pid, (size_t)length) < 0)
		return error_set(err, -errno, "bad_run_dir", "cannot write '%s': %s", path, strerror(errno));
	return 0;
}

static int make_run_dir(struct server *server, struct error *err)
{
	struct stat st;

	if (mkdir(server->run_dir, 0700) < 0 && errno != EEXIST)
		return error_set(err, -errno, "bad_run_dir", "cannot make the run directory '%s': %s", server->run_dir,
				 strerror(errno));
	if (stat(server->run_dir, &st) < 0 || !S_ISDIR(st.st_mode))
		return error_set(err, -ENOTDIR, "bad_run_dir", "the run directory '%s' is not a directory",
				 server->run_dir);
	if (st.st_uid != geteuid())
		return error_set(err, -EPERM, "bad_run_dir",
				 "the run directory '%s' belongs to user %u, not to user %u who runs this server",
				 server->run_dir, st.st_uid, geteuid());
	if ((st.st_mode & 07777) != 0700 && chmod(server->run_dir, 0700) < 0)
		return error_set(err, -errno, "bad_run_dir", "cannot make the run directory '%s' private (0700): %s",
				 server->run_dir, strerror(errno));

	char *resolved = realpath(server->run_dir, NULL);
	if (!resolved)
		return error_set(err, -errno, "bad_run_dir", "cannot resolve '%s': %s", server->run_dir,
				 strerror(errno));
	free(server->run_dir);
	server->run_dir = resolved;
	if (asprintf(&server->template_dir, "%s/templates", server->run_dir) < 0)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	if (mkdir(server->template_dir, 0700) < 0 && errno != EEXIST)
		return error_set(err, -errno, "bad_run_dir", "cannot make '%s': %s", server->template_dir,
				 strerror(errno));
	return 0;
}

/* The lock is ours: sockets of forks in here belong to a server that is no more. */
static void remove_stale_sockets(const struct server *server)
{
	DIR *dir = opendir(server->run_dir);
	struct dirent *entry;
	struct stat st;

	if (!dir)
		return;
	while ((entry = readdir(dir))) {
		size_t length = strlen(entry->d_name);
		if (length > 5 && strcmp(entry->d_name + length - 5, ".uffd") == 0 &&
		    fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISSOCK(st.st_mode))
			unlinkat(dirfd(dir), entry->d_name, 0);
	}
	closedir(dir);
}

static int open_loop(struct server *server, struct error *err)
{
	sigset_t signals;

	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, KEEPER_SIGNAL);
	sigaddset(&signals, SIGIO); /* comes in its place when the queue of real-time signals is full */
	sigprocmask(SIG_BLOCK, &signals, NULL);
	server->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	server->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	server->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	server->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	server->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (server->epoll_fd < 0 || server->signal_fd < 0 || server->wake_fd < 0 || server->timer_fd < 0)
		return error_set(err, -errno, "io_error", "cannot set up the main loop: %s", strerror(errno));

	int r = server_watch(server, server->signal_fd, &server->signal_watch, WATCH_SIGNAL, NULL);
	if (r == 0)
		r = server_watch(server, server->wake_fd, &server->wake_watch, WATCH_WAKE, NULL);
	if (r == 0)
		r = server_watch(server, server->timer_fd, &server->timer_watch, WATCH_TIMER, NULL);
	return r < 0 ? error_set(err, r, "io_error", "cannot set up the main loop: %s", strerror(-r)) : 0;
}

/* "0,2-3" within what the process may run on. */
static int parse_cpus(const char *list, const cpu_set_t *allowed, cpu_set_t *ret, struct error *err)
{
	const char *p = list;

	CPU_ZERO(ret);
	while (*p) {
		char *end;
		if (*p < '0' || *p > '9')
			break;
		unsigned long first = strtoul(p, &end, 10), last = first;
		if (*end == '-' && end[1] >= '0' && end[1] <= '9')
			last = strtoul(end + 1, &end, 10);
		if (last < first || last >= CPU_SETSIZE)
			break;
		for (unsigned long cpu = first; cpu <= last; cpu++) {
			if (!CPU_ISSET(cpu, allowed))
				return error_set(err, -EINVAL, "bad_cpus",
						 "CPU %lu of --cpus '%s' is not one that this process may run on", cpu,
						 list);
			CPU_SET(cpu, ret);
		}
		p = end;
		if (*p == ',' && p[1])
			p++;
		else if (*p)
			break;
	}
	if (*p || CPU_COUNT(ret) == 0)
		return error_set(err, -EINVAL, "bad_cpus", "'%s' is not a list of CPUs such as 0,2-3", list);
	return 0;
}

/* What is written cannot be undone, and forks that run may read it; what is cut off will not be read for bytes that were there. */
static void image_changed(void *data, const struct template *t)
{
	(void)data;
	log_error(NULL,
		  "template %s: somebody has changed its image '%s': forks that run may read what was written there; a template's "
		  "image must not change: remove the template, and add it again",
		  t->name, t->memory);
}

/* Those that pagers shall stand on. */
static int choose_cpus(const char *cpu_list, cpu_set_t *ret, struct error *err)
{
	cpu_set_t allowed;

	if (sched_getaffinity(0, sizeof allowed, &allowed) < 0)
		return error_set(err, -errno, "io_error", "sched_getaffinity failed: %s", strerror(errno));
	*ret = allowed;
	return cpu_list ? parse_cpus(cpu_list, &allowed, ret, err) : 0;
}

static int start_pagers(struct server *server, const cpu_set_t *wanted, struct error *err)
{
	int r = keeper_new(image_changed, server, &server->keeper, err);
	if (r < 0)
		return r;
	r = server_watch(server, keeper_fd(server->keeper), &server->images_watch, WATCH_IMAGES, NULL);
	if (r < 0)
		return error_set(err, r, "io_error", "cannot watch over images: %s", strerror(-r));
	server->pagers = calloc((size_t)CPU_COUNT(wanted), sizeof server->pagers[0]);
	if (!server->pagers)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, wanted))
			continue;
		r = pager_new(server->pager_count, cpu, server->keeper, &server->pagers[server->pager_count], err);
		if (r < 0)
			return r;
		server->pager_count++;
	}
	r = placement_new(server->pagers, server->pager_count, &server->placement, err);
	if (r < 0)
		return r;
	r = packer_new(&server->packer, err);
	return r < 0 ? r : prefetch_engine_new(PREFETCH_WORKERS, server->keeper, &server->engine, err);
}

/*
 * What is larger is given back to the system as soon as it is freed. Without that each thread that has ever read a long hot list would keep the
 * list's memory for its next.
 */
#define MMAP_THRESHOLD (256 << 10)

int server_new(const struct server_config *config, struct server **ret, struct error *err)
{
	mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD);
	struct server *server = calloc(1, sizeof *server);
	if (!server)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	server->lock_fd = server->epoll_fd = server->signal_fd = server->wake_fd = server->timer_fd = server->spare_fd =
		-1;
	server->forks_tail = &server->forks;
	server->host_page_size = (uint64_t)sysconf(_SC_PAGESIZE);
	pthread_mutex_init(&server->lock, NULL);
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&server->changed, &attr);
	pthread_condattr_destroy(&attr);
	server->run_dir = strdup(config->run_dir);

	int r = server->run_dir ? uffd_probe_features(&server->features, err)
				: error_set(err, -ENOMEM, "io_error", "out of memory");
	if (r == 0)
		r = make_run_dir(server, err);
	if (r == 0)
		r = take_lock(server, err);
	if (r == 0)
		r = open_loop(server, err);
	cpu_set_t cpus;
	if (r == 0)
		r = choose_cpus(config->cpus, &cpus, err);
	if (r == 0 && config->observe)
		r = config->observe(config->observe_data, server->run_dir, (unsigned)CPU_COUNT(&cpus),
				    &server->observer, err);
	if (r == 0 && server->observer)
		r = refresher_new(&server->refresher, err);
	if (r == 0)
		r = start_pagers(server, &cpus, err);
	if (r < 0) {
		server_free(server);
		return r;
	}
	remove_stale_sockets(server);
	server_load_templates(server);
	*ret = server;
	return 0;
}

void server_free(struct server *server)
{
	if (!server)
		return;

	/* Threads first: after them nobody uses what is freed. */
	prefetch_engine_free(server->engine);
	while (server->forks)
		fork_drop(server, server->forks);
	refresher_free(server->refresher);
	placement_free(server->placement);
	for (unsigned i = 0; i < server->pager_count; i++)
		pager_free(server->pagers[i]);
	free(server->pagers);
	bury(server);
	for (size_t i = 0; i < server->template_count; i++) {
		keeper_unguard(server->keeper, server->templates[i]);
		template_unref(server->templates[i]);
	}
	packer_free(server->packer);
	keeper_free(server->keeper);
	free(server->templates);

	int *fds[] = { &server->epoll_fd, &server->signal_fd, &server->wake_fd,
		       &server->timer_fd, &server->spare_fd,  &server->lock_fd };
	for (size_t i = 0; i < sizeof fds / sizeof fds[0]; i++)
		cleanup_close(fds[i]);
	pthread_cond_destroy(&server->changed);
	pthread_mutex_destroy(&server->lock);
	free(server->template_dir);
	free(server->run_dir);
	free(server);
}

const char *server_run_dir(const struct server *server)
{
	return server->run_dir;
}

unsigned server_pager_count(const struct server *server)
{
	return server->pager_count;
}

const char *server_observe_tier(const struct server *server)
{
	return server->observer ? server->observer->tier : OBSERVE_TIER_NONE;
}
