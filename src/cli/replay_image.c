/* The memory image of a replay: made or given, in the page cache or not. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "cli/replay.h"
#include "replay/content.h"

/* Of an evicted image, so much may still be in memory: what the kernel reads around a page that others look at. */
#define COLD_PERMILLE 20

static int image_failed(const char *path, struct error *err)
{
	return error_set(err, -errno, "io_error", "cannot use the memory image %s: %s", path, strerror(errno));
}

/* Reads all of it, so that it is in the page cache. */
static int warm_image(const char *path, struct error *err)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	_cleanup_free_ char *buffer = malloc(1 << 20);
	off_t at = 0;
	ssize_t n;

	if (fd < 0 || !buffer)
		return image_failed(path, err);
	while ((at = lseek(fd, at, SEEK_DATA)) >= 0) {
		while ((n = pread(fd, buffer, 1 << 20, at)) > 0) {
			off_t next = lseek(fd, at + n, SEEK_DATA);

			if (next != at + n)
				break;
			at = next;
		}
		if (n < 0)
			return image_failed(path, err);
		at += n;
	}
	return errno == ENXIO ? 0 : image_failed(path, err);
}

/* How much of the file is in the page cache. */
static uint64_t count_resident(int fd, uint64_t pages)
{
	_cleanup_free_ unsigned char *present = malloc(pages);
	void *p = mmap(NULL, pages * TRACE_PAGE, PROT_READ, MAP_SHARED, fd, 0);
	uint64_t count = 0;

	if (present && p != MAP_FAILED && mincore(p, pages * TRACE_PAGE, present) == 0)
		for (uint64_t i = 0; i < pages; i++)
			count += present[i] & 1;
	if (p != MAP_FAILED)
		munmap(p, pages * TRACE_PAGE);
	return count;
}

int replay_evict_image(const struct replay_job *job, struct error *err)
{
	_cleanup_close_ int fd = open(job->template, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || fsync(fd) < 0)
		return image_failed(job->template, err);
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	uint64_t resident = count_resident(fd, job->image->pages);
	if (resident * 1000 > job->image->nonzero * COLD_PERMILLE)
		return error_set(err, -EBUSY, "not_cold",
				 "%" PRIu64
				 " pages of %s stay in the page cache, so --cold can't be had: it is on a file system in "
				 "memory, or somebody else uses it; TMPDIR or --template name another place",
				 resident, job->template);
	return 0;
}

static int check_template_size(const struct replay_job *job, struct error *err)
{
	struct stat st;

	if (stat(job->template, &st) < 0)
		return image_failed(job->template, err);
	if ((uint64_t)st.st_size != job->image->pages * TRACE_PAGE)
		return error_set(err, -EINVAL, "bad_template",
				 "%s has %jd bytes, but the trace's image has %" PRIu64 ": make it with --make-template",
				 job->template, (intmax_t)st.st_size, job->image->pages * TRACE_PAGE);
	return 0;
}

int replay_prepare_image(struct replay_job *job, struct error *err)
{
	const char *path = cli_value(job->args, "template");
	int r;

	if (job->source == SOURCE_PRESENT)
		return 0;
	if (path) {
		job->template = strdup(path);
		if (!job->template)
			return error_set(err, -ENOMEM, "no_memory", "there is not enough memory");
		r = check_template_size(job, err);
		return r < 0 || job->cold ? r : warm_image(path, err);
	}
	r = replay_make_dir(job, err);
	if (r < 0)
		return r;
	if (asprintf(&job->template, "%s/image", job->dir) < 0)
		return error_set(err, -ENOMEM, "no_memory", "there is not enough memory");
	return content_make_template(job->template, job->image, job->seed, err);
}
