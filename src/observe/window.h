/*
 * Where a recording's window ends: what a fork touches later is no part of its start, and would swell the list of a fork that lives on for
 * days. Pure functions; times are nanoseconds since the fork's handshake.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "hotlist/hotlist.h"
#include "observe/clock.h"
#include "observe/recording.h"

#define WINDOW_TIMEOUT_NS (60ull * 1000 * 1000 * 1000)
#define WINDOW_SETTLE_NS  (2ull * 1000 * 1000 * 1000)

struct window_rules {
	uint64_t ready_ns;   /* the guest said that it is ready; 0: not yet */
	uint64_t timeout_ns; /* 0: WINDOW_TIMEOUT_NS */
	uint64_t settle_ns;  /* quiet for so long is settled; 0: WINDOW_SETTLE_NS, UINT64_MAX: never */
	uint64_t now_ns;     /* how far the recording goes */
	bool gone;	     /* the fork has ended, at NOW_NS */
};

struct window {
	uint64_t end_ns;	 /* touches at that time are still in it */
	enum hot_window_end end; /* HOT_WINDOW_UNKNOWN: it has not ended yet, and END_NS is now */
};

/* CLOCKS are the recording's. 0 or -ENOMEM. */
int window_find(const struct recording *recording, const struct clocks *clocks, const struct window_rules *rules,
		struct window *ret);
