/* Templates and forks as the API's JSON. The schemas are in docs/openapi.json. */
#pragma once

#include <jansson.h>

#include "serve/server.h"

/* Nothing observes the kernel yet: what forks and the server say about themselves. */
#define OBSERVE_TIER_NONE "none"

/* Each returns a new object, or NULL where memory ran out. */
json_t *encode_template(const struct template_info *info);
json_t *encode_fork(const struct fork_info *info);
