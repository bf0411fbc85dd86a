/* Which CPUs there are for tests, threads that run on one of them, and on which a server's pagers and forks are. */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "integration/harness/server.h"
#include "integration/harness/vmm.h"

/* The first COUNT CPUs that this process may run on. Leaves the test program with 77 where there are fewer. */
void cpus_require(int *cpus, unsigned count);

/* Keeps a thread (0: the caller) on one CPU. 0 or negative errno. */
int cpu_pin(pid_t tid, int cpu);

/* Waits until those who serve the fork are the pagers of just these CPUs. */
void fork_await_pagers(const struct test_server *server, const char *id, const int *cpus, unsigned count);
/* Whether they are at this moment. */
bool fork_has_pagers(const struct test_server *server, const char *id, const int *cpus, unsigned count);

/* The CPUs that the server's pagers have in their threads' names, sorted; how many. */
unsigned server_pager_cpus(const struct test_server *server, int *cpus, unsigned max);

/*
 * Guest threads that go where the test wants them: each reads its own part of the guest's memory over and over, and gives it back in
 * between, so that it has faults all the time. What it reads is compared.
 */
#define ROAMERS_MAX 8

struct roamers {
	unsigned count;
	int orders[ROAMERS_MAX][2]; /* a pipe each */
};

/* In the test, before the client is started. */
void roamers_init(struct roamers *roamers, unsigned count);
/* In the test, once the client has ended. */
void roamers_clear(struct roamers *roamers);
/* In the client: returns once all have been told to end. */
void roamers_run(struct vmm *vmm, struct roamers *roamers);

/* Orders. At first they rest. */
void roamer_go(struct roamers *roamers, unsigned index, int cpu);
void roamer_rest(struct roamers *roamers, unsigned index);
void roamers_end(struct roamers *roamers);

/* The CPUs among which guests move. */
struct cpu_choice {
	int cpus[2];
};

/* In the client: moves all threads of the process about, together and apart, until vmm->stop. */
void migrate_all_threads(struct vmm *vmm, const struct cpu_choice *choice, uint64_t salt);
