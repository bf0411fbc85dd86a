/* The first diagram: each page's place in the list against its address, regions side by side. Pages share cells of three units a side. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "hotlist/page_index.h"
#include "hotlist/plot_internal.h"

#define CELL	     3
#define HEIGHT	     399
#define COLOURS	     9 /* classes .c0 to .c8 of the style; the last is for what isn't known */
#define UNKNOWN	     8
#define GAP	     10 /* between regions */
#define LABEL_WIDTH  70 /* of a region that is narrower, nothing is said below the axis */
#define REGIONS_WIDE 64 /* with more regions, gaps would take all the room */

/* A region that has pages. */
struct strip {
	uint64_t region, size; /* bytes */
	double x, width;
};

struct chart {
	const struct plot *plot;
	struct plot_box box;
	struct strip *strips;
	size_t strip_count;
	struct page_index regions; /* numbers of strips; regions as pages at offset 0 */
	bool by_vcpu, by_confidence;
	uint32_t *cells; /* pages by cell and colour */
	size_t columns, rows;
	size_t used[COLOURS];
};

static size_t known_vcpus(const struct hotlist *list)
{
	bool seen[COLOURS] = { false };
	size_t count = 0;

	for (size_t i = 0; list->touches && i < list->count; i++) {
		uint16_t vcpu = list->touches[i].vcpu;

		if (vcpu == HOT_VCPU_UNKNOWN)
			continue;
		vcpu = vcpu < UNKNOWN ? vcpu : UNKNOWN - 1;
		count += !seen[vcpu];
		seen[vcpu] = true;
	}
	return count;
}

static void choose_colours(struct chart *chart)
{
	const struct hotlist *list = chart->plot->list;
	bool several_runs = list->touches && list->origin && list->origin->runs > 1;

	chart->by_vcpu = chart->plot->colour == PLOT_COLOUR_VCPU ||
			 (chart->plot->colour == PLOT_COLOUR_AUTO && known_vcpus(list) > 1);
	chart->by_confidence = !chart->by_vcpu && (chart->plot->colour == PLOT_COLOUR_CONFIDENCE || several_runs);
}

/* How strong the colour of each step of confidence is. */
static const double strengths[] = { 1, 0.72, 0.48, 0.28 };

/* Confidence in steps: all runs, two thirds, one third, fewer. */
static unsigned confidence(const struct hotlist *list, const struct hot_touch *touch)
{
	uint64_t runs = list->origin && list->origin->runs ? list->origin->runs : 1, seen = touch->seen;

	return !seen ? UNKNOWN : seen >= runs ? 0 : 3 * seen >= 2 * runs ? 1 : 3 * seen >= runs ? 2 : 3;
}

static unsigned colour_of(const struct chart *chart, size_t i)
{
	const struct hotlist *list = chart->plot->list;
	const struct hot_touch *touch = list->touches ? &list->touches[i] : NULL;

	if (!chart->by_vcpu && !chart->by_confidence)
		return 0;
	if (!touch)
		return UNKNOWN;
	if (chart->by_confidence)
		return confidence(list, touch);
	if (touch->vcpu == HOT_VCPU_UNKNOWN)
		return UNKNOWN;
	return touch->vcpu < UNKNOWN ? touch->vcpu : UNKNOWN - 1;
}

/* ---- regions ---- */

static int compare_strips(const void *a, const void *b)
{
	const struct strip *x = a, *y = b;

	return (x->region > y->region) - (x->region < y->region);
}

static int find_strips(struct chart *chart)
{
	const struct hotlist *list = chart->plot->list;
	const struct hotlist_origin *origin = list->origin;
	uint32_t number;

	for (size_t i = 0; i < list->count; i++)
		if (page_index_add(&chart->regions, list->pages[i].region, 0, &number) < 0)
			return -ENOMEM;
	chart->strip_count = chart->regions.count;
	chart->strips = calloc(chart->strip_count + 1, sizeof *chart->strips);
	if (!chart->strips)
		return -ENOMEM;
	for (size_t i = 0; i < list->count; i++) {
		struct strip *strip = &chart->strips[page_index_find(&chart->regions, list->pages[i].region, 0)];
		uint64_t last = list->pages[i].offset | (HOTLIST_PAGE_SIZE - 1);

		strip->region = list->pages[i].region;
		strip->size = last > strip->size ? last : strip->size;
	}
	qsort(chart->strips, chart->strip_count, sizeof *chart->strips, compare_strips);
	page_index_clear(&chart->regions);
	for (size_t i = 0; i < chart->strip_count; i++) {
		struct strip *strip = &chart->strips[i];

		if (origin && strip->region < origin->region_count && origin->regions[strip->region].size > strip->size)
			strip->size = origin->regions[strip->region].size;
		if (page_index_add(&chart->regions, strip->region, 0, &number) < 0)
			return -ENOMEM;
	}
	return 0;
}

static void lay_out_strips(struct chart *chart)
{
	size_t count = chart->strip_count;
	double gap = count <= REGIONS_WIDE ? GAP : 0, x = chart->box.x, total = 0;
	double room = chart->box.width - gap * (double)(count ? count - 1 : 0);
	/* Half of the room goes by size, so that small regions are seen beside large ones; all of it where there is one. */
	double each = count > 1 ? room / 2 / (double)count : 0;

	for (size_t i = 0; i < count; i++)
		total += (double)chart->strips[i].size;
	for (size_t i = 0; i < count; i++) {
		struct strip *strip = &chart->strips[i];

		strip->x = x;
		strip->width = each + (room - each * (double)count) * (double)strip->size / total;
		x += strip->width + gap;
	}
}

static const char *size_text(uint64_t bytes, char buffer[static 32])
{
	static const char *const units[] = { "KiB", "MiB", "GiB", "TiB", "PiB" };
	double n = (double)bytes / 1024;
	size_t unit = 0;

	while (n >= 1023.9 && unit + 1 < sizeof units / sizeof *units) {
		n /= 1024;
		unit++;
	}
	snprintf(buffer, 32, n < 100 && n - (double)(uint64_t)n > 0.05 ? "%.1f %s" : "%.0f %s", n, units[unit]);
	return buffer;
}

static void draw_strip(FILE *svg, const struct chart *chart, const struct strip *strip)
{
	double bottom = chart->box.y + chart->box.height;
	uint64_t step = 4096;
	char text[32];

	fprintf(svg, "<rect class=\"frame\" x=\"%.1f\" y=\"%g\" width=\"%.1f\" height=\"%g\"/>\n", strip->x,
		chart->box.y, strip->width, chart->box.height);
	if (strip->width < LABEL_WIDTH)
		return;
	while (step < UINT64_MAX / 2 && (double)strip->size / (double)step > strip->width / LABEL_WIDTH)
		step *= 2;
	for (uint64_t at = 0; at <= strip->size; at += step) {
		double x = strip->x + strip->width * (double)at / (double)strip->size;

		if (x + 24 > strip->x + strip->width && at)
			break;
		fprintf(svg,
			"<path class=\"frame\" d=\"M%.1f %gv5\"/><text class=\"faint\" x=\"%.1f\" y=\"%g\">%s</text>\n",
			x, bottom, x, bottom + 19, at ? size_text(at, text) : "0");
		if (at > UINT64_MAX - step)
			break;
	}
	if (chart->strip_count > 1)
		fprintf(svg, "<text class=\"mid\" x=\"%.1f\" y=\"%g\">region %" PRIu64 "</text>\n",
			strip->x + strip->width / 2, bottom + 37, strip->region);
}

/* ---- pages ---- */

static void count_pages(struct chart *chart)
{
	const struct hotlist *list = chart->plot->list;

	for (size_t i = 0; i < list->count; i++) {
		const struct strip *strip = &chart->strips[page_index_find(&chart->regions, list->pages[i].region, 0)];
		double x = strip->x - chart->box.x + strip->width * (double)list->pages[i].offset / (double)strip->size;
		size_t column = (size_t)(x / CELL),
		       row = (size_t)((double)i / (double)list->count * (double)chart->rows);
		unsigned colour = colour_of(chart, i);

		column = column < chart->columns ? column : chart->columns - 1;
		row = row < chart->rows ? row : chart->rows - 1;
		chart->cells[(row * chart->columns + column) * COLOURS + colour]++;
		chart->used[colour]++;
	}
}

/* The colour of most of a cell's pages; COLOURS: it has none. */
static unsigned cell_colour(const struct chart *chart, size_t row, size_t column)
{
	const uint32_t *cell = &chart->cells[(row * chart->columns + column) * COLOURS];
	unsigned best = COLOURS;

	for (unsigned c = 0; c < COLOURS; c++)
		if (cell[c] && (best == COLOURS || cell[c] > cell[best]))
			best = c;
	return best;
}

/* One row of cells of that colour, as strokes; each is told by its distance from the last one's end, which is shorter. */
static void draw_row(FILE *svg, const struct chart *chart, unsigned colour, size_t row)
{
	double y = chart->box.y + chart->box.height - ((double)row + 0.5) * CELL;
	size_t end = SIZE_MAX;

	for (size_t column = 0; column < chart->columns; column++) {
		size_t from = column;

		while (column < chart->columns && cell_colour(chart, row, column) == colour)
			column++;
		if (column == from)
			continue;
		if (end == SIZE_MAX)
			fprintf(svg, "M%g %g", chart->box.x + (double)(from * CELL), y);
		else
			fprintf(svg, "m%zu 0", (from - end) * CELL);
		fprintf(svg, "h%zu", (column - from) * CELL);
		end = column;
	}
}

static void draw_colour(FILE *svg, const struct chart *chart, unsigned colour)
{
	unsigned hue = chart->by_confidence && colour < UNKNOWN ? 0 : colour;

	fprintf(svg, "<path class=\"dots c%u\"", hue);
	if (chart->by_confidence && colour < UNKNOWN)
		fprintf(svg, " opacity=\"%g\"", strengths[colour]);
	fputs(" d=\"", svg);
	for (size_t row = 0; row < chart->rows; row++)
		draw_row(svg, chart, colour, row);
	fputs("\"/>\n", svg);
}

static const char *colour_name(const struct chart *chart, unsigned colour, char buffer[static 32])
{
	static const char *const confidences[] = { "in all runs", "in two thirds or more", "in a third or more",
						   "in fewer" };

	if (colour == UNKNOWN)
		return "not known";
	if (chart->by_confidence)
		return confidences[colour];
	snprintf(buffer, 32, colour == UNKNOWN - 1 ? "vCPU %u and above" : "vCPU %u", colour);
	return buffer;
}

static void draw_legend(FILE *svg, const struct chart *chart)
{
	double x = chart->box.x, y = chart->box.y - 14;
	char text[32];

	if (!chart->by_vcpu && !chart->by_confidence)
		return;
	if (chart->by_confidence) {
		fprintf(svg, "<text class=\"faint\" x=\"%g\" y=\"%g\">touched</text>\n", x, y);
		x += 58;
	}
	for (unsigned c = 0; c < COLOURS; c++) {
		if (!chart->used[c])
			continue;
		const char *name = colour_name(chart, c, text);
		fprintf(svg,
			"<rect class=\"key c%u\" x=\"%g\" y=\"%g\" width=\"11\" height=\"11\" opacity=\"%g\"/><text x=\"%g\" y=\"%g\">%s</text>\n",
			chart->by_confidence && c < UNKNOWN ? 0 : c, x, y - 10,
			chart->by_confidence && c < UNKNOWN ? strengths[c] : 1, x + 17, y, name);
		x += 40 + 7 * (double)strlen(name);
	}
}

static int draw_chart(FILE *svg, struct chart *chart)
{
	if (find_strips(chart) < 0)
		return -ENOMEM;
	lay_out_strips(chart);
	choose_colours(chart);
	chart->columns = (size_t)(chart->box.width / CELL);
	chart->rows = (size_t)(chart->box.height / CELL);
	chart->cells = calloc(chart->columns * chart->rows * COLOURS, sizeof *chart->cells);
	if (!chart->cells)
		return -ENOMEM;
	count_pages(chart);

	fprintf(svg, "<text class=\"head\" x=\"%d\" y=\"%g\">When each page is touched, and where it lies</text>\n",
		PLOT_RIGHT, chart->box.y - 38);
	draw_legend(svg, chart);
	plot_y_axis(svg, &chart->box, chart->plot->list->count, "place in the list (pages touched before)");
	for (size_t i = 0; i < chart->strip_count; i++)
		draw_strip(svg, chart, &chart->strips[i]);
	for (unsigned c = 0; c < COLOURS; c++)
		if (chart->used[c])
			draw_colour(svg, chart, c);
	fprintf(svg, "<text class=\"mid\" x=\"%g\" y=\"%g\">address in the region</text>\n",
		chart->box.x + chart->box.width / 2,
		chart->box.y + chart->box.height + (chart->strip_count > 1 ? 57 : 40));
	return 0;
}

int plot_draw_pages(FILE *svg, const struct plot *plot, double top)
{
	struct chart chart = {
		.plot = plot,
		.box = { PLOT_LEFT, top + 64, PLOT_WIDTH - PLOT_LEFT - PLOT_RIGHT, HEIGHT },
	};
	int r = draw_chart(svg, &chart);

	free(chart.strips);
	free(chart.cells);
	page_index_clear(&chart.regions);
	return r < 0 ? r : 64 + HEIGHT + 76;
}
