/* What the files of libfaultline know of a client besides client.c. */
#pragma once

#include "client/handover.h"
#include "faultline/client.h"

/* Its mappings in their order. */
size_t client_region_count(const struct faultline_client *client);
struct handover_region client_region(const struct faultline_client *client, size_t index);

/* Maps the image over all mappings; 0 or a result. */
int client_map_image(const struct faultline_client *client, int fd, struct faultline_error *error);
