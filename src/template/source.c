/* What all sources share: the zeros after the end of an image, and the null source. */
#include "template/source.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "template/zero_map.h"

/* How much of [OFFSET, OFFSET + LENGTH) the image has; the rest of BUFFER is zeroed. */
static size_t clip(const struct source *source, void *buffer, size_t length, uint64_t offset)
{
	size_t inside = offset >= source->size		 ? 0
			: source->size - offset < length ? (size_t)(source->size - offset)
							 : length;

	memset((char *)buffer + inside, 0, length - inside);
	return inside;
}

bool source_is_zero(const struct source *source, size_t length, uint64_t offset)
{
	return source->zeros && !atomic_load_explicit(&source->changed, memory_order_relaxed) &&
	       zero_map_covers(source->zeros, length, offset);
}

uint64_t source_count_alike(const struct source *source, uint64_t count, size_t page_size, uint64_t offset)
{
	bool zero = source_is_zero(source, page_size, offset);
	uint64_t n = 1;

	if (!source->zeros)
		return count;
	while (n < count && source_is_zero(source, page_size, offset + n * page_size) == zero)
		n++;
	return n;
}

const void *source_peek(struct source *source, size_t length, uint64_t offset, uint64_t now_ns)
{
	if (!source->ops->peek || atomic_load_explicit(&source->changed, memory_order_relaxed) ||
	    offset > source->size || length > source->size - offset)
		return NULL;
	return source->ops->peek(source, length, offset, now_ns);
}

bool source_intact(struct source *source, size_t length, uint64_t offset)
{
	return !source->ops->intact || source->ops->intact(source, length, offset);
}

void source_refresh(struct source *source)
{
	if (source->ops->refresh)
		source->ops->refresh(source);
}

int source_read_now(struct source *source, void *buffer, size_t length, uint64_t offset)
{
	size_t inside = clip(source, buffer, length, offset);

	if (inside && source_is_zero(source, inside, offset)) {
		memset(buffer, 0, inside);
		return 0;
	}
	return inside ? source->ops->read_now(source, buffer, inside, offset) : 0;
}

int source_read(struct source *source, void *buffer, size_t length, uint64_t offset)
{
	size_t inside = clip(source, buffer, length, offset);

	return inside ? source->ops->read(source, buffer, inside, offset) : 0;
}

bool source_can_advise(const struct source *source)
{
	return source->ops->advise != NULL;
}

void source_advise(struct source *source, size_t length, uint64_t offset)
{
	if (offset >= source->size || !source->ops->advise)
		return;
	source->ops->advise(source, source->size - offset < length ? (size_t)(source->size - offset) : length, offset);
}

int source_submit(struct source *source, struct io *io, struct io_read *read)
{
	read->length = clip(source, read->buffer, read->length, read->offset);
	read->delay_ns = 0;
	read->inject = 0;
	return source->ops->submit(source, io, read);
}

void source_close(struct source *source)
{
	if (!source)
		return;
	zero_map_free(source->zeros);
	source->ops->close(source);
}

static int null_read(struct source *source, void *buffer, size_t length, uint64_t offset)
{
	(void)source;
	(void)offset;
	memset(buffer, 0, length);
	return 0;
}

static int null_submit(struct source *source, struct io *io, struct io_read *read)
{
	(void)source;
	(void)io;
	(void)read;
	return -EINVAL; /* never: read_now always has it */
}

static void null_close(struct source *source)
{
	free(source);
}

static const struct source_ops null_ops = {
	.name = "null",
	.read_now = null_read,
	.read = null_read,
	.submit = null_submit,
	.close = null_close,
};

int source_null_new(uint64_t size, struct source **ret, struct error *err)
{
	struct source *source = calloc(1, sizeof *source);
	if (!source)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	*source = (struct source){ .ops = &null_ops, .size = size };
	*ret = source;
	return 0;
}
