/* A session's ties to the server's observer, where there is one: see observer.h. What fails here costs figures, never a page. */
#pragma once

#include <stdbool.h>

#include "serve/session.h"

/* What is to be kept of it for a hot list. */
struct recording_wish {
	bool record;
	uint64_t window_timeout_ns, window_settle_ns; /* as in struct observer_fork */
};

/*
 * The kernel is told to watch SESSION, before any pager serves it. A failure is logged, and the session is served unobserved.
 */
void observing_begin(const struct observer *observer, struct session *session, const char *id,
		     const struct recording_wish *wish);
/* Its memory has moved, or shrunk. The gate is held. */
void observing_map_changed(struct session *session);
void observing_ready(struct session *session);
/* Its memory is about to go. Figures and recording stay for as long as the session does. */
void observing_end(struct session *session);
