/* Stands in for libFuzzer where there is none: runs a fuzz target over files, or over those in directories. */
#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "fuzz/fuzz.h"

static void cleanup_closedir(DIR **directory)
{
	if (*directory)
		closedir(*directory);
}

static int run_file(const char *path)
{
	_cleanup_fclose_ FILE *file = fopen(path, "re");
	_cleanup_free_ uint8_t *data = NULL;
	struct stat st;

	if (!file || fstat(fileno(file), &st) < 0) {
		fprintf(stderr, "cannot read %s: %s\n", path, strerror(errno));
		return -1;
	}
	size_t size = (size_t)st.st_size;
	data = malloc(size ?: 1);
	if (!data || fread(data, 1, size, file) != size) {
		fprintf(stderr, "cannot read %s whole\n", path);
		return -1;
	}
	/* The last line of a test that dies names what it died of. */
	fprintf(stderr, "%s\n", path);
	LLVMFuzzerTestOneInput(data, size);
	return 1;
}

/* How many inputs were run, or -1. */
static int run_directory(const char *path)
{
	_cleanup_(cleanup_closedir) DIR *directory = opendir(path);
	const struct dirent *entry;
	int count = 0;

	if (!directory) {
		fprintf(stderr, "cannot read the directory %s: %s\n", path, strerror(errno));
		return -1;
	}
	while ((entry = readdir(directory))) {
		_cleanup_free_ char *name = NULL;

		if (entry->d_name[0] == '.')
			continue;
		if (asprintf(&name, "%s/%s", path, entry->d_name) < 0)
			return -1;
		if (run_file(name) < 0)
			return -1;
		count++;
	}
	return count;
}

int main(int argc, char **argv)
{
	int count = 0;

	for (int i = 1; i < argc; i++) {
		struct stat st;
		bool is_directory = stat(argv[i], &st) == 0 && S_ISDIR(st.st_mode);
		int n = is_directory ? run_directory(argv[i]) : run_file(argv[i]);

		if (n < 0)
			return 1;
		count += n;
	}
	if (count == 0) {
		fprintf(stderr, "usage: %s FILE|DIRECTORY...: there was no input to run\n", argv[0]);
		return 1;
	}
	printf("%d inputs\n", count);
	return 0;
}
