#include "template/template.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "template/hot_set.h"
#include "template/zero_map.h"

static int open_memory(struct template *t, const char *path, struct error *err)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return error_set(err, -errno, "bad_memory", "cannot open the memory image '%s': %s", path,
				 strerror(errno));
	if (!S_ISREG(st.st_mode))
		return error_set(err, -EINVAL, "bad_memory",
				 "the memory image '%s' is not a regular file: name the file that the VMM wrote the "
				 "guest's memory to",
				 path);
	if (st.st_size == 0)
		return error_set(err, -EINVAL, "bad_memory", "the memory image '%s' is empty", path);

	t->device = st.st_dev;
	t->inode = st.st_ino;
	t->size = (uint64_t)st.st_size;
	t->modified = st.st_mtim;
	int r = source_file_new(fd, &t->source, err);
	if (r < 0)
		return r;
	t->memory_fd = TAKE_FD(fd);
	return 0;
}

static int check_readable(const char *path, const char *code, const char *what, bool missing_is_fine, struct error *err)
{
	if (path && access(path, R_OK) < 0 && !(missing_is_fine && errno == ENOENT))
		return error_set(err, -errno, code, "cannot read %s '%s': %s", what, path, strerror(errno));
	return 0;
}

static int wrap_source(struct template *t, struct error *err)
{
	struct source *wrapped;

	if (!t->inject)
		return 0;
	int r = source_inject_new(t->source, t->inject, &wrapped, err);
	if (r < 0)
		return r;
	t->source = wrapped;
	return 0;
}

int template_open(const char *name, const char *memory, const char *state, const char *hot_list, const char *inject,
		  struct template **ret, struct error *err)
{
	_cleanup_template_ struct template *t = calloc(1, sizeof *t);
	if (!t)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	atomic_init(&t->refs, 1);
	pthread_mutex_init(&t->identity_lock, NULL);
	pthread_mutex_init(&t->hot_set_lock, NULL);
	t->packs = true;
	t->memory_fd = t->watch = -1;
	t->name = strdup(name);
	t->memory = strdup(memory);
	t->state = state ? strdup(state) : NULL;
	t->hot_list = hot_list ? strdup(hot_list) : NULL;
	t->inject = inject ? strdup(inject) : NULL;
	if (!t->name || !t->memory || (state && !t->state) || (hot_list && !t->hot_list) || (inject && !t->inject))
		return error_set(err, -ENOMEM, "io_error", "out of memory");

	int r = open_memory(t, memory, err);
	if (r == 0)
		r = check_readable(state, "bad_state", "the VMM state", false, err);
	if (r == 0)
		r = check_readable(hot_list, "bad_hot_list", "the hot list", true, err); /* a list yet to be recorded */
	if (r == 0)
		r = wrap_source(t, err);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(t);
	return 0;
}

struct template *template_ref(struct template *t)
{
	atomic_fetch_add_explicit(&t->refs, 1, memory_order_relaxed);
	return t;
}

void template_unref(struct template *t)
{
	if (!t || atomic_fetch_sub_explicit(&t->refs, 1, memory_order_acq_rel) != 1)
		return;
	hot_set_unref(t->hot_set);
	source_close(t->source);
	free(t->name);
	free(t->memory);
	free(t->state);
	free(t->hot_list);
	free(t->inject);
	pthread_mutex_destroy(&t->identity_lock);
	pthread_mutex_destroy(&t->hot_set_lock);
	free(t);
}

int template_map_zeros(struct template *t)
{
	t->source->zeros = zero_map_new(t->size);
	if (!t->source->zeros)
		return -ENOMEM;
	t->zero_map_state = ZERO_MAP_BUILDING;
	return 0;
}

int template_check_unchanged(const struct template *t, struct error *err)
{
	struct stat st;

	if (fstat(t->memory_fd, &st) < 0)
		return error_set(err, -errno, "template_changed", "cannot examine the image of template '%s': %s",
				 t->name, strerror(errno));
	if ((uint64_t)st.st_size != t->size)
		return error_set(err, -ESTALE, "template_changed",
				 "the image '%s' of template '%s' had %" PRIu64
				 " bytes when it was added and has %" PRIu64
				 " now: a template's image must not change; remove the template and add it again",
				 t->memory, t->name, t->size, (uint64_t)st.st_size);
	if (atomic_load(&t->source->changed) || st.st_mtim.tv_sec != t->modified.tv_sec ||
	    st.st_mtim.tv_nsec != t->modified.tv_nsec)
		return error_set(err, -ESTALE, "template_changed",
				 "the image '%s' of template '%s' has been written to since it was added: a template's image "
				 "must not change; remove the template and add it again",
				 t->memory, t->name);
	return 0;
}

int template_identity(struct template *t,
		      int (*compute)(int fd, uint64_t size, uint8_t ret[static TEMPLATE_IDENTITY_SIZE]),
		      uint8_t ret[static TEMPLATE_IDENTITY_SIZE])
{
	LOCK_SCOPE(&t->identity_lock);
	if (!t->identity_known) {
		int r = compute(t->memory_fd, t->size, t->identity);
		if (r < 0)
			return r;
		t->identity_known = true;
	}
	memcpy(ret, t->identity, sizeof t->identity);
	return 0;
}

static int record_path(const char *dir, const char *name, const char *suffix, char **ret, struct error *err)
{
	if (asprintf(ret, "%s/%s.json%s", dir, name, suffix) < 0) {
		*ret = NULL;
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	}
	return 0;
}

static int write_record(int fd, const char *text, size_t length)
{
	while (length > 0) {
		ssize_t n = write(fd, text, length);
		if (n < 0)
			return -errno;
		text += n;
		length -= (size_t)n;
	}
	return fsync(fd) < 0 ? -errno : 0;
}

int template_save(const struct template *t, const char *dir, struct error *err)
{
	json_t *json =
		json_pack("{s:s, s:s, s:s*, s:s*, s:s*, s:b, s:b, s:b, s:I, s:I, s:I, s:I, s:I}", "name", t->name,
			  "memory", t->memory, "state", t->state, "hot_list", t->hot_list, "inject", t->inject,
			  "refresh_hot_list", t->refresh, "hot_set", t->packs, "zero_map", t->source->zeros != NULL,
			  "device", (json_int_t)t->device, "inode", (json_int_t)t->inode, "size", (json_int_t)t->size,
			  "modified_s", (json_int_t)t->modified.tv_sec, "modified_ns", (json_int_t)t->modified.tv_nsec);
	_cleanup_free_ char *text = json ? json_dumps(json, JSON_INDENT(2)) : NULL;
	json_decref(json);
	if (!text)
		return error_set(err, -ENOMEM, "io_error",
				 "cannot write down template '%s': its paths must be valid UTF-8", t->name);

	_cleanup_free_ char *path = NULL, *tmp = NULL;
	int r = record_path(dir, t->name, "", &path, err);
	if (r == 0)
		r = record_path(dir, t->name, ".tmp", &tmp, err);
	if (r < 0)
		return r;

	_cleanup_close_ int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	r = fd < 0 ? -errno : write_record(fd, text, strlen(text));
	if (r == 0 && rename(tmp, path) < 0)
		r = -errno;
	if (r < 0) {
		unlink(tmp);
		return error_set(err, r, "io_error", "cannot write '%s': %s", path, strerror(-r));
	}
	return 0;
}

int template_forget(const char *name, const char *dir, struct error *err)
{
	_cleanup_free_ char *path = NULL;
	int r = record_path(dir, name, "", &path, err);
	if (r < 0)
		return r;
	if (unlink(path) < 0 && errno != ENOENT)
		return error_set(err, -errno, "io_error", "cannot remove '%s': %s", path, strerror(errno));
	return 0;
}

/* The image must be the very file that was added, or forks of before and after a restart would differ. */
static int check_recorded(const struct template *t, const json_t *json, struct error *err)
{
	json_int_t device, inode, size, seconds, nanoseconds;

	if (json_unpack((json_t *)json, "{s:I, s:I, s:I, s:I, s:I}", "device", &device, "inode", &inode, "size", &size,
			"modified_s", &seconds, "modified_ns", &nanoseconds) < 0)
		return error_set(err, -EBADMSG, "io_error", "the record of template '%s' lacks a member", t->name);
	if ((dev_t)device != t->device || (ino_t)inode != t->inode || (uint64_t)size != t->size ||
	    seconds != t->modified.tv_sec || nanoseconds != t->modified.tv_nsec)
		return error_set(err, -ESTALE, "template_changed",
				 "the image '%s' is not the file that was added as template '%s': add it again",
				 t->memory, t->name);
	return 0;
}

int template_load(const char *name, const char *dir, struct template **ret, struct error *err)
{
	_cleanup_free_ char *path = NULL;
	int r = record_path(dir, name, "", &path, err);
	if (r < 0)
		return r;

	json_error_t jerr;
	json_t *json = json_load_file(path, JSON_REJECT_DUPLICATES, &jerr);
	if (!json)
		return error_set(err, -EBADMSG, "io_error", "'%s' is damaged: %s", path, jerr.text);

	const char *memory, *state = NULL, *hot_list = NULL, *inject = NULL;
	int refresh = 0, packs = 1, zeros = 1; /* records of earlier versions lack them */
	_cleanup_template_ struct template *t = NULL;
	if (json_unpack(json, "{s:s, s?s, s?s, s?s, s?b, s?b, s?b}", "memory", &memory, "state", &state, "hot_list",
			&hot_list, "inject", &inject, "refresh_hot_list", &refresh, "hot_set", &packs, "zero_map",
			&zeros) < 0)
		r = error_set(err, -EBADMSG, "io_error", "'%s' is damaged: it names no memory image", path);
	else
		r = template_open(name, memory, state, hot_list, inject, &t, err);
	if (r == 0)
		r = check_recorded(t, json, err);
	if (r == 0 && zeros && template_map_zeros(t) < 0)
		r = error_set(err, -ENOMEM, "io_error", "out of memory");
	json_decref(json);
	if (r < 0)
		return r;
	t->refresh = refresh;
	t->packs = packs;
	*ret = TAKE_PTR(t);
	return 0;
}
