/*
 * Looks after templates' images: a thread of its own looks again at what is in memory when somebody has said that this is stale; and a
 * watch on each image tells when somebody changes it.
 */
#pragma once

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
void keeper_unguard(struct keeper *keeper, struct template *template);

/* Readable when keeper_look has something to do. */
int keeper_fd(const struct keeper *keeper);
/* Takes note of changes. Any thread. */
void keeper_look(struct keeper *keeper);
