/* The server that a replay runs against: one of its own, or one that runs already; its template, its forks. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/replay.h"
#include "hotlist/hotlist.h"

/* Ten seconds in all. */
#define ZEROS_AGAIN_MS	5
#define ZEROS_LOOKS_MAX 2000

/* Far more than a server takes to start or to stop on a loaded machine. */
#define START_S 60
#define STOP_S	60
/* Each question to the server is short, so that an interruption is heard between two. */
#define ASK_S	       2
#define LOG_LINES      5
#define LOG_MAX	       (64 << 10)
#define NO_MEMORY(err) error_set(err, -ENOMEM, "no_memory", "there is not enough memory")

int replay_make_dir(struct replay_job *job, struct error *err)
{
	const char *base = getenv("TMPDIR");
	_cleanup_free_ char *dir = NULL;

	if (job->dir)
		return 0;
	if (asprintf(&dir, "%s/faultline-replay-XXXXXX", base && *base ? base : "/tmp") < 0)
		return NO_MEMORY(err);
	if (!mkdtemp(dir))
		return error_set(err, -errno, "io_error", "cannot make a directory %s: %s; TMPDIR names another place",
				 dir, strerror(errno));
	job->dir = TAKE_PTR(dir);
	return 0;
}

int replay_interrupted(const struct replay_job *job)
{
	struct signalfd_siginfo info;

	return job->signals >= 0 && read(job->signals, &info, sizeof info) == sizeof info ? (int)info.ssi_signo : 0;
}

/* ---- a server of our own ---- */

static int open_notify(const char *dir, struct error *err)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (snprintf(address.sun_path, sizeof address.sun_path, "%s/notify", dir) >= (int)sizeof address.sun_path)
		return error_set(err, -ENAMETOOLONG, "io_error", "%s is too long a path for sockets in it: set TMPDIR",
				 dir);
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
		return error_set(err, -errno, "io_error", "cannot make a socket in %s: %s", dir, strerror(errno));
	return TAKE_FD(fd);
}

/* In the child: becomes `faultline serve`. */
static void __attribute__((noreturn)) become_server(const struct replay_job *job, int log)
{
	const char *cpus = cli_value(job->args, "cpus");
	char notify[PATH_MAX];
	sigset_t none;

	/* Not with the terminal's interrupts: it has to outlive the guest. But never without us. */
	setsid();
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	snprintf(notify, sizeof notify, "%s/notify", job->dir);
	setenv("NOTIFY_SOCKET", notify, 1);
	dup2(log, STDOUT_FILENO);
	dup2(log, STDERR_FILENO);
	execl("/proc/self/exe", "faultline", "serve", "--run-dir", job->run_dir, cpus ? "--cpus" : NULL, cpus, NULL);
	_exit(127);
}

static bool is_ready(int notify)
{
	char text[4096];
	ssize_t n;

	while ((n = recv(notify, text, sizeof text - 1, 0)) > 0) {
		text[n] = '\0';
		if (strstr(text, "READY=1"))
			return true;
	}
	return false;
}

static int await_ready(struct replay_job *job, int notify, struct error *err)
{
	struct pollfd p[] = {
		{ .fd = notify, .events = POLLIN },
		{ .fd = job->server_pidfd, .events = POLLIN },
		{ .fd = job->signals, .events = POLLIN },
	};

	for (;;) {
		int n = poll(p, 3, START_S * 1000);

		if (n < 0 && errno == EINTR)
			continue;
		if (p[0].revents && is_ready(notify))
			return 0;
		if (p[2].revents)
			return error_set(err, -EINTR, "interrupted", "interrupted");
		if (n <= 0 || p[1].revents)
			return error_set(err, -ECHILD, "no_server", "the page server for the replay does not start");
	}
}

int replay_server_start(struct replay_job *job, struct error *err)
{
	_cleanup_close_ int notify = -1, log = -1;
	_cleanup_free_ char *log_path = NULL;
	int r = replay_make_dir(job, err);

	if (r < 0)
		return r;
	if (asprintf(&job->run_dir, "%s/run", job->dir) < 0 || asprintf(&log_path, "%s/serve.log", job->dir) < 0)
		return NO_MEMORY(err);
	job->api.run_dir = job->run_dir;
	notify = open_notify(job->dir, err);
	if (notify < 0)
		return notify;
	log = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (log < 0)
		return error_set(err, -errno, "io_error", "cannot write %s: %s", log_path, strerror(errno));
	fflush(NULL);
	pid_t pid = fork();
	if (pid == 0)
		become_server(job, log);
	if (pid < 0)
		return error_set(err, -errno, "no_server", "cannot start a process for the page server: %s",
				 strerror(errno));
	job->server = pid;
	job->server_pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	return await_ready(job, notify, err);
}

/* Waits for its end, SECONDS at most. True where it came. */
static bool await_end(const struct replay_job *job, int seconds)
{
	struct pollfd p = { .fd = job->server_pidfd, .events = POLLIN };
	int n;

	do
		n = poll(&p, 1, seconds * 1000);
	while (n < 0 && errno == EINTR);
	return n > 0;
}

int replay_server_stop(struct replay_job *job, struct error *err)
{
	int status = 0, r = 0;

	if (!job->server)
		return 0;
	kill(job->server, SIGTERM);
	if (!await_end(job, STOP_S)) {
		kill(job->server, SIGKILL);
		r = error_set(err, -EIO, "server_failed", "the page server did not end within %d s of SIGTERM", STOP_S);
	}
	waitpid(job->server, &status, 0);
	if (r == 0 && status)
		r = error_set(err, -EIO, "server_failed", "the page server ended badly, with %s %d",
			      WIFSIGNALED(status) ? "signal" : "exit status",
			      WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	close(job->server_pidfd);
	job->server_pidfd = -1;
	job->server = 0;
	return r;
}

void replay_server_show_log(const struct replay_job *job)
{
	_cleanup_free_ char *path = NULL, *text = malloc(LOG_MAX + 1);

	if (job->source != SOURCE_OWN_SERVER || !job->dir || !text || asprintf(&path, "%s/serve.log", job->dir) < 0)
		return;
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	off_t size = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
	ssize_t n = size <= 0 ? 0 : pread(fd, text, LOG_MAX, size > LOG_MAX ? size - LOG_MAX : 0);
	if (n <= 0)
		return;
	text[n] = '\0';
	char *start = text + n;
	for (int lines = 0; start > text; start--)
		if (start[-1] == '\n' && start < text + n && ++lines == LOG_LINES)
			break;
	fprintf(stderr, "The page server's log ends so:\n%s", start);
}

/* ---- its template and forks ---- */

static int failed(const struct client_call *call, struct error *err)
{
	*err = call->err;
	return call->result;
}

/* The server looks through the image for zeros when it comes: guests that run meanwhile would share disk and CPU with that. */
static int await_zeros(struct replay_job *job, struct error *err)
{
	for (unsigned looks = 0; looks < ZEROS_LOOKS_MAX; looks++) {
		_cleanup_client_call_ struct client_call call = { .args = &job->api };
		struct pollfd interrupt = { .fd = job->signals, .events = POLLIN };

		if (client_call_named(&call, "GET", "/v1/templates/", job->name, "", API_TIMEOUT_S) < 0)
			return failed(&call, err);
		if (strcmp(client_string(json_object_get(call.reply.json, "zero_map"), "state", ""), "building") != 0)
			return 0;
		/* Who interrupts us is heard by whoever waits next. */
		if (poll(&interrupt, 1, ZEROS_AGAIN_MS) > 0)
			return 0;
	}
	return 0; /* a large image on a slow disk: it need not be waited for */
}

static int template_add(struct replay_job *job, struct error *err)
{
	_cleanup_client_call_ struct client_call call = { .args = &job->api };

	client_add_string(&call, "name", job->name);
	client_add_path(&call, "memory", job->template);
	if (client_call(&call, "POST", "/v1/templates", API_TIMEOUT_S) < 0)
		return failed(&call, err);
	job->has_template = true;
	return await_zeros(job, err);
}

static void fork_id(const struct replay_job *job, unsigned number, char id[static 64])
{
	snprintf(id, 64, "%.48s-%u", job->name, number);
}

int replay_fork_create(struct replay_job *job, unsigned number, char **ret, struct error *err)
{
	_cleanup_client_call_ struct client_call call = { .args = &job->api };
	char id[64];
	int r = job->has_template ? 0 : template_add(job, err);

	if (r < 0)
		return r;
	fork_id(job, number, id);
	client_add_string(&call, "template", job->name);
	client_add_string(&call, "id", id);
	client_add_string(&call, "prefetch", job->prefetch ?: "off");
	client_add_path(&call, "hot_list", cli_value(job->args, "hot-list"));
	if (job->record)
		client_add(&call, "record", json_true());
	if (client_call(&call, "POST", "/v1/forks", API_TIMEOUT_S) < 0)
		return failed(&call, err);
	*ret = strdup(client_string(call.reply.json, "socket", ""));
	return *ret ? 0 : NO_MEMORY(err);
}

int replay_fork_await_prefetched(struct replay_job *job, unsigned number, struct error *err)
{
	char id[64], suffix[64];

	fork_id(job, number, id);
	snprintf(suffix, sizeof suffix, "/wait?for=prefetched&timeout_s=%d", ASK_S);
	for (;;) {
		_cleanup_client_call_ struct client_call call = { .args = &job->api };

		if (client_call_named(&call, "GET", "/v1/forks/", id, suffix, API_TIMEOUT_S) >= 0)
			return 0;
		if (strcmp(call.err.code, "timeout") != 0)
			return failed(&call, err);
		struct pollfd p = { .fd = job->signals, .events = POLLIN };
		if (poll(&p, 1, 0) > 0)
			return error_set(err, -EINTR, "interrupted", "interrupted");
	}
}

static int save_recording(struct replay_job *job, const char *id, struct error *err)
{
	_cleanup_client_call_ struct client_call call = { .args = &job->api };
	const char *output = cli_value(job->args, "output");
	char suffix[64];

	snprintf(suffix, sizeof suffix, "/hot-list?from=best&format=%s", cli_value(job->args, "format") ?: "hpl1");
	if (client_call_named(&call, "GET", "/v1/forks/", id, suffix, API_TIMEOUT_NONE) < 0)
		return failed(&call, err);
	return hotlist_write_file(output, call.reply.body ?: "", call.reply.size, err);
}

static int forget_fork(struct replay_job *job, const char *id, struct error *err)
{
	_cleanup_client_call_ struct client_call call = { .args = &job->api };

	if (client_call_named(&call, "DELETE", "/v1/forks/", id, "?force=true", API_TIMEOUT_S) < 0)
		return failed(&call, err);
	return 0;
}

int replay_fork_finish(struct replay_job *job, unsigned number, json_t **ret, struct error *err)
{
	_cleanup_client_call_ struct client_call call = { .args = &job->api };
	char id[64];

	fork_id(job, number, id);
	if (client_call_named(&call, "GET", "/v1/forks/", id, "", API_TIMEOUT_S) < 0)
		return failed(&call, err);
	/* Of several runs, the last one's recording stays. */
	int r = job->record && number + 1 == job->runs ? save_recording(job, id, err) : 0;
	if (r >= 0)
		r = forget_fork(job, id, err);
	if (r >= 0)
		*ret = json_incref(call.reply.json);
	return r;
}

int replay_template_remove(struct replay_job *job, struct error *err)
{
	_cleanup_client_call_ struct client_call call = { .args = &job->api };
	char id[64];

	if (!job->has_template)
		return 0;
	for (unsigned number = job->done_count; number < job->runs && number <= job->done_count; number++) {
		fork_id(job, number, id);
		forget_fork(job, id, NULL);
	}
	job->has_template = false;
	if (client_call_named(&call, "DELETE", "/v1/templates/", job->name, "", API_TIMEOUT_S) < 0)
		return failed(&call, err);
	return 0;
}
