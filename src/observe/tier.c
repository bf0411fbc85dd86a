/* Tiers and their trials. */
#include "observe/tier.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "observe/programs.h"

const struct tier tiers[] = {
	{ .name = "fentry",
	  .what = "fentry and fexit of handle_userfault: who waits for a page and how long, exactly",
	  .programs = { "enter_fentry", "leave_fexit", "touch_user", "touch_kernel", "sched_switched", "find_context",
			"tell_pending_of" } },
	{ .name = "kprobe",
	  .what = "kprobe and kretprobe of handle_userfault: the same, a little dearer",
	  .programs = { "enter_kprobe", "leave_kretprobe", "touch_user", "touch_kernel", "sched_switched",
			"find_context", "tell_pending_of" } },
	{ .name = "tp_btf",
	  .what = "tracepoints of page faults and context switches: who waits is concluded from both",
	  .programs = { "touch_user", "touch_kernel", "sched_switched", "find_context", "tell_pending_of" },
	  .waits_by_switch = true },
};
const size_t tier_count = sizeof tiers / sizeof *tiers;

const struct tier_extra tier_extras[] = {
	{ .name = "sched_waking",
	  .what = "who wakes a sleeping vCPU, which orders the touches of vCPUs that wait for each other",
	  .programs = { "sched_woken", "sched_woken_alt" } },
	{ .name = "kvm_page_fault",
	  .what = "touches of pages that are there already, in KVM guests",
	  .programs = { "touch_guest" } },
};
const size_t tier_extra_count = sizeof tier_extras / sizeof *tier_extras;

const struct tier *tier_find(const char *name)
{
	for (size_t i = 0; i < tier_count; i++)
		if (!strcmp(tiers[i].name, name))
			return &tiers[i];
	return NULL;
}

static void try_programs(const char *const *names, bool waits_by_switch, struct tier_trial *ret)
{
	struct programs_config config = {
		.names = names,
		.ring_bytes = (size_t)sysconf(_SC_PAGESIZE),
		.waits_by_switch = waits_by_switch,
	};
	struct programs *programs;
	struct error err = { 0 };

	*ret = (struct tier_trial){ .program = names[0] };
	int r = programs_load(&config, &programs, &err);
	ret->works = r == 0;
	ret->error = r;
	if (r < 0)
		snprintf(ret->reason, sizeof ret->reason, "%.*s", (int)sizeof ret->reason - 1, err.message);
	else
		programs_free(programs);
}

static void try_program(const char *name, struct tier_trial *ret)
{
	const char *const only[] = { name, NULL };

	try_programs(only, false, ret);
}

void tier_try(const struct tier *tier, struct tier_trial *ret)
{
	struct tier_trial together, alone;

	/* All at once, as the server does it: to end each by itself has the kernel wait for half a second. */
	try_programs(tier->programs, tier->waits_by_switch, &together);
	*ret = together;
	if (together.works)
		return;
	/* Which one is it? */
	for (size_t i = 0; tier->programs[i]; i++) {
		try_program(tier->programs[i], &alone);
		if (!alone.works) {
			*ret = alone;
			return;
		}
	}
}

void tier_extra_try(const struct tier_extra *extra, struct tier_trial *ret)
{
	struct tier_trial first;

	try_program(extra->programs[0], ret);
	first = *ret;
	for (size_t i = 1; extra->programs[i] && !ret->works; i++)
		try_program(extra->programs[i], ret);
	if (!ret->works)
		*ret = first;
}
