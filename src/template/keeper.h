/*
 * Looks after templates' images: a thread of its own looks again at what is in memory when somebody has said that this is stale; and a
 * watch on each image tells when somebody changes it.
 */
#pragma once

#include <signal.h>

#include "base/error.h"
#include "template/template.h"

struct keeper;

/* ON_CHANGE is called, on any thread and with the keeper's lock held, when a guarded image has been written to or cut short. */
int keeper_new(void (*on_change)(void *data, const struct template *template), void *data, struct keeper **ret,
	       struct error *err);
/* Joins the thread. Templates are unguarded first. NULL is fine. */
void keeper_free(struct keeper *keeper);

/* Asks for a look at TEMPLATE's image soon; one that is in line already is not put there twice. Any thread; never waits. */
void keeper_ask(struct keeper *keeper, struct template *template);

/*
 * Watches TEMPLATE's image until somebody changes it; source->guarded says whether it is watched. What comes through a shared mapping
 * the kernel does not tell. Doing it again is fine; an image that has changed since it was opened is not watched.
 */
void keeper_guard(struct keeper *keeper, struct template *template);
/* Gives up the lease as well. */
void keeper_unguard(struct keeper *keeper, struct template *template);

/* Readable when keeper_look has something to do. */
/*
 * Tries to get a read lease on TEMPLATE's image. While it lasts (source->leased) whoever opens the image for writing, or truncates it, is
 * held up by the kernel until keeper_break has let them; so bytes copied from its mapping need no second look. It can't be had
 * where somebody has the image open for writing, as each QEMU has whose memory backend it is. The signal must be blocked in all
 * threads; trying again is fine.
 */
#define KEEPER_SIGNAL (SIGRTMIN + 4)
void keeper_lease(struct keeper *keeper, struct template *template);
/* On KEEPER_SIGNAL, or SIGIO: gives back the leases that somebody waits for, once no section is busy that began under them. */
void keeper_break(struct keeper *keeper);
/* SECTION is from now on one that keeper_break waits for. */
void keeper_add_section(struct keeper *keeper, struct lease_section *section);
void keeper_remove_section(struct keeper *keeper, struct lease_section *section);

int keeper_fd(const struct keeper *keeper);
/* Takes note of changes. Any thread. */
void keeper_look(struct keeper *keeper);
