/* What the kernel saw of a fork, as text. */
#pragma once

#include <jansson.h>

void fork_print_observed(const json_t *fork);
