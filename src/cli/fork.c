/* faultline fork: VMs that are restored from a template. How they are printed is in fork_print.c. */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/client.h"
#include "cli/fork_print.h"
#include "cli/options.h"
#include "hotlist/hotlist.h"

#define WAIT_DEFAULT_S 30
/* Above the server's own time-out, which has the better message. */
#define WAIT_GRACE_S 15
/* The last one that is a user: (uid_t)-1 is nobody. */
#define UID_MAX (UINT32_MAX - 1)

/* For those whose answer is the fork: as JSON, or through PRINT. */
static int finish_with(struct client_call *call, int called, void (*print)(const json_t *fork))
{
	if (called < 0)
		return client_fail(call);
	if (call->args->json)
		return client_print_reply(call);
	print(call->reply.json);
	return cli_finish_output();
}

static bool parse_uid(const char *text, json_int_t *ret)
{
	char *end;

	errno = 0;
	unsigned long long value = strtoull(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno || value > UID_MAX)
		return false;
	*ret = (json_int_t)value;
	return true;
}

static int run_create(const struct cli_args *args)
{
	_cleanup_client_call_ struct client_call call = { .args = args };
	const char *uid = cli_value(args, "uid");
	json_int_t uid_number;

	if (uid) {
		if (!parse_uid(uid, &uid_number))
			return cli_usage_error(args, "--uid is a user id from 0 to %u, not '%s'", UID_MAX, uid);
		client_add(&call, "uid", json_integer(uid_number));
	}
	client_add_string(&call, "template", args->arguments[0]);
	client_add_string(&call, "id", cli_value(args, "id"));
	if (cli_value(args, "record"))
		client_add(&call, "record", json_true());
	client_add_string(&call, "prefetch", cli_value(args, "prefetch"));
	client_add_path(&call, "hot_list", cli_value(args, "hot-list"));
	client_add_path(&call, "dir", cli_value(args, "dir"));
	return finish_with(&call, client_call(&call, "POST", "/v1/forks", API_TIMEOUT_S), fork_print_socket);
}

static int run_list(const struct cli_args *args)
{
	_cleanup_client_call_ struct client_call call = { .args = args };

	return finish_with(&call, client_call(&call, "GET", "/v1/forks", API_TIMEOUT_S), fork_print_list);
}

static int run_show(const struct cli_args *args)
{
	_cleanup_client_call_ struct client_call call = { .args = args };

	return finish_with(&call, client_call_named(&call, "GET", "/v1/forks/", args->arguments[0], "", API_TIMEOUT_S),
			   fork_print);
}

static bool is_one_of(const char *word, const char *const *words)
{
	for (; *words; words++)
		if (!strcmp(*words, word))
			return true;
	return false;
}

static int run_wait(const struct cli_args *args)
{
	static const char *const milestones[] = { "connected", "prefetched", "ready", "gone", NULL };
	_cleanup_client_call_ struct client_call call = { .args = args };
	const char *milestone = cli_value(args, "for"), *timeout = cli_value(args, "timeout");
	double seconds = WAIT_DEFAULT_S;
	char suffix[128];

	if (!milestone)
		return cli_usage_error(args, "--for MILESTONE is missing");
	if (!is_one_of(milestone, milestones))
		return cli_usage_error(args, "--for is 'connected', 'prefetched', 'ready' or 'gone', not '%s'",
				       milestone);
	if (timeout) {
		char *end;

		seconds = strtod(timeout, &end);
		if (end == timeout || *end || strspn(timeout, "0123456789.") != strlen(timeout) || seconds > 86400)
			return cli_usage_error(args, "--timeout is a number of seconds from 0 to 86400, not '%s'",
					       timeout);
	}
	snprintf(suffix, sizeof suffix, "/wait?for=%s&timeout_s=%.3f", milestone, seconds);
	return finish_with(&call,
			   client_call_named(&call, "GET", "/v1/forks/", args->arguments[0], suffix,
					     (unsigned)seconds + WAIT_GRACE_S),
			   fork_print_nothing);
}

static int run_ready(const struct cli_args *args)
{
	_cleanup_client_call_ struct client_call call = { .args = args };

	return finish_with(&call,
			   client_call_named(&call, "POST", "/v1/forks/", args->arguments[0], "/ready", API_TIMEOUT_S),
			   fork_print_nothing);
}

static int run_prefetch(const struct cli_args *args)
{
	_cleanup_client_call_ struct client_call call = { .args = args };

	client_add_path(&call, "hot_list", args->arguments[1]);
	return finish_with(&call,
			   client_call_named(&call, "POST", "/v1/forks/", args->arguments[0], "/prefetch",
					     API_TIMEOUT_NONE),
			   fork_print_prefetched);
}

static int run_remove(const struct cli_args *args)
{
	_cleanup_client_call_ struct client_call call = { .args = args };
	const char *suffix = cli_value(args, "force") ? "?force=true" : "";

	if (client_call_named(&call, "DELETE", "/v1/forks/", args->arguments[0], suffix, API_TIMEOUT_S) < 0)
		return client_fail(&call);
	return EXIT_OK;
}

/* Words of the command line go into the query as they are: only those that the API knows get that far. */
static int check_hot_list_words(const struct cli_args *args, const char *from, const char *format)
{
	static const char *const sources[] = { "loop", "best", NULL };
	static const char *const formats[] = { "hpl1", "json", "csv", NULL };

	if (!is_one_of(from, sources))
		return cli_usage_error(args, "--from is 'loop' or 'best', not '%s'", from);
	if (!is_one_of(format, formats))
		return cli_usage_error(args, "--format is 'hpl1', 'json' or 'csv', not '%s'", format);
	return EXIT_OK;
}

static int run_hot_list(const struct cli_args *args)
{
	_cleanup_client_call_ struct client_call call = { .args = args };
	const char *output = cli_value(args, "output"), *from = cli_value(args, "from") ?: "best";
	const char *format = cli_value(args, "format") ?: "hpl1";
	char suffix[64];

	if (!output)
		return cli_usage_error(args, "-o FILE is missing ('-' is standard output)");
	int exit_code = check_hot_list_words(args, from, format);
	if (exit_code != EXIT_OK)
		return exit_code;

	snprintf(suffix, sizeof suffix, "/hot-list?from=%s&format=%s", from, format);
	if (client_call_named(&call, "GET", "/v1/forks/", args->arguments[0], suffix, API_TIMEOUT_NONE) < 0)
		return client_fail(&call);
	if (!strcmp(output, "-"))
		return client_print_reply(&call);
	if (hotlist_write_file(output, call.reply.body ?: "", call.reply.size, &call.err) < 0)
		return client_fail(&call);
	return EXIT_OK;
}

static const struct cli_option create_options[] = {
	{ "id", 0, "ID", "its id (default: the server makes one up)" },
	{ "record", 0, NULL, "keep the pages that demand faults are served with, for a hot list" },
	{ "prefetch", 0, "MODE", "eager: all of the hot list before the VM runs; off: none" },
	{ "hot-list", 0, "LIST", "what to prefetch (default: the template's own list)" },
	{ "dir", 0, "DIR", "where its socket is made (default: the run directory)" },
	{ "uid", 0, "UID", "the user besides root who may connect, and who gets the socket (default: the server's)" },
	{ 0 },
};

static const struct cli_option wait_options[] = {
	{ "for", 0, "MILESTONE", "connected, prefetched, ready or gone" },
	{ "timeout", 0, "S", "give up after S seconds, with exit status 5 (default: 30)" },
	{ 0 },
};

static const struct cli_option remove_options[] = {
	{ "force", 0, NULL, "a live one too: its VMM is killed first" },
	{ 0 },
};

static const struct cli_option hot_list_options[] = {
	{ "output", 'o', "FILE", "where the list goes, replaced as a whole or not at all; '-' is standard output" },
	{ "from", 0, "SOURCE", "loop: what the fault loop recorded; best: the best recording there is (default)" },
	{ "format", 0, "FORMAT", "hpl1 (default), json or csv" },
	{ 0 },
};

static const char create_details[] =
	"Prints the path of the socket that the VMM is to connect to. Without --prefetch, a fork prefetches (eager)\n"
	"where it names a hot list, or where its template has one and it doesn't record.";

static const struct cli_action actions[] = {
	{ "create", "TEMPLATE", "expect a VM restored from TEMPLATE; prints its socket's path", create_details,
	  create_options, run_create, true },
	{ "list", "", "all forks, oldest first", NULL, NULL, run_list, true },
	{ "show", "ID", "one fork with its counters", NULL, NULL, run_show, true },
	{ "wait", "ID", "wait until a fork is connected, prefetched, ready or gone", NULL, wait_options, run_wait, true },
	{ "ready", "ID", "say that the guest is ready: recording stops there", NULL, NULL, run_ready, true },
	{ "prefetch", "ID LIST", "supply the list's pages now, and wait until they are there", NULL, NULL, run_prefetch,
	  true },
	{ "remove", "ID", "forget a fork; an unknown one is fine", NULL, remove_options, run_remove, true },
	{ "hot-list", "ID", "save what was recorded", NULL, hot_list_options, run_hot_list, true },
	{ 0 },
};

int cli_fork(int argc, char **argv)
{
	static const struct cli_command command = {
		.name = "fork",
		.summary = "Forks: VMs that are restored from a template, and get their pages from the server.",
		.details = "Ids have 1 to 64 of A-Z a-z 0-9 . _ - and start with neither '.' nor '-'.",
		.actions = actions,
	};

	return cli_run(&command, argc, argv);
}
