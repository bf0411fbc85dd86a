/*
 * A small virtual machine monitor on libfaultline, to copy from. Its guest is no real one: vCPUs are threads that read all of guest memory in a
 * scattered order and add it up, which is all that a page server can tell from a real one. The parts around are what any VMM needs.
 *
 *	cc -o vmm vmm.c $(pkg-config --cflags --libs faultline) -pthread
 *	FAULTLINE_SOCKET=$(faultline fork create base) ./vmm base.mem
 *
 * Exit status: 0 the guest has done its work, 1 it could not be started, 2 usage, 3 the server has gone away under it.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <faultline/client.h>
#include <faultline/hotlist.h>

#define PAGE	  4096u
#define SLOTS	  2 /* as on a PC: memory below the hole for devices, and above it */
#define VCPUS_MAX 64

struct vm {
	struct faultline_client *client;
	int image; /* file descriptor */
	uint64_t size;
	struct {
		unsigned char *address;
		uint64_t size;
	} slots[SLOTS];
	bool supplied; /* by a server; else mapped from the image */

	unsigned vcpu_count;
	int halted;		    /* eventfd: all vCPUs have done their work */
	atomic_uint running;	    /* vCPUs that have not */
	atomic_uint_fast64_t sum;   /* the guest's result */
	atomic_uint_fast64_t count; /* of touches */
	uint64_t *touched;	    /* page numbers in the order of their first touch */
};

struct options {
	const char *image, *socket, *hot_list, *record, *save;
	bool wait_prefetched;
	unsigned vcpus;
};

static void die(const struct faultline_error *error)
{
	fprintf(stderr, "vmm: %s%s%s.\n", error->what, *error->remedy ? ". " : "", error->remedy);
	exit(1);
}

static void die_errno(const char *what)
{
	fprintf(stderr, "vmm: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* ---- memory ---- */

static void make_memory(struct vm *vm)
{
	struct faultline_error error;
	struct stat image;

	if (fstat(vm->image, &image) < 0 || image.st_size == 0) {
		fprintf(stderr, "vmm: the image is empty, or no file\n");
		exit(1);
	}
	vm->size = ((uint64_t)image.st_size + PAGE - 1) / PAGE * PAGE;
	vm->slots[0].size = vm->size / 2 / PAGE * PAGE;
	vm->slots[1].size = vm->size - vm->slots[0].size;

	if (faultline_new(&vm->client, &error) != FAULTLINE_OK)
		die(&error);
	uint64_t offset = 0;
	for (int i = 0; i < SLOTS; i++) {
		void *address = NULL;

		/* An image of one page has nothing for the first slot. */
		if (vm->slots[i].size > 0 &&
		    faultline_map(vm->client, vm->slots[i].size, offset, PAGE, &address, &error) != FAULTLINE_OK)
			die(&error);
		vm->slots[i].address = address;
		offset += vm->slots[i].size;
		/* The address is known: a VMM with KVM makes its memory slots here. */
	}
}

/* Without a server, pages on the hot list can at least be read from the disk in time. */
static void read_ahead(const struct vm *vm, const char *path)
{
	struct faultline_hotlist *list;
	struct faultline_error error;
	uint64_t slot, offset;

	if (faultline_hotlist_load(path, &list, &error) != FAULTLINE_OK ||
	    faultline_hotlist_check(list, vm->client, &error) != FAULTLINE_OK)
		die(&error);
	for (size_t i = 0; faultline_hotlist_get(list, i, &slot, &offset) == FAULTLINE_OK; i++)
		madvise(vm->slots[slot].address + offset, PAGE, MADV_WILLNEED);
	printf("hot list: %zu pages read ahead\n", faultline_hotlist_count(list));
	faultline_hotlist_free(list);
}

static void fill_memory(struct vm *vm, const struct options *options)
{
	struct faultline_error error;
	int r = faultline_connect(vm->client, options->socket, -1, 0, &error);

	vm->supplied = r == FAULTLINE_OK;
	if (r == FAULTLINE_NOT_SUPPORTED) {
		printf("memory: mapped from the image (%s)\n", error.what);
		r = faultline_map_image(vm->client, vm->image, &error);
	} else if (vm->supplied) {
		printf("memory: from the page server\n");
	}
	if (r != FAULTLINE_OK)
		die(&error);

	if (!vm->supplied && options->hot_list)
		read_ahead(vm, options->hot_list);
	if (vm->supplied && options->wait_prefetched) {
		r = faultline_wait_prefetched(vm->client, -1, &error);
		if (r == FAULTLINE_OK)
			printf("prefetched\n");
		else if (r == FAULTLINE_NOT_PREFETCHING || r == FAULTLINE_PREFETCH_FAILED)
			printf("not prefetched: %s\n", error.what); /* pages come when they are touched */
		else
			die(&error);
	}
	fflush(stdout);
}

/* ---- the guest ---- */

static const unsigned char *guest_page(const struct vm *vm, uint64_t page)
{
	uint64_t offset = page * PAGE;

	return offset < vm->slots[0].size ? vm->slots[0].address + offset
					  : vm->slots[1].address + (offset - vm->slots[0].size);
}

/* Neighbours in time are far apart in memory, and every page is met once: the step has no divisor in common with the number of pages. */
static uint64_t scattered(uint64_t i, uint64_t pages)
{
	uint64_t step = pages * 5 / 8 + 1;

	for (;; step++) {
		uint64_t a = pages, b = step;
		while (b) {
			uint64_t rest = a % b;
			a = b;
			b = rest;
		}
		if (a == 1)
			return i * step % pages;
	}
}

static void touch(struct vm *vm, uint64_t page)
{
	const unsigned char *bytes = guest_page(vm, page);
	uint64_t sum = 0;

	vm->touched[atomic_fetch_add(&vm->count, 1)] = page;
	for (unsigned i = 0; i < PAGE; i++)
		sum += (uint64_t)bytes[i] * (page * PAGE + i + 1);
	atomic_fetch_add(&vm->sum, sum);
}

struct vcpu {
	struct vm *vm;
	unsigned index;
};

static void *run_vcpu(void *data)
{
	struct vcpu *vcpu = data;
	struct vm *vm = vcpu->vm;
	uint64_t pages = vm->size / PAGE;

	for (uint64_t i = vcpu->index; i < pages; i += vm->vcpu_count) {
		/* "Booted": from here on there is work to do. A real guest would write to a port, and its exit handler call this. */
		if (vcpu->index == 0 && vm->supplied && i / vm->vcpu_count == pages / vm->vcpu_count / 2) {
			struct faultline_error error;

			if (faultline_ready(vm->client, &error) != FAULTLINE_OK)
				fprintf(stderr, "vmm: ignoring that nobody is told of readiness: %s\n", error.what);
		}
		touch(vm, scattered(i, pages));
	}
	if (atomic_fetch_sub(&vm->running, 1) == 1)
		eventfd_write(vm->halted, 1);
	return NULL;
}

/*
 * The VMM's main loop: the guest has halted, or its memory will never be whole. In that case some vCPU may hang in a page fault for good, so
 * there is nothing to be joined or cleaned up: the process has to end.
 */
static void wait_for_end(const struct vm *vm)
{
	struct pollfd events[] = {
		{ .fd = vm->halted, .events = POLLIN },
		{ .fd = faultline_server_fd(vm->client),
		  .events = POLLRDHUP }, /* -1, which poll skips, without a server */
	};

	while (poll(events, 2, -1) < 0)
		if (errno != EINTR)
			die_errno("poll");
	if (!(events[0].revents & POLLIN)) {
		fprintf(stderr, "vmm: the page server has gone away; this VM ends with it\n");
		_exit(3);
	}
}

static void run_guest(struct vm *vm)
{
	struct vcpu vcpus[VCPUS_MAX];
	pthread_t threads[VCPUS_MAX];

	vm->halted = eventfd(0, EFD_CLOEXEC);
	vm->touched = calloc(vm->size / PAGE, sizeof *vm->touched);
	if (vm->halted < 0 || !vm->touched)
		die_errno("setting up the guest");
	atomic_store(&vm->running, vm->vcpu_count);
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		vcpus[i] = (struct vcpu){ vm, i };
		errno = pthread_create(&threads[i], NULL, run_vcpu, &vcpus[i]);
		if (errno)
			die_errno("starting a vCPU");
	}
	wait_for_end(vm);
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		pthread_join(threads[i], NULL);
}

/* ---- what is kept of it ---- */

/* What this guest touched first, as a hot list for the next. (The server records such lists as well: fork create --record.) */
static void save_touches(const struct vm *vm, const char *path)
{
	struct faultline_hotlist *list;
	struct faultline_error error;

	if (faultline_hotlist_new(&list, &error) != FAULTLINE_OK)
		die(&error);
	for (uint64_t i = 0; i < vm->size / PAGE; i++) {
		uint64_t offset = vm->touched[i] * PAGE;
		bool low = offset < vm->slots[0].size;
		/* Mappings are counted without an empty slot. */
		unsigned mapping = low || vm->slots[0].size == 0 ? 0 : 1;

		if (faultline_hotlist_add(list, mapping, low ? offset : offset - vm->slots[0].size, &error) !=
		    FAULTLINE_OK)
			die(&error);
	}
	if (faultline_hotlist_save(list, FAULTLINE_HOTLIST_CSV, path, &error) != FAULTLINE_OK)
		die(&error);
	faultline_hotlist_free(list);
}

static void save_memory(const struct vm *vm, const char *path)
{
	FILE *f = fopen(path, "we");

	if (!f)
		die_errno(path);
	for (int i = 0; i < SLOTS; i++)
		if (vm->slots[i].size > 0 && fwrite(vm->slots[i].address, vm->slots[i].size, 1, f) != 1)
			die_errno(path);
	if (fclose(f) != 0)
		die_errno(path);
}

static void usage(FILE *f)
{
	fprintf(f, "usage: vmm IMAGE [--socket PATH] [--vcpus N] [--wait-prefetched] [--hot-list FILE] [--record FILE] "
		   "[--save FILE]\n");
}

static void parse(int argc, char **argv, struct options *ret)
{
	static const struct option known[] = {
		{ "socket", required_argument, NULL, 's' },
		{ "vcpus", required_argument, NULL, 'v' },
		{ "wait-prefetched", no_argument, NULL, 'w' },
		{ "hot-list", required_argument, NULL, 'l' },
		{ "record", required_argument, NULL, 'r' },
		{ "save", required_argument, NULL, 'm' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	int c;

	*ret = (struct options){ .vcpus = 2 };
	while ((c = getopt_long(argc, argv, "", known, NULL)) != -1) {
		switch (c) {
		case 's':
			ret->socket = optarg;
			break;
		case 'v':
			ret->vcpus = (unsigned)strtoul(optarg, NULL, 10);
			break;
		case 'w':
			ret->wait_prefetched = true;
			break;
		case 'l':
			ret->hot_list = optarg;
			break;
		case 'r':
			ret->record = optarg;
			break;
		case 'm':
			ret->save = optarg;
			break;
		case 'h':
			usage(stdout);
			exit(0);
		default:
			usage(stderr);
			exit(2);
		}
	}
	if (optind != argc - 1 || ret->vcpus < 1 || ret->vcpus > VCPUS_MAX) {
		usage(stderr);
		exit(2);
	}
	ret->image = argv[optind];
}

int main(int argc, char **argv)
{
	struct faultline_error error;
	struct options options;
	struct vm vm = { 0 };

	parse(argc, argv, &options);
	vm.vcpu_count = options.vcpus;
	vm.image = open(options.image, O_RDONLY | O_CLOEXEC);
	if (vm.image < 0)
		die_errno(options.image);
	make_memory(&vm);
	fill_memory(&vm, &options);
	run_guest(&vm);
	printf("guest: %" PRIu64 " pages, sum %016" PRIx64 "\n", vm.size / PAGE, (uint64_t)vm.sum);

	if (options.record)
		save_touches(&vm, options.record);
	if (options.save)
		save_memory(&vm, options.save);
	/* The vCPUs have ended, so nobody uses the memory any more. */
	if (faultline_close(&vm.client, &error) != FAULTLINE_OK)
		die(&error);
	close(vm.halted);
	close(vm.image);
	free(vm.touched);
	return 0;
}
