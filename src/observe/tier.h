/* The tiers of observation as a table, and trying them: its programs are loaded and attached before a tier counts. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

#define TIER_PROGRAMS_MAX 8
#define TIER_REASON_SIZE  200

/* Best first. A program named here exists in the skeleton. */
struct tier {
	const char *name;
	const char *what;			     /* one line for people */
	const char *programs[TIER_PROGRAMS_MAX + 1]; /* all of them must work; NULL-terminated */
	bool waits_by_switch;			     /* see bpf/maps.bpf.h */
};

extern const struct tier tiers[];
extern const size_t tier_count;

/* What a tier may have besides. */
struct tier_extra {
	const char *name;	 /* "kvm_page_fault" */
	const char *what;	 /* what is lost without it */
	const char *programs[3]; /* the first that works is used; NULL-terminated */
};

extern const struct tier_extra tier_extras[];
extern const size_t tier_extra_count;

/* What trying one came to. */
struct tier_trial {
	bool works;
	const char *program;	       /* that works, for an extra; that doesn't, for a tier */
	char reason[TIER_REASON_SIZE]; /* why not: a sentence without a full stop; "" where it works */
	int error;		       /* negative errno, or 0 */
};

/* No fork is observed by it; the programs are gone again when it returns. */
void tier_try(const struct tier *tier, struct tier_trial *ret);
void tier_extra_try(const struct tier_extra *extra, struct tier_trial *ret);
/* By name; NULL: there is none. */
const struct tier *tier_find(const char *name);
