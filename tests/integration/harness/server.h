/*
 * A server of the test's own: `faultline serve` in a fresh directory, ready before the test goes on. At the end it must stop by
 * SIGTERM with exit code 0, and its log must hold no sanitizer report.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "integration/harness/image.h"

#define SOCKET_PATH_MAX 108

struct test_server {
	char dir[64];	  /* on disk: images and lists go here */
	char run_dir[80]; /* below it */
	char log[80];
	pid_t pid;
	int pidfd;
};

/* cmocka's setup and teardown: *state is a struct test_server. */
int test_server_setup(void **state);
int test_server_teardown(void **state);

/*
 * The parts, for tests about starting and stopping. FAULTLINE_TEST_OBSERVE is the server's --observe where a test doesn't say: 'off' lets it start
 * ten times sooner on an emulated machine.
 */
void test_server_make_dir(struct test_server *server);
void test_server_start(struct test_server *server);
/* With EXTRA arguments (NULL-terminated), by a child that has called PREPARE before, where that is set. */
void test_server_start_as(struct test_server *server, char *const extra[], void (*prepare)(void *), void *data);
void test_server_signal(struct test_server *server, int signal);
/* Waits for the end; the status of waitpid. */
int test_server_wait_end(struct test_server *server);
/* Fails the test where the log has a sanitizer's report. */
void test_server_check_log(const struct test_server *server);
bool test_server_is_alive(const struct test_server *server);
/* The server's own resident memory in bytes, without the pages of images that it may have mapped. */
size_t test_server_memory(const struct test_server *server);

/* Writes the path of the fork's socket. */
const char *test_fork_socket(const struct test_server *server, const char *id, char path[static SOCKET_PATH_MAX]);

/* ---- commands, by the binary itself ---- */

struct test_command {
	pid_t pid;
	int pidfd, out, err;
	char *line; /* for messages */
};

struct test_result {
	int exit_code;
	char *out, *err;
	json_t *json; /* OUT as JSON, or NULL */
};

/* Starts `faultline ARGS… --run-dir DIR --json` (without --json for `serve`). */
void command_start(struct test_command *command, const struct test_server *server, char *const args[]);
bool command_has_ended(struct test_command *command);
struct test_result command_wait(struct test_command *command);
void result_clear(struct test_result *result);

#define ARGS(...)                 \
	(char *[])                \
	{                         \
		__VA_ARGS__, NULL \
	}

/* Runs one to its end. */
struct test_result command(const struct test_server *server, char *const args[]);
/* The same, and fails the test unless it exits with 0. The caller drops the reference. */
json_t *command_ok(const struct test_server *server, char *const args[]);
/* Fails the test unless it exits with CODE and says something; the sentence must have WORD in it, in any case (NULL: any). */
void command_fails(const struct test_server *server, char *const args[], int code, const char *word);

/* ---- the usual ones ---- */

void template_add(const struct test_server *server, const char *name, const struct test_image *image);
void template_add_inject(const struct test_server *server, const char *name, const struct test_image *image,
			 const char *inject);
/* EXTRA: further arguments, NULL-terminated, or NULL. Returns PATH with the socket's path. */
const char *fork_create(const struct test_server *server, const char *template, const char *id, char *const extra[],
			char path[static SOCKET_PATH_MAX]);
json_t *fork_show(const struct test_server *server, const char *id);
long long fork_number(const struct test_server *server, const char *id, const char *key);
/* The string, or "" where it is null or missing; the caller frees it. */
char *fork_string(const struct test_server *server, const char *id, const char *key);
/* `fork wait ID --for MILESTONE`, which must come. */
void fork_wait(const struct test_server *server, const char *id, const char *milestone);
/* Waits until PREFETCH, a running `fork prefetch ID`, is at work. False where it ended before that was seen. */
bool fork_await_prefetching(const struct test_server *server, const char *id, struct test_command *prefetch);
/* The fork is in STATE, and its `error` has WORD in it (any case; alternatives separated by '|'; NULL: any, but something). */
void fork_expect_error(const struct test_server *server, const char *id, const char *state, const char *word);
/* A new fork of TEMPLATE whose client finds every byte right. */
void fork_check_good(const struct test_server *server, const char *template, const char *id,
		     const struct test_image *image);
