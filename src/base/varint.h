/* Unsigned LEB128: seven bits a byte, the lowest first, the top bit set on every byte but the last. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define UVARINT_MAX_BYTES 10 /* 64 bits, seven a byte */

/*
 * Reads one number from the SIZE bytes at DATA and returns how many of them it took. -ENODATA: the bytes end within it;
 * -EOVERFLOW: it does not fit 64 bits, or is longer than UVARINT_MAX_BYTES. Padding with zero bits ("80 00" for 0) is
 * accepted up to that length, as LEB128 readers everywhere do.
 */
int uvarint_decode(const uint8_t *data, size_t size, uint64_t *ret);

/* Writes N in its shortest form to OUT, which has room for UVARINT_MAX_BYTES, and returns the number of bytes. */
size_t uvarint_encode(uint64_t n, uint8_t *out);
