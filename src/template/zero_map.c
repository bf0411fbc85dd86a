#include "template/zero_map.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/read.h"
#include "base/write.h"
#include "template/beside.h"

#define MAGIC	"FLZEROES"
#define VERSION 1u

/* Read at a time. */
#define PIECE (1u << 20)

struct header {
	char magic[8];
	uint32_t version, page_size;
	uint64_t pages; /* of the image */
	struct image_stamp image;
	uint64_t bits_digest; /* XXH3 of the words */
	uint64_t digest;      /* XXH3 of this header, with zero here */
	uint8_t reserved[4096 - 8 - 2 * 4 - 8 - sizeof(struct image_stamp) - 2 * 8];
};
_Static_assert(sizeof(struct header) == 4096, "the header is a page");

struct zero_map {
	uint64_t size, pages;
	_Atomic uint64_t known;
	_Atomic uint64_t words[]; /* bits are only ever set */
};

static uint64_t word_count(const struct zero_map *map)
{
	return (map->pages + 63) / 64;
}

struct zero_map *zero_map_new(uint64_t size)
{
	uint64_t pages = size / ZERO_MAP_PAGE + !!(size % ZERO_MAP_PAGE);
	struct zero_map *map = calloc(1, sizeof *map + (pages + 63) / 64 * sizeof map->words[0]);

	if (!map)
		return NULL;
	map->size = size;
	map->pages = pages;
	return map;
}

void zero_map_free(struct zero_map *map)
{
	free(map);
}

uint64_t zero_map_pages(const struct zero_map *map)
{
	return atomic_load_explicit(&map->known, memory_order_relaxed);
}

static bool is_zero(const struct zero_map *map, uint64_t page)
{
	return atomic_load_explicit(&map->words[page / 64], memory_order_relaxed) & 1ull << page % 64;
}

bool zero_map_covers(const struct zero_map *map, uint64_t length, uint64_t offset)
{
	if (offset >= map->size || length == 0)
		return false;
	if (length > map->size - offset)
		length = map->size - offset;
	for (uint64_t page = offset / ZERO_MAP_PAGE; page <= (offset + length - 1) / ZERO_MAP_PAGE; page++)
		if (!is_zero(map, page))
			return false;
	return true;
}

/* ---- looking ---- */

static void set(struct zero_map *map, uint64_t page)
{
	uint64_t bit = 1ull << page % 64;

	if (!(atomic_fetch_or_explicit(&map->words[page / 64], bit, memory_order_relaxed) & bit))
		atomic_fetch_add_explicit(&map->known, 1, memory_order_relaxed);
}

/* Only whole pages of [FROM, TO), or one that the image ends in. */
static void set_hole(struct zero_map *map, uint64_t from, uint64_t to)
{
	uint64_t end = to >= map->size ? map->pages : to / ZERO_MAP_PAGE;

	for (uint64_t page = from / ZERO_MAP_PAGE + !!(from % ZERO_MAP_PAGE); page < end; page++)
		set(map, page);
}

/* Where there is data from AT on, whole pages of it; what lies between is a hole. False: no more. */
static bool next_data(int fd, const struct zero_map *map, uint64_t at, uint64_t *ret_from, uint64_t *ret_to)
{
	off_t from = lseek(fd, (off_t)at, SEEK_DATA), to;

	if (from < 0 && errno == ENXIO)
		return false;
	/* A filesystem that can't tell has nothing but data. */
	if (from < 0 || (to = lseek(fd, from, SEEK_HOLE)) < 0) {
		from = (off_t)at;
		to = (off_t)map->size;
	}
	*ret_from = (uint64_t)from - (uint64_t)from % ZERO_MAP_PAGE;
	*ret_to = (uint64_t)to < map->size ? (uint64_t)to : map->size;
	return *ret_from < map->size;
}

static void find_holes(struct zero_map *map, int fd)
{
	uint64_t at = 0, from, to;

	while (at < map->size && next_data(fd, map, at, &from, &to)) {
		set_hole(map, at, from);
		at = to > at ? to : map->size;
	}
	set_hole(map, at, map->size);
}

struct reader {
	int fd, direct_fd; /* the latter -1: there is none */
	char *mapped;	   /* the whole image; MAP_FAILED: it can't be asked what is in memory */
	char *buffer;
};

static bool is_in_memory(const struct reader *reader, size_t length, uint64_t offset)
{
	unsigned char pages[PIECE / ZERO_MAP_PAGE];

	if (reader->mapped == MAP_FAILED || mincore(reader->mapped + offset, length, pages) < 0)
		return false;
	for (size_t i = 0; i * ZERO_MAP_PAGE < length; i++)
		if (!(pages[i] & 1))
			return false;
	return true;
}

/* From memory where it is there; else past the page cache, which is not ours to fill: also a read that doesn't wait would begin to. */
static ssize_t read_piece(struct reader *reader, size_t length, uint64_t offset)
{
	ssize_t n;

	if (is_in_memory(reader, length, offset) &&
	    (n = pread(reader->fd, reader->buffer, length, (off_t)offset)) == (ssize_t)length)
		return n;
	n = reader->direct_fd < 0 ? -1 : pread(reader->direct_fd, reader->buffer, PIECE, (off_t)offset);
	if (n < 0)
		n = pread(reader->fd, reader->buffer, length, (off_t)offset);
	return n < 0 ? -errno : n < (ssize_t)length ? n : (ssize_t)length;
}

static bool all_zero(const char *bytes, size_t length)
{
	return bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0;
}

static void look_at(struct zero_map *map, struct reader *reader, size_t length, uint64_t offset)
{
	ssize_t n = read_piece(reader, length, offset);

	for (ssize_t at = 0; at < n; at += ZERO_MAP_PAGE) {
		uint64_t rest = (uint64_t)(n - at), wanted = map->size - offset - (uint64_t)at;
		size_t size = rest < ZERO_MAP_PAGE ? (size_t)rest : ZERO_MAP_PAGE;

		/* Not all of the page has been read. */
		if (size < ZERO_MAP_PAGE && size < wanted)
			break;
		if (all_zero(reader->buffer + at, size))
			set(map, (offset + (uint64_t)at) / ZERO_MAP_PAGE);
	}
}

static int look_at_data(struct zero_map *map, struct reader *reader, bool (*stop)(void *data), void *data)
{
	uint64_t at = 0, from, to;

	while (at < map->size && next_data(reader->fd, map, at, &from, &to)) {
		for (at = from; at < to;) {
			uint64_t length = to - at < PIECE ? to - at : PIECE;
			if (stop(data))
				return -ECANCELED;
			look_at(map, reader, (size_t)length, at);
			at += length;
		}
	}
	return 0;
}

int zero_map_scan(struct zero_map *map, int fd, bool (*stop)(void *data), void *data)
{
	_cleanup_free_ char *buffer = aligned_alloc(4096, PIECE);
	char path[32];

	if (!buffer)
		return -ENOMEM;
	/* Its place is moved, so it has to be an open of our own; without /proc the other's does, whose place nobody uses. */
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	_cleanup_close_ int own = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	_cleanup_close_ int direct = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT | O_NONBLOCK);
	struct reader reader = { .fd = own < 0 ? fd : own, .direct_fd = direct, .buffer = buffer };

	reader.mapped = mmap(NULL, map->size, PROT_READ, MAP_SHARED, reader.fd, 0);
	find_holes(map, reader.fd);
	int r = look_at_data(map, &reader, stop, data);
	if (reader.mapped != MAP_FAILED)
		munmap(reader.mapped, map->size);
	return r;
}

/* ---- the file ---- */

static uint64_t header_digest(const struct header *header)
{
	struct header copy;

	memcpy(&copy, header, sizeof copy);
	copy.digest = 0;
	return XXH3_64bits(&copy, sizeof copy);
}

static int write_all(int fd, const struct header *header, const uint64_t *words, size_t length)
{
	int r = pwrite_fully(fd, header, sizeof *header, 0);

	if (r == 0)
		r = pwrite_fully(fd, words, length, sizeof *header);
	return r == 0 && fsync(fd) < 0 ? -errno : r;
}

static int write_file(const char *path, const struct header *header, const uint64_t *words, size_t length)
{
	_cleanup_free_ char *tmp = NULL;

	if (asprintf(&tmp, "%s.tmp", path) < 0) {
		tmp = NULL;
		return -ENOMEM;
	}
	_cleanup_close_ int fd = beside_create(tmp);
	if (fd < 0)
		return fd;
	int r = write_all(fd, header, words, length);
	if (r == 0 && rename(tmp, path) < 0)
		r = -errno;
	if (r < 0)
		unlink(tmp);
	return r;
}

int zero_map_save(const struct zero_map *map, const char *path, const struct image_stamp *image, struct error *err)
{
	uint64_t count = word_count(map);
	_cleanup_free_ struct header *header = calloc(1, sizeof *header);
	_cleanup_free_ uint64_t *words = calloc(count ?: 1, sizeof *words);

	if (!header || !words)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	for (uint64_t i = 0; i < count; i++)
		words[i] = atomic_load_explicit(&map->words[i], memory_order_relaxed);
	memcpy(header->magic, MAGIC, sizeof header->magic);
	header->version = VERSION;
	header->page_size = ZERO_MAP_PAGE;
	header->pages = map->pages;
	header->image = *image;
	header->bits_digest = XXH3_64bits(words, count * sizeof *words);
	header->digest = header_digest(header);
	int r = write_file(path, header, words, count * sizeof *words);
	return r == 0 ? 0
		      : error_set(err, r, r == -ENOSPC || r == -EDQUOT ? "disk_full" : "io_error",
				  "cannot write the zero map '%s': %s", path, strerror(-r));
}

static int damaged(const char *path, const char *how, struct error *err)
{
	return error_set(err, -EBADMSG, "zero_map_damaged", "the zero map '%s' %s", path, how);
}

static int check_header(const struct zero_map *map, int fd, const struct header *header, const char *path,
			const struct image_stamp *image, struct error *err)
{
	struct stat st;

	if (memcmp(header->magic, MAGIC, sizeof header->magic) != 0)
		return damaged(path, "is no zero map", err);
	if (header->version != VERSION || header->page_size != ZERO_MAP_PAGE)
		return damaged(path, "has a version or page size that is not known here", err);
	if (header->digest != header_digest(header))
		return damaged(path, "has a header that does not add up", err);
	if (memcmp(&header->image, image, sizeof *image) != 0 || header->pages != map->pages)
		return error_set(err, -ESTALE, "zero_map_stale", "the zero map '%s' was made from another image", path);
	if (fstat(fd, &st) < 0 || (uint64_t)st.st_size != sizeof *header + word_count(map) * sizeof(uint64_t))
		return damaged(path, "does not have the length that it says", err);
	return 0;
}

int zero_map_load(struct zero_map *map, const char *path, const struct image_stamp *image, struct error *err)
{
	uint64_t count = word_count(map);
	_cleanup_free_ struct header *header = malloc(sizeof *header);
	_cleanup_free_ uint64_t *words = malloc(count * sizeof *words ?: 1);
	_cleanup_close_ int fd = beside_open(path);

	if (!header || !words)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	if (fd == -ENOENT)
		return error_set(err, fd, "zero_map_missing", "there is no zero map '%s'", path);
	if (fd == -EPERM || fd == -ELOOP)
		return damaged(path, "is not the server's own, or others may write to it: it is not used", err);
	if (fd < 0)
		return error_set(err, fd, "io_error", "cannot open the zero map '%s': %s", path, strerror(-fd));
	if (pread_fully(fd, header, sizeof *header, 0) < 0)
		return damaged(path, "is no zero map", err);
	int r = check_header(map, fd, header, path, image, err);
	if (r < 0)
		return r;
	if (pread_fully(fd, words, count * sizeof *words, sizeof *header) < 0 ||
	    header->bits_digest != XXH3_64bits(words, count * sizeof *words))
		return damaged(path, "holds bits that do not add up", err);
	for (uint64_t page = 0; page < map->pages; page++)
		if (words[page / 64] & 1ull << page % 64)
			set(map, page);
	return 0;
}
