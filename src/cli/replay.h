/* What the parts of `faultline replay` share: one job, from its options to its figures. */
#pragma once

#include <jansson.h>
#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>

#include "cli/options.h"
#include "replay/guest.h"

/* Where the guest's pages come from. */
enum replay_source {
	SOURCE_OWN_SERVER, /* started for this */
	SOURCE_RUN_DIR,	   /* the server that serves in a run directory */
	SOURCE_SOCKET,	   /* whatever listens on a socket */
	SOURCE_PLAIN,
	SOURCE_PRESENT,
};

/* One run, with what the server counted (NULL: it can't be asked). */
struct replay_done {
	struct replay_result result;
	json_t *server;
};

struct replay_job {
	const struct cli_args *args;
	const char *trace_path;
	enum replay_source source;
	struct trace *trace;
	struct trace_image *image;
	uint64_t seed;
	enum replay_vcpus vcpus;
	enum replay_pace pace;
	unsigned spread; /* deal the touches out to so many vCPUs; 0: leave them as they are */
	int *cpus;	 /* for the vCPUs' threads */
	size_t cpu_count;
	unsigned runs;
	bool cold, record;
	const char *prefetch; /* "eager" or "stream"; NULL: none */
	bool wait;	      /* for the prefetch, before the guest runs */
	char *dir;	      /* for all that is temporary; removed at the end; NULL: none so far */
	char *template;	      /* the image's file */
	int signals;	      /* a signalfd: whoever interrupts us gets everything cleaned up */

	struct cli_args api; /* names the server's run directory */
	char *run_dir;
	pid_t server; /* one of our own; 0: none */
	int server_pidfd;
	char name[64]; /* of the template at the server, and of its forks with a number behind it */
	bool has_template;

	struct replay_done *done; /* RUNS of them */
	unsigned done_count;
};

/* Whether the pages come from a faultline server that can be asked for things. */
static inline bool replay_has_api(const struct replay_job *job)
{
	return job->source == SOURCE_OWN_SERVER || job->source == SOURCE_RUN_DIR;
}

/* ---- replay_options.c ---- */

/* Fills what the command line says. Returns EXIT_OK, or another exit code after a message. */
int replay_parse_options(struct replay_job *job);

/* ---- replay_image.c ---- */

/* Makes job->template, or takes the one that is given, and has it in the page cache unless it is to be cold. */
int replay_prepare_image(struct replay_job *job, struct error *err);
/* Puts it out of the page cache. -EBUSY with code not_cold where it stays there. */
int replay_evict_image(const struct replay_job *job, struct error *err);

/* ---- replay_server.c: the server's side ---- */

/* Makes job->dir where there is none yet. */
int replay_make_dir(struct replay_job *job, struct error *err);
/* Where it is to be a server of our own, starts it. */
int replay_server_start(struct replay_job *job, struct error *err);
/* Makes the image a template, and a fork of it; *RET is the fork's socket, which the caller frees. NUMBER: of the run. */
int replay_fork_create(struct replay_job *job, unsigned number, char **ret, struct error *err);
/* Until the fork has its prefetched pages. */
int replay_fork_await_prefetched(struct replay_job *job, unsigned number, struct error *err);
/* What it counted, from *RET on the caller's. Saves its recording where one is wanted. Forgets it. */
int replay_fork_finish(struct replay_job *job, unsigned number, json_t **ret, struct error *err);
/* Forgets the template, and a fork that is left over. */
int replay_template_remove(struct replay_job *job, struct error *err);
/* Ends our own server. -EIO where it did not end well. */
int replay_server_stop(struct replay_job *job, struct error *err);
/* The end of our own server's log, on stderr: it will be gone. */
void replay_server_show_log(const struct replay_job *job);

/* Whether a signal that ends the program has come; reads it, and says which: 0 for none. */
int replay_interrupted(const struct replay_job *job);

/* ---- replay_report.c ---- */

/* Prints what job->done has to say. Returns the exit code. */
int replay_report(const struct replay_job *job);
