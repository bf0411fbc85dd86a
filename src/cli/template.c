/* faultline template: memory images that forks start from. */
#include <stdio.h>
#include <string.h>

#include "cli/api_client.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/options.h"

static void print_hot_set(const json_t *hot_set)
{
	const char *state = client_string(hot_set, "state", "-");
	char size[32];

	cli_format_size((uint64_t)client_number(hot_set, "bytes"), size, sizeof size);
	if (client_number(hot_set, "bytes") > 0)
		printf("hot set   %s: %.0f pages, %s\n", state, client_number(hot_set, "pages"), size);
	else
		printf("hot set   %s%s%s\n", state, json_is_null(json_object_get(hot_set, "error")) ? "" : ": ",
		       client_string(hot_set, "error", ""));
}

static void print_template(const json_t *template)
{
	char size[32];

	cli_format_size((uint64_t)client_number(template, "memory_size"), size, sizeof size);
	printf("name      %s\n", client_string(template, "name", "-"));
	printf("memory    %s (%s)\n", client_string(template, "memory", "-"), size);
	printf("state     %s\n", client_string(template, "state", "-"));
	printf("hot list  %s%s\n", client_string(template, "hot_list", "-"),
	       json_is_true(json_object_get(template, "refresh_hot_list")) ? ", kept fresh" : "");
	print_hot_set(json_object_get(template, "hot_set"));
	const json_t *zeros = json_object_get(template, "zero_map");
	printf("zero map  %s, %.0f pages\n", client_string(zeros, "state", "-"), client_number(zeros, "pages"));
	if (!json_is_null(json_object_get(template, "inject")))
		printf("inject    %s\n", client_string(template, "inject", "-"));
	printf("forks     %.0f live, %.0f waiting\n", client_number(template, "forks_live"),
	       client_number(template, "forks_waiting"));
}

static void print_templates(const json_t *templates)
{
	static const char *const headings[] = { "NAME", ">SIZE", ">LIVE", ">WAITING", "MEMORY", "HOT LIST" };
	struct cli_table *table = cli_table_new(headings, sizeof headings / sizeof *headings);
	const json_t *template;
	size_t i;

	if (!table)
		return;
	json_array_foreach(templates, i, template) {
		char size[32];

		cli_format_size((uint64_t)client_number(template, "memory_size"), size, sizeof size);
		cli_table_cell(table, "%s", client_string(template, "name", "-"));
		cli_table_cell(table, "%s", size);
		cli_table_cell(table, "%.0f", client_number(template, "forks_live"));
		cli_table_cell(table, "%.0f", client_number(template, "forks_waiting"));
		cli_table_cell(table, "%s", client_string(template, "memory", "-"));
		cli_table_cell(table, "%s", client_string(template, "hot_list", "-"));
	}
	cli_table_print(table);
}

static int run_add(const struct cli_args *args)
{
	_cleanup_client_call_ struct client_call call = { .args = args };

	client_add_string(&call, "name", args->arguments[0]);
	client_add_path(&call, "memory", cli_value(args, "memory"));
	client_add_path(&call, "state", cli_value(args, "state"));
	client_add_path(&call, "hot_list", cli_value(args, "hot-list"));
	if (cli_value(args, "refresh-hot-list"))
		client_add(&call, "refresh_hot_list", json_true());
	if (cli_value(args, "no-hot-set"))
		client_add(&call, "no_hot_set", json_true());
	if (cli_value(args, "no-zero-map"))
		client_add(&call, "no_zero_map", json_true());
	client_add_string(&call, "inject", cli_value(args, "inject"));
	if (client_call(&call, "POST", "/v1/templates", API_TIMEOUT_S) < 0)
		return client_fail(&call);
	if (args->json)
		return client_print_reply(&call);

	char size[32];

	cli_format_size((uint64_t)client_number(call.reply.json, "memory_size"), size, sizeof size);
	printf("added template %s (%s)\n", args->arguments[0], size);
	return cli_finish_output();
}

static int run_list(const struct cli_args *args)
{
	_cleanup_client_call_ struct client_call call = { .args = args };

	if (client_call(&call, "GET", "/v1/templates", API_TIMEOUT_S) < 0)
		return client_fail(&call);
	if (args->json)
		return client_print_reply(&call);
	const json_t *templates = json_object_get(call.reply.json, "templates");
	if (cli_value(args, "names"))
		client_print_names(templates, "name");
	else
		print_templates(templates);
	return cli_finish_output();
}

static int run_show(const struct cli_args *args)
{
	_cleanup_client_call_ struct client_call call = { .args = args };

	if (client_call_named(&call, "GET", "/v1/templates/", args->arguments[0], "", API_TIMEOUT_S) < 0)
		return client_fail(&call);
	if (args->json)
		return client_print_reply(&call);
	print_template(call.reply.json);
	return cli_finish_output();
}

static int run_remove(const struct cli_args *args)
{
	_cleanup_client_call_ struct client_call call = { .args = args };

	if (client_call_named(&call, "DELETE", "/v1/templates/", args->arguments[0], "", API_TIMEOUT_S) < 0)
		return client_fail(&call);
	return EXIT_OK;
}

static const struct cli_option add_options[] = {
	{ .name = "memory",
	  .value = "FILE",
	  .help = "the memory image; it must not change as long as the template exists",
	  .required = true },
	{ .name = "state",
	  .value = "FILE",
	  .help = "the VMM's own state that belongs to it: kept with the template, never read" },
	{ .name = "hot-list",
	  .value = "LIST",
	  .help = "what its forks prefetch where they don't say otherwise",
	  .manual = "It need not exist yet." },
	{ .name = "refresh-hot-list",
	  .help = "keep that list fresh by what its forks touch, where touches of prefetched pages are seen (KVM)",
	  .manual =
		  "A fork that prefetches the template's list is merged into it when it is ready, or ends after it had settled: pages that forks don't touch "
		  "any more sink, and leave with the fifth fork at the latest; new ones enter where they are touched. The list becomes HPL2, is replaced as a whole, "
		  "and the log says what changed.\n\n"
		  "That takes touches of prefetched pages that are seen, as under KVM where 'faultline doctor' says so. Where they aren't, as with an emulator, "
		  "whose memory is that of a process, no page can be told to be unused, and the list stays as it is: 'faultline warmup' makes a new one. A "
		  "recording that lost events teaches nothing either." },
	{ .name = "no-hot-set",
	  .help = "don't pack the list's pages into a file beside the image",
	  .manual =
		  "Once a fork has streamed the template's own list, the server writes its pages in the list's order to IMAGE.NAME.hotset, and reads them "
		  "from there where the image is not in memory: one stretch of the disk instead of thousands of places. The file is checked before use, made again "
		  "when the list changes, and removed with the template. Where it can't be written, everything comes from the image." },
	{ .name = "no-zero-map",
	  .help = "don't look which of its pages are zeros",
	  .manual =
		  "The server looks through the image once, in the background and past the page cache, for holes and for pages of zeros, and keeps what it finds in "
		  "IMAGE.NAME.zeromap: such pages are never read again. The file is checked before use, and removed with the template." },
	{ .name = "inject",
	  .value = "SPEC",
	  .help = "a test aid: makes reads of the image fail or wait, like delay=5ms,error=0x1000+0x2000" },
	{ 0 },
};

static const struct cli_option list_options[] = {
	{ .name = "names", .help = "print the names alone, one a line" },
	{ 0 },
};

static const struct cli_action actions[] = {
	{ .name = "add",
	  .arguments = "NAME",
	  .summary = "make a memory image a template",
	  .options = add_options,
	  .run = run_add,
	  .client = true },
	{ .name = "list",
	  .arguments = "",
	  .summary = "all templates, by name",
	  .options = list_options,
	  .run = run_list,
	  .client = true },
	{ .name = "show",
	  .arguments = "NAME",
	  .summary = "one template",
	  .run = run_show,
	  .client = true,
	  .complete = "@template" },
	{ .name = "remove",
	  .arguments = "NAME",
	  .summary = "forget a template that no fork uses; its files stay, but for what the server made of them",
	  .run = run_remove,
	  .client = true,
	  .complete = "@template",
	  .manual = "It is refused while forks of the template wait for their VMM or live." },
	{ 0 },
};

const struct cli_command template_command = {
	.name = "template",
	.summary = "Templates: memory images that forks start from.",
	.details = "Names have 1 to 64 of A-Z a-z 0-9 . _ - and start with neither '.' nor '-'.",
	.actions = actions,
	.brief = "memory images that forks start from",
	.manual =
		"A template is the memory image of a VM that was stopped once it was ready, and the VMM's state that belongs to it. "
		"Any number of forks start from it, each with memory of its own. The server notices when an image is written to or cut "
		"short, and says so; it can't undo it.\n\n"
		"Relative paths mean the working directory of the command, not the server's.",
	.examples = "    faultline template add base --memory /images/base.mem --state /images/base.state\n\n"
		    "With a list of pages that its forks get before they ask:\n\n"
		    "    faultline template add base --memory /images/base.mem --hot-list /images/base.hpl1",
};
