/* The life of the server's forks: created, connected, ended, removed. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "serve/internal.h"
#include "serve/observing.h"
#include "serve/refresh.h"

/* VMMs connect once each; a short queue is for mistakes. */
#define LISTEN_BACKLOG 16

struct fork *server_find_fork(struct server *server, const char *id)
{
	for (struct fork *fork = server->forks; fork; fork = fork->next)
		if (strcmp(fork->id, id) == 0)
			return fork;
	return NULL;
}

int fork_unknown(const char *id, struct error *err)
{
	return error_set(err, -ENOENT, "fork_unknown",
			 "there is no fork '%.80s': 'faultline fork list' shows those there are", id);
}

void fork_set_error(struct fork *fork, const char *message)
{
	char *text = strdup(message);

	if (!text)
		return;
	free(fork->error);
	fork->error = text;
}

/* ---- create ---- */

static void make_id(char ret[NAME_MAX_LENGTH + 1])
{
	uint64_t number;

	if (getrandom(&number, sizeof number, 0) != sizeof number)
		number = now_ns();
	snprintf(ret, NAME_MAX_LENGTH + 1, "f-%012" PRIx64, number >> 16);
}

/* A socket that only its owner may connect to from the moment it exists. */
static int listen_at(const char *path, uid_t uid, struct error *err)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	if (strlen(path) >= sizeof address.sun_path)
		return error_set(err, -ENAMETOOLONG, "bad_dir",
				 "the socket's path '%s' is longer than the %zu bytes that Unix sockets allow: use a shorter "
				 "directory or id",
				 path, sizeof address.sun_path - 1);
	memcpy(address.sun_path, path, strlen(path));

	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return error_set(err, -errno, "io_error", "cannot make a socket: %s", strerror(errno));
	if (fchmod(fd, 0600) < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
		return error_set(err, -errno, "bad_dir", "cannot make the socket '%s': %s", path,
				 errno == EADDRINUSE ? "there is such a file already; remove it, or use another id"
						     : strerror(errno));
	if ((chmod(path, 0600) < 0) || (uid != (uid_t)-1 && chown(path, uid, (gid_t)-1) < 0) ||
	    listen(fd, LISTEN_BACKLOG) < 0) {
		int r = error_set(err, -errno, "bad_dir", "cannot prepare the socket '%s': %s", path, strerror(errno));
		unlink(path);
		return r;
	}
	return TAKE_FD(fd);
}

static int check_spec(struct server *server, const struct fork_spec *spec, struct error *err)
{
	if (spec->id) {
		int r = check_name(spec->id, "a fork's id", err);
		if (r < 0)
			return r;
	}
	if (spec->prefetch_budget > 0 && spec->prefetch == PREFETCH_OFF)
		return error_set(err, -EINVAL, "bad_prefetch",
				 "a prefetch budget without prefetch has no effect: say --prefetch eager or stream with it");
	if (spec->hot_list) {
		int r = check_hot_list(server, spec->hot_list, spec->template, err);
		if (r < 0)
			return r;
		if (spec->prefetch == PREFETCH_OFF)
			return error_set(err, -EINVAL, "bad_prefetch",
					 "a hot list without prefetch has no effect: say --prefetch eager or stream with it");
	}
	return 0;
}

static int check_room(struct server *server, const struct fork_spec *spec, const char *id, struct error *err)
{
	if (server->stopping)
		return error_set(err, -ESHUTDOWN, "shutting_down", "the server is stopping");
	if (!server_find_template(server, spec->template))
		return error_set(err, -ENOENT, "template_unknown",
				 "there is no template '%.80s': 'faultline template list' shows those there are",
				 spec->template);
	if (server_find_fork(server, id))
		return error_set(err, -EEXIST, "fork_exists",
				 "there is a fork '%s' already: remove it first, or use another id", id);
	if (server->fork_count >= FORKS_MAX)
		return error_set(err, -EMFILE, "too_many_forks",
				 "there are %d forks already, which is the most that are served", FORKS_MAX);
	return 0;
}

static struct fork *fork_new(const struct fork_spec *spec, const char *id, const char *dir, struct template *template)
{
	struct fork *fork = calloc(1, sizeof *fork);

	if (!fork)
		return NULL;
	fork->listener_fd = fork->socket_fd = -1;
	snprintf(fork->id, sizeof fork->id, "%s", id);
	fork->template = template_ref(template);
	fork->record = spec->record;
	fork->wish.window_timeout_ns = spec->window_timeout_ns;
	fork->wish.window_settle_ns = spec->window_settle_ns;
	fork->uid = spec->uid;
	fork->prefetch = spec->prefetch;
	fork->prefetch_budget = spec->prefetch_budget;
	if (spec->prefetch != PREFETCH_OFF) {
		const char *list = spec->hot_list ?: template->hot_list;
		fork->prefetch_state = PREFETCH_PENDING;
		fork->hot_list = list ? strdup(list) : NULL;
	}
	fork->created_ns = now_ns();
	if (asprintf(&fork->socket_path, "%s/%s.uffd", dir, id) < 0)
		fork->socket_path = NULL;
	if (!fork->socket_path || (spec->prefetch != PREFETCH_OFF && !fork->hot_list)) {
		fork_free(fork);
		return NULL;
	}
	return fork;
}

/* The oldest ended forks make room once there are too many of them. */
static void prune_ended(struct server *server)
{
	size_t ended = 0;

	for (const struct fork *fork = server->forks; fork; fork = fork->next)
		ended += fork->state == FORK_GONE;
	for (struct fork *fork = server->forks, *next; fork && ended > ENDED_FORKS_MAX; fork = next) {
		next = fork->next;
		if (fork->state != FORK_GONE)
			continue;
		log_info(NULL, "fork %s: forgotten, as more than %d ended forks had not been removed", fork->id,
			 ENDED_FORKS_MAX);
		fork_drop(server, fork);
		ended--;
	}
}

int server_fork_create(struct server *server, const struct fork_spec *spec, struct fork_info *ret, struct error *err)
{
	char id[NAME_MAX_LENGTH + 1];
	int r = check_spec(server, spec, err);
	if (r < 0)
		return r;

	LOCK_SCOPE(&server->lock);
	if (spec->id)
		snprintf(id, sizeof id, "%s", spec->id);
	else
		make_id(id);
	r = check_room(server, spec, id, err);
	if (r < 0)
		return r;
	struct template *template = server_find_template(server, spec->template);
	r = template_check_unchanged(template, err);
	if (r < 0)
		return r;
	if (spec->prefetch != PREFETCH_OFF && !spec->hot_list && !template->hot_list)
		return error_set(err, -EINVAL, "bad_prefetch",
				 "there is no list to prefetch: name one with --hot-list, here or when adding the template");

	struct fork *fork = fork_new(spec, id, spec->dir ?: server->run_dir, template);
	if (!fork)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	fork->listener_fd = listen_at(fork->socket_path, spec->uid, err);
	r = fork->listener_fd;
	if (r >= 0) {
		r = server_watch(server, fork->listener_fd, &fork->listener_watch, WATCH_LISTENER, fork);
		if (r < 0) {
			error_set(err, r, "io_error", "cannot watch the socket '%s': %s", fork->socket_path,
				  strerror(-r));
			unlink(fork->socket_path);
		}
	}
	if (r < 0) {
		fork_free(fork);
		return r;
	}

	fork->serial = ++server->next_serial;
	*server->forks_tail = fork;
	server->forks_tail = &fork->next;
	server->fork_count++;
	prune_ended(server);
	if (ret)
		fork_fill_info(fork, ret);
	log_info(NULL, "fork %s: created from template %s%s%s", fork->id, template->name,
		 fork->record ? ", recorded" : "",
		 fork->prefetch == PREFETCH_EAGER    ? ", prefetched"
		 : fork->prefetch == PREFETCH_STREAM ? ", streamed"
						     : "");
	return 0;
}

/* ---- connected, ended, removed ---- */

static void stop_listening(struct server *server, struct fork *fork)
{
	while (fork->peers)
		peer_close(server, fork->peers);
	if (fork->listener_fd >= 0) {
		server_unwatch(server, fork->listener_fd);
		close(TAKE_FD(fork->listener_fd));
		unlink(fork->socket_path);
	}
}

void fork_connected(struct server *server, struct fork *fork)
{
	fork->state = FORK_CONNECTED;
	fork->connected_ns = fork->session->connected_ns = now_ns();
	free(TAKE_PTR(fork->error)); /* of peers refused before */
	stop_listening(server, fork);

	uint64_t size = 0;
	for (size_t i = 0; i < fork->region_count; i++)
		size += fork->regions[i].size;
	log_info(fork->session->name, "connected: pid %d, %s handshake, %zu region%s, %" PRIu64 " MiB", (int)fork->pid,
		 fork->handshake, fork->region_count, fork->region_count == 1 ? "" : "s", size >> 20);

	struct recording_wish wish = fork->wish;
	wish.record = fork->record || refresh_wants(fork);
	observing_begin(server->observer, fork->session, fork->id, &wish);
	/* The kernel's recording needs the loop's notes beside it, also where nobody will ask for those. */
	if (fork->session->observer && refresh_wants(fork))
		atomic_store(&fork->session->recording, true);
	fork_release_traces(fork);
	int r = placement_add(server->placement, fork->session);
	if (r == 0)
		r = server_watch(server, fork->session->pidfd, &fork->process_watch, WATCH_PROCESS, fork);
	if (r == 0)
		r = server_watch(server, fork->socket_fd, &fork->socket_watch, WATCH_SOCKET, fork);
	if (r < 0) {
		session_stop_vmm(fork->session, "it cannot be watched: %s", strerror(-r));
		fork_end(server, fork);
		return;
	}
	keeper_guard(server->keeper, fork->template);
	keeper_lease(server->keeper, fork->template);
	keeper_ask(server->keeper, fork->template);
	if (server->stopping)
		session_stop_vmm(fork->session, "the server is stopping");
	if (fork->prefetch != PREFETCH_OFF)
		fork_start_prefetch(server, fork);
	pthread_cond_broadcast(&server->changed);
}

void fork_set_ready(struct server *server, struct fork *fork)
{
	if (fork->state != FORK_CONNECTED)
		return;
	fork->state = FORK_READY;
	fork->ready_ns = now_ns();
	atomic_store(&fork->session->recording, false);
	observing_ready(fork->session);
	refresh_take(server, fork);
	log_info(fork->session->name, "ready %.1f ms after its handshake",
		 (double)(fork->ready_ns - fork->connected_ns) / 1e6);
	pthread_cond_broadcast(&server->changed);
}

void fork_end(struct server *server, struct fork *fork)
{
	struct session *s = fork->session;

	fork->removed_pages = load(&s->memory->removed_pages);
	fork_keep_stream(fork);
	fork->state = FORK_GONE;
	fork->lingering = false;
	fork->gone_ns = now_ns();
	server_unwatch(server, s->pidfd);
	server_unwatch(server, fork->socket_fd);
	observing_end(s);
	refresh_take(server, fork);
	/* A VMM that waits for our end of the socket to close may use the addresses again as soon as it has. */
	guest_memory_forget(s->memory);
	close(TAKE_FD(fork->socket_fd));
	atomic_store(&s->recording, false);
	if (fork->prefetch_state == PREFETCH_PENDING)
		fork->prefetch_state = PREFETCH_FAILED;

	pthread_mutex_lock(&s->lock);
	if (s->reason[0] || s->trouble[0])
		fork_set_error(fork, s->reason[0] ? s->reason : s->trouble);
	pthread_mutex_unlock(&s->lock);
	log_info(s->name, "ended: %" PRIu64 " faults, %" PRIu64 " pages copied, %" PRIu64 " prefetched, stalled %.1f ms",
		 load(&s->faults), load(&s->copied), fork->prefetched, (double)load(&s->stall.sum) / 1e6);

	/* The structure stays, for what it has counted and recorded; its memory goes when the pagers have let go as well. */
	session_ref(s);
	placement_remove(server->placement, s);
	session_unuse(s);
	pthread_cond_broadcast(&server->changed);
}

void fork_free(struct fork *fork)
{
	template_unref(fork->template);
	session_unref(fork->session);
	free(fork->regions);
	free(fork->hot_list);
	free(fork->socket_path);
	free(fork->error);
	free(fork);
}

/* Out of the table; freed once no event can name it. */
void fork_drop(struct server *server, struct fork *fork)
{
	if (fork->state == FORK_WAITING)
		stop_listening(server, fork);
	else if (fork->state != FORK_GONE)
		fork_end(server, fork);
	for (struct fork **p = &server->forks; *p; p = &(*p)->next)
		if (*p == fork) {
			*p = fork->next;
			if (!fork->next)
				server->forks_tail = p;
			break;
		}
	server->fork_count--;
	fork->removed = true;
	fork_release_traces(fork);
	fork->next = server->dead_forks;
	server->dead_forks = fork;
	pthread_cond_broadcast(&server->changed);
}
