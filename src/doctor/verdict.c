/* What all checks come to: one word for each use, and which tier of observation there is. */
#include <stdio.h>
#include <string.h>

#include "doctor/check.h"

/*
 * A tier counts where its row is ok, in which the server's own programs have been tried. The others are rows about what it stands on, of no
 * interest where a better tier works. Best first, as in observe/tier.h.
 */
static const struct ranked {
	const char *name, *row;
	const char *stands_on[3];
} ranks[] = {
	{ "fentry", "tier_fentry", { "bpf_fentry" } },
	{ "kprobe", "tier_kprobe", { "bpf_kprobe" } },
	{ "tp_btf", "tier_tp_btf", { "bpf_page_fault_user", "bpf_sched_switch" } },
};
#define RANK_COUNT (sizeof ranks / sizeof *ranks)

static bool is_ok(const struct doctor_report *report, const char *name)
{
	const struct doctor_result *result = doctor_find(report, name);

	return result && result->status == DOCTOR_OK;
}

static void append(char *list, size_t size, const char *word)
{
	size_t length = strlen(list);

	snprintf(list + length, size - length, "%s%s", length ? ", " : "", word);
}

/* "group: title", as titles alone can be too short to be found. */
static void append_row(char *list, size_t size, const struct doctor_result *result)
{
	char row[120];

	snprintf(row, sizeof row, "%s: %s", result->group, result->title);
	append(list, size, row);
}

/* Where something that is required is missing only that is named. */
static enum doctor_status judge(const struct doctor_report *report, enum doctor_use use, char *ret_why, size_t why_size)
{
	enum doctor_status status = DOCTOR_OK;

	for (size_t i = 0; i < report->count; i++) {
		const struct doctor_result *result = &report->results[i];
		bool fatal = result->status == DOCTOR_MISSING && ((result->required & use) || result->killed);

		if (result->status == DOCTOR_OK || !(result->uses & use))
			continue;
		if (fatal && status != DOCTOR_MISSING)
			ret_why[0] = '\0';
		if (fatal)
			status = DOCTOR_MISSING;
		else if (status == DOCTOR_OK)
			status = DOCTOR_DEGRADED;
		if (fatal || status == DOCTOR_DEGRADED)
			append_row(ret_why, why_size, result);
	}
	return status;
}

static bool is_of_tier(const struct ranked *rank, const char *check)
{
	for (const char *const *c = rank->stands_on; *c; c++)
		if (!strcmp(*c, check))
			return true;
	return !strcmp(rank->row, check);
}

/* What a tier below the one that works lacks costs nothing. */
static void excuse_lower_tiers(struct doctor_report *report, size_t chosen)
{
	for (size_t i = chosen + 1; i < RANK_COUNT; i++)
		for (size_t k = 0; k < report->count; k++) {
			struct doctor_result *result = &report->results[k];

			if (result->status == DOCTOR_OK || !is_of_tier(&ranks[i], result->name))
				continue;
			snprintf(result->cost, sizeof result->cost, "nothing: the tier %s, which is better, works",
				 ranks[chosen].name);
			result->remedy[0] = '\0';
		}
}

static void judge_observation(struct doctor_report *report)
{
	struct doctor_summary *summary = &report->summary;

	summary->tier = "none";
	summary->tier_pins = is_ok(report, "bpf_pin");
	for (size_t i = 0; i < RANK_COUNT; i++) {
		const struct doctor_result *result = doctor_find(report, ranks[i].row);

		if (is_ok(report, ranks[i].row)) {
			summary->tier = ranks[i].name;
			excuse_lower_tiers(report, i);
			return;
		}
		if (result)
			append_row(summary->tier_why, sizeof summary->tier_why, result);
	}
}

/* What was found, up to its first semicolon. */
static void quote(const struct doctor_report *report, const char *check, char *ret, size_t size)
{
	const struct doctor_result *result = doctor_find(report, check);

	snprintf(ret, size, "%.*s", (int)strcspn(result->found, ";"), result->found);
}

static void judge_kvm(struct doctor_report *report)
{
	const struct doctor_result *device = doctor_find(report, "kvm"), *fault = doctor_find(report, "kvm_fault");
	struct doctor_summary *summary = &report->summary;

	if (device->status == DOCTOR_OK && fault->status == DOCTOR_OK)
		snprintf(summary->kvm, sizeof summary->kvm, "ok");
	else
		quote(report, device->status != DOCTOR_OK ? "kvm" : "kvm_fault", summary->kvm, sizeof summary->kvm);
}

void verdict(struct doctor_report *report)
{
	struct doctor_summary *summary = &report->summary;

	summary->serving = judge(report, DOCTOR_SERVING, summary->serving_why, sizeof summary->serving_why);
	summary->prefetch = judge(report, DOCTOR_PREFETCH, summary->prefetch_why, sizeof summary->prefetch_why);
	judge_observation(report);
	quote(report, "huge_pages", summary->huge_pages, sizeof summary->huge_pages);
	judge_kvm(report);
}
