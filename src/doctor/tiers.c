/* The tiers of observation as the server tries them: its own programs are loaded and attached, by the table that it chooses from. */
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "doctor/check.h"
#include "doctor/machine.h"
#include "observe/privileges.h"
#include "observe/tier.h"

/* What stands before a tier's or an extra's name in its row's. */
#define TIER_PREFIX  "tier_"
#define EXTRA_PREFIX "tier_with_"

static void say_refused(struct probe *probe, const struct tier_trial *trial)
{
	char lacking[PRIVILEGES_TEXT_SIZE];

	privileges_lacking(lacking, sizeof lacking);
	probe_missing(probe, trial->error, "%s", trial->reason);
	if (lacking[0])
		probe_remedy(probe,
			     "run as root, or with CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN (systemd: AmbientCapabilities=), of "
			     "which the server gives up what it can once it observes");
	else if (has_seccomp_filter() && (trial->error == -EPERM || trial->error == -EACCES || trial->error == -ENOSYS))
		probe_remedy(probe, "allow bpf and perf_event_open in the seccomp filter that this process runs under");
}

static void probe_tier(struct probe *probe)
{
	const struct tier *tier = tier_find(probe->check->name + strlen(TIER_PREFIX));
	struct tier_trial trial;

	if (!tier) {
		probe_missing(probe, 0, "this faultline doesn't have it");
		return;
	}
	tier_try(tier, &trial);
	if (trial.works)
		probe_ok(probe, "%s", tier->what);
	else
		say_refused(probe, &trial);
}

static void probe_extra(struct probe *probe)
{
	const char *name = probe->check->name + strlen(EXTRA_PREFIX);
	struct tier_trial trial = { .reason = "this faultline doesn't have it" };

	for (size_t i = 0; i < tier_extra_count; i++)
		if (!strcmp(tier_extras[i].name, name))
			tier_extra_try(&tier_extras[i], &trial);
	if (trial.works)
		probe_ok(probe, "loaded and attached");
	else
		say_refused(probe, &trial);
}

static void probe_capabilities(struct probe *probe)
{
	char lacking[PRIVILEGES_TEXT_SIZE];

	privileges_lacking(lacking, sizeof lacking);
	if (!lacking[0])
		probe_ok(probe, has_capability(CAPABILITY_BPF) && has_capability(CAPABILITY_PERFMON)
					? "CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN"
					: "CAP_SYS_ADMIN, which stands for CAP_BPF and CAP_PERFMON");
	else if (has_capability(CAPABILITY_BPF) && has_capability(CAPABILITY_PERFMON))
		probe_degraded(probe, -EPERM, "%s", lacking);
	else
		probe_missing(probe, -EPERM, "%s", lacking);
}

#define LOWER_TIER "a lower tier is used, if one works: "

const struct check tier_checks[] = {
	{ .name = "bpf_capabilities",
	  .title = "capabilities",
	  .uses = DOCTOR_OBSERVATION,
	  .probe = probe_capabilities,
	  .cost = "forks are served unobserved",
	  .remedy = "run the server as root, or with CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN" },
	{ .name = TIER_PREFIX "fentry",
	  .title = "tier fentry",
	  .uses = DOCTOR_OBSERVATION,
	  .probe = probe_tier,
	  .cost = LOWER_TIER "kprobe sees the same and costs a little more",
	  .remedy = "a kernel with CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS=y and CONFIG_DEBUG_INFO_BTF=y" },
	{ .name = TIER_PREFIX "kprobe",
	  .title = "tier kprobe",
	  .uses = DOCTOR_OBSERVATION,
	  .probe = probe_tier,
	  .cost = LOWER_TIER "tp_btf concludes who waits for a page from page faults and context switches",
	  .remedy = "a kernel with CONFIG_KPROBES=y and CONFIG_KPROBE_EVENTS=y" },
	{ .name = TIER_PREFIX "tp_btf",
	  .title = "tier tp_btf",
	  .uses = DOCTOR_OBSERVATION,
	  .probe = probe_tier,
	  .cost = "forks are served unobserved: lists come from the fault loop alone, and have no latency by phase beside them",
	  .remedy = "a kernel with CONFIG_DEBUG_INFO_BTF=y whose architecture has the tracepoint page_fault_user" },
	{ .name = EXTRA_PREFIX "sched_waking",
	  .title = "with sched_waking",
	  .uses = DOCTOR_OBSERVATION,
	  .probe = probe_extra,
	  .cost = "the order of vCPUs that wait for each other is less sure",
	  .remedy = "a kernel with CONFIG_DEBUG_INFO_BTF=y" },
	{ .name = EXTRA_PREFIX "kvm_page_fault",
	  .title = "with kvm_page_fault",
	  .uses = DOCTOR_OBSERVATION,
	  .probe = probe_extra,
	  .cost = "touches of KVM guests on pages that are there aren't seen",
	  .remedy = "load the module kvm, of a kernel with CONFIG_DEBUG_INFO_BTF_MODULES=y" },
	{ 0 },
};
