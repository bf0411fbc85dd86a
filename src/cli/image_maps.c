/* Mappings of a memory image: see image_maps.h. */
#include "cli/image_maps.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* A process with more mappings of files than this is no VMM. */
#define FILES_MAX 4096
#define DELETED	  " (deleted)"

/* One line of /proc/PID/maps. */
struct line {
	uint64_t start, end, offset, device, inode;
	char permissions[8];
	const char *path;
};

struct file {
	uint64_t device, inode, size;
	bool executable, shared;
	char *path;
};

struct files {
	struct file *all;
	size_t count;
};

void image_maps_clear(struct image_maps *maps)
{
	free(maps->maps);
	*maps = (struct image_maps){ .maps = NULL };
}

static void files_clear(struct files *files)
{
	for (size_t i = 0; i < files->count; i++)
		free(files->all[i].path);
	free(files->all);
}

/* False: the mapping is of no file. Cuts TEXT at its end. */
static bool parse_line(char *text, struct line *ret)
{
	unsigned major, minor;
	int path = 0;

	text[strcspn(text, "\n")] = '\0';
	if (sscanf(text, "%" SCNx64 "-%" SCNx64 " %7s %" SCNx64 " %x:%x %" SCNu64 " %n", &ret->start, &ret->end,
		   ret->permissions, &ret->offset, &major, &minor, &ret->inode, &path) < 7)
		return false;
	ret->device = makedev(major, minor);
	ret->path = text + path;
	return ret->inode && path && *ret->path == '/';
}

static FILE *open_maps(pid_t pid, struct error *err)
{
	char path[64];

	snprintf(path, sizeof path, "/proc/%d/maps", (int)pid);
	FILE *file = fopen(path, "re");
	if (!file && errno == ENOENT)
		errno = ESRCH;
	if (!file)
		error_set(err, -errno, errno == ESRCH ? "no_process" : "not_permitted",
			  errno == ESRCH ? "there is no process %d" : "cannot read the mappings of process %d: %m",
			  (int)pid);
	return file;
}

/* ---- which file ---- */

static struct file *find_file(struct files *files, const struct line *line)
{
	for (size_t i = 0; i < files->count; i++)
		if (files->all[i].device == line->device && files->all[i].inode == line->inode)
			return &files->all[i];
	if (files->count == FILES_MAX)
		return NULL;
	if (!files->all && !(files->all = calloc(FILES_MAX, sizeof *files->all)))
		return NULL;

	struct file *file = &files->all[files->count];

	*file = (struct file){ .device = line->device, .inode = line->inode, .path = strdup(line->path) };
	if (!file->path)
		return NULL;
	files->count++;
	return file;
}

static void count_line(struct files *files, const struct line *line)
{
	struct file *file = find_file(files, line);

	if (!file)
		return;
	file->size += line->end - line->start;
	file->executable = file->executable || strchr(line->permissions, 'x');
	file->shared = file->shared || strchr(line->permissions, 's');
}

/* As maps name it: file systems in layers tell other numbers there than stat() does, so its path counts as well. */
static bool is_the_file(const struct file *file, const struct stat *wanted, const char *path)
{
	size_t length = strlen(path);

	if (file->device == wanted->st_dev && file->inode == wanted->st_ino)
		return true;
	return !strncmp(file->path, path, length) && (!file->path[length] || !strcmp(file->path + length, DELETED)) &&
	       file->inode == wanted->st_ino;
}

static const struct file *find_named(const struct files *files, const char *name, struct error *err)
{
	_cleanup_free_ char *path = realpath(name, NULL);
	struct stat wanted;

	if (!path || stat(path, &wanted) < 0) {
		error_set(err, -errno, "bad_memory", "cannot look at the memory image %s: %m", name);
		return NULL;
	}
	for (size_t i = 0; i < files->count; i++)
		if (is_the_file(&files->all[i], &wanted, path))
			return &files->all[i];
	error_set(err, -ENOENT, "not_mapped", "the process has not mapped %s", name);
	return NULL;
}

/* A library that is just being mapped has nothing executable so far. */
static bool is_program(const struct file *file)
{
	_cleanup_close_ int fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	char start[4];

	return fd >= 0 && pread(fd, start, sizeof start, 0) == (ssize_t)sizeof start &&
	       !memcmp(start, "\177ELF", sizeof start);
}

static const struct file *find_largest(const struct files *files, struct error *err)
{
	const struct file *largest = NULL;

	for (size_t i = 0; i < files->count; i++) {
		const struct file *file = &files->all[i];
		if (!file->executable && file->size >= IMAGE_GUESS_MIN && (!largest || file->size > largest->size) &&
		    !is_program(file))
			largest = file;
	}
	if (!largest)
		error_set(err, -ENOENT, "not_mapped",
			  "the process has mapped no file that could be a guest's memory: name it with --memory");
	return largest;
}

/* ---- its pieces ---- */

static int by_offset(const void *a, const void *b)
{
	const struct image_map *x = a, *y = b;

	return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* A change of protection cuts a mapping in two, which are one still. */
static void join_pieces(struct image_maps *maps)
{
	size_t kept = 0;

	qsort(maps->maps, maps->count, sizeof *maps->maps, by_offset);
	for (size_t i = 1; i < maps->count; i++) {
		struct image_map *last = &maps->maps[kept];

		if (last->offset + last->size == maps->maps[i].offset &&
		    last->address + last->size == maps->maps[i].address)
			last->size += maps->maps[i].size;
		else
			maps->maps[++kept] = maps->maps[i];
	}
	maps->count = maps->count ? kept + 1 : 0;
}

static int add_piece(struct image_maps *maps, const struct line *line)
{
	struct image_map *more = realloc(maps->maps, (maps->count + 1) * sizeof *more);

	if (!more)
		return -ENOMEM;
	maps->maps = more;
	maps->maps[maps->count++] = (struct image_map){
		.address = line->start,
		.size = line->end - line->start,
		.offset = line->offset,
	};
	maps->size += line->end - line->start;
	return 0;
}

static void cut_deleted(char *path)
{
	size_t length = strlen(path), cut = strlen(DELETED);

	if (length > cut && !strcmp(path + length - cut, DELETED))
		path[length - cut] = '\0';
}

int image_maps_read(pid_t pid, const char *file, struct image_maps *ret, struct error *err)
{
	_cleanup_(files_clear) struct files files = { .all = NULL };
	_cleanup_image_maps_ struct image_maps maps = { .maps = NULL };
	_cleanup_fclose_ FILE *lines = open_maps(pid, err);
	_cleanup_free_ char *text = NULL;
	struct line line;
	size_t size = 0;

	if (!lines)
		return -errno;
	while (getline(&text, &size, lines) > 0)
		if (parse_line(text, &line))
			count_line(&files, &line);

	const struct file *image = file ? find_named(&files, file, err) : find_largest(&files, err);

	if (!image)
		return -ENOENT;
	rewind(lines);
	while (getline(&text, &size, lines) > 0)
		if (parse_line(text, &line) && line.device == image->device && line.inode == image->inode &&
		    add_piece(&maps, &line) < 0)
			return error_set(err, -ENOMEM, "no_memory", "there is not enough memory");
	if (!maps.count)
		return error_set(err, -ENOENT, "not_mapped", "the process has just unmapped %s", image->path);
	join_pieces(&maps);
	snprintf(maps.path, sizeof maps.path, "%s", image->path);
	cut_deleted(maps.path);
	maps.device = image->device;
	maps.inode = image->inode;
	maps.shared = image->shared;
	*ret = maps;
	maps.maps = NULL;
	return 0;
}

/* ---- the process ---- */

uint64_t image_maps_present(pid_t pid, const struct image_maps *maps)
{
	const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), present_bit = 1ull << 63;
	uint64_t entries[512], present = 0;
	char path[64];

	snprintf(path, sizeof path, "/proc/%d/pagemap", (int)pid);
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	for (size_t i = 0; fd >= 0 && i < maps->count; i++) {
		uint64_t first = maps->maps[i].address / page, end = first + maps->maps[i].size / page;

		while (first < end) {
			size_t want = end - first < 512 ? (size_t)(end - first) : 512;
			ssize_t n = pread(fd, entries, want * 8, (off_t)(first * 8));

			if (n <= 0)
				break;
			for (ssize_t k = 0; k < n / 8; k++)
				present += entries[k] & present_bit ? page : 0;
			first += (uint64_t)n / 8;
		}
	}
	return present;
}

bool process_has_kvm(pid_t pid)
{
	char path[64], target[64];
	bool found = false;

	snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
	DIR *dir = opendir(path);
	if (!dir)
		return false;
	for (const struct dirent *entry; !found && (entry = readdir(dir));) {
		ssize_t n = readlinkat(dirfd(dir), entry->d_name, target, sizeof target - 1);

		target[n > 0 ? n : 0] = '\0';
		found = !strcmp(target, "anon_inode:kvm-vm");
	}
	closedir(dir);
	return found;
}
