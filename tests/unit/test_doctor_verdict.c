/* What the doctor makes of its checks, on reports of machines that are not this one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "doctor/check.h"
#include "observe/tier.h"

/* The rows of the real table, all of them ok. */
static int make_report(void **state)
{
	struct doctor_report *report;
	struct error err;

	if (doctor_run("/tmp/faultline-doctor-verdict", &report, &err) < 0)
		return -1;
	for (size_t i = 0; i < report->count; i++) {
		struct doctor_result *result = &report->results[i];

		result->status = DOCTOR_OK;
		result->killed = false;
		result->error = 0;
		result->cost[0] = result->remedy[0] = '\0';
	}
	*state = report;
	return 0;
}

static int free_report(void **state)
{
	doctor_report_free(*state);
	return 0;
}

static struct doctor_result *row(struct doctor_report *report, const char *name)
{
	for (size_t i = 0; i < report->count; i++)
		if (!strcmp(report->results[i].name, name))
			return &report->results[i];
	fail_msg("there is no check %s", name);
	return NULL;
}

static void set(struct doctor_report *report, const char *name, enum doctor_status status)
{
	struct doctor_result *result = row(report, name);

	result->status = status;
	strcpy(result->cost, "something");
	strcpy(result->remedy, "another kernel");
}

static const struct doctor_summary *judge(struct doctor_report *report)
{
	memset(&report->summary, 0, sizeof report->summary);
	verdict(report);
	return &report->summary;
}

static void test_all_is_well(void **state)
{
	const struct doctor_summary *summary = judge(*state);

	assert_int_equal(summary->serving, DOCTOR_OK);
	assert_int_equal(summary->prefetch, DOCTOR_OK);
	assert_string_equal(summary->serving_why, "");
	assert_string_equal(summary->tier, "fentry");
	assert_true(summary->tier_pins);
	assert_string_equal(summary->kvm, "ok");
}

static void test_what_serving_needs(void **state)
{
	set(*state, "io_uring", DOCTOR_MISSING);
	assert_int_equal(judge(*state)->serving, DOCTOR_DEGRADED);
	assert_string_equal(judge(*state)->serving_why, "image reads: io_uring");

	/* What stands in the way altogether is named alone. */
	set(*state, "uffd_fault", DOCTOR_MISSING);
	set(*state, "cpus", DOCTOR_DEGRADED);
	assert_int_equal(judge(*state)->serving, DOCTOR_MISSING);
	assert_string_equal(judge(*state)->serving_why, "userfaultfd: serving a fault");
	assert_int_equal(judge(*state)->prefetch, DOCTOR_MISSING);
}

static void test_what_is_required_may_be_degraded(void **state)
{
	set(*state, "uffd_open", DOCTOR_DEGRADED);
	assert_int_equal(judge(*state)->serving, DOCTOR_DEGRADED);
	assert_int_equal(judge(*state)->prefetch, DOCTOR_DEGRADED);
}

/* A filter that kills the probe kills the server too. */
static void test_killed_probes(void **state)
{
	set(*state, "io_uring", DOCTOR_MISSING);
	row(*state, "io_uring")->killed = true;
	assert_int_equal(judge(*state)->serving, DOCTOR_MISSING);
	assert_string_equal(judge(*state)->serving_why, "image reads: io_uring");

	/* The server loads no BPF programs that it could not do without. */
	row(*state, "io_uring")->killed = false;
	set(*state, "bpf_fentry", DOCTOR_MISSING);
	row(*state, "bpf_fentry")->killed = true;
	assert_int_equal(judge(*state)->serving, DOCTOR_DEGRADED);
}

static void test_vmm_and_observation_do_not_touch_serving(void **state)
{
	struct doctor_report *report = *state;

	for (size_t i = 0; i < report->count; i++)
		if (!(report->results[i].uses & (DOCTOR_SERVING | DOCTOR_PREFETCH)))
			set(report, report->results[i].name, DOCTOR_MISSING);
	assert_int_equal(judge(report)->serving, DOCTOR_OK);
	assert_int_equal(judge(report)->prefetch, DOCTOR_OK);
	assert_string_equal(judge(report)->tier, "none");
	assert_string_not_equal(judge(report)->kvm, "ok");
}

/* Both choose from the same table. */
static void test_each_tier_of_the_server_has_a_row(void **state)
{
	char name[40];

	for (size_t i = 0; i < tier_count; i++) {
		snprintf(name, sizeof name, "tier_%s", tiers[i].name);
		row(*state, name);
		/* Without it, the next one is chosen. */
		assert_string_equal(judge(*state)->tier, tiers[i].name);
		set(*state, name, DOCTOR_MISSING);
	}
	assert_string_equal(judge(*state)->tier, "none");
	for (size_t i = 0; i < tier_extra_count; i++) {
		snprintf(name, sizeof name, "tier_with_%s", tier_extras[i].name);
		row(*state, name);
	}
}

static void test_tiers_in_their_order(void **state)
{
	set(*state, "tier_fentry", DOCTOR_MISSING);
	assert_string_equal(judge(*state)->tier, "kprobe");
	assert_non_null(strstr(judge(*state)->tier_why, "fentry"));
	assert_string_equal(row(*state, "tier_fentry")->cost, "something");

	set(*state, "tier_kprobe", DOCTOR_MISSING);
	assert_string_equal(judge(*state)->tier, "tp_btf");

	set(*state, "tier_tp_btf", DOCTOR_MISSING);
	assert_string_equal(judge(*state)->tier, "none");
	assert_string_equal(row(*state, "tier_tp_btf")->remedy, "another kernel");
}

/* That the kernel would let a program run says nothing of the server's own. */
static void test_what_a_tier_stands_on_is_not_the_tier(void **state)
{
	set(*state, "bpf_fentry", DOCTOR_MISSING);
	assert_string_equal(judge(*state)->tier, "fentry");
	set(*state, "bpf_fentry", DOCTOR_OK);
	set(*state, "tier_fentry", DOCTOR_MISSING);
	assert_string_equal(judge(*state)->tier, "kprobe");
}

/* What a worse tier lacks costs nothing; pins are every tier's, and not excused. */
static void test_worse_tiers_are_excused(void **state)
{
	set(*state, "bpf_kprobe", DOCTOR_MISSING);
	set(*state, "tier_tp_btf", DOCTOR_MISSING);
	set(*state, "bpf_sched_switch", DOCTOR_MISSING);
	set(*state, "bpf_pin", DOCTOR_MISSING);
	assert_string_equal(judge(*state)->tier, "fentry");
	assert_string_equal(row(*state, "bpf_kprobe")->cost, "nothing: the tier fentry, which is better, works");
	assert_string_equal(row(*state, "bpf_kprobe")->remedy, "");
	assert_string_equal(row(*state, "bpf_sched_switch")->remedy, "");
	assert_string_equal(row(*state, "tier_tp_btf")->remedy, "");
	assert_string_equal(row(*state, "bpf_pin")->cost, "something");
	assert_false(judge(*state)->tier_pins);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define CASE(f) cmocka_unit_test_setup_teardown(f, make_report, free_report)
		CASE(test_all_is_well),
		CASE(test_what_serving_needs),
		CASE(test_what_is_required_may_be_degraded),
		CASE(test_killed_probes),
		CASE(test_vmm_and_observation_do_not_touch_serving),
		CASE(test_tiers_in_their_order),
		CASE(test_each_tier_of_the_server_has_a_row),
		CASE(test_what_a_tier_stands_on_is_not_the_tier),
		CASE(test_worse_tiers_are_excused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
