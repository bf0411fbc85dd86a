/* `faultline trace`: a fork's touches as its observer tells them, filtered, as lines, JSON and a file for Perfetto; and who may read them. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/client.h"
#include "integration/harness/fake_observer.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"
#include "serve/server.h"

#define PAGES 64ul /* a multiple of 8 */

struct scene {
	char socket[SOCKET_PATH_MAX];
	struct test_image image;
};

/* Page numbers are known, and with them what the observer says of each: see touch_of in fake_observer.c. */
static char *memory;

/* Clients put their memory here: reserved in the test, so that nothing else comes to lie there in a process that it forks. */
static void reserve_memory(void)
{
	uintptr_t size = PAGES * PAGE;
	char *p = mmap(NULL, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		fail_msg("mmap: %s", strerror(errno));
	memory = (char *)(((uintptr_t)p + size - 1) & ~(size - 1));
}

static void add_memory(struct vmm *vmm)
{
	munmap(memory, PAGES * PAGE);
	vmm_add_region_at(vmm, memory, PAGES * PAGE, 0);
}

static void set_scene(struct test_server *server, struct scene *scene)
{
	*scene = (struct scene){ 0 };
	test_image_make(&scene->image, server->dir, "base", PAGES * PAGE);
	template_add(server, "base", &scene->image);
	fork_create(server, "base", "fork", ARGS("--record"), scene->socket);
}

static void body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &scene->image);
	add_memory(&vmm);
	vmm_start(&vmm, scene->socket, (struct vmm_form){ 0 });
	for (uint64_t page = 0; page < PAGES; page++)
		vmm_check_page(&vmm, &vmm.regions[0], page);
	client_say(self, 'd');
	client_hear(self, 'q');
}

/* ---- commands that run on ---- */

/* A line of what the command prints; false at its end. */
static bool read_line(struct test_command *command, char *line, size_t size)
{
	uint64_t deadline = deadline_in(WAIT_S);
	size_t n = 0;

	while (n + 1 < size) {
		struct pollfd p = { .fd = command->out, .events = POLLIN };
		if (poll(&p, 1, deadline_ms(deadline)) <= 0)
			fail_msg("`%s` prints nothing more", command->line);
		if (read(command->out, line + n, 1) <= 0)
			break;
		if (line[n] == '\n')
			break;
		n++;
	}
	line[n] = '\0';
	return n > 0;
}

/* The trace is open at the server from here on. */
static void start_trace(struct test_command *command, const struct test_server *server, char *const args[])
{
	char line[512];

	command_start(command, server, args);
	assert_true(read_line(command, line, sizeof line));
	json_t *begin = json_loads(line, 0, NULL);
	assert_string_equal(json_string_value(json_object_get(begin, "event")), "begin");
	assert_string_equal(json_string_value(json_object_get(begin, "observe_tier")), FAKE_TIER);
	json_decref(begin);
}

/* The events of a command that has ended with 0; the caller drops the array. */
static json_t *events_of(struct test_command *command)
{
	struct test_result result = command_wait(command);
	json_t *events = json_array();

	if (result.exit_code != 0)
		fail_msg("exit code %d: %s", result.exit_code, result.err);
	for (char *rest = result.out, *line; (line = strsep(&rest, "\n")) && *line;) {
		json_t *event = json_loads(line, 0, NULL);
		if (!event)
			fail_msg("no JSON: %s", line);
		json_array_append_new(events, event);
	}
	result_clear(&result);
	return events;
}

static const char *kind_of(const json_t *event)
{
	return json_string_value(json_object_get(event, "event"));
}

static double number(const json_t *event, const char *name)
{
	if (!json_is_number(json_object_get(event, name)))
		fail_msg("%s is no number", name);
	return json_number_value(json_object_get(event, name));
}

static uint64_t page_of(const json_t *touch)
{
	assert_int_equal((uint64_t)number(touch, "address"), (uint64_t)memory + (uint64_t)number(touch, "offset"));
	assert_int_equal(number(touch, "region"), 0);
	return (uint64_t)number(touch, "offset") / PAGE;
}

static bool is_demand(uint64_t page)
{
	return page % 8 != 7;
}

static void expect_touch(const json_t *touch, uint64_t page)
{
	assert_string_equal(kind_of(touch), "touch");
	assert_int_equal(page_of(touch), page);
	assert_int_equal(number(touch, "vcpu"), page % 2);
	assert_string_equal(json_string_value(json_object_get(touch, "kind")), page % 4 == 1 ? "write" : "read");
	assert_int_equal(json_is_true(json_object_get(touch, "demand")), is_demand(page));
	if (!is_demand(page)) {
		assert_true(json_is_null(json_object_get(touch, "total_us")));
		assert_true(json_is_null(json_object_get(touch, "wake_us")));
		return;
	}
	double phases = number(touch, "queue_us") + number(touch, "source_us") + number(touch, "copy_us") +
			number(touch, "wake_us");
	assert_true(phases - number(touch, "total_us") < 0.0005 && number(touch, "total_us") - phases < 0.0005);
	assert_true(number(touch, "queue_us") == FAKE_QUEUE_NS / 1e3);
	assert_true(number(touch, "wake_us") == FAKE_WAKE_NS / 1e3);
}

/* Starts the client, which touches every page, and returns once all of them are stamped. */
static struct client *run_guest(const struct test_server *server, struct scene *scene)
{
	struct client *client = client_start("fork", body, scene);
	uint64_t deadline = deadline_in(WAIT_S);

	client_await(client, 'd');
	while (fake_observer()->stamp_count < PAGES && deadline_ms(deadline) > 0)
		fork_number(server, "fork", "faults");
	return client;
}

static void end_guest(struct client *client)
{
	client_tell(client, 'q');
	client_join(client);
}

/* ---- what it prints ---- */

static void test_every_touch_from_the_first_to_the_last(void **state)
{
	struct test_server *server = *state;
	struct test_command trace;
	struct scene scene;

	set_scene(server, &scene);
	start_trace(&trace, server, ARGS("trace", "fork"));
	end_guest(run_guest(server, &scene));
	json_t *events = events_of(&trace);
	assert_int_equal(json_array_size(events), PAGES + 1);
	for (size_t i = 0; i < PAGES; i++)
		expect_touch(json_array_get(events, i), i);
	assert_string_equal(kind_of(json_array_get(events, PAGES)), "end");
	assert_string_equal(json_string_value(json_object_get(json_array_get(events, PAGES), "reason")), "gone");
	json_decref(events);
}

/* With these options it shows just the pages for which WANTED says so. */
static void check_filter(const char *options[4], bool (*wanted)(uint64_t page))
{
	struct test_server *server;
	struct test_command trace;
	struct scene scene;
	char *args[8] = { "trace", "fork" };
	size_t at = 0;
	void *state;

	fake_observer_setup(&state);
	server = state;
	for (unsigned i = 0; i < 4 && options[i]; i++)
		args[2 + i] = (char *)options[i];
	set_scene(server, &scene);
	start_trace(&trace, server, args);
	end_guest(run_guest(server, &scene));
	json_t *events = events_of(&trace);
	for (uint64_t page = 0; page < PAGES; page++)
		if (wanted(page))
			expect_touch(json_array_get(events, at++), page);
	assert_int_equal(json_array_size(events), at + 1);
	json_decref(events);
	assert_int_equal(test_server_teardown(&state), 0);
}

static bool is_odd(uint64_t page)
{
	return page % 2 == 1;
}

static bool is_between(uint64_t page)
{
	return page >= 10 && page < 20;
}

static bool is_demanded_odd(uint64_t page)
{
	return is_demand(page) && page % 2 == 1;
}

static bool is_never(uint64_t page)
{
	return page >= PAGES;
}

static void test_filters(void **state)
{
	char addresses[64];
	const struct {
		const char *options[4];
		bool (*wanted)(uint64_t);
	} cases[] = {
		{ { "--vcpu", "1" }, is_odd },
		{ { "--demand-only" }, is_demand },
		{ { "--range", "40K-81920" }, is_between },
		{ { "--range", addresses }, is_between },
		{ { "--vcpu", "1", "--min-stall", "1us" }, is_demanded_odd },
		{ { "--min-stall", "100s" }, is_never },
		{ { "--region", "1" }, is_never },
	};

	(void)state;
	snprintf(addresses, sizeof addresses, "0x%" PRIx64 "-0x%" PRIx64, (uint64_t)memory + 10 * PAGE,
		 (uint64_t)memory + 20 * PAGE);
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
		check_filter((const char **)cases[i].options, cases[i].wanted);
}

static void test_losses_are_told(void **state)
{
	struct test_server *server = *state;
	struct test_command trace;
	struct scene scene;
	unsigned told = 0;

	set_scene(server, &scene);
	fake_observer()->trace_lost = 17;
	fake_observer()->figures.events_lost = 100; /* before this trace */
	start_trace(&trace, server, ARGS("trace", "fork"));
	struct client *client = run_guest(server, &scene);
	/* By the kernel, before they came to any trace. */
	fake_observer()->figures.events_lost = 105;
	end_guest(client);
	json_t *events = events_of(&trace), *event;
	size_t i;
	json_array_foreach(events, i, event)
		if (!strcmp(kind_of(event), "lost"))
			told += (unsigned)number(event, "count");
	assert_int_equal(told, 17 + 5);
	json_decref(events);
}

static void test_it_ends_after_as_many_lines_as_asked_for(void **state)
{
	struct test_server *server = *state;
	struct test_command trace;
	struct scene scene;

	set_scene(server, &scene);
	start_trace(&trace, server, ARGS("trace", "fork", "--count", "5"));
	struct client *client = run_guest(server, &scene);
	json_t *events = events_of(&trace);
	assert_int_equal(json_array_size(events), 5);
	expect_touch(json_array_get(events, 4), 4);
	json_decref(events);
	end_guest(client);
}

static void waiting_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &scene->image);
	add_memory(&vmm);
	vmm_start(&vmm, scene->socket, (struct vmm_form){ 0 });
	client_say(self, 'c');
	client_hear(self, 'g');
	for (uint64_t page = 0; page < PAGES; page++)
		vmm_check_page(&vmm, &vmm.regions[0], page);
}

static void expect_row(const char *line, uint64_t page)
{
	double time, total, queue, source, copy, wake;
	char vcpu[8], address[24], offset[24], kind[8], there[8];
	unsigned region;

	/* The thread's name, between them, has blanks. */
	const char *rest = strstr(line, "0x");
	assert_non_null(rest);
	assert_int_equal(sscanf(line, "%lf %7s", &time, vcpu), 2);
	assert_int_equal(sscanf(rest, "%23s %u %23s %7s", address, &region, offset, kind), 4);
	assert_int_equal(strtoull(vcpu, NULL, 10), page % 2);
	assert_int_equal(strtoull(address, NULL, 16), (uint64_t)memory + page * PAGE + 8);
	assert_int_equal(strtoull(offset, NULL, 16), page * PAGE + 8);
	assert_string_equal(kind, page % 4 == 1 ? "write" : "read");
	rest = strstr(rest, kind) + strlen(kind);
	if (!is_demand(page)) {
		assert_int_equal(sscanf(rest, "%7s", there), 1);
		assert_string_equal(there, "there");
		return;
	}
	assert_int_equal(sscanf(rest, "%lf %lf %lf %lf %lf", &total, &queue, &source, &copy, &wake), 5);
	assert_true(queue == FAKE_QUEUE_NS / 1e3 && wake == FAKE_WAKE_NS / 1e3);
}

static void test_lines_for_people(void **state)
{
	struct test_server *server = *state;
	struct scene scene;
	char command[400], line[400];
	uint64_t deadline = deadline_in(WAIT_S);

	set_scene(server, &scene);
	struct client *client = client_start("fork", waiting_body, &scene);
	client_await(client, 'c');
	fork_wait(server, "fork", "connected");
	snprintf(command, sizeof command, "%s trace fork --run-dir %s 2>&1", getenv("FAULTLINE"), server->run_dir);
	FILE *f = popen(command, "re");
	while (!fake_fork("fork")->traces && deadline_ms(deadline) > 0)
		fork_number(server, "fork", "faults");
	client_tell(client, 'g');
	client_join(client);

	assert_non_null(fgets(line, sizeof line, f));
	assert_non_null(strstr(line, "VCPU"));
	for (uint64_t page = 0; page < PAGES; page++) {
		assert_non_null(fgets(line, sizeof line, f));
		expect_row(line, page);
	}
	assert_non_null(fgets(line, sizeof line, f));
	assert_string_equal(line, "64 touches; the fork has ended\n");
	assert_int_equal(pclose(f), 0);
}

/* ---- Perfetto ---- */

static size_t count_events(const json_t *events, const char *phase, const char *name)
{
	const json_t *event;
	size_t i, n = 0;

	json_array_foreach(events, i, event)
		n += !strcmp(json_string_value(json_object_get(event, "ph")), phase) &&
		     !strcmp(json_string_value(json_object_get(event, "name")), name);
	return n;
}

static json_t *wait_for_events(const char *path, const char *phase, const char *name, size_t count)
{
	uint64_t deadline = deadline_in(WAIT_S);

	for (;;) {
		json_error_t why;
		json_t *trace = json_load_file(path, 0, &why);
		/* Whole at any moment, once it has begun. */
		if (trace && count_events(json_object_get(trace, "traceEvents"), phase, name) >= count)
			return trace;
		json_decref(trace);
		if (deadline_ms(deadline) == 0)
			fail_msg("%s does not get %zu events '%s': %s", path, count, name, why.text);
		usleep(1000); /* a file has no event to wait for */
	}
}

/* Slices of a lane are either apart or one inside the other, or nothing can draw them. */
static void expect_nested(const json_t *events, json_int_t process, json_int_t lane)
{
	struct {
		double start, end;
	} open[64];
	unsigned depth = 0;
	const json_t *event;
	size_t i;

	json_array_foreach(events, i, event) {
		if (strcmp(json_string_value(json_object_get(event, "ph")), "X") ||
		    json_integer_value(json_object_get(event, "pid")) != process ||
		    json_integer_value(json_object_get(event, "tid")) != lane)
			continue;
		double start = number(event, "ts"), end = start + number(event, "dur");
		while (depth > 0 && open[depth - 1].end <= start + 0.0005)
			depth--;
		assert_true(depth < 63 && (depth == 0 || end <= open[depth - 1].end + 0.0005));
		open[depth].start = start;
		open[depth++].end = end;
	}
}

static bool has_lane(const json_t *events, const char *name)
{
	const json_t *event;
	size_t i;

	json_array_foreach(events, i, event)
		if (!strcmp(json_string_value(json_object_get(event, "name")), "thread_name") &&
		    !strcmp(json_string_value(json_object_get(json_object_get(event, "args"), "name")), name))
			return true;
	return false;
}

static void test_a_file_for_perfetto_is_whole_when_interrupted(void **state)
{
	struct test_server *server = *state;
	struct test_command trace;
	struct scene scene;
	char path[128];

	set_scene(server, &scene);
	snprintf(path, sizeof path, "%s/trace.json", server->dir);
	command_start(&trace, server, ARGS("trace", "fork", "--perfetto", path));
	/* It has begun: nothing will be missed. */
	json_decref(wait_for_events(path, "M", "process_name", 2));
	struct client *client = run_guest(server, &scene);
	size_t demanded = PAGES - PAGES / 8;
	/* The last page is one that was there. */
	json_decref(wait_for_events(path, "i", "touch", PAGES / 8));
	kill(trace.pid, SIGINT);
	struct test_result result = command_wait(&trace);
	assert_int_equal(result.exit_code, 0);
	assert_string_equal(result.out, "");
	result_clear(&result);

	json_t *file = json_load_file(path, 0, NULL);
	assert_non_null(file);
	const json_t *events = json_object_get(file, "traceEvents");
	assert_int_equal(count_events(events, "X", "fault"), demanded);
	assert_int_equal(count_events(events, "i", "touch"), PAGES / 8);
	assert_int_equal(count_events(events, "X", "queue"), demanded);
	assert_int_equal(count_events(events, "X", "wake"), demanded);
	assert_int_equal(count_events(events, "X", "serve"), demanded);
	assert_true(has_lane(events, "vCPU 0: a ?vcpu? 0"));
	assert_true(has_lane(events, "vCPU 1: a ?vcpu? 1"));
	assert_true(has_lane(events, "pager"));
	expect_nested(events, 1, 1000);
	expect_nested(events, 1, 1001);
	for (json_int_t lane = 1; lane <= 16; lane++)
		expect_nested(events, 2, lane);
	json_decref(file);
	end_guest(client);
}

/* ---- who may ---- */

static void test_what_can_not_be_traced(void **state)
{
	struct test_server *server = *state;
	struct scene scene;

	command_fails(server, ARGS("trace", "nobody"), 4, "nobody");
	fake_observer()->attach_result = -EPERM;
	set_scene(server, &scene);
	struct test_command waiting;
	start_trace(&waiting, server, ARGS("trace", "fork"));
	struct client *client = client_start("fork", body, &scene);
	client_await(client, 'd');
	/* It was waited for, and then could not be observed. */
	struct test_result result = command_wait(&waiting);
	assert_int_equal(result.exit_code, 1);
	assert_non_null(strstr(result.err, "not_observed"));
	result_clear(&result);
	command_fails(server, ARGS("trace", "fork"), 1, "not_observed");
	end_guest(client);
	fork_wait(server, "fork", "gone");
	command_fails(server, ARGS("trace", "fork"), 1, "not_observed");
}

static void test_a_fork_that_is_gone(void **state)
{
	struct test_server *server = *state;
	struct scene scene;

	set_scene(server, &scene);
	end_guest(run_guest(server, &scene));
	fork_wait(server, "fork", "gone");
	command_fails(server, ARGS("trace", "fork"), 1, "fork_gone");
}

static void test_as_many_as_are_served_and_no_more(void **state)
{
	struct test_server *server = *state;
	struct test_command traces[TRACES_MAX];
	struct scene scene;
	uint64_t deadline = deadline_in(WAIT_S);

	set_scene(server, &scene);
	for (unsigned i = 0; i < TRACES_MAX; i++)
		start_trace(&traces[i], server, ARGS("trace", "fork"));
	command_fails(server, ARGS("trace", "fork"), 1, "busy");

	/* One whose client is killed makes room, whether it has anything to tell or not. */
	kill(traces[0].pid, SIGINT);
	json_decref(events_of(&traces[0]));
	for (;;) {
		command_start(&traces[0], server, ARGS("trace", "fork"));
		char line[512];
		if (read_line(&traces[0], line, sizeof line))
			break;
		struct test_result result = command_wait(&traces[0]);
		assert_true(deadline_ms(deadline) > 0);
		assert_non_null(strstr(result.err, "busy"));
		result_clear(&result);
	}

	end_guest(run_guest(server, &scene));
	for (unsigned i = 0; i < TRACES_MAX; i++) {
		json_t *events = events_of(&traces[i]);
		assert_int_equal(json_array_size(events), PAGES + 1);
		json_decref(events);
	}
}

static void test_removing_a_fork_that_waits_ends_its_traces(void **state)
{
	struct test_server *server = *state;
	struct test_command trace;
	struct scene scene;

	set_scene(server, &scene);
	start_trace(&trace, server, ARGS("trace", "fork"));
	json_decref(command_ok(server, ARGS("fork", "remove", "fork")));
	json_t *events = events_of(&trace);
	assert_int_equal(json_array_size(events), 1);
	assert_string_equal(kind_of(json_array_get(events, 0)), "end");
	json_decref(events);
}

static void test_a_server_that_stops_ends_its_traces(void **state)
{
	struct test_server *server = *state;
	struct test_command trace;
	struct scene scene;

	set_scene(server, &scene);
	start_trace(&trace, server, ARGS("trace", "fork"));
	test_server_signal(server, SIGTERM);
	json_t *events = events_of(&trace);
	assert_string_equal(kind_of(json_array_get(events, json_array_size(events) - 1)), "end");
	json_decref(events);
	assert_int_equal(test_server_wait_end(server), 0);
}

static void test_bad_options(void **state)
{
	struct test_server *server = *state;
	char *const bad[][2] = {
		{ "--vcpu", "-1" },	     { "--vcpu", "x" },	   { "--region", "1.5" },  { "--range", "5" },
		{ "--range", "20-10" },	     { "--range", "-5" },  { "--count", "0" },	   { "--min-stall", "fast" },
		{ "--min-stall", "1.2.3s" }, { "--duration", "" }, { "--duration", "0s" },
	};

	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		command_fails(server, ARGS("trace", "fork", bad[i][0], bad[i][1]), 2, bad[i][0] + 2);
	command_fails(server, ARGS("trace", "fork", "--perfetto", "/no/such/dir/file"), 1, "/no/such/dir/file");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		OBSERVED(test_every_touch_from_the_first_to_the_last),
		cmocka_unit_test(test_filters),
		OBSERVED(test_losses_are_told),
		OBSERVED(test_it_ends_after_as_many_lines_as_asked_for),
		OBSERVED(test_lines_for_people),
		OBSERVED(test_a_file_for_perfetto_is_whole_when_interrupted),
		OBSERVED(test_what_can_not_be_traced),
		OBSERVED(test_a_fork_that_is_gone),
		OBSERVED(test_as_many_as_are_served_and_no_more),
		OBSERVED(test_removing_a_fork_that_waits_ends_its_traces),
		OBSERVED(test_a_server_that_stops_ends_its_traces),
		OBSERVED(test_bad_options),
	};

	reserve_memory();
	return harness_run(tests);
}
