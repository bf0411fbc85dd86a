/* Traces: the first touch of each page by a real guest. docs/traces.md describes the files. Nothing here changes once it is parsed. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/error.h"

#define TRACE_PAGE UINT64_C(4096)

/* A guest of 16 GiB that touches every page. Bounds what a small compressed file can make us hold, at 32 bytes a touch. */
#define TRACE_TOUCHES_MAX (4u << 20)
/* A memory image of 1 TiB; its bitmap has 32 MiB. */
#define TRACE_PAGES_MAX (1ull << 28)
/* Each is a thread. */
#define TRACE_VCPUS_MAX 64

struct trace_touch {
	uint64_t ns;	       /* as recorded, on the recording machine's clock, since the recording began */
	uint64_t instructions; /* that this vCPU had executed by then */
	uint64_t at;	       /* when it happens in a replay without stalls: nanoseconds since the guest's start */
	uint32_t page;	       /* of the memory image */
	uint16_t vcpu;
	char kind; /* 'r', 'w', 'x': read, write, instruction fetch */
};

struct trace {
	struct trace_touch *touches; /* in order of time */
	size_t count;		     /* at least 1 */
	unsigned vcpus;		     /* the highest number of a vCPU, plus 1 */
	uint64_t length_ns;	     /* the last touch's `at` */
};

/*
 * Parses a trace: CSV with a header row, plain or compressed with gzip. Malformed: -EBADMSG with code bad_trace, and ERR names the
 * line. -ENOMEM. Memory is bounded by TRACE_TOUCHES_MAX, whatever DATA claims.
 */
int trace_parse(const void *data, size_t size, struct trace **ret, struct error *err);
/* The same from a file; ERR names it. */
int trace_load(const char *path, struct trace **ret, struct error *err);
/* A copy in which VCPUS (1 to TRACE_VCPUS_MAX) make the touches: BURST of them (at least 1) by one, the next by another. -ENOMEM. */
int trace_spread(const struct trace *trace, unsigned vcpus, unsigned burst, struct trace **ret, struct error *err);
void trace_free(struct trace *trace);
DEFINE_CLEANUP(struct trace, trace_free)
#define _cleanup_trace_ _cleanup_(cleanup_trace_free)

/* Which pages of the memory image had any byte that is not zero just before the trace began. */
struct trace_image {
	uint8_t *bits; /* most significant bit first */
	uint64_t pages;
	uint64_t nonzero; /* bits that are set */
};

/* Parses a bitmap, raw or compressed with gzip. -EBADMSG with code bad_bitmap, or -ENOMEM. */
int trace_image_parse(const void *data, size_t size, struct trace_image **ret, struct error *err);
int trace_image_load(const char *path, struct trace_image **ret, struct error *err);
void trace_image_free(struct trace_image *image);
DEFINE_CLEANUP(struct trace_image, trace_image_free)
#define _cleanup_trace_image_ _cleanup_(cleanup_trace_image_free)

static inline bool trace_image_has_data(const struct trace_image *image, uint64_t page)
{
	return image->bits[page / 8] >> (7 - page % 8) & 1;
}

/* Whether every page of the trace is one of the image. -EINVAL with code bad_bitmap, and ERR names the line. */
int trace_check_image(const struct trace *trace, const struct trace_image *image, struct error *err);

/* The path of the bitmap that belongs to a trace: NAME.csv.gz or NAME.csv -> NAME.nonzero.gz. NULL: no memory. The caller frees. */
char *trace_image_path(const char *trace_path);
