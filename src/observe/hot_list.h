/* A recording as a hot list: the touches in its window, in the order of the clock that the run's own evidence speaks for. */
#pragma once

#include "base/error.h"
#include "hotlist/hotlist.h"
#include "observe/recording.h"
#include "observe/window.h"

/*
 * ORIGIN says where the recording was made: page_size, regions, template, tier; the rest of it is filled in here. Losses (the recording's
 * events_lost) go into the list. The caller frees RET. -ENOMEM with ERR.
 */
int hot_list_make(const struct recording *recording, const struct window_rules *rules,
		  const struct hotlist_origin *origin, struct hotlist **ret, struct error *err);
