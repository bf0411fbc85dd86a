/* What the command line of `faultline replay` asks for, and whether it makes sense. */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/replay.h"
#include "replay/content.h"

#define RUNS_MAX 10000

static bool parse_whole(const char *text, uint64_t max, uint64_t *ret)
{
	char *end;

	errno = 0;
	unsigned long long value = strtoull(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno || value > max)
		return false;
	*ret = value;
	return true;
}

static int parse_cpus(struct replay_job *job, const char *list)
{
	cpu_set_t allowed;
	const char *p = list;

	if (sched_getaffinity(0, sizeof allowed, &allowed) < 0)
		return cli_usage_error(job->args, "--pin can't be had: %s", strerror(errno));
	job->cpus = calloc(strlen(list) / 2 + 1, sizeof *job->cpus);
	while (job->cpus) {
		char *end;
		unsigned long cpu = strtoul(p, &end, 10);

		if (*p < '0' || *p > '9' || (*end && *end != ','))
			return cli_usage_error(job->args, "--pin is a list of CPUs like 0,1, not '%s'", list);
		if (cpu >= CPU_SETSIZE || !CPU_ISSET(cpu, &allowed))
			return cli_usage_error(job->args, "--pin names CPU %.*s, which is not there for this process",
					       (int)(end - p), p);
		job->cpus[job->cpu_count++] = (int)cpu;
		if (!*end)
			return EXIT_OK;
		p = end + 1;
	}
	cli_error("there is not enough memory");
	return EXIT_FAILED;
}

static int parse_numbers(struct replay_job *job)
{
	const char *runs = cli_value(job->args, "runs"), *seed = cli_value(job->args, "seed");
	const char *pin = cli_value(job->args, "pin");
	uint64_t number = 1;

	if (runs && (!parse_whole(runs, RUNS_MAX, &number) || !number))
		return cli_usage_error(job->args, "--runs is a number from 1 to %d, not '%s'", RUNS_MAX, runs);
	job->runs = (unsigned)number;
	job->seed = CONTENT_DEFAULT_SEED;
	if (seed && !parse_whole(seed, UINT64_MAX, &job->seed))
		return cli_usage_error(job->args, "--seed is a whole number, not '%s'", seed);
	return pin ? parse_cpus(job, pin) : EXIT_OK;
}

static int parse_source(struct replay_job *job)
{
	static const struct {
		const char *option;
		enum replay_source source;
	} sources[] = {
		{ "serve", SOURCE_OWN_SERVER }, { "run-dir", SOURCE_RUN_DIR }, { "socket", SOURCE_SOCKET },
		{ "plain", SOURCE_PLAIN },	{ "present", SOURCE_PRESENT },
	};
	const char *run_dir = getenv("FAULTLINE_RUN_DIR"), *chosen = NULL;

	for (size_t i = 0; i < sizeof sources / sizeof *sources; i++) {
		if (!cli_value(job->args, sources[i].option))
			continue;
		if (chosen)
			return cli_usage_error(job->args, "--%s and --%s exclude each other", chosen, sources[i].option);
		chosen = sources[i].option;
		job->source = sources[i].source;
	}
	if (!chosen && run_dir && *run_dir)
		job->source = SOURCE_RUN_DIR;
	job->api.run_dir = cli_value(job->args, "run-dir");
	return EXIT_OK;
}

static int check_source_options(struct replay_job *job)
{
	static const char *const api_only[] = { "prefetch", "hot-list", "no-wait", "record" };
	const struct cli_args *args = job->args;

	for (size_t i = 0; !replay_has_api(job) && i < sizeof api_only / sizeof *api_only; i++)
		if (cli_value(args, api_only[i]))
			return cli_usage_error(args, "--%s needs a faultline server: use it with --serve or --run-dir",
					       api_only[i]);
	if (job->source != SOURCE_OWN_SERVER && cli_value(args, "cpus"))
		return cli_usage_error(args, "--cpus is for a server of the replay's own (--serve)");
	if (job->source == SOURCE_SOCKET && !cli_value(args, "template"))
		return cli_usage_error(args, "--socket needs --template FILE: the image that the server supplies, made "
					     "with --make-template");
	if (job->source == SOURCE_SOCKET && job->runs > 1)
		return cli_usage_error(args, "--socket takes one run: a fork's socket is for one VM");
	if (job->source == SOURCE_PRESENT && job->cold)
		return cli_usage_error(args, "--cold and --present exclude each other");
	return EXIT_OK;
}

static int parse_prefetch(struct replay_job *job)
{
	const struct cli_args *args = job->args;
	const char *mode = cli_value(args, "prefetch"), *list = cli_value(args, "hot-list");

	if (!mode)
		mode = list ? "eager" : "off";
	job->prefetch = !strcmp(mode, "off") ? NULL : mode;
	/* A stream is for guests that run meanwhile. */
	job->wait = !cli_value(args, "no-wait") && !strcmp(mode, "eager");
	job->record = cli_value(args, "record") != NULL;
	if (job->prefetch && !list)
		return cli_usage_error(args,
				       "--prefetch %s needs --hot-list LIST; --write-hot-list makes one of a trace",
				       mode);
	if (list && !job->prefetch)
		return cli_usage_error(args, "--hot-list is of no use with --prefetch off");
	if (cli_value(args, "no-wait") && !job->prefetch)
		return cli_usage_error(args, "--no-wait is of no use without --hot-list");
	if (job->record != (cli_value(args, "output") != NULL))
		return cli_usage_error(args, "--record and -o FILE go together: where the recording is saved");
	return EXIT_OK;
}

static int parse_vcpus(struct replay_job *job)
{
	const char *vcpus = cli_value(job->args, "vcpus") ?: "waiting", *pace = cli_value(job->args, "pace") ?: "spin";
	const char *spread = cli_value(job->args, "spread");
	uint64_t number = 0;

	job->vcpus = !strcmp(vcpus, "independent") ? REPLAY_INDEPENDENT
		     : !strcmp(vcpus, "halting")   ? REPLAY_HALTING
		     : !strcmp(vcpus, "one")	   ? REPLAY_ONE
						   : REPLAY_WAITING;
	job->pace = !strcmp(pace, "idle") ? REPLAY_IDLES : !strcmp(pace, "compute") ? REPLAY_COMPUTES : REPLAY_SPINS;
	if (job->pace != REPLAY_SPINS && job->vcpus != REPLAY_INDEPENDENT &&
	    (job->vcpus != REPLAY_ONE || job->pace == REPLAY_IDLES))
		return cli_usage_error(job->args,
				       "--pace %s is for vCPUs that don't wait for each other: use it with "
				       "--vcpus independent",
				       pace);
	if (spread && (!parse_whole(spread, TRACE_VCPUS_MAX, &number) || !number))
		return cli_usage_error(job->args, "--spread is a number of vCPUs from 1 to %d, not '%s'",
				       TRACE_VCPUS_MAX, spread);
	job->spread = (unsigned)number;
	return EXIT_OK;
}

int replay_parse_options(struct replay_job *job)
{
	int exit_code = parse_numbers(job);

	if (exit_code == EXIT_OK)
		exit_code = parse_vcpus(job);
	job->cold = cli_value(job->args, "cold") != NULL;
	if (exit_code == EXIT_OK)
		exit_code = parse_source(job);
	if (exit_code == EXIT_OK)
		exit_code = parse_prefetch(job);
	return exit_code == EXIT_OK ? check_source_options(job) : exit_code;
}
