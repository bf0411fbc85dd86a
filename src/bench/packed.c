#include "bench/packed.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

/* How long a set may take to be made, and how often it is looked for. */
#define PATIENCE_NS (60 * NSEC_PER_SEC)
#define AGAIN_NS    (20 * NSEC_PER_MSEC)

static int add_again(struct order_run *run, const char *own_list, struct error *err)
{
	int r = order_remove_template(run, err);

	run->own_list = own_list;
	return r < 0 ? r : order_add_template(run, err);
}

static int await_set(struct order_run *run, struct error *err)
{
	uint64_t end = now_ns() + PATIENCE_NS;

	for (;;) {
		json_t *answer = NULL;
		char state[32], why[300];
		int r = bench_server_show_template(&run->server, ORDER_TEMPLATE, &answer, err);

		if (r < 0)
			return r;
		const json_t *set = json_object_get(answer, "hot_set");
		snprintf(state, sizeof state, "%s", json_string_value(json_object_get(set, "state")) ?: "");
		snprintf(why, sizeof why, "%s", json_string_value(json_object_get(set, "error")) ?: "it takes too long");
		json_decref(answer);
		if (!strcmp(state, "ready"))
			return 0;
		if (!strcmp(state, "failed") || now_ns() > end)
			return error_set(err, -EIO, "bench_failed", "the packed hot set was not made: %s", why);
		r = processes_wait(&run->bench->processes, -1, AGAIN_NS, err);
		if (r < 0)
			return r;
	}
}

static int evict(const char *path)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || fsync(fd) < 0)
		return -errno;
	return -posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
}

int packed_make(struct order_run *run, const struct hotlist *list, struct packed *ret, struct error *err)
{
	struct order_visit visit = { .hot_list = ret->list, .unrecorded = true };

	snprintf(ret->list, sizeof ret->list, "%s/packed.hpl2", run->bench->dir);
	snprintf(ret->set, sizeof ret->set, "%s.%s.hotset", run->workload->image_path, ORDER_TEMPLATE);
	snprintf(ret->kept, sizeof ret->kept, "%s/kept.hotset", run->bench->dir);
	int r = hotlist_save(list, HOTLIST_HPL2, ret->list, err);
	if (r >= 0)
		r = add_again(run, ret->list, err);
	if (r >= 0)
		r = order_visit(run, &visit, err);
	order_visit_clear(&visit);
	if (r >= 0)
		r = await_set(run, err);
	if (r >= 0 && link(ret->set, ret->kept) < 0)
		r = error_set(err, -errno, "bench_failed", "cannot keep %s: %s", ret->set, strerror(errno));
	ret->there = r >= 0;
	return r < 0 ? r : add_again(run, NULL, err);
}

int packed_enter(struct order_run *run, struct packed *packed, struct error *err)
{
	bool cold = run->situation->slow == SLOW_COLD;
	int r = cold ? order_make_cold(run, err) : order_remove_template(run, err);

	if (r >= 0 && cold && (r = evict(packed->kept)) < 0)
		r = error_set(err, r, "bench_failed", "cannot evict %s: %s", packed->kept, strerror(-r));
	if (r >= 0 && link(packed->kept, packed->set) < 0)
		r = error_set(err, -errno, "bench_failed", "cannot put back %s: %s", packed->set, strerror(errno));
	run->own_list = packed->list;
	return r < 0 ? r : order_add_template(run, err);
}

int packed_leave(struct order_run *run, struct error *err)
{
	return add_again(run, NULL, err);
}

void packed_forget(struct packed *packed)
{
	if (packed->list[0])
		unlink(packed->list);
	if (packed->kept[0])
		unlink(packed->kept);
	if (packed->set[0])
		unlink(packed->set);
	*packed = (struct packed){ 0 };
}
