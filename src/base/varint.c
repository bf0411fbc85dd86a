#include "base/varint.h"

#include <errno.h>

int uvarint_decode(const uint8_t *data, size_t size, uint64_t *ret)
{
	uint64_t n = 0;

	for (int i = 0; i < UVARINT_MAX_BYTES; i++) {
		if ((size_t)i == size)
			return -ENODATA;
		/* Nine bytes hold 63 bits: of the tenth only the lowest bit is left, and it must be the last byte. */
		if (i == UVARINT_MAX_BYTES - 1 && data[i] > 1)
			return -EOVERFLOW;
		n |= (uint64_t)(data[i] & 0x7f) << (7 * i);
		if (!(data[i] & 0x80)) {
			*ret = n;
			return i + 1;
		}
	}
	return -EOVERFLOW;
}

size_t uvarint_encode(uint64_t n, uint8_t *out)
{
	size_t length = 0;

	while (n >= 0x80) {
		out[length++] = (uint8_t)(n | 0x80);
		n >>= 7;
	}
	out[length++] = (uint8_t)n;
	return length;
}
