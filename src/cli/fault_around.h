/*
 * The kernel maps up to 16 pages of a file at a touch of one (fault-around), so that of 16 touches 15 aren't seen. Where that can be
 * turned off, it is for as long as this lives: for the whole machine, so a process of its own guards it, which puts back what was there
 * whatever ends us.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

struct fault_around {
	pid_t guard;	      /* 0: nothing was changed */
	int end;	      /* closing it, by whatever means, puts back what was there; -1: none */
	unsigned long bytes;  /* around each touch while this lives; 0: not known */
	unsigned long before; /* what is put back */
	char why[160];	      /* where it could not be set to a page: the reason */
};

/* Sets it to one page. Never fails: where it can't be set, ->why says so. */
void fault_around_narrow(struct fault_around *ret);
/* Only finds out what it is. */
void fault_around_keep(struct fault_around *ret);
/* Puts back what was there. */
void fault_around_restore(struct fault_around *around);
