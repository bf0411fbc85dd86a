/* What `faultline profile` says of its list, and of what the list can't have. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/profile.h"
#include "hotlist/merge.h"
#include "hotlist/words.h"
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

/* Pages that came into the page tables since the beginning. */
static uint64_t mapped_pages(const struct profile *profile)
{
	return profile->mapped > profile->present_before ? (profile->mapped - profile->present_before) / page_size() : 0;
}

/* Some came along with others' touches, and would not be seen to be touched. A twentieth may be what was touched since the last look. */
static bool is_coarse(const struct profile *profile, const struct hotlist *list)
{
	return mapped_pages(profile) > list->count + list->count / 20;
}

static int print_json(const struct profile *profile, const struct hotlist *list)
{
	const struct hotlist_origin *origin = list->origin;
	json_t *value = json_pack("{s:s,s:s,s:I,s:i,s:s,s:b,s:I,s:s,s:f,s:s,s:s?,s:s,s:I,s:{s:I,s:b,s:s?},s:I,s:I,s:b}",
				  "list", profile->list_path, "format", hotlist_format_name(profile->format), "pages",
				  (json_int_t)list->count, "pid", (int)profile->pid, "memory", profile->maps.path,
				  "memory_guessed", !profile->memory, "regions", (json_int_t)profile->maps.count,
				  "window_end", end_names[profile->end], "window_ms", profile->window_s * 1e3, "tier",
				  observe_tier(profile->observe), "lacks", observe_lacks(profile->observe), "clock",
				  origin ? hot_clock_word(origin->clock) ?: "unknown" : "unknown", "events_lost",
				  (json_int_t)(origin ? origin->events_lost : 0), "fault_around", "bytes",
				  (json_int_t)profile->around.bytes, "set",
				  !profile->around.why[0] && profile->around.before != 0, "why",
				  profile->around.why[0] ? profile->around.why : NULL, "present_before",
				  (json_int_t)(profile->present_before / page_size()), "mapped_pages",
				  (json_int_t)mapped_pages(profile), "kvm", profile->kvm);

	if (!value) {
		cli_error("out of memory, or a name that is not UTF-8");
		return EXIT_FAILED;
	}
	int exit_code = cli_print_json(value);
	json_decref(value);
	return exit_code;
}

static void print_coarseness(FILE *out, const struct profile *profile, const struct hotlist *list)
{
	const struct fault_around *around = &profile->around;

	if (around->bytes > page_size())
		fprintf(out, "  around  the kernel maps up to %lu pages at a touch that reads (fault-around): %s\n",
			around->bytes / page_size(), around->why[0] ? around->why : "--fault-around keep");
	else if (around->before > page_size())
		fprintf(out, "  around  fault-around was set to one page meanwhile, and is %lu KiB again\n",
			around->before >> 10);
	if (is_coarse(profile, list))
		fprintf(out,
			"  coarse  %llu pages were mapped, so %llu came along with touches of others, and theirs aren't seen%s\n",
			(unsigned long long)mapped_pages(profile),
			(unsigned long long)(mapped_pages(profile) - list->count),
			around->bytes > page_size() ? "" : ": the page cache has the image in large pieces");
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
			hot_clock_word(origin->clock) ?: "unknown");
	if (profile->present_before)
		fprintf(out, "  before  %llu pages had been touched already, and are not in the list\n",
			(unsigned long long)(profile->present_before / page_size()));
	if (origin && origin->events_lost)
		fprintf(out, "  lost    %llu events: pages are missing\n", (unsigned long long)origin->events_lost);
	print_coarseness(out, profile, list);
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
