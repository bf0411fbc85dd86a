/*
 * What is kept beside templates' images. Their zero maps; and packed hot sets: opened when a template comes, made by a thread of its own once a fork has shown where its list's pages lie in the
 * image, made again when the list has changed, and removed with the template. Without one everything goes on, from the image.
 */
#pragma once

#include "template/hot_set.h"
#include "template/template.h"

struct packer;

int packer_new(struct packer **ret, struct error *err);
/* Gives up what is being made, and joins the thread; no template and no session has a set any more. NULL is fine. */
void packer_free(struct packer *packer);

/*
 * TEMPLATE's zero map: whether there is one from before, which is used from now on, on this thread; else one is made by looking at the whole image, with
 * what has been found so far in use at once. Any thread; the latter never waits.
 */
bool zero_map_open_for(struct template *template);
void packer_find_zeros(struct packer *packer, struct template *template);

/* Looks whether TEMPLATE has a set from before. Any thread; never waits. */
void packer_open(struct packer *packer, struct template *template);
/* The same on this thread: forks that come next have it. */
void hot_set_open_for(struct packer *packer, struct template *template);
/*
 * Makes a new one of PAGES, which it takes: COUNT page numbers of the image in the list's order. Nothing where one is being made or tried for the
 * same list. Any thread; never waits.
 */
void packer_build(struct packer *packer, struct template *template, uint64_t *pages, size_t count);
/* TEMPLATE is no more: neither are its set and its zero map. */
void packer_remove(struct template *template);

/* A reference on the set as it is now, or NULL. Any thread. */
struct hot_set *hot_set_of(struct template *template);
