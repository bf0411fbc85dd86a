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

/* Touches for the pages that LIST has and has room for. 0 or -ENOMEM. */
int hotlist_reserve_touches(struct hotlist *list);

/* The pages alone, without touches and origin. NULL: out of memory. */
struct hotlist *hotlist_copy_pages(const struct hotlist *list);

/* The numbers of ORIGIN are such as a file may hold; -EINVAL with the name of the first that is not. */
int hotlist_origin_check(const struct hotlist_origin *origin, const char **ret_field);

/* Decoders append to LIST, which their caller drops on failure. */
int hpl1_decode(const void *data, size_t size, struct hotlist *list, struct error *err);
int hpl2_decode(const void *data, size_t size, struct hotlist *list, struct error *err);
int json_list_decode(const char *text, size_t size, struct hotlist *list, struct error *err);
int csv_list_decode(const char *text, size_t size, struct hotlist *list, struct error *err);

/* Whether DATA begins as an HPL2 file does. */
bool hpl2_detect(const void *data, size_t size);

/* Whether the first line of TEXT is a header with one of the columns that a list must have. */
bool csv_list_detect(const char *text, size_t size);

/* LIST is sorted and without duplicates for HPL1. 0 or -ENOMEM. */
int hpl1_encode(const struct hotlist *list, void **ret_data, size_t *ret_size);
/* LIST has no duplicates. -EINVAL and -E2BIG with ERR, -ENOMEM. */
int hpl2_encode(const struct hotlist *list, void **ret_data, size_t *ret_size, struct error *err);
int json_list_encode(const struct hotlist *list, void **ret_data, size_t *ret_size);
int csv_list_encode(const struct hotlist *list, void **ret_data, size_t *ret_size);
