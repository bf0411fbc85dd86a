/* A hot list as a picture that a person understands: an SVG of some ten kilobytes, however long the list is. */
#pragma once

#include <stddef.h>

#include "base/error.h"
#include "hotlist/hotlist.h"

enum plot_colour {
	PLOT_COLOUR_AUTO, /* by vCPU where the list knows two or more, else by confidence where it is of several runs */
	PLOT_COLOUR_VCPU,
	PLOT_COLOUR_CONFIDENCE,
};

struct plot {
	const struct hotlist *list;
	const char *name; /* for the title; any bytes */
	enum plot_colour colour;
	/* May be NULL. Where it is there, a second diagram draws the touch curves (order.h), the list as the prediction. */
	const struct hotlist *truth;
	const char *truth_name;
};

/* RET is text of RET_SIZE bytes, UTF-8, that the caller frees. -ENOMEM with ERR. */
int plot_svg(const struct plot *plot, char **ret, size_t *ret_size, struct error *err);
