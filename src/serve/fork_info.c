/* What is told of a fork. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "serve/internal.h"

const char *fork_state_name(enum fork_state state)
{
	static const char *const names[] = { "waiting", "connected", "ready", "gone" };

	return names[state];
}

const char *prefetch_mode_name(enum prefetch_mode mode)
{
	static const char *const names[] = { "off", "eager", "stream" };

	return names[mode];
}

const char *prefetch_state_name(enum prefetch_state state)
{
	static const char *const names[] = { "none", "pending", "running", "done", "failed" };

	return names[state];
}

static uint64_t since(const struct fork *fork, uint64_t ns)
{
	return ns ? ns - fork->created_ns : 0;
}

static void fill_session_info(const struct fork *fork, struct fork_info *ret)
{
	struct session *s = fork->session;

	ret->pager_count = session_cpus(s, ret->pager_cpus, FORK_PAGERS_TOLD);
	ret->faults = load(&s->faults);
	ret->copied_pages = load(&s->copied);
	ret->zeroed_pages = load(&s->zeroed);
	ret->neighbour_pages = load(&s->neighbours);
	ret->poisoned_pages = load(&s->poisoned);
	ret->deferred_faults = load(&s->deferrals);
	ret->slow_faults = load(&s->slow);
	ret->stall_ns = load(&s->stall.sum);
	ret->stall_p50_ns = histogram_percentile(&s->stall, 500);
	ret->stall_p99_ns = histogram_percentile(&s->stall, 990);
	ret->stall_max_ns = load(&s->stall.max);
	ret->removed_pages = fork->state == FORK_GONE ? fork->removed_pages : load(&s->memory->removed_pages);
	pthread_mutex_lock(&s->lock);
	ret->recorded_pages = fork->record ? s->record_count : 0;
	if (!ret->error && (s->reason[0] || s->trouble[0]))
		ret->error = strdup(s->reason[0] ? s->reason : s->trouble);
	pthread_mutex_unlock(&s->lock);
	if (s->observer) {
		ret->observe_tier = s->observer->tier;
		ret->session = session_ref(s);
	}
}

static void observe(struct fork_info *info, bool lately)
{
	struct session *s = TAKE_PTR(info->session);

	if (!s)
		return;
	info->observed = (lately ? s->observer->figures_lately : s->observer->figures)(s->observer->data, s->observed,
										       &info->figures) == 0;
	session_unref(s);
}

void fork_info_observe(struct fork_info *info)
{
	observe(info, false);
}

void fork_fill_info(const struct fork *fork, struct fork_info *ret)
{
	*ret = (struct fork_info){
		.state = fork->state,
		.socket = strdup(fork->socket_path),
		.pid = fork->pid,
		.record = fork->record,
		.prefetch = fork->prefetch,
		.prefetch_state = fork->prefetch_state,
		.hot_list = fork->hot_list ? strdup(fork->hot_list) : NULL,
		.error = fork->error ? strdup(fork->error) : NULL,
		.handshake = fork->handshake,
		.observe_tier = OBSERVE_TIER_NONE,
		.prefetched_pages = fork->prefetched,
		.prefetch_present_pages = fork->prefetch_present,
		.prefetch_removed_pages = fork->prefetch_removed,
		.prefetch_ns = fork->prefetch_ns,
		.prefetch_budget = fork->prefetch_budget,
		.prefetch_over_budget_pages = fork->prefetch_over,
		.connected_ns = since(fork, fork->connected_ns),
		.ready_ns = since(fork, fork->ready_ns),
		.gone_ns = since(fork, fork->gone_ns),
	};
	memcpy(ret->id, fork->id, sizeof ret->id);
	snprintf(ret->template, sizeof ret->template, "%s", fork->template->name);
	if (fork->session)
		fill_session_info(fork, ret);
	fork_fill_stream(fork, ret);
	ret->regions = calloc(fork->region_count ?: 1, sizeof ret->regions[0]);
	if (ret->regions && fork->region_count > 0) {
		memcpy(ret->regions, fork->regions, fork->region_count * sizeof ret->regions[0]);
		ret->region_count = fork->region_count;
	}
}

void fork_info_clear(struct fork_info *info)
{
	free(info->socket);
	free(info->hot_list);
	free(info->error);
	free(info->regions);
	session_unref(info->session);
	*info = (struct fork_info){ 0 };
}

int server_fork_get(struct server *server, const char *id, struct fork_info *ret, struct error *err)
{
	pthread_mutex_lock(&server->lock);
	const struct fork *fork = server_find_fork(server, id);
	int r = fork ? 0 : fork_unknown(id, err);

	if (fork)
		fork_fill_info(fork, ret);
	pthread_mutex_unlock(&server->lock);
	if (r == 0)
		fork_info_observe(ret);
	return r;
}

static int fill_all(struct server *server, struct fork_info **ret, size_t *ret_count, struct error *err)
{
	LOCK_SCOPE(&server->lock);
	struct fork_info *infos = calloc(server->fork_count ?: 1, sizeof *infos);
	size_t n = 0;

	if (!infos)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	for (const struct fork *fork = server->forks; fork; fork = fork->next)
		fork_fill_info(fork, &infos[n++]);
	*ret = infos;
	*ret_count = n;
	return 0;
}

int server_fork_list(struct server *server, struct fork_info **ret, size_t *ret_count, struct error *err)
{
	int r = fill_all(server, ret, ret_count, err);

	for (size_t i = 0; r == 0 && i < *ret_count; i++)
		observe(&(*ret)[i], true);
	return r;
}
