/* Templates and forks as JSON: see encode.h. */
#include "control/encode.h"

#include "control/utf8.h"

/* Milliseconds with the microseconds behind the point: what a person reads, and no more digits than were measured. */
static json_t *encode_ms(uint64_t ns)
{
	uint64_t us = (ns + 500) / 1000;

	return json_real((double)us / 1e3);
}

static json_t *encode_us(uint64_t ns)
{
	return json_real((double)ns / 1e3);
}

/* A moment in a fork's life: null until it has come. */
static json_t *encode_moment(uint64_t ns)
{
	return ns ? encode_ms(ns) : json_null();
}

static json_t *encode_count(uint64_t n)
{
	return json_integer((json_int_t)n);
}

/* Bytes: null where there is none. */
static json_t *encode_budget(uint64_t bytes)
{
	return bytes ? encode_count(bytes) : json_null();
}

json_t *encode_template(const struct template_info *info)
{
	json_t *hot_set = json_pack("{s:s,s:o,s:o,s:o}", "state", info->hot_set_state ?: "none", "pages",
				    encode_count(info->hot_set_pages), "bytes", encode_count(info->hot_set_bytes),
				    "error", utf8_json(info->hot_set_error));

	json_t *zero_map =
		json_pack("{s:s,s:o}", "state", info->zero_map_state ?: "off", "pages", encode_count(info->zero_pages));

	return json_pack("{s:s,s:o,s:o,s:o,s:o,s:b,s:o,s:i,s:i,s:o,s:o}", "name", info->name, "memory",
			 utf8_json(info->memory), "memory_size", encode_count(info->memory_size), "state",
			 utf8_json(info->state), "hot_list", utf8_json(info->hot_list), "refresh_hot_list",
			 info->refresh_hot_list, "inject", utf8_json(info->inject), "forks_live", (int)info->forks_live,
			 "forks_waiting", (int)info->forks_waiting, "hot_set", hot_set, "zero_map", zero_map);
}

static json_t *encode_regions(const struct fork_info *info)
{
	json_t *list = json_array();

	for (size_t i = 0; i < info->region_count; i++) {
		const struct fork_region_info *region = &info->regions[i];
		json_t *row = json_pack("{s:o,s:o,s:o,s:o}", "address", encode_count(region->address), "size",
					encode_count(region->size), "offset", encode_count(region->offset), "page_size",
					encode_count(region->page_size));

		if (json_array_append_new(list, row) < 0) {
			json_decref(list);
			return NULL;
		}
	}
	return list;
}

static json_t *encode_cpus(const struct fork_info *info)
{
	json_t *list = json_array();

	for (unsigned i = 0; i < info->pager_count; i++)
		if (json_array_append_new(list, json_integer(info->pager_cpus[i])) < 0) {
			json_decref(list);
			return NULL;
		}
	return list;
}

/* What the fork is, and where it stands. */
static json_t *encode_identity(const struct fork_info *info)
{
	return json_pack("{s:s,s:s,s:s,s:o,s:o,s:o,s:o,s:o,s:b,s:s,s:s,s:o,s:s}", "id", info->id, "template",
			 info->template, "state", fork_state_name(info->state), "error", utf8_json(info->error),
			 "socket", utf8_json(info->socket), "pid", info->pid > 0 ? json_integer(info->pid) : json_null(),
			 "handshake", utf8_json(info->handshake), "pager_cpus", encode_cpus(info), "record",
			 info->record, "prefetch", prefetch_mode_name(info->prefetch), "prefetch_state",
			 prefetch_state_name(info->prefetch_state), "hot_list", utf8_json(info->hot_list),
			 "observe_tier", info->observe_tier ?: OBSERVE_TIER_NONE);
}

/* The counters and times, one row each: a name in JSON, how it is written, where it is. */
static int encode_numbers(json_t *fork, const struct fork_info *info)
{
	const struct {
		const char *name;
		json_t *(*encode)(uint64_t);
		uint64_t value;
	} rows[] = {
		{ "faults", encode_count, info->faults },
		{ "copied_pages", encode_count, info->copied_pages },
		{ "zeroed_pages", encode_count, info->zeroed_pages },
		{ "neighbour_pages", encode_count, info->neighbour_pages },
		{ "prefetched_pages", encode_count, info->prefetched_pages },
		{ "prefetch_present_pages", encode_count, info->prefetch_present_pages },
		{ "prefetch_removed_pages", encode_count, info->prefetch_removed_pages },
		{ "prefetch_budget", encode_budget, info->prefetch_budget },
		{ "prefetch_over_budget_pages", encode_count, info->prefetch_over_budget_pages },
		{ "prefetch_ms", encode_ms, info->prefetch_ns },
		{ "removed_pages", encode_count, info->removed_pages },
		{ "recorded_pages", encode_count, info->recorded_pages },
		{ "poisoned_pages", encode_count, info->poisoned_pages },
		{ "deferred_faults", encode_count, info->deferred_faults },
		{ "slow_faults", encode_count, info->slow_faults },
		{ "stall_ms", encode_ms, info->stall_ns },
		{ "stall_p50_us", encode_us, info->stall_p50_ns },
		{ "stall_p99_us", encode_us, info->stall_p99_ns },
		{ "stall_max_us", encode_us, info->stall_max_ns },
		{ "connected_ms", encode_moment, info->connected_ns },
		{ "ready_ms", encode_moment, info->ready_ns },
		{ "gone_ms", encode_moment, info->gone_ns },
	};

	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
		if (json_object_set_new(fork, rows[i].name, rows[i].encode(rows[i].value)) < 0)
			return -1;
	return 0;
}

static json_t *encode_phase(const struct phase_figures *phase)
{
	return json_pack("{s:o,s:o,s:o,s:o,s:o}", "count", encode_count(phase->count), "p50_us",
			 encode_us(phase->p50_ns), "p90_us", encode_us(phase->p90_ns), "p99_us",
			 encode_us(phase->p99_ns), "max_us", encode_us(phase->max_ns));
}

/* What the kernel saw of the fork: null where nobody looks. */
static json_t *encode_observed(const struct fork_info *info)
{
	const struct observed_figures *f = &info->figures;

	if (!info->observed)
		return json_null();
	return json_pack("{s:o,s:o,s:o,s:o,s:o,s:i,s:{s:o,s:o,s:o,s:o,s:o}}", "faults", encode_count(f->faults),
			 "present_touches", encode_count(f->present), "stall_ms", encode_ms(f->stall_ns), "events_lost",
			 encode_count(f->events_lost), "unjoined_faults", encode_count(f->unjoined), "vcpus",
			 (int)f->vcpus, "latency", "total", encode_phase(&f->total), "queue", encode_phase(&f->queue),
			 "source", encode_phase(&f->source), "copy", encode_phase(&f->copy), "wake",
			 encode_phase(&f->wake));
}

/* What became of a list that is streamed: null where none is. */
static json_t *encode_stream(const struct fork_info *info)
{
	const struct fork_stream_info *s = &info->stream;

	if (!info->streamed)
		return json_null();
	return json_pack("{s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "planned", encode_count(s->planned),
			 "prefetched", encode_count(s->prefetched), "late", encode_count(s->late), "present",
			 encode_count(s->present), "removed", encode_count(s->removed), "skipped",
			 encode_count(s->skipped), "unreadable", encode_count(s->unreadable), "pending",
			 encode_count(s->pending), "late_supplied", encode_count(s->late_supplied), "missing",
			 encode_count(s->missing), "place", encode_count(s->place), "lead", encode_count(s->lead),
			 "moves", encode_count(s->moves));
}

json_t *encode_fork(const struct fork_info *info)
{
	json_t *fork = encode_identity(info);

	if (!fork)
		return NULL;
	if (encode_numbers(fork, info) < 0 || json_object_set_new(fork, "regions", encode_regions(info)) < 0 ||
	    json_object_set_new(fork, "observed", encode_observed(info)) < 0 ||
	    json_object_set_new(fork, "stream", encode_stream(info)) < 0) {
		json_decref(fork);
		return NULL;
	}
	return fork;
}
