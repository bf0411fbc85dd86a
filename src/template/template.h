/* A template: an immutable memory image by name, and the file that remembers it across restarts of the server. */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "template/source.h"

#define TEMPLATE_IDENTITY_SIZE 32 /* bytes: a SHA-256 */

struct hot_set;
enum hot_set_state { HOT_SET_NONE, HOT_SET_BUILDING, HOT_SET_READY, HOT_SET_FAILED };
enum zero_map_state { ZERO_MAP_OFF, ZERO_MAP_BUILDING, ZERO_MAP_READY };

/* Reference-counted: the store and every fork hold one. All but the count is fixed once it is opened. */
struct template
{
	char *name;
	char *memory, *state, *hot_list, *inject; /* absolute paths; the last three may be NULL */
	bool packs;				  /* its hot pages are packed into a file beside the image; likewise */
	bool refresh; /* its forks' touches keep the hot list fresh; set before anybody else knows of it */
	struct source *source;

	/* The image as it was when it was opened: a fork gets no page of one that has changed since. */
	int memory_fd; /* the source's, for fstat */
	dev_t device;
	ino_t inode;
	uint64_t size;
	struct timespec modified;

	pthread_mutex_t identity_lock; /* taken inside no other; what follows */
	bool identity_known;
	uint8_t identity[TEMPLATE_IDENTITY_SIZE];

	pthread_mutex_t hot_set_lock; /* taken inside no other; what follows */
	struct hot_set *hot_set;
	enum hot_set_state hot_set_state;
	char hot_set_why[ERROR_MESSAGE_MAX]; /* it failed */
	uint64_t hot_set_list;		     /* the list for which one was tried last, once one was */
	bool hot_set_tried;
	uint64_t hot_set_made_ns;

	_Atomic enum zero_map_state zero_map_state; /* of source->zeros */
	_Atomic bool removed;			    /* what is beside the image is to go, and not to come back */

	_Atomic unsigned refs;
	_Atomic bool in_line; /* the keeper's */
	struct template *next_in_line;
	int watch; /* of the keeper's inotify, -1: none */
	struct template *next_guarded;
	bool in_leased;
	struct template *next_leased;
};

/* Opens the image and checks all paths. Codes: bad_memory, bad_state, bad_hot_list, bad_inject, io_error. */
int template_open(const char *name, const char *memory, const char *state, const char *hot_list, const char *inject,
		  struct template **ret, struct error *err);
struct template *template_ref(struct template *template);
void template_unref(struct template *template);
DEFINE_CLEANUP(struct template, template_unref)
#define _cleanup_template_ _cleanup_(cleanup_template_unref)

/* From now on there is a zero map to be filled in; before anybody reads from the source. -ENOMEM. */
int template_map_zeros(struct template *template);

/* Whether the image is still the one that was opened: size, and time of modification. -ESTALE with code "template_changed". */
int template_check_unchanged(const struct template *template, struct error *err);

/*
 * What tells its image from others, as COMPUTE finds it: once, when it is first asked for. SIZE is the image's in bytes. Negative errno: COMPUTE's,
 * and the next call tries again. Any thread; reads the image the first time.
 */
int template_identity(struct template *template,
		      int (*compute)(int fd, uint64_t size, uint8_t ret[static TEMPLATE_IDENTITY_SIZE]),
		      uint8_t ret[static TEMPLATE_IDENTITY_SIZE]);

/* DIR/NAME.json, written whole or not at all. */
int template_save(const struct template *template, const char *dir, struct error *err);
int template_forget(const char *name, const char *dir, struct error *err);
/* Reads DIR/NAME.json and opens the template. */
int template_load(const char *name, const char *dir, struct template **ret, struct error *err);
