/* Packed hot sets: what was packed comes back, and nothing that is damaged is taken for it. */
#include <errno.h>
#include <string.h>

#include "template/hot_set.h"
#include "unit/image_helpers.h"

#define IMAGE_PAGES 400u
#define IMAGE_SIZE  (IMAGE_PAGES * PAGE - 1000) /* it ends within a page */
#define ZERO_FROM   100u
#define ZERO_TO	    120u
#define COUNT	    300u

struct pack {
	struct scratch scratch;
	char path[128], image_path[128];
	int image_fd;
	struct image_stamp image;
	struct hot_loader *loader;
	uint64_t list; /* digest of the list it was made for */
	_Atomic bool stopping;
};

static uint64_t page_at(unsigned place)
{
	return (uint64_t)place * 171 % IMAGE_PAGES; /* 171 and 400 have no common factor: each page once */
}

static int make(void **state)
{
	struct pack *pack = calloc(1, sizeof *pack);
	uint8_t zeros[PAGE] = { 0 };

	assert_non_null(pack);
	scratch_new(&pack->scratch);
	scratch_path(&pack->scratch, "image.base.hotset", pack->path);
	write_image(scratch_path(&pack->scratch, "image", pack->image_path), IMAGE_SIZE);
	pack->image_fd = open(pack->image_path, O_RDWR | O_CLOEXEC);
	assert_true(pack->image_fd >= 0);
	for (unsigned page = ZERO_FROM; page < ZERO_TO; page++)
		assert_int_equal(pwrite(pack->image_fd, zeros, PAGE, (off_t)(page * PAGE)), PAGE);
	pack->image = (struct image_stamp){ .size = IMAGE_SIZE, .modified_s = 5, .modified_ns = 6 };
	memset(pack->image.identity, 7, sizeof pack->image.identity);
	assert_int_equal(hot_loader_new(&pack->loader, NULL), 0);
	*state = pack;
	return 0;
}

static int unmake(void **state)
{
	struct pack *pack = *state;

	hot_loader_free(pack->loader);
	close(pack->image_fd);
	scratch_remove(&pack->scratch);
	free(pack);
	return 0;
}

static int build(struct pack *pack, const char *path, unsigned count, struct error *err)
{
	uint64_t pages[COUNT];

	for (unsigned i = 0; i < count; i++)
		pages[i] = page_at(i);
	pack->list = hot_set_digest(pages, count);
	return hot_set_build(path, pack->image_fd, &pack->image, pages, count, &pack->stopping, err);
}

static struct hot_set *open_set(struct pack *pack, bool held)
{
	struct hot_set *set;
	struct error err;

	if (hot_set_open(pack->path, &pack->image, held ? pack->loader : NULL, NULL, &set, &err) < 0)
		fail_msg("%s", err.message);
	return set;
}

/* Every page of the set, run by run; how many there were. */
static unsigned check_all(struct hot_reader *reader)
{
	static _Alignas(4096) uint8_t buffer[HOT_SET_CHUNK * HOT_SET_PAGE];
	unsigned seen = 0;

	for (uint64_t page = 0; page < IMAGE_PAGES;) {
		struct hot_run run;
		const void *bytes;

		if (!hot_set_find(reader->set, page, IMAGE_PAGES, &run)) {
			page++;
			continue;
		}
		assert_true(run.count >= 1);
		assert_int_equal(run.zero, page >= ZERO_FROM && page < ZERO_TO);
		if (!run.zero) {
			hot_reader_advise(reader, run.index);
			assert_int_equal(hot_reader_read(reader, &run, true, buffer, &bytes), 0);
			assert_image(bytes, run.count * PAGE, page * PAGE, IMAGE_SIZE);
		}
		seen += (unsigned)run.count;
		page += run.count;
	}
	return seen;
}

static void check_way(struct pack *pack, bool held)
{
	struct hot_set *set = open_set(pack, held);
	struct hot_reader reader;

	assert_int_equal(hot_set_pages(set), COUNT);
	assert_true(hot_set_list(set) == pack->list);
	assert_int_equal(hot_reader_init(&reader, set), 0);
	assert_int_equal(reader.held, held);
	assert_int_equal(check_all(&reader), COUNT);
	assert_int_equal(check_all(&reader), COUNT); /* and once more, from what is at hand now */
	hot_reader_clear(&reader);
}

static void test_what_was_packed_comes_back(void **state)
{
	struct pack *pack = *state;

	assert_int_equal(build(pack, pack->path, COUNT, NULL), 0);
	check_way(pack, false);
	check_way(pack, true);
}

static void test_only_its_own_pages(void **state)
{
	struct pack *pack = *state;
	struct hot_run run;
	unsigned found = 0;

	assert_int_equal(build(pack, pack->path, COUNT, NULL), 0);
	_cleanup_hot_set_ struct hot_set *set = open_set(pack, false);
	for (uint64_t page = 0; page < 2 * IMAGE_PAGES; page++)
		found += hot_set_find(set, page, 1, &run);
	assert_int_equal(found, COUNT);
	assert_false(hot_set_find(set, page_at(COUNT), 1, &run));
	assert_false(hot_set_find(set, page_at(0), 0, &run));
}

static void test_an_empty_list(void **state)
{
	struct pack *pack = *state;
	struct hot_run run;

	assert_int_equal(build(pack, pack->path, 0, NULL), 0);
	_cleanup_hot_set_ struct hot_set *set = open_set(pack, true);
	assert_false(hot_set_find(set, 0, 1, &run));
}

static void expect_refused(struct pack *pack, const char *code)
{
	struct hot_set *set;
	struct error err;

	assert_true(hot_set_open(pack->path, &pack->image, NULL, NULL, &set, &err) < 0);
	assert_string_equal(err.code, code);
	assert_non_null(strstr(err.message, pack->path));
}

static void test_of_another_image(void **state)
{
	struct pack *pack = *state;
	struct image_stamp right = pack->image;

	expect_refused(pack, "hot_set_missing");
	assert_int_equal(build(pack, pack->path, COUNT, NULL), 0);
	pack->image.size++;
	expect_refused(pack, "hot_set_stale");
	pack->image = right;
	pack->image.modified_ns++;
	expect_refused(pack, "hot_set_stale");
	pack->image = right;
	pack->image.identity[31] ^= 1;
	expect_refused(pack, "hot_set_stale");
}

static off_t file_size(const char *path)
{
	struct stat st;

	assert_int_equal(stat(path, &st), 0);
	return st.st_size;
}

static void flip(const char *path, off_t at)
{
	uint8_t byte;
	int fd = open(path, O_RDWR | O_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &byte, 1, at), 1);
	byte ^= 0x10;
	assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	close(fd);
}

/* Any byte of header and table, and any other length: the file is refused as it is opened. */
static void test_damaged_before_it_is_opened(void **state)
{
	struct pack *pack = *state;

	assert_int_equal(build(pack, pack->path, COUNT, NULL), 0);
	off_t size = file_size(pack->path), table_end = 4096 + (off_t)(COUNT + COUNT / HOT_SET_CHUNK) * 8;
	for (off_t at = 0; at < table_end; at += 97) {
		flip(pack->path, at);
		struct hot_set *set;
		assert_true(hot_set_open(pack->path, &pack->image, NULL, NULL, &set, NULL) < 0);
		flip(pack->path, at);
	}
	const off_t lengths[] = { 0, 100, 4096, table_end, size - 1, size - 4096, size + 4096 };
	for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
		assert_int_equal(truncate(pack->path, lengths[i]), 0);
		expect_refused(pack, "hot_set_damaged");
		assert_int_equal(build(pack, pack->path, COUNT, NULL), 0);
	}
}

/* Whoever can write to it could write to guests. */
static void test_that_others_can_write(void **state)
{
	struct pack *pack = *state;
	char other[160];

	assert_int_equal(build(pack, pack->path, COUNT, NULL), 0);
	assert_int_equal(chmod(pack->path, 0622), 0);
	expect_refused(pack, "hot_set_damaged");
	assert_int_equal(chmod(pack->path, 0600), 0);
	hot_set_unref(open_set(pack, false));
	if (geteuid() == 0) {
		assert_int_equal(chown(pack->path, 1, 0), 0);
		expect_refused(pack, "hot_set_damaged");
		assert_int_equal(chown(pack->path, 0, 0), 0);
	}
	snprintf(other, sizeof other, "%s.moved", pack->path);
	assert_int_equal(rename(pack->path, other), 0);
	assert_int_equal(symlink(other, pack->path), 0);
	expect_refused(pack, "io_error");
}

/* Read until something is wrong; then the set gives nothing any more. How much was right. */
static unsigned read_damaged(struct pack *pack, bool held, void (*damage)(const struct pack *pack))
{
	static _Alignas(4096) uint8_t buffer[HOT_SET_CHUNK * HOT_SET_PAGE];
	struct hot_set *set = open_set(pack, held);
	struct hot_reader reader;
	unsigned right = 0;
	bool failed = false;

	damage(pack);
	assert_int_equal(hot_reader_init(&reader, set), 0);
	for (uint64_t page = 0; page < IMAGE_PAGES; page++) {
		struct hot_run run;
		const void *bytes;

		if (!hot_set_find(set, page, 1, &run) || run.zero)
			continue;
		assert_false(failed);
		if (hot_reader_read(&reader, &run, true, buffer, &bytes) < 0) {
			failed = true;
		} else {
			assert_image(bytes, PAGE, page * PAGE, IMAGE_SIZE);
			right++;
		}
	}
	assert_true(failed);
	assert_true(hot_set_is_broken(set));
	hot_reader_clear(&reader);
	return right;
}

static void damage_last_page(const struct pack *pack)
{
	flip(pack->path, file_size(pack->path) - 1);
}

static void damage_by_cutting(const struct pack *pack)
{
	assert_int_equal(truncate(pack->path, file_size(pack->path) - 100), 0);
}

static void damage_by_cutting_half(const struct pack *pack)
{
	assert_int_equal(truncate(pack->path, file_size(pack->path) / 2), 0);
}

static void test_damaged_while_it_is_open(void **state)
{
	struct pack *pack = *state;
	void (*const damages[])(const struct pack *) = { damage_last_page, damage_by_cutting, damage_by_cutting_half };

	for (size_t i = 0; i < sizeof damages / sizeof *damages; i++)
		for (int held = 0; held <= 1; held++) {
			assert_int_equal(build(pack, pack->path, COUNT, NULL), 0);
			assert_true(read_damaged(pack, held, damages[i]) < COUNT);
		}
}

static void test_where_it_can_not_be_written(void **state)
{
	struct pack *pack = *state;
	struct error err;
	char path[160];

	snprintf(path, sizeof path, "%s/there/is/no/such.hotset", pack->scratch.dir);
	assert_int_equal(build(pack, path, COUNT, &err), -ENOENT);
	assert_non_null(strstr(err.message, path));
	pack->stopping = true;
	assert_int_equal(build(pack, pack->path, COUNT, &err), -ECANCELED);
	assert_int_equal(access(pack->path, F_OK), -1);
	snprintf(path, sizeof path, "%s.tmp", pack->path);
	assert_int_equal(access(path, F_OK), -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_what_was_packed_comes_back, make, unmake),
		cmocka_unit_test_setup_teardown(test_only_its_own_pages, make, unmake),
		cmocka_unit_test_setup_teardown(test_an_empty_list, make, unmake),
		cmocka_unit_test_setup_teardown(test_of_another_image, make, unmake),
		cmocka_unit_test_setup_teardown(test_damaged_before_it_is_opened, make, unmake),
		cmocka_unit_test_setup_teardown(test_that_others_can_write, make, unmake),
		cmocka_unit_test_setup_teardown(test_damaged_while_it_is_open, make, unmake),
		cmocka_unit_test_setup_teardown(test_where_it_can_not_be_written, make, unmake),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
