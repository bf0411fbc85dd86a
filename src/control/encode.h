/* Templates and forks as the API's JSON. The schemas are in docs/openapi.json. */
#pragma once

#include <jansson.h>

#include "serve/server.h"

/* Each returns a new object, or NULL where memory ran out. */
json_t *encode_template(const struct template_info *info);
json_t *encode_fork(const struct fork_info *info);
