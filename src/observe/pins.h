/* The instance's maps and programs under /sys/fs/bpf/faultline, for bpftool. */
#pragma once

#include "base/error.h"
#include "observe/programs.h"

struct pins {
	char dir[128]; /* "": nothing is pinned */
};

/*
 * Pins what bpftool should find, in a directory named after RUN_DIR's last part. What a dead server left there is removed first; a
 * directory that another living server uses, or that holds what isn't ours, is left alone, and a number added to the name. The caller holds
 * RUN_DIR's lock, so another server of the same run directory is a dead one.
 */
int pins_make(struct programs *programs, const char *run_dir, const char *tier, struct pins *ret, struct error *err);
void pins_remove(struct pins *pins);
