/* Guests that do everything at once: threads that read any page, and remove and write pages of their own blocks. */
#pragma once

#include <stdint.h>

#include "integration/harness/vmm.h"

struct chaos {
	unsigned threads;
	unsigned rounds;	  /* of each thread; 0: until vmm->stop */
	unsigned removals_of_100; /* of 100 actions so many are removals ... */
	unsigned writes_of_100;	  /* ... and so many are writes; the others are reads */
	uint64_t salt;
	_Atomic uint64_t *progress; /* counts actions, where set */
};

/* Runs it on threads and returns when they are done. Every read is compared as in vmm_check_page. */
void chaos_run(struct vmm *vmm, struct chaos *chaos);
/* The same until the test says LETTER; the rounds don't count then. */
void chaos_run_until(struct vmm *vmm, struct chaos *chaos, char letter);
