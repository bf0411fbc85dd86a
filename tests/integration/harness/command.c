/* Commands of the binary as a user gives them, with their exit codes and JSON (see server.h). */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/check.h"
#include "integration/harness/client.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"

#define ARGS_MAX 32

void command_start(struct test_command *command, const struct test_server *server, char *const args[])
{
	const char *binary = getenv("FAULTLINE");
	char *argv[ARGS_MAX];
	unsigned n = 0;
	size_t size;
	int out[2], err[2];

	argv[n++] = (char *)binary;
	for (; *args && n < ARGS_MAX - 4; args++)
		argv[n++] = *args;
	argv[n++] = "--run-dir";
	argv[n++] = (char *)server->run_dir;
	if (strcmp(argv[1], "serve"))
		argv[n++] = "--json";
	argv[n] = NULL;

	FILE *f = open_memstream(&command->line, &size);
	fputs("faultline", f);
	for (unsigned i = 1; i < n; i++)
		fprintf(f, " %s", argv[i]);
	fclose(f);

	if (pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0)
		fail_msg("pipe: %s", strerror(errno));
	fflush(NULL);
	command->pid = fork();
	if (command->pid < 0)
		fail_msg("fork: %s", strerror(errno));
	if (command->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(out[1], 1);
		dup2(err[1], 2);
		execv(binary, argv);
		_exit(127);
	}
	close(out[1]);
	close(err[1]);
	command->out = out[0];
	command->err = err[0];
	command->pidfd = (int)syscall(SYS_pidfd_open, command->pid, 0);
	if (command->pidfd < 0)
		fail_msg("pidfd_open: %s", strerror(errno));
}

bool command_has_ended(struct test_command *command)
{
	struct pollfd p = { .fd = command->pidfd, .events = POLLIN };

	return poll(&p, 1, 0) > 0;
}

struct reader {
	char *text;
	size_t size;
	FILE *f;
};

/* Moves what is there; false at the end. */
static bool drain(int fd, FILE *f)
{
	char buffer[4096];
	ssize_t n = read(fd, buffer, sizeof buffer);

	if (n > 0)
		fwrite(buffer, 1, (size_t)n, f);
	return n > 0 || (n < 0 && errno == EINTR);
}

struct test_result command_wait(struct test_command *command)
{
	struct test_result result = { 0 };
	struct pollfd p[] = {
		{ .fd = command->out, .events = POLLIN },
		{ .fd = command->err, .events = POLLIN },
	};
	/* Longer than `fork wait`, so that its own time-out is what is seen. */
	uint64_t deadline = deadline_in(WAIT_S + 15);
	struct reader readers[2];
	int status = 0;
	bool late = false;

	for (int i = 0; i < 2; i++)
		readers[i].f = open_memstream(&readers[i].text, &readers[i].size);
	while (!late && (p[0].fd >= 0 || p[1].fd >= 0)) {
		int n = poll(p, 2, deadline_ms(deadline));

		late = n == 0;
		for (int i = 0; n > 0 && i < 2; i++)
			if (p[i].revents && !drain(p[i].fd, readers[i].f))
				p[i].fd = -1;
	}
	if (late)
		kill(command->pid, SIGKILL);
	waitpid(command->pid, &status, 0);
	for (int i = 0; i < 2; i++)
		fclose(readers[i].f);
	close(command->out);
	close(command->err);
	close(command->pidfd);
	if (late)
		fail_msg("`%s` hangs: no end after %d s", command->line, WAIT_S + 15);
	if (!WIFEXITED(status))
		fail_msg("`%s` was killed by signal %d: %s", command->line, WTERMSIG(status), readers[1].text);
	free(command->line);
	result.exit_code = WEXITSTATUS(status);
	result.out = readers[0].text;
	result.err = readers[1].text;
	result.json = json_loads(result.out, JSON_DECODE_ANY, NULL);
	return result;
}

void result_clear(struct test_result *result)
{
	free(result->out);
	free(result->err);
	json_decref(result->json);
	*result = (struct test_result){ 0 };
}

struct test_result command(const struct test_server *server, char *const args[])
{
	struct test_command run;

	command_start(&run, server, args);
	return command_wait(&run);
}

static void __attribute__((noreturn))
fail_command(char *const args[], const struct test_result *result, const char *expected)
{
	char line[300] = "faultline";

	for (; *args; args++)
		snprintf(line + strlen(line), sizeof line - strlen(line), " %s", *args);
	fail_msg("`%s` exited with %d, expected: %s. It said: %s%s", line, result->exit_code, expected, result->out,
		 result->err);
	abort();
}

json_t *command_ok(const struct test_server *server, char *const args[])
{
	struct test_result result = command(server, args);
	json_t *json;

	if (result.exit_code != 0)
		fail_command(args, &result, "0");
	json = json_incref(result.json);
	result_clear(&result);
	return json;
}

static bool has_word(const char *text, const char *words)
{
	while (*words) {
		size_t length = strcspn(words, "|");
		char word[80];

		snprintf(word, sizeof word, "%.*s", (int)length, words);
		if (strcasestr(text, word))
			return true;
		words += length + (words[length] == '|');
	}
	return false;
}

void command_fails(const struct test_server *server, char *const args[], int code, const char *word)
{
	struct test_result result = command(server, args);
	char expected[120];

	snprintf(expected, sizeof expected, "%d, with a message%s%s", code, word ? " about " : "", word ? word : "");
	if (result.exit_code != code || (!*result.err && !*result.out))
		fail_command(args, &result, expected);
	if (word && !has_word(result.err, word) && !has_word(result.out, word))
		fail_command(args, &result, expected);
	result_clear(&result);
}

void template_add_inject(const struct test_server *server, const char *name, const struct test_image *image,
			 const char *inject)
{
	char *const plain[] = { "template", "add", (char *)name, "--memory", (char *)image->path, NULL };
	char *const wrapped[] = { "template",	       "add",	   (char *)name,   "--memory",
				  (char *)image->path, "--inject", (char *)inject, NULL };

	json_decref(command_ok(server, inject ? wrapped : plain));
}

void template_add(const struct test_server *server, const char *name, const struct test_image *image)
{
	template_add_inject(server, name, image, NULL);
}

const char *fork_create(const struct test_server *server, const char *template, const char *id, char *const extra[],
			char path[static SOCKET_PATH_MAX])
{
	char *args[ARGS_MAX] = { "fork", "create", (char *)template, "--id", (char *)id };
	unsigned n = 5;

	for (; extra && *extra; extra++)
		args[n++] = *extra;
	json_decref(command_ok(server, args));
	return test_fork_socket(server, id, path);
}

json_t *fork_show(const struct test_server *server, const char *id)
{
	json_t *json = command_ok(server, ARGS("fork", "show", (char *)id));

	if (!json_is_object(json))
		fail_msg("`fork show %s --json` is not a JSON object", id);
	return json;
}

long long fork_number(const struct test_server *server, const char *id, const char *key)
{
	json_t *json = fork_show(server, id);
	json_t *value = json_object_get(json, key);

	if (!json_is_number(value))
		fail_msg("`fork show %s --json` has no number \"%s\"", id, key);
	long long number = (long long)json_number_value(value);
	json_decref(json);
	return number;
}

char *fork_string(const struct test_server *server, const char *id, const char *key)
{
	json_t *json = fork_show(server, id);
	const char *value = json_string_value(json_object_get(json, key));
	char *copy = strdup(value ? value : "");

	json_decref(json);
	return copy;
}

void fork_wait(const struct test_server *server, const char *id, const char *milestone)
{
	char seconds[16];

	snprintf(seconds, sizeof seconds, "%d", WAIT_S);
	json_decref(command_ok(server,
			       ARGS("fork", "wait", (char *)id, "--for", (char *)milestone, "--timeout", seconds)));
}

bool fork_await_prefetching(const struct test_server *server, const char *id, struct test_command *prefetch)
{
	uint64_t deadline = deadline_in(WAIT_S);

	for (;;) {
		bool ended = command_has_ended(prefetch);
		_cleanup_free_ char *state = fork_string(server, id, "prefetch_state");

		if (!strcmp(state, "running"))
			return true;
		if (ended)
			return false;
		if (!deadline_ms(deadline))
			fail_msg("the prefetch of fork %s does not begin: it is \"%s\"", id, state);
	}
}

void fork_expect_error(const struct test_server *server, const char *id, const char *state, const char *word)
{
	_cleanup_free_ char *is = fork_string(server, id, "state");
	_cleanup_free_ char *error = fork_string(server, id, "error");

	if (strcmp(is, state))
		fail_msg("fork %s is \"%s\" where it should be \"%s\"; its error: %s", id, is, state, error);
	if (!*error || (word && !has_word(error, word)))
		fail_msg("fork %s is to say why%s%s in \"error\", but says \"%s\"", id, word ? ", with the word " : "",
			 word ? word : "", error);
}

struct good_fork {
	char socket[SOCKET_PATH_MAX];
	const struct test_image *image;
};

static void good_client(struct client_self *self, void *data)
{
	struct good_fork *good = data;
	struct vmm vmm;

	vmm_init(&vmm, self, good->image);
	vmm_start(&vmm, good->socket, (struct vmm_form){ 0 });
	vmm_check_all_shuffled(&vmm, 2, 7);
}

void fork_check_good(const struct test_server *server, const char *template, const char *id,
		     const struct test_image *image)
{
	struct good_fork good = { .image = image };

	fork_create(server, template, id, NULL, good.socket);
	client_join(client_start(id, good_client, &good));
}
