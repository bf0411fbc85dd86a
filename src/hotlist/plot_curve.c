/* The second diagram: the touch curve that the list predicts, against the true one. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "hotlist/order.h"
#include "hotlist/plot_internal.h"

#define HEIGHT 340
#define POINTS 420 /* of the curve: more than there are units across */

static double point_x(const struct plot_box *box, size_t k, size_t count)
{
	return box->x + box->width * (double)k / (double)count;
}

static double point_y(const struct plot_box *box, uint64_t n, size_t count)
{
	return box->y + box->height * (1 - (double)n / (double)count);
}

static void write_curve(FILE *svg, const struct plot_box *box, const uint32_t *served, size_t count)
{
	size_t points = count < POINTS ? count : POINTS;

	fprintf(svg, "M%g %g", box->x, box->y + box->height);
	for (size_t i = 1; i <= points; i++) {
		size_t k = (size_t)((uint64_t)count * i / points);

		fprintf(svg, "L%.1f %.1f", point_x(box, k, count), point_y(box, served[k - 1], count));
	}
}

static void draw_curve(FILE *svg, const struct plot_box *box, const uint32_t *served, size_t count)
{
	fputs("<path class=\"gap\" d=\"", svg);
	write_curve(svg, box, served, count);
	fprintf(svg, "L%g %gZ\"/>\n<path class=\"pred\" d=\"", box->x + box->width, box->y);
	write_curve(svg, box, served, count);
	fprintf(svg, "\"/>\n<path class=\"true\" d=\"M%g %gL%g %g\"/>\n", box->x, box->y + box->height,
		box->x + box->width, box->y);
}

static void draw_legend(FILE *svg, const struct plot_box *box, const struct plot *plot)
{
	double y = box->y - 14;

	fprintf(svg, "<path class=\"true\" d=\"M%g %gh28\"/><text x=\"%g\" y=\"%g\">true order: ", box->x, y - 4,
		box->x + 35, y);
	plot_text(svg, plot->truth_name);
	fprintf(svg, "</text><path class=\"pred\" d=\"M%g %gh28\"/><text x=\"%g\" y=\"%g\">this list</text>\n",
		box->x + box->width - 110, y - 4, box->x + box->width - 75, y);
}

/* In the corner below the curves, which nothing ever reaches but a list that predicts nothing. */
static void draw_figures(FILE *svg, const struct plot_box *box, const struct order_figures *figures)
{
	double x = box->x + box->width - 14, y = box->y + box->height - 72;
	char missing[32], unused[32];

	fprintf(svg, "<text class=\"end\" x=\"%g\" y=\"%g\">rank correlation %.4f</text>\n", x, y,
		figures->rank_correlation);
	fprintf(svg, "<text class=\"end\" x=\"%g\" y=\"%g\">area between the curves %.4f (0 is perfect)</text>\n", x,
		y + 20, figures->area);
	fprintf(svg, "<text class=\"end\" x=\"%g\" y=\"%g\">%s missing from the list, %s in it and not touched</text>\n",
		x, y + 40, plot_count(figures->missing, missing), plot_count(figures->unused, unused));
}

int plot_draw_curves(FILE *svg, const struct plot *plot, double top)
{
	const struct plot_box box = { PLOT_LEFT, top + 64, PLOT_WIDTH - PLOT_LEFT - PLOT_RIGHT, HEIGHT };
	_cleanup_free_ uint32_t *served = NULL;
	struct order_figures figures;
	size_t count;

	if (order_touch_curve(plot->list, plot->truth, &served, &count) < 0 ||
	    order_compare(plot->list, plot->truth, 0, &figures) < 0)
		return -ENOMEM;
	fprintf(svg,
		"<text class=\"head\" x=\"%d\" y=\"%g\">Pages that are there when they are touched, if they are brought at the guest&#39;s own pace</text>\n",
		PLOT_RIGHT, box.y - 38);
	draw_legend(svg, &box, plot);
	plot_x_axis(svg, &box, count, "touches by the guest (= pages brought)");
	plot_y_axis(svg, &box, count, "touched pages that were there");
	if (count)
		draw_curve(svg, &box, served, count);
	draw_figures(svg, &box, &figures);
	return 64 + HEIGHT + 60;
}
