/* Pins, and whose they are. */
#include "observe/pins.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/types.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/cleanup.h"
#include <observe_bpf.skel.h>

#define BPFFS	   "/sys/fs/bpf"
#define PIN_BASE   BPFFS "/faultline"
#define NAMES_MAX  16 /* servers on run directories of the same name */
#define SERVER_PIN "server"

/* When the process was started, in clock ticks since boot; 0: there is none. */
static uint64_t process_start(uint32_t pid)
{
	char path[40], text[1024];

	snprintf(path, sizeof path, "/proc/%u/stat", pid);
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (n <= 0)
		return 0;
	text[n] = 0;
	/* The name may hold anything, so count from its last parenthesis: the state is field 3, the start field 22. */
	const char *at = strrchr(text, ')');
	for (int field = 2; at && field < 22; field++)
		at = strchr(at + 1, ' ');
	return at ? strtoull(at, NULL, 10) : 0;
}

/* Whose pins lie in DIR; -ENOENT: no server's. */
static int read_info(const char *dir, struct server_info *ret)
{
	char path[200];
	uint32_t zero = 0;

	snprintf(path, sizeof path, "%s/" SERVER_PIN, dir);
	_cleanup_close_ int fd = bpf_obj_get(path);
	if (fd < 0)
		return errno == ENOENT ? -ENOENT : -errno;

	struct bpf_map_info map = { 0 };
	uint32_t length = sizeof map;
	if (bpf_obj_get_info_by_fd(fd, &map, &length) < 0 || map.value_size != sizeof *ret ||
	    bpf_map_lookup_elem(fd, &zero, ret) < 0)
		return -ENOENT;
	ret->run_dir[sizeof ret->run_dir - 1] = 0;
	return 0;
}

/* Whether they are of a server that has ended, or an earlier one of RUN_DIR. */
static int is_stale(const char *dir, const char *run_dir)
{
	struct server_info info;
	int r = read_info(dir, &info);

	return r < 0 ? r : !strcmp(info.run_dir, run_dir) || process_start(info.pid) != info.started_ticks;
}

static bool is_own(const char *dir)
{
	struct server_info info;

	return read_info(dir, &info) == 0 && info.pid == (uint32_t)getpid();
}

/* Only pins can lie in such a directory, and those of a dead server keep nothing running. */
static void remove_dir(const char *path)
{
	DIR *dir = opendir(path);

	if (!dir)
		return;
	for (struct dirent *entry; (entry = readdir(dir));)
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			unlinkat(dirfd(dir), entry->d_name, 0);
	closedir(dir);
	rmdir(path);
}

/* A name that bpffs takes: it refuses dots. */
static void instance_name(const char *run_dir, char *ret, size_t size)
{
	const char *name = strrchr(run_dir, '/');
	size_t n = 0;

	name = name ? name + 1 : run_dir;
	for (; *name && n < size - 1; name++)
		ret[n++] = isalnum((unsigned char)*name) || *name == '-' ? *name : '_';
	ret[n] = 0;
	if (n == 0)
		snprintf(ret, size, "root");
}

/* Makes a directory that nobody else uses. */
static int make_dir(const char *run_dir, char *ret, size_t size, struct error *err)
{
	char name[64];

	instance_name(run_dir, name, sizeof name);
	if (mkdir(PIN_BASE, 0700) < 0 && errno != EEXIST)
		return error_set(err, -errno, "no_pins", "can't make " PIN_BASE ": %m");
	for (int i = 1; i <= NAMES_MAX; i++) {
		snprintf(ret, size, i == 1 ? PIN_BASE "/%s" : PIN_BASE "/%s-%d", name, i);
		if (mkdir(ret, 0700) == 0)
			return 0;
		if (errno != EEXIST)
			return error_set(err, -errno, "no_pins", "can't make %s: %m", ret);
		int stale = is_stale(ret, run_dir);
		/* An empty one is nobody's: a server died before it had pinned anything. rmdir alone removes that. */
		if (stale == -ENOENT && rmdir(ret) == 0)
			stale = 1;
		else if (stale == 1)
			remove_dir(ret);
		if (stale == 1 && mkdir(ret, 0700) == 0)
			return 0;
	}
	return error_set(err, -EEXIST, "no_pins",
			 PIN_BASE "/%s and its "
				  "%d alternatives are in use, or hold what isn't faultline's; remove what is left over",
			 name, NAMES_MAX - 1);
}

static int pin(int fd, const char *dir, const char *name, struct error *err)
{
	char path[200];

	snprintf(path, sizeof path, "%s/%s", dir, name);
	if (bpf_obj_pin(fd, path) < 0)
		return error_set(err, -errno, "no_pins", "can't pin %s: %m", path);
	return 0;
}

static int pin_all(struct programs *programs, const char *run_dir, const char *tier, const char *dir, struct error *err)
{
	struct server_info info = { .pid = (uint32_t)getpid(), .event_version = FL_EVENT_VERSION };
	struct observe_bpf *skeleton = programs->skeleton;
	struct bpf_program *program;
	uint32_t zero = 0;

	info.started_ticks = process_start(info.pid);
	snprintf(info.tier, sizeof info.tier, "%s", tier);
	snprintf(info.run_dir, sizeof info.run_dir, "%s", run_dir);
	if (bpf_map_update_elem(bpf_map__fd(skeleton->maps.server), &zero, &info, BPF_ANY) < 0)
		return error_set(err, -errno, "no_pins", "can't write the map '%s': %m", SERVER_PIN);
	int r = pin(bpf_map__fd(skeleton->maps.server), dir, SERVER_PIN, err);
	if (r == 0)
		r = pin(bpf_map__fd(skeleton->maps.forks), dir, "forks", err);
	bpf_object__for_each_program(program, skeleton->obj) if (r == 0 && bpf_program__fd(program) >= 0) r =
		pin(bpf_program__fd(program), dir, bpf_program__name(program), err);
	return r;
}

int pins_make(struct programs *programs, const char *run_dir, const char *tier, struct pins *ret, struct error *err)
{
	struct statfs fs;

	ret->dir[0] = 0;
	if (statfs(BPFFS, &fs) < 0 || (unsigned long)fs.f_type != BPF_FS_MAGIC)
		return error_set(err, -ENOTDIR, "no_pins",
				 "there is no BPF file system at " BPFFS ": mount -t bpf bpf " BPFFS);

	_cleanup_free_ char *whole = realpath(run_dir, NULL);
	if (!whole)
		return error_set(err, -errno, "no_pins", "can't resolve '%s': %m", run_dir);
	char dir[sizeof ret->dir];
	int r = make_dir(whole, dir, sizeof dir, err);
	if (r < 0)
		return r;
	r = pin_all(programs, whole, tier, dir, err);
	if (r < 0) {
		remove_dir(dir);
		return r;
	}
	memcpy(ret->dir, dir, sizeof dir);
	return 0;
}

void pins_remove(struct pins *pins)
{
	if (!pins->dir[0])
		return;
	/* Another server of the same run directory may have taken the place since its lock was given up. */
	if (is_own(pins->dir))
		remove_dir(pins->dir);
	rmdir(PIN_BASE); /* the last one turns out the light */
	pins->dir[0] = 0;
}
