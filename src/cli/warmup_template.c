/*
 * The template of a warm-up. A cold run needs its image out of the page cache, where pages stay that the server has mapped: so its forks are
 * made of a stand-in, a template of the same image that is forgotten, and its mapping with it, before each.
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
	    !copy_member(call.reply.json, "state", &job->state) || !copy_member(call.reply.json, "inject", &job->inject))
		return warmup_no_memory(err);
	return 0;
}

const char *warmup_template_name(const struct warmup_job *job)
{
	return job->stand_in[0] ? job->stand_in : job->template;
}

static int add_stand_in(struct warmup_job *job, struct error *err)
{
	_cleanup_client_call_ struct client_call call = { .args = job->args };
	char name[sizeof job->stand_in];

	snprintf(name, sizeof name, "warmup-%ld", (long)getpid());
	client_add_string(&call, "name", name);
	client_add_string(&call, "memory", job->memory);
	client_add_string(&call, "state", job->state);
	client_add_string(&call, "inject", job->inject);
	if (client_call(&call, "POST", "/v1/templates", API_TIMEOUT_S) < 0)
		return failed(&call, err);
	snprintf(job->stand_in, sizeof job->stand_in, "%s", name);
	return 0;
}

void warmup_template_clear(struct warmup_job *job)
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

int warmup_template_cool(struct warmup_job *job, struct warmup_run *run, struct error *err)
{
	warmup_template_clear(job);

	_cleanup_close_ int fd = open(job->memory, O_RDONLY | O_CLOEXEC);

	/* Dirty pages stay: an image that was just written goes to the disk first. */
	if (fd < 0 || fdatasync(fd) < 0)
		return error_set(err, -errno, "bad_memory",
				 "--vary-cache can't put %s out of the page cache: %s; it needs an image that it may read",
				 job->memory, strerror(errno));
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	run->cold = true;
	run->left_permille = resident_permille(fd);
	return add_stand_in(job, err);
}
