#include "serve/hot_sets.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/background.h"
#include "base/clock.h"
#include "base/log.h"
#include "hotlist/identity.h"
#include "template/beside.h"
#include "template/zero_map.h"

/* A list that is kept fresh may change with each fork: its set is made again at most so often, and serves what it has meanwhile. */
#define REMAKE_NS (60 * NSEC_PER_SEC)

struct task {
	struct template *template; /* a reference */
	bool zeros;		   /* make its zero map */
	uint64_t *pages;	   /* else, a packed hot set of these; NULL: look for one that is there */
	size_t count;
	struct task *next;
};

struct packer {
	pthread_t thread;
	struct hot_loader *loader;
	pthread_mutex_t lock; /* innermost; of what follows */
	pthread_cond_t wanted;
	struct task *tasks, **tail;
	_Atomic bool stopping; /* changed under the lock */
};

static int describe_image(struct template *t, struct image_stamp *ret)
{
	*ret = (struct image_stamp){ .size = t->size,
				     .modified_s = t->modified.tv_sec,
				     .modified_ns = t->modified.tv_nsec };
	return template_identity(t, image_identity, ret->identity);
}

static char *path_of(const struct template *t)
{
	return beside_path(t, HOT_SET_NAME);
}

struct hot_set *hot_set_of(struct template *t)
{
	LOCK_SCOPE(&t->hot_set_lock);
	if (t->hot_set && hot_set_is_broken(t->hot_set)) {
		hot_set_unref(TAKE_PTR(t->hot_set));
		t->hot_set_state = HOT_SET_NONE;
		t->hot_set_tried = false; /* the same list is worth another try */
	}
	return t->hot_set ? hot_set_ref(t->hot_set) : NULL;
}

/* SET, which may be NULL, is taken. WHY: what is to be said of its absence, or NULL. */
static void put(struct template *t, struct hot_set *set, enum hot_set_state state, const char *why)
{
	LOCK_SCOPE(&t->hot_set_lock);
	hot_set_unref(t->hot_set);
	t->hot_set = set;
	t->hot_set_state = state;
	snprintf(t->hot_set_why, sizeof t->hot_set_why, "%s", why ?: "");
}

static int open_set(struct template *t, const char *path, struct hot_loader *loader, struct error *err)
{
	struct image_stamp image;
	struct hot_set *set;
	int r = describe_image(t, &image);

	if (r < 0)
		return error_set(err, r, "io_error", "cannot read the image '%s': %s", t->memory, strerror(-r));
	r = hot_set_open(path, &image, loader, t->source, &set, err);
	if (r < 0)
		return r;
	put(t, set, HOT_SET_READY, NULL);
	return 0;
}

void hot_set_open_for(struct packer *packer, struct template *t)
{
	_cleanup_free_ char *path = path_of(t);
	struct error err;

	if (path && open_set(t, path, packer->loader, &err) < 0 && strcmp(err.code, "hot_set_missing"))
		log_warning(NULL, "template %s: %s: it is made again when a fork has been prefetched", t->name,
			    err.message);
}

/* Whether nobody has tried for this list already; now somebody has. */
static bool claim(struct template *t, uint64_t list)
{
	LOCK_SCOPE(&t->hot_set_lock);
	if (t->removed || t->hot_set_state == HOT_SET_BUILDING || (t->hot_set_tried && t->hot_set_list == list))
		return false;
	uint64_t now = now_ns();
	if (t->refresh && t->hot_set && now - t->hot_set_made_ns < REMAKE_NS)
		return false;
	t->hot_set_made_ns = now;
	t->hot_set_tried = true;
	t->hot_set_list = list;
	t->hot_set_state = HOT_SET_BUILDING;
	return true;
}

static void build(struct packer *packer, const struct task *task)
{
	struct template *t = task->template;
	_cleanup_free_ char *path = path_of(t);
	struct image_stamp image;
	struct error err = { 0 };
	int r = path ? describe_image(t, &image) : -ENOMEM;

	if (r == 0)
		r = template_check_unchanged(t, &err);
	if (r == 0)
		r = hot_set_build(path, t->memory_fd, &image, task->pages, task->count, &packer->stopping, &err);
	/* Changed while it was read? Then it is of no image at all. */
	if (r == 0 && (r = template_check_unchanged(t, &err)) < 0)
		unlink(path);
	if (r == 0)
		r = open_set(t, path, packer->loader, &err);
	if (r == 0) {
		log_info(NULL, "template %s: %zu hot pages packed into '%s'", t->name, task->count, path);
	} else {
		put(t, NULL, HOT_SET_FAILED, err.message[0] ? err.message : strerror(-r));
		if (r != -ECANCELED)
			log_warning(NULL, "template %s has no packed hot set, and its hot pages come from the image: %s",
				    t->name, err.message[0] ? err.message : strerror(-r));
	}
	if (t->removed && path)
		unlink(path);
}

/* ---- zero maps ---- */

static int load_zeros(struct template *t, const char *path, struct error *err)
{
	struct image_stamp image;
	int r = describe_image(t, &image);

	if (r < 0)
		return error_set(err, r, "io_error", "cannot read the image '%s': %s", t->memory, strerror(-r));
	r = zero_map_load(t->source->zeros, path, &image, err);
	if (r == 0)
		t->zero_map_state = ZERO_MAP_READY;
	return r;
}

bool zero_map_open_for(struct template *t)
{
	_cleanup_free_ char *path = beside_path(t, ZERO_MAP_NAME);
	struct error err;

	/* What it would have to be of takes a look at the image to know. */
	if (!path || access(path, F_OK) < 0)
		return false;
	int r = load_zeros(t, path, &err);
	if (r < 0 && strcmp(err.code, "zero_map_missing"))
		log_warning(NULL, "template %s: %s: it is made again", t->name, err.message);
	return r == 0;
}

struct stop {
	const struct packer *packer;
	const struct template *template;
};

static bool stop_looking(void *data)
{
	const struct stop *stop = data;

	return stop->packer->stopping || stop->template->removed || stop->template->source->changed;
}

static void save_zeros(struct template *t)
{
	_cleanup_free_ char *path = beside_path(t, ZERO_MAP_NAME);
	struct image_stamp image;
	struct error err = { 0 };
	int r = path ? describe_image(t, &image) : -ENOMEM;

	if (r == 0)
		r = zero_map_save(t->source->zeros, path, &image, &err);
	if (r < 0)
		log_warning(NULL, "template %s: %s: its zero map lasts as long as this server", t->name,
			    err.message[0] ? err.message : strerror(-r));
	if (t->removed && path)
		unlink(path);
}

static void make_zeros(struct packer *packer, struct template *t)
{
	struct stop stop = { .packer = packer, .template = t };
	struct error err;
	uint64_t start = now_ns();
	int r = zero_map_scan(t->source->zeros, t->memory_fd, stop_looking, &stop);

	if (r == -ENOMEM)
		log_warning(NULL, "template %s has no zero map: out of memory", t->name);
	/* An image that is written to has no forks any more, and what was found in it is true of nothing. */
	if (r < 0 || template_check_unchanged(t, &err) < 0)
		return;
	t->zero_map_state = ZERO_MAP_READY;
	log_info(NULL, "template %s: %" PRIu64 " of its %" PRIu64 " pages are zeros, found in %.1f ms", t->name,
		 zero_map_pages(t->source->zeros), (t->size + ZERO_MAP_PAGE - 1) / ZERO_MAP_PAGE,
		 (double)(now_ns() - start) / 1e6);
	save_zeros(t);
}

static void task_free(struct task *task)
{
	template_unref(task->template);
	free(task->pages);
	free(task);
}

static void *packer_main(void *data)
{
	struct packer *packer = data;

	run_in_background();
	pthread_mutex_lock(&packer->lock);
	for (;;) {
		while (!packer->tasks && !packer->stopping)
			pthread_cond_wait(&packer->wanted, &packer->lock);
		struct task *task = packer->tasks;
		if (!task)
			break;
		packer->tasks = task->next;
		if (!packer->tasks)
			packer->tail = &packer->tasks;
		pthread_mutex_unlock(&packer->lock);

		if (task->zeros)
			make_zeros(packer, task->template);
		else if (task->pages)
			build(packer, task);
		else if (!packer->stopping)
			hot_set_open_for(packer, task->template);
		task_free(task);

		pthread_mutex_lock(&packer->lock);
	}
	pthread_mutex_unlock(&packer->lock);
	return NULL;
}

static void submit(struct packer *packer, struct template *t, bool zeros, uint64_t *pages, size_t count)
{
	struct task *task = calloc(1, sizeof *task);

	if (!task) {
		if (pages)
			put(t, NULL, HOT_SET_FAILED, "out of memory");
		free(pages);
		return;
	}
	*task = (struct task){ .template = template_ref(t), .zeros = zeros, .pages = pages, .count = count };
	LOCK_SCOPE(&packer->lock);
	*packer->tail = task;
	packer->tail = &task->next;
	pthread_cond_signal(&packer->wanted);
}

void packer_open(struct packer *packer, struct template *t)
{
	submit(packer, t, false, NULL, 0);
}

void packer_find_zeros(struct packer *packer, struct template *t)
{
	submit(packer, t, true, NULL, 0);
}

void packer_build(struct packer *packer, struct template *t, uint64_t *pages, size_t count)
{
	if (claim(t, hot_set_digest(pages, count)))
		submit(packer, t, false, pages, count);
	else
		free(pages);
}

void packer_remove(struct template *t)
{
	_cleanup_free_ char *set = path_of(t), *zeros = beside_path(t, ZERO_MAP_NAME);

	/* What is being made sees this when it is done. */
	t->removed = true;
	if (set)
		unlink(set);
	if (zeros && t->source->zeros)
		unlink(zeros);
}

int packer_new(struct packer **ret, struct error *err)
{
	struct packer *packer = calloc(1, sizeof *packer);

	if (!packer)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	pthread_mutex_init(&packer->lock, NULL);
	pthread_cond_init(&packer->wanted, NULL);
	packer->tail = &packer->tasks;
	int r = hot_loader_new(&packer->loader, err);
	if (r < 0) {
		free(packer);
		return r;
	}
	r = pthread_create(&packer->thread, NULL, packer_main, packer);
	if (r != 0) {
		hot_loader_free(packer->loader);
		free(packer);
		return error_set(err, -r, "io_error", "cannot start the thread that packs hot sets: %s", strerror(r));
	}
	pthread_setname_np(packer->thread, "packer");
	*ret = packer;
	return 0;
}

void packer_free(struct packer *packer)
{
	if (!packer)
		return;
	pthread_mutex_lock(&packer->lock);
	packer->stopping = true;
	pthread_cond_signal(&packer->wanted);
	pthread_mutex_unlock(&packer->lock);
	pthread_join(packer->thread, NULL);
	hot_loader_free(packer->loader);
	pthread_cond_destroy(&packer->wanted);
	pthread_mutex_destroy(&packer->lock);
	free(packer);
}
