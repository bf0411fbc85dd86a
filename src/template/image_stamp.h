/* What a file that the server keeps beside an image was made from. An image that differs in any of this has another. */
#pragma once

#include <stdint.h>

/* Also as it stands in such files; integers little-endian. */
struct image_stamp {
	uint64_t size; /* bytes */
	int64_t modified_s, modified_ns;
	uint8_t identity[32];
};
