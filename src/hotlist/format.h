/* What the format files (hpl1.c, json.c, csv.c) give to hotlist.c. Internal to this folder. */
#pragma once

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "hotlist/hotlist.h"

#define BAD_LIST(err, ...) error_set(err, -EBADMSG, "bad_hot_list", __VA_ARGS__)

/* Room for COUNT pages in all, so that adding up to there cannot fail. 0 or -ENOMEM. */
int hotlist_reserve(struct hotlist *list, size_t count);

/* Decoders append to LIST, which their caller drops on failure. */
int hpl1_decode(const void *data, size_t size, struct hotlist *list, struct error *err);
int json_list_decode(const char *text, size_t size, struct hotlist *list, struct error *err);
int csv_list_decode(const char *text, size_t size, struct hotlist *list, struct error *err);

/* Whether the first line of TEXT is a header with one of the columns that a list must have. */
bool csv_list_detect(const char *text, size_t size);

/* LIST is sorted and without duplicates for HPL1. 0 or -ENOMEM. */
int hpl1_encode(const struct hotlist *list, void **ret_data, size_t *ret_size);
int json_list_encode(const struct hotlist *list, void **ret_data, size_t *ret_size);
int csv_list_encode(const struct hotlist *list, void **ret_data, size_t *ret_size);
