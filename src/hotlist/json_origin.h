/* The origin of a list as a JSON object. Internal to this folder, but for writing: `hotlist show --json` has the same object. */
#pragma once

#include <stdio.h>

#include "hotlist/hotlist.h"

struct json_reader;

/* LIST has none yet. 0, -EBADMSG with the reader's error, or -ENOMEM. */
int json_origin_read(struct json_reader *r, struct hotlist *list);

void json_origin_write(FILE *f, const struct hotlist_origin *origin);
