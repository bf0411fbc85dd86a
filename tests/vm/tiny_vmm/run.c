#include "vmm.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"

/* The narrowest of several looks at both clocks. */
static struct moment look_at_clocks(void)
{
	struct moment best = { 0 };
	uint64_t narrowest = UINT64_MAX;

	for (unsigned i = 0; i < 32; i++) {
		uint64_t before = machine_tsc();
		uint64_t ns = now_ns();
		uint64_t width = machine_tsc() - before;

		if (width < narrowest) {
			narrowest = width;
			best = (struct moment){ ns, before + width / 2 };
		}
	}
	return best;
}

static void handle_call(void *data, unsigned vcpu, enum guest_call call)
{
	struct vmm *vmm = data;
	struct faultline_error error;
	char line[256];

	if (call == GUEST_READY && vmm->options.server) {
		if (faultline_ready(vmm->client, &error) < 0)
			fail("%s. %s", error.what, error.remedy);
	} else if (call == GUEST_HOLD) {
		printf("{\"event\":\"hold\",\"vcpu\":%u}\n", vcpu);
		fflush(stdout);
		if (!fgets(line, sizeof line, stdin))
			fail("vCPU %u holds, and stdin has ended", vcpu);
	}
}

static void *join_machine(void *data)
{
	struct vmm *vmm = data;

	machine_join(&vmm->machine);
	eventfd_write(vmm->done, 1);
	return NULL;
}

void run_make_machine(struct vmm *vmm)
{
	struct machine *machine = &vmm->machine;

	if (machine_make(machine, vmm->options.irqchip) < 0)
		_exit(EXIT_FAILED);
	machine->call = handle_call;
	machine->data = vmm;
	for (unsigned i = 0; i < vmm->slot_count; i++)
		if (machine_add_memory(machine, vmm->slots[i].guest_address, vmm->slots[i].memory, vmm->slots[i].size) <
		    0)
			_exit(EXIT_FAILED);
	for (unsigned i = 0; i < vmm->script.vcpu_count; i++)
		if (machine_add_vcpu(machine, vmm->options.cpus[i]) < 0)
			_exit(EXIT_FAILED);
	int r = guest_control_make(&vmm->control, &vmm->script, vmm->options.irqchip, machine->tsc_khz,
				   memory_guest_address, vmm);
	if (r < 0)
		fail("memory for the guest's programs: %s", strerror(-r));
	if (machine_add_memory(machine, 0, vmm->control.memory, vmm->control.size) < 0)
		_exit(EXIT_FAILED);
	for (unsigned i = 0; i < vmm->script.vcpu_count; i++)
		if (machine_set_entry(machine, i, &vmm->control.entries[i]) < 0)
			_exit(EXIT_FAILED);
}

static void print_start(const struct vmm *vmm)
{
	printf("{\"event\":\"start\",\"pid\":%d,\"irqchip\":%s,\"connected_ns\":%" PRIu64 ",\"tids\":[", getpid(),
	       vmm->options.irqchip ? "true" : "false", vmm->connected_ns);
	for (unsigned i = 0; i < vmm->machine.vcpu_count; i++)
		printf("%s%d", i ? "," : "", vmm->machine.vcpus[i].tid);
	printf("],\"regions\":[");
	for (unsigned i = 0; i < vmm->slot_count; i++)
		printf("%s{\"address\":%" PRIuPTR ",\"guest_address\":%" PRIu64 ",\"size\":%" PRIu64
		       ",\"offset\":%" PRIu64 "}",
		       i ? "," : "", (uintptr_t)vmm->slots[i].memory, vmm->slots[i].guest_address, vmm->slots[i].size,
		       vmm->slots[i].offset);
	printf("]}\n");
	fflush(stdout);
}

void run_machine(struct vmm *vmm)
{
	struct pollfd events[] = {
		{ .events = POLLIN },
		{ .fd = faultline_server_fd(vmm->client), .events = POLLRDHUP },
	};
	pthread_t joiner;

	vmm->done = events[0].fd = eventfd(0, EFD_CLOEXEC);
	if (vmm->done < 0 || machine_start(&vmm->machine) < 0)
		fail("the guest can't be started");
	memory_note_present(vmm);
	print_start(vmm);
	vmm->start = look_at_clocks();
	guest_control_set_start(&vmm->control, vmm->start.tsc);
	machine_go(&vmm->machine);
	if (pthread_create(&joiner, NULL, join_machine, vmm))
		fail("no thread");
	while (poll(events, 2, -1) < 0)
		if (errno != EINTR)
			fail("poll: %s", strerror(errno));
	if (!(events[0].revents & POLLIN)) {
		fprintf(stderr, "faultline-tiny-vmm: the page server has gone away; this VM ends with it\n");
		fflush(NULL);
		_exit(EXIT_SERVER_GONE);
	}
	pthread_join(joiner, NULL);
	vmm->end = look_at_clocks();
}
