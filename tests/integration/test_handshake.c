/* Both handshakes, whole and in pieces, with the userfaultfd in either state: every page must come out right. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/cleanup.h"
#include "integration/harness/client.h"
#include "integration/harness/peer.h"
#include "integration/harness/server.h"
#include "integration/harness/vmm.h"
#include "uffd/abi.h"

#define PAGES 96ul

struct guest {
	char socket[SOCKET_PATH_MAX];
	struct test_image image;
	struct vmm_form form;
	const char *(*text)(struct vmm *vmm); /* a message of the test's own, or NULL */
	bool negotiated;		      /* UFFDIO_API done, UFFDIO_REGISTER not */
};

/* Three regions, the image's parts in another order than the addresses. */
static void add_regions(struct vmm *vmm)
{
	vmm_add_region(vmm, 32 * PAGE, 64 * PAGE);
	vmm_add_region(vmm, 60 * PAGE, 0);
	vmm_add_region(vmm, 4 * PAGE, 60 * PAGE);
}

static void guest_body(struct client_self *self, void *data)
{
	struct guest *guest = data;
	struct vmm vmm;

	vmm_init(&vmm, self, &guest->image);
	add_regions(&vmm);
	vmm_make_uffd(&vmm, guest->form);
	if (guest->negotiated) {
		struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE };

		client_require(self, ioctl(vmm.uffd, UFFDIO_API, &api) == 0, "UFFDIO_API failed");
	}
	vmm_connect(&vmm, guest->socket);
	if (guest->text) {
		const char *text = guest->text(&vmm);
		int r = peer_send(vmm.conn, text, strlen(text), &vmm.uffd, 1, guest->form.chunk);

		client_require(self, r == 0, "sending the handshake: %s", strerror(-r));
		vmm_await_registered(&vmm);
	} else {
		vmm_handshake(&vmm, guest->form);
	}
	vmm_check_all_shuffled(&vmm, 2, 3);
	vmm_remove(&vmm, &vmm.regions[1], 10, 20);
	vmm_check_all(&vmm);
	client_say(self, 'v');
	client_hear(self, 'q');
}

static void run_guest(struct test_server *server, struct guest *guest, const char *id)
{
	fork_create(server, "base", id, NULL, guest->socket);
	struct client *client = client_start(id, guest_body, guest);
	fork_wait(server, id, "connected");
	client_await(client, 'v');
	assert_int_equal(fork_number(server, id, "pid"), client->pid);
	assert_int_equal(fork_number(server, id, "removed_pages"), 20);
	assert_int_equal(fork_number(server, id, "copied_pages"), PAGES);
	_cleanup_free_ char *state = fork_string(server, id, "state");
	assert_string_equal(state, "connected");
	client_tell(client, 'q');
	client_join(client);
	fork_wait(server, id, "gone");
}

static void add_template(struct test_server *server, struct guest *guest)
{
	memset(guest, 0, sizeof *guest);
	test_image_make(&guest->image, server->dir, "base", PAGES * PAGE);
	template_add(server, "base", &guest->image);
}

static void test_every_form_whole_and_in_pieces(void **state)
{
	static const unsigned chunks[] = { 0, 1, 7, 100 };
	struct test_server *server = *state;
	struct guest guest;

	add_template(server, &guest);
	for (int json = 0; json < 2; json++)
		for (int fd = 0; fd < 2; fd++)
			for (unsigned c = 0; c < 4; c++) {
				char id[32];

				guest.form = (struct vmm_form){ .json = json, .fd = fd, .chunk = chunks[c] };
				snprintf(id, sizeof id, "json%d-fd%d-chunk%u", json, fd, chunks[c]);
				run_guest(server, &guest, id);
			}
}

static void test_negotiated_but_not_registered(void **state)
{
	struct test_server *server = *state;
	struct guest guest;

	add_template(server, &guest);
	guest.form = (struct vmm_form){ .json = VMM_FIRECRACKER, .fd = VMM_HYPEMAN };
	guest.negotiated = true;
	run_guest(server, &guest, "array");
	guest.form.json = VMM_HYPEMAN;
	run_guest(server, &guest, "object");
}

/* Writes the regions with each number where FORMAT has a %s. */
static const char *text_with(struct vmm *vmm, const char *before, const char *format, const char *after)
{
	static char text[4096];
	size_t n = (size_t)snprintf(text, sizeof text, "%s", before);

	for (unsigned i = 0; i < vmm->region_count; i++) {
		char address[24], size[24], offset[24];
		const char *values[] = { address, size, offset };
		unsigned next = 0;

		snprintf(address, sizeof address, "%" PRIuPTR, (uintptr_t)vmm->regions[i].address);
		snprintf(size, sizeof size, "%" PRIu64, vmm->regions[i].size);
		snprintf(offset, sizeof offset, "%" PRIu64, vmm->regions[i].offset);
		if (i)
			text[n++] = ',';
		for (const char *p = format; *p; p++) {
			if (*p == '$')
				n += (size_t)snprintf(text + n, sizeof text - n, "%s", values[next++]);
			else
				text[n++] = *p;
		}
	}
	snprintf(text + n, sizeof text - n, "%s", after);
	return text;
}

static const char *unknown_keys(struct vmm *vmm)
{
	return text_with(vmm, "[",
			 "{\"guest_phys\":[1,{\"x\":null}],\"base_host_virt_addr\":$,\"size\":$,\"offset\":$,"
			 "\"page_size\":4096,\"note\":\"a ] and a } and a \\\" in a string\",\"f\":-1.5e3}",
			 "]");
}

static const char *no_page_size(struct vmm *vmm)
{
	return text_with(vmm, "[", "{\"base_host_virt_addr\":$,\"size\":$,\"offset\":$}", "]");
}

static const char *old_page_size(struct vmm *vmm)
{
	return text_with(vmm, "[", "{\"base_host_virt_addr\":$,\"size\":$,\"offset\":$,\"page_size_kib\":4096}", "]");
}

static const char *white_space(struct vmm *vmm)
{
	return text_with(vmm, " \n\t[\r\n ", " { \"base_host_virt_addr\" : $ ,\n \"size\" : $ , \"offset\"\t: $ } ",
			 " \n]");
}

static const char *object_with_more(struct vmm *vmm)
{
	return text_with(vmm, "{\"vm\":\"x\",\"mappings\":[", "{\"base_host_virt_addr\":$,\"size\":$,\"offset\":$}",
			 "],\"after\":{}}");
}

static void test_other_ways_to_write_it(void **state)
{
	static const struct {
		const char *name;
		const char *(*text)(struct vmm *vmm);
	} texts[] = {
		{ "unknown-keys", unknown_keys },	  { "no-page-size", no_page_size },
		{ "old-page-size", old_page_size },	  { "white-space", white_space },
		{ "object-with-more", object_with_more },
	};
	struct test_server *server = *state;
	struct guest guest;

	add_template(server, &guest);
	for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
		char id[32];

		for (unsigned chunk = 0; chunk < 2; chunk++) {
			guest.text = texts[i].text;
			guest.form.chunk = chunk;
			snprintf(id, sizeof id, "%s-%u", texts[i].name, chunk);
			run_guest(server, &guest, id);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		SERVED(test_every_form_whole_and_in_pieces),
		SERVED(test_negotiated_but_not_registered),
		SERVED(test_other_ways_to_write_it),
	};

	return harness_run(tests);
}
