#include "prefetch/cpus.h"

void prefetch_cpus_init(struct prefetch_cpus *cpus)
{
	*cpus = (struct prefetch_cpus){ 0 };
	if (sched_getaffinity(0, sizeof cpus->allowed, &cpus->allowed) < 0)
		CPU_ZERO(&cpus->allowed);
}

void prefetch_cpus_move(struct prefetch_cpus *cpus, struct guest_cpus *guest, const cpu_set_t *now)
{
	if (CPU_EQUAL(&guest->set, now))
		return;
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (CPU_ISSET(cpu, &guest->set))
			cpus->guests[cpu]--;
		if (CPU_ISSET(cpu, now))
			cpus->guests[cpu]++;
	}
	guest->set = *now;
}

void prefetch_cpus_choose(const struct prefetch_cpus *cpus, const struct guest_cpus *guest, cpu_set_t *ret)
{
	cpu_set_t off_all = cpus->allowed, off_this = cpus->allowed;

	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (cpus->guests[cpu] > 0)
			CPU_CLR(cpu, &off_all);
		if (CPU_ISSET(cpu, &guest->set))
			CPU_CLR(cpu, &off_this);
	}
	*ret = CPU_COUNT(&off_all) > 0 ? off_all : CPU_COUNT(&off_this) > 0 ? off_this : cpus->allowed;
}
