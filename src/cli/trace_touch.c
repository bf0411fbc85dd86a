/* Touches as the server tells them, and which are wanted. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/clock.h"
#include "cli/client.h"
#include "cli/hotlist.h"
#include "cli/trace.h"

static int64_t ns_of(const json_t *event, const char *name)
{
	return llround(client_number(event, name) * 1000);
}

static long long integer_of(const json_t *event, const char *name, long long fallback)
{
	const json_t *value = json_object_get(event, name);

	return json_is_integer(value) ? json_integer_value(value) : fallback;
}

bool trace_touch_from(const json_t *event, struct trace_touch *ret)
{
	if (strcmp(client_string(event, "event", ""), "touch") != 0)
		return false;
	*ret = (struct trace_touch){
		.time_ns = ns_of(event, "time_us"),
		.vcpu = integer_of(event, "vcpu", -1),
		.tid = integer_of(event, "tid", 0),
		.cpu = integer_of(event, "cpu", 0),
		.thread = client_string(event, "thread", ""),
		.kind = client_string(event, "kind", ""),
		.address = (uint64_t)integer_of(event, "address", 0),
		.region = (uint64_t)integer_of(event, "region", 0),
		.offset = (uint64_t)integer_of(event, "offset", 0),
		.demand = json_is_true(json_object_get(event, "demand")),
		.kthread = json_is_true(json_object_get(event, "kthread")),
		.phased = json_is_number(json_object_get(event, "queue_us")),
		.total_ns = ns_of(event, "total_us"),
		.queue_ns = ns_of(event, "queue_us"),
		.source_ns = ns_of(event, "source_us"),
		.copy_ns = ns_of(event, "copy_us"),
		.wake_ns = ns_of(event, "wake_us"),
	};
	return true;
}

static bool in_range(const struct trace_filter *filter, uint64_t value)
{
	return value >= filter->from && value < filter->to;
}

bool trace_wanted(const struct trace_filter *filter, const struct trace_touch *touch)
{
	if (filter->vcpu >= 0 && touch->vcpu != filter->vcpu)
		return false;
	if (filter->region >= 0 && touch->region != (uint64_t)filter->region)
		return false;
	if (filter->to > 0 && !in_range(filter, touch->address) && !in_range(filter, touch->offset))
		return false;
	if (filter->demand_only && !touch->demand)
		return false;
	return filter->min_stall_ns == 0 || (touch->demand && touch->total_ns >= filter->min_stall_ns);
}

bool trace_parse_range(const char *text, struct trace_filter *filter)
{
	const char *dash = strchr(text, '-');
	char from[32];

	if (!dash || (size_t)(dash - text) >= sizeof from)
		return false;
	memcpy(from, text, (size_t)(dash - text));
	from[dash - text] = '\0';
	return hotlist_cli_parse_size(from, &filter->from) && hotlist_cli_parse_size(dash + 1, &filter->to) &&
	       filter->from < filter->to;
}

bool trace_parse_duration(const char *text, int64_t *ret_ns)
{
	static const struct {
		const char *unit;
		double ns;
	} units[] = {
		{ "ns", 1 },
		{ "us", (double)NSEC_PER_USEC },
		{ "µs", (double)NSEC_PER_USEC },
		{ "ms", (double)NSEC_PER_MSEC },
		{ "s", (double)NSEC_PER_SEC },
		{ "", (double)NSEC_PER_SEC },
	};
	char *end;

	/* strtod alone would take "1e3", "0x10", "inf" and leading spaces. */
	if (!strspn(text, "0123456789"))
		return false;
	double value = strtod(text, &end);
	if (end != text + strspn(text, "0123456789."))
		return false;
	for (size_t i = 0; i < sizeof units / sizeof *units; i++)
		if (!strcmp(end, units[i].unit) && value * units[i].ns >= 1 && value * units[i].ns < 1e18) {
			*ret_ns = (int64_t)(value * units[i].ns);
			return true;
		}
	return false;
}
