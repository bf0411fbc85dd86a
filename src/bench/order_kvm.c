/* Forks of the group "order" that are guests under KVM: what runs them, whether the kernel tells of their touches, and one from start to end. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench/order.h"

#define VMM_NAME "faultline-tiny-vmm"
/* Its exit statuses. */
#define VMM_FAILED 1
#define VMM_WRONG  4

/* A guest that shows whether it can be seen need not do much. */
#define TRIAL_TOUCHES 48

static int no_memory(struct error *err)
{
	return error_set(err, -ENOMEM, "bench_failed", "there is not enough memory for what a guest did");
}

/* ---- what runs guests ---- */

static bool is_program(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISREG(st.st_mode) && access(path, X_OK) == 0;
}

int order_find_vmm(struct order_run *run, struct error *err)
{
	static const char *const places[] = { "", "tests/" };
	const char *named = run->bench->options->tiny_vmm, *binary = run->bench->options->binary;
	const char *slash = strrchr(binary, '/');

	if (named) {
		if (!is_program(named))
			return error_set(err, -ENOENT, "bench_failed",
					 "%s, which --tiny-vmm or FAULTLINE_TINY_VMM names, is no program that can be run",
					 named);
		snprintf(run->vmm, sizeof run->vmm, "%s", named);
		return 0;
	}
	for (unsigned i = 0; i < sizeof places / sizeof *places; i++) {
		snprintf(run->vmm, sizeof run->vmm, "%.*s%s%s", slash ? (int)(slash + 1 - binary) : 0, binary,
			 places[i], VMM_NAME);
		if (is_program(run->vmm))
			return 0;
	}
	run->vmm[0] = '\0';
	snprintf(run->kvm_missing, sizeof run->kvm_missing,
		 "there is no " VMM_NAME
		 " beside this program, nor in the directory 'tests' there, to run guests; it is built "
		 "with the tests, and --tiny-vmm names it");
	return 0;
}

/* ---- what a guest did ---- */

struct story {
	struct hotlist *order; /* of its first touches */
	uint64_t connected_ns, last_ns;
	uint64_t wrong;
	bool ended; /* all is told */
};

static uint64_t number(const json_t *object, const char *name)
{
	return (uint64_t)json_integer_value(json_object_get(object, name));
}

static int read_line(struct story *story, const json_t *line)
{
	const char *event = json_string_value(json_object_get(line, "event"));

	if (event && !strcmp(event, "start"))
		story->connected_ns = number(line, "connected_ns");
	if (event && !strcmp(event, "end")) {
		story->wrong = number(line, "wrong");
		story->ended = true;
	}
	if (!json_object_get(line, "touch"))
		return 0;
	story->last_ns = number(line, "done_ns");
	if (!json_is_true(json_object_get(line, "first")))
		return 0;
	return hotlist_add(story->order, number(line, "region"), number(line, "offset"));
}

static int read_story(const char *path, struct story *story, struct error *err)
{
	_cleanup_fclose_ FILE *file = fopen(path, "re");
	_cleanup_free_ char *text = NULL;
	size_t capacity = 0;

	story->order = hotlist_new();
	if (!story->order)
		return no_memory(err);
	while (file && getline(&text, &capacity, file) > 0) {
		json_t *line = json_loads(text, 0, NULL);
		int r = line ? read_line(story, line) : -EBADMSG;

		json_decref(line);
		if (r == -ENOMEM)
			return no_memory(err);
		if (r < 0)
			return error_set(err, r, "bench_failed", "the guest's VMM says what is no JSON: %.80s", text);
	}
	return 0;
}

/* Whether both have the same pages, each once; ORDERED: also in the same order. */
static bool is_same(const struct hotlist *a, const struct hotlist *b, bool ordered)
{
	if (a->count != b->count)
		return false;
	if (!ordered)
		return order_count_common(a, b) == a->count;
	for (size_t i = 0; i < a->count; i++)
		if (a->pages[i].region != b->pages[i].region || a->pages[i].offset != b->pages[i].offset)
			return false;
	return true;
}

/* The truth is what the guest has done, and not what it was told to do. Of vCPUs that are free, it is what they would have done without stalls. */
static int check_story(const struct story *story, const struct hotlist *truth, bool ordered, int status,
		       struct error *err)
{
	if (story->wrong || status == VMM_WRONG)
		return error_set(err, -EBADMSG, "wrong_bytes",
				 "a guest under KVM found other bytes than the memory image has; its VMM's messages say "
				 "where; the figures mean nothing");
	if (status == VMM_FAILED)
		return error_set(err, -ENODEV, "no_guest", "%s could not run the guest; its message is above", VMM_NAME);
	if (status != 0 || !story->ended)
		return error_set(err, -EPROTO, "bench_failed", "%s ended with status %d", VMM_NAME, status);
	if (!is_same(story->order, truth, ordered))
		return error_set(err, -EPROTO, "bench_failed",
				 "a guest under KVM touched other pages than its script has, or in another order");
	return 0;
}

/* ---- a guest ---- */

static void list_cpus(const struct bench *bench, char ret[static 64])
{
	ret[0] = '\0';
	for (unsigned i = 0; i < bench->cpu_count; i++)
		snprintf(ret + strlen(ret), 64 - strlen(ret), "%s%d", i ? "," : "", bench->cpu_list[i]);
}

/* Runs the VMM to its end. What it says goes to the file OUTPUT; RET_STATUS is its exit status. */
static int run_vmm(struct order_run *run, const struct order_visit *visit, const char *script, const char *socket,
		   const char *output, int *ret_status, struct error *err)
{
	_cleanup_close_ int fd = open(output, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	char cpus[64], *argv[12] = { run->vmm,	 (char *)run->workload->image_path,
				     "--script", (char *)script,
				     "--socket", (char *)socket,
				     "--cpus",	 cpus,
				     "--irqchip" };
	unsigned count = 9;
	struct process *process;

	if (fd < 0)
		return error_set(err, -errno, "bench_failed", "can't write %s: %s", output, strerror(errno));
	list_cpus(run->bench, cpus);
	if (visit->ahead)
		argv[count++] = "--wait-prefetched";
	int r = process_start_writer(&run->bench->processes, "a guest's VMM", argv, fd, &process, err);
	return r < 0 ? r : process_await_end(&run->bench->processes, process, ret_status, err);
}

static int run_guest(struct order_run *run, struct order_visit *visit, const char *socket, struct error *err)
{
	const struct trace *trace = order_trace(run, visit->trace);
	char script[400], output[400];
	struct story story = { 0 };
	int status = 0;

	snprintf(script, sizeof script, "%s/script", run->bench->dir);
	snprintf(output, sizeof output, "%s/touches", run->bench->dir);
	int r = order_write_script(trace, run->situation->vcpus, script, err);
	if (r >= 0)
		r = run_vmm(run, visit, script, socket, output, &status, err);
	if (r >= 0)
		r = read_story(output, &story, err);
	if (r >= 0)
		r = check_story(&story, run->workload->truth[visit->trace], run->situation->vcpus != REPLAY_INDEPENDENT,
				status, err);
	visit->result.added_ns = (int64_t)(story.last_ns - story.connected_ns) - (int64_t)trace->length_ns;
	hotlist_free(story.order);
	return r;
}

/* Its VMM has failed, and may not even have connected: there is no end of it to wait for. */
static int give_up(struct order_run *run, const char *id, int result, struct error *err)
{
	struct error dropping = { 0 };
	int r = bench_server_drop_fork(&run->server, id, &dropping);

	if (r >= 0)
		return result;
	*err = dropping;
	return r;
}

int order_visit_kvm(struct order_run *run, struct order_visit *visit, struct error *err)
{
	char id[24], socket[SOCKET_PATH_SIZE];
	struct bench_fork fork = {
		.template = ORDER_TEMPLATE, .id = id, .hot_list = visit->hot_list, .stream = !visit->ahead, .record = true
	};

	bench_fork_id(run->bench, id);
	int r = bench_server_create(&run->server, &fork, socket, err);
	if (r >= 0)
		r = run_guest(run, visit, socket, err);
	if (r == -ENODEV)
		return give_up(run, id, r, err);
	if (r >= 0)
		r = bench_server_wait_fork(&run->server, id, "gone", NULL, err);
	if (r >= 0)
		r = order_collect(run, visit, id, err);
	return r < 0 ? r : bench_server_end_fork(&run->server, id, err);
}

/* ---- whether its touches are seen ---- */

/* A guest whose pages were all there: nobody but KVM can tell of its touches. */
static int try_guest(struct order_run *run, struct error *err)
{
	struct order_visit visit = { .ahead = true, .kernel = true };
	char path[400];
	int r = order_save(run, run->workload->truth[0], path, err);

	visit.hot_list = path;
	if (r >= 0)
		r = order_add_template(run, err);
	if (r >= 0)
		r = order_visit(run, &visit, err);
	if (r == -ENODEV && !strcmp(err->code, "no_guest")) {
		snprintf(run->kvm_missing, sizeof run->kvm_missing, "%s", err->message);
		r = 0;
	} else if (r >= 0 && run->unobserved) {
		snprintf(run->kvm_missing, sizeof run->kvm_missing, "nothing observes forks here: see faultline doctor");
	} else if (r >= 0 && order_count_present(visit.seen) < run->workload->truth[0]->count) {
		snprintf(run->kvm_missing, sizeof run->kvm_missing,
			 "KVM does not tell here of the pages that a guest touches (kvm_page_fault): of %zu it told of %zu; see "
			 "faultline doctor",
			 run->workload->truth[0]->count, order_count_present(visit.seen));
	}
	order_visit_clear(&visit);
	return r < 0 ? r : order_remove_template(run, err);
}

int order_try_kvm(struct order_run *run, const struct workload *whole, struct error *err)
{
	const struct situation situation = { .id = "kvm", .vcpus = REPLAY_HALTING, .kvm = true };
	const struct situation *before = run->situation;
	const struct workload *workload = run->workload;
	struct workload beginning;

	run->kvm_tried = true;
	if (run->kvm_missing[0])
		return 0;
	if (access("/dev/kvm", R_OK | W_OK) < 0) {
		snprintf(run->kvm_missing, sizeof run->kvm_missing, "/dev/kvm: %s", strerror(errno));
		return 0;
	}
	int r = workload_fold(whole, TRIAL_TOUCHES, &beginning, err);
	if (r < 0)
		return r;
	bench_show_progress(run->bench, "order: looking whether KVM tells of what guests touch");
	run->situation = &situation;
	run->workload = &beginning;
	r = try_guest(run, err);
	run->situation = before;
	run->workload = workload;
	workload_clear(&beginning);
	return r;
}
