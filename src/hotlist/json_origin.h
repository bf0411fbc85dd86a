/* Reads the origin of a list, a JSON object. Internal to this folder; json.h writes it. */
#pragma once

#include "hotlist/hotlist.h"

struct json_reader;

/* LIST has none yet. 0, -EBADMSG with the reader's error, or -ENOMEM. */
int json_origin_read(struct json_reader *r, struct hotlist *list);
