#include "bench/server.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>

#include "base/clock.h"

/* The API's own time limits are shorter; this is for a server that is stuck. */
#define CALL_TIMEOUT_S 120
#define WAIT_TIMEOUT_S 90
#define STOP_TIMEOUT_S 60
/* From a connection that breaks to the end of the process behind it. */
#define END_TIMEOUT_MS 2000

/* ---- starting and stopping ---- */

static int listen_for_ready(const char *path, struct error *err)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof address.sun_path)
		return error_set(err, -ENAMETOOLONG, "bench_failed",
				 "%s is too long a path for a socket: choose a shorter --dir", path);
	memcpy(address.sun_path, path, strlen(path));
	unlink(path); /* of the server before this one */
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
		return error_set(err, -errno, "bench_failed", "can't make the socket %s: %s", path, strerror(errno));
	return TAKE_FD(fd);
}

/* Until READY=1 comes, or the server's end. */
static int await_ready(struct bench_server *server, int notify, struct error *err)
{
	uint64_t end = now_ns() + CHILD_PATIENCE_S * NSEC_PER_SEC;
	char text[1024];

	while (now_ns() < end) {
		struct pollfd fds[] = { { .fd = notify, .events = POLLIN },
					{ .fd = server->pidfd, .events = POLLIN },
					{ .fd = server->processes->stop_fd, .events = POLLIN } };
		if (poll(fds, 3, 1000) < 0 && errno != EINTR)
			return error_set(err, -errno, "bench_failed", "can't poll: %s", strerror(errno));
		if (fds[2].revents)
			return processes_check_stop(server->processes, err);
		if (fds[0].revents) {
			ssize_t n = recv(notify, text, sizeof text - 1, 0);
			text[n > 0 ? n : 0] = '\0';
			if (!strncmp(text, "READY=1", 7) || strstr(text, "\nREADY=1"))
				return 0;
		} else if (fds[1].revents) {
			return error_set(err, -EPROTO, "bench_failed", "the server did not start: its message is above");
		}
	}
	return error_set(err, -ETIMEDOUT, "bench_failed", "the server did not come up within %d s", CHILD_PATIENCE_S);
}

int bench_server_start(struct processes *processes, const struct bench_options *options, const char *dir,
		       struct bench_server *ret, struct error *err)
{
	return bench_server_start_observed(processes, options, dir, NULL, ret, err);
}

int bench_server_start_observed(struct processes *processes, const struct bench_options *options, const char *dir,
				const char *observe, struct bench_server *ret, struct error *err)
{
	char run_dir[512], notify_path[512], environment[600];
	struct bench_server server = { .processes = processes, .api = options->api, .pidfd = -1 };

	snprintf(run_dir, sizeof run_dir, "%s/run", dir);
	snprintf(notify_path, sizeof notify_path, "%s/notify", dir);
	snprintf(environment, sizeof environment, "NOTIFY_SOCKET=%s", notify_path);
	_cleanup_close_ int notify = listen_for_ready(notify_path, err);
	if (notify < 0)
		return notify;

	char *argv[] = { (char *)options->binary,      "serve",		"--run-dir", run_dir, "--log-level", "error",
			 observe ? "--observe" : NULL, (char *)observe, NULL };
	int r = process_start_program(processes, "the server", argv, environment, &server.process, err);
	if (r < 0)
		return r;
	server.pidfd = (int)syscall(SYS_pidfd_open, server.process->pid, 0);
	if (server.pidfd < 0)
		return error_set(err, -errno, "bench_failed", "pidfd_open failed: %s", strerror(errno));
	r = await_ready(&server, notify, err);
	server.process->steady = r == 0;
	if (r == 0)
		r = options->api->open(run_dir, &server.client, err);
	if (r < 0) {
		bench_server_drop(&server);
		return r;
	}
	*ret = server;
	return 0;
}

void bench_server_drop(struct bench_server *server)
{
	if (server->client)
		server->api->close(TAKE_PTR(server->client));
	cleanup_close(&server->pidfd);
	server->pidfd = -1;
}

int bench_server_stop(struct bench_server *server, struct error *err)
{
	struct pollfd end = { .fd = server->pidfd, .events = POLLIN };
	int n;

	kill(server->process->pid, SIGTERM);
	do
		n = poll(&end, 1, STOP_TIMEOUT_S * 1000);
	while (n < 0 && errno == EINTR);
	bench_server_drop(server);
	if (n == 0)
		return error_set(err, -ETIMEDOUT, "bench_failed", "the server did not stop within %d s of SIGTERM",
				 STOP_TIMEOUT_S);
	return process_reap(server->processes, TAKE_PTR(server->process), err);
}

/* ---- the API ---- */

/* A server that ended says why by how it ended, and not by what its absence does to a call. */
static int explain(struct bench_server *server, int result, struct error *err)
{
	struct pollfd end = { .fd = server->pidfd, .events = POLLIN };

	if (strcmp(err->code, "no_server") && strcmp(err->code, "no_answer"))
		return result;
	if (poll(&end, 1, END_TIMEOUT_MS) <= 0)
		return result;
	int r = processes_check_steady(server->processes, err);
	return r < 0 ? r : result;
}

static int call(struct bench_server *server, const char *method, const char *path, json_t *body, json_t **ret,
		struct error *err)
{
	json_t *answer = NULL;
	int r = processes_check_stop(server->processes, err);

	if (r == 0)
		r = server->api->call(server->client, method, path, body, CALL_TIMEOUT_S, &answer, err);
	if (r < 0)
		r = explain(server, r, err);
	json_decref(body);
	if (r == 0 && ret)
		*ret = answer;
	else
		json_decref(answer);
	return r;
}

int bench_server_add_slow_template(struct bench_server *server, const char *name, const char *path, const char *inject,
				   const char *hot_list, bool zeros, struct error *err)
{
	json_t *body = json_pack("{s:s,s:s,s:s*,s:s*,s:b}", "name", name, "memory", path, "inject", inject, "hot_list",
				 hot_list, "no_zero_map", !zeros);

	if (!body)
		return error_set(err, -EILSEQ, "bench_failed", "the path %s is not UTF-8: choose another --dir", path);
	return call(server, "POST", "/v1/templates", body, NULL, err);
}

int bench_server_add_template(struct bench_server *server, const char *name, const struct bench_image *image,
			      struct error *err)
{
	return bench_server_add_slow_template(server, name, image->path, NULL, NULL, false, err);
}

int bench_server_remove_template(struct bench_server *server, const char *name, struct error *err)
{
	char path[128];

	snprintf(path, sizeof path, "/v1/templates/%s", name);
	return call(server, "DELETE", path, NULL, NULL, err);
}

int bench_server_show_template(struct bench_server *server, const char *name, json_t **ret, struct error *err)
{
	char path[128];

	snprintf(path, sizeof path, "/v1/templates/%s", name);
	return call(server, "GET", path, NULL, ret, err);
}

int bench_server_create_fork(struct bench_server *server, const char *template, const char *id, const char *hot_list,
			     char ret_socket[static SOCKET_PATH_SIZE], struct error *err)
{
	struct bench_fork fork = { .template = template, .id = id, .hot_list = hot_list };

	return bench_server_create(server, &fork, ret_socket, err);
}

int bench_server_create(struct bench_server *server, const struct bench_fork *fork,
			char ret_socket[static SOCKET_PATH_SIZE], struct error *err)
{
	const char *prefetch = !fork->hot_list ? "off" : fork->stream ? "stream" : "eager";
	json_t *body = json_pack("{s:s,s:s,s:s,s:s*,s:b}", "template", fork->template, "id", fork->id, "prefetch",
				 prefetch, "hot_list", fork->hot_list, "record", fork->record);
	json_t *answer = NULL;
	int r = call(server, "POST", "/v1/forks", body, &answer, err);

	if (r < 0)
		return r;
	snprintf(ret_socket, SOCKET_PATH_SIZE, "%s", json_string_value(json_object_get(answer, "socket")) ?: "");
	json_decref(answer);
	return 0;
}

int bench_server_say_ready(struct bench_server *server, const char *id, struct error *err)
{
	char path[128];

	snprintf(path, sizeof path, "/v1/forks/%s/ready", id);
	return call(server, "POST", path, NULL, NULL, err);
}

int bench_server_fetch_list(struct bench_server *server, const char *id, const char *from, void **ret_data,
			    size_t *ret_size, struct error *err)
{
	char path[128];
	int r = processes_check_stop(server->processes, err);

	snprintf(path, sizeof path, "/v1/forks/%s/hot-list?from=%s&format=hpl2", id, from);
	if (r == 0)
		r = server->api->fetch(server->client, path, CALL_TIMEOUT_S, ret_data, ret_size, err);
	return r < 0 ? explain(server, r, err) : 0;
}

int bench_server_wait_fork(struct bench_server *server, const char *id, const char *milestone, json_t **ret,
			   struct error *err)
{
	char path[128];

	snprintf(path, sizeof path, "/v1/forks/%s/wait?for=%s&timeout_s=%d", id, milestone, WAIT_TIMEOUT_S);
	return call(server, "GET", path, NULL, ret, err);
}

int bench_server_show_fork(struct bench_server *server, const char *id, json_t **ret, struct error *err)
{
	char path[128];

	snprintf(path, sizeof path, "/v1/forks/%s", id);
	return call(server, "GET", path, NULL, ret, err);
}

int bench_server_drop_fork(struct bench_server *server, const char *id, struct error *err)
{
	char path[128];

	snprintf(path, sizeof path, "/v1/forks/%s?force=true", id);
	return call(server, "DELETE", path, NULL, NULL, err);
}

int bench_server_end_fork(struct bench_server *server, const char *id, struct error *err)
{
	char path[128];
	int r = bench_server_wait_fork(server, id, "gone", NULL, err);

	snprintf(path, sizeof path, "/v1/forks/%s", id);
	return r < 0 ? r : call(server, "DELETE", path, NULL, NULL, err);
}

/* ---- what it costs ---- */

int bench_server_memory(const struct bench_server *server, double *ret, struct error *err)
{
	char path[64], line[256];
	unsigned long long kib;

	snprintf(path, sizeof path, "/proc/%d/status", (int)server->process->pid);
	_cleanup_fclose_ FILE *file = fopen(path, "re");
	while (file && fgets(line, sizeof line, file)) {
		if (sscanf(line, "RssAnon: %llu kB", &kib) == 1) {
			*ret = (double)kib * 1024;
			return 0;
		}
	}
	return error_set(err, -ENODATA, "bench_failed", "%s has no RssAnon: is /proc mounted?", path);
}

int bench_server_cpu_ns(const struct bench_server *server, uint64_t *ret, struct error *err)
{
	struct timespec used;
	clockid_t clock;
	int r = -clock_getcpuclockid(server->process->pid, &clock);

	if (r == 0 && clock_gettime(clock, &used) < 0)
		r = -errno;
	if (r < 0)
		return error_set(err, r, "bench_failed", "can't read the server's CPU time: %s", strerror(-r));
	*ret = (uint64_t)used.tv_sec * NSEC_PER_SEC + (uint64_t)used.tv_nsec;
	return 0;
}

/* Adds up what READ makes of each thread; of those called NAME, or of all. */
static int sum_threads(const struct bench_server *server, const char *name, const char *file,
		       uint64_t (*read)(FILE *file), uint64_t *ret, struct error *err)
{
	char path[320], comm[32];
	uint64_t sum = 0;
	bool any = false;

	snprintf(path, sizeof path, "/proc/%d/task", (int)server->process->pid);
	DIR *dir = opendir(path);
	if (!dir)
		return error_set(err, -errno, "bench_failed", "can't list %s: %s", path, strerror(errno));
	for (const struct dirent *entry; (entry = readdir(dir));) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "/proc/%d/task/%s/comm", (int)server->process->pid, entry->d_name);
		_cleanup_fclose_ FILE *comm_file = fopen(path, "re");
		if (!comm_file || !fgets(comm, sizeof comm, comm_file))
			continue;
		comm[strcspn(comm, "\n")] = '\0';
		snprintf(path, sizeof path, "/proc/%d/task/%s/%s", (int)server->process->pid, entry->d_name, file);
		_cleanup_fclose_ FILE *value = !name || !strcmp(name, comm) ? fopen(path, "re") : NULL;
		if (!value)
			continue;
		sum += read(value);
		any = true;
	}
	closedir(dir);
	if (!any)
		return error_set(err, -ENOENT, "bench_failed", "the server has no thread called '%s'", name ?: "");
	*ret = sum;
	return 0;
}

static uint64_t read_first_number(FILE *file)
{
	unsigned long long value;

	return fscanf(file, "%llu", &value) == 1 ? value : 0;
}

static uint64_t read_switches(FILE *file)
{
	char line[128];
	unsigned long long value;

	while (fgets(line, sizeof line, file))
		if (sscanf(line, "voluntary_ctxt_switches: %llu", &value) == 1)
			return value;
	return 0;
}

int bench_server_thread_cpu_ns(const struct bench_server *server, const char *name, uint64_t *ret, struct error *err)
{
	return sum_threads(server, name, "schedstat", read_first_number, ret, err);
}

int bench_server_wakeups(const struct bench_server *server, uint64_t *ret, struct error *err)
{
	return sum_threads(server, NULL, "status", read_switches, ret, err);
}

int bench_server_tier(struct bench_server *server, char ret[static 32], struct error *err)
{
	json_t *answer = NULL;
	int r = call(server, "GET", "/v1/server", NULL, &answer, err);

	if (r < 0)
		return r;
	snprintf(ret, 32, "%s", json_string_value(json_object_get(answer, "observe_tier")) ?: "none");
	json_decref(answer);
	return 0;
}

int bench_server_fd_count(const struct bench_server *server, unsigned *ret, struct error *err)
{
	char path[64];
	unsigned count = 0;

	snprintf(path, sizeof path, "/proc/%d/fd", (int)server->process->pid);
	DIR *dir = opendir(path);
	if (!dir)
		return error_set(err, -errno, "bench_failed", "can't list %s: %s", path, strerror(errno));
	for (const struct dirent *entry; (entry = readdir(dir));)
		count += entry->d_name[0] != '.';
	closedir(dir);
	*ret = count;
	return 0;
}
