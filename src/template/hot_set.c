#include "template/hot_set.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/read.h"
#include "template/hot_set_file.h"

#define NOWHERE UINT32_MAX /* the page is zeros */

/* So many pages are brought into memory before they are wanted; once half of them have been taken, the next are asked for. */
#define AHEAD 256u

struct hot_set {
	_Atomic unsigned refs;
	int fd, direct_fd;
	struct hot_memory *memory; /* NULL: it is read by way of the page cache */
	char *path;
	struct source *like; /* NULL: not slowed down */
	struct hot_set_header header;
	uint64_t bytes;
	uint32_t *pages;  /* of the image, ascending */
	uint32_t *places; /* where each is */
	uint64_t *digests;
	_Atomic uint64_t *checked; /* a bit a chunk */
	_Atomic uint64_t advised;  /* as far as the file was asked for */
	_Atomic bool broken;
};

static uint64_t chunk_count(const struct hot_set_header *header)
{
	return (header->stored + HOT_SET_CHUNK - 1) / HOT_SET_CHUNK;
}

uint64_t hot_set_digest(const uint64_t *pages, size_t count)
{
	return XXH3_64bits(pages, count * sizeof *pages);
}

/* ---- opening ---- */

static int damaged(const char *path, const char *how, struct error *err)
{
	return error_set(err, -EBADMSG, "hot_set_damaged", "the packed hot set '%s' %s", path, how);
}

/* Nothing is believed, nor memory taken for it, before the file is known to be as long as it says. */
static int read_header(struct hot_set *set, const struct image_stamp *image, struct error *err)
{
	struct hot_set_header *h = &set->header;
	struct stat st;

	if (fstat(set->fd, &st) < 0)
		return error_set(err, -errno, "io_error", "cannot examine '%s': %s", set->path, strerror(errno));
	/* Its bytes go into guests: whoever could write them could write to those. */
	if (st.st_uid != geteuid() || (st.st_mode & (S_IWGRP | S_IWOTH)))
		return damaged(set->path, "is not the server's own, or others may write to it: it is not used", err);
	if (!S_ISREG(st.st_mode) || pread_fully(set->fd, h, sizeof *h, 0) < 0 ||
	    memcmp(h->magic, HOT_SET_MAGIC, sizeof h->magic) != 0)
		return damaged(set->path, "is no packed hot set", err);
	if (h->version != HOT_SET_VERSION || h->page_size != HOT_SET_PAGE)
		return damaged(set->path, "has a version or page size that is not known here", err);
	if (h->digest != hot_set_header_digest(h))
		return damaged(set->path, "has a header that does not add up", err);
	if (memcmp(&h->image, image, sizeof *image) != 0)
		return error_set(err, -ESTALE, "hot_set_stale", "the packed hot set '%s' was made from another image",
				 set->path);
	if (h->count > HOT_SET_PAGES_MAX || h->stored > h->count ||
	    hot_set_data_offset(h) + h->stored * HOT_SET_PAGE != (uint64_t)st.st_size)
		return damaged(set->path, "does not have the length that it says", err);
	set->bytes = (uint64_t)st.st_size;
	return 0;
}

struct entry {
	uint32_t page, place;
};

static int by_page(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;

	return (x->page > y->page) - (x->page < y->page);
}

static int sort_table(struct hot_set *set, const uint64_t *table, struct error *err)
{
	size_t count = set->header.count;
	_cleanup_free_ struct entry *entries = calloc(count ?: 1, sizeof *entries);
	uint32_t stored = 0;

	if (!entries)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	for (size_t i = 0; i < count; i++) {
		bool zero = table[i] & HOT_SET_ZERO;

		if ((table[i] & ~HOT_SET_ZERO) >= HOT_SET_PAGES_MAX)
			return damaged(set->path, "names a page that no image has", err);
		entries[i].page = (uint32_t)table[i];
		entries[i].place = zero ? NOWHERE : stored++;
	}
	if (stored != set->header.stored)
		return damaged(set->path, "has a table that does not add up", err);
	qsort(entries, count, sizeof *entries, by_page);
	for (size_t i = 0; i < count; i++) {
		if (i > 0 && entries[i].page == entries[i - 1].page)
			return damaged(set->path, "names a page twice", err);
		set->pages[i] = entries[i].page;
		set->places[i] = entries[i].place;
	}
	return 0;
}

static int read_table(struct hot_set *set, struct error *err)
{
	const struct hot_set_header *h = &set->header;
	size_t count = h->count, chunks = chunk_count(h);
	_cleanup_free_ uint64_t *table = calloc(count + chunks + 1, sizeof *table);

	set->pages = calloc(count ?: 1, sizeof *set->pages);
	set->places = calloc(count ?: 1, sizeof *set->places);
	set->digests = calloc(chunks ?: 1, sizeof *set->digests);
	set->checked = calloc(chunks / 64 + 1, sizeof *set->checked);
	if (!table || !set->pages || !set->places || !set->digests || !set->checked)
		return error_set(err, -ENOMEM, "io_error", "out of memory for a packed hot set of %zu pages", count);
	if (pread_fully(set->fd, table, (count + chunks) * sizeof *table, sizeof *h) < 0 ||
	    XXH3_64bits(table, (count + chunks) * sizeof *table) != h->table_digest)
		return damaged(set->path, "has a table that does not add up", err);
	memcpy(set->digests, table + count, chunks * sizeof *table);
	return sort_table(set, table, err);
}

int hot_set_open(const char *path, const struct image_stamp *image, struct hot_loader *loader, struct source *like,
		 struct hot_set **ret, struct error *err)
{
	_cleanup_hot_set_ struct hot_set *set = calloc(1, sizeof *set);
	if (!set)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	atomic_init(&set->refs, 1);
	set->like = like;
	set->direct_fd = -1;
	set->path = strdup(path);
	set->fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_NOFOLLOW);
	if (set->fd < 0)
		return error_set(err, -errno, errno == ENOENT ? "hot_set_missing" : "io_error",
				 "cannot open the packed hot set '%s': %s", path, strerror(errno));
	int r = set->path ? read_header(set, image, err) : error_set(err, -ENOMEM, "io_error", "out of memory");
	if (r == 0)
		r = read_table(set, err);
	if (r < 0)
		return r;
	/* What is wanted of it is asked for, in its own order. */
	posix_fadvise(set->fd, 0, 0, POSIX_FADV_RANDOM);
	if (loader) {
		char link[64];

		snprintf(link, sizeof link, "/proc/self/fd/%d", set->fd);
		set->direct_fd = open(link, O_RDONLY | O_CLOEXEC | O_DIRECT);
		set->memory = hot_memory_new(loader, set->fd, set->direct_fd, hot_set_data_offset(&set->header),
					     set->header.stored);
	}
	*ret = TAKE_PTR(set);
	return 0;
}

struct hot_set *hot_set_ref(struct hot_set *set)
{
	atomic_fetch_add_explicit(&set->refs, 1, memory_order_relaxed);
	return set;
}

void hot_set_unref(struct hot_set *set)
{
	if (!set || atomic_fetch_sub_explicit(&set->refs, 1, memory_order_acq_rel) != 1)
		return;
	hot_memory_free(set->memory);
	if (set->direct_fd >= 0)
		close(set->direct_fd);
	if (set->fd >= 0)
		close(set->fd);
	free(set->path);
	free(set->pages);
	free(set->places);
	free(set->digests);
	free(set->checked);
	free(set);
}

bool hot_set_is_broken(const struct hot_set *set)
{
	return atomic_load_explicit(&set->broken, memory_order_relaxed);
}

uint64_t hot_set_list(const struct hot_set *set)
{
	return set->header.list;
}

uint64_t hot_set_bytes(const struct hot_set *set)
{
	return set->bytes;
}

uint64_t hot_set_pages(const struct hot_set *set)
{
	return set->header.count;
}

/* ---- looking up ---- */

/* The place in the table of the first page that is not below PAGE. */
static size_t lower_bound(const struct hot_set *set, uint64_t page)
{
	size_t from = 0, to = set->header.count;

	while (from < to) {
		size_t middle = from + (to - from) / 2;

		if (set->pages[middle] < page)
			from = middle + 1;
		else
			to = middle;
	}
	return from;
}

bool hot_set_find(const struct hot_set *set, uint64_t page, uint64_t most, struct hot_run *ret)
{
	size_t at = lower_bound(set, page), count = set->header.count;

	if (most == 0 || at == count || set->pages[at] != page ||
	    atomic_load_explicit(&set->broken, memory_order_relaxed))
		return false;
	uint32_t first = set->places[at];
	uint64_t n = 1;

	while (n < most && at + n < count && set->pages[at + n] == page + n &&
	       set->places[at + n] == (first == NOWHERE ? NOWHERE : first + n) &&
	       (first == NOWHERE || first / HOT_SET_CHUNK == (first + n) / HOT_SET_CHUNK))
		n++;
	*ret = (struct hot_run){ .index = first, .count = n, .zero = first == NOWHERE };
	return true;
}

/* ---- reading ---- */

int hot_reader_init(struct hot_reader *reader, struct hot_set *set)
{
	*reader = (struct hot_reader){ .set = set };
	reader->held = set && set->memory && hot_memory_enter(set->memory) == 0;
	if (!set || !set->like || !source_is_slowed(set->like))
		return 0;
	reader->charged = calloc(chunk_count(&set->header) + 1, sizeof *reader->charged);
	return reader->charged ? 0 : -ENOMEM;
}

void hot_reader_clear(struct hot_reader *reader)
{
	if (reader->held)
		hot_memory_leave(reader->set->memory);
	hot_set_unref(reader->set);
	free(reader->charged);
	*reader = (struct hot_reader){ 0 };
}

static bool get_bit(const _Atomic uint64_t *bits, uint64_t at)
{
	return atomic_load_explicit(&bits[at / 64], memory_order_acquire) >> at % 64 & 1;
}

static void set_bit(_Atomic uint64_t *bits, uint64_t at)
{
	atomic_fetch_or_explicit(&bits[at / 64], 1ull << at % 64, memory_order_release);
}

/* -EAGAIN: not in memory. */
static int read_now(const struct hot_set *set, void *buffer, size_t length, uint64_t offset)
{
	struct iovec iov = { .iov_base = buffer, .iov_len = length };
	ssize_t n = preadv2(set->fd, &iov, 1, (off_t)offset, RWF_NOWAIT);

	if (n == (ssize_t)length)
		return 0;
	if (n == 0)
		return -ENODATA;
	return n > 0 || errno == EOPNOTSUPP || errno == EINTR || errno == EAGAIN ? -EAGAIN : -errno;
}

static int read_bytes(const struct hot_set *set, bool wait, void *buffer, uint64_t index, uint64_t count)
{
	uint64_t offset = hot_set_data_offset(&set->header) + index * HOT_SET_PAGE;
	size_t length = count * HOT_SET_PAGE;
	int r = read_now(set, buffer, length, offset);

	return r == -EAGAIN && wait ? pread_fully(set->fd, buffer, length, offset) : r;
}

/* A slowed source's chunk costs its time once for each fork: who asks first starts the reading, and all wait for its end. */
static int charge(struct hot_reader *reader, uint64_t chunk, size_t length, bool wait)
{
	uint64_t now = now_ns(), ends;

	if (!reader->charged)
		return 0;
	ends = atomic_load_explicit(&reader->charged[chunk], memory_order_relaxed);
	if (!wait || (ends && now >= ends))
		return ends && now >= ends ? 0 : -EAGAIN;
	if (ends == 0) {
		uint64_t mine = now + source_slowed_ns(reader->set->like, length);

		if (atomic_compare_exchange_strong(&reader->charged[chunk], &ends, mine))
			ends = mine;
	}
	struct timespec ts = { .tv_sec = (time_t)(ends / NSEC_PER_SEC), .tv_nsec = (long)(ends % NSEC_PER_SEC) };
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
	return 0;
}

static int give_up(struct hot_set *set, const char *why)
{
	if (!atomic_exchange(&set->broken, true))
		log_error(NULL, "the packed hot set '%s' %s: it is not used any more, and its pages come from the image",
			  set->path, why);
	return -EBADMSG;
}

/* A chunk's bytes, which are checked unless one of MARKS says that they have been. */
static bool is_right(const struct hot_set *set, _Atomic uint64_t *marks, uint64_t chunk, const void *bytes,
		     uint64_t pages)
{
	if (get_bit(marks, chunk))
		return true;
	if (XXH3_64bits(bytes, pages * HOT_SET_PAGE) != set->digests[chunk])
		return false;
	set_bit(marks, chunk);
	return true;
}

/* From memory that is ours, where nobody changes what has been checked; what has been let go and read again is checked again. */
static int find_held(struct hot_set *set, const struct hot_run *run, bool wait, uint64_t chunk, uint64_t pages,
		     const void **ret)
{
	const char *bytes;
	int r = hot_memory_find(set->memory, run->index, wait, &bytes);

	if (r < 0)
		return r;
	*ret = bytes;
	bytes -= (run->index - chunk * HOT_SET_CHUNK) * HOT_SET_PAGE;
	return is_right(set, hot_memory_marks(set->memory), chunk, bytes, pages) ? 0 : -EILSEQ;
}

int hot_reader_read(struct hot_reader *reader, const struct hot_run *run, bool wait, void *buffer, const void **ret)
{
	struct hot_set *set = reader->set;
	uint64_t chunk = run->index / HOT_SET_CHUNK, first = chunk * HOT_SET_CHUNK;
	uint64_t pages = set->header.stored - first < HOT_SET_CHUNK ? set->header.stored - first : HOT_SET_CHUNK;
	int r = charge(reader, chunk, pages * HOT_SET_PAGE, wait);

	if (r < 0)
		return r;
	if (reader->held) {
		r = find_held(set, run, wait, chunk, pages, ret);
	} else if (get_bit(set->checked, chunk)) {
		*ret = buffer;
		r = read_bytes(set, wait, buffer, run->index, run->count);
	} else {
		*ret = (char *)buffer + (run->index - first) * HOT_SET_PAGE;
		r = read_bytes(set, wait, buffer, first, pages);
		if (r == 0 && !is_right(set, set->checked, chunk, buffer, pages))
			r = -EILSEQ;
	}
	if (r == 0 || r == -EAGAIN)
		return r;
	return give_up(set, r == -EILSEQ    ? "has pages that are not what was written"
			    : r == -ENODATA ? "has become shorter"
					    : "cannot be read");
}

void hot_reader_advise(struct hot_reader *reader, uint64_t index)
{
	struct hot_set *set = reader->set;
	uint64_t advised = atomic_load_explicit(&set->advised, memory_order_relaxed);

	if (reader->held) {
		hot_memory_want(set->memory, index);
		return;
	}
	if (reader->charged || (index + AHEAD / 2 < advised && index + 2 * AHEAD > advised))
		return;
	/* Another thread's news may be lost, or its advice be given twice: neither matters. */
	uint64_t from = index < advised && advised < index + AHEAD ? advised : index;
	uint64_t to = index + AHEAD;

	if (to > set->header.stored)
		to = set->header.stored;
	atomic_store_explicit(&set->advised, index + AHEAD, memory_order_relaxed);
	if (from < to)
		posix_fadvise(set->fd, (off_t)(hot_set_data_offset(&set->header) + from * HOT_SET_PAGE),
			      (off_t)((to - from) * HOT_SET_PAGE), POSIX_FADV_WILLNEED);
}
