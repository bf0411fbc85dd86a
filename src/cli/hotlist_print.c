#include "cli/hotlist_print.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/options.h"
#include "hotlist/json.h"
#include "hotlist/words.h"

int print_parse_limit(const struct cli_args *args, size_t otherwise, size_t *ret)
{
	const char *text = cli_value(args, "limit");
	char *end;

	if (!text) {
		*ret = otherwise;
		return EXIT_OK;
	}
	if (!strcmp(text, "all")) {
		*ret = SIZE_MAX;
		return EXIT_OK;
	}
	errno = 0;
	unsigned long long n = strtoull(text, &end, 10);
	if (errno || *text < '0' || *text > '9' || *end)
		return cli_usage_error(args, "--limit takes a number of pages, or 'all', not '%s'", text);
	*ret = (size_t)n;
	return EXIT_OK;
}

void print_json_string(const char *text)
{
	json_t *value = json_string(text);

	if (value)
		json_dumpf(value, stdout, JSON_ENCODE_ANY);
	else
		fputs("null", stdout);
	json_decref(value);
}

/* Written out here and not through jansson, which holds no offsets over 2^63 and takes 440 bytes a page. */
void print_json_pages(const char *key, const struct hotlist *list, size_t limit)
{
	printf(",\"%s\":[", key);
	for (size_t i = 0; i < list->count && i < limit; i++) {
		if (i)
			putchar(',');
		json_page_write(stdout, list, i);
	}
	putchar(']');
}

/* "1.234": nanoseconds as milliseconds. */
static void print_ms(uint64_t ns)
{
	printf("  %12" PRIu64 ".%03u", ns / 1000000, (unsigned)(ns / 1000 % 1000));
}

static void print_touch(const struct hot_touch *touch)
{
	char vcpu[8] = "-";

	if (hot_touch_says_nothing(touch)) {
		puts("");
		return;
	}
	if (touch->vcpu != HOT_VCPU_UNKNOWN)
		snprintf(vcpu, sizeof vcpu, "%u", touch->vcpu);
	print_ms(touch->raw_ns);
	print_ms(touch->corrected_ns);
	printf("  %5s  %5" PRIu32 "  %-5s  %3u.%04u %%%s\n", vcpu, touch->seen, hot_kind_word(touch->kind) ?: "-",
	       touch->spread / 10000, touch->spread % 10000, touch->flags & HOT_WAS_PRESENT ? "  present" : "");
}

void print_pages(const struct hotlist *list, size_t limit)
{
	bool touches = hotlist_has_touches(list);

	printf("%8s  %16s", "REGION", "OFFSET");
	if (touches)
		printf("  %16s  %16s  %5s  %5s  %-5s  %s", "TOUCHED (ms)", "CORRECTED (ms)", "VCPU", "SEEN", "KIND",
		       "SPREAD");
	putchar('\n');
	for (size_t i = 0; i < list->count && i < limit; i++) {
		printf("%8" PRIu64 "  %16" PRIu64, list->pages[i].region, list->pages[i].offset);
		if (touches)
			print_touch(&list->touches[i]);
		else
			putchar('\n');
	}
	if (list->count > limit)
		printf("… and %zu more; '--limit all' prints them all\n", list->count - limit);
}
