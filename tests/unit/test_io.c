/*
 * Reads that complete later. Everything is tried twice: with io_uring, then with io_uring forbidden to the process, as container
 * runtimes do it, so that helper threads do the work.
 */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "base/clock.h"
#include "unit/image_helpers.h"

#define SIZE  (1ull << 20)
#define TAIL  (SIZE + 1234) /* the file ends within a page */
#define DEPTH 16

static bool uring_forbidden;

struct file {
	struct scratch scratch;
	int fd;
	struct io *io;
};

static int make(void **state)
{
	struct file *file = calloc(1, sizeof *file);
	char path[128];

	assert_non_null(file);
	scratch_new(&file->scratch);
	write_image(scratch_path(&file->scratch, "image", path), TAIL);
	file->fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(file->fd >= 0);
	assert_int_equal(io_new(DEPTH, &file->io, NULL), 0);
	*state = file;
	return 0;
}

static int unmake(void **state)
{
	struct file *file = *state;

	io_free(file->io);
	close(file->fd);
	scratch_remove(&file->scratch);
	free(file);
	return 0;
}

struct page_read {
	struct io_read read; /* first: done gets its address */
	size_t *left;
	int result;
	uint64_t ended_ns;
	uint8_t buffer[2 * PAGE];
};

static void note_end(struct io_read *read, int result)
{
	struct page_read *page = (struct page_read *)read;

	page->result = result;
	page->ended_ns = now_ns();
	--*page->left;
}

static void prepare(struct page_read *page, int fd, size_t length, uint64_t offset, size_t *left)
{
	page->read = (struct io_read){
		.fd = fd, .buffer = page->buffer, .length = length, .offset = offset, .done = note_end
	};
	page->left = left;
	page->result = 1;
}

static int read_one(struct file *file, struct page_read *page, size_t length, uint64_t offset)
{
	size_t left = 1;

	prepare(page, file->fd, length, offset, &left);
	assert_int_equal(io_submit(file->io, &page->read), 0);
	reap_until_none(file->io, &left);
	return page->result;
}

static void test_kind(void **state)
{
	struct file *file = *state;

	if (!uring_forbidden && !io_is_uring(file->io)) {
		print_message("this machine refuses io_uring: only helper threads are tested\n");
		skip();
	}
	assert_int_equal(io_is_uring(file->io), !uring_forbidden);
}

static void test_right_bytes(void **state)
{
	static const uint64_t offsets[] = { 0, 1, PAGE - 1, PAGE, SIZE - PAGE, SIZE - 1, TAIL - 2 * PAGE };
	struct page_read page;

	for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
		size_t length = TAIL - offsets[i] < 2 * PAGE ? (size_t)(TAIL - offsets[i]) : 2 * PAGE;
		assert_int_equal(read_one(*state, &page, length, offsets[i]), 0);
		assert_image(page.buffer, length, offsets[i], TAIL);
	}
	assert_int_equal(read_one(*state, &page, 1, TAIL - 1), 0);
	assert_image(page.buffer, 1, TAIL - 1, TAIL);
}

static void test_file_ends_before(void **state)
{
	struct page_read page;

	assert_int_equal(read_one(*state, &page, PAGE, SIZE), -ENODATA); /* within */
	assert_int_equal(read_one(*state, &page, PAGE, TAIL), -ENODATA); /* just there */
	assert_int_equal(read_one(*state, &page, PAGE, TAIL + 5 * PAGE), -ENODATA);
	assert_int_equal(read_one(*state, &page, 2, TAIL - 1), -ENODATA);
}

/* What is left of a read that lies past an image's end altogether. */
static void test_nothing_to_read(void **state)
{
	struct page_read page;

	assert_int_equal(read_one(*state, &page, 0, 0), 0);
	assert_int_equal(read_one(*state, &page, 0, TAIL + PAGE), 0);
}

static void test_errors(void **state)
{
	struct file *file = *state;
	int pipes[2], good = file->fd;
	struct page_read page;

	file->fd = -1;
	assert_int_equal(read_one(file, &page, PAGE, 0), -EBADF);
	file->fd = open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(read_one(file, &page, PAGE, 0), -EISDIR);
	close(file->fd);
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	file->fd = pipes[1]; /* not open for reading */
	assert_int_equal(read_one(file, &page, PAGE, 0) < 0, 1);
	close(pipes[0]);
	close(pipes[1]);
	file->fd = good;
	assert_int_equal(read_one(file, &page, PAGE, 0), 0); /* and an error spoils nothing for the next */
	assert_image(page.buffer, PAGE, 0, TAIL);
}

/* Many more than there is room for at once. */
static void test_many_at_once(void **state)
{
	struct file *file = *state;
	struct page_read *pages = calloc(DEPTH, sizeof *pages);
	struct random random = { .state = 3 };

	assert_non_null(pages);
	for (unsigned round = 0; round < 64; round++) {
		size_t left = DEPTH;
		for (size_t i = 0; i < DEPTH; i++) {
			prepare(&pages[i], file->fd, PAGE, random_below(&random, SIZE / PAGE) * PAGE, &left);
			assert_int_equal(io_submit(file->io, &pages[i].read), 0);
		}
		reap_until_none(file->io, &left);
		for (size_t i = 0; i < DEPTH; i++) {
			assert_int_equal(pages[i].result, 0);
			assert_image(pages[i].buffer, PAGE, pages[i].read.offset, TAIL);
		}
	}
	free(pages);
}

/* Until they are reaped they count as under way, also where they have long completed. */
static void test_busy_at_depth(void **state)
{
	struct file *file = *state;
	struct page_read *pages = calloc(DEPTH, sizeof *pages), more;
	size_t left = DEPTH;

	assert_non_null(pages);
	for (size_t i = 0; i < DEPTH; i++) {
		prepare(&pages[i], file->fd, PAGE, i * PAGE, &left);
		pages[i].read.delay_ns = i % 2; /* a delayed read takes more room in the ring */
		assert_int_equal(io_submit(file->io, &pages[i].read), 0);
	}
	prepare(&more, file->fd, PAGE, 5 * PAGE, &left);
	assert_int_equal(io_submit(file->io, &more.read), -EBUSY);
	assert_int_equal(io_submit(file->io, &more.read), -EBUSY);
	reap_until_none(file->io, &left);
	for (size_t i = 0; i < DEPTH; i++)
		assert_image(pages[i].buffer, PAGE, i * PAGE, TAIL);

	left = 1;
	assert_int_equal(more.result, 1);
	assert_int_equal(io_submit(file->io, &more.read), 0);
	reap_until_none(file->io, &left);
	assert_int_equal(more.result, 0);
	assert_image(more.buffer, PAGE, 5 * PAGE, TAIL);
	free(pages);
}

/* Each wait is its own: they pass side by side. */
static void test_delay(void **state)
{
	struct file *file = *state;
	struct page_read pages[4];
	size_t left = 4;
	uint64_t start = now_ns();

	for (size_t i = 0; i < 4; i++) {
		prepare(&pages[i], file->fd, PAGE, i * PAGE, &left);
		pages[i].read.delay_ns = (4 - i) * 20 * NSEC_PER_MSEC;
		assert_int_equal(io_submit(file->io, &pages[i].read), 0);
	}
	reap_until_none(file->io, &left);
	for (size_t i = 0; i < 4; i++) {
		assert_int_equal(pages[i].result, 0);
		assert_image(pages[i].buffer, PAGE, i * PAGE, TAIL);
		assert_true(pages[i].ended_ns - start >= (4 - i) * 20 * NSEC_PER_MSEC);
	}
	assert_true(pages[3].ended_ns < pages[0].ended_ns);
}

static void test_injected_error(void **state)
{
	struct file *file = *state;
	struct page_read pages[2];
	size_t left = 2;

	for (size_t i = 0; i < 2; i++)
		prepare(&pages[i], file->fd, PAGE, i * PAGE, &left);
	pages[0].read.inject = -EIO;
	assert_int_equal(io_submit(file->io, &pages[0].read), 0);
	assert_int_equal(io_submit(file->io, &pages[1].read), 0);
	reap_until_none(file->io, &left);
	assert_int_equal(pages[0].result, -EIO);
	assert_int_equal(pages[1].result, 0);
	assert_image(pages[1].buffer, PAGE, PAGE, TAIL);
}

/* The same read again and again, from its own done. */
struct chain {
	struct page_read page;
	struct io *io;
	size_t left;
};

static void submit_next(struct io_read *read, int result)
{
	struct chain *chain = (struct chain *)read;

	assert_int_equal(result, 0);
	assert_image(chain->page.buffer, PAGE, read->offset, TAIL);
	if (--chain->left == 0)
		return;
	read->offset += PAGE;
	assert_int_equal(io_submit(chain->io, read), 0);
}

static void test_submit_from_done(void **state)
{
	struct file *file = *state;
	struct chain chain = { .io = file->io, .left = 40 };

	prepare(&chain.page, file->fd, PAGE, 0, &chain.left);
	chain.page.read.done = submit_next;
	assert_int_equal(io_submit(file->io, &chain.page.read), 0);
	reap_until_none(file->io, &chain.left);
}

static void test_free_waits_for_what_is_under_way(void **state)
{
	struct file *file = *state;
	struct page_read pages[4];
	struct io *io;
	size_t left = 4;

	assert_int_equal(io_new(4, &io, NULL), 0);
	for (size_t i = 0; i < 4; i++) {
		prepare(&pages[i], file->fd, PAGE, i * PAGE, &left);
		pages[i].read.delay_ns = i * 10 * NSEC_PER_MSEC;
		assert_int_equal(io_submit(io, &pages[i].read), 0);
	}
	io_free(io);
	assert_int_equal(left, 0);
	for (size_t i = 0; i < 4; i++) {
		assert_int_equal(pages[i].result, 0);
		assert_image(pages[i].buffer, PAGE, i * PAGE, TAIL);
	}
	io_free(NULL);
}

static void test_quiet_when_there_is_nothing(void **state)
{
	struct file *file = *state;
	struct pollfd pollfd = { .fd = io_fd(file->io), .events = POLLIN };
	struct page_read page;

	assert_int_equal(poll(&pollfd, 1, 0), 0);
	io_reap(file->io);
	assert_int_equal(read_one(file, &page, PAGE, 0), 0);
	assert_int_equal(poll(&pollfd, 1, 0), 0);
}

/* As the seccomp profiles of container runtimes do. There is no way back, so it comes last. */
static void forbid_uring(void)
{
	struct sock_filter instructions[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = sizeof instructions / sizeof *instructions, .filter = instructions };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0) {
		perror("cannot forbid io_uring");
		exit(1);
	}
	uring_forbidden = true;
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, make, unmake)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_kind),
		CASE(test_right_bytes),
		CASE(test_file_ends_before),
		CASE(test_nothing_to_read),
		CASE(test_errors),
		CASE(test_many_at_once),
		CASE(test_busy_at_depth),
		CASE(test_delay),
		CASE(test_injected_error),
		CASE(test_submit_from_done),
		CASE(test_free_waits_for_what_is_under_way),
		CASE(test_quiet_when_there_is_nothing),
	};

	int failed = cmocka_run_group_tests_name("io_uring", tests, NULL, NULL);
	forbid_uring();
	return failed + cmocka_run_group_tests_name("helper threads", tests, NULL, NULL);
}
