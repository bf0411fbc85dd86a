/* Text that goes into JSON must be UTF-8; a path, or a sentence cut to fit, need not be. */
#pragma once

#include <jansson.h>
#include <stdbool.h>

bool utf8_valid(const char *text);

/* A JSON string of TEXT, '?' in the place of each byte that isn't UTF-8; JSON's null for NULL. NULL: no memory. */
json_t *utf8_json(const char *text);
