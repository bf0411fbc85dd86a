/* The server that is measured: a `faultline serve` of the run's own, and what is asked of it over its API. */
#pragma once

#include <jansson.h>
#include <stdint.h>

#include "bench/bench.h"
#include "bench/image.h"
#include "bench/process.h"

#define SOCKET_PATH_SIZE 108

struct bench_server {
	struct processes *processes;
	const struct bench_api *api;
	void *client;
	struct process *process;
	int pidfd;
};

/* Starts it in DIR/run and returns when it serves. */
int bench_server_start(struct processes *processes, const struct bench_options *options, const char *dir,
		       struct bench_server *ret, struct error *err);
/* The same with --observe: "auto", "off", "require"; NULL: as it does by itself. */
int bench_server_start_observed(struct processes *processes, const struct bench_options *options, const char *dir,
				const char *observe, struct bench_server *ret, struct error *err);
/* It must end with status 0. */
int bench_server_stop(struct bench_server *server, struct error *err);
/* Leaves the process to processes_close. Twice is fine. */
void bench_server_drop(struct bench_server *server);

int bench_server_add_template(struct bench_server *server, const char *name, const struct bench_image *image,
			      struct error *err);
/* INJECT: makes it slow, as `faultline template add --inject` does; may be NULL. */
int bench_server_add_slow_template(struct bench_server *server, const char *name, const char *path, const char *inject,
				   const char *hot_list, bool zeros, struct error *err);
int bench_server_show_template(struct bench_server *server, const char *name, json_t **ret, struct error *err);
int bench_server_remove_template(struct bench_server *server, const char *name, struct error *err);
/* HOT_LIST: prefetched eagerly; NULL: nothing is prefetched. */
int bench_server_create_fork(struct bench_server *server, const char *template, const char *id, const char *hot_list,
			     char ret_socket[static SOCKET_PATH_SIZE], struct error *err);
/* The same with all that can be said of it. */
struct bench_fork {
	const char *template, *id;
	const char *hot_list; /* NULL: nothing is prefetched */
	bool stream;	      /* beside the guest; else before it runs */
	bool record;
};
int bench_server_create(struct bench_server *server, const struct bench_fork *fork,
			char ret_socket[static SOCKET_PATH_SIZE], struct error *err);
/* Its guest is ready: what is recorded of it ends here. */
int bench_server_say_ready(struct bench_server *server, const char *id, struct error *err);
/* Bytes of what was recorded of a fork, in order, FROM "loop" or "kernel". */
int bench_server_fetch_list(struct bench_server *server, const char *id, const char *from, void **ret_data,
			    size_t *ret_size, struct error *err);
/* Waits for "connected", "prefetched" or "gone"; RET (may be NULL) is the fork as it was then. */
int bench_server_wait_fork(struct bench_server *server, const char *id, const char *milestone, json_t **ret,
			   struct error *err);
int bench_server_show_fork(struct bench_server *server, const char *id, json_t **ret, struct error *err);
/* Removes it, whether it has ever had a VMM or not; one that lives is killed. */
int bench_server_drop_fork(struct bench_server *server, const char *id, struct error *err);
/* Waits until it is gone, and removes it. */
int bench_server_end_fork(struct bench_server *server, const char *id, struct error *err);

/* Memory of its own that is resident (RssAnon), in bytes. */
int bench_server_memory(const struct bench_server *server, double *ret, struct error *err);
/* CPU time that it has used so far. */
int bench_server_cpu_ns(const struct bench_server *server, uint64_t *ret, struct error *err);
/* The same of its threads of that name. */
int bench_server_thread_cpu_ns(const struct bench_server *server, const char *name, uint64_t *ret, struct error *err);
/* How often its threads have gone to sleep so far, which is how often they were woken. */
int bench_server_wakeups(const struct bench_server *server, uint64_t *ret, struct error *err);
/* How it observes its forks: "tp_btf", ..., "none". */
int bench_server_tier(struct bench_server *server, char ret[static 32], struct error *err);
/* How many descriptors it holds. */
int bench_server_fd_count(const struct bench_server *server, unsigned *ret, struct error *err);
