/*
 * Files that the server keeps beside a template's image, IMAGE.NAME.SUFFIX: made from it, bound to it, and removed with the template. What is in them
 * decides what guests read, so only the server's own are believed.
 */
#pragma once

#include <stdbool.h>

#include "base/error.h"
#include "template/template.h"

/* The caller's to free. NULL: out of memory. */
char *beside_path(const struct template *template, const char *suffix);

/* Opens PATH for reading. Negative errno; -EPERM: it is not the server's own, or others may write to it. */
int beside_open(const char *path);

/* TMP, for a new file that is to be renamed to its place: nobody's but the server's, and no link of somebody else's is followed. */
int beside_create(const char *tmp);
