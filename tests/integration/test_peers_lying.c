/* Peers that say what can't be: each is turned away with a reason, and the fork and the server are there for the next. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "integration/harness/client.h"
#include "integration/harness/peer.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"

#define PAGES 64ul

/*
 * In the text, $A is the address of 64 pages that are there and registered, $B that of their second page, $C one that is not
 * aligned, $N one where nothing is mapped, and $0 a zero byte.
 */
struct lie {
	const char *name;
	const char *text;
	const char *word; /* what the error has to be about: alternatives with '|' */
	enum { GOOD_FD, NO_FD, TWO_FDS, PIPE_FD, NULL_FD, EVENT_FD, SOCKET_FD, FILE_FD } fd;
	bool raw; /* the userfaultfd is not negotiated */
};

#define REGION(address, size, offset) \
	"{\"base_host_virt_addr\":" address ",\"size\":" size ",\"offset\":" offset ",\"page_size\":4096}"
#define GOOD REGION("$A", "8192", "0")

static const struct lie lies[] = {
	/* Numbers that can't be. */
	{ "overlap", "[" REGION("$A", "8192", "0") "," REGION("$A", "4096", "8192") "]", "overlap", 0, 0 },
	{ "overlap-inside", "[" REGION("$A", "65536", "0") "," REGION("$B", "4096", "0") "]", "overlap", 0, 0 },
	{ "same-twice", "[" GOOD "," GOOD "]", "overlap", 0, 0 },
	{ "address-overflow", "[" REGION("18446744073709547520", "8192", "0") "]", "address|integer|JSON", 0, 0 },
	{ "address-at-the-top", "[" REGION("9223372036854771712", "8192", "0") "]", "address", 0, 0 },
	{ "address-zero", "[" REGION("0", "8192", "0") "]", "address", 0, 0 },
	{ "size-overflow", "[" REGION("$A", "9223372036854771712", "0") "]", "size|address|image", 0, 0 },
	{ "offset-overflow", "[" REGION("$A", "8192", "9223372036854771712") "]", "offset|image", 0, 0 },
	{ "offset-and-size-overflow", "[" REGION("$A", "9223372036854771712", "9223372036854771712") "]",
	  "offset|image|address", 0, 0 },
	{ "address-misaligned", "[" REGION("$C", "8192", "0") "]", "multiple|align", 0, 0 },
	{ "size-misaligned", "[" REGION("$A", "8193", "0") "]", "multiple|align", 0, 0 },
	{ "offset-misaligned", "[" REGION("$A", "8192", "512") "]", "multiple|align", 0, 0 },
	{ "size-zero", "[" REGION("$A", "0", "0") "]", "zero|size", 0, 0 },
	{ "offset-past-the-image", "[" REGION("$A", "4096", "1048576") "]", "image", 0, 0 },
	{ "offset-at-the-end", "[" REGION("$A", "4096", "262144") "]", "image", 0, 0 },
	{ "end-past-the-image", "[" REGION("$A", "262144", "4096") "]", "image", 0, 0 },
	{ "second-region-bad", "[" GOOD "," REGION("$B", "4096", "1") "]", "1", 0, 0 },
	{ "page-size-unknown", "[{\"base_host_virt_addr\":$A,\"size\":8192,\"offset\":0,\"page_size\":8192}]",
	  "page size|page_size", 0, 0 },
	{ "page-size-zero", "[{\"base_host_virt_addr\":$A,\"size\":8192,\"offset\":0,\"page_size\":0}]",
	  "page size|page_size", 0, 0 },
	{ "page-size-one", "[{\"base_host_virt_addr\":$A,\"size\":8192,\"offset\":0,\"page_size\":1}]",
	  "page size|page_size", 0, 0 },
	{ "page-size-1g", "[{\"base_host_virt_addr\":$A,\"size\":8192,\"offset\":0,\"page_size\":1073741824}]",
	  "page size|page_size", 0, 0 },
	{ "page-size-huge-on-small", "[{\"base_host_virt_addr\":$A,\"size\":8192,\"offset\":0,\"page_size\":2097152}]",
	  "multiple|align|page size", 0, 0 },
	{ "not-mapped", "[" REGION("$N", "8192", "0") "]", "mapped|memory", 0, 0 },
	{ "not-mapped-raw", "[" REGION("$N", "8192", "0") "]", "mapped|memory", 0, true },
	{ "no-region", "[]", "region", 0, 0 },
	{ "no-mapping", "{\"mappings\":[]}", "region", 0, 0 },

	/* Types that can't be. */
	{ "address-string", "[" REGION("\"$A\"", "8192", "0") "]", "base_host_virt_addr", 0, 0 },
	{ "address-negative", "[" REGION("-4096", "8192", "0") "]", "base_host_virt_addr", 0, 0 },
	{ "size-negative", "[" REGION("$A", "-8192", "0") "]", "size", 0, 0 },
	{ "offset-negative", "[" REGION("$A", "8192", "-4096") "]", "offset", 0, 0 },
	{ "size-real", "[" REGION("$A", "8192.0", "0") "]", "size", 0, 0 },
	{ "size-exponent", "[" REGION("$A", "8e3", "0") "]", "size", 0, 0 },
	{ "size-enormous", "[" REGION("$A", "100000000000000000000000000000", "0") "]", "size|JSON|integer", 0, 0 },
	{ "size-2-to-the-64", "[" REGION("$A", "18446744073709551616", "0") "]", "size|JSON|integer", 0, 0 },
	{ "size-null", "[" REGION("$A", "null", "0") "]", "size", 0, 0 },
	{ "size-list", "[" REGION("$A", "[8192]", "0") "]", "size", 0, 0 },
	{ "offset-true", "[" REGION("$A", "8192", "true") "]", "offset", 0, 0 },
	{ "page-size-string", "[{\"base_host_virt_addr\":$A,\"size\":8192,\"offset\":0,\"page_size\":\"4096\"}]",
	  "page_size", 0, 0 },
	{ "address-missing", "[{\"size\":8192,\"offset\":0,\"page_size\":4096}]", "base_host_virt_addr", 0, 0 },
	{ "size-missing", "[{\"base_host_virt_addr\":$A,\"offset\":0,\"page_size\":4096}]", "size", 0, 0 },
	{ "offset-missing", "[{\"base_host_virt_addr\":$A,\"size\":8192,\"page_size\":4096}]", "offset", 0, 0 },
	{ "region-number", "[1]", "region", 0, 0 },
	{ "region-list", "[[" GOOD "]]", "region", 0, 0 },
	{ "mappings-missing", "{\"regions\":[" GOOD "]}", "mappings", 0, 0 },
	{ "mappings-object", "{\"mappings\":{}}", "mappings", 0, 0 },
	{ "bare-region", GOOD, "mappings", 0, 0 },

	/* JSON that isn't. */
	{ "not-json", "hello, server", "JSON", 0, 0 },
	{ "number", "42", "JSON", 0, 0 },
	{ "string", "\"[]\"", "JSON", 0, 0 },
	{ "missing-comma", "[" GOOD GOOD "]", "JSON", 0, 0 },
	{ "wrong-bracket", "[" GOOD "}", "JSON", 0, 0 },
	{ "closing-first", "]" GOOD "[", "JSON", 0, 0 },
	{ "trailing-comma", "[" GOOD ",]", "JSON", 0, 0 },
	{ "single-quotes", "[{'base_host_virt_addr':$A,'size':8192,'offset':0}]", "JSON", 0, 0 },
	{ "bad-utf8", "[{\"base_host_virt_addr\":$A,\"size\":8192,\"offset\":0,\"\xff\xfe\":1}]", "JSON", 0, 0 },
	{ "duplicate-keys", "[{\"base_host_virt_addr\":$A,\"size\":8192,\"size\":4096,\"offset\":0}]", "JSON|duplicate",
	  0, 0 },
	{ "duplicate-mappings", "{\"mappings\":[" GOOD "],\"mappings\":[]}", "JSON|duplicate", 0, 0 },
	{ "bytes-after", "[" GOOD "]x", "after|JSON", 0, 0 },
	{ "message-after", "[" GOOD "][" GOOD "]", "after|JSON", 0, 0 },
	{ "zero-byte", "[" GOOD "]$0", "after|JSON", 0, 0 },
	{ "length-in-front", "\x40$0$0$0[" GOOD "]", "JSON", 0, 0 },

	/* Descriptors that aren't. */
	{ "no-descriptor", "[" GOOD "]", "descriptor|userfaultfd", NO_FD, 0 },
	{ "two-descriptors", "[" GOOD "]", "descriptor|userfaultfd", TWO_FDS, 0 },
	{ "a-pipe", "[" GOOD "]", "userfaultfd", PIPE_FD, 0 },
	{ "dev-null", "[" GOOD "]", "userfaultfd", NULL_FD, 0 },
	{ "an-eventfd", "[" GOOD "]", "userfaultfd", EVENT_FD, 0 },
	{ "a-socket", "[" GOOD "]", "userfaultfd", SOCKET_FD, 0 },
	{ "a-file", "[" GOOD "]", "userfaultfd", FILE_FD, 0 },
};

struct scene {
	char socket[SOCKET_PATH_MAX];
	struct test_image image;
	const struct lie *lie;
	size_t chunk;
};

/* Puts the addresses in; $0 is a zero byte. Returns the length. */
static size_t write_text(const char *text, char *memory, char *nothing, char *out, size_t size)
{
	size_t n = 0;

	for (const char *p = text; *p && n + 24 < size; p++) {
		uint64_t value = (uintptr_t)memory;

		if (*p != '$') {
			out[n++] = *p;
			continue;
		}
		switch (*++p) {
		case '0':
			out[n++] = '\0';
			continue;
		case 'B':
			value += PAGE;
			break;
		case 'C':
			value += 100;
			break;
		case 'N':
			value = (uintptr_t)nothing;
			break;
		}
		n += (size_t)snprintf(out + n, size - n, "%" PRIu64, value);
	}
	return n;
}

static int make_fd(const struct lie *lie, int uffd)
{
	int ends[2];

	switch (lie->fd) {
	case PIPE_FD:
		return pipe(ends) < 0 ? -1 : ends[0];
	case NULL_FD:
		return open("/dev/null", O_RDWR);
	case EVENT_FD:
		return eventfd(0, 0);
	case SOCKET_FD:
		return socket(AF_UNIX, SOCK_STREAM, 0);
	case FILE_FD:
		return open("/proc/self/exe", O_RDONLY);
	default:
		return uffd;
	}
}

static void liar_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	char text[4096];
	struct vmm vmm;

	/* In the middle of nothing, so that the page behind the memory isn't there either. */
	char *area = mmap(NULL, (PAGES + 32) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	client_require(self, area != MAP_FAILED, "no address space");
	munmap(area, (PAGES + 32) * PAGE);
	vmm_init(&vmm, self, &scene->image);
	vmm_add_region_at(&vmm, area + 16 * PAGE, PAGES * PAGE, 0);
	vmm_make_uffd(&vmm, (struct vmm_form){ .fd = scene->lie->raw ? VMM_HYPEMAN : VMM_FIRECRACKER });
	vmm_connect(&vmm, scene->socket);

	size_t size = write_text(scene->lie->text, area + 16 * PAGE, area, text, sizeof text);
	int fd = make_fd(scene->lie, vmm.uffd);
	int fds[] = { fd, vmm.uffd };
	unsigned count = scene->lie->fd == NO_FD ? 0 : scene->lie->fd == TWO_FDS ? 2 : 1;
	int r = peer_send(vmm.conn, text, size, fds, count, scene->chunk);
	client_require(self, r == 0 || r == -EPIPE || r == -ECONNRESET, "sending: %s", strerror(-r));
	client_require(self, peer_await_closed(vmm.conn, deadline_in(WAIT_S)), "the server did not turn it away");
}

static void truthful_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &scene->image);
	vmm_start(&vmm, scene->socket, (struct vmm_form){ 0 });
	vmm_check_all(&vmm);
}

/* What must hold after each: the reason is there, and the very same fork takes a VMM that tells the truth. */
static void check_after(struct test_server *server, struct scene *scene, const char *id, const char *word)
{
	fork_expect_error(server, id, "waiting", word);
	client_join(client_start("truth", truthful_body, scene));
	fork_wait(server, id, "gone");
}

static void run_lies(struct test_server *server, size_t chunk)
{
	struct scene scene = { .chunk = chunk };

	test_image_make(&scene.image, server->dir, "base", PAGES * PAGE);
	template_add(server, "base", &scene.image);
	for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
		scene.lie = &lies[i];
		fork_create(server, "base", lies[i].name, NULL, scene.socket);
		client_join(client_start(lies[i].name, liar_body, &scene));
		check_after(server, &scene, lies[i].name, lies[i].word);
	}
}

static void test_lies_whole(void **state)
{
	run_lies(*state, 0);
}

static void test_lies_in_pieces(void **state)
{
	run_lies(*state, 11);
}

/* ---- messages that are too much ---- */

/* One region more than a fork may have, all of them true. */
static char *too_many_regions(const struct vmm *vmm)
{
	struct vmm all = *vmm;

	all.region_count = 1025;
	return vmm_handshake_text(&all, VMM_FIRECRACKER);
}

static char *repeated(const char *before, char letter, size_t count, const char *after)
{
	char *text = malloc(strlen(before) + count + strlen(after) + 1);

	strcpy(text, before);
	memset(text + strlen(before), letter, count);
	strcpy(text + strlen(before) + count, after);
	return text;
}

static char *deep(const struct vmm *vmm)
{
	(void)vmm;
	return repeated("", '[', 100000, "");
}

static char *deep_inside(const struct vmm *vmm)
{
	(void)vmm;
	return repeated("[{\"x\":", '[', 3000, "1");
}

static char *over_a_mebibyte_of_space(const struct vmm *vmm)
{
	(void)vmm;
	return repeated("[", ' ', (1 << 20) + 100, "]");
}

static char *over_a_mebibyte_of_string(const struct vmm *vmm)
{
	(void)vmm;
	return repeated("[{\"x\":\"", 'a', (1 << 20) + 100, "\"}]");
}

/* Far over what the server may hold for a peer: it must hang up long before the end. */
static char *endless(const struct vmm *vmm)
{
	(void)vmm;
	return repeated("[\"", 'a', 64 << 20, "\"]");
}

struct excess {
	const char *name;
	char *(*text)(const struct vmm *vmm);
	const char *word;
};

static const struct excess excesses[] = {
	{ "1025-regions", too_many_regions, "1024|1025" },
	{ "deep", deep, "deep|nest|JSON" },
	{ "deep-inside", deep_inside, "deep|nest|JSON" },
	{ "space", over_a_mebibyte_of_space, "long|1048576|MiB" },
	{ "string", over_a_mebibyte_of_string, "long|1048576|MiB" },
	{ "endless", endless, "long|1048576|MiB" },
};

struct excess_scene {
	struct scene scene;
	const struct excess *excess;
};

static void excess_body(struct client_self *self, void *data)
{
	struct excess_scene *excess = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &excess->scene.image);
	for (unsigned i = 0; i < 1025; i++)
		vmm_add_region(&vmm, PAGE, 0);
	vmm_make_uffd(&vmm, (struct vmm_form){ 0 });
	vmm_connect(&vmm, excess->scene.socket);
	_cleanup_free_ char *text = excess->excess->text(&vmm);
	int r = peer_send(vmm.conn, text, strlen(text), &vmm.uffd, 1, 0);
	client_require(self, r == 0 || r == -EPIPE || r == -ECONNRESET, "sending: %s", strerror(-r));
	client_require(self, peer_await_closed(vmm.conn, deadline_in(WAIT_S)), "the server did not turn it away");
}

static void test_too_much_of_everything(void **state)
{
	struct test_server *server = *state;
	struct excess_scene excess = { 0 };

	test_image_make(&excess.scene.image, server->dir, "base", PAGES * PAGE);
	template_add(server, "base", &excess.scene.image);
	size_t before = test_server_memory(server);
	for (size_t i = 0; i < sizeof excesses / sizeof *excesses; i++) {
		excess.excess = &excesses[i];
		fork_create(server, "base", excesses[i].name, NULL, excess.scene.socket);
		client_join(client_start(excesses[i].name, excess_body, &excess));
		check_after(server, &excess.scene, excesses[i].name, excesses[i].word);
	}
	if (!under_sanitizer())
		assert_true(test_server_memory(server) < before + (32 << 20));
}

/* ---- peers that break off ---- */

static void breaking_off_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &scene->image);
	vmm_add_region(&vmm, PAGES * PAGE, 0);
	vmm_make_uffd(&vmm, (struct vmm_form){ 0 });
	_cleanup_free_ char *text = vmm_handshake_text(&vmm, VMM_FIRECRACKER);
	vmm_connect(&vmm, scene->socket);
	if (scene->chunk) {
		int r = peer_send(vmm.conn, text, scene->chunk, &vmm.uffd, 1, 0);
		client_require(self, r == 0, "sending: %s", strerror(-r));
	}
}

static void test_closed_in_the_middle(void **state)
{
	static const size_t lengths[] = { 0, 1, 20, 60 };
	struct test_server *server = *state;
	struct scene scene = { 0 };

	test_image_make(&scene.image, server->dir, "base", PAGES * PAGE);
	template_add(server, "base", &scene.image);
	for (unsigned i = 0; i < 4; i++) {
		char id[16];

		scene.chunk = lengths[i];
		snprintf(id, sizeof id, "cut-%zu", lengths[i]);
		fork_create(server, "base", id, NULL, scene.socket);
		/* Ten one after the other: what they leave must not fill anything up. */
		for (unsigned k = 0; k < 10; k++)
			client_join(client_start(id, breaking_off_body, &scene));
		client_join(client_start("truth", truthful_body, &scene));
		fork_wait(server, id, "gone");
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_lies_whole),
		SERVED(test_lies_in_pieces),
		SERVED(test_too_much_of_everything),
		SERVED(test_closed_in_the_middle),
	};

	return harness_run(tests);
}
