/* faultline fork: VMs that are restored from a template. How they are printed is in fork_print.c. */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/fork_print.h"
#include "cli/hotlist.h"
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

/* An option of a number of seconds, as MEMBER of the request where it is given. */
static int add_seconds(struct client_call *call, const char *option, const char *member)
{
	double seconds;
	int exit_code = cli_seconds(call->args, option, -1, &seconds);

	if (exit_code == EXIT_OK && seconds >= 0)
		client_add(call, member, json_real(seconds));
	return exit_code;
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
	if (add_seconds(&call, "window-timeout", "window_timeout_s") != EXIT_OK ||
	    add_seconds(&call, "settle", "settle_s") != EXIT_OK)
		return EXIT_USAGE;
	const char *budget = cli_value(args, "prefetch-budget");
	uint64_t bytes;

	if (budget) {
		if (!hotlist_cli_parse_size(budget, &bytes) || bytes > INT64_MAX)
			return cli_usage_error(args, "--prefetch-budget is a size like 64M, not '%s'", budget);
		client_add(&call, "prefetch_budget", json_integer((json_int_t)bytes));
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

static void print_ids(const json_t *reply)
{
	client_print_names(json_object_get(reply, "forks"), "id");
}

static int run_list(const struct cli_args *args)
{
	_cleanup_client_call_ struct client_call call = { .args = args };

	return finish_with(&call, client_call(&call, "GET", "/v1/forks", API_TIMEOUT_S),
			   cli_value(args, "names") ? print_ids : fork_print_list);
}

static int run_show(const struct cli_args *args)
{
	_cleanup_client_call_ struct client_call call = { .args = args };

	return finish_with(&call, client_call_named(&call, "GET", "/v1/forks/", args->arguments[0], "", API_TIMEOUT_S),
			   fork_print);
}

static int run_wait(const struct cli_args *args)
{
	_cleanup_client_call_ struct client_call call = { .args = args };
	const char *milestone = cli_value(args, "for");
	double seconds;
	char suffix[128];

	if (cli_seconds(args, "timeout", WAIT_DEFAULT_S, &seconds) != EXIT_OK)
		return EXIT_USAGE;
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

/* Which recording was taken, where that was the server's choice. */
static void report_recording(bool json, const char *by, const char *why)
{
	fflush(stdout);
	if (!json) {
		fprintf(stderr, "the %s recording: %s\n", strcmp(by, "kernel") ? "fault loop's" : "kernel's", why);
		return;
	}
	json_t *value = json_pack("{s:s,s:s}", "from", by, "why", why);
	if (value) {
		json_dumpf(value, stderr, JSON_COMPACT);
		fputc('\n', stderr);
	}
	json_decref(value);
}

static int run_hot_list(const struct cli_args *args)
{
	_cleanup_client_call_ struct client_call call = { .args = args };
	const char *output = cli_value(args, "output"), *from = cli_value(args, "from") ?: "best";
	const char *format = cli_value(args, "format") ?: "hpl2";
	char suffix[64];

	/* The table of options lets only words through that may stand in a query as they are. */
	snprintf(suffix, sizeof suffix, "/hot-list?from=%s&format=%s", from, format);
	if (client_call_named(&call, "GET", "/v1/forks/", args->arguments[0], suffix, API_TIMEOUT_NONE) < 0)
		return client_fail(&call);
	const char *by = call.reply.recorded_by ?: "loop", *why = call.reply.recorded_why ?: "";
	bool chosen = !strcmp(from, "best");
	if (!strcmp(output, "-")) {
		/* Standard output is the list's. */
		if (chosen)
			report_recording(args->json, by, why);
		return client_print_reply(&call);
	}
	if (hotlist_write_file(output, call.reply.body ?: "", call.reply.size, &call.err) < 0)
		return client_fail(&call);
	if (!args->json) {
		if (chosen)
			report_recording(false, by, why);
		return EXIT_OK;
	}
	json_t *answer = json_pack("{s:s,s:s}", "from", by, "why", why);
	int exit_code = answer ? cli_print_json(answer) : EXIT_FAILED;
	json_decref(answer);
	return exit_code;
}

static const struct cli_option create_options[] = {
	{ .name = "id", .value = "ID", .help = "its id (default: the server makes one up)", .complete = "" },
	{ .name = "record", .help = "keep the pages that demand faults are served with, for a hot list" },
	{ .name = "prefetch",
	  .value = "MODE",
	  .help = "eager: all of the hot list before the VM runs; stream: beside it; off: none",
	  .words = "off eager stream",
	  .manual = "eager: the VM is held back by whoever starts it: 'faultline fork wait ID --for prefetched' returns when the pages "
		    "are there. stream: pages come in the list's order while the VM runs, from where it asks on." },
	{ .name = "hot-list", .value = "LIST", .help = "what to prefetch (default: the template's own list)" },
	{ .name = "prefetch-budget",
	  .value = "SIZE",
	  .help = "memory that prefetch may take, like 64M: what the list names after that is left out (default: all of it)",
	  .manual =
		  "The first pages of the list that fit are prefetched, so that a list in the order of touches loses what is touched last. Pages that come along with "
		  "demand faults take what the list has left. 'faultline fork show' tells how many pages were left out." },
	{ .name = "dir", .value = "DIR", .help = "where its socket is made (default: the run directory)" },
	{ .name = "window-timeout",
	  .value = "S",
	  .help = "the kernel's recording ends S seconds after the VMM has connected, if not before (default: 60)",
	  .manual = "What a fork touches long after its start would swell the list. Recorded are forks with --record, and those that keep their template's list "
		    "fresh." },
	{ .name = "settle",
	  .value = "S",
	  .help = "it ends where hardly any page was touched for S seconds; 0: not for that (default: 2)" },
	{ .name = "uid",
	  .value = "UID",
	  .help = "the user besides root who may connect, and who gets the socket (default: the server's)" },
	{ 0 },
};

static const struct cli_option list_options[] = {
	{ .name = "names", .help = "print the ids alone, one a line" },
	{ 0 },
};

static const struct cli_option wait_options[] = {
	{ .name = "for",
	  .value = "MILESTONE",
	  .help = "connected, prefetched, ready or gone",
	  .words = "connected prefetched ready gone",
	  .required = true },
	{ .name = "timeout",
	  .value = "S",
	  .help = "give up after S seconds, with exit status 5 (default: 30)",
	  .manual = "At most a day; 0 asks once." },
	{ 0 },
};

static const struct cli_option remove_options[] = {
	{ .name = "force", .help = "a live one too: its VMM is killed first" },
	{ 0 },
};

static const struct cli_option hot_list_options[] = {
	{ .name = "output",
	  .letter = 'o',
	  .value = "FILE",
	  .help = "where the list goes, replaced as a whole or not at all; '-' is standard output",
	  .required = true },
	{ .name = "from",
	  .value = "SOURCE",
	  .help = "kernel: what the kernel saw; loop: what the fault loop served; best (default): the kernel's unless it lost much",
	  .words = "best kernel loop",
	  .manual =
		  "The kernel sees every first touch, also of pages that were prefetched, in the order in which they happened; the fault loop what it "
		  "was asked for, in the order of service. Which one best took, and why, is said on standard error, or with --json on "
		  "standard output." },
	{ .name = "format",
	  .value = "FORMAT",
	  .help = "hpl2 (default), hpl1, json or csv",
	  .words = "hpl2 hpl1 json csv",
	  .manual =
		  "HPL1 is the set of pages, sorted by region and offset; the others keep the order in which pages were touched." },
	{ 0 },
};

static const char create_details[] =
	"Prints the path of the socket that the VMM is to connect to. Without --prefetch, a fork prefetches (eager)\n"
	"where it names a hot list, or where its template has one and it doesn't record.";

static const struct cli_action actions[] = {
	{ .name = "create",
	  .arguments = "TEMPLATE",
	  .summary = "expect a VM restored from TEMPLATE; prints its socket's path",
	  .details = create_details,
	  .options = create_options,
	  .run = run_create,
	  .client = true,
	  .manual =
		  "A recording has none of the pages that were prefetched, so that a warm-up fork is better off without." },
	{ .name = "list",
	  .arguments = "",
	  .summary = "all forks, oldest first",
	  .options = list_options,
	  .run = run_list,
	  .client = true },
	{ .name = "show", .arguments = "ID", .summary = "one fork with its counters", .run = run_show, .client = true },
	{ .name = "wait",
	  .arguments = "ID",
	  .summary = "wait until a fork is connected, prefetched, ready or gone",
	  .options = wait_options,
	  .run = run_wait,
	  .client = true,
	  .manual = "Returns as soon as the fork has got there, or can't get there any more." },
	{ .name = "ready",
	  .arguments = "ID",
	  .summary = "say that the guest is ready: recording stops there",
	  .run = run_ready,
	  .client = true,
	  .manual = "Those who wait for it go on. It may be said again." },
	{ .name = "prefetch",
	  .arguments = "ID LIST",
	  .summary = "supply the list's pages now, and wait until they are there",
	  .run = run_prefetch,
	  .client = true,
	  .manual = "The whole list is checked against the fork's memory before the first page is supplied. A list that is empty, or "
		    "doesn't exist, is a success." },
	{ .name = "remove",
	  .arguments = "ID",
	  .summary = "forget a fork; an unknown one is fine",
	  .options = remove_options,
	  .run = run_remove,
	  .client = true,
	  .manual = "A fork whose VMM lives is refused, since its guest would hang, unless --force has the VMM killed." },
	{ .name = "hot-list",
	  .arguments = "ID",
	  .summary = "save what was recorded",
	  .options = hot_list_options,
	  .run = run_hot_list,
	  .client = true,
	  .manual = "Also of a fork that is gone." },
	{ 0 },
};

const struct cli_command fork_command = {
	.name = "fork",
	.summary = "Forks: VMs that are restored from a template, and get their pages from the server.",
	.details = "Ids have 1 to 64 of A-Z a-z 0-9 . _ - and start with neither '.' nor '-'.",
	.actions = actions,
	.brief = "VMs that are restored from a template",
	.manual = "A fork is created before its VMM is started, since the VMM needs the path of its socket. It is waiting until the VMM "
		  "has connected, then connected, ready once somebody has said so, and gone when its VMM has ended.\n\n"
		  "What is known of a fork that is gone stays until it is removed.\n\n"
		  "Relative paths mean the working directory of the command, not the server's.",
	.examples = "A warm-up fork, whose first touches become a list:\n\n"
		    "    socket=$(faultline fork create base --id warm --record)\n"
		    "    start-the-vmm --uffd-socket \"$socket\" &\n"
		    "    faultline fork wait warm --for gone --timeout 600\n"
		    "    faultline fork hot-list warm -o base.hpl1\n\n"
		    "A fork that gets these pages before it runs:\n\n"
		    "    socket=$(faultline fork create base --id a1 --prefetch eager --hot-list base.hpl1)",
};
