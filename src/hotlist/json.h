/* Parts of a list as the JSON that they are in a file. */
#pragma once

#include <stdio.h>

#include "hotlist/hotlist.h"

/* One object each, without a line end. */
void json_origin_write(FILE *f, const struct hotlist_origin *origin);
/* Entry I of LIST: its place, and what is known of it. */
void json_page_write(FILE *f, const struct hotlist *list, size_t i);
