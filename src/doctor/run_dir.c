/* The run directory as a server would be given it: tried by making a socket there, which is removed at once. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "doctor/check.h"
#include "doctor/machine.h"

/* A socket's path with its end, and what the server appends to the run directory. */
#define SOCKET_PATH_MAX	     (sizeof((struct sockaddr_un *)0)->sun_path - 1)
#define CONTROL_SOCKET	     "/control.sock"
#define FORK_ID_MAX	     64
#define FORK_SOCKET_OVERHEAD (strlen("/") + strlen(".uffd"))

/* Templates' records and logs of theirs are a few KiB. */
#define FREE_WANTED (16ull << 20)

/* ---- names ---- */

/* What is made for the trial: a directory beside one that isn't there yet, a socket in one that is. */
static void trial_dir(const struct probe *probe, char *ret, size_t size)
{
	snprintf(ret, size, "%s.doctor-%d", probe->run_dir, (int)probe->doctor);
}

static void trial_socket(const struct probe *probe, char *ret, size_t size)
{
	snprintf(ret, size, ".doctor-%d", (int)probe->doctor);
}

/* PATH without its last part: "/a/b/" -> "/a", "b" -> ".". */
static char *parent_of(const char *path)
{
	size_t length = strlen(path);

	while (length > 1 && path[length - 1] == '/')
		length--;
	while (length > 0 && path[length - 1] != '/')
		length--;
	while (length > 1 && path[length - 1] == '/')
		length--;
	return length > 0 ? strndup(path, length) : strdup(".");
}

static const char *name_of(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

/* The run directory without slashes at its end, resolved as far as it exists. NULL: even its parent doesn't. */
static char *resolve(const char *run_dir)
{
	char *resolved = realpath(run_dir, NULL);
	if (resolved)
		return resolved;

	_cleanup_free_ char *parent = parent_of(run_dir), *plain = strdup(run_dir), *real_parent = NULL;
	if (!parent || !plain)
		return NULL;
	for (size_t n = strlen(plain); n > 1 && plain[n - 1] == '/'; n--)
		plain[n - 1] = '\0';
	real_parent = realpath(parent, NULL);
	if (!real_parent ||
	    asprintf(&resolved, "%s/%s", strcmp(real_parent, "/") ? real_parent : "", name_of(plain)) < 0)
		return NULL;
	return resolved;
}

/* ---- existence ---- */

/* Binds a socket by the name NAME in DIR, whose path may be longer than a socket's may be, and removes it. */
static int try_socket(const char *dir, const char *name)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	_cleanup_close_ int dir_fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (dir_fd < 0)
		return -errno;
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d/%.40s", dir_fd, name);
	if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
		return -errno;
	return unlinkat(dir_fd, name, 0) < 0 ? -errno : 0;
}

static bool server_answers(const char *dir)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	_cleanup_close_ int dir_fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (dir_fd < 0 || fd < 0)
		return false;
	snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d" CONTROL_SOCKET, dir_fd);
	return connect(fd, (struct sockaddr *)&address, sizeof address) == 0 || errno == EAGAIN;
}

static void probe_existing(struct probe *probe, const struct stat *st)
{
	char socket_name[40];

	trial_socket(probe, socket_name, sizeof socket_name);
	if (!S_ISDIR(st->st_mode)) {
		probe_missing(probe, -ENOTDIR, "'%s' is not a directory", probe->run_dir);
		return;
	}
	if (st->st_uid != geteuid()) {
		probe_missing(probe, -EPERM, "'%s' belongs to user %u, not to user %u who runs this", probe->run_dir,
			      st->st_uid, geteuid());
		probe_remedy(probe, "run the server as user %u, or name another directory with --run-dir", st->st_uid);
		return;
	}
	int r = try_socket(probe->run_dir, socket_name);
	if (r < 0)
		probe_missing(probe, r, "no socket can be made in '%s': %s", probe->run_dir, strerror(-r));
	else if (server_answers(probe->run_dir))
		probe_ok(probe, "'%s' is there, and a server answers in it", probe->run_dir);
	else if ((st->st_mode & 07777) != 0700)
		probe_ok(probe, "'%s' is there, with mode %04o: the server will make that 0700", probe->run_dir,
			 st->st_mode & 07777);
	else
		probe_ok(probe, "'%s' is there, and a socket can be made in it", probe->run_dir);
}

/* What the server would do: make the directory, and a socket in it. */
static void probe_absent(struct probe *probe)
{
	char dir[4096];
	_cleanup_free_ char *parent = parent_of(probe->run_dir), *target = resolve(probe->run_dir);
	struct probe resolved = *probe;

	if (!target) {
		probe_missing(probe, -ENOENT, "'%s' can't be made: '%s' doesn't exist", probe->run_dir, parent ?: "");
		probe_remedy(probe, "mkdir -p '%s', or name another directory with --run-dir", parent ?: "");
		return;
	}
	resolved.run_dir = target;
	trial_dir(&resolved, dir, sizeof dir);
	if (mkdir(dir, 0700) < 0) {
		probe_missing(probe, -errno, "'%s' can't be made: %s", probe->run_dir, strerror(errno));
		return;
	}
	int r = try_socket(dir, "socket");
	rmdir(dir);
	if (r < 0)
		probe_missing(probe, r, "'%s' can be made, but no socket in it: %s", probe->run_dir, strerror(-r));
	else
		probe_ok(probe, "'%s' is not there yet, and can be made", probe->run_dir);
}

static void probe_run_dir(struct probe *probe)
{
	struct stat st;

	if (stat(probe->run_dir, &st) == 0)
		probe_existing(probe, &st);
	else if (errno == ENOENT)
		probe_absent(probe);
	else
		probe_missing(probe, -errno, "'%s': %s", probe->run_dir, strerror(errno));
}

static void clean_up(const struct probe *probe)
{
	char name[40], dir[4096];
	_cleanup_free_ char *target = resolve(probe->run_dir), *path = NULL;
	struct probe resolved = *probe;

	if (!target)
		return;
	resolved.run_dir = target;
	trial_socket(&resolved, name, sizeof name);
	if (asprintf(&path, "%s/%s", target, name) >= 0)
		unlink(path);
	trial_dir(&resolved, dir, sizeof dir - strlen("/socket"));
	size_t length = strlen(dir);
	snprintf(dir + length, sizeof dir - length, "/socket");
	unlink(dir);
	dir[length] = '\0';
	rmdir(dir);
}

/* ---- path ---- */

static void probe_path(struct probe *probe)
{
	_cleanup_free_ char *path = resolve(probe->run_dir);
	size_t length = path ? strlen(path) : strlen(probe->run_dir);

	if (length + strlen(CONTROL_SOCKET) > SOCKET_PATH_MAX) {
		probe_missing(probe, -ENAMETOOLONG, "%zu characters, while a socket's path has room for %zu", length,
			      SOCKET_PATH_MAX - strlen(CONTROL_SOCKET));
		return;
	}
	size_t id = SOCKET_PATH_MAX - FORK_SOCKET_OVERHEAD - length;
	if (id < FORK_ID_MAX)
		probe_degraded(probe, 0, "%zu characters, which leaves fork ids %zu of their %d", length, id,
			       FORK_ID_MAX);
	else
		probe_ok(probe, "%zu characters leave room for every fork id", length);
}

/* ---- filesystem ---- */

enum kind { LOCAL, FLEETING, REMOTE };

static const struct filesystem {
	long type;
	const char *name;
	enum kind kind;
} filesystems[] = {
	{ TMPFS_MAGIC, "tmpfs", LOCAL },
	{ EXT4_SUPER_MAGIC, "ext4", LOCAL },
	{ XFS_SUPER_MAGIC, "xfs", LOCAL },
	{ BTRFS_SUPER_MAGIC, "btrfs", LOCAL },
	{ F2FS_SUPER_MAGIC, "f2fs", LOCAL },
	{ RAMFS_MAGIC, "ramfs", LOCAL },
	{ 0x2fc12fc1, "zfs", LOCAL },
	{ (long)0xca451a4e, "bcachefs", LOCAL },
	{ OVERLAYFS_SUPER_MAGIC, "overlay", FLEETING },
	{ V9FS_MAGIC, "9p", REMOTE },
	{ NFS_SUPER_MAGIC, "nfs", REMOTE },
	{ (long)0xff534d42, "cifs", REMOTE },
	{ (long)0xfe534d42, "smb2", REMOTE },
	{ SMB_SUPER_MAGIC, "smb", REMOTE },
	{ 0x65735546, "fuse", REMOTE },
	{ 0x00c36400, "ceph", REMOTE },
	{ AFS_SUPER_MAGIC, "afs", REMOTE },
	{ 0x47504653, "gpfs", REMOTE },
	{ 0x0bd00bd0, "lustre", REMOTE },
	{ MSDOS_SUPER_MAGIC, "vfat", REMOTE },
};

static const struct filesystem *find_filesystem(long type)
{
	for (size_t i = 0; i < sizeof filesystems / sizeof *filesystems; i++)
		if ((filesystems[i].type & 0xffffffff) == (type & 0xffffffff))
			return &filesystems[i];
	return NULL;
}

static void say_filesystem(struct probe *probe, const struct statfs *fs)
{
	const struct filesystem *known = find_filesystem((long)fs->f_type);
	uint64_t free_bytes = (uint64_t)fs->f_bavail * (uint64_t)fs->f_bsize;
	char name[32], size[32];

	snprintf(name, sizeof name, "type 0x%lx", (unsigned long)fs->f_type & 0xffffffff);
	if (known)
		snprintf(name, sizeof name, "%s", known->name);
	format_bytes(free_bytes, size, sizeof size);
	if (free_bytes == 0 && fs->f_blocks > 0) {
		probe_missing(probe, -ENOSPC, "%s, full", name);
		probe_cost(probe, "the server can't write its lock and its templates' records there");
		probe_remedy(probe, "make room, or name another directory with --run-dir");
	} else if (known && known->kind == REMOTE) {
		probe_degraded(probe, 0, "%s, %s free", name, size);
	} else if (known && known->kind == FLEETING) {
		probe_degraded(probe, 0, "%s, %s free", name, size);
		probe_cost(probe, "a container's own layer: templates are forgotten with the container");
		probe_remedy(probe, "put the run directory on a volume or a tmpfs");
	} else if (free_bytes < FREE_WANTED && fs->f_blocks > 0) {
		probe_degraded(probe, 0, "%s, only %s free", name, size);
		probe_cost(probe, "adding templates fails once it is full");
		probe_remedy(probe, "make room, or name another directory with --run-dir");
	} else {
		probe_ok(probe, "%s, %s free", name, size);
	}
}

static void probe_filesystem(struct probe *probe)
{
	struct statfs fs;
	_cleanup_free_ char *parent = parent_of(probe->run_dir);

	if (statfs(probe->run_dir, &fs) == 0 || (parent && statfs(parent, &fs) == 0))
		say_filesystem(probe, &fs);
	else
		probe_missing(probe, -errno, "'%s': %s", probe->run_dir, strerror(errno));
}

const struct check run_dir_checks[] = {
	{ .name = "run_dir",
	  .title = "directory",
	  .uses = DOCTOR_SERVING,
	  .required = DOCTOR_SERVING,
	  .probe = probe_run_dir,
	  .clean_up = clean_up,
	  .cost = "the server doesn't start there",
	  .remedy = "name another directory with --run-dir, on a local filesystem that this user may write to" },
	{ .name = "run_dir_path",
	  .title = "length of its path",
	  .uses = DOCTOR_SERVING,
	  .required = DOCTOR_SERVING,
	  .probe = probe_path,
	  .cost = "sockets need short paths: with longer ids, forks are refused there",
	  .remedy =
		  "name a directory with a shorter path with --run-dir, or one for forks' sockets with fork create --dir" },
	{ .name = "run_dir_filesystem",
	  .title = "filesystem",
	  .uses = DOCTOR_SERVING,
	  .required = DOCTOR_SERVING,
	  .probe = probe_filesystem,
	  .cost = "sockets and locks may not work there, or not for other machines that mount it",
	  .remedy = "name a directory on a local filesystem with --run-dir, like /run/faultline" },
	{ 0 },
};
