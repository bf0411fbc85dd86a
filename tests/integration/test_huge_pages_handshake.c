/* What a peer says of its page size: every form of the truth is served, and what is not true is refused with a sentence. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "integration/harness/client.h"
#include "integration/harness/huge.h"
#include "integration/harness/peer.h"
#include "integration/harness/server.h"

#define IMAGE_PAGES 4ul
#define SMALL	    (HUGE / PAGE)

/* Where $A points to, of four times 2 MiB. */
enum memory {
	ALL_HUGE,
	ALL_SMALL,
	HUGE_FIRST, /* and the other half small */
	SMALL_FIRST,
	HUGE_LAST, /* small, but for the last of four */
};

#define SAYS(keys) "[{\"base_host_virt_addr\":$A,\"size\":8388608,\"offset\":0" keys "}]"
#define PART(address, size, offset, page_size) \
	"{\"base_host_virt_addr\":" address ",\"size\":" size ",\"offset\":" offset ",\"page_size\":" page_size "}"

struct saying {
	const char *name;
	enum memory memory;
	const char *text;
	const char *word; /* of the refusal; NULL: it is served */
	bool raw;
};

static const struct saying sayings[] = {
	{ "page-size", ALL_HUGE, SAYS(",\"page_size\":2097152"), NULL, false },
	{ "page-size-kib", ALL_HUGE, SAYS(",\"page_size_kib\":2097152"), NULL, false },
	{ "both", ALL_HUGE, SAYS(",\"page_size\":2097152,\"page_size_kib\":2097152"), NULL, false },
	{ "kib-in-kib", ALL_HUGE, SAYS(",\"page_size_kib\":2048,\"page_size\":2097152"), NULL, false },
	{ "raw", ALL_HUGE, "{\"mappings\":" SAYS(",\"page_size\":2097152") "}", NULL, true },
	{ "small", ALL_SMALL, SAYS(",\"page_size\":4096"), NULL, false },
	{ "two-regions", HUGE_FIRST,
	  "[" PART("$A", "4194304", "0", "2097152") "," PART("$M", "4194304", "4194304", "4096") "]", NULL, false },

	/* Pages of hugetlbfs that are said to be small. */
	{ "says-4096", ALL_HUGE, SAYS(",\"page_size\":4096"), "page_size", false },
	{ "says-nothing", ALL_HUGE, SAYS(""), "page_size", false },
	{ "says-nothing-raw", ALL_HUGE, "{\"mappings\":" SAYS("") "}", "page_size", true },
	{ "page-size-counts", ALL_HUGE, SAYS(",\"page_size\":4096,\"page_size_kib\":2097152"), "page_size", false },
	{ "kib-alone-in-kib", ALL_HUGE, SAYS(",\"page_size_kib\":2048"), "page_size", false },
	{ "says-4096-half", HUGE_FIRST, SAYS(",\"page_size\":4096"), "page_size", false },
	{ "says-4096-last", HUGE_LAST, SAYS(",\"page_size\":4096"), "page_size", false },

	/* Small pages that are said to be huge. */
	{ "says-huge", ALL_SMALL, SAYS(",\"page_size\":2097152"), "page_size", false },
	{ "says-huge-raw", ALL_SMALL, "{\"mappings\":" SAYS(",\"page_size\":2097152") "}", "page_size", true },
	{ "says-huge-half", HUGE_FIRST, SAYS(",\"page_size\":2097152"), "page_size", false },
	{ "says-huge-other-half", SMALL_FIRST, SAYS(",\"page_size\":2097152"), "page_size", false },

	/* Not in whole pages. */
	{ "address", ALL_HUGE, "[" PART("$P", "2097152", "0", "2097152") "]", "multiple", false },
	{ "size", ALL_HUGE, "[" PART("$A", "2101248", "0", "2097152") "]", "multiple", false },
	{ "offset", ALL_HUGE, "[" PART("$A", "2097152", "4096", "2097152") "]", "multiple", false },
	{ "past-the-image", ALL_HUGE, "[" PART("$A", "8388608", "2097152", "2097152") "]", "image", false },
	{ "gigabyte", ALL_HUGE, SAYS(",\"page_size\":1073741824"), "page size", false },
	{ "4-mib", ALL_HUGE, SAYS(",\"page_size\":4194304"), "page size", false },
};

struct scene {
	char socket[SOCKET_PATH_MAX];
	struct test_image image;
	const struct saying *saying;
};

static void map_at(struct vmm *vmm, char *address, uint64_t size, int flags)
{
	flags |= MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
	void *p = mmap(address, size, PROT_READ | PROT_WRITE, flags, -1, 0);

	client_require(vmm->self, p == address, "mmap: %s", strerror(errno));
	if (!(flags & MAP_HUGETLB))
		madvise(p, size, MADV_NOHUGEPAGE);
}

/* Four times 2 MiB at an address that fits huge pages, with small ones from HUGE_FROM to HUGE_TO left out. */
static char *map_memory(struct vmm *vmm, enum memory memory)
{
	static const struct {
		uint64_t from, to; /* 2 MiB each: huge pages lie there */
	} layouts[] = {
		[ALL_HUGE] = { 0, 4 },	  [ALL_SMALL] = { 0, 0 }, [HUGE_FIRST] = { 0, 2 },
		[SMALL_FIRST] = { 2, 4 }, [HUGE_LAST] = { 3, 4 },
	};
	void *area = mmap(NULL, 6 * HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	client_require(vmm->self, area != MAP_FAILED, "no address space");

	char *base = (char *)(((uintptr_t)area + HUGE - 1) & ~(HUGE - 1));
	for (uint64_t i = 0; i < IMAGE_PAGES; i++)
		map_at(vmm, base + i * HUGE, HUGE,
		       i >= layouts[memory].from && i < layouts[memory].to ? MAP_HUGETLB : 0);
	vmm_adopt_region(vmm, base, IMAGE_PAGES * HUGE, 0, HUGE);
	return base;
}

static void put_addresses(const char *text, const char *base, char *out, size_t size)
{
	size_t n = 0;

	for (const char *p = text; *p && n + 24 < size; p++) {
		if (*p != '$') {
			out[n++] = *p;
			continue;
		}
		uint64_t at = (uintptr_t)base + (*++p == 'M' ? 2 * HUGE : *p == 'P' ? PAGE : 0);
		n += (size_t)snprintf(out + n, size - n, "%" PRIu64, at);
	}
	out[n] = '\0';
}

static void say(struct vmm *vmm, const struct scene *scene)
{
	char text[1024];

	char *base = map_memory(vmm, scene->saying->memory);
	vmm_make_uffd(vmm, (struct vmm_form){ .fd = scene->saying->raw ? VMM_HYPEMAN : VMM_FIRECRACKER });
	vmm_connect(vmm, scene->socket);
	put_addresses(scene->saying->text, base, text, sizeof text);
	int r = peer_send(vmm->conn, text, strlen(text), &vmm->uffd, 1, 0);
	client_require(vmm->self, r == 0, "sending: %s", strerror(-r));
}

static void served_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &scene->image);
	say(&vmm, scene);
	if (scene->saying->raw)
		vmm_await_registered(&vmm);
	vmm_check_all_shuffled(&vmm, 3, 1);
	vmm_remove(&vmm, &vmm.regions[0], SMALL, 2 * SMALL);
	vmm_check_all(&vmm);
}

static void refused_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &scene->image);
	say(&vmm, scene);
	client_require(self, peer_await_closed(vmm.conn, deadline_in(WAIT_S)), "the server did not turn it away");
}

static void truthful_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &scene->image);
	vmm_add_huge_region(&vmm, HUGE_ANONYMOUS, IMAGE_PAGES * HUGE, 0);
	vmm_start(&vmm, scene->socket, (struct vmm_form){ 0 });
	vmm_check_all(&vmm);
}

static void run_sayings(struct test_server *server, bool served)
{
	struct scene scene = { 0 };

	huge_pool_set_free(IMAGE_PAGES);
	test_image_make(&scene.image, server->dir, "base", IMAGE_PAGES * HUGE);
	template_add(server, "base", &scene.image);
	for (size_t i = 0; i < sizeof sayings / sizeof *sayings; i++) {
		const struct saying *saying = &sayings[i];

		if (served != !saying->word)
			continue;
		scene.saying = saying;
		fork_create(server, "base", saying->name, NULL, scene.socket);
		if (served) {
			client_join(client_start(saying->name, served_body, &scene));
		} else {
			client_join(client_start(saying->name, refused_body, &scene));
			fork_expect_error(server, saying->name, "waiting", saying->word);
			/* The same fork takes a VMM that tells the truth. */
			client_join(client_start("truth", truthful_body, &scene));
			fork_wait(server, saying->name, "gone");
		}
		huge_pool_await_free(IMAGE_PAGES);
	}
}

static void test_what_is_true_is_served(void **state)
{
	run_sayings(*state, true);
}

static void test_what_is_not_is_refused(void **state)
{
	run_sayings(*state, false);
}

/* With no page to be had the page size is still known, and the handshake is taken. */
static void empty_body(struct client_self *self, void *data)
{
	struct scene *scene = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &scene->image);
	vmm_add_huge_region(&vmm, HUGE_ANONYMOUS, IMAGE_PAGES * HUGE, 0);
	vmm_start(&vmm, scene->socket, (struct vmm_form){ 0 });
	client_say(self, 'c');
	client_hear(self, 'g');
	vmm_check_all(&vmm);
}

static void test_handshake_with_an_empty_pool(void **state)
{
	struct test_server *server = *state;
	struct scene scene = { .saying = &sayings[0] };

	huge_pool_set_free(0);
	test_image_make(&scene.image, server->dir, "base", IMAGE_PAGES * HUGE);
	template_add(server, "base", &scene.image);
	fork_create(server, "base", "empty", NULL, scene.socket);
	struct client *client = client_start("empty", empty_body, &scene);
	client_await(client, 'c');
	fork_wait(server, "empty", "connected");
	/* In time for the first touch. */
	huge_pool_set_free(IMAGE_PAGES);
	client_tell(client, 'g');
	client_join(client);

	huge_pool_set_free(0);
	fork_create(server, "base", "lie", NULL, scene.socket);
	for (size_t i = 0; i < sizeof sayings / sizeof *sayings; i++)
		if (!strcmp(sayings[i].name, "says-4096"))
			scene.saying = &sayings[i];
	client_join(client_start("lie", refused_body, &scene));
	fork_expect_error(server, "lie", "waiting", "page_size");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_what_is_true_is_served),
		SERVED(test_what_is_not_is_refused),
		SERVED(test_handshake_with_an_empty_pool),
	};

	huge_require();
	return harness_run(tests);
}
