#include "cli/serve_observe.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cli/cli.h"
#include "observe/observe.h"
#include "observe/privileges.h"

/* "4M", "65536", "64K": bytes within what a ring may have. */
static int parse_ring(const char *text, size_t *ret)
{
	char *end;
	unsigned shift = 0;

	errno = 0;
	unsigned long long value = strtoull(text, &end, 10);
	if (*end == 'K' || *end == 'k')
		shift = 10, end++;
	else if (*end == 'M' || *end == 'm')
		shift = 20, end++;
	if (errno || *text < '0' || *text > '9' || *end || value > OBSERVE_RING_MAX >> shift ||
	    value << shift < OBSERVE_RING_MIN)
		return -EINVAL;
	*ret = (size_t)value << shift;
	return 0;
}

int serve_observe_parse(const struct cli_args *args, struct serve_observe *ret)
{
	const char *mode = cli_value(args, "observe") ?: "auto", *ring = cli_value(args, "observe-ring");

	*ret = (struct serve_observe){
		.off = !strcmp(mode, "off"),
		.require = !strcmp(mode, "require"),
		.summary = "not observed",
	};
	if (ring && parse_ring(ring, &ret->ring_bytes) < 0)
		return cli_usage_error(args, "--observe-ring '%s' is not a size from 4K to 512M, like 16M", ring);
	return EXIT_OK;
}

static void say(const struct observe *observe)
{
	const char *lacks = observe_lacks(observe), *kept = observe_kept_privileges(observe),
		   *pins = observe_pin_dir(observe);

	if (pins)
		log_info("observation", "for bpftool, its maps and programs are in %s", pins);
	if (lacks)
		log_info("observation", "it goes without %s", lacks);
	if (kept)
		log_info("observation", "this kernel needs %s for each fork, so it is kept", kept);
}

/* Where nothing is observed: what it would have taken is given up all the same. */
static void give_up_privileges(void)
{
	char kept[PRIVILEGES_TEXT_SIZE];
	int r = privileges_drop(NULL, kept, sizeof kept);

	if (r < 0)
		log_warning("observation", "capabilities that aren't needed can't be given up, ignoring: %s",
			    strerror(-r));
}

int serve_observe_start(void *data, const char *run_dir, unsigned pagers, const struct observer **ret, struct error *err)
{
	struct serve_observe *observing = data;
	struct observe_config config = {
		.ring_bytes = observing->ring_bytes,
		.pagers = pagers,
		.tier = getenv("FAULTLINE_OBSERVE_TIER"),
		.drop_privileges = true,
	};
	struct error why = { 0 };

	if (observing->off) {
		give_up_privileges();
		return 0;
	}
	int r = observe_new(&config, &observing->observe, &why);
	if (r < 0 && observing->require) {
		*err = why;
		return error_prefix(err, r,
				    "observation is required, and no tier works ('faultline doctor' says more): ");
	}
	if (r < 0) {
		log_warning("observation", "no tier works, so forks are served unobserved: %s", why.message);
		give_up_privileges();
		return 0;
	}
	if (observe_pin(observing->observe, run_dir, &why) < 0)
		log_warning("observation", "bpftool won't find its maps and programs: %s", why.message);
	say(observing->observe);
	snprintf(observing->text, sizeof observing->text, "observed by %s", observe_tier(observing->observe));
	observing->summary = observing->text;
	*ret = observe_observer(observing->observe);
	return 0;
}

void serve_observe_stop(struct serve_observe *observing)
{
	observe_free(observing->observe);
	observing->observe = NULL;
}
