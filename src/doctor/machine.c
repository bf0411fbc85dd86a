#include "doctor/machine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

/* The value of a field of /proc/self/status as a number in BASE; 0 where there is none. */
static unsigned long long status_field(const char *name, int base)
{
	_cleanup_fclose_ FILE *f = fopen("/proc/self/status", "re");
	char line[512];
	size_t length = strlen(name);

	while (f && fgets(line, sizeof line, f))
		if (!strncmp(line, name, length) && line[length] == ':')
			return strtoull(line + length + 1, NULL, base);
	return 0;
}

bool has_capability(enum capability capability)
{
	return status_field("CapEff", 16) >> capability & 1;
}

bool in_user_namespace(void)
{
	unsigned long inside, outside, count;
	char line[128];

	return read_line("/proc/self/uid_map", line, sizeof line) == 0 &&
	       sscanf(line, "%lu %lu %lu", &inside, &outside, &count) == 3 &&
	       !(inside == 0 && outside == 0 && count >= UINT32_MAX);
}

bool has_seccomp_filter(void)
{
	return status_field("Seccomp", 10) == 2;
}

int read_line(const char *path, char *ret, size_t size)
{
	_cleanup_fclose_ FILE *f = fopen(path, "re");

	if (!f)
		return -errno;
	if (!fgets(ret, (int)size, f))
		return ferror(f) ? -EIO : -ENODATA;
	ret[strcspn(ret, "\n")] = '\0';
	return 0;
}

int read_number(const char *path, long long *ret)
{
	char line[64], *end;
	int r = read_line(path, line, sizeof line);

	if (r < 0)
		return r;
	long long number = strtoll(line, &end, 10);
	if (end == line)
		return -EINVAL;
	*ret = number;
	return 0;
}

/* Whether WORD is one of LIST's, which commas separate. */
static bool has_word(const char *list, const char *word)
{
	size_t length = strlen(word);

	for (const char *p = list; *p; p += strcspn(p, ","), p += *p == ',')
		if (strcspn(p, ",") == length && !strncmp(p, word, length))
			return true;
	return false;
}

/* Reads ROOT GROUP/NAME, or else ROOT/NAME. */
static int read_group_file(const char *root, const char *group, const char *name, char *ret, size_t size)
{
	char path[512];

	snprintf(path, sizeof path, "%s%s/%s", root, group, name);
	int r = read_line(path, ret, size);
	if (r == 0)
		return 0;
	snprintf(path, sizeof path, "%s/%s", root, name);
	return read_line(path, ret, size);
}

int read_cgroup(const char *controller, const char *name_v2, const char *name_v1, char *ret, size_t size)
{
	_cleanup_fclose_ FILE *f = fopen("/proc/self/cgroup", "re");
	char line[512];
	int r = -ENOENT;

	if (!f)
		return -errno;
	/* "4:memory:/a/b" on a hierarchy of the controller's own, "0::/a/b" on the unified one. */
	while (r < 0 && fgets(line, sizeof line, f)) {
		line[strcspn(line, "\n")] = '\0';
		char *list = strchr(line, ':'), *group = list ? strchr(list + 1, ':') : NULL;
		if (!group)
			continue;
		*group++ = '\0';
		list++;
		if (!strcmp(group, "/"))
			group = "";
		char root[128];
		if (*list == '\0') {
			r = read_group_file("/sys/fs/cgroup", group, name_v2, ret, size);
		} else if (has_word(list, controller)) {
			snprintf(root, sizeof root, "/sys/fs/cgroup/%s", controller);
			r = read_group_file(root, group, name_v1, ret, size);
		}
	}
	return r;
}

const char *errno_name(int error)
{
	static _Thread_local char buffer[24];
	const char *name = strerrorname_np(-error);

	if (name)
		return name;
	snprintf(buffer, sizeof buffer, "error %d", -error);
	return buffer;
}

const char *format_bytes(uint64_t bytes, char *buffer, size_t size)
{
	static const char *const units[] = { "bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	double n = (double)bytes;
	unsigned unit = 0;

	while (n >= 1024 && unit < 6) {
		n /= 1024;
		unit++;
	}
	snprintf(buffer, size, n < 10 && n != (double)(uint64_t)n ? "%.1f %s" : "%.0f %s", n, units[unit]);
	return buffer;
}
