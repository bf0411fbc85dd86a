/* `faultline hotlist plot`: a list as a picture, alone or against the order in which a guest really touched its pages. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/hotlist.h"
#include "cli/options.h"
#include "hotlist/hotlist.h"
#include "hotlist/plot.h"

/* What a path is called in a title: its last part. */
static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	if (!strcmp(path, "-"))
		return "from standard input";
	return slash && slash[1] ? slash + 1 : path;
}

static int write_svg(const char *out, const char *svg, size_t size, struct error *err)
{
	if (strcmp(out, "-") != 0)
		return hotlist_write_file(out, svg, size, err);
	return cli_print_bytes(svg, size) == EXIT_OK
		       ? 0
		       : error_set(err, -EIO, "io_error", "the picture was not written whole");
}

int hotlist_cli_plot(const struct cli_args *args)
{
	_cleanup_hotlist_ struct hotlist *list = NULL, *truth = NULL;
	_cleanup_free_ char *svg = NULL;
	const char *file = args->arguments[0], *truth_file = cli_value(args, "truth"),
		   *colour = cli_value(args, "color");
	struct plot plot = { .name = base_name(file) };
	struct error err;
	size_t size;

	if (truth_file && !strcmp(truth_file, "-") && !strcmp(file, "-"))
		return cli_usage_error(args, "only one of the lists can come from standard input");
	if (hotlist_cli_load(args, file, &list, &err) < 0 ||
	    (truth_file && hotlist_cli_load(args, truth_file, &truth, &err) < 0))
		return cli_fail(args->json, &err);

	plot.list = list;
	plot.truth = truth;
	plot.truth_name = truth_file ? base_name(truth_file) : NULL;
	if (colour)
		plot.colour = !strcmp(colour, "vcpu") ? PLOT_COLOUR_VCPU : PLOT_COLOUR_CONFIDENCE;
	if (plot_svg(&plot, &svg, &size, &err) < 0 || write_svg(cli_value(args, "output"), svg, size, &err) < 0)
		return cli_fail(args->json, &err);
	return EXIT_OK;
}

const struct cli_option hotlist_plot_options[] = {
	{ .name = "output",
	  .letter = 'o',
	  .value = "SVG",
	  .help = "where the picture goes; '-' is standard output",
	  .complete = "@file",
	  .required = true },
	{ .name = "truth",
	  .value = "LIST",
	  .help = "the order in which a guest really touched its pages: draws the touch curves too",
	  .complete = "@file" },
	{ .name = "color",
	  .value = "WHAT",
	  .help = "what colours mean: vcpu or confidence (default: vcpu where the list knows two or more)",
	  .words = "vcpu confidence" },
	{ 0 },
};
