#include "hotlist/plot.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "hotlist/merge.h"
#include "hotlist/plot_internal.h"
#include "hotlist/words.h"

/* Colours that keep their distance from each other and from both backgrounds. A viewer without media queries shows the light one. */
static const char style[] =
	"<style>\n"
	"svg{--paper:#fff;--ink:#1d2126;--faint:#5b646e;--grid:#e3e6ea;background:var(--paper)}\n"
	"@media(prefers-color-scheme:dark){svg{--paper:#15181c;--ink:#e8eaed;--faint:#a3abb5;--grid:#2c3238}}\n"
	"text{font:13px system-ui,-apple-system,'Segoe UI',sans-serif;fill:var(--ink)}\n"
	".title{font-size:19px;font-weight:600}.head{font-size:15px;font-weight:600}.faint{fill:var(--faint)}\n"
	".frame{fill:none;stroke:var(--faint)}.grid{stroke:var(--grid)}.end{text-anchor:end}.mid{text-anchor:middle}\n"
	".c0{--c:#2a78d6}.c1{--c:#e0702a}.c2{--c:#2f9e62}.c3{--c:#c24a94}.c4{--c:#7d6bd0}.c5{--c:#b08900}.c6{--c:#1695a3}.c7{--c:#a05a3c}.c8{--c:#8a9099}\n"
	".dots{stroke:var(--c);stroke-width:3;fill:none}.key{fill:var(--c)}\n"
	".true{stroke:var(--faint);stroke-width:1.5;stroke-dasharray:5 4;fill:none}.pred{stroke:#2a78d6;stroke-width:2;fill:none}.gap{fill:#2a78d6;opacity:.16}\n"
	"</style>\n";

/* The length of the UTF-8 character at TEXT that XML may hold; 0: it is none. */
static size_t utf8_length(const unsigned char *text)
{
	size_t length = *text < 0x80			? 1
			: *text >= 0xc2 && *text < 0xe0 ? 2
			: *text >= 0xe0 && *text < 0xf0 ? 3
			: *text >= 0xf0 && *text < 0xf5 ? 4
							: 0;

	if (*text < ' ' || *text == 0x7f)
		return 0;
	for (size_t i = 1; i < length; i++)
		if ((text[i] & 0xc0) != 0x80)
			return 0;
	/* Overlong forms, surrogates, beyond the last character, and the two that XML leaves out. */
	if ((text[0] == 0xe0 && text[1] < 0xa0) || (text[0] == 0xed && text[1] >= 0xa0) ||
	    (text[0] == 0xf0 && text[1] < 0x90) || (text[0] == 0xf4 && text[1] >= 0x90) ||
	    (text[0] == 0xef && text[1] == 0xbf && text[2] >= 0xbe))
		return 0;
	return length;
}

void plot_text(FILE *svg, const char *text)
{
	for (const unsigned char *c = (const unsigned char *)text; *c;) {
		size_t length = utf8_length(c);

		if (*c == '<')
			fputs("&lt;", svg);
		else if (*c == '>')
			fputs("&gt;", svg);
		else if (*c == '&')
			fputs("&amp;", svg);
		else if (*c == '"')
			fputs("&quot;", svg);
		else if (length)
			fwrite(c, 1, length, svg);
		else
			fputc('?', svg);
		c += length ?: 1;
	}
}

const char *plot_count(uint64_t n, char buffer[static 32])
{
	char digits[24];
	size_t length = (size_t)snprintf(digits, sizeof digits, "%" PRIu64, n), at = 0;

	for (size_t i = 0; i < length; i++) {
		if (i && (length - i) % 3 == 0)
			buffer[at++] = ',';
		buffer[at++] = digits[i];
	}
	buffer[at] = '\0';
	return buffer;
}

uint64_t plot_step(uint64_t range, unsigned wanted)
{
	static const unsigned steps[] = { 1, 2, 5 };

	for (uint64_t power = 1; power < UINT64_MAX / 100; power *= 10)
		for (size_t i = 0; i < 3; i++)
			if (range / (steps[i] * power) <= wanted)
				return steps[i] * power;
	return UINT64_MAX;
}

static void frame(FILE *svg, const struct plot_box *box)
{
	fprintf(svg, "<rect class=\"frame\" x=\"%g\" y=\"%g\" width=\"%g\" height=\"%g\"/>\n", box->x, box->y,
		box->width, box->height);
}

void plot_y_axis(FILE *svg, const struct plot_box *box, uint64_t max, const char *label)
{
	uint64_t step = plot_step(max, 6);
	char text[32];

	for (uint64_t n = 0; n <= max; n += step) {
		double y = box->y + box->height * (1 - (double)n / (double)(max ?: 1));

		fprintf(svg,
			"<path class=\"grid\" d=\"M%g %.1fh%g\"/><text class=\"end faint\" x=\"%g\" y=\"%.1f\">%s</text>\n",
			box->x, y, box->width, box->x - 8, y + 4, plot_count(n, text));
		if (n > UINT64_MAX - step)
			break;
	}
	fprintf(svg, "<text class=\"mid\" transform=\"translate(18 %.1f) rotate(-90)\">%s</text>\n",
		box->y + box->height / 2, label);
	frame(svg, box);
}

void plot_x_axis(FILE *svg, const struct plot_box *box, uint64_t max, const char *label)
{
	uint64_t step = plot_step(max, 8);
	char text[32];

	for (uint64_t n = 0; n <= max; n += step) {
		double x = box->x + box->width * (double)n / (double)(max ?: 1);

		fprintf(svg,
			"<path class=\"grid\" d=\"M%.1f %gv%g\"/><text class=\"mid faint\" x=\"%.1f\" y=\"%.1f\">%s</text>\n",
			x, box->y, box->height, x, box->y + box->height + 17, plot_count(n, text));
		if (n > UINT64_MAX - step)
			break;
	}
	fprintf(svg, "<text class=\"mid\" x=\"%.1f\" y=\"%.1f\">%s</text>\n", box->x + box->width / 2,
		box->y + box->height + 36, label);
}

/* What the list is, in a line below the title. */
static void subtitle(FILE *svg, const struct hotlist *list)
{
	const struct hotlist_origin *origin = list->origin;
	double mib = (double)list->count * (double)HOTLIST_PAGE_SIZE / 1048576;
	char text[32];

	fprintf(svg, "%s pages, %.1f MiB at 4 KiB each", plot_count(list->count, text), mib);
	if (!origin) {
		if (hotlist_is_sorted(list))
			fprintf(svg, "; in order of address: nothing is known of when they were touched");
		return;
	}
	if (origin->runs)
		fprintf(svg, "; %s run%s", plot_count(origin->runs, text), origin->runs == 1 ? "" : "s");
	if (origin->clock != HOT_CLOCK_UNKNOWN)
		fprintf(svg, "; ordered by %s time", hot_clock_word(origin->clock) ?: "unknown");
	if (origin->tier[0]) {
		char tier[HOTLIST_TIER_SIZE + 1] = "";

		memcpy(tier, origin->tier, HOTLIST_TIER_SIZE);
		fputs("; seen by ", svg);
		plot_text(svg, tier);
	}
	if (origin->window_ns)
		fprintf(svg, "; window %.2f s", (double)origin->window_ns / 1e9);
	if (origin->events_lost)
		fprintf(svg, "; %s events lost", plot_count(origin->events_lost, text));
}

static int draw(FILE *body, const struct plot *plot, double *ret_height)
{
	double y = 64;
	int r = plot_draw_pages(body, plot, y);

	if (r < 0)
		return r;
	y += r;
	if (plot->truth) {
		r = plot_draw_curves(body, plot, y);
		if (r < 0)
			return r;
		y += r;
	}
	*ret_height = y;
	return 0;
}

static void write_head(FILE *svg, const struct plot *plot, double height)
{
	fprintf(svg,
		"<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %.0f\" width=\"%d\" height=\"%.0f\" role=\"img\" "
		"aria-labelledby=\"t d\">\n<title id=\"t\">Hot list ",
		PLOT_WIDTH, height, PLOT_WIDTH, height);
	plot_text(svg, plot->name);
	fputs("</title>\n<desc id=\"d\">Order of first touches against the address of each page", svg);
	fputs(plot->truth ? ", and the touch curve that the list predicts against the true one</desc>\n" : "</desc>\n",
	      svg);
	fputs(style, svg);
	fprintf(svg, "<rect width=\"%d\" height=\"%.0f\" style=\"fill:var(--paper)\"/>\n", PLOT_WIDTH, height);
	fprintf(svg, "<text class=\"title\" x=\"%d\" y=\"30\">Hot list ", PLOT_RIGHT);
	plot_text(svg, plot->name);
	fprintf(svg, "</text>\n<text class=\"faint\" x=\"%d\" y=\"52\">", PLOT_RIGHT);
	subtitle(svg, plot->list);
	fputs("</text>\n", svg);
}

/* The body first: only then its height is known. */
static int write_all(const struct plot *plot, char **ret, size_t *ret_size)
{
	_cleanup_free_ char *body = NULL;
	char *text = NULL;
	size_t body_size, size;
	double height = 0;
	FILE *file = open_memstream(&body, &body_size);

	if (!file)
		return -ENOMEM;
	int r = draw(file, plot, &height);
	if (fclose(file) != 0 || r < 0)
		return -ENOMEM;
	file = open_memstream(&text, &size);
	if (!file)
		return -ENOMEM;
	write_head(file, plot, height);
	fwrite(body, 1, body_size, file);
	fputs("</svg>\n", file);
	if (fclose(file) != 0) {
		free(text);
		return -ENOMEM;
	}
	*ret = text;
	*ret_size = size;
	return 0;
}

int plot_svg(const struct plot *plot, char **ret, size_t *ret_size, struct error *err)
{
	if (write_all(plot, ret, ret_size) < 0)
		return error_set(err, -ENOMEM, "no_memory", "there is not enough memory to draw %zu pages",
				 plot->list->count);
	return 0;
}
