/* What the cases of the group "order" are made of: traces, a memory image for both runs of each, and which of its pages are slow. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/write.h"
#include "bench/order.h"
#include "replay/content.h"
#include "replay/list.h"

static const char *const workloads[] = { "gcc-compile", "redis-get", "python-import" };

/* Of an evicted image, so much may still be in memory. */
#define COLD_PERMILLE 20

static int no_memory(struct error *err)
{
	return error_set(err, -ENOMEM, "bench_failed", "there is not enough memory for the traces");
}

/* ---- traces ---- */

/* Adds what OTHER has. */
static int unite(struct trace_image *image, const struct trace_image *other, struct error *err)
{
	if (other->pages != image->pages)
		return error_set(err, -EINVAL, "bad_bitmap", "the two runs are of memory images of different sizes");
	image->nonzero = 0;
	for (uint64_t i = 0; i < image->pages / 8; i++) {
		image->bits[i] |= other->bits[i];
		image->nonzero += (unsigned)__builtin_popcount(image->bits[i]);
	}
	return 0;
}

static int load_run(struct bench *bench, struct workload *w, unsigned number, struct error *err)
{
	_cleanup_trace_image_ struct trace_image *image = NULL;
	_cleanup_free_ char *path = NULL, *bitmap = NULL;

	if (asprintf(&path, "%s/%s.%u.csv.gz", bench->options->traces, w->name, number + 1) < 0)
		return no_memory(err);
	bitmap = trace_image_path(path);
	if (!bitmap)
		return no_memory(err);
	int r = trace_load(path, &w->traces[number], err);
	if (r < 0)
		return error_prefix(err, r, "--traces names the directory of the project's traces: ");
	r = trace_image_load(bitmap, &image, err);
	if (r >= 0)
		r = trace_check_image(w->traces[number], image, err);
	if (r >= 0 && w->image)
		r = unite(w->image, image, err);
	else if (r >= 0)
		w->image = TAKE_PTR(image);
	return r < 0 ? r : trace_hot_list(w->traces[number], &w->truth[number], err);
}

const char *workload_name(unsigned index)
{
	return index < sizeof workloads / sizeof *workloads ? workloads[index] : NULL;
}

int workload_load(struct bench *bench, const char *name, struct workload *ret, struct error *err)
{
	struct workload w = { .name = name };
	int r = 0;

	snprintf(w.image_path, sizeof w.image_path, "%s/%s", bench->dir, name);
	snprintf(w.slow_path, sizeof w.slow_path, "%s/%s.slow", bench->dir, name);
	for (unsigned i = 0; i < 2 && r >= 0; i++)
		r = load_run(bench, &w, i, err);
	if (r < 0) {
		workload_clear(&w);
		return r;
	}
	*ret = w;
	return 0;
}

void workload_clear(struct workload *w)
{
	for (unsigned i = 0; i < 2; i++) {
		trace_free(w->traces[i]);
		hotlist_free(w->truth[i]);
	}
	trace_image_free(w->image);
	if (w->has_image)
		unlink(w->image_path);
}

int workload_make_image(struct workload *w, struct error *err)
{
	int r = w->has_image ? 0 : content_make_template(w->image_path, w->image, CONTENT_DEFAULT_SEED, err);

	w->has_image = r >= 0;
	return r;
}

/* ---- which pages are slow ---- */

int workload_write_slow(const struct workload *w, const struct trace *const traces[2], struct error *err)
{
	_cleanup_free_ uint8_t *bits = calloc(w->image->pages / 8, 1), *known = calloc(w->image->pages / 8, 1);
	_cleanup_close_ int fd = open(w->slow_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (!bits || !known)
		return no_memory(err);
	/* It is the page that is slow: what one vCPU touched first in the first run stays so in the second, whoever touches it. */
	for (unsigned t = 0; t < 2; t++) {
		for (size_t i = 0; i < traces[t]->count; i++) {
			const struct trace_touch *touch = &traces[t]->touches[i];
			uint8_t bit = (uint8_t)(0x80u >> touch->page % 8);

			if (touch->vcpu % 2 && !(known[touch->page / 8] & bit))
				bits[touch->page / 8] |= bit;
		}
		for (size_t i = 0; i < traces[t]->count; i++)
			known[traces[t]->touches[i].page / 8] |= (uint8_t)(0x80u >> traces[t]->touches[i].page % 8);
	}
	int r = fd < 0 ? -errno : write_fully(fd, (const char *)bits, w->image->pages / 8);
	return r < 0 ? error_set(err, r, "bench_failed", "can't write %s: %s", w->slow_path, strerror(-r)) : 0;
}

/* ---- the page cache ---- */

static int image_failed(const struct workload *w, struct error *err)
{
	return error_set(err, -errno, "bench_failed", "can't use the memory image %s: %s", w->image_path,
			 strerror(errno));
}

int workload_warm(const struct workload *w, struct error *err)
{
	_cleanup_close_ int fd = open(w->image_path, O_RDONLY | O_CLOEXEC);
	_cleanup_free_ char *buffer = malloc(1 << 20);

	if (fd < 0 || !buffer)
		return image_failed(w, err);
	for (off_t at = lseek(fd, 0, SEEK_DATA); at >= 0; at = lseek(fd, at, SEEK_DATA)) {
		ssize_t n = pread(fd, buffer, 1 << 20, at);

		if (n <= 0)
			return image_failed(w, err);
		at += n;
	}
	return errno == ENXIO ? 0 : image_failed(w, err);
}

static uint64_t count_resident(int fd, uint64_t pages)
{
	_cleanup_free_ unsigned char *present = malloc(pages);
	void *p = mmap(NULL, pages * TRACE_PAGE, PROT_READ, MAP_SHARED, fd, 0);
	uint64_t count = 0;

	if (p == MAP_FAILED)
		return pages;
	if (present && mincore(p, pages * TRACE_PAGE, present) == 0)
		for (uint64_t i = 0; i < pages; i++)
			count += present[i] & 1;
	munmap(p, pages * TRACE_PAGE);
	return count;
}

int workload_evict(const struct workload *w, struct error *err)
{
	_cleanup_close_ int fd = open(w->image_path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || fsync(fd) < 0)
		return image_failed(w, err);
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	uint64_t resident = count_resident(fd, w->image->pages);
	if (resident * 1000 > w->image->nonzero * COLD_PERMILLE)
		return error_set(err, -EBUSY, "not_cold",
				 "%" PRIu64 " pages of the image stay in the page cache: --dir names a place on a disk",
				 resident);
	return 0;
}
