#include "bench/noise.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "base/cleanup.h"
#include "base/clock.h"

static uint64_t usage_ns(int who)
{
	struct rusage usage = { 0 };

	getrusage(who, &usage);
	return (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * NSEC_PER_SEC +
	       (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * NSEC_PER_USEC;
}

static int read_ticks(struct noise_meter *meter)
{
	_cleanup_fclose_ FILE *file = fopen("/proc/stat", "re");
	_cleanup_free_ char *line = NULL;
	size_t size = 0;
	int seen = 0;

	if (!file)
		return -errno;
	meter->busy = meter->steal = 0;
	while (getline(&line, &size, file) > 0) {
		uint64_t user, nice, system, idle, iowait, irq, softirq, steal = 0;
		unsigned cpu;

		if (sscanf(line,
			   "cpu%u %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64
			   " %" SCNu64,
			   &cpu, &user, &nice, &system, &idle, &iowait, &irq, &softirq, &steal) < 8 ||
		    cpu >= CPU_SETSIZE || !CPU_ISSET(cpu, &meter->cpus))
			continue;
		meter->busy += user + nice + system + irq + softirq;
		meter->steal += steal;
		seen++;
	}
	return seen > 0 ? 0 : -ENODATA;
}

void noise_start(struct noise_meter *meter, const cpu_set_t *cpus)
{
	*meter = (struct noise_meter){ .cpus = *cpus };
	meter->wall_ns = now_ns();
	meter->own_ns = usage_ns(RUSAGE_SELF) + usage_ns(RUSAGE_CHILDREN);
	meter->error = read_ticks(meter);
}

json_t *noise_stop(const struct noise_meter *meter)
{
	struct noise_meter now;

	noise_start(&now, &meter->cpus);
	double wall = (double)(now.wall_ns - meter->wall_ns) * CPU_COUNT(&meter->cpus);
	if (meter->error < 0 || now.error < 0 || wall <= 0)
		return json_pack("{s:n,s:n,s:b,s:n}", "other_load", "steal", "too_noisy", 0, "reason");

	double tick = (double)NSEC_PER_SEC / (double)sysconf(_SC_CLK_TCK);
	double own = (double)(now.own_ns - meter->own_ns) / wall;
	double other = (double)(now.busy - meter->busy) * tick / wall - own;
	double steal = (double)(now.steal - meter->steal) * tick / wall;
	char reason[160] = "";

	if (other < 0)
		other = 0; /* ticks are coarser than the processes' own accounts */
	if (other > OTHER_LOAD_MAX)
		snprintf(reason, sizeof reason, "other processes used %.0f %% of the CPUs' time (more than %.0f %%)",
			 other * 100, OTHER_LOAD_MAX * 100);
	else if (steal > STEAL_MAX)
		snprintf(reason, sizeof reason, "the hypervisor took %.1f %% of the CPUs' time away (more than %.0f %%)",
			 steal * 100, STEAL_MAX * 100);
	return json_pack("{s:f,s:f,s:b,s:s?}", "other_load", (double)(long)(other * 1e4) / 1e4, "steal",
			 (double)(long)(steal * 1e4) / 1e4, "too_noisy", reason[0] != '\0', "reason",
			 reason[0] ? reason : NULL);
}
