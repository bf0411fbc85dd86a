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
 * Guarding. While source->guarded holds, a page may be copied from the image's mapping without a look at the file's size, by a thread
 * that waits for keeper_fd along with what makes it copy, and calls keeper_look first whenever that is readable. The kernel queues the
 * word of a change before the call that made it returns; so what a guest does after a change finds it known. Where no watch can
 * be had the image stays unguarded, and costs a system call more a page. Guarding again is fine.
 */
void keeper_guard(struct keeper *keeper, struct template *template);
void keeper_unguard(struct keeper *keeper, struct template *template);

int keeper_fd(const struct keeper *keeper);
/* Takes note of changes. Any thread. */
void keeper_look(struct keeper *keeper);
