/* Lists as files: read whole and bounded, written so that nobody ever sees a part of one. */
#include "hotlist/hotlist.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "base/write.h"

#define READ_CHUNK (64u << 10) /* for pipes, whose size nothing tells */
#define PATH_SHOWN 160	       /* characters of a path in a message, so that the remedy has room behind it */

/* The end of a long path says more than its start. */
static const char *shown(const char *path)
{
	size_t length = strlen(path);

	if (length <= PATH_SHOWN)
		return path;
	path += length - PATH_SHOWN;
	/* Not from within a character: the message may have to become JSON. */
	while (((unsigned char)*path & 0xc0) == 0x80)
		path++;
	return path;
}

/* ---- reading ---- */

static int read_error(const char *name, int r, struct error *err)
{
	return error_set(err, r, "bad_hot_list", "cannot read the hot list %s: %s", shown(name), strerror(-r));
}

static int too_large(const char *name, struct error *err)
{
	return error_set(err, -EFBIG, "bad_hot_list", "%s is no hot list: it is larger than %llu MiB", shown(name),
			 HOTLIST_FILE_MAX >> 20);
}

/* Reads to the end of the file, or one byte past HOTLIST_FILE_MAX. EXPECTED is a first guess of the size. */
static int read_all(int fd, size_t expected, char **ret, size_t *ret_size)
{
	_cleanup_free_ char *data = NULL;
	size_t capacity = 0, size = 0;

	while (size <= HOTLIST_FILE_MAX) {
		if (size == capacity) {
			/* One byte more than expected lets the end be seen without growing. */
			capacity = !capacity ? expected + 1 : capacity + (capacity > READ_CHUNK ? capacity : READ_CHUNK);
			if (capacity > HOTLIST_FILE_MAX + 1)
				capacity = HOTLIST_FILE_MAX + 1;
			char *grown = realloc(data, capacity);
			if (!grown)
				return -ENOMEM;
			data = grown;
		}
		ssize_t n = read(fd, data + size, capacity - size);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		size += (size_t)n;
	}
	*ret = TAKE_PTR(data);
	*ret_size = size;
	return 0;
}

int hotlist_load_fd(int fd, const char *name, struct hotlist **ret, struct error *err)
{
	_cleanup_free_ char *data = NULL;
	size_t size = 0;
	struct stat st;
	size_t expected = READ_CHUNK;

	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) {
		if ((uint64_t)st.st_size > HOTLIST_FILE_MAX)
			return too_large(name, err);
		expected = (size_t)st.st_size;
	}
	int r = read_all(fd, expected, &data, &size);
	if (r < 0)
		return read_error(name, r, err);
	if (size > HOTLIST_FILE_MAX)
		return too_large(name, err);

	r = hotlist_decode(data, size, ret, err);
	if (r < 0)
		return error_prefix(err, r, "%s: ", shown(name));
	return 0;
}

int hotlist_load(const char *path, struct hotlist **ret, struct error *err)
{
	struct stat st;

	/* O_NONBLOCK: the open of a FIFO would wait for a writer. */
	_cleanup_close_ int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT) {
		struct hotlist *list = hotlist_new();
		if (!list)
			return read_error(path, -ENOMEM, err);
		*ret = list;
		return 0;
	}
	if (fd < 0)
		return read_error(path, -errno, err);
	if (fstat(fd, &st) < 0)
		return read_error(path, -errno, err);
	if (!S_ISREG(st.st_mode))
		return error_set(err, -EINVAL, "bad_hot_list",
				 "cannot read the hot list %s: it is %s, and a regular file is needed", shown(path),
				 S_ISDIR(st.st_mode) ? "a directory" : "a device, pipe or socket");
	return hotlist_load_fd(fd, path, ret, err);
}

/* ---- writing ---- */

static const char *remedy(int r)
{
	switch (r) {
	case -ENOSPC:
	case -EDQUOT:
		return "Free some space there, or save the list elsewhere";
	case -EFBIG:
		return "Raise the limit on file sizes (ulimit -f)";
	case -EACCES:
	case -EPERM:
		return "Save it where you may create files";
	case -EROFS:
		return "Save it on a file system that can be written to";
	case -ENOENT:
	case -ENOTDIR:
		return "Make the directory first";
	case -ENAMETOOLONG:
		return "Choose a name that leaves room for \".tmp\"";
	default:
		return "Try again, or save the list elsewhere";
	}
}

static int write_error(const char *path, const char *step, int r, struct error *err)
{
	bool exists = access(path, F_OK) == 0;

	return error_set(err, r, r == -ENOSPC || r == -EDQUOT ? "disk_full" : "io_error",
			 "cannot save the hot list %s: %s: %s. %s. %s", shown(path), step, strerror(-r),
			 exists ? "What was there before is as it was" : "Nothing was saved", remedy(r));
}

/* Waits for other writers. Where a file system has no locks, two writers at once are not kept apart, and all else still holds. */
static int lock(int fd)
{
	while (flock(fd, LOCK_EX) < 0) {
		if (errno == EOPNOTSUPP || errno == ENOLCK)
			return 0;
		if (errno != EINTR)
			return -errno;
	}
	return 0;
}

static bool is_at(int fd, const char *path)
{
	struct stat a, b;

	return fstat(fd, &a) == 0 && lstat(path, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/*
 * TMP exists. Its writer, if it lives, holds the lock: once we have it, either that writer is done and TMP is no more what we
 * opened, or it died and TMP is its rest, which nobody else can be writing to.
 */
static int remove_stale(const char *tmp)
{
	struct stat st;

	if (lstat(tmp, &st) < 0)
		return errno == ENOENT ? 0 : -errno;
	if (S_ISREG(st.st_mode)) {
		_cleanup_close_ int fd = open(tmp, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
		if (fd < 0)
			return errno == ENOENT || errno == ELOOP ? 0 : -errno;
		int r = lock(fd);
		if (r < 0)
			return r;
		if (!is_at(fd, tmp))
			return 0;
		/* The lock is held until the name is gone. */
		return unlink(tmp) < 0 && errno != ENOENT ? -errno : 0;
	}
	/* No writer of lists made this. A directory stays, and is an error. */
	return unlink(tmp) < 0 && errno != ENOENT ? -errno : 0;
}

/* A new and empty TMP that is ours alone, locked until it is closed. */
static int create_tmp(const char *tmp, int *ret_fd)
{
	for (;;) {
		_cleanup_close_ int fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
		int r;

		if (fd < 0 && errno != EEXIST)
			return -errno;
		if (fd < 0) {
			r = remove_stale(tmp);
			if (r < 0)
				return r;
			continue;
		}
		r = lock(fd);
		if (r < 0) {
			unlink(tmp);
			return r;
		}
		/* Between the open and the lock another writer may have taken the file for a dead one's and removed it. */
		if (!is_at(fd, tmp))
			continue;
		*ret_fd = TAKE_FD(fd);
		return 0;
	}
}

static int sync_directory_of(const char *path)
{
	const char *slash = strrchr(path, '/');
	_cleanup_free_ char *directory = !slash		 ? strdup(".")
					 : slash == path ? strdup("/")
							 : strndup(path, (size_t)(slash - path));
	if (!directory)
		return -ENOMEM;

	_cleanup_close_ int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	/* Some file systems cannot sync a directory and need not. */
	return fsync(fd) < 0 && errno != EINVAL && errno != EROFS ? -errno : 0;
}

/* A device, a pipe: there is nothing to keep whole, and a rename would replace the device itself. */
static int write_through(const char *path, const void *data, size_t size, struct error *err)
{
	_cleanup_close_ int fd = open(path, O_WRONLY | O_NOCTTY | O_CLOEXEC);
	int r = fd < 0 ? -errno : write_fully(fd, data, size);

	if (r < 0)
		return error_set(err, r, r == -ENOSPC ? "disk_full" : "io_error", "cannot write the hot list to %s: %s",
				 shown(path), strerror(-r));
	return 0;
}

/* TARGET is where PATH leads; OLD describes the regular file there, NULL: there is none. */
static int replace(const char *path, const char *target, const struct stat *old, const void *data, size_t size,
		   struct error *err)
{
	_cleanup_free_ char *tmp = NULL;
	_cleanup_close_ int fd = -1;

	if (asprintf(&tmp, "%s.tmp", target) < 0) {
		tmp = NULL;
		return write_error(path, "preparing it", -ENOMEM, err);
	}
	int r = create_tmp(tmp, &fd);
	if (r < 0)
		return write_error(path, "creating its .tmp file", r, err);

	const char *step = "writing its .tmp file";
	r = write_fully(fd, data, size);
	if (r == 0 && old && fchmod(fd, old->st_mode & 0777) < 0)
		r = -errno;
	/* A disk that is full may say so only now. */
	if (r == 0 && fsync(fd) < 0)
		r = -errno;
	if (r == 0 && rename(tmp, target) < 0) {
		step = "renaming its .tmp file";
		r = -errno;
	}
	if (r < 0) {
		unlink(tmp);
		return write_error(path, step, r, err);
	}

	r = sync_directory_of(target);
	if (r < 0)
		return error_set(err, r, "io_error",
				 "the hot list %s was saved, but it may be gone after a power failure: syncing its directory: %s",
				 shown(path), strerror(-r));
	return 0;
}

int hotlist_write_file(const char *path, const void *data, size_t size, struct error *err)
{
	struct stat st;
	bool exists = stat(path, &st) == 0;

	if (exists) {
		if (S_ISDIR(st.st_mode))
			return error_set(err, -EISDIR, "io_error",
					 "cannot save the hot list %s: it is a directory. Name a file in it",
					 shown(path));
		if (!S_ISREG(st.st_mode))
			return write_through(path, data, size, err);
	}

	/* Through links, so that they stay; where nothing is there yet, PATH as it was given. */
	_cleanup_free_ char *target = exists ? realpath(path, NULL) : strdup(path);
	if (!target)
		return write_error(path, "finding it", -errno, err);
	return replace(path, target, exists ? &st : NULL, data, size, err);
}
