#include "template/io.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

/* Without io_uring: enough threads to keep a disk busy, few enough to cost nothing. */
#define HELPER_THREADS 8

struct io {
	unsigned depth;
	unsigned under_way;
	bool uring;
	struct io_uring ring;

	/* Helper threads, where there is no ring. */
	pthread_t threads[HELPER_THREADS];
	unsigned thread_count;
	int event_fd;
	pthread_mutex_t lock;
	pthread_cond_t wanted;
	struct io_read *queue, **queue_tail; /* under lock */
	struct io_read *ended;		     /* under lock */
	bool stopping;			     /* under lock */
};

static void read_whole(struct io_read *read)
{
	if (read->delay_ns) {
		struct timespec ts = { .tv_sec = (time_t)(read->delay_ns / NSEC_PER_SEC),
				       .tv_nsec = (long)(read->delay_ns % NSEC_PER_SEC) };
		clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL);
	}
	if (read->around_length)
		posix_fadvise(read->fd, (off_t)read->around_offset, (off_t)read->around_length, POSIX_FADV_WILLNEED);
	read->result = 0;
	while (read->got < read->length) {
		ssize_t n = pread(read->fd, (char *)read->buffer + read->got, read->length - read->got,
				  (off_t)(read->offset + read->got));
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			read->result = n < 0 ? -errno : -ENODATA;
			return;
		}
		read->got += (size_t)n;
	}
}

static void *helper_main(void *data)
{
	struct io *io = data;

	pthread_mutex_lock(&io->lock);
	for (;;) {
		while (!io->queue && !io->stopping)
			pthread_cond_wait(&io->wanted, &io->lock);
		struct io_read *read = io->queue;
		if (!read)
			break;
		io->queue = read->next;
		if (!io->queue)
			io->queue_tail = &io->queue;
		pthread_mutex_unlock(&io->lock);

		read_whole(read);

		pthread_mutex_lock(&io->lock);
		read->next = io->ended;
		io->ended = read;
		eventfd_write(io->event_fd, 1);
	}
	pthread_mutex_unlock(&io->lock);
	return NULL;
}

static int start_helpers(struct io *io)
{
	pthread_mutex_init(&io->lock, NULL);
	pthread_cond_init(&io->wanted, NULL);
	io->queue_tail = &io->queue;
	io->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (io->event_fd < 0)
		return -errno;
	for (; io->thread_count < HELPER_THREADS; io->thread_count++) {
		int r = pthread_create(&io->threads[io->thread_count], NULL, helper_main, io);
		if (r != 0)
			return io->thread_count > 0 ? 0 : -r;
	}
	return 0;
}

int io_new(unsigned depth, struct io **ret, struct error *err)
{
	struct io *io = calloc(1, sizeof *io);
	if (!io)
		return error_set(err, -ENOMEM, "io_error", "out of memory");
	io->depth = depth;
	io->event_fd = -1;

	/* A read may have to wait, and others may have to be asked for before it. */
	int r = io_uring_queue_init(3 * depth, &io->ring, 0);
	if (r == 0) {
		io->uring = true;
		io_uring_ring_dontfork(&io->ring);
	} else {
		r = start_helpers(io);
		if (r < 0) {
			io_free(io);
			return error_set(err, r, "io_error",
					 "neither io_uring nor helper threads can be had for reading images: %s",
					 strerror(-r));
		}
	}
	*ret = io;
	return 0;
}

void io_free(struct io *io)
{
	if (!io)
		return;
	if (io->uring) {
		while (io->under_way > 0) {
			struct io_uring_cqe *cqe;
			io_uring_wait_cqe(&io->ring, &cqe);
			io_reap(io);
		}
		io_uring_queue_exit(&io->ring);
	} else if (io->event_fd >= 0) {
		pthread_mutex_lock(&io->lock);
		io->stopping = true;
		pthread_cond_broadcast(&io->wanted);
		pthread_mutex_unlock(&io->lock);
		for (unsigned i = 0; i < io->thread_count; i++)
			pthread_join(io->threads[i], NULL);
		io_reap(io);
		close(io->event_fd);
		pthread_cond_destroy(&io->wanted);
		pthread_mutex_destroy(&io->lock);
	}
	free(io);
}

int io_fd(const struct io *io)
{
	return io->uring ? io->ring.ring_fd : io->event_fd;
}

bool io_is_uring(const struct io *io)
{
	return io->uring;
}

static struct io_uring_sqe *take_sqe(struct io *io)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);

	if (!sqe) {
		io_uring_submit(&io->ring);
		sqe = io_uring_get_sqe(&io->ring);
	}
	return sqe;
}

static void prepare(struct io *io, struct io_read *read)
{
	if (read->delay_ns && read->got == 0) {
		struct io_uring_sqe *sqe = take_sqe(io);
		read->wait = (struct __kernel_timespec){ .tv_sec = (long long)(read->delay_ns / NSEC_PER_SEC),
							 .tv_nsec = (long long)(read->delay_ns % NSEC_PER_SEC) };
		io_uring_prep_timeout(sqe, &read->wait, 0, 0);
		/* A hard link: the time-out always ends with ETIME, and the read is to go on. */
		sqe->flags |= IOSQE_IO_HARDLINK;
		io_uring_sqe_set_data(sqe, NULL);
	}
	if (read->around_length && read->got == 0) {
		struct io_uring_sqe *sqe = take_sqe(io);
		io_uring_prep_fadvise(sqe, read->fd, read->around_offset, (off_t)read->around_length,
				      POSIX_FADV_WILLNEED);
		/* Once those reads are under way, whatever becomes of them, this one finds its page among them. */
		sqe->flags |= IOSQE_IO_HARDLINK;
		io_uring_sqe_set_data(sqe, NULL);
	}
	struct io_uring_sqe *sqe = take_sqe(io);
	io_uring_prep_read(sqe, read->fd, (char *)read->buffer + read->got, (unsigned)(read->length - read->got),
			   read->offset + read->got);
	io_uring_sqe_set_data(sqe, read);
	io_uring_submit(&io->ring);
}

int io_submit(struct io *io, struct io_read *read)
{
	if (io->under_way == io->depth)
		return -EBUSY;
	read->got = 0;
	read->next = NULL;
	io->under_way++;
	if (io->uring) {
		prepare(io, read);
		return 0;
	}
	pthread_mutex_lock(&io->lock);
	*io->queue_tail = read;
	io->queue_tail = &read->next;
	pthread_cond_signal(&io->wanted);
	pthread_mutex_unlock(&io->lock);
	return 0;
}

static void end(struct io *io, struct io_read *read, int result)
{
	io->under_way--;
	read->done(read, read->inject ?: result);
}

/* A read may come back short: at the end of the file, or because only so much was to be had at once. */
static void reap_one(struct io *io, struct io_read *read, int n)
{
	if (n == -EINTR || n == -EAGAIN) {
		prepare(io, read);
		return;
	}
	/* Where nothing was left to read after the image's end, nothing is all that was wanted. */
	if (n < 0 || (n == 0 && read->length > 0)) {
		end(io, read, n < 0 ? n : -ENODATA);
		return;
	}
	read->got += (size_t)n;
	if (read->got < read->length)
		prepare(io, read);
	else
		end(io, read, 0);
}

void io_reap(struct io *io)
{
	if (io->uring) {
		struct io_uring_cqe *cqe;
		while (io_uring_peek_cqe(&io->ring, &cqe) == 0) {
			struct io_read *read = io_uring_cqe_get_data(cqe);
			int n = cqe->res;
			io_uring_cqe_seen(&io->ring, cqe);
			if (read)
				reap_one(io, read, n);
		}
		return;
	}

	eventfd_t ignored;
	eventfd_read(io->event_fd, &ignored);
	pthread_mutex_lock(&io->lock);
	struct io_read *ended = io->ended;
	io->ended = NULL;
	pthread_mutex_unlock(&io->lock);
	while (ended) {
		struct io_read *read = ended;
		ended = read->next;
		end(io, read, read->result);
	}
}
