/*
 * One thread that looks after templates' images: looks again at what is in memory when somebody has said that this is stale, and
 * holds a lease on each image, so that nobody can write to it or cut it short while its pages are being copied by address.
 */
#pragma once

#include "base/error.h"
#include "template/template.h"

/* What the kernel sends when somebody wants to write to a leased image. Must be blocked in all threads before the keeper starts. */
#define KEEPER_SIGNAL (SIGRTMIN + 4)

struct keeper;

/* ON_WRITER is called on the keeper's thread when somebody opens or truncates a guarded image for writing. */
int keeper_new(void (*on_writer)(void *data, const struct template *template), void *data, struct keeper **ret,
	       struct error *err);
/* Joins the thread. Templates and sections are given up first. NULL is fine. */
void keeper_free(struct keeper *keeper);

/* Asks for a look at TEMPLATE's image soon; one that is in line already is not put there twice. Any thread; never waits. */
void keeper_ask(struct keeper *keeper, struct template *template);

/*
 * Tries to get a lease on TEMPLATE's image. It works where nobody has it open for writing and it belongs to us (or we are privileged); where
 * it does not, peeking looks at the file's size each time instead. Doing it again is fine.
 */
void keeper_guard(struct keeper *keeper, struct template *template);
/* Gives the lease back. */
void keeper_unguard(struct keeper *keeper, struct template *template);

/* SECTION is waited for before a writer may go on. Registered before its first use, until the keeper is freed. */
void keeper_add_section(struct keeper *keeper, struct peek_section *section);
void keeper_remove_section(struct keeper *keeper, struct peek_section *section);
