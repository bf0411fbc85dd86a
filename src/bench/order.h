/* Order against truth: what the parts of the group "order" share. docs/ordering.md says what is measured, and why. */
#pragma once

#include "bench/run.h"
#include "hotlist/hotlist.h"
#include "replay/guest.h"

/* Recordings of a case: where ten are merged, and elsewhere. */
#define ORDER_RUNS_MANY 10
#define ORDER_RUNS_FEW	3
#define ORDER_MERGED	3 /* of them make a list, as `faultline warmup` does by default */

/* The forks' template, as the server knows it. */
#define ORDER_TEMPLATE "order"

/* Which pages of the image come slowly. */
enum order_slow {
	SLOW_NONE,
	SLOW_ODD,    /* those that vCPUs with odd numbers touch first */
	SLOW_REMOTE, /* all of them, as over a network: each read waits, and together they have so much a second */
	SLOW_COLD,   /* whatever the disk makes of a cold page cache */
};

enum order_story {
	STORY_START,  /* forks start, and are recorded */
	STORY_SECOND, /* they have an older list prefetched meanwhile, and do something else than it was recorded from */
	STORY_LONG_LIFE /* they start, rest, and go on to touch many other pages */
};

struct situation {
	const char *id, *title;
	enum replay_vcpus vcpus;
	enum replay_pace pace;
	unsigned spread; /* the trace's touches dealt out to so many vCPUs; 0: as they are */
	unsigned cpus;	 /* that the vCPUs are pinned to; 0: as many as there are */
	enum order_slow slow;
	const char *inject; /* of SLOW_REMOTE: how slow, as `faultline template add --inject` takes it */
	enum order_story story;
	unsigned runs; /* ORDER_RUNS_… */
	bool quick;    /* is part of a quick look */
	bool kvm;      /* guests under KVM, and no processes */
};

/* A workload: two runs of the same guest. The first is recorded; its list is prefetched in the second. */
struct workload {
	const char *name;
	struct trace *traces[2];
	struct trace_image *image; /* has the pages with data of both */
	char image_path[400], slow_path[400];
	bool has_image;		  /* the file is there */
	struct hotlist *truth[2]; /* pages in the order of their touches */
};

/* One of a quick look, and the names of all; NULL behind the last one. */
#define WORKLOAD_QUICK 1
const char *workload_name(unsigned index);
const char *order_situation_name(unsigned index);
const char *ready_situation_name(unsigned index);

int workload_load(struct bench *bench, const char *name, struct workload *ret, struct error *err);
void workload_clear(struct workload *workload);
/* Writes the memory image, where that hasn't been done. */
int workload_make_image(struct workload *workload, struct error *err);
/*
 * The beginning of WHOLE: the first TOUCHES of each run, and an image of their pages alone. Neighbours stay neighbours, and no others become any.
 */
int workload_fold(const struct workload *whole, size_t touches, struct workload *ret, struct error *err);
/* Writes which pages are slow, for SLOW_ODD. */
int workload_write_slow(const struct workload *workload, const struct trace *const traces[2], struct error *err);
/* Has the image in the page cache, or nowhere near it. -EBUSY with code not_cold where it stays there. */
int workload_warm(const struct workload *workload, struct error *err);
int workload_evict(const struct workload *workload, struct error *err);

/* One case of the group under way: a workload in a situation. */
struct order_run {
	struct bench *bench;
	struct bench_server server;
	const struct situation *situation;
	const struct workload *workload;
	struct trace *spread[2]; /* the workload's, where the situation deals them out */
	bool has_template;
	const char *own_list; /* the template's own, or NULL */
	bool zeros;	      /* the template has a zero map */
	bool unobserved;      /* there is no observation here */
	bool kvm_tried;
	char vmm[4096];	       /* the program that runs guests under KVM */
	char kvm_missing[512]; /* why they are of no use here; empty: they are */
};

static inline const struct trace *order_trace(const struct order_run *run, unsigned number)
{
	return run->spread[number] ?: run->workload->traces[number];
}

/* What a fork was like. Lists are NULL where there is none. */
struct order_visit {
	unsigned trace;	      /* 0 or 1 */
	const char *hot_list; /* streamed; NULL: nothing is prefetched */
	bool ahead;	      /* it is there before the guest runs */
	bool kernel;	      /* what the kernel saw is wanted as well */
	bool unrecorded;      /* no lists are wanted: as in production */

	struct replay_result result;
	uint64_t faults; /* demand faults, as the server counts them */
	bool streamed;	 /* then, as the server counts them: */
	uint64_t late, missing, neighbours;
	struct hotlist *loop, *seen;
};

/* A guest of the run's situation that does what run TRACE of its workload did; where its memory comes from is the caller's to say. */
struct replay_config order_replay(const struct order_run *run, unsigned trace);
/* Wrong bytes are an error: then no figure means anything. */
int order_check_pages(const struct replay_result *result, struct error *err);
/* One fork, from its handshake to its end. Every page that its guest has is compared. */
int order_visit(struct order_run *run, struct order_visit *visit, struct error *err);
void order_visit_clear(struct order_visit *visit);
/* Where it says what was recorded of a fork, alive or gone. */
int order_collect(struct order_run *run, struct order_visit *visit, const char *id, struct error *err);

/* ---- guests under KVM ---- */

/* The program that runs them, as the options name it or where the build puts it; else KVM_MISSING says that there is none. */
int order_find_vmm(struct order_run *run, struct error *err);
/* Runs a guest of WHOLE's first pages, to find out whether the kernel sees what it touches; KVM_MISSING says why not. Once is enough. */
int order_try_kvm(struct order_run *run, const struct workload *whole, struct error *err);
/* As order_visit, by a guest under KVM. */
int order_visit_kvm(struct order_run *run, struct order_visit *visit, struct error *err);
/*
 * What the guest does: touches the trace's pages in the trace's order, whichever vCPU does it, and who has to wait for its turn sleeps or spins; or
 * (REPLAY_INDEPENDENT) each vCPU touches its own, with the same work between each two.
 */
int order_write_script(const struct trace *trace, enum replay_vcpus vcpus, const char *path, struct error *err);

/* ---- the template ---- */

/* The template that the situation's forks are of. Removing one that is not there is fine. */
int order_add_template(struct order_run *run, struct error *err);
int order_remove_template(struct order_run *run, struct error *err);
/* Removes it, and has the image out of the page cache. -EBUSY with code not_cold where it stays there. */
int order_make_cold(struct order_run *run, struct error *err);

/* ---- lists ---- */

/* LIST in order of a clock, or of address. NULL: out of memory. */
struct hotlist *order_by_clock(const struct hotlist *list, enum hot_clock clock);
struct hotlist *order_by_address(const struct hotlist *list);
/* FIRST, and behind it what MORE has besides. NULL: out of memory. */
struct hotlist *order_append(const struct hotlist *first, const struct hotlist *more);
/* The lists merged, as `faultline hotlist merge` does. RET_VOTE (may be NULL) says how. */
int order_merge(struct hotlist *const *lists, size_t count, struct hotlist **ret, char ret_vote[static 120],
		struct error *err);
/* How many of its pages were there already when they were touched. */
size_t order_count_present(const struct hotlist *list);
/* How many pages of A are in B. */
size_t order_count_common(const struct hotlist *a, const struct hotlist *b);

/* ---- a case ---- */

/* What was recorded in a case, and what was made of it. */
struct order_lists {
	struct hotlist *loop[ORDER_RUNS_MANY], *seen[ORDER_RUNS_MANY];
	struct hotlist *raw[ORDER_RUNS_MANY], *corrected[ORDER_RUNS_MANY];
	unsigned count;
	struct hotlist *merged[ORDER_RUNS_MANY / ORDER_MERGED]; /* of ORDER_MERGED runs each, one after another */
	unsigned merged_count;
	struct hotlist *all;  /* where there are many */
	struct hotlist *old;  /* of an earlier generation */
	struct hotlist *kept; /* that one, kept fresh by what was seen since */
};

void order_lists_clear(struct order_lists *lists);

/* Writes LIST where forks' servers find it. */
int order_save(struct order_run *run, const struct hotlist *list, char ret_path[static 400], struct error *err);

/* Records RUNS forks. */
int order_record(struct order_run *run, unsigned runs, struct order_lists *lists, struct error *err);
/* Merges what was recorded, and says in C's details how the vote went. */
int order_merge_all(struct order_run *run, struct order_lists *lists, struct bench_case *c, struct error *err);
/* Adds a side for each order to C, with how near to the truth it is. */
int order_judge(struct order_run *run, struct bench_case *c, const struct order_lists *lists, struct error *err);
/* Adds what the lists are worth to a later fork. */
int order_stream(struct order_run *run, struct bench_case *c, const struct order_lists *lists, struct error *err);

/* C's side of that id, made where there is none yet. */
struct side *order_side(struct bench_case *c, const char *id, const char *label);
