/* A trace as a hot list: what a warm-up fork that saw each first touch would have recorded. */
#pragma once

#include "base/error.h"
#include "hotlist/hotlist.h"
#include "replay/trace.h"

/* The trace's pages in the order of their touches, in region 0. -ENOMEM. */
int trace_hot_list(const struct trace *trace, struct hotlist **ret, struct error *err);
