/* What a run has shown, in a few numbers. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "replay/internal.h"

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* The smallest of the SORTED that at least so many of a hundred are not above. */
static uint64_t percentile(const uint64_t *sorted, size_t count, unsigned percent)
{
	return count ? sorted[(count * percent + 99) / 100 - 1] : 0;
}

/*
 * How many pages the thread waited for. Of a mapped file, those are the major faults. Whether the kernel counts a fault that a server has
 * resolved as minor or major is another thing in each version; but such a fault sleeps, as the thread never does else.
 */
static uint64_t waits(const struct replay_config *config, const struct lane *lane)
{
	return replay_is_served(config) ? lane->sleeps : lane->major_faults;
}

/* SLOW has room for all touches. VCPU: -1 for all. */
static struct replay_figures collect(const struct replay_config *config, const struct replay_shared *shared, int vcpu,
				     uint64_t *slow)
{
	struct replay_figures figures = { 0 };

	for (unsigned l = 0; l < shared->lane_count; l++) {
		const struct lane *lane = &shared->lanes[l];

		for (size_t i = 0; i < lane->count; i++) {
			const struct touch_record *record = &shared->records[lane->first + i];
			uint64_t took = record->ended_ns - record->started_ns;

			if (vcpu >= 0 && config->trace->touches[lane->touches[i]].vcpu != vcpu)
				continue;
			figures.touches++;
			if (took < REPLAY_SLOW_NS)
				continue;
			slow[figures.slow++] = took;
			figures.stall_ns += took;
		}
		if (vcpu < 0 || (config->vcpus != REPLAY_ONE && (int)l == vcpu)) {
			uint64_t all = lane->minor_faults + lane->major_faults, faults = waits(config, lane);

			figures.faults += faults;
			figures.minor_faults += all > faults ? all - faults : 0;
		}
	}
	qsort(slow, figures.slow, sizeof *slow, compare);
	figures.p50_ns = percentile(slow, figures.slow, 50);
	figures.p90_ns = percentile(slow, figures.slow, 90);
	figures.p99_ns = percentile(slow, figures.slow, 99);
	figures.max_ns = figures.slow ? slow[figures.slow - 1] : 0;
	return figures;
}

int figures_make(const struct replay_config *config, const struct replay_shared *shared, struct replay_result *result)
{
	_cleanup_free_ uint64_t *slow = calloc(config->trace->count, sizeof *slow);

	if (!slow)
		return -ENOMEM;
	*result = (struct replay_result){
		.before_ns = shared->start_ns - shared->handshake_ns,
		.checked = shared->checked,
		.unasked = shared->unasked,
		.wrong = shared->wrong,
		.crowded = shared->crowded,
	};
	for (size_t i = 0; i < config->trace->count; i++)
		if (shared->records[i].ended_ns > result->run_ns)
			result->run_ns = shared->records[i].ended_ns;
	result->added_ns = (int64_t)(result->before_ns + result->run_ns) - (int64_t)config->trace->length_ns;
	result->all = collect(config, shared, -1, slow);
	for (unsigned v = 0; v < config->trace->vcpus; v++)
		result->vcpus[v] = collect(config, shared, (int)v, slow);
	return 0;
}
