/* One fork of the group "order": a replayed guest, what it cost, and what was recorded of it. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "bench/order.h"
#include "replay/content.h"

/* A page of vCPUs with odd numbers takes so long: a read of a disk that is busy, or of one over a network. */
#define SLOW_ODD_SPEC "delay=200us,only=%s"

/* A recording counts as settled after two seconds of quiet. */
#define REST_NS (2500 * NSEC_PER_MSEC)
/* How long, and how often, it is tried to have the image out of the page cache. */
#define COLD_PATIENCE_NS  (3 * NSEC_PER_SEC)
#define ZEROS_PATIENCE_NS (60 * NSEC_PER_SEC)
#define ZEROS_AGAIN_NS	  (5 * NSEC_PER_MSEC)
#define COLD_AGAIN_NS	  (50 * NSEC_PER_MSEC)

#define LATER_PAGES 15000

/* ---- the template ---- */

int order_remove_template(struct order_run *run, struct error *err)
{
	if (!run->has_template)
		return 0;
	run->has_template = false;
	return bench_server_remove_template(&run->server, ORDER_TEMPLATE, err);
}

/* Until the server has looked through the image, it takes turns with the guest at the disk. */
static int await_zeros(struct order_run *run, struct error *err)
{
	uint64_t end = now_ns() + ZEROS_PATIENCE_NS;

	for (;;) {
		json_t *answer = NULL;
		int r = bench_server_show_template(&run->server, ORDER_TEMPLATE, &answer, err);

		if (r < 0)
			return r;
		const json_t *map = json_object_get(answer, "zero_map");
		bool building = !strcmp(json_string_value(json_object_get(map, "state")) ?: "", "building");
		json_decref(answer);
		if (!building)
			return 0;
		if (now_ns() > end)
			return error_set(err, -ETIMEDOUT, "bench_failed", "looking for zeros in %s takes too long",
					 run->workload->image_path);
		r = processes_wait(&run->bench->processes, -1, ZEROS_AGAIN_NS, err);
		if (r < 0)
			return r;
	}
}

int order_add_template(struct order_run *run, struct error *err)
{
	const struct workload *w = run->workload;
	const struct trace *traces[2] = { order_trace(run, 0), order_trace(run, 1) };
	char inject[600] = "";
	int r = 0;

	switch (run->situation->slow) {
	case SLOW_NONE:
	case SLOW_COLD:
		break;
	case SLOW_ODD:
		snprintf(inject, sizeof inject, SLOW_ODD_SPEC, w->slow_path);
		r = workload_write_slow(w, traces, err);
		break;
	case SLOW_REMOTE:
		snprintf(inject, sizeof inject, "%s", run->situation->inject);
		break;
	}
	if (r >= 0)
		r = bench_server_add_slow_template(&run->server, ORDER_TEMPLATE, w->image_path,
						   inject[0] ? inject : NULL, run->own_list, run->zeros, err);
	run->has_template = r >= 0;
	return r >= 0 && run->zeros ? await_zeros(run, err) : r;
}

/* A server keeps its templates' images mapped, and lets go of them some time after they are removed. */
int order_make_cold(struct order_run *run, struct error *err)
{
	uint64_t end = now_ns() + COLD_PATIENCE_NS;
	int r = order_remove_template(run, err), waited = 0;

	while (r >= 0 && (r = workload_evict(run->workload, err)) == -EBUSY && now_ns() < end && waited == 0) {
		waited = processes_wait(&run->bench->processes, -1, COLD_AGAIN_NS, err);
		r = waited;
	}
	return r;
}

/* ---- the guest ---- */

int order_check_pages(const struct replay_result *result, struct error *err)
{
	const struct replay_wrong *wrong = &result->wrong;

	if (!wrong->count)
		return 0;
	return error_set(err, -EBADMSG, "wrong_bytes",
			 "page %" PRIu64
			 " has other bytes than the memory image, from byte %u on: %s; the figures mean nothing",
			 wrong->page, wrong->byte, wrong->what);
}

struct ready {
	struct order_run *run;
	const char *id;
};

/*
 * What the replay looks at to compare it is no touch of the guest's. Where only absent pages are seen it touches none that it hasn't; where the
 * pages are there and not mapped yet, it would.
 */
static int end_window(void *data, struct error *err)
{
	const struct ready *ready = data;

	return ready->run->situation->story == STORY_SECOND ? bench_server_say_ready(&ready->run->server, ready->id, err)
							    : 0;
}

/* All that it does until its lists are asked for. */
static int live(struct order_run *run, struct order_visit *visit, struct replay_guest *guest, struct error *err)
{
	int r = replay_run(guest, &visit->result, err);

	if (r >= 0)
		r = order_check_pages(&visit->result, err);
	if (r < 0 || run->situation->story != STORY_LONG_LIFE || !visit->kernel)
		return r;
	r = processes_wait(&run->bench->processes, -1, REST_NS, err);
	return r < 0 ? r : replay_linger(guest, err);
}

/* ---- what was recorded ---- */

/* Where the guest's memory is mapped twice, both are the same pages. */
static void drop_regions(struct hotlist *list)
{
	for (size_t i = 0; i < list->count; i++)
		list->pages[i].region = 0;
}

static int fetch_list(struct order_run *run, const char *id, const char *from, struct hotlist **ret, struct error *err)
{
	_cleanup_free_ void *data = NULL;
	size_t size;
	int r = bench_server_fetch_list(&run->server, id, from, &data, &size, err);

	if (r >= 0)
		r = hotlist_decode(data, size, ret, err);
	if (r >= 0 && run->situation->story == STORY_SECOND && !run->situation->kvm)
		drop_regions(*ret);
	return r;
}

int order_collect(struct order_run *run, struct order_visit *visit, const char *id, struct error *err)
{
	json_t *fork = NULL;
	int r = bench_server_show_fork(&run->server, id, &fork, err);

	if (r < 0)
		return r;
	visit->faults = (uint64_t)json_integer_value(json_object_get(fork, "faults"));
	const json_t *stream = json_object_get(fork, "stream");
	visit->streamed = json_is_object(stream);
	visit->late = (uint64_t)json_integer_value(json_object_get(stream, "late"));
	visit->missing = (uint64_t)json_integer_value(json_object_get(stream, "missing"));
	visit->neighbours = (uint64_t)json_integer_value(json_object_get(fork, "neighbour_pages"));
	json_decref(fork);
	if (visit->unrecorded)
		return 0;
	r = fetch_list(run, id, "loop", &visit->loop, err);
	if (r < 0 || !visit->kernel || run->unobserved)
		return r;
	r = fetch_list(run, id, "kernel", &visit->seen, err);
	if (r < 0 && !strcmp(err->code, "not_observed")) {
		run->unobserved = true;
		return 0;
	}
	return r;
}

/* ---- the whole ---- */

static unsigned choose_cpus(const struct order_run *run)
{
	unsigned there = run->bench->cpu_count, wanted = run->situation->cpus;

	return wanted && wanted < there ? wanted : there;
}

struct replay_config order_replay(const struct order_run *run, unsigned trace)
{
	return (struct replay_config){
		.trace = order_trace(run, trace),
		.image = run->workload->image,
		.seed = CONTENT_DEFAULT_SEED,
		.vcpus = run->situation->vcpus,
		.pace = run->situation->pace,
		.tail = LATER_PAGES,
		.template_path = run->workload->image_path,
		.cpus = run->bench->cpu_list,
		.cpu_count = choose_cpus(run),
		.interrupt_fd = run->bench->processes.stop_fd,
	};
}

int order_visit(struct order_run *run, struct order_visit *visit, struct error *err)
{
	char id[24], socket[SOCKET_PATH_SIZE];
	struct ready ready = { run, id };
	struct replay_config config = order_replay(run, visit->trace);
	struct bench_fork fork = { .template = ORDER_TEMPLATE,
				   .id = id,
				   .hot_list = visit->hot_list,
				   .stream = !visit->ahead,
				   .record = !visit->unrecorded };
	struct replay_guest *guest = NULL;
	int r = processes_check_stop(&run->bench->processes, err);

	if (run->situation->kvm)
		return order_visit_kvm(run, visit, err);
	if (r >= 0 && run->situation->slow == SLOW_COLD && !run->own_list) {
		r = order_make_cold(run, err);
		if (r >= 0)
			r = order_add_template(run, err);
	}
	if (r < 0)
		return r;
	config.memory = run->situation->story == STORY_SECOND ? REPLAY_SHARED : REPLAY_SERVED;
	config.socket = socket;
	config.answers = true;
	config.on_ran = end_window;
	config.data = &ready;
	bench_fork_id(run->bench, id);
	r = bench_server_create(&run->server, &fork, socket, err);
	if (r >= 0)
		r = replay_start(&config, &guest, err);
	if (r >= 0 && visit->ahead)
		r = bench_server_wait_fork(&run->server, id, "prefetched", NULL, err);
	if (r >= 0)
		r = live(run, visit, guest, err);
	if (r >= 0)
		r = order_collect(run, visit, id, err);
	replay_free(guest);
	return r < 0 ? r : bench_server_end_fork(&run->server, id, err);
}

void order_visit_clear(struct order_visit *visit)
{
	hotlist_free(visit->loop);
	hotlist_free(visit->seen);
	visit->loop = visit->seen = NULL;
}
