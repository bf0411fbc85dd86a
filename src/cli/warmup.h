/* What the parts of `faultline warmup` share: one job, from its options to its list. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "cli/options.h"
#include "hotlist/hotlist.h"
#include "hotlist/merge.h"

/* What became of one warm-up fork. */
struct warmup_run {
	struct hotlist *list;
	char name[24]; /* "run 1" */
	enum hot_window_end end;
	double window_s;	/* from the VMM's connection */
	bool cold;		/* the image was put out of the page cache before, and ... */
	unsigned left_permille; /* ... so much of it stayed */
};

struct warmup_job {
	const struct cli_args *args;
	const char *template;	    /* as named by the user */
	const char *const *command; /* ends with NULL */
	const char *list_path;	    /* NULL: the template's own, until that is known */
	enum hotlist_format format;
	unsigned runs;
	double connect_s, window_s, settle_s, grace_s;
	bool wait;	 /* for the command's own end */
	bool vary_cache; /* every other run with a cold image */
	bool progress;
	int signals;	    /* a signalfd: whoever interrupts us gets everything cleaned up */
	int interrupted_by; /* the signal; 0: none */

	char *run_dir;				  /* absolute, for the command */
	char *memory, *state, *inject, *own_list; /* of the template; NULL: none */
	char *copy;				  /* of the image, which nobody else has mapped; NULL: none */
	char stand_in[64]; /* template of the same image that forks are made from while it is to be cold; "": none */

	struct warmup_run *done; /* RUNS of them */
	unsigned done_count;
};

/* Whether a signal that ends the program has come; reads it, and says which: 0 for none. */
int warmup_read_signal(const struct warmup_job *job);
int warmup_no_memory(struct error *err);

/* ---- warmup_run.c ---- */

/* Runs the command as a recorded fork, the NUMBERth from 0, and fills job->done[NUMBER]. Leaves neither process nor fork behind. */
int warmup_run_once(struct warmup_job *job, unsigned number, struct error *err);

/* ---- warmup_template.c: the template's image, in the page cache or not ---- */

/* Asks the server for the template. */
int warmup_template_get(struct warmup_job *job, struct error *err);
/* The name of the template to make forks of. */
const char *warmup_template_name(const struct warmup_job *job);
/* Puts the image out of the page cache, as far as that goes, and notes how far that was. */
int warmup_template_cool(struct warmup_job *job, struct warmup_run *run, struct error *err);
/* Forgets the stand-in, and removes the copy. */
void warmup_template_clear(struct warmup_job *job);

/* ---- warmup_report.c ---- */

/* Prints what the runs brought. Returns the exit code. */
int warmup_report(const struct warmup_job *job, const struct merge_result *merged);
