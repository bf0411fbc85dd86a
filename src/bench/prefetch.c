/*
 * How long it takes until a list of pages is there: a server's eager prefetch against bare prefetchers, and against doing without. Then
 * the guest touches those pages.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "bench/run.h"
#include "hotlist/hotlist.h"

#define PAGES_FULL  20000
#define PAGES_QUICK 8000
#define MEAN_RUN    3.0
#define MEAN_GAP    7.0

#define TARGET_SPEEDUP	  1.8
#define TARGET_CONTIGUOUS 0.9

/* Pages in list order, and the same as runs. */
struct page_list {
	uint64_t *pages;
	uint64_t count;
	struct floor_run *runs;
	uint64_t run_count;
	char path[512]; /* as a file */
};

struct prefetch_run {
	struct bench_server server;
	struct bench_image image;
	struct page_list scattered, contiguous;
};

struct prefetch_side {
	const char *id, *label;
	enum { BY_SERVER, BY_FLOOR, BY_KERNEL, BY_NOBODY } by;
	bool contiguous;
	bool one_a_call, reads;
};

static const struct prefetch_side sides[] = {
	{ "ours", "faultline, eager", BY_SERVER, false, false, false },
	{ "read_one", "one page a call, read from the file", BY_FLOOR, false, true, true },
	{ "read_one_again", "the same once more", BY_FLOOR, false, true, true },
	{ "mapped_one", "one page a call, from a mapping", BY_FLOOR, false, true, false },
	{ "mapped_run", "one run a call, from a mapping", BY_FLOOR, false, false, false },
	{ "mmap", "plain mmap of the image", BY_KERNEL, false, false, false },
	{ "present", "everything present", BY_NOBODY, false, false, false },
	{ "ours_contiguous", "faultline, eager", BY_SERVER, true, false, false },
	{ "one_call", "all of them in one call", BY_FLOOR, true, false, false },
	{ "one_call_again", "the same once more", BY_FLOOR, true, false, false },
};

static const struct prefetch_side *side_of(const char *id)
{
	for (unsigned i = 0; i < sizeof sides / sizeof *sides; i++)
		if (!strcmp(sides[i].id, id))
			return &sides[i];
	return NULL;
}

/* ---- lists ---- */

static void list_clear(struct page_list *list)
{
	free(list->pages);
	free(list->runs);
	*list = (struct page_list){ 0 };
}

static void list_add_run(struct page_list *list, uint64_t page, uint64_t count)
{
	list->runs[list->run_count++] = (struct floor_run){ page, count };
	for (uint64_t i = 0; i < count; i++)
		list->pages[list->count++] = page + i;
}

/* WANTED pages: one run, or many with geometrically distributed lengths and gaps. */
static int list_make(struct page_list *list, uint64_t wanted, bool contiguous, struct error *err)
{
	struct bench_random random = { .state = wanted };
	uint64_t page = 0;

	list->pages = calloc(wanted, sizeof *list->pages);
	list->runs = calloc(wanted, sizeof *list->runs);
	if (!list->pages || !list->runs)
		return error_set(err, -ENOMEM, "bench_failed", "there is not enough memory for a list of pages");
	while (list->count < wanted) {
		uint64_t left = wanted - list->count, n = contiguous ? left : bench_random_geometric(&random, MEAN_RUN);

		n = n < left ? n : left;
		list_add_run(list, page, n);
		page += n + bench_random_geometric(&random, MEAN_GAP);
	}
	return 0;
}

static int list_save(struct page_list *list, const char *dir, const char *name, struct error *err)
{
	_cleanup_hotlist_ struct hotlist *hot = hotlist_new();
	int r = hot ? 0 : -ENOMEM;

	for (uint64_t i = 0; i < list->count && r == 0; i++)
		r = hotlist_add(hot, 0, list->pages[i] * BENCH_PAGE);
	if (r < 0)
		return error_set(err, r, "bench_failed", "there is not enough memory for a list of pages");
	snprintf(list->path, sizeof list->path, "%s/%s", dir, name);
	return hotlist_save(hot, HOTLIST_HPL1, list->path, err);
}

/* ---- one guest ---- */

static int64_t member(const json_t *object, const char *name)
{
	return json_integer_value(json_object_get(object, name));
}

static int start_floor(struct bench *bench, const struct floor_prefetch *floor, struct process **ret,
		       int *ret_guest_end, struct error *err)
{
	int ends[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		return error_set(err, -errno, "bench_failed", "can't make a socket: %s", strerror(errno));
	_cleanup_close_ int guest_end = ends[0];
	int r = process_start(&bench->processes, "a bare prefetcher", &ends[1], 1, floor_prefetch_body, floor, ret, err);
	close(ends[1]);
	if (r == 0)
		r = process_await(&bench->processes, *ret, FLOOR_READY, err);
	if (r == 0)
		*ret_guest_end = TAKE_FD(guest_end);
	return r;
}

/* Waits for the server's word that all is there, and holds it to that. */
static int await_server(struct bench_server *server, const char *id, uint64_t expected, uint64_t *ret_there_ns,
			double *ret_server_ms, struct error *err)
{
	json_t *fork = NULL;
	int r = bench_server_wait_fork(server, id, "prefetched", &fork, err);

	if (r < 0)
		return r;
	*ret_there_ns = now_ns();
	*ret_server_ms = json_number_value(json_object_get(fork, "prefetch_ms"));
	int64_t prefetched = member(fork, "prefetched_pages"), faults = member(fork, "faults");
	json_decref(fork);
	if (prefetched == (int64_t)expected && faults == 0)
		return 0;
	return error_set(err, -EPROTO, "bench_failed",
			 "the server says that it prefetched %lld of %llu pages, and served %lld faults before the guest ran",
			 (long long)prefetched, (unsigned long long)expected, (long long)faults);
}

struct visit {
	const struct prefetch_side *side;
	const struct page_list *list;
	struct guest_result result;
	double server_ms;
};

/* From the handover on. */
static int lead_guest(struct bench *bench, struct prefetch_run *run, struct visit *visit, struct process *guest,
		      const char *id, struct error *err)
{
	uint64_t there_ns = 0;
	int r = process_await(&bench->processes, guest, GUEST_MAPPED, err);

	if (r == 0)
		r = process_tell(guest, GUEST_GO, err);
	if (r == 0 && visit->side->by == BY_SERVER)
		r = await_server(&run->server, id, visit->list->count, &there_ns, &visit->server_ms, err);
	if (r == 0)
		r = process_await(&bench->processes, guest, GUEST_WARM, err);
	if (r == 0)
		r = process_tell(guest, GUEST_TOUCH, err);
	if (r == 0)
		r = process_await(&bench->processes, guest, GUEST_DONE, err);
	if (r < 0)
		return r;
	memcpy(&visit->result, guest->shared->result, sizeof visit->result);
	if (there_ns)
		visit->result.there_ns = there_ns;
	return process_join(&bench->processes, guest, err);
}

static int run_visit(struct bench *bench, struct prefetch_run *run, struct visit *visit, unsigned round,
		     struct error *err)
{
	const struct prefetch_side *side = visit->side;
	const struct page_list *list = visit->list;
	struct guest_spec spec = { .image = &run->image,
				   .pages = list->count,
				   .list = list->pages,
				   .region_pages = run->image.pages,
				   .prefetched = true,
				   .vcpus = 1,
				   .cpus = { GUEST_ANY_CPU },
				   .seed = round };
	struct floor_prefetch floor = { .image = &run->image,
					.runs = list->runs,
					.run_count = list->run_count,
					.most = side->one_a_call ? 1 : UINT64_MAX,
					.reads = side->reads };
	struct process *guest, *prefetcher = NULL;
	_cleanup_close_ int guest_end = -1;
	char id[24] = "", socket_path[SOCKET_PATH_SIZE];
	int r = 0;

	spec.memory = side->by == BY_KERNEL ? GUEST_MMAP : side->by == BY_NOBODY ? GUEST_PRESENT : GUEST_UFFD;
	if (side->by == BY_SERVER) {
		bench_fork_id(bench, id);
		r = bench_server_create_fork(&run->server, "base", id, list->path, socket_path, err);
		spec.socket = socket_path;
	} else if (side->by == BY_FLOOR) {
		r = start_floor(bench, &floor, &prefetcher, &guest_end, err);
	}
	if (r == 0)
		r = process_start(&bench->processes, "a guest", &guest_end, prefetcher ? 1 : 0, guest_body, &spec,
				  &guest, err);
	if (r == 0)
		r = lead_guest(bench, run, visit, guest, id, err);
	if (r == 0 && prefetcher)
		r = process_join(&bench->processes, prefetcher, err);
	if (r == 0 && side->by == BY_SERVER)
		r = bench_server_end_fork(&run->server, id, err);
	return r;
}

static int measure(struct bench *bench, struct bench_case *c __attribute__((unused)), struct side *side, unsigned round,
		   void *data, struct error *err)
{
	struct prefetch_run *run = data;
	struct visit visit = { .side = side_of(side->id) };

	visit.list = visit.side->contiguous ? &run->contiguous : &run->scattered;
	int r = run_visit(bench, run, &visit, round, err);
	if (r < 0)
		return r;

	const struct guest_result *result = &visit.result;
	bool supplied = visit.side->by == BY_SERVER || visit.side->by == BY_FLOOR;
	double there = supplied ? (double)(result->there_ns - result->handshake_ns) / 1e6 : 0;
	double touch = (double)(result->end_ns - result->start_ns) / 1e6;
	side_add(side, "there_ms", there);
	side_add(side, "touch_ms", touch);
	side_add(side, "total_ms", there + touch);
	if (visit.side->by == BY_SERVER)
		side_add(side, "server_ms", visit.server_ms);
	return 0;
}

/* ---- cases ---- */

static int run_scattered(struct bench *bench, struct prefetch_run *run, struct error *err)
{
	struct bench_case *c = case_new("scattered", "a list of scattered pages", err);

	if (!c)
		return -ENOMEM;
	snprintf(c->details, sizeof c->details, "%llu pages in %llu runs (mean %.1f), over %llu MiB of memory",
		 (unsigned long long)run->scattered.count, (unsigned long long)run->scattered.run_count,
		 (double)run->scattered.count / (double)run->scattered.run_count,
		 (unsigned long long)(run->image.size >> 20));
	for (unsigned i = 0; i < sizeof sides / sizeof *sides; i++)
		if (!sides[i].contiguous)
			case_add_side(c, sides[i].id, sides[i].label);
	c->again[0] = "read_one_again";
	c->again[1] = "read_one";
	case_add_ratio(c, (struct ratio){ "until there: one page read and copied at a time / faultline", "there_ms",
					  "read_one", "ours", TARGET_SPEEDUP, true });
	case_add_ratio(c, (struct ratio){ "until there: one mapped page a call / faultline", "there_ms", "mapped_one",
					  "ours", 0, true });
	case_add_ratio(c, (struct ratio){ "until there: one mapped run a call / faultline", "there_ms", "mapped_run",
					  "ours", 0, true });
	case_add_ratio(c,
		       (struct ratio){ "with touching: plain mmap / faultline", "total_ms", "mmap", "ours", 0, true });
	return bench_alternate(bench, c, measure, run, err);
}

static int run_contiguous(struct bench *bench, struct prefetch_run *run, struct error *err)
{
	struct bench_case *c = case_new("contiguous", "as many pages in one run", err);

	if (!c)
		return -ENOMEM;
	snprintf(c->details, sizeof c->details, "%llu pages in one run", (unsigned long long)run->contiguous.count);
	for (unsigned i = 0; i < sizeof sides / sizeof *sides; i++)
		if (sides[i].contiguous)
			case_add_side(c, sides[i].id, sides[i].label);
	c->again[0] = "one_call_again";
	c->again[1] = "one_call";
	case_add_ratio(c, (struct ratio){ "until there: one call / faultline", "there_ms", "one_call",
					  "ours_contiguous", TARGET_CONTIGUOUS, true });
	return bench_alternate(bench, c, measure, run, err);
}

static int run_cases(struct bench *bench, struct prefetch_run *run, struct error *err)
{
	int r = bench_server_start(&bench->processes, bench->options, bench->dir, &run->server, err);

	if (r < 0)
		return r;
	r = bench_server_add_template(&run->server, "base", &run->image, err);
	if (r == 0)
		r = run_scattered(bench, run, err);
	if (r == 0)
		r = run_contiguous(bench, run, err);
	if (r == 0)
		return bench_server_stop(&run->server, err);
	bench_server_drop(&run->server);
	return r;
}

static int prepare(struct bench *bench, struct prefetch_run *run, struct error *err)
{
	uint64_t wanted = bench_size(bench, PAGES_FULL, PAGES_QUICK);
	int r = list_make(&run->scattered, wanted, false, err);

	if (r == 0)
		r = list_make(&run->contiguous, wanted, true, err);
	if (r == 0)
		r = list_save(&run->scattered, bench->dir, "scattered.hpl1", err);
	if (r == 0)
		r = list_save(&run->contiguous, bench->dir, "contiguous.hpl1", err);
	if (r < 0)
		return r;
	uint64_t pages = run->scattered.pages[run->scattered.count - 1] + 1 + GUEST_SPARE_PAGES;
	return bench_image_make(bench->dir, "prefetch", pages, 0, &run->image, err);
}

int bench_prefetch(struct bench *bench, struct error *err)
{
	struct prefetch_run run = { 0 };
	int r = prepare(bench, &run, err);

	if (r == 0)
		r = run_cases(bench, &run, err);
	list_clear(&run.scattered);
	list_clear(&run.contiguous);
	return r;
}
