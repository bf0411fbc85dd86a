/* What was recorded of a fork, taken out of the server's hands: lists are made of it without holding anybody up. */
#pragma once

#include "serve/internal.h"

struct notes {
	char id[NAME_MAX_LENGTH + 1];
	bool recorded;
	struct session *session; /* a reference; NULL where nobody has connected */
	struct template *template;
	struct fork_region_info *regions;
	size_t region_count;
	uint64_t page_size; /* the host's */
	uint64_t window_ns;
	enum hot_window_end window_end;
	struct recorded_page *pages;
	size_t page_count;
	bool pages_lost;
	uint8_t *zeroed; /* a bit for each page that was given as zeros; NULL: none was */
	uint64_t page_total;
};

/* With server->lock held. 0, or -ENOMEM; cleared by notes_clear either way. */
int notes_take(const struct server *server, const struct fork *fork, struct notes *ret);
void notes_clear(struct notes *notes);
#define _cleanup_notes_ _cleanup_(notes_clear)

/* The kernel's recording, with an origin. Codes: not_observed, not_recorded, io_error. */
int notes_kernel_list(const struct notes *notes, struct hotlist **ret, struct error *err);
