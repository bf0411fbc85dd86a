/* A wrapper that makes an image slow or broken on purpose, so that tests can show what the server does then. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "template/source.h"

#define BAD_RANGES_MAX 16
/* A bit for each page of an image of 1 TiB. */
#define ONLY_BYTES_MAX (32u << 20)
#define ONLY_PAGE      4096u

struct source_inject {
	struct source source;
	struct source *inner;
	uint64_t delay_ns;
	uint64_t bytes_per_second;
	_Atomic uint64_t free_at_ns; /* when the bytes promised so far will have gone through, at that rate */
	struct {
		uint64_t start, end;
	} bad[BAD_RANGES_MAX];
	size_t bad_count;
	uint8_t *only; /* the pages that alone are slow, a bit each, most significant first; NULL: all */
	uint64_t only_pages;
};

/* How many of the pages in the range are to be slow; 1 for all of it where all are. */
static uint64_t count_slow(const struct source_inject *inject, size_t length, uint64_t offset)
{
	uint64_t count = 0;

	if (!inject->only)
		return 1;
	for (uint64_t page = offset / ONLY_PAGE; page * ONLY_PAGE < offset + length && page < inject->only_pages; page++)
		count += inject->only[page / 8] >> (7 - page % 8) & 1;
	return count;
}

static bool is_bad(const struct source_inject *inject, uint64_t offset, size_t length)
{
	for (size_t i = 0; i < inject->bad_count; i++)
		if (length > 0 && offset < inject->bad[i].end && offset + length > inject->bad[i].start)
			return true;
	return false;
}

/* How long LENGTH bytes take at the wanted rate. */
static uint64_t cost_of(const struct source_inject *inject, size_t length)
{
	return inject->bytes_per_second ? length * NSEC_PER_SEC / inject->bytes_per_second : 0;
}

/* How long a read of LENGTH bytes that starts now has to take. */
static uint64_t delay_for(struct source_inject *inject, size_t length)
{
	if (!inject->bytes_per_second)
		return inject->delay_ns;

	uint64_t now = now_ns(), cost = cost_of(inject, length), ends;
	uint64_t free_at = atomic_load(&inject->free_at_ns);
	do
		ends = (free_at > now ? free_at : now) + cost;
	while (!atomic_compare_exchange_weak(&inject->free_at_ns, &free_at, ends));
	return inject->delay_ns + ends - now;
}

static int inject_read_now(struct source *source, void *buffer, size_t length, uint64_t offset)
{
	struct source_inject *inject = (struct source_inject *)source;

	if (count_slow(inject, length, offset) || is_bad(inject, offset, length))
		return -EAGAIN;
	return source_read_now(inject->inner, buffer, length, offset);
}

static int inject_read(struct source *source, void *buffer, size_t length, uint64_t offset)
{
	struct source_inject *inject = (struct source_inject *)source;
	uint64_t delay = count_slow(inject, length, offset) ? delay_for(inject, length) : 0;
	struct timespec ts = { .tv_sec = (time_t)(delay / NSEC_PER_SEC), .tv_nsec = (long)(delay % NSEC_PER_SEC) };

	if (delay)
		clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL);
	if (is_bad(inject, offset, length))
		return -EIO;
	return source_read(inject->inner, buffer, length, offset);
}

static int inject_submit(struct source *source, struct io *io, struct io_read *read)
{
	struct source_inject *inject = (struct source_inject *)source;
	bool slow = count_slow(inject, read->length, read->offset) > 0;

	if (slow)
		read->delay_ns += delay_for(inject, read->length);
	if (is_bad(inject, read->offset, read->length))
		read->inject = -EIO;
	int r = inject->inner->ops->submit(inject->inner, io, read);
	/* It is tried again later: its bytes have not gone through. */
	if (r < 0 && slow)
		atomic_fetch_sub(&inject->free_at_ns, cost_of(inject, read->length));
	return r;
}

static void inject_close(struct source *source)
{
	struct source_inject *inject = (struct source_inject *)source;

	source_close(inject->inner);
	free(inject->only);
	free(inject);
}

static const struct source_ops inject_ops = {
	.name = "inject",
	.read_now = inject_read_now,
	.read = inject_read,
	.submit = inject_submit,
	.close = inject_close,
};

bool source_is_slowed(const struct source *source)
{
	const struct source_inject *inject = (const struct source_inject *)source;

	return source->ops == &inject_ops && !inject->only && (inject->delay_ns || inject->bytes_per_second);
}

uint64_t source_slowed_ns(struct source *source, size_t length)
{
	return delay_for((struct source_inject *)source, length);
}

struct unit {
	const char *name;
	uint64_t factor;
};

static const struct unit time_units[] = { { "us", NSEC_PER_USEC }, { "ms", NSEC_PER_MSEC }, { "s", NSEC_PER_SEC }, { 0 } };
static const struct unit rate_units[] = { { "kB/s", 1000 }, { "MB/s", 1000000 }, { "GB/s", 1000000000 }, { 0 } };

static bool parse_with_unit(const char *text, const struct unit *units, uint64_t *ret)
{
	char *end;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	uint64_t number = strtoull(text, &end, 10);
	if (errno || end == text)
		return false;
	for (; units->name; units++)
		if (strcmp(end, units->name) == 0)
			return checked_mul(number, units->factor, ret);
	return false;
}

/* A number as C writes it, of which nothing but REST may follow. */
static bool parse_number(const char *text, char rest, uint64_t *ret, const char **ret_end)
{
	char *end;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	*ret = strtoull(text, &end, 0);
	*ret_end = end;
	return errno == 0 && *end == rest;
}

static bool parse_bad_range(struct source_inject *inject, const char *text)
{
	uint64_t start, length, stop;
	const char *end;

	if (inject->bad_count == BAD_RANGES_MAX || !parse_number(text, '+', &start, &end) ||
	    !parse_number(end + 1, '\0', &length, &end) || length == 0 || !checked_add(start, length, &stop))
		return false;
	inject->bad[inject->bad_count].start = start;
	inject->bad[inject->bad_count++].end = stop;
	return true;
}

static bool read_only_pages(struct source_inject *inject, const char *path)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	_cleanup_free_ uint8_t *bits = NULL;
	struct stat st;

	if (inject->only || fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size <= 0 ||
	    st.st_size > ONLY_BYTES_MAX)
		return false;
	bits = malloc((size_t)st.st_size);
	if (!bits || read(fd, bits, (size_t)st.st_size) != st.st_size)
		return false;
	inject->only = TAKE_PTR(bits);
	inject->only_pages = (uint64_t)st.st_size * 8;
	return true;
}

static bool parse_part(struct source_inject *inject, const char *part)
{
	if (strncmp(part, "only=", 5) == 0)
		return read_only_pages(inject, part + 5);
	if (strncmp(part, "delay=", 6) == 0)
		return parse_with_unit(part + 6, time_units, &inject->delay_ns);
	if (strncmp(part, "rate=", 5) == 0)
		return parse_with_unit(part + 5, rate_units, &inject->bytes_per_second) && inject->bytes_per_second > 0;
	if (strncmp(part, "error=", 6) == 0)
		return parse_bad_range(inject, part + 6);
	return false;
}

int source_inject_new(struct source *inner, const char *spec, struct source **ret, struct error *err)
{
	struct source_inject *inject = calloc(1, sizeof *inject);
	_cleanup_free_ char *copy = strdup(spec);
	char *save = NULL;

	if (!inject || !copy) {
		free(inject);
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	}
	inject->source = (struct source){ .ops = &inject_ops, .size = inner->size };
	inject->inner = inner;
	for (char *part = strtok_r(copy, ",", &save); part; part = strtok_r(NULL, ",", &save))
		if (!parse_part(inject, part)) {
			int r = error_set(err, -EINVAL, "bad_inject",
					  "'%s' is not understood: say delay=5ms, rate=100MB/s, error=0x1000+0x2000 or "
					  "only=FILE (a bit for each page), with commas between them",
					  part);
			free(inject->only);
			free(inject);
			return r;
		}
	*ret = &inject->source;
	return 0;
}
