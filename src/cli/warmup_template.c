/*
 * The template of a warm-up. A cold run needs its image out of the page cache, where pages stay that anybody has mapped, as the server has those of
 * its templates. So its forks are made of a stand-in, a template that is forgotten before each, and if need be of a copy of the image.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/warmup.h"

static int failed(const struct client_call *call, struct error *err)
{
	*err = call->err;
	return call->result;
}

/* NULL stays NULL. False: no memory. */
static bool copy_member(const json_t *object, const char *name, char **ret)
{
	const char *value = json_string_value(json_object_get(object, name));

	*ret = value ? strdup(value) : NULL;
	return !value || *ret;
}

int warmup_template_get(struct warmup_job *job, struct error *err)
{
	_cleanup_client_call_ struct client_call call = { .args = job->args };

	if (client_call_named(&call, "GET", "/v1/templates/", job->template, "", API_TIMEOUT_S) < 0)
		return failed(&call, err);
	if (!copy_member(call.reply.json, "memory", &job->memory) ||
	    !copy_member(call.reply.json, "state", &job->state) ||
	    !copy_member(call.reply.json, "inject", &job->inject) ||
	    !copy_member(call.reply.json, "hot_list", &job->own_list))
		return warmup_no_memory(err);
	if (!job->list_path)
		job->list_path = job->own_list;
	return 0;
}

const char *warmup_template_name(const struct warmup_job *job)
{
	return job->stand_in[0] ? job->stand_in : job->template;
}

static int add_stand_in(struct warmup_job *job, const char *memory, struct error *err)
{
	_cleanup_client_call_ struct client_call call = { .args = job->args };
	char name[sizeof job->stand_in];

	snprintf(name, sizeof name, "warmup-%ld", (long)getpid());
	client_add_string(&call, "name", name);
	client_add_path(&call, "memory", memory);
	client_add_string(&call, "state", job->state);
	client_add_string(&call, "inject", job->inject);
	client_add(&call, "no_zero_map", json_true());
	if (client_call(&call, "POST", "/v1/templates", API_TIMEOUT_S) < 0)
		return failed(&call, err);
	snprintf(job->stand_in, sizeof job->stand_in, "%s", name);
	return 0;
}

static void forget_stand_in(struct warmup_job *job)
{
	_cleanup_client_call_ struct client_call call = { .args = job->args };

	if (!job->stand_in[0])
		return;
	if (client_call_named(&call, "DELETE", "/v1/templates/", job->stand_in, "", API_TIMEOUT_S) < 0 &&
	    strcmp(call.err.code, "no_server") != 0)
		cli_error("template %s could not be removed, ignoring: %s", job->stand_in, call.err.message);
	job->stand_in[0] = '\0';
}

/* Thousandths of the file's data that are in the page cache; of a file that can't be looked at, 0. */
static unsigned resident_permille(int fd)
{
	long page_size = sysconf(_SC_PAGESIZE);
	struct stat st;

	if (fstat(fd, &st) < 0 || st.st_size <= 0)
		return 0;

	size_t pages = ((size_t)st.st_size + (size_t)page_size - 1) / (size_t)page_size, resident = 0;
	size_t with_data = (size_t)st.st_blocks * 512 / (size_t)page_size;
	_cleanup_free_ unsigned char *present = malloc(pages);
	void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);

	if (present && map != MAP_FAILED && mincore(map, (size_t)st.st_size, present) == 0)
		for (size_t i = 0; i < pages; i++)
			resident += present[i] & 1;
	if (map != MAP_FAILED)
		munmap(map, (size_t)st.st_size);
	if (with_data == 0 || with_data > pages)
		with_data = pages;
	return resident >= with_data ? 1000 : (unsigned)(resident * 1000 / with_data);
}

/* Of an image that is cold, so much may still be in memory: what the kernel reads around a page that others look at. */
#define COLD_PERMILLE 20
/* Between two looks whether somebody wants us to end. */
#define COPY_STEP (64u << 20)

static int evict(const char *path, unsigned *ret_left, struct error *err)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);

	/* Dirty pages stay: an image that was just written goes to the disk first. */
	if (fd < 0 || fdatasync(fd) < 0)
		return error_set(err, -errno, "bad_memory",
				 "--vary-cache can't put %s out of the page cache: %s; it needs an image that it may read",
				 path, strerror(errno));
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	*ret_left = resident_permille(fd);
	return 0;
}

/* The data between START and END; holes stay holes. */
static int copy_data(int from, int to, off_t start, off_t end)
{
	while (start < end) {
		off_t at = start;
		ssize_t n = copy_file_range(from, &start, to, &at, (size_t)(end - start), 0);

		if (n <= 0)
			return n < 0 ? -errno : -EIO;
	}
	return 0;
}

static int copy_all(struct warmup_job *job, int from, int to, off_t size)
{
	off_t at = lseek(from, 0, SEEK_DATA);
	int r = ftruncate(to, size) < 0 ? -errno : 0;

	/* ENXIO: no data any more. */
	for (; r >= 0 && at >= 0; at = lseek(from, at, SEEK_DATA)) {
		off_t end = lseek(from, at, SEEK_HOLE);

		if (end - at > COPY_STEP)
			end = at + COPY_STEP;
		r = copy_data(from, to, at, end);
		at = end;
		job->interrupted_by = warmup_read_signal(job);
		if (job->interrupted_by)
			return -EINTR;
	}
	return r;
}

/* Nobody else has mapped it. */
static int make_copy(struct warmup_job *job, struct error *err)
{
	const char *dir = getenv("TMPDIR");
	_cleanup_free_ char *path = NULL;
	_cleanup_close_ int from = -1, to = -1;
	struct stat st;

	if (job->copy)
		return 0;
	if (asprintf(&path, "%s/faultline-warmup-XXXXXX", dir && *dir ? dir : "/var/tmp") < 0)
		return warmup_no_memory(err);
	from = open(job->memory, O_RDONLY | O_CLOEXEC);
	if (from < 0 || fstat(from, &st) < 0)
		return error_set(err, -errno, "bad_memory", "cannot copy %s: %s", job->memory, strerror(errno));
	to = mkostemp(path, O_CLOEXEC);
	if (to < 0)
		return error_set(err, -errno, "io_error",
				 "cannot make a file %s for a cold copy of the image: %s; TMPDIR names another place",
				 path, strerror(errno));
	job->copy = TAKE_PTR(path);
	int r = copy_all(job, from, to, st.st_size);
	if (r == -EINTR)
		return error_set(err, r, "interrupted", "interrupted");
	if (r < 0)
		return error_set(err, r, r == -ENOSPC ? "disk_full" : "io_error",
				 "cannot copy %s to %s, for a cold image: %s; TMPDIR names another place", job->memory,
				 job->copy, strerror(-r));
	return 0;
}

int warmup_template_cool(struct warmup_job *job, struct warmup_run *run, struct error *err)
{
	const char *memory = job->copy ?: job->memory;

	forget_stand_in(job);
	int r = evict(memory, &run->left_permille, err);
	if (r >= 0 && run->left_permille > COLD_PERMILLE && !job->copy) {
		r = make_copy(job, err);
		memory = job->copy;
		if (r >= 0)
			r = evict(memory, &run->left_permille, err);
	}
	run->cold = true;
	return r < 0 ? r : add_stand_in(job, memory, err);
}

void warmup_template_clear(struct warmup_job *job)
{
	forget_stand_in(job);
	if (job->copy)
		unlink(job->copy);
	free(job->copy);
	job->copy = NULL;
}
