/* What tells one memory image from another, quickly: a digest of its size and of pages spread over it. */
#pragma once

#include <stdint.h>

#include "hotlist/hotlist.h"

/*
 * The identity of the image of SIZE bytes behind FD, a regular file. It is the same for every copy of the image, and another one, as good as
 * surely, for an image in which one page of a hundred is different. It is no proof that an image is unharmed: of 1,024 pages at most it
 * looks at, 4 MiB, which a cold image has ready in milliseconds on a solid-state disk. FD's place and its readahead are left alone. Any thread.
 *
 * Negative errno: reading failed; -ENODATA: the file is shorter than SIZE.
 */
int image_identity(int fd, uint64_t size, uint8_t ret[static IMAGE_IDENTITY_SIZE]);
