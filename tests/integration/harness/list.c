#include "integration/harness/list.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "integration/harness/check.h"

static void put_varint(FILE *f, uint64_t value)
{
	for (; value >= 0x80; value >>= 7)
		fputc((int)(value & 0x7f) | 0x80, f);
	fputc((int)value, f);
}

void list_write(const char *path, const struct list_entry *entries, size_t count)
{
	FILE *f = fopen(path, "we");

	if (!f)
		fail_msg("cannot write %s: %s", path, strerror(errno));
	fputs("HPL1", f);
	put_varint(f, count);
	for (size_t i = 0; i < count; i++) {
		put_varint(f, entries[i].region);
		put_varint(f, entries[i].offset);
	}
	if (fclose(f) != 0)
		fail_msg("cannot write %s: %s", path, strerror(errno));
}

/* The number in column COLUMN of a CSV line. */
static bool csv_number(const char *line, int column, uint64_t *ret)
{
	for (; column > 0; column--) {
		line = strchr(line, ',');
		if (!line++)
			return false;
	}
	return sscanf(line, "%" SCNu64, ret) == 1;
}

static int csv_column(const char *header, const char *name)
{
	size_t length = strlen(name);
	int column = 0;

	for (const char *at = header; at; at = strchr(at, ','), column++) {
		at += *at == ',';
		if (!strncmp(at, name, length) && strchr(",\r\n", at[length]))
			return column;
	}
	return -1;
}

struct list_entry *list_read_csv(const char *path, size_t *ret_count)
{
	struct list_entry *entries = NULL;
	size_t count = 0;
	char line[512];
	FILE *f = fopen(path, "re");

	if (!f || !fgets(line, sizeof line, f))
		fail_msg("cannot read a header from %s", path);
	int region = csv_column(line, "region"), offset = csv_column(line, "offset");
	if (region < 0 || offset < 0)
		fail_msg("%s has no columns region and offset: %s", path, line);
	while (fgets(line, sizeof line, f)) {
		entries = reallocarray(entries, count + 1, sizeof *entries);
		if (!csv_number(line, region, &entries[count].region) ||
		    !csv_number(line, offset, &entries[count].offset))
			fail_msg("%s: a line without numbers: %s", path, line);
		count++;
	}
	fclose(f);
	*ret_count = count;
	return entries;
}
