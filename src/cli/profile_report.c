/* What `faultline profile` says of its list, and of what the list can't have. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/profile.h"
#include "hotlist/merge.h"
#include "observe/observe.h"

static const char *const end_names[] = {
	[PROFILE_RUNS] = "unknown", [PROFILE_DURATION] = "duration",   [PROFILE_SETTLED] = "settled",
	[PROFILE_GONE] = "gone",    [PROFILE_STOPPED] = "interrupted",
};
static const char *const end_words[] = {
	[PROFILE_RUNS] = "ended",
	[PROFILE_DURATION] = "as long as asked for",
	[PROFILE_SETTLED] = "until it settled",
	[PROFILE_GONE] = "until its end",
	[PROFILE_STOPPED] = "until interrupted",
};

static unsigned long page_size(void)
{
	return (unsigned long)sysconf(_SC_PAGESIZE);
}

static bool is_coarse(const struct profile *profile)
{
	return profile->around.bytes > page_size();
}

static int print_json(const struct profile *profile, const struct hotlist *list)
{
	const struct hotlist_origin *origin = list->origin;
	json_t *value = json_pack("{s:s,s:s,s:I,s:i,s:s,s:b,s:I,s:s,s:f,s:s,s:s?,s:s,s:I,s:{s:I,s:b,s:s?},s:I,s:b}",
				  "list", profile->list_path, "format", hotlist_format_name(profile->format), "pages",
				  (json_int_t)list->count, "pid", (int)profile->pid, "memory", profile->maps.path,
				  "memory_guessed", !profile->memory, "regions", (json_int_t)profile->maps.count,
				  "window_end", end_names[profile->end], "window_ms", profile->window_s * 1e3, "tier",
				  observe_tier(profile->observe), "lacks", observe_lacks(profile->observe), "clock",
				  origin ? hot_clock_name(origin->clock) : "unknown", "events_lost",
				  (json_int_t)(origin ? origin->events_lost : 0), "fault_around", "bytes",
				  (json_int_t)profile->around.bytes, "set",
				  !profile->around.why[0] && profile->around.before != 0, "why",
				  profile->around.why[0] ? profile->around.why : NULL, "present_before",
				  (json_int_t)(profile->present_before / page_size()), "kvm", profile->kvm);

	if (!value) {
		cli_error("out of memory, or a name that is not UTF-8");
		return EXIT_FAILED;
	}
	int exit_code = cli_print_json(value);
	json_decref(value);
	return exit_code;
}

static void print_fault_around(FILE *out, const struct profile *profile)
{
	const struct fault_around *around = &profile->around;

	if (is_coarse(profile))
		fprintf(out,
			"  coarse  the kernel maps up to %lu pages at a touch%s, and the others of them aren't seen: %s\n",
			around->bytes / page_size(), profile->maps.shared ? "" : " that only reads",
			around->why[0] ? around->why : "--fault-around keep");
	else if (around->before > page_size())
		fprintf(out, "  exact   fault-around was one page meanwhile, and is %lu KiB again\n",
			around->before >> 10);
}

static void print_text(FILE *out, const struct profile *profile, const struct hotlist *list)
{
	const struct hotlist_origin *origin = list->origin;
	char size[32], window[32];

	cli_format_size(list->count * HOTLIST_PAGE_SIZE, size, sizeof size);
	cli_format_ms(profile->window_s * 1e3, window, sizeof window);
	fprintf(out, "%s\n  pages   %zu, %s, of process %d\n", profile->list_path, list->count, size, (int)profile->pid);
	fprintf(out, "  image   %s%s, in %zu region%s\n", profile->maps.path,
		profile->memory ? "" : " (guessed: the largest file that it maps; --memory names another)",
		profile->maps.count, profile->maps.count == 1 ? "" : "s");
	fprintf(out, "  window  %s, %s\n", window, end_words[profile->end]);
	fprintf(out, "  seen    by %s\n", observe_tier(profile->observe));
	if (origin)
		fprintf(out, "  order   by the %s clock; 'faultline hotlist merge' of several profiles decides better\n",
			hot_clock_name(origin->clock));
	if (profile->present_before)
		fprintf(out, "  before  %llu pages had been touched already, and are not in the list\n",
			(unsigned long long)(profile->present_before / page_size()));
	if (origin && origin->events_lost)
		fprintf(out, "  lost    %llu events: pages are missing\n", (unsigned long long)origin->events_lost);
	print_fault_around(out, profile);
	if (observe_lacks(profile->observe))
		fprintf(out, "  lacks   %s\n", observe_lacks(profile->observe));
}

int profile_report(const struct profile *profile, const struct hotlist *list)
{
	/* The list itself may have gone to stdout. */
	bool list_on_stdout = !strcmp(profile->list_path, "-");

	if (profile->args->json && !list_on_stdout)
		return print_json(profile, list);
	print_text(list_on_stdout ? stderr : stdout, profile, list);
	return cli_finish_output();
}
