/* A trace of few vCPUs as one of many: bursts of its touches are dealt out to them in turn. */
#include <errno.h>
#include <string.h>

#include "replay/trace.h"

int trace_spread(const struct trace *trace, unsigned vcpus, unsigned burst, struct trace **ret, struct error *err)
{
	_cleanup_trace_ struct trace *spread = calloc(1, sizeof *spread);
	size_t made[TRACE_VCPUS_MAX] = { 0 };

	if (spread)
		spread->touches = calloc(trace->count, sizeof *spread->touches);
	if (!spread || !spread->touches)
		return error_set(err, -ENOMEM, "no_memory", "there is not enough memory for %zu touches", trace->count);
	spread->count = trace->count;
	spread->vcpus = vcpus;
	spread->length_ns = trace->length_ns;
	memcpy(spread->touches, trace->touches, trace->count * sizeof *spread->touches);
	/* Each of the trace's vCPUs starts at another of the new ones, so that they don't meet in one all the time. */
	for (size_t i = 0; i < spread->count; i++) {
		unsigned from = spread->touches[i].vcpu;

		spread->touches[i].vcpu = (uint16_t)((made[from]++ / burst + from * vcpus / trace->vcpus) % vcpus);
	}
	*ret = TAKE_PTR(spread);
	return 0;
}
