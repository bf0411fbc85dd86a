/*
 * What the fuzz targets share. A target is one file, fuzz_NAME.c, that defines LLVMFuzzerTestOneInput: it takes any bytes, and dies where
 * the code under test breaks a promise. Built with libFuzzer it searches for such bytes; otherwise it runs over those in corpus/NAME.
 */
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A promise. What follows says which one was broken, and with what. */
#define PROMISE(condition, ...)                                                                         \
	do {                                                                                            \
		if (!(condition)) {                                                                     \
			fprintf(stderr, "%s:%d: broken promise: %s: ", __FILE__, __LINE__, #condition); \
			fprintf(stderr, __VA_ARGS__);                                                   \
			fputc('\n', stderr);                                                            \
			abort();                                                                        \
		}                                                                                       \
	} while (0)

/* The bytes in a block of exactly their size, so that the sanitizer sees a read past their end. The caller frees it. */
static inline void *fuzz_exact_copy(const void *data, size_t size)
{
	void *copy = malloc(size ?: 1);

	PROMISE(copy, "no memory for %zu bytes of input", size);
	if (size)
		memcpy(copy, data, size);
	return copy;
}

/* Decisions that a target takes from its input, byte by byte; zeros once it has ended. */
struct fuzz_input {
	const uint8_t *at, *end;
};

static inline uint8_t fuzz_u8(struct fuzz_input *input)
{
	return input->at < input->end ? *input->at++ : 0;
}

static inline uint16_t fuzz_u16(struct fuzz_input *input)
{
	uint16_t low = fuzz_u8(input);

	return (uint16_t)(low | fuzz_u8(input) << 8);
}

/* A number below N (at most 65536). */
static inline unsigned fuzz_below(struct fuzz_input *input, unsigned n)
{
	return n <= 256 ? fuzz_u8(input) % n : fuzz_u16(input) % n;
}
