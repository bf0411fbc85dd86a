/* `faultline hotlist`: looks at lists and turns them into other formats. Needs no server but to verify against a template. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/hotlist.h"
#include "cli/options.h"
#include "hotlist/hotlist.h"

static bool is_pipe(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode);
}

int hotlist_cli_load(const struct cli_args *args, const char *path, struct hotlist **ret, struct error *err)
{
	if (!strcmp(path, "-"))
		return hotlist_load_fd(STDIN_FILENO, "standard input", ret, err);
	if (is_pipe(path)) {
		/* <(command) of a shell. */
		_cleanup_close_ int fd = open(path, O_RDONLY | O_NOCTTY | O_CLOEXEC);
		if (fd < 0)
			return error_set(err, -errno, "bad_hot_list", "cannot read the hot list %s: %s", path,
					 strerror(errno));
		return hotlist_load_fd(fd, path, ret, err);
	}

	int r = hotlist_load(path, ret, err);
	/* As the server sees it; but here it may be a slip of the keyboard. */
	if (r == 0 && !args->json && access(path, F_OK) < 0)
		cli_error("note: %s does not exist, which counts as an empty list", path);
	return r;
}

/* ---- convert ---- */

static int write_stdout(const struct hotlist *list, enum hotlist_format format, struct error *err)
{
	_cleanup_free_ void *data = NULL;
	size_t size;

	if ((format == HOTLIST_HPL1 || format == HOTLIST_HPL2) && isatty(STDOUT_FILENO))
		return error_set(err, -EINVAL, "usage",
				 "%s is binary and standard output is a terminal: name a file, or use --to csv",
				 hotlist_format_name(format));
	int r = hotlist_encode(list, format, &data, &size, err);
	if (r < 0)
		return r;
	if (cli_print_bytes(data, size) != EXIT_OK)
		return error_set(err, -EIO, "io_error", "the list was not written whole");
	return 0;
}

/* --to, or what OUT ends in. Returns EXIT_OK, or EXIT_USAGE with the message printed. */
static int find_format(const struct cli_args *args, const char *out, enum hotlist_format *ret)
{
	const char *to = cli_value(args, "to"), *name = strrchr(out, '/'), *ending = strrchr(name ? name : out, '.');
	struct error err;

	if (!to && (!ending || hotlist_format_parse(ending + 1, ret, &err) < 0))
		return cli_usage_error(args,
				       "'%s' does not end in .hpl1, .hpl2, .json or .csv: say the format with --to",
				       out);
	if (to && hotlist_format_parse(to, ret, &err) < 0)
		return cli_usage_error(args, "%s", err.message);
	return EXIT_OK;
}

/* Losses are what a format is like, but who converts a list may not expect them. */
static void note_losses(const struct hotlist *list, enum hotlist_format format, const char *in)
{
	bool touches = hotlist_has_touches(list);
	size_t distinct = list->count;

	if (format == HOTLIST_HPL1 && !hotlist_is_sorted(list))
		cli_error("note: hpl1 keeps the set of pages, not the order of %s", in);
	if (format == HOTLIST_HPL1 && (touches || list->origin))
		cli_error("note: hpl1 does not keep %s of %s",
			  !list->origin ? "what is known of the pages (times, vCPU, times seen, kind, spread, present)"
			  : !touches
				  ? "the origin (tier, runs, window, clock, image, regions)"
				  : "the origin (tier, runs, window, clock, image, regions) and what is known of the pages "
				    "(times, vCPU, times seen, kind, spread, present)",
			  in);
	if (format == HOTLIST_CSV && list->origin)
		cli_error("note: csv does not keep the origin (tier, runs, window, clock, image, regions) of %s", in);
	if (format == HOTLIST_HPL2 && hotlist_count_distinct(list, &distinct) == 0 && distinct < list->count)
		cli_error("note: hpl2 has each page once, where it comes first: %zu entr%s of %s left out",
			  list->count - distinct, list->count - distinct == 1 ? "y" : "ies", in);
}

static int run_convert(const struct cli_args *args)
{
	_cleanup_hotlist_ struct hotlist *list = NULL;
	const char *in = args->arguments[0], *out = args->arguments[1];
	enum hotlist_format format;
	struct error err;

	int exit_code = find_format(args, out, &format);
	if (exit_code != EXIT_OK)
		return exit_code;
	if (hotlist_cli_load(args, in, &list, &err) < 0)
		return cli_fail(args->json, &err);
	note_losses(list, format, in);

	bool to_stdout = !strcmp(out, "-");
	if ((to_stdout ? write_stdout(list, format, &err) : hotlist_save(list, format, out, &err)) < 0)
		return cli_fail(args->json, &err);
	return EXIT_OK;
}

/* ---- the table ---- */

#define LIMIT_OPTION                                                                                              \
	{                                                                                                         \
		.name = "limit", .value = "N", .help = "pages to print, or 'all' (default: 20; with --json all)", \
		.complete = "all"                                                                                 \
	}
#define JSON_OPTION                                                                \
	{                                                                          \
		.name = "json", .help = "print JSON, and errors as JSON on stderr" \
	}

static const struct cli_option show_options[] = {
	LIMIT_OPTION,
	{ .name = "page-size",
	  .value = "SIZE",
	  .help = "size of a page, for sums and neighbours (default: 4096; '2M' on hugetlbfs)",
	  .complete = "4096 2M" },
	JSON_OPTION,
	{ 0 },
};

static const struct cli_option convert_options[] = {
	{ .name = "to",
	  .letter = 't',
	  .value = "FORMAT",
	  .help = "hpl1, hpl2, json or csv (default: what OUT ends in)",
	  .words = "hpl1 hpl2 json csv" },
	{ 0 },
};

static const struct cli_option diff_options[] = { LIMIT_OPTION, JSON_OPTION, { 0 } };

static const struct cli_option verify_options[] = {
	{ .name = "template",
	  .value = "NAME|IMAGE",
	  .help = "a template of the server, or the path of a memory image",
	  .complete = "@template @file",
	  .required = true },
	{ .name = "regions",
	  .value = "SPEC",
	  .help = "the VMM's memory regions, as above (default: the list's own, or one that covers the whole image)" },
	{ 0 },
};

static const struct cli_action actions[] = {
	{
		.name = "show",
		.arguments = "FILE",
		.summary = "what is in a list: size, origin, regions, runs of neighbours, pages in order",
		.options = show_options,
		.run = hotlist_cli_show,
	},
	{
		.name = "convert",
		.arguments = "IN OUT",
		.summary = "write a list in another format",
		.details =
			"OUT is replaced whole or not at all; '-' is standard output. hpl2 and json keep all that is known; csv all of the\n"
			"pages, in their order, but not the list's origin; hpl1 the set of pages alone, sorted by region and offset. What is\n"
			"lost is said on stderr. hpl1 and hpl2 have no duplicates.",
		.options = convert_options,
		.run = run_convert,
	},
	{
		.name = "diff",
		.arguments = "A B",
		.summary = "how two lists differ: pages that only one has, and the order of the others",
		.details = "Jaccard is pages in both over pages in either. The rank correlation compares the order of the pages in both: 1 the\n"
			   "same, 0 unrelated, -1 reversed. hpl1 has its pages in the order of addresses.\n\n"
			   "Exit code, as of diff(1): 0 the same pages (in any order), 1 different, 2 trouble.",
		.options = diff_options,
		.run = hotlist_cli_diff,
	},
	{
		.name = "verify",
		.arguments = "FILE",
		.summary = "whether a list is of a template or image, and every page lies in it",
		.details =
			"What holds a slash or names a file here is an image, anything else a template that the server is asked\n"
			"for.\n\n"
			"A list that says which image it was recorded on (hpl2, json) is refused with another one.\n\n"
			"Without --regions they are those that the list names; if it names none, it must be of region 0 only, which is the\n"
			"whole image. SPEC names several:\n"
			"SIZE[:OFFSET[:PAGE_SIZE]],… with OFFSET in the image (default: the end of the region before) and\n"
			"PAGE_SIZE (default: 4096). Numbers may end in K, M, G or T. Example: --regions 3G,1G\n\n"
			"Exit code: 0 it fits, 1 it doesn't or could not be read, 3 no server, 4 no such template.",
		.options = verify_options,
		.run = hotlist_cli_verify,
		.client = true,
	},
	{
		.name = "merge",
		.arguments = "IN...",
		.summary = "make one list of several runs' lists, in the order that they agree on",
		.details =
			"The runs vote on the clock (times as touches happened, or less the time that their vCPU had lost): true order\n"
			"repeats from run to run, stalls don't. Pages are placed by the median of their places in the runs; those that\n"
			"less than a third of the runs touched go to the end, those that no more than an eighth did are left out.\n\n"
			"Lists of different templates, or of forks with different memory regions, are not merged.",
		.options = hotlist_merge_options,
		.run = hotlist_cli_merge,
	},
	{
		.name = "plot",
		.arguments = "FILE",
		.summary = "draw a list: when each page is touched, and where it lies",
		.details = "With --truth, the picture also shows how many of the guest's touches would have found their page there, had pages\n"
			   "been brought in this list's order at the guest's own pace.",
		.options = hotlist_plot_options,
		.run = hotlist_cli_plot,
	},
	{ 0 },
};

const struct cli_command hotlist_command = {
	.name = "hotlist",
	.summary = "Looks at hot lists, and converts, compares, verifies, merges and draws them.",
	.details =
		"A list is a file in any format (hpl1, hpl2, json, csv; it is seen from the content), or '-' for standard input.\n"
		"A file that does not exist is an empty list.",
	.actions = actions,
	.brief = "files of hot pages",
	.manual = "A hot list names the pages that forks of a template touch, so that the next fork can have them before it asks. "
		  "Only verify with the name of a template asks a server.",
	.examples = "    faultline hotlist show base.hpl2 --limit 5\n\n"
		    "    faultline hotlist convert base.hpl2 - --to csv | head\n\n"
		    "    faultline hotlist verify base.hpl2 --template /images/base.mem --regions 3G,1G",
	.exit_status = "The action diff has the statuses of diff(1): 0 the same pages, 1 different ones, 2 trouble.",
	.see_also = "diff(1)",
};
