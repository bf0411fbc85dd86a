/* What the parts of `faultline profile` share. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "cli/child.h"
#include "cli/fault_around.h"
#include "cli/image_maps.h"
#include "cli/map_watch.h"
#include "cli/options.h"
#include "hotlist/hotlist.h"

struct observe;

enum profile_end { PROFILE_RUNS, PROFILE_DURATION, PROFILE_SETTLED, PROFILE_GONE, PROFILE_STOPPED };

struct profile {
	const struct cli_args *args;
	const char *list_path, *memory; /* MEMORY: NULL to be guessed */
	const char *const *command;	/* NULL: a process that runs already */
	enum hotlist_format format;
	double duration_s, settle_s, map_s, grace_s; /* DURATION_S: 0 without end */
	bool wait, progress;

	pid_t pid; /* whose memory it is; 0: not known so far */
	int pidfd;
	struct child child;
	struct map_watch watch;
	uint64_t watch_until_ns; /* the image is mapped, and the rest of it should be by then; 0: it isn't */
	uint64_t started_ns;
	int signals; /* a signalfd */
	int interrupted_by;
	int failed; /* negative: what went wrong as something was mapped, with FAILURE */
	struct error failure;

	struct fault_around around;
	struct observe *observe;
	struct image_maps maps; /* as observed */
	bool attached;
	uint64_t fork, attached_ns;
	uint64_t present_before; /* bytes */
	uint64_t mapped;	 /* the same later, as seen last: what was mapped along with the touches is in it */
	uint64_t touches, mark_touches, mark_ns;
	enum profile_end end;
	double window_s;
	bool kvm;
};

/* ---- profile_image.c: the image's mappings, and the list in their terms ---- */

/* Looks for the image in PID's memory, and has it observed, or what has changed of it. 0, or -ENOENT: it is not there so far. */
int profile_look(struct profile *profile, pid_t pid, struct error *err);
/* All that the observer saw, as a list of regions and offsets. */
int profile_list(struct profile *profile, struct hotlist **ret, struct error *err);

/* ---- profile_report.c ---- */

int profile_report(const struct profile *profile, const struct hotlist *list);
