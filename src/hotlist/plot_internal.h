/* What plot*.c share: a page of SVG, and axes on it. Lengths are in units of the picture, y downward. */
#pragma once

#include <stdint.h>
#include <stdio.h>

#include "hotlist/plot.h"

#define PLOT_WIDTH 960
#define PLOT_LEFT  84 /* room for the numbers of the y axis */
#define PLOT_RIGHT 24

/* A diagram's inside. */
struct plot_box {
	double x, y, width, height;
};

/* TEXT with what XML or a terminal would take for its own replaced. */
void plot_text(FILE *svg, const char *text);
/* "12,345". Returns BUFFER. */
const char *plot_count(uint64_t n, char buffer[static 32]);
/* 1, 2 or 5 times a power of ten, so that about WANTED of them make up RANGE. */
uint64_t plot_step(uint64_t range, unsigned wanted);
/* Frame, grid and numbers 0 to MAX from the bottom up, and what they count. */
void plot_y_axis(FILE *svg, const struct plot_box *box, uint64_t max, const char *label);
void plot_x_axis(FILE *svg, const struct plot_box *box, uint64_t max, const char *label);

/* The diagrams. They return the height that they took, or -ENOMEM. */
int plot_draw_pages(FILE *svg, const struct plot *plot, double top);
int plot_draw_curves(FILE *svg, const struct plot *plot, double top);
