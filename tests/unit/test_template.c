/* Templates: what is refused when one is opened, whether its image is still the same, and its record on disk. */
#include <jansson.h>

#include "template/template.h"
#include "unit/image_helpers.h"

#define SIZE (3 * PAGE + 99)

struct place {
	struct scratch scratch;
	char memory[128], state[128], list[128], records[128];
};

static int make(void **state)
{
	struct place *place = calloc(1, sizeof *place);

	assert_non_null(place);
	scratch_new(&place->scratch);
	write_image(scratch_path(&place->scratch, "memory", place->memory), SIZE);
	write_image(scratch_path(&place->scratch, "state", place->state), 10);
	scratch_path(&place->scratch, "list", place->list);
	assert_int_equal(mkdir(scratch_path(&place->scratch, "records", place->records), 0700), 0);
	*state = place;
	return 0;
}

static int unmake(void **state)
{
	struct place *place = *state;

	scratch_remove(&place->scratch);
	free(place);
	return 0;
}

static struct template *opened(const struct place *place, const char *state, const char *list, const char *inject)
{
	struct error err = { .message = "" };
	struct template *template;

	if (template_open("base", place->memory, state, list, inject, &template, &err) < 0)
		fail_msg("%s", err.message);
	return template;
}

static void assert_not_opened(const char *memory, const char *state, const char *list, const char *inject, int error,
			      const char *code, const char *part)
{
	struct template *template = NULL;
	struct error err = { .code = "" };

	assert_int_equal(template_open("base", memory, state, list, inject, &template, &err), error);
	assert_null(template);
	assert_string_equal(err.code, code);
	assert_contains(err.message, part);
}

static void assert_opens_again(const struct place *place)
{
	_cleanup_template_ struct template *template = opened(place, NULL, NULL, NULL);

	assert_int_equal(template_check_unchanged(template, NULL), 0);
}

static void test_open(void **state)
{
	struct place *place = *state;
	_cleanup_template_ struct template *template = opened(place, place->state, place->list, "delay=0us");
	uint8_t buffer[PAGE];
	struct stat st;

	assert_string_equal(template->name, "base");
	assert_string_equal(template->memory, place->memory);
	assert_string_equal(template->state, place->state);
	assert_string_equal(template->hot_list, place->list); /* which is yet to be recorded */
	assert_string_equal(template->inject, "delay=0us");
	assert_int_equal(stat(place->memory, &st), 0);
	assert_int_equal(template->size, SIZE);
	assert_int_equal(template->inode, st.st_ino);
	assert_int_equal(template->device, st.st_dev);
	assert_int_equal(source_read(template->source, buffer, PAGE, 3 * PAGE), 0);
	assert_image(buffer, PAGE, 3 * PAGE, SIZE);

	_cleanup_template_ struct template *bare = opened(place, NULL, NULL, NULL);
	assert_null(bare->state);
	assert_null(bare->hot_list);
	assert_null(bare->inject);
}

static void test_bad_memory(void **state)
{
	struct place *place = *state;
	char path[128];

	assert_not_opened(scratch_path(&place->scratch, "nothing", path), NULL, NULL, NULL, -ENOENT, "bad_memory", path);
	assert_not_opened(place->scratch.dir, NULL, NULL, NULL, -EINVAL, "bad_memory", "is not a regular file");
	assert_not_opened("/dev/null", NULL, NULL, NULL, -EINVAL, "bad_memory", "is not a regular file");
	/* Nobody writes to it, so that a plain open would wait for ever. */
	assert_int_equal(mkfifo(scratch_path(&place->scratch, "fifo", path), 0600), 0);
	assert_not_opened(path, NULL, NULL, NULL, -EINVAL, "bad_memory", "is not a regular file");
	write_image(scratch_path(&place->scratch, "empty", path), 0);
	assert_not_opened(path, NULL, NULL, NULL, -EINVAL, "bad_memory", "is empty");
	snprintf(path, sizeof path, "%.100s/below", place->memory);
	assert_not_opened(path, NULL, NULL, NULL, -ENOTDIR, "bad_memory", "Not a directory");
	assert_int_equal(symlink("loop", scratch_path(&place->scratch, "loop", path)), 0);
	assert_not_opened(path, NULL, NULL, NULL, -ELOOP, "bad_memory", path);
}

static void test_unreadable_memory(void **state)
{
	struct place *place = *state;

	uid_t user = geteuid();
	assert_int_equal(chmod(place->memory, 0), 0);
	/* Root reads everything. */
	assert_int_equal(seteuid(user == 0 ? 65534 : user), 0);
	assert_not_opened(place->memory, NULL, NULL, NULL, -EACCES, "bad_memory", "Permission denied");
	assert_int_equal(seteuid(user), 0);
}

static void test_bad_state_and_list(void **state)
{
	struct place *place = *state;
	char path[128];

	assert_not_opened(place->memory, scratch_path(&place->scratch, "nothing", path), NULL, NULL, -ENOENT,
			  "bad_state", path);
	snprintf(path, sizeof path, "%.100s/below", place->memory);
	assert_not_opened(place->memory, path, NULL, NULL, -ENOTDIR, "bad_state", "the VMM state");
	assert_not_opened(place->memory, place->state, path, NULL, -ENOTDIR, "bad_hot_list", "the hot list");
}

static void test_bad_inject(void **state)
{
	struct place *place = *state;

	assert_not_opened(place->memory, NULL, NULL, "delay=soon", -EINVAL, "bad_inject", "'delay=soon'");
}

static void test_references(void **state)
{
	struct place *place = *state;
	struct template *template = opened(place, NULL, NULL, NULL);
	int fd = template->memory_fd;

	assert_ptr_equal(template_ref(template), template);
	template_unref(template);
	assert_int_equal(template_check_unchanged(template, NULL), 0);
	template_unref(template);
	assert_int_equal(fcntl(fd, F_GETFD), -1);
	template_unref(NULL);
}

static void assert_changed(const struct template *template, const char *part)
{
	struct error err = { .code = "" };

	assert_int_equal(template_check_unchanged(template, &err), -ESTALE);
	assert_string_equal(err.code, "template_changed");
	assert_contains(err.message, part);
	assert_contains(err.message, "'base'");
}

static void test_image_truncated_or_grown(void **state)
{
	struct place *place = *state;
	_cleanup_template_ struct template *template = opened(place, NULL, NULL, NULL);

	assert_int_equal(truncate(place->memory, SIZE - 1), 0);
	assert_changed(template, "had 12387 bytes when it was added and has 12386 now");
	assert_int_equal(truncate(place->memory, SIZE + 1), 0);
	assert_changed(template, "has 12388 now");
	/* The size as it was, but the last byte is not. */
	assert_int_equal(truncate(place->memory, SIZE), 0);
	assert_changed(template, "has been written to");
}

static void test_image_written_to(void **state)
{
	struct place *place = *state;
	_cleanup_template_ struct template *template = opened(place, NULL, NULL, NULL);
	_cleanup_close_ int fd = open(place->memory, O_RDWR | O_CLOEXEC);

	assert_int_equal(pwrite(fd, "x", 1, PAGE), 1);
	assert_changed(template, "has been written to");
}

/* Reading it, linking to it and giving it another mode change no byte. */
static void test_harmless_changes(void **state)
{
	struct place *place = *state;
	_cleanup_template_ struct template *template = opened(place, NULL, NULL, NULL);
	char path[128];

	assert_int_equal(chmod(place->memory, 0400), 0);
	assert_int_equal(link(place->memory, scratch_path(&place->scratch, "fork", path)), 0);
	assert_int_equal(template_check_unchanged(template, NULL), 0);
	/* And the open file stays what it is when its name goes to another. */
	write_image(scratch_path(&place->scratch, "other", path), SIZE);
	assert_int_equal(rename(path, place->memory), 0);
	assert_int_equal(template_check_unchanged(template, NULL), 0);
}

static void save(const struct place *place, const struct template *template)
{
	struct error err = { .message = "" };

	if (template_save(template, place->records, &err) < 0)
		fail_msg("%s", err.message);
}

static void assert_not_loaded(const struct place *place, int error, const char *code, const char *part)
{
	struct template *template = NULL;
	struct error err = { .code = "" };

	assert_int_equal(template_load("base", place->records, &template, &err), error);
	assert_null(template);
	assert_string_equal(err.code, code);
	assert_contains(err.message, part);
}

static void assert_same_string(const char *a, const char *b)
{
	if (a && b)
		assert_string_equal(a, b);
	else
		assert_ptr_equal(a, b);
}

static void assert_round_trip(const struct place *place, const char *vmm_state, const char *list, const char *inject)
{
	_cleanup_template_ struct template *saved = opened(place, vmm_state, list, inject), *loaded = NULL;
	struct error err = { .message = "" };

	save(place, saved);
	if (template_load("base", place->records, &loaded, &err) < 0)
		fail_msg("%s", err.message);
	assert_string_equal(loaded->name, "base");
	assert_string_equal(loaded->memory, saved->memory);
	assert_same_string(loaded->state, saved->state);
	assert_same_string(loaded->hot_list, saved->hot_list);
	assert_same_string(loaded->inject, saved->inject);
	assert_int_equal(loaded->inode, saved->inode);
	assert_int_equal(loaded->device, saved->device);
	assert_int_equal(loaded->size, saved->size);
	assert_memory_equal(&loaded->modified, &saved->modified, sizeof saved->modified);
	assert_int_equal(template_check_unchanged(loaded, NULL), 0);
}

static void test_save_and_load(void **state)
{
	struct place *place = *state;
	char odd[128];

	assert_round_trip(place, NULL, NULL, NULL);
	assert_round_trip(place, place->state, place->list, "delay=1ms,error=0+1");
	assert_round_trip(place, NULL, place->list, NULL); /* and nothing of the record before is left */
	scratch_path(&place->scratch, "a \"b\"\\\n\xc3\xa9", odd);
	assert_int_equal(rename(place->memory, odd), 0);
	memcpy(place->memory, odd, sizeof odd);
	assert_round_trip(place, NULL, NULL, NULL);

	char tmp[160];
	snprintf(tmp, sizeof tmp, "%s/base.json.tmp", place->records);
	assert_int_equal(access(tmp, F_OK), -1);
}

static void test_save_fails(void **state)
{
	struct place *place = *state;
	_cleanup_template_ struct template *template = opened(place, NULL, NULL, NULL);
	struct error err = { .code = "" };
	char path[128];

	assert_int_equal(template_save(template, scratch_path(&place->scratch, "nowhere", path), &err), -ENOENT);
	assert_string_equal(err.code, "io_error");
	assert_contains(err.message, "nowhere/base.json'");

	/* A directory in the record's place: the rename fails, and nothing half-written is left beside it. */
	snprintf(path, sizeof path, "%.100s/base.json", place->records);
	assert_int_equal(mkdir(path, 0700), 0);
	assert_int_equal(template_save(template, place->records, &err), -EISDIR);
	strcat(path, ".tmp");
	assert_int_equal(access(path, F_OK), -1);
}

static void test_path_that_json_cannot_hold(void **state)
{
	struct place *place = *state;
	struct error err = { .code = "" };
	char path[128];

	assert_int_equal(rename(place->memory, scratch_path(&place->scratch, "\xff", path)), 0);
	memcpy(place->memory, path, sizeof path);
	_cleanup_template_ struct template *template = opened(place, NULL, NULL, NULL);
	assert_true(template_save(template, place->records, &err) < 0);
	assert_string_equal(err.code, "io_error");
	assert_contains(err.message, "UTF-8");
}

static void test_forget(void **state)
{
	struct place *place = *state;
	_cleanup_template_ struct template *template = opened(place, NULL, NULL, NULL);

	save(place, template);
	assert_int_equal(template_forget("base", place->records, NULL), 0);
	assert_not_loaded(place, -EBADMSG, "io_error", "base.json");
	assert_int_equal(template_forget("base", place->records, NULL), 0); /* it is gone, as was wanted */
}

static void test_load_after_the_image_changed(void **state)
{
	struct place *place = *state;
	_cleanup_template_ struct template *template = opened(place, NULL, NULL, NULL);
	char path[128];

	save(place, template);
	_cleanup_close_ int fd = open(place->memory, O_RDWR | O_CLOEXEC);
	const struct timespec other[2] = { { .tv_sec = 1000000000 }, { .tv_sec = 1000000000, .tv_nsec = 8 } };
	assert_int_equal(futimens(fd, other), 0);
	assert_not_loaded(place, -ESTALE, "template_changed", "is not the file that was added as template 'base'");

	/* Another file of the same size and time. */
	write_image(scratch_path(&place->scratch, "other", path), SIZE);
	assert_int_equal(rename(path, place->memory), 0);
	assert_not_loaded(place, -ESTALE, "template_changed", "is not the file");

	write_image(place->memory, SIZE + 1);
	assert_not_loaded(place, -ESTALE, "template_changed", "is not the file");
	assert_int_equal(truncate(place->memory, 0), 0);
	assert_not_loaded(place, -EINVAL, "bad_memory", "is empty");
	assert_int_equal(unlink(place->memory), 0);
	assert_not_loaded(place, -ENOENT, "bad_memory", place->memory);
}

static void write_record(const struct place *place, const char *text, size_t size)
{
	char path[160];

	snprintf(path, sizeof path, "%s/base.json", place->records);
	_cleanup_close_ int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, size), size);
}

static char *good_record(const struct place *place)
{
	_cleanup_template_ struct template *template = opened(place, place->state, NULL, NULL);
	char path[160];

	save(place, template);
	snprintf(path, sizeof path, "%s/base.json", place->records);
	json_t *json = json_load_file(path, 0, NULL);
	assert_non_null(json);
	char *text = json_dumps(json, JSON_COMPACT);
	assert_non_null(text);
	json_decref(json);
	return text;
}

/* A record cut anywhere, as after a crash of a file system that loses the ends of files. */
static void test_record_cut_short(void **state)
{
	struct place *place = *state;
	_cleanup_free_ char *text = good_record(place);

	for (size_t cut = 0; cut < strlen(text); cut++) {
		write_record(place, text, cut);
		assert_not_loaded(place, -EBADMSG, "io_error", "is damaged");
	}
	write_record(place, text, strlen(text));
	_cleanup_template_ struct template *template = NULL;
	assert_int_equal(template_load("base", place->records, &template, NULL), 0);
}

static void test_record_that_makes_no_sense(void **state)
{
	static const char *const texts[] = { "null",
					     "7",
					     "[]",
					     "{}",
					     "{\"memory\":7}",
					     "{\"memory\":null}",
					     "\xff\xfe",
					     "{\"memory\":[]}",
					     "{\"memory\":\"/a\",\"memory\":\"/b\"}",
					     "{\"state\":\"/a\"}" };
	struct place *place = *state;

	for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
		write_record(place, texts[i], strlen(texts[i]));
		assert_not_loaded(place, -EBADMSG, "io_error", "is damaged");
	}
	assert_opens_again(place);
}

/* Each member left out, and each with a value of another type. */
static void test_record_with_a_bad_member(void **state)
{
	static const char *const members[] = { "memory", "device", "inode", "size", "modified_s", "modified_ns", "state" };
	struct place *place = *state;
	_cleanup_free_ char *text = good_record(place);

	for (size_t i = 0; i < sizeof members / sizeof *members; i++)
		for (unsigned wrong_type = 0; wrong_type < 2; wrong_type++) {
			json_t *json = json_loads(text, 0, NULL);
			assert_non_null(json);
			if (wrong_type)
				json_object_set_new(json, members[i], json_true());
			else
				json_object_del(json, members[i]);
			_cleanup_free_ char *bad = json_dumps(json, 0);
			json_decref(json);
			write_record(place, bad, strlen(bad));
			if (!wrong_type && !strcmp(members[i], "state")) {
				_cleanup_template_ struct template *template = NULL;
				assert_int_equal(template_load("base", place->records, &template, NULL), 0);
				continue;
			}
			assert_not_loaded(place, -EBADMSG, "io_error", "base");
		}
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, make, unmake)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_open),
		CASE(test_bad_memory),
		CASE(test_unreadable_memory),
		CASE(test_bad_state_and_list),
		CASE(test_bad_inject),
		CASE(test_references),
		CASE(test_image_truncated_or_grown),
		CASE(test_image_written_to),
		CASE(test_harmless_changes),
		CASE(test_save_and_load),
		CASE(test_save_fails),
		CASE(test_path_that_json_cannot_hold),
		CASE(test_forget),
		CASE(test_load_after_the_image_changed),
		CASE(test_record_cut_short),
		CASE(test_record_that_makes_no_sense),
		CASE(test_record_with_a_bad_member),
	};

	return cmocka_run_group_tests_name("template", tests, NULL, NULL);
}
